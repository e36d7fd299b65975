// A bare LZMA2 stream -> its bytes, exactly as many as were declared.
//
// LZMA is a range coder of bits under adaptive probabilities, here u16 in units of 2^-11; LZMA2
// cuts it into chunks. The output is the dictionary.
import { alloc, fail, mark, release } from "./memory";

let from: usize = 0;
let fromEnd: usize = 0;
let range: u32 = 0;
let code: u32 = 0;

// Places in the array of probabilities.
const IS_MATCH = 0,
  IS_REP = IS_MATCH + 192,
  IS_REP0 = IS_REP + 12,
  IS_REP1 = IS_REP0 + 12;
const IS_REP2 = IS_REP1 + 12,
  IS_LONG = IS_REP2 + 12,
  SLOTS = IS_LONG + 192,
  SPECIAL = SLOTS + 256;
const ALIGN = SPECIAL + 128,
  MATCH_LENGTH = ALIGN + 16,
  REP_LENGTH = MATCH_LENGTH + 514;
const LITERALS = REP_LENGTH + 514,
  ALL = LITERALS + (0x300 << 4);
let probabilities: usize = 0;

// The state that goes on from chunk to chunk.
let state: u32 = 0;
let rep0: u32 = 0,
  rep1: u32 = 0,
  rep2: u32 = 0,
  rep3: u32 = 0;
let lc: u32 = 0,
  literalMask: u32 = 0,
  positionMask: u32 = 0;

export function lzma2(start: usize, bytes: usize, to: usize, size: usize, dictionary: usize): void {
  const before = mark();
  probabilities = alloc(ALL * 2);
  from = start;
  const end = start + bytes;
  const stop = to + size;
  let out = to,
    base = to; // base: where the dictionary begins
  let needsDictionary = true,
    needsSettings = true;
  while (true) {
    if (from >= end) fail("lzma: the stream ends early");
    const control = load<u8>(from++);
    if (control == 0) break;
    if (control >= 0xe0 || control == 1) {
      needsDictionary = false;
      base = out;
      if (control == 1) needsSettings = true;
    } else if (needsDictionary) fail("lzma: a chunk before the dictionary is reset");
    if (control > 2 && control < 0x80) fail("lzma: a chunk of no kind");
    const head: usize = control < 0x80 ? 2 : control >= 0xc0 ? 5 : 4;
    if (end - from < head) fail("lzma: the stream ends early");
    let count = ((<usize>load<u8>(from)) << 8) | load<u8>(from, 1);
    if (control >= 0x80) count |= (<usize>(control & 31)) << 16;
    count++;
    if (count > stop - out) fail("lzma: more than the declared size");
    if (control < 0x80) {
      from += 2;
      if (end - from < count) fail("lzma: the stream ends early");
      memory.copy(out, from, count);
      from += count;
    } else {
      const packed = (((<usize>load<u8>(from, 2)) << 8) | load<u8>(from, 3)) + 1;
      if (control >= 0xc0) {
        settings(load<u8>(from, 4));
        needsSettings = false;
      } else if (needsSettings) fail("lzma: a chunk before its settings");
      else if (control >= 0xa0) reset();
      from += head;
      if (packed < 5 || end - from < packed) fail("lzma: the stream ends early");
      fromEnd = from + packed;
      chunk(out, out + count, base, dictionary);
      if (from != fromEnd || code) fail("lzma: a chunk that does not end where it must");
    }
    out += count;
  }
  if (out != stop) fail("lzma: less than the declared size");
  if (from != end) fail("lzma: bytes follow its end");
  release(before);
}

function settings(value: u32): void {
  if (value >= 225) fail("lzma: settings that are none");
  lc = value % 9;
  const lp = (value / 9) % 5;
  if (lc + lp > 4) fail("lzma: settings that are none");
  literalMask = (1 << lp) - 1;
  positionMask = (1 << (value / 45)) - 1;
  reset();
}

function reset(): void {
  state = 0;
  rep0 = rep1 = rep2 = rep3 = 0;
  for (let i: usize = 0; i < <usize>ALL; i++) store<u16>(probabilities + i * 2, 1024);
}

function normalize(): void {
  if (range >= 0x1000000) return;
  if (from >= fromEnd) fail("lzma: a chunk ends early");
  range <<= 8;
  code = (code << 8) | load<u8>(from++);
}

function bit(place: u32): u32 {
  const at = probabilities + place * 2;
  const p = <u32>load<u16>(at);
  normalize();
  const bound = (range >> 11) * p;
  if (code < bound) {
    range = bound;
    store<u16>(at, <u16>(p + ((2048 - p) >> 5)));
    return 0;
  }
  range -= bound;
  code -= bound;
  store<u16>(at, <u16>(p - (p >> 5)));
  return 1;
}

function tree(place: u32, n: u32): u32 {
  let m: u32 = 1;
  for (let i: u32 = 0; i < n; i++) m = (m << 1) | bit(place + m);
  return m - (1 << n);
}

function reverseTree(place: u32, n: u32): u32 {
  let m: u32 = 1,
    value: u32 = 0;
  for (let i: u32 = 0; i < n; i++) {
    const b = bit(place + m);
    m = (m << 1) | b;
    value |= b << i;
  }
  return value;
}

function length(place: u32, position: u32): u32 {
  if (!bit(place)) return 2 + tree(place + 2 + (position << 3), 3);
  if (!bit(place + 1)) return 10 + tree(place + 130 + (position << 3), 3);
  return 18 + tree(place + 258, 8);
}

function distance(bytes: u32): u32 {
  const slot = tree(SLOTS + (min<u32>(bytes - 2, 3) << 6), 6);
  if (slot < 4) return slot;
  const n = (slot >> 1) - 1;
  const high = (2 | (slot & 1)) << n;
  if (slot < 14) return high + reverseTree(SPECIAL + high - slot, n);
  let value: u32 = 0;
  for (let i: u32 = 4; i < n; i++) {
    normalize();
    range >>= 1;
    const b = u32(code >= range);
    code -= b ? range : 0;
    value = (value << 1) | b;
  }
  return high + (value << 4) + reverseTree(ALIGN, 4);
}

function literal(previous: u32, matched: u32, position: usize): u8 {
  const place =
    LITERALS + 0x300 * ((((<u32>position) & literalMask) << lc) + (previous >> (8 - lc)));
  let m: u32 = 1;
  if (state >= 7) {
    // while the bits agree with those of the byte that a match would have brought
    while (m < 0x100) {
      const expected = (matched >> 7) & 1;
      matched <<= 1;
      const b = bit(place + ((1 + expected) << 8) + m);
      m = (m << 1) | b;
      if (b != expected) break;
    }
  }
  while (m < 0x100) m = (m << 1) | bit(place + m);
  return <u8>m;
}

function chunk(out: usize, stop: usize, base: usize, dictionary: usize): void {
  if (load<u8>(from)) fail("lzma: a chunk that does not begin as one");
  range = 0xffffffff;
  code = bswap<u32>(load<u32>(from, 1));
  from += 5;
  while (out < stop) {
    const position = (<u32>(out - base)) & positionMask;
    if (!bit(IS_MATCH + (state << 4) + position)) {
      const known = out > base;
      const matched: u32 = state >= 7 ? load<u8>(out - rep0 - 1) : 0;
      store<u8>(out, literal(known ? load<u8>(out - 1) : 0, matched, out - base));
      state = state < 4 ? 0 : state < 10 ? state - 3 : state - 6;
      out++;
      continue;
    }
    let bytes: u32;
    if (!bit(IS_REP + state)) {
      rep3 = rep2;
      rep2 = rep1;
      rep1 = rep0;
      bytes = length(MATCH_LENGTH, position);
      rep0 = distance(bytes);
      state = state < 7 ? 7 : 10;
    } else {
      bytes = 0;
      if (!bit(IS_REP0 + state)) {
        if (!bit(IS_LONG + (state << 4) + position)) bytes = 1;
      } else {
        let found = rep1;
        if (bit(IS_REP1 + state)) {
          found = rep2;
          if (bit(IS_REP2 + state)) {
            found = rep3;
            rep3 = rep2;
          }
          rep2 = rep1;
        }
        rep1 = rep0;
        rep0 = found;
      }
      if (bytes) state = state < 7 ? 9 : 11;
      else {
        bytes = length(REP_LENGTH, position);
        state = state < 7 ? 8 : 11;
      }
    }
    if (<usize>rep0 >= min<usize>(out - base, dictionary))
      fail("lzma: a distance beyond the start");
    if (<usize>bytes > stop - out) fail("lzma: a match beyond its chunk");
    for (const to = out + bytes; out < to; out++) store<u8>(out, load<u8>(out - rep0 - 1));
  }
  normalize();
}
