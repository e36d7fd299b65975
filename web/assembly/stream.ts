// Range-coded words -> numbers, lists of integers, and values by tables.
//
// docs/format.md, "Range coder" to "Values", whose names these are; docs/decoder.py is the same in
// numpy. Lists and tables lie in memory as comments say, all little endian.
import { alloc, fail, mark, release, zeros } from "./memory";

const BITS: u64 = 24;
const ROOTS = memory.data<i64>([
  32768, 34218, 35733, 37315, 38967, 40693, 42494, 44376, 46340, 48392, 50535, 52772, 55108, 57548,
  60096, 62757,
]);

// The stream: words not read yet, the interval's length, and the point less the interval's lower
// end.
let words: usize = 0;
let wordsEnd: usize = 0;
let range: u64 = 0;
let point: u64 = 0;

/** The next word, or 0 for the only one that an encoder may leave out. */
function nextWord(): u64 {
  if (words > wordsEnd) fail("codes: the stream ends before its last code");
  words += 4;
  return words <= wordsEnd ? load<u32>(words - 4) : 0;
}

export function begin(payload: usize, bytes: usize, kind: u8): void {
  if (bytes < 5) fail("codes: less than the five bytes of a payload's head");
  if (load<u8>(payload) != kind)
    fail("codes: a payload of another kind than its section calls for");
  if (<u64>bytes != 5 + 4 * <u64>load<u32>(payload, 1)) fail("codes: not as many words as it says");
  words = payload + 5;
  wordsEnd = payload + bytes;
  range = ~(<u64>0);
  point = nextWord() << 32;
  point |= nextWord();
}

export function finish(): void {
  if (words < wordsEnd || point >= 0x1ffffffff)
    fail("codes: the stream goes on after its last code");
}

/** A symbol under 2^n equal frequencies. */
function evenBits(n: u64): i32 {
  const scale = range >> BITS;
  const symbol = (point / scale) >> (BITS - n);
  if (symbol >> n) fail("codes: the stream is damaged");
  point -= scale * (symbol << (BITS - n));
  range = scale << (BITS - n);
  if (range < 0x100000000) {
    range <<= 32;
    point = (point << 32) | nextWord();
  }
  return <i32>symbol;
}

// A table: i32 lowest value, i32 size; where each frequency begins, u32[size + 2], at STARTS; and
// at FAST for each upper 10 bits of a quantile the first place that it can be, u16[1024].
const STARTS: usize = 8;
const LARGEST_SIZE = 511;
const FAST: usize = STARTS + 4 * (LARGEST_SIZE + 3);
/** Bytes of a table. */
export const TABLE: usize = FAST + 2048;
const FAST_SHIFT: u64 = BITS - 10;

/** Fill the table at `at` by size + 1 logarithms, i64, which are overwritten. */
function setTable(at: usize, low: i32, size: i32, logs: usize): void {
  const count = size + 1;
  let sum: i64 = 0,
    largest: i64 = 0,
    first = 0;
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
    const f = (load<i64>(logs + i * 8) * ((1 << BITS) - count)) / sum + 1;
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
    for (; fast < 1024 && fast << (<u32>FAST_SHIFT) < start; fast++)
      store<u16>(at + FAST + fast * 2, <u16>i);
  }
  store<u32>(at + STARTS + count * 4, start);
}

/**
 * Places of a table -> the i32 at out[order[i]] for first <= i < stop; returns how many escaped.
 */
function decodeRun(table: usize, order: usize, first: usize, stop: usize, out: usize): i32 {
  let r = range,
    p = point,
    w = words;
  const end = wordsEnd,
    starts = table + STARTS,
    fast = table + FAST;
  const low = load<i32>(table),
    size = <usize>load<i32>(table, 4);
  let escapes = 0;
  for (let i = first; i < stop; i++) {
    const scale = r >> BITS;
    const quantile = p / scale;
    if (quantile >> BITS) fail("codes: the stream is damaged");
    let k = <usize>load<u16>(fast + ((<usize>(quantile >> FAST_SHIFT)) << 1));
    while (load<u32>(starts + (k << 2), 4) <= <u32>quantile) k++;
    const from = load<u32>(starts + (k << 2));
    p -= scale * from;
    r = scale * (load<u32>(starts + (k << 2), 4) - from);
    if (r < 0x100000000) {
      r <<= 32;
      p <<= 32;
      if (w < end) p |= load<u32>(w);
      else if (w > end) fail("codes: the stream ends before its last code");
      w += 4;
    }
    escapes += i32(k == size);
    store<i32>(
      out + ((<usize>load<u32>(order + (i << 2))) << 2),
      k == size ? i32.MIN_VALUE : low + <i32>k,
    );
  }
  range = r;
  point = p;
  words = w;
  return escapes;
}

/** Values by tables: for each of `count` u16 indexes its value, i32, at `out`. */
export function valuesByTables(
  tables: usize,
  tableCount: usize,
  indexes: usize,
  count: usize,
  out: usize,
): void {
  const before = mark();
  const places = zeros((tableCount + 1) * 4);
  const order = alloc(count * 4);
  for (let i: usize = 0; i < count; i++) {
    const at = places + ((<usize>load<u16>(indexes + (i << 1))) << 2);
    store<u32>(at, load<u32>(at, 4) + 1, 4);
  }
  for (let t: usize = 1; t <= tableCount; t++) {
    const at = places + t * 4;
    store<u32>(at, load<u32>(at) + load<u32>(at - 4));
  }
  for (let i: usize = 0; i < count; i++) {
    const at = places + ((<usize>load<u16>(indexes + (i << 1))) << 2);
    const place = load<u32>(at);
    store<u32>(at, place + 1);
    store<u32>(order + ((<usize>place) << 2), <u32>i);
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
      const low = load<i32>(table),
        above = low + load<i32>(table, 4);
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
  const table = alloc(TABLE),
    logs = alloc(24 * 8);
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

export function number(): i32 {
  const before = mark();
  const at = alloc(4);
  folded(1, at);
  const u = load<i32>(at);
  release(before);
  return u & 1 ? -((u + 1) / 2) : u / 2;
}

/** A list of integers, i32, at `out`. */
export function integers(count: usize, out: usize): void {
  const before = mark();
  const centre = number(),
    shape = evenBits(7);
  const slope = (<i64>(4 + ((shape >> 1) & 3))) << (shape >> 3);
  const table = alloc(TABLE),
    logs = alloc(256 * 8);
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
export function readTables(count: usize, lanes: usize, out: usize): void {
  const before = mark();
  const list = alloc(count * 4);
  // low, size, escape, peak, centre, curvature, each i64[count]
  const fields = alloc(6 * count * 8);
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
    const low = load<i64>(at),
      size = load<i64>(at + count * 8);
    if (size < 1 || low < -255 || low + size > 256) fail("codes: a table that is too long");
    const centre = load<i64>(at + 4 * count * 8),
      curvature = load<i64>(at + 5 * count * 8);
    if (abs(centre) > 4080 || curvature < 0 || curvature > 320)
      fail("codes: a table out of its limits");
    total += <usize>size;
  }
  let r = alloc(total * 4);
  integers(total, r);
  const logs = alloc((LARGEST_SIZE + 1) * 8);
  for (let i: usize = 0; i < count; i++) {
    const at = fields + i * 8;
    const low = load<i64>(at),
      size = load<i64>(at + count * 8),
      escape = load<i64>(at + 2 * count * 8);
    const peak = load<i64>(at + 3 * count * 8),
      centre = load<i64>(at + 4 * count * 8);
    const curvature = load<i64>(at + 5 * count * 8);
    const a = load<i64>(ROOTS + <usize>(curvature & 15) * 8) << (curvature >> 4);
    const m = min<i64>(max<i64>(((centre + 8) >> 4) - low, 0), size - 1);
    const pivot = <i64>load<i32>(r + <usize>m * 4);
    for (let p: i64 = 0; p < size; p++) {
      const d = 16 * (low + p) - centre;
      store<i64>(logs + <usize>p * 8, peak - ((d * d * a) >> 34) + pivot);
    }
    // the bends B: sums of sums of residuals, outwards from m
    let slope: i64 = 0,
      bend: i64 = 0;
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
