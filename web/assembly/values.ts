// The coded arrays of a tensor -> the float32 values that they stand for. docs/format.md,
// "Methods".
//
// Every operation is one IEEE operation in float32, so all machines compute the same bits.
import { alloc, fail, mark, release, zeros } from "./memory";
import { stepRow } from "./range";

const SIGNIFICANDS = memory.data<u32>([
  8388608, 8479954, 8572295, 8665641, 8760003, 8855394, 8951823, 9049301, 9147842, 9247455, 9348154,
  9449948, 9552851, 9656875, 9762032, 9868333, 9975792, 10084422, 10194234, 10305242, 10417458,
  10530897, 10645571, 10761494, 10878679, 10997140, 11116891, 11237946, 11360319, 11484025,
  11609078, 11735492, 11863283, 11992466, 12123055, 12255067, 12388516, 12523418, 12659789,
  12797645, 12937002, 13077877, 13220286, 13364245, 13509772, 13656884, 13805598, 13955931,
  14107901, 14261526, 14416824, 14573813, 14732511, 14892937, 15055111, 15219050, 15384775,
  15552304, 15721658, 15892855, 16065917, 16240863, 16417715, 16596492,
]);

/** The scale that an index on a grid of 2^`shift` per octave stands for. */
function scale(index: i32, shift: i32): f32 {
  const octave = index >> shift;
  if (octave < -100 || octave > 100) fail("the index of a scale is beyond its grid");
  const place = (index & ((1 << shift) - 1)) << (6 - shift);
  const power = reinterpret<f32>((octave - 23 + 127) << 23);
  return <f32>load<u32>(SIGNIFICANDS + place * 4) * power;
}

/** `uniform`, or `trellis` where `states` is above 0; with offsets unless their place is 0. */
export function grid(
  codes: usize,
  rowScales: usize,
  columnScales: usize,
  columnOffsets: usize,
  rows: usize,
  columns: usize,
  states: u32,
  out: usize,
): void {
  const before = mark();
  const column = alloc(columns * 4),
    machines = zeros(columns * 2),
    line = alloc(columns * 4);
  for (let c: usize = 0; c < columns; c++)
    store<f32>(column + c * 4, scale(load<i16>(columnScales + c * 2), 2));
  for (let r: usize = 0; r < rows; r++) {
    const row = scale(load<i16>(rowScales + r * 2), 6) * (states ? <f32>0.5 : <f32>1);
    const from = codes + r * columns * 2,
      to = out + r * columns * 4;
    if (states) {
      for (let c: usize = 0; c < columns; c++) {
        const k = <i32>load<i16>(from + c * 2);
        store<i32>(line + c * 4, k);
        const point: i32 = 2 * k + ((<i32>load<u16>(machines + c * 2)) & 1);
        store<f32>(to + c * 4, <f32>point * row * load<f32>(column + c * 4));
      }
      stepRow(line, columns, machines, states);
    } else {
      for (let c: usize = 0; c < columns; c++) {
        store<f32>(to + c * 4, <f32>load<i16>(from + c * 2) * row * load<f32>(column + c * 4));
      }
    }
    if (columnOffsets) {
      for (let c: usize = 0; c < columns; c++) {
        const offset = reinterpret<f32>((<u32>load<u16>(columnOffsets + c * 2)) << 16);
        store<f32>(to + c * 4, load<f32>(to + c * 4) + offset);
      }
    }
  }
  release(before);
}

/** `int8`; `int8-tensor` is one row, whose scale is a float32. */
export function rowsOfBytes(
  codes: usize,
  scales: usize,
  half: bool,
  rows: usize,
  columns: usize,
  out: usize,
): void {
  for (let r: usize = 0; r < rows; r++) {
    const row = half ? float16(load<u16>(scales + r * 2)) : load<f32>(scales + r * 4);
    for (let i = r * columns; i < (r + 1) * columns; i++)
      store<f32>(out + i * 4, <f32>load<i8>(codes + i) * row);
  }
}

export function halves(from: usize, count: usize, out: usize): void {
  for (let i: usize = 0; i < count; i++) store<f32>(out + i * 4, float16(load<u16>(from + i * 2)));
}

export function brainFloats(from: usize, count: usize, out: usize): void {
  for (let i: usize = 0; i < count; i++)
    store<u32>(out + i * 4, (<u32>load<u16>(from + i * 2)) << 16);
}

/** Whether all of `count` float32 are finite. */
export function finite(from: usize, count: usize): bool {
  let bad = 0;
  for (let i: usize = 0; i < count; i++)
    bad |= i32((load<u32>(from + i * 4) & 0x7f800000) == 0x7f800000);
  return !bad;
}

function float16(bits: u32): f32 {
  const sign = (bits & 0x8000) << 16;
  const rest = bits & 0x7fff;
  if (rest >= 0x7c00) return reinterpret<f32>(sign | 0x7f800000 | ((rest & 0x3ff) << 13));
  // the exponent is rebased by a product, which is exact and does subnormal numbers too
  const magnitude = reinterpret<f32>(rest << 13) * reinterpret<f32>((254 - 15) << 23);
  return reinterpret<f32>(reinterpret<u32>(magnitude) | sign);
}

/**
 * The bytes of values, regrouped from planes: the first byte of every value, then the second, ...
 */
export function fromPlanes(from: usize, count: usize, size: usize, out: usize): void {
  for (let b: usize = 0; b < size; b++) {
    for (let i: usize = 0; i < count; i++)
      store<u8>(out + i * size + b, load<u8>(from + b * count + i));
  }
}

/** A matrix in column-major order -> in row-major order; values of `size` bytes, 1, 2 or 4. */
export function transpose(from: usize, rows: usize, columns: usize, size: usize, out: usize): void {
  for (let r: usize = 0; r < rows; r++) {
    for (let c: usize = 0; c < columns; c++) {
      const a = from + (c * rows + r) * size,
        b = out + (r * columns + c) * size;
      if (size == 4) store<u32>(b, load<u32>(a));
      else if (size == 2) store<u16>(b, load<u16>(a));
      else store<u8>(b, load<u8>(a));
    }
  }
}
