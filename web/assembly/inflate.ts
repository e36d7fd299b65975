// A zlib stream (RFC 1950, RFC 1951) -> its bytes, exactly as many as were declared.
import { alloc, fail, mark, release } from "./memory";
import {
  bits,
  bytesLeft,
  codeBytes,
  makeCode,
  openBits,
  repeat,
  skipTo,
  symbol,
  wholeByte,
} from "./prefix";

const ORDER = memory.data<u8>([16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]);

let out: usize = 0;
let outEnd: usize = 0;

export function inflate(from: usize, bytes: usize, to: usize, size: usize): void {
  const before = mark();
  if (bytes < 6) fail("zlib: the stream ends early");
  const head = ((<u32>load<u8>(from)) << 8) | load<u8>(from + 1);
  if ((head & 0x0f20) != 0x0800 || head >> 12 > 7 || head % 31) fail("zlib: not a zlib stream");
  openBits(from + 2, bytes - 2);
  const literals = alloc(codeBytes(288)),
    distances = alloc(codeBytes(32)),
    lengths = alloc(320);
  out = to;
  outEnd = to + size;
  let last: u32;
  do {
    last = bits(1);
    const kind = bits(2);
    if (kind == 0) stored();
    else {
      if (kind == 1) fixedCodes(literals, distances, lengths);
      else if (kind == 2) readCodes(literals, distances, lengths);
      else fail("zlib: a block of no kind");
      block(literals, distances, to);
    }
  } while (!last);
  if (out != outEnd) fail("zlib: less than the declared size");
  const tail = wholeByte(false);
  if (bytesLeft() != 4)
    fail(bytesLeft() < 4 ? "zlib: the stream ends early" : "zlib: bytes follow its end");
  if (bswap<u32>(load<u32>(tail)) != adler32(to, size)) fail("zlib: the checksum does not match");
  release(before);
}

function stored(): void {
  const at = wholeByte(false);
  if (bytesLeft() < 4) fail("zlib: the stream ends early");
  const bytes = <usize>load<u16>(at);
  if ((bytes ^ load<u16>(at, 2)) != 0xffff) fail("zlib: a stored block of no length");
  if (bytesLeft() - 4 < bytes) fail("zlib: the stream ends early");
  if (bytes > outEnd - out) fail("zlib: more than the declared size");
  memory.copy(out, at + 4, bytes);
  out += bytes;
  skipTo(at + 4 + bytes);
}

function fixedCodes(literals: usize, distances: usize, lengths: usize): void {
  memory.fill(lengths, 8, 144);
  memory.fill(lengths + 144, 9, 112);
  memory.fill(lengths + 256, 7, 24);
  memory.fill(lengths + 280, 8, 8);
  makeCode(literals, lengths, 288);
  memory.fill(lengths, 5, 32);
  makeCode(distances, lengths, 32);
}

function readCodes(literals: usize, distances: usize, lengths: usize): void {
  const literalCount = <usize>bits(5) + 257,
    distanceCount = <usize>bits(5) + 1,
    lengthCount = bits(4) + 4;
  if (literalCount > 286 || distanceCount > 30) fail("zlib: too many symbols");
  memory.fill(lengths, 0, 320);
  for (let i: u32 = 0; i < lengthCount; i++) store<u8>(lengths + load<u8>(ORDER + i), <u8>bits(3));
  if (makeCode(literals, lengths, 19)) fail("zlib: a code that is not one");
  const total = literalCount + distanceCount;
  for (let i: usize = 0; i < total;) {
    const s = symbol(literals);
    if (s < 16) {
      store<u8>(lengths + i++, <u8>s);
      continue;
    }
    if (s == 16 && i == 0) fail("zlib: nothing to repeat");
    const value = s == 16 ? load<u8>(lengths + i - 1) : 0;
    const times = <usize>(s == 16 ? 3 + bits(2) : s == 17 ? 3 + bits(3) : 11 + bits(7));
    if (i + times > total) fail("zlib: too many lengths");
    memory.fill(lengths + i, value, times);
    i += times;
  }
  if (!load<u8>(lengths + 256)) fail("zlib: a block without an end");
  check(makeCode(literals, lengths, literalCount), literals);
  check(makeCode(distances, lengths + literalCount, distanceCount), distances);
}

/** A code must use up all words, but one of a single word of one bit, or of none, need not. */
function check(left: i32, code: usize): void {
  let longest = 0;
  for (let n = 1; n < 16; n++) if (load<u16>(code + 2048 + n * 2)) longest = n;
  if (left && (left < 0 || longest > 1)) fail("zlib: a code that is not one");
}

function block(literals: usize, distances: usize, start: usize): void {
  while (true) {
    const s = symbol(literals);
    if (s < 256) {
      if (out >= outEnd) fail("zlib: more than the declared size");
      store<u8>(out++, <u8>s);
      continue;
    }
    if (s == 256) return;
    if (s > 285) fail("zlib: a length of no meaning");
    // lengths 3 to 258 go up by 1, four times by 1, four by 2, ..., and the last is 258
    let bytes: usize = s - 254;
    if (s > 264) {
      const extra = (s - 261) >> 2;
      bytes = s == 285 ? 258 : 3 + ((<usize>(4 + ((s - 261) & 3))) << extra) + bits(extra);
    }
    const d = symbol(distances);
    if (d > 29) fail("zlib: a distance of no meaning");
    let distance: usize = d + 1;
    if (d > 3) {
      const extra = (d >> 1) - 1;
      distance = 1 + ((<usize>(2 + (d & 1))) << extra) + bits(extra);
    }
    if (distance > out - start) fail("zlib: a distance beyond the start");
    if (bytes > outEnd - out) fail("zlib: more than the declared size");
    repeat(out, distance, bytes);
    out += bytes;
  }
}

function adler32(from: usize, bytes: usize): u32 {
  let a: u32 = 1,
    b: u32 = 0;
  for (let i: usize = 0; i < bytes;) {
    const stop = min<usize>(i + 5552, bytes); // the most whose sums fit in 32 bits
    for (; i < stop; i++) {
      a += load<u8>(from + i);
      b += a;
    }
    a %= 65521;
    b %= 65521;
  }
  return (b << 16) | a;
}
