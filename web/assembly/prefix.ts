// Bits from the lowest up, and prefix codes by the lengths of their words: what RFC 1951 (deflate)
// and RFC 7932 (brotli) share.
import { fail } from "./memory";

let at: usize = 0;
let end: usize = 0;
let hold: u64 = 0;
let held: u32 = 0;
/** Bytes of zeros that were taken from beyond the end. */
let beyond: u32 = 0;

export function openBits(from: usize, bytes: usize): void {
  at = from;
  end = from + bytes;
  hold = 0;
  held = 0;
  beyond = 0;
}

function fill(): void {
  while (held <= 56) {
    if (at < end) hold |= (<u64>load<u8>(at++)) << held;
    else if (++beyond > 16) fail("a compressed stream ends early");
    held += 8;
  }
}

/** The next n <= 32 bits, the first of which is the lowest. */
export function bits(n: u32): u32 {
  if (held < n) fill();
  const value = <u32>(hold & (((<u64>1) << n) - 1));
  hold >>= n;
  held -= n;
  return value;
}

/** Where the next whole byte lies; bits before it are dropped, and must be 0 if `strict`. */
export function wholeByte(strict: bool): usize {
  if (bits(held & 7) && strict) fail("a compressed stream has bits where none may be");
  const back = held >> 3;
  if (beyond > back) fail("a compressed stream ends early");
  at -= back - beyond;
  hold = 0;
  held = 0;
  beyond = 0;
  return at;
}

/** Go on after bytes that were taken from where `wholeByte` said. */
export function skipTo(place: usize): void {
  at = place;
}

export function bytesLeft(): usize {
  return end - at;
}

// A code: for each 10 bits KNOWN | symbol << 4 | length, or 0 for longer words, u16[1024]; how many
// words have each length, u16[16]; and the symbols in the order of their words, u16[number].
const FAST_BITS = 10;
const KNOWN = 0x8000;
const COUNTS: usize = 2048;
const SYMBOLS: usize = COUNTS + 32;

/** Bytes of a code of so many symbols. */
export function codeBytes(symbols: usize): usize {
  return SYMBOLS + symbols * 2;
}

/**
 * Make a code of `count` lengths (u8, 0 to 15) at `lengths`; returns how much of the space of words
 * is left, in units of 2^-15, which is below 0 where words collide.
 */
export function makeCode(code: usize, lengths: usize, count: usize): i32 {
  memory.fill(code, 0, SYMBOLS);
  const counts = code + COUNTS;
  for (let i: usize = 0; i < count; i++) {
    const place = counts + <usize>load<u8>(lengths + i) * 2;
    store<u16>(place, load<u16>(place) + 1);
  }
  store<u16>(counts, 0);
  let left: i32 = 1 << 15,
    first = 0;
  for (let n = 1; n < 16; n++) left -= (<i32>load<u16>(counts + n * 2)) << (15 - n);
  if (left < 0) return left;
  let word: u32 = 0;
  for (let n = 1; n < 16; n++) {
    word <<= 1;
    for (let i: usize = 0; i < count; i++) {
      if (load<u8>(lengths + i) != n) continue;
      store<u16>(code + SYMBOLS + first++ * 2, <u16>i);
      if (n <= FAST_BITS) {
        for (let w = reversed(word, n); w < 1 << FAST_BITS; w += 1 << n) {
          store<u16>(code + <usize>w * 2, <u16>(KNOWN | ((<u32>i) << 4) | n));
        }
      }
      word++;
    }
  }
  return left;
}

/** A code of one symbol, whose word has no bits. */
export function makeSingle(code: usize, only: u32): void {
  for (let i: usize = 0; i < 1 << FAST_BITS; i++)
    store<u16>(code + i * 2, <u16>(KNOWN | (only << 4)));
}

function reversed(word: u32, n: u32): u32 {
  let found: u32 = 0;
  for (let i: u32 = 0; i < n; i++) found |= ((word >> i) & 1) << (n - 1 - i);
  return found;
}

export function symbol(code: usize): u32 {
  if (held < 15) fill();
  const fast = <u32>load<u16>(code + <usize>(hold & 1023) * 2);
  if (fast) {
    hold >>= fast & 15;
    held -= fast & 15;
    return (fast >> 4) & 0x7ff;
  }
  let word: i32 = 0,
    first: i32 = 0,
    index: i32 = 0;
  for (let n: usize = 1; n < 16; n++) {
    word |= <i32>bits(1);
    const count = <i32>load<u16>(code + COUNTS + n * 2);
    if (word - count < first) return load<u16>(code + SYMBOLS + <usize>(index + word - first) * 2);
    index += count;
    first = (first + count) << 1;
    word <<= 1;
  }
  fail("a compressed stream has a word that is not in its code");
  return 0;
}

/** Bytes that an earlier part of the output is repeated for; the two may overlap. */
export function repeat(out: usize, distance: usize, bytes: usize): void {
  if (distance >= bytes) memory.copy(out, out - distance, bytes);
  else for (let i: usize = 0; i < bytes; i++) store<u8>(out + i, load<u8>(out + i - distance));
}
