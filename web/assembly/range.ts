// A payload of the codec "range" -> the integers of a section.
//
// docs/format.md, "Vectors" and "Matrices", whose names these are.
import { alloc, fail, mark, release, zeros } from "./memory";
import { begin, finish, integers, number, readTables, TABLE, valuesByTables } from "./stream";

// @ts-ignore: decorator
@external("env", "progress")
declare function progress(share: f64): void;

function storeCode(at: usize, place: usize, wide: bool, value: i64): void {
  if (wide) {
    if (value != <i64>(<i16>value)) fail("a decoded code is beyond int16");
    store<i16>(at + place * 2, <i16>value);
  } else {
    if (value != <i64>(<i8>value)) fail("a decoded code is beyond int8");
    store<i8>(at + place, <i8>value);
  }
}

/** Kind 3 -> `count` values, i16 if `wide` and else i8, at `out`. */
export function decodeVector(
  payload: usize,
  bytes: usize,
  count: usize,
  wide: bool,
  out: usize,
): void {
  const before = mark();
  begin(payload, bytes, 3);
  const mode = number();
  if (mode < 0 || mode > 3) fail("small integers: an unknown mode");
  const list = alloc(count * 4);
  let centre: i64 = 0;
  if (mode & 2) {
    centre = number();
    const table = alloc(TABLE);
    readTables(1, 1, table);
    valuesByTables(table, 1, zeros(count * 2), count, list);
  } else {
    integers(count, list);
  }
  finish();
  let sum: i64 = 0;
  for (let i: usize = 0; i < count; i++) {
    const value = centre + load<i32>(list + i * 4);
    sum = mode & 1 ? sum + value : value;
    storeCode(out, i, wide, sum);
  }
  release(before);
}

// A matrix: u32 rows, columns, states of its trellis, and where its codes go; then, set here, where
// its rows' integers, its columns' integers, and the states of its columns (u16) are.
const ROWS: usize = 0,
  COLUMNS: usize = 4,
  STATES: usize = 8,
  OUT: usize = 12;
const ROW_LEVELS: usize = 16,
  COLUMN_LEVELS: usize = 20,
  MACHINES: usize = 24;
const MATRIX: usize = 28;

/** Kind 1, or kind 2 if `trellis` -> the codes of `count` matrices, i16 if `wide` and else i8. */
export function decodeMatrices(
  payload: usize,
  bytes: usize,
  matrices: usize,
  count: usize,
  trellis: bool,
  wide: bool,
): void {
  const before = mark();
  begin(payload, bytes, trellis ? 2 : 1);
  const lanes: usize = trellis ? 2 : 1;
  const lowest = number(),
    classes = number();
  if (classes < 1 || classes > 255) fail("codes: 1 to 255 classes are possible");
  const groups = zeros(<usize>classes * 4); // of each class, its group's first table
  integers(<usize>classes - 1, groups + 4);
  for (let c: usize = 1; c < <usize>classes; c++) {
    const rise = load<u32>(groups + c * 4);
    if (rise > 1) fail("codes: groups of classes do not rise by 0 or 1");
    store<u32>(groups + c * 4, load<u32>(groups + c * 4 - 4) + rise * <u32>lanes);
  }
  const stop = matrices + count * MATRIX;
  let widest: usize = 0,
    tallest: usize = 0,
    columnsOfAll: usize = 0,
    codes: u64 = 0;
  for (let m = matrices; m < stop; m += MATRIX) {
    const rows = <usize>load<u32>(m, ROWS),
      columns = <usize>load<u32>(m, COLUMNS);
    const levels = alloc((rows + columns) * 4);
    integers(rows, levels);
    integers(columns, levels + rows * 4);
    store<u32>(m, <u32>levels, ROW_LEVELS);
    store<u32>(m, <u32>(levels + rows * 4), COLUMN_LEVELS);
    if (trellis) store<u32>(m, <u32>zeros(columns * 2), MACHINES);
    columnsOfAll += columns;
    codes += <u64>rows * columns;
    tallest = max(tallest, rows);
    widest = max(widest, max<usize>(1, (1 << 18) / columns) * columns);
  }
  const tableCount = <usize>load<u32>(groups + <usize>classes * 4 - 4) + lanes;
  const tables = alloc(tableCount * TABLE);
  readTables(tableCount, lanes, tables);
  const step = trellis ? columnsOfAll : widest; // codes of a step, at most
  const indexes = alloc(step * 2),
    list = alloc(step * 4);
  let done: u64 = 0;
  if (trellis) {
    // the matrices that have this row: one that ended is not looked at again
    const present = alloc(count * 4);
    for (let i: usize = 0; i < count; i++)
      store<u32>(present + i * 4, <u32>(matrices + i * MATRIX));
    for (let row: usize = 0; row < tallest; row++) {
      let n: usize = 0,
        kept: usize = 0;
      for (let i: usize = 0; i < count; i++) {
        const m = <usize>load<u32>(present + i * 4);
        if (row >= <usize>load<u32>(m, ROWS)) continue;
        store<u32>(present + kept++ * 4, <u32>m);
        n = indexRow(m, row, lowest, classes, groups, indexes, n, true);
      }
      count = kept;
      valuesByTables(tables, tableCount, indexes, n, list);
      let from = list;
      for (let i: usize = 0; i < count; i++) {
        const m = <usize>load<u32>(present + i * 4),
          columns = <usize>load<u32>(m, COLUMNS);
        storeRow(
          from,
          columns,
          <usize>load<u32>(m, OUT) + ((row * columns) << (wide ? 1 : 0)),
          wide,
        );
        stepRow(from, columns, <usize>load<u32>(m, MACHINES), load<u32>(m, STATES));
        from += columns * 4;
      }
      done += n;
      if (!(row & 15)) progress(<f64>done / <f64>codes);
    }
  } else {
    for (let m = matrices; m < stop; m += MATRIX) {
      const rows = <usize>load<u32>(m, ROWS),
        columns = <usize>load<u32>(m, COLUMNS);
      const height = max<usize>(1, (1 << 18) / columns);
      for (let top: usize = 0; top < rows; top += height) {
        let n: usize = 0;
        for (let row = top; row < min(top + height, rows); row++) {
          n = indexRow(m, row, lowest, classes, groups, indexes, n, false);
        }
        valuesByTables(tables, tableCount, indexes, n, list);
        storeRow(list, n, <usize>load<u32>(m, OUT) + ((top * columns) << (wide ? 1 : 0)), wide);
        done += n;
        progress(<f64>done / <f64>codes);
      }
    }
  }
  finish();
  release(before);
}

/**
 * Append the tables' indexes of a row to `indexes`, which has `n`; returns how many it has then.
 */
function indexRow(
  m: usize,
  row: usize,
  lowest: i32,
  classes: i32,
  groups: usize,
  indexes: usize,
  n: usize,
  trellis: bool,
): usize {
  const columns = <usize>load<u32>(m, COLUMNS);
  const levels = <usize>load<u32>(m, COLUMN_LEVELS),
    machines = <usize>load<u32>(m, MACHINES);
  const level = load<i32>(<usize>load<u32>(m, ROW_LEVELS) + row * 4) - lowest;
  const at = indexes + n * 2;
  for (let c: usize = 0; c < columns; c++) {
    const found = min<i32>(max<i32>(level + load<i32>(levels + c * 4), 0), classes - 1);
    let index = load<u32>(groups + <usize>found * 4);
    if (trellis) index += load<u16>(machines + c * 2) & 1;
    store<u16>(at + c * 2, <u16>index);
  }
  return n + columns;
}

function storeRow(from: usize, count: usize, out: usize, wide: bool): void {
  for (let i: usize = 0; i < count; i++) storeCode(out, i, wide, load<i32>(from + i * 4));
}

/** Generators of the trellises of 4, 8, ... 256 states, by "Trellises". */
const H0 = memory.data<u32>([0o5, 0o13, 0o23, 0o45, 0o103, 0o235, 0o515]);
const H1 = memory.data<u32>([0o2, 0o4, 0o4, 0o10, 0o24, 0o126, 0o362]);

/** A trellis' states, u16 for each column, after a row of codes, i32. */
export function stepRow(codes: usize, columns: usize, machines: usize, states: u32): void {
  const place = <usize>(ctz(states) - 2) * 4;
  const h0 = load<u32>(H0 + place) >> 1,
    h1 = load<u32>(H1 + place) >> 1;
  for (let c: usize = 0; c < columns; c++) {
    const s = <u32>load<u16>(machines + c * 2);
    const k = load<u32>(codes + c * 4);
    store<u16>(machines + c * 2, <u16>((s >> 1) ^ (-(s & 1) & h0) ^ (-(k & 1) & h1)));
  }
}
