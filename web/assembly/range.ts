// A payload of the codec "range" -> the integers of a section. docs/format.md, "The codec range".
//
// Names follow that page; docs/decoder.py is the same in numpy. Tables, lists and matrices lie in
// memory as the comments of their constants say, all little endian.
import { alloc, fail, mark, release, zeros } from "./memory";

// @ts-ignore: decorator
@external("env", "progress")
declare function progress(share: f64): void;

const BITS: u64 = 24;
const ROOTS = memory.data<i64>([
  32768, 34218, 35733, 37315, 38967, 40693, 42494, 44376,
  46340, 48392, 50535, 52772, 55108, 57548, 60096, 62757,
]);

// The stream: words not read yet, the interval's length, and the point less the interval's lower end.
let words: usize = 0;
let wordsEnd: usize = 0;
let range: u64 = 0;
let point: u64 = 0;

function nextWord(): u64 {
  if (words >= wordsEnd) return 0;
  words += 4;
  return load<u32>(words - 4);
}

function begin(payload: usize, bytes: usize, kind: u8): void {
  if (bytes < 5) fail("codes: less than the five bytes of a payload's head");
  if (load<u8>(payload) != kind) fail("codes: a payload of another kind than its section calls for");
  if (<u64>bytes != 5 + 4 * <u64>load<u32>(payload, 1)) fail("codes: not as many words as it says");
  words = payload + 5;
  wordsEnd = payload + bytes;
  range = ~(<u64>0);
  point = nextWord() << 32;
  point |= nextWord();
}

function finish(): void {
  if (words != wordsEnd || point >= 0x1ffffffff) fail("codes: the stream goes on after its last code");
}

/** A symbol under 2^n equal frequencies. */
function evenBits(n: u64): i32 {
  const scale = range >> BITS;
  const symbol = point / scale >> (BITS - n);
  if (symbol >> n) fail("codes: the stream is damaged");
  point -= scale * (symbol << (BITS - n));
  range = scale << (BITS - n);
  if (range < 0x100000000) {
    range <<= 32;
    point = point << 32 | nextWord();
  }
  return <i32>symbol;
}

// A table: i32 lowest value, i32 size; where each frequency begins, u32[size + 2], at STARTS; and at
// FAST for each upper 10 bits of a quantile the first place that it can be, u16[1024].
const STARTS: usize = 8;
const LARGEST_SIZE = 511;
const FAST: usize = STARTS + 4 * (LARGEST_SIZE + 3);
const TABLE: usize = FAST + 2048;
const FAST_SHIFT: u64 = BITS - 10;

/** Fill the table at `at` by size + 1 logarithms, i64, which are overwritten. */
function setTable(at: usize, low: i32, size: i32, logs: usize): void {
  const count = size + 1;
  let sum: i64 = 0, largest: i64 = 0, first = 0;
  for (let i = 0; i < count; i++) {
    const c = min<i64>(max<i64>(load<i64>(logs + i * 8), 0), 320);
    const w = load<i64>(ROOTS + <usize>(c & 15) * 8) << (c >> 4);
    store<i64>(logs + i * 8, w);
    sum += w;
    if (w > largest) {
      largest = w;
      first = i;
    }
  }
  let left: i64 = 1 << BITS;
  for (let i = 0; i < count; i++) {
    const f = load<i64>(logs + i * 8) * ((1 << BITS) - count) / sum + 1;
    store<i64>(logs + i * 8, f);
    left -= f;
  }
  store<i64>(logs + first * 8, load<i64>(logs + first * 8) + left);
  store<i32>(at, low);
  store<i32>(at, size, 4);
  let start: u32 = 0;
  let fast: u32 = 0;
  for (let i = 0; i < count; i++) {
    store<u32>(at + STARTS + i * 4, start);
    start += <u32>load<i64>(logs + i * 8);
    for (; fast < 1024 && fast << <u32>FAST_SHIFT < start; fast++) store<u16>(at + FAST + fast * 2, <u16>i);
  }
  store<u32>(at + STARTS + count * 4, start);
}

/** Places of a table -> the i32 at out[order[i]] for first <= i < stop; returns how many escaped. */
function decodeRun(table: usize, order: usize, first: usize, stop: usize, out: usize): i32 {
  let r = range, p = point, w = words;
  const end = wordsEnd, starts = table + STARTS, fast = table + FAST;
  const low = load<i32>(table), size = <usize>load<i32>(table, 4);
  let escapes = 0;
  for (let i = first; i < stop; i++) {
    const scale = r >> BITS;
    const quantile = p / scale;
    if (quantile >> BITS) fail("codes: the stream is damaged");
    let k = <usize>load<u16>(fast + (<usize>(quantile >> FAST_SHIFT) << 1));
    while (load<u32>(starts + (k << 2), 4) <= <u32>quantile) k++;
    const from = load<u32>(starts + (k << 2));
    p -= scale * from;
    r = scale * (load<u32>(starts + (k << 2), 4) - from);
    if (r < 0x100000000) {
      r <<= 32;
      p <<= 32;
      if (w < end) {
        p |= load<u32>(w);
        w += 4;
      }
    }
    escapes += i32(k == size);
    store<i32>(out + (<usize>load<u32>(order + (i << 2)) << 2), k == size ? i32.MIN_VALUE : low + <i32>k);
  }
  range = r;
  point = p;
  words = w;
  return escapes;
}

/** Values by tables: for each of `count` u16 indexes its value, i32, at `out`. */
function valuesByTables(tables: usize, tableCount: usize, indexes: usize, count: usize, out: usize): void {
  const before = mark();
  const places = zeros((tableCount + 1) * 4);
  const order = alloc(count * 4);
  for (let i: usize = 0; i < count; i++) {
    const at = places + (<usize>load<u16>(indexes + (i << 1)) << 2);
    store<u32>(at, load<u32>(at, 4) + 1, 4);
  }
  for (let t: usize = 1; t <= tableCount; t++) {
    const at = places + t * 4;
    store<u32>(at, load<u32>(at) + load<u32>(at - 4));
  }
  for (let i: usize = 0; i < count; i++) {
    const at = places + (<usize>load<u16>(indexes + (i << 1)) << 2);
    const place = load<u32>(at);
    store<u32>(at, place + 1);
    store<u32>(order + (<usize>place << 2), <u32>i);
  }
  // each entry of `places` is now where its table's run ends
  let escapes = 0;
  let start: usize = 0;
  for (let t: usize = 0; t < tableCount; t++) {
    const stop = <usize>load<u32>(places + t * 4);
    if (stop > start) escapes += decodeRun(tables + t * TABLE, order, start, stop, out);
    start = stop;
  }
  if (escapes) {
    const beyond = alloc(<usize>escapes * 4);
    folded(<usize>escapes, beyond);
    let next = beyond;
    for (let i: usize = 0; i < count; i++) {
      const place = <usize>load<u32>(order + i * 4);
      if (load<i32>(out + place * 4) != i32.MIN_VALUE) continue;
      const table = tables + <usize>load<u16>(indexes + place * 2) * TABLE;
      const u = load<i32>(next);
      next += 4;
      const low = load<i32>(table), above = low + load<i32>(table, 4);
      store<i32>(out + place * 4, u & 1 ? low - (u + 1) / 2 : above + u / 2);
    }
  }
  release(before);
}

/** A list of folded numbers, i32, at `out`. */
function folded(count: usize, out: usize): void {
  const before = mark();
  const lengths = alloc(count * 4);
  // the table's last place, which `decodeRun` takes for an escape, is the length 23
  const table = alloc(TABLE), logs = alloc(24 * 8);
  for (let n: i64 = 0; n < 24; n++) store<i64>(logs + <usize>n * 8, 320 - 16 * min<i64>(n + 1, 19));
  setTable(table, 0, 23, logs);
  const order = alloc(count * 4);
  for (let i: usize = 0; i < count; i++) store<u32>(order + i * 4, <u32>i);
  decodeRun(table, order, 0, count, lengths);
  for (let i: usize = 0; i < count; i++) {
    if (load<i32>(lengths + i * 4) == i32.MIN_VALUE) store<i32>(lengths + i * 4, 23);
    store<i32>(out + i * 4, 0);
  }
  for (let n: i32 = 1; n < 24; n++) {
    for (let i: usize = 0; i < count; i++) {
      if (load<i32>(lengths + i * 4) == n) store<i32>(out + i * 4, (1 << n) - 1 + evenBits(n));
    }
  }
  release(before);
}

function number(): i32 {
  const before = mark();
  const at = alloc(4);
  folded(1, at);
  const u = load<i32>(at);
  release(before);
  return u & 1 ? -((u + 1) / 2) : u / 2;
}

/** A list of integers, i32, at `out`. */
function integers(count: usize, out: usize): void {
  const before = mark();
  const centre = number(), shape = evenBits(7);
  const slope = <i64>(4 + ((shape >> 1) & 3)) << (shape >> 3);
  const table = alloc(TABLE), logs = alloc(256 * 8);
  for (let k: i64 = -127; k < 128; k++) {
    const distance = shape & 1 ? k * k : abs(k);
    store<i64>(logs + <usize>(k + 127) * 8, 320 - ((slope * distance) >> 8));
  }
  store<i64>(logs + 255 * 8, 160);
  setTable(table, -127, 255, logs);
  valuesByTables(table, 1, zeros(count * 2), count, out);
  for (let i: usize = 0; i < count; i++) store<i32>(out + i * 4, load<i32>(out + i * 4) + centre);
  release(before);
}

/** Tables in lanes, at `out`. */
function readTables(count: usize, lanes: usize, out: usize): void {
  const before = mark();
  const list = alloc(count * 4);
  const fields = alloc(6 * count * 8); // low, size, escape, peak, centre, curvature, each i64[count]
  for (let field: usize = 0; field < 6; field++) {
    integers(count, list);
    const at = fields + field * count * 8;
    for (let i: usize = 0; i < count; i++) {
      const earlier: i64 = i < lanes ? 0 : load<i64>(at + (i - lanes) * 8);
      store<i64>(at + i * 8, load<i32>(list + i * 4) + earlier);
    }
  }
  let total: usize = 0;
  for (let i: usize = 0; i < count; i++) {
    const at = fields + i * 8;
    const low = load<i64>(at), size = load<i64>(at + count * 8);
    if (size < 1 || low < -255 || low + size > 256) fail("codes: a table that is too long");
    const centre = load<i64>(at + 4 * count * 8), curvature = load<i64>(at + 5 * count * 8);
    if (abs(centre) > 4080 || curvature < 0 || curvature > 320) fail("codes: a table out of its limits");
    total += <usize>size;
  }
  let r = alloc(total * 4);
  integers(total, r);
  const logs = alloc((LARGEST_SIZE + 1) * 8);
  for (let i: usize = 0; i < count; i++) {
    const at = fields + i * 8;
    const low = load<i64>(at), size = load<i64>(at + count * 8), escape = load<i64>(at + 2 * count * 8);
    const peak = load<i64>(at + 3 * count * 8), centre = load<i64>(at + 4 * count * 8);
    const curvature = load<i64>(at + 5 * count * 8);
    const a = load<i64>(ROOTS + <usize>(curvature & 15) * 8) << (curvature >> 4);
    const m = min<i64>(max<i64>(((centre + 8) >> 4) - low, 0), size - 1);
    const pivot = <i64>load<i32>(r + <usize>m * 4);
    for (let p: i64 = 0; p < size; p++) {
      const d = 16 * (low + p) - centre;
      store<i64>(logs + <usize>p * 8, peak - ((d * d * a) >> 34) + pivot);
    }
    // the bends B: sums of sums of residuals, outwards from m
    let slope: i64 = 0, bend: i64 = 0;
    for (let p = m + 1; p < size; p++) {
      slope += load<i32>(r + <usize>p * 4);
      bend += slope;
      store<i64>(logs + <usize>p * 8, load<i64>(logs + <usize>p * 8) + bend);
    }
    slope = 0;
    bend = 0;
    for (let p = m - 1; p >= 0; p--) {
      slope += load<i32>(r + <usize>p * 4);
      bend += slope;
      store<i64>(logs + <usize>p * 8, load<i64>(logs + <usize>p * 8) + bend);
    }
    store<i64>(logs + <usize>size * 8, escape);
    setTable(out + i * TABLE, <i32>low, <i32>size, logs);
    r += <usize>size * 4;
  }
  release(before);
}

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
export function decodeVector(payload: usize, bytes: usize, count: usize, wide: bool, out: usize): void {
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
const ROWS: usize = 0, COLUMNS: usize = 4, STATES: usize = 8, OUT: usize = 12;
const ROW_LEVELS: usize = 16, COLUMN_LEVELS: usize = 20, MACHINES: usize = 24;
const MATRIX: usize = 28;

/** Kind 1, or kind 2 if `trellis` -> the codes of `count` matrices, i16 if `wide` and else i8. */
export function decodeMatrices(
  payload: usize, bytes: usize, matrices: usize, count: usize, trellis: bool, wide: bool,
): void {
  const before = mark();
  begin(payload, bytes, trellis ? 2 : 1);
  const lanes: usize = trellis ? 2 : 1;
  const lowest = number(), classes = number();
  if (classes < 1 || classes > 255) fail("codes: 1 to 255 classes are possible");
  const groups = zeros(<usize>classes * 4); // of each class, its group's first table
  integers(<usize>classes - 1, groups + 4);
  for (let c: usize = 1; c < <usize>classes; c++) {
    const rise = load<u32>(groups + c * 4);
    if (rise > 1) fail("codes: groups of classes do not rise by 0 or 1");
    store<u32>(groups + c * 4, load<u32>(groups + c * 4 - 4) + rise * <u32>lanes);
  }
  const stop = matrices + count * MATRIX;
  let widest: usize = 0, tallest: usize = 0, columnsOfAll: usize = 0, codes: u64 = 0;
  for (let m = matrices; m < stop; m += MATRIX) {
    const rows = <usize>load<u32>(m, ROWS), columns = <usize>load<u32>(m, COLUMNS);
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
  const indexes = alloc(step * 2), list = alloc(step * 4);
  let done: u64 = 0;
  if (trellis) {
    // the matrices that have this row: one that ended is not looked at again
    const present = alloc(count * 4);
    for (let i: usize = 0; i < count; i++) store<u32>(present + i * 4, <u32>(matrices + i * MATRIX));
    for (let row: usize = 0; row < tallest; row++) {
      let n: usize = 0, kept: usize = 0;
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
        const m = <usize>load<u32>(present + i * 4), columns = <usize>load<u32>(m, COLUMNS);
        storeRow(from, columns, <usize>load<u32>(m, OUT) + (row * columns << (wide ? 1 : 0)), wide);
        stepRow(from, columns, <usize>load<u32>(m, MACHINES), load<u32>(m, STATES));
        from += columns * 4;
      }
      done += n;
      if (!(row & 15)) progress(<f64>done / <f64>codes);
    }
  } else {
    for (let m = matrices; m < stop; m += MATRIX) {
      const rows = <usize>load<u32>(m, ROWS), columns = <usize>load<u32>(m, COLUMNS);
      const height = max<usize>(1, (1 << 18) / columns);
      for (let top: usize = 0; top < rows; top += height) {
        let n: usize = 0;
        for (let row = top; row < min(top + height, rows); row++) {
          n = indexRow(m, row, lowest, classes, groups, indexes, n, false);
        }
        valuesByTables(tables, tableCount, indexes, n, list);
        storeRow(list, n, <usize>load<u32>(m, OUT) + (top * columns << (wide ? 1 : 0)), wide);
        done += n;
        progress(<f64>done / <f64>codes);
      }
    }
  }
  finish();
  release(before);
}

/** Append the tables' indexes of a row to `indexes`, which has `n`; returns how many it has then. */
function indexRow(
  m: usize, row: usize, lowest: i32, classes: i32, groups: usize, indexes: usize, n: usize, trellis: bool,
): usize {
  const columns = <usize>load<u32>(m, COLUMNS);
  const levels = <usize>load<u32>(m, COLUMN_LEVELS), machines = <usize>load<u32>(m, MACHINES);
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
  const h0 = load<u32>(H0 + place) >> 1, h1 = load<u32>(H1 + place) >> 1;
  for (let c: usize = 0; c < columns; c++) {
    const s = <u32>load<u16>(machines + c * 2);
    const k = load<u32>(codes + c * 4);
    store<u16>(machines + c * 2, <u16>((s >> 1) ^ (-(s & 1) & h0) ^ (-(k & 1) & h1)));
  }
}
