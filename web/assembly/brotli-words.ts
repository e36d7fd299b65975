// The words of brotli's dictionary and what is done to them (RFC 7932, section 8).
import { fail } from "./memory";

/** Appendix B: prefix | a letter for what is done to the word, and suffix |, and so on. */
// prettier-ignore
const TRANSFORMS = "|a||a | |a ||m||k ||a the | |a|s |a ||a of ||k||a and ||n||b|, |a ||a, | |k ||a in ||a to |e |a ||a\"||a.||a\">||a\n||d||a]||a for ||o||c||a a ||a that | |k||a. |.|a| |a, ||p||a with ||a'||a from ||a by ||q||r| the |a||e||a. The ||l||a on ||a as ||a is ||h||bing ||a\n\t||a:| |a. ||aed ||u||s||g||a(||k, ||i||a at ||aly | the |a of ||f||j| |k, ||k\"|.|a(||l ||k\">||a=\"| |a.|.com/|a| the |a of the ||k'||a. This ||a,|.|a ||k(||k.||a not | |a=\"||aer | |l ||aal | |l||a='||l\"||k. | |a(||aful | |k. ||aive ||aless ||l'||aest | |k.||l\">| |a='||k,||aize ||l.|\u00c2\u00a0|a| |a,||k=\"||l=\"||aous ||l, ||k='| |k,| |l=\"| |l, ||l,||l(||l. | |l.||l='| |l. | |k=\"| |l='| |k='|";
// Letters: a as it is; b to j without the last 1 to 9 bytes; k, l the first or all letters in upper
// case; m to u without the first 1 to 9 bytes.
const DICTIONARY_BITS = memory.data<u8>([
  0, 0, 0, 0, 10, 10, 11, 11, 10, 10, 10, 10, 10, 9, 9, 8, 7, 7, 8, 7, 7, 6, 6, 5, 5,
]);

let out: usize = 0;

/** Write a word, by its length and the number of word and transform, to `to`; returns its end. */
export function word(dictionary: usize, size: u32, id: usize, to: usize, end: usize): usize {
  out = to;
  if (size < 4 || size > 24 || !dictionary) fail("brotli: a distance beyond the start");
  let at = dictionary;
  for (let n: u32 = 4; n < size; n++) at += (<usize>n) << load<u8>(DICTIONARY_BITS + n);
  const shift = load<u8>(DICTIONARY_BITS + size),
    index = id & ((1 << shift) - 1);
  at += index * size;
  const place = transform(id >> shift);
  const letter = TRANSFORMS.charCodeAt(place) - 97;
  let begin = at,
    stop = at + size;
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
  else if (letter == 11) for (let p = wordStart; p < out;) p = upper(p, out);
  let last = place + 1;
  while (TRANSFORMS.charCodeAt(last) != 124) last++;
  fix(place + 1, last, end);
  return out;
}

let transformStart: i32 = 0;

/**
 * Where the letter of a transform stands in `TRANSFORMS`; its prefix begins at `transformStart`.
 */
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
