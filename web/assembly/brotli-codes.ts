// The prefix codes and context maps of brotli (RFC 7932, sections 3 and 7).
import { alloc, fail, mark, release } from "./memory";
import { bits, codeBytes, makeCode, makeSingle, symbol } from "./prefix";

const LENGTH_ORDER = memory.data<u8>([
  1, 2, 3, 4, 0, 5, 17, 6, 16, 7, 8, 9, 10, 11, 12, 13, 14, 15,
]);

export function readCode(alphabet: u32): usize {
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
  const count = bits(2) + 1,
    width = 32 - clz<u32>(alphabet - 1);
  let first: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const s = bits(width);
    if (s >= alphabet || load<u8>(lengths + s)) fail("brotli: a code of symbols that are none");
    if (!i) first = s;
    store<u8>(
      lengths + s,
      <u8>(count == 2 ? 1 : count == 3 ? (i ? 2 : 1) : count == 4 ? 2 : i + 1),
    );
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
  const ofLengths = alloc(codeBytes(18)),
    short = alloc(18);
  memory.fill(short, 0, 18);
  let space = 32,
    used = 0;
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
  let left = 1 << 15,
    previous: u32 = 8,
    repeated: u32 = 0,
    ofWhat: u32 = 0;
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
    const value = s == 16 ? previous : 0,
      extra = s - 14;
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
export function count256(): u32 {
  if (!bits(1)) return 1;
  const n = bits(3);
  return (1 << n) + bits(n) + 1;
}

export function contextMap(size: u32, trees: u32): usize {
  const map = alloc(size);
  memory.fill(map, 0, size);
  if (trees < 2) return map;
  const longest = bits(1) ? bits(4) + 1 : 0;
  const before = mark();
  const code = readCode(trees + longest);
  for (let i: u32 = 0; i < size;) {
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
      const at = <usize>load<u8>(map + i),
        value = load<u8>(list + at);
      store<u8>(map + i, value);
      memory.copy(list + 1, list, at);
      store<u8>(list, value);
    }
  }
  release(before);
  return map;
}
