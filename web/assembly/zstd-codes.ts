// The entropy coders of zstd (RFC 8878, section 4): bits backwards, finite state entropy, Huffman.
import { alloc, fail } from "./memory";

// A prefix code of bytes: for each `huffmanBits` bits byte << 8 | length, u16.
let huffman: usize = 0;
let huffmanBits: u32 = 0; // 0 before there is a code
let weightsCode: usize = 0;

/** Take memory for the codes of a frame. */
export function openCodes(): void {
  huffman = alloc(2 << 11);
  weightsCode = emptyCode(7);
  huffmanBits = 0;
}

export function need(from: usize, bytes: usize, end: usize): void {
  if (from > end || end - from < bytes) fail("zstd: the stream ends early");
}

/** Bits that are left; below 0 where more were taken than there are. */
export function bitsLeft(): i64 {
  return place;
}

// Bits backwards: `place` counts those that are left, from `backStart`; those below it are 0.
let backStart: usize = 0;
let place: i64 = 0;

export function openBack(from: usize, end: usize): void {
  if (end <= from || !load<u8>(end - 1)) fail("zstd: a stream of bits without an end");
  backStart = from;
  place = <i64>(end - from) * 8 - 8 + (31 - clz<u32>(load<u8>(end - 1)));
}

function peek(n: u32): u32 {
  const low = place - <i64>n;
  const mask = ((<u64>1) << n) - 1;
  if (low >= 0) return <u32>((load<u64>(backStart + <usize>(low >> 3)) >> (low & 7)) & mask);
  if (low + <i64>n <= 0) return 0;
  return <u32>((load<u64>(backStart) << -low) & mask);
}

export function back(n: u32): u32 {
  const value = peek(n);
  place -= n;
  return value;
}

// Codes by finite state entropy: accuracy, u32, then each state as symbol u8, bits u8, and
// baseline u16.

export function emptyCode(most: u32): usize {
  const code = alloc(4 + ((<usize>4) << most));
  store<u32>(code, 0xff); // no accuracy: there is no code yet
  return code;
}

const counts = memory.data(2 * 256, 8);

/** A code of the table of counts at `from`; returns where it ends. */
export function readCode(code: usize, most: u32, largest: u32, from: usize, end: usize): usize {
  need(from, 1, end);
  const accuracy = ((<u32>load<u8>(from)) & 15) + 5;
  if (accuracy > most) fail("zstd: a code of too many states");
  const limit = <u64>(end - from) * 8;
  let at: u64 = 4;
  let left = (1 << accuracy) + 1;
  let s: u32 = 0;
  while (left > 1) {
    if (s > largest || at > limit) fail("zstd: a code that is not one");
    const n = 32 - clz<u32>(left); // bits of a value up to left
    let value = <i32>(loadBits(from, at) & ((1 << n) - 1));
    const lower = value & ((1 << (n - 1)) - 1),
      short = (1 << n) - 1 - left;
    if (lower < short) {
      value = lower;
      at += n - 1;
    } else {
      if (value >= 1 << (n - 1)) value -= short;
      at += n;
    }
    const count = value - 1;
    left -= count < 0 ? 1 : count;
    store<i16>(counts + s++ * 2, <i16>count);
    if (count == 0) {
      let more: u32;
      do {
        more = loadBits(from, at) & 3;
        at += 2;
        if (s + more > largest + 1 || at > limit) fail("zstd: a code that is not one");
        for (let i: u32 = 0; i < more; i++) store<i16>(counts + s++ * 2, 0);
      } while (more == 3);
    }
  }
  if (left != 1 || at > limit) fail("zstd: a code that is not one");
  makeStates(code, accuracy, counts, s);
  return from + <usize>((at + 7) >> 3);
}

function loadBits(from: usize, at: u64): u32 {
  return <u32>(load<u32>(from + <usize>(at >> 3)) >> (<u32>(at & 7)));
}

export function makeStates(code: usize, accuracy: u32, from: usize, symbols: u32): void {
  const size: u32 = 1 << accuracy;
  store<u32>(code, accuracy);
  const states = code + 4;
  let high = size;
  const next = memory.data(2 * 256, 8);
  for (let s: u32 = 0; s < symbols; s++) {
    const count = load<i16>(from + s * 2);
    if (count == -1) store<u8>(states + --high * 4, <u8>s);
    store<u16>(next + s * 2, <u16>abs<i32>(count));
  }
  let place: u32 = 0;
  for (let s: u32 = 0; s < symbols; s++) {
    for (let i = <i32>load<i16>(from + s * 2); i > 0; i--) {
      store<u8>(states + place * 4, <u8>s);
      do place = (place + (size >> 1) + (size >> 3) + 3) & (size - 1);
      while (place >= high);
    }
  }
  for (let i: u32 = 0; i < size; i++) {
    const s = <usize>load<u8>(states + i * 4);
    const x = <u32>load<u16>(next + s * 2);
    store<u16>(next + s * 2, <u16>(x + 1));
    const n = accuracy - (31 - clz<u32>(x));
    store<u8>(states + i * 4, <u8>n, 1);
    store<u16>(states + i * 4, <u16>((x << n) - size), 2);
  }
}

export function begun(code: usize): u32 {
  return back(load<u32>(code));
}

export function moved(code: usize, state: u32): u32 {
  const at = code + 4 + state * 4;
  return load<u16>(at, 2) + back(load<u8>(at, 1));
}

export function said(code: usize, state: u32): u32 {
  return load<u8>(code + 4 + state * 4);
}

// Literals

export function readLiterals(
  from: usize,
  end: usize,
  fresh: bool,
  streams: i32,
  buffer: usize,
  count: usize,
): void {
  if (fresh) from = readHuffman(from, end);
  else if (!huffmanBits) fail("zstd: a block that goes on with no code");
  if (streams == 1) {
    literalStream(from, end, buffer, buffer + count);
    return;
  }
  need(from, 6, end);
  const part = (count + 3) >> 2;
  if (part * 3 > count) fail("zstd: too few literals for four streams");
  let at = from + 6;
  for (let i: usize = 0; i < 4; i++) {
    let stop = end;
    if (i < 3) {
      need(at, load<u16>(from + i * 2), end);
      stop = at + load<u16>(from + i * 2);
    }
    literalStream(at, stop, buffer + i * part, i < 3 ? buffer + (i + 1) * part : buffer + count);
    at = stop;
  }
}

function literalStream(from: usize, end: usize, to: usize, stop: usize): void {
  openBack(from, end);
  for (; to < stop; to++) {
    const entry = <u32>load<u16>(huffman + <usize>peek(huffmanBits) * 2);
    place -= entry & 255;
    store<u8>(to, <u8>(entry >> 8));
  }
  if (place != 0) fail("zstd: literals that do not end where they must");
}

function readHuffman(from: usize, end: usize): usize {
  need(from, 1, end);
  const head = <usize>load<u8>(from++);
  const weights = memory.data(256, 8);
  let count: usize = 0;
  if (head > 127) {
    count = head - 127;
    need(from, (count + 1) >> 1, end);
    for (let i: usize = 0; i < count; i++) {
      const pair = load<u8>(from + (i >> 1));
      store<u8>(weights + i, i & 1 ? pair & 15 : pair >> 4);
    }
    from += (count + 1) >> 1;
  } else {
    need(from, head, end);
    const stop = from + head;
    openBack(readCode(weightsCode, 6, 255, from, stop), stop);
    let a = begun(weightsCode),
      b = begun(weightsCode);
    if (place < 0) fail("zstd: weights that end early");
    while (true) {
      if (count > 253) fail("zstd: too many weights");
      store<u8>(weights + count++, <u8>said(weightsCode, a));
      a = moved(weightsCode, a);
      const swap = a;
      a = b;
      b = swap;
      if (place < 0) {
        store<u8>(weights + count++, <u8>said(weightsCode, a));
        break;
      }
    }
    from = stop;
  }
  let sum: u32 = 0;
  for (let i: usize = 0; i < count; i++) {
    const w = load<u8>(weights + i);
    if (w > 11) fail("zstd: a weight that is too large");
    sum += w ? 1 << (w - 1) : 0;
  }
  if (!sum) fail("zstd: no weight");
  huffmanBits = 32 - clz<u32>(sum);
  const left = (1 << huffmanBits) - sum;
  if (huffmanBits > 11 || left & (left - 1)) fail("zstd: weights that are no code");
  store<u8>(weights + count++, <u8>(32 - clz<u32>(left)));
  let at: usize = 0;
  for (let w: u32 = 1; w <= huffmanBits; w++) {
    for (let i: usize = 0; i < count; i++) {
      if (load<u8>(weights + i) != w) continue;
      for (let k = 1 << (w - 1); k > 0; k--)
        store<u16>(huffman + at++ * 2, <u16>((i << 8) | (huffmanBits + 1 - w)));
    }
  }
  return from;
}
