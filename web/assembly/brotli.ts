// A brotli stream (RFC 7932) -> its bytes, exactly as many as were declared.
//
// Names follow the RFC. The dictionary of words is not in this module: the host puts it into
// memory.
import { alloc, fail, mark, release } from "./memory";
import { contextMap, count256, readCode } from "./brotli-codes";
import { word } from "./brotli-words";
import { bits, bytesLeft, openBits, repeat, skipTo, symbol, wholeByte } from "./prefix";

/** Of the codes 0 to 15: which of the last distances they take, and what they add to it. */
const BEHIND = memory.data<u8>([0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
const CHANGE = memory.data<i8>([0, 0, 0, 0, -1, 1, -2, 2, -3, 3, -1, 1, -2, 2, -3, 3]);
const COUNT_BITS = memory.data<u8>([
  2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 7, 8, 9, 10, 11, 12, 13, 24,
]);
const INSERT_BITS = memory.data<u8>([
  0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 12, 14, 24,
]);
const COPY_BITS = memory.data<u8>([
  0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 24,
]);
/** Of each 64 insert-and-copy symbols: where the insert and the copy codes begin, over 8. */
const CELLS = memory.data<u8>([0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 1, 1, 0, 2, 2, 0, 1, 2, 2, 1, 2, 2]);
/** The last byte's part of a context in mode 2, text; the rest is `kindOf` (section 7.1). */
const TEXT_1 = memory.data<u8>([
  0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8,
  12, 16, 12, 12, 20, 12, 16, 24, 28, 12, 12, 32, 12, 36, 12, 44, 44, 44, 44, 44, 44, 44, 44, 44,
  44, 32, 32, 24, 40, 28, 12, 12, 48, 52, 52, 52, 48, 52, 52, 52, 48, 52, 52, 52, 52, 52, 48, 52,
  52, 52, 52, 52, 48, 52, 52, 52, 52, 52, 24, 12, 28, 12, 12, 12, 56, 60, 60, 60, 56, 60, 60, 60,
  56, 60, 60, 60, 60, 60, 56, 60, 60, 60, 60, 60, 56, 60, 60, 60, 60, 60, 24, 12, 28, 12, 0,
]);

let out: usize = 0;
let outStart: usize = 0;
let outEnd: usize = 0;
let dictionary: usize = 0;
let windowBytes: usize = 0;

// The last four distances; `newest` is the place of the latest.
const ring = memory.data(16, 4);
let newest: u32 = 0;

// Of literals, commands and distances: how many block types there are, the codes of types and of
// counts, the type now and the one before, and how much of its block is left.
const TYPES: usize = 0,
  TYPE_CODE: usize = 4,
  COUNT_CODE: usize = 8,
  NOW: usize = 12,
  BEFORE: usize = 16,
  LEFT: usize = 20;
const CATEGORY: usize = 24;
const categories = memory.data(72, 4);

export function unbrotli(from: usize, bytes: usize, to: usize, size: usize, words: usize): void {
  const before = mark();
  openBits(from, bytes);
  out = outStart = to;
  outEnd = to + size;
  dictionary = words;
  let wbits: u32 = 16;
  if (bits(1)) {
    let n = bits(3);
    if (n) wbits = 17 + n;
    else {
      n = bits(3);
      if (n == 1) fail("brotli: a window of the large kind");
      wbits = n ? 8 + n : 17;
    }
  }
  windowBytes = ((<usize>1) << wbits) - 16;
  store<u32>(ring, 16);
  store<u32>(ring, 15, 4);
  store<u32>(ring, 11, 8);
  store<u32>(ring, 4, 12);
  newest = 3;
  let last: u32;
  do {
    last = bits(1);
    if (last && bits(1)) break;
    const nibbles = bits(2);
    if (nibbles == 3) {
      if (bits(1)) fail("brotli: a reserved bit is set");
      skip();
      continue;
    }
    let length = bits(16);
    if (nibbles) {
      const high = bits(4 * nibbles);
      if (!(high >> (4 * (nibbles - 1)))) fail("brotli: a length with zeros in front");
      length |= high << 16;
    }
    const end = out + <usize>length + 1;
    if (<usize>length >= outEnd - out) fail("brotli: more than the declared size");
    if (!last && bits(1)) stored(end);
    else {
      const here = mark();
      metablock(end);
      release(here);
    }
  } while (!last);
  if (out != outEnd) fail("brotli: less than the declared size");
  wholeByte(true);
  if (bytesLeft()) fail("brotli: bytes follow its end");
  release(before);
}

/** A meta-block of no output, with bytes to skip. */
function skip(): void {
  const n = bits(2);
  let count: usize = 0;
  if (n) {
    count = <usize>bits(8 * n);
    if (n > 1 && !(count >> (8 * (n - 1)))) fail("brotli: a length with zeros in front");
    count++;
  }
  const at = wholeByte(true);
  if (bytesLeft() < count) fail("brotli: the stream ends early");
  skipTo(at + count);
}

function stored(end: usize): void {
  const at = wholeByte(true),
    count = end - out;
  if (bytesLeft() < count) fail("brotli: the stream ends early");
  memory.copy(out, at, count);
  out = end;
  skipTo(at + count);
}

// Blocks

function readCount(code: usize): u32 {
  const s = symbol(code);
  let base: u32 = 1;
  for (let i: u32 = 0; i < s; i++) base += 1 << load<u8>(COUNT_BITS + i);
  return base + bits(load<u8>(COUNT_BITS + s));
}

/** The type of the next element's block in a category. */
function blockType(category: usize): u32 {
  if (!load<u32>(category, LEFT)) {
    const types = load<u32>(category, TYPES),
      now = load<u32>(category, NOW);
    const s = symbol(load<u32>(category, TYPE_CODE));
    let next: u32 = s == 0 ? load<u32>(category, BEFORE) : s == 1 ? now + 1 : s - 2;
    if (next >= types) next -= types;
    store<u32>(category, now, BEFORE);
    store<u32>(category, next, NOW);
    store<u32>(category, readCount(load<u32>(category, COUNT_CODE)), LEFT);
  }
  store<u32>(category, load<u32>(category, LEFT) - 1, LEFT);
  return load<u32>(category, NOW);
}

function openCategory(category: usize): u32 {
  const types = count256();
  store<u32>(category, types, TYPES);
  store<u32>(category, 0, NOW);
  store<u32>(category, 1, BEFORE);
  store<u32>(category, 1 << 24, LEFT);
  if (types > 1) {
    store<u32>(category, <u32>readCode(types + 2), TYPE_CODE);
    store<u32>(category, <u32>readCode(26), COUNT_CODE);
    store<u32>(category, readCount(load<u32>(category, COUNT_CODE)), LEFT);
  }
  return types;
}

/** As many codes as there are trees: where each lies. */
function readTrees(count: u32, alphabet: u32): usize {
  const trees = alloc(count * 4);
  for (let i: u32 = 0; i < count; i++) store<u32>(trees + i * 4, <u32>readCode(alphabet));
  return trees;
}

function metablock(end: usize): void {
  const ofLiterals = categories,
    ofCommands = categories + CATEGORY,
    ofDistances = categories + 2 * CATEGORY;
  const literalTypes = openCategory(ofLiterals),
    commandTypes = openCategory(ofCommands);
  const distanceTypes = openCategory(ofDistances);
  const postfix = bits(2),
    direct = bits(4) << postfix;
  const modes = alloc(literalTypes);
  for (let i: u32 = 0; i < literalTypes; i++) store<u8>(modes + i, <u8>bits(2));
  const literalTrees = count256(),
    literalMap = contextMap(64 * literalTypes, literalTrees);
  const distanceTrees = count256(),
    distanceMap = contextMap(4 * distanceTypes, distanceTrees);
  const literals = readTrees(literalTrees, 256),
    commands = readTrees(commandTypes, 704);
  const distances = readTrees(distanceTrees, 16 + direct + (48 << postfix));
  while (out < end) {
    const s = symbol(load<u32>(commands + blockType(ofCommands) * 4));
    const cell = CELLS + <usize>(s >> 6) * 2;
    const insertCode = <u32>load<u8>(cell) * 8 + ((s >> 3) & 7),
      copyCode = <u32>load<u8>(cell, 1) * 8 + (s & 7);
    const insert = length(INSERT_BITS, insertCode, 0),
      copy = length(COPY_BITS, copyCode, 2);
    if (<usize>insert > end - out) fail("brotli: literals beyond their meta-block");
    for (let i: u32 = 0; i < insert; i++) {
      const type = blockType(ofLiterals);
      const tree = load<u8>(literalMap + type * 64 + context(load<u8>(modes + type)));
      store<u8>(out++, <u8>symbol(load<u32>(literals + <usize>tree * 4)));
    }
    if (out == end) break;
    let code: u32 = 0;
    if (s > 127) {
      const type = blockType(ofDistances);
      const tree = load<u8>(distanceMap + type * 4 + min<u32>(copy, 5) - 2);
      code = symbol(load<u32>(distances + <usize>tree * 4));
    }
    const distance = readDistance(code, postfix, direct);
    const most = min<usize>(out - outStart, windowBytes);
    if (distance <= most) {
      if (<usize>copy > end - out) fail("brotli: a copy beyond its meta-block");
      repeat(out, distance, copy);
      out += copy;
      if (code) store<u32>(ring + (++newest & 3) * 4, <u32>distance);
    } else out = word(dictionary, copy, distance - most - 1, out, end);
  }
}

function length(table: usize, code: u32, first: u32): u32 {
  let base = first;
  for (let i: u32 = 0; i < code; i++) base += 1 << load<u8>(table + i);
  return base + bits(load<u8>(table + code));
}

function context(mode: u32): u32 {
  const p1: u32 = out > outStart ? load<u8>(out - 1) : 0,
    p2: u32 = out > outStart + 1 ? load<u8>(out - 2) : 0;
  if (mode == 0) return p1 & 63;
  if (mode == 1) return p1 >> 2;
  if (mode == 3) return (magnitude(p1) << 3) | magnitude(p2);
  const first = p1 < 128 ? load<u8>(TEXT_1 + p1) : p1 < 192 ? p1 & 1 : 2 | (p1 & 1);
  return first | kindOf(p2);
}

/** Of a byte with a sign: 0, 1 to 3 for positive ones that grow, 4 to 7 up to -1. */
function magnitude(p: u32): u32 {
  if (p < 64) return p == 0 ? 0 : p < 16 ? 1 : 2;
  return p < 128 ? 3 : p < 192 ? 4 : p < 240 ? 5 : p < 255 ? 6 : 7;
}

/** 3 for lower case, 2 for upper case, digits and what begins a character, 1 for signs. */
function kindOf(p: u32): u32 {
  if (p > 127) return p < 224 ? 0 : 2;
  if (p < 33 || p == 127) return 0;
  if (p >= 97 && p <= 122) return 3;
  return (p >= 48 && p <= 57) || (p >= 65 && p <= 90) ? 2 : 1;
}

function readDistance(code: u32, postfix: u32, direct: u32): usize {
  if (code < 16) {
    const place = (newest - load<u8>(BEHIND + code)) & 3;
    const distance = <i32>load<u32>(ring + place * 4) + load<i8>(CHANGE + code);
    if (distance < 1) fail("brotli: a distance of no meaning");
    return <usize>distance;
  }
  code -= 16;
  if (code < direct) return <usize>code + 1;
  code -= direct;
  const high = code >> postfix,
    n = 1 + (high >> 1);
  const offset = ((2 + (high & 1)) << n) - 4;
  return <usize>(((offset + bits(n)) << postfix) + (code & ((1 << postfix) - 1)) + direct + 1);
}
