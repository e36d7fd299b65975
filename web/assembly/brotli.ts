// A brotli stream (RFC 7932) -> its bytes, exactly as many as were declared.
//
// Names follow the RFC. The dictionary of words is not in this module: the host puts it into memory.
import { alloc, fail, mark, release } from "./memory";
import { bits, bytesLeft, codeBytes, makeCode, makeSingle, openBits, repeat, skipTo, symbol, wholeByte } from "./prefix";

/** Appendix B: prefix | a letter for what is done to the word, and suffix |, and so on. */
// prettier-ignore
const TRANSFORMS = "|a||a | |a ||m||k ||a the | |a|s |a ||a of ||k||a and ||n||b|, |a ||a, | |k ||a in ||a to |e |a ||a\"||a.||a\">||a\n||d||a]||a for ||o||c||a a ||a that | |k||a. |.|a| |a, ||p||a with ||a'||a from ||a by ||q||r| the |a||e||a. The ||l||a on ||a as ||a is ||h||bing ||a\n\t||a:| |a. ||aed ||u||s||g||a(||k, ||i||a at ||aly | the |a of ||f||j| |k, ||k\"|.|a(||l ||k\">||a=\"| |a.|.com/|a| the |a of the ||k'||a. This ||a,|.|a ||k(||k.||a not | |a=\"||aer | |l ||aal | |l||a='||l\"||k. | |a(||aful | |k. ||aive ||aless ||l'||aest | |k.||l\">| |a='||k,||aize ||l.|\u00c2\u00a0|a| |a,||k=\"||l=\"||aous ||l, ||k='| |k,| |l=\"| |l, ||l,||l(||l. | |l.||l='| |l. | |k=\"| |l='| |k='|";
// Letters: a as it is; b to j without the last 1 to 9 bytes; k, l the first or all letters in upper
// case; m to u without the first 1 to 9 bytes.
const DICTIONARY_BITS = memory.data<u8>([0, 0, 0, 0, 10, 10, 11, 11, 10, 10, 10, 10, 10, 9, 9, 8, 7, 7, 8, 7, 7, 6, 6, 5, 5]);
/** Of the codes 0 to 15: which of the last distances they take, and what they add to it. */
const BEHIND = memory.data<u8>([0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
const CHANGE = memory.data<i8>([0, 0, 0, 0, -1, 1, -2, 2, -3, 3, -1, 1, -2, 2, -3, 3]);
const LENGTH_ORDER = memory.data<u8>([1, 2, 3, 4, 0, 5, 17, 6, 16, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
const COUNT_BITS = memory.data<u8>([
  2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 7, 8, 9, 10, 11, 12, 13, 24,
]);
const INSERT_BITS = memory.data<u8>([0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 12, 14, 24]);
const COPY_BITS = memory.data<u8>([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 24]);
/** Of each 64 insert-and-copy symbols: where the insert and the copy codes begin, over 8. */
const CELLS = memory.data<u8>([0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 1, 1, 0, 2, 2, 0, 1, 2, 2, 1, 2, 2]);
/** The part that the last byte but one has in a context of text, and the last (section 7.1). */
const TEXT_1 = memory.data<u8>([
  0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 0, 0, 4, 0, 0,
  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
  8, 12, 16, 12, 12, 20, 12, 16, 24, 28, 12, 12, 32, 12, 36, 12,
  44, 44, 44, 44, 44, 44, 44, 44, 44, 44, 32, 32, 24, 40, 28, 12,
  12, 48, 52, 52, 52, 48, 52, 52, 52, 48, 52, 52, 52, 52, 52, 48,
  52, 52, 52, 52, 52, 48, 52, 52, 52, 52, 52, 24, 12, 28, 12, 12,
  12, 56, 60, 60, 60, 56, 60, 60, 60, 56, 60, 60, 60, 60, 60, 56,
  60, 60, 60, 60, 60, 56, 60, 60, 60, 60, 60, 24, 12, 28, 12, 0,
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
const TYPES: usize = 0, TYPE_CODE: usize = 4, COUNT_CODE: usize = 8, NOW: usize = 12, BEFORE: usize = 16, LEFT: usize = 20;
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
  windowBytes = (<usize>1 << wbits) - 16;
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
      if (last || bits(1)) fail("brotli: a reserved bit is set");
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
  const at = wholeByte(true), count = end - out;
  if (bytesLeft() < count) fail("brotli: the stream ends early");
  memory.copy(out, at, count);
  out = end;
  skipTo(at + count);
}

// Prefix codes

function readCode(alphabet: u32): usize {
  const code = alloc(codeBytes(alphabet));
  const before = mark();
  const lengths = alloc(alphabet);
  memory.fill(lengths, 0, alphabet);
  const kind = bits(2);
  if (kind == 1) simpleCode(code, lengths, alphabet);
  else complexCode(code, lengths, alphabet, kind);
  release(before);
  return code;
}

function simpleCode(code: usize, lengths: usize, alphabet: u32): void {
  const count = bits(2) + 1, width = 32 - clz<u32>(alphabet - 1);
  let first: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const s = bits(width);
    if (s >= alphabet || load<u8>(lengths + s)) fail("brotli: a code of symbols that are none");
    if (!i) first = s;
    store<u8>(lengths + s, <u8>(count == 2 ? 1 : count == 3 ? (i ? 2 : 1) : count == 4 ? 2 : i + 1));
    if (count == 4 && i == 3 && bits(1)) {
      // of four symbols the first has one bit, the second two, and the others three
      const order = fourth;
      store<u8>(lengths + load<u32>(order), 1);
      store<u8>(lengths + load<u32>(order, 4), 2);
      store<u8>(lengths + load<u32>(order, 8), 3);
      store<u8>(lengths + s, 3);
    }
    store<u32>(fourth + i * 4, s);
  }
  if (count == 1) makeSingle(code, first);
  else makeCode(code, lengths, alphabet);
}

const fourth = memory.data(16, 4);

function complexCode(code: usize, lengths: usize, alphabet: u32, skipped: u32): void {
  const ofLengths = alloc(codeBytes(18)), short = alloc(18);
  memory.fill(short, 0, 18);
  let space = 32, used = 0;
  let single: u32 = 0;
  for (let i = skipped; i < 18 && space > 0; i++) {
    let n = bits(2);
    // the lengths 0, 4, 3, and after two more bits 2, 1, 5
    n = n == 0 ? 0 : n == 1 ? 4 : n == 2 ? 3 : !bits(1) ? 2 : !bits(1) ? 1 : 5;
    if (!n) continue;
    const s = <u32>load<u8>(LENGTH_ORDER + i);
    store<u8>(short + s, <u8>n);
    space -= 32 >> n;
    used++;
    single = s;
  }
  if (used == 1) makeSingle(ofLengths, single);
  else if (space || makeCode(ofLengths, short, 18)) fail("brotli: a code that is not one");
  let left = 1 << 15, previous: u32 = 8, repeated: u32 = 0, ofWhat: u32 = 0;
  let i: u32 = 0;
  while (i < alphabet && left > 0) {
    const s = symbol(ofLengths);
    if (s < 16) {
      repeated = 0;
      store<u8>(lengths + i++, <u8>s);
      if (s) {
        previous = s;
        left -= 1 << (15 - s);
      }
      continue;
    }
    const value = s == 16 ? previous : 0, extra = s - 14;
    if (value != ofWhat) repeated = 0;
    ofWhat = value;
    const old = repeated;
    repeated = (old ? (old - 2) << extra : 0) + bits(extra) + 3;
    const times = repeated - old;
    if (i + times > alphabet) fail("brotli: too many lengths");
    memory.fill(lengths + i, <u8>value, times);
    i += times;
    if (value) left -= <i32>(times << (15 - value));
  }
  if (left || makeCode(code, lengths, alphabet)) fail("brotli: a code that is not one");
}

/** 1 to 256, as counts of types and trees are written. */
function count256(): u32 {
  if (!bits(1)) return 1;
  const n = bits(3);
  return (1 << n) + bits(n) + 1;
}

function contextMap(size: u32, trees: u32): usize {
  const map = alloc(size);
  memory.fill(map, 0, size);
  if (trees < 2) return map;
  const longest = bits(1) ? bits(4) + 1 : 0;
  const before = mark();
  const code = readCode(trees + longest);
  for (let i: u32 = 0; i < size; ) {
    const s = symbol(code);
    if (s == 0 || s > longest) store<u8>(map + i++, <u8>(s ? s - longest : 0));
    else {
      const zeros = (1 << s) + bits(s);
      if (i + zeros > size) fail("brotli: a context map that is too long");
      i += zeros;
    }
  }
  if (bits(1)) {
    // the values are places in a list whose entries move to the front
    const list = alloc(256);
    for (let i: u32 = 0; i < 256; i++) store<u8>(list + i, <u8>i);
    for (let i: u32 = 0; i < size; i++) {
      const at = <usize>load<u8>(map + i), value = load<u8>(list + at);
      store<u8>(map + i, value);
      memory.copy(list + 1, list, at);
      store<u8>(list, value);
    }
  }
  release(before);
  return map;
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
    const types = load<u32>(category, TYPES), now = load<u32>(category, NOW);
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
  const ofLiterals = categories, ofCommands = categories + CATEGORY, ofDistances = categories + 2 * CATEGORY;
  const literalTypes = openCategory(ofLiterals), commandTypes = openCategory(ofCommands);
  const distanceTypes = openCategory(ofDistances);
  const postfix = bits(2), direct = bits(4) << postfix;
  const modes = alloc(literalTypes);
  for (let i: u32 = 0; i < literalTypes; i++) store<u8>(modes + i, <u8>bits(2));
  const literalTrees = count256(), literalMap = contextMap(64 * literalTypes, literalTrees);
  const distanceTrees = count256(), distanceMap = contextMap(4 * distanceTypes, distanceTrees);
  const literals = readTrees(literalTrees, 256), commands = readTrees(commandTypes, 704);
  const distances = readTrees(distanceTrees, 16 + direct + (48 << postfix));
  while (out < end) {
    const s = symbol(load<u32>(commands + blockType(ofCommands) * 4));
    const cell = CELLS + <usize>(s >> 6) * 2;
    const insertCode = <u32>load<u8>(cell) * 8 + ((s >> 3) & 7), copyCode = <u32>load<u8>(cell, 1) * 8 + (s & 7);
    const insert = length(INSERT_BITS, insertCode, 0), copy = length(COPY_BITS, copyCode, 2);
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
    } else word(copy, distance - most - 1, end);
  }
}

function length(table: usize, code: u32, first: u32): u32 {
  let base = first;
  for (let i: u32 = 0; i < code; i++) base += 1 << load<u8>(table + i);
  return base + bits(load<u8>(table + code));
}

function context(mode: u32): u32 {
  const p1: u32 = out > outStart ? load<u8>(out - 1) : 0, p2: u32 = out > outStart + 1 ? load<u8>(out - 2) : 0;
  if (mode == 0) return p1 & 63;
  if (mode == 1) return p1 >> 2;
  if (mode == 3) return magnitude(p1) << 3 | magnitude(p2);
  const first = p1 < 128 ? load<u8>(TEXT_1 + p1) : p1 < 192 ? p1 & 1 : 2 | p1 & 1;
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
  const high = code >> postfix, n = 1 + (high >> 1);
  const offset = ((2 + (high & 1)) << n) - 4;
  return <usize>(((offset + bits(n)) << postfix) + (code & ((1 << postfix) - 1)) + direct + 1);
}

// Words

/** A word of the dictionary, by its length and the number of word and transform. */
function word(size: u32, id: usize, end: usize): void {
  if (size < 4 || size > 24 || !dictionary) fail("brotli: a distance beyond the start");
  let at = dictionary;
  for (let n: u32 = 4; n < size; n++) at += <usize>n << load<u8>(DICTIONARY_BITS + n);
  const shift = load<u8>(DICTIONARY_BITS + size), index = id & ((1 << shift) - 1);
  at += index * size;
  const place = transform(id >> shift);
  const letter = TRANSFORMS.charCodeAt(place) - 97;
  let begin = at, stop = at + size;
  if (letter > 11) begin += min<usize>(letter - 11, size);
  else if (letter < 10) stop -= min<usize>(letter, size);
  fix(transformStart, place - 1, end);
  const wordStart = out;
  if (stop > begin) {
    if (stop - begin > end - out) fail("brotli: a word beyond its meta-block");
    memory.copy(out, begin, stop - begin);
    out += stop - begin;
  }
  if (letter == 10) upper(wordStart, out);
  else if (letter == 11) for (let p = wordStart; p < out; ) p = upper(p, out);
  let last = place + 1;
  while (TRANSFORMS.charCodeAt(last) != 124) last++;
  fix(place + 1, last, end);
}

let transformStart: i32 = 0;

/** Where the letter of a transform stands in `TRANSFORMS`; its prefix begins at `transformStart`. */
function transform(number: usize): i32 {
  if (number > 120) fail("brotli: a distance beyond the dictionary");
  let at = 0;
  for (let bars = 2 * <i32>number; bars; at++) if (TRANSFORMS.charCodeAt(at) == 124) bars--;
  transformStart = at;
  while (TRANSFORMS.charCodeAt(at) != 124) at++;
  return at + 1;
}

function fix(from: i32, to: i32, end: usize): void {
  for (let i = from; i < to; i++) {
    if (out >= end) fail("brotli: a word beyond its meta-block");
    store<u8>(out++, <u8>TRANSFORMS.charCodeAt(i));
  }
}

/** Change a character as the RFC's upper case does; returns where the next one begins. */
function upper(p: usize, end: usize): usize {
  const c = load<u8>(p);
  if (c < 192) {
    if (c >= 97 && c <= 122) store<u8>(p, c ^ 32);
    return p + 1;
  }
  if (c < 224) {
    if (p + 1 < end) store<u8>(p + 1, load<u8>(p + 1) ^ 32);
    return p + 2;
  }
  if (p + 2 < end) store<u8>(p + 2, load<u8>(p + 2) ^ 5);
  return p + 3;
}
