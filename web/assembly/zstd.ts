// One zstd frame (RFC 8878) without a dictionary -> its bytes, exactly as many as were declared.
//
// Its checksum, where there is one, is passed over: a section has a SHA-256 of its own.
import { alloc, fail, mark, release } from "./memory";
import { repeat } from "./prefix";
import {
  back,
  begun,
  bitsLeft,
  emptyCode,
  makeStates,
  moved,
  need,
  openBack,
  openCodes,
  readCode,
  readLiterals,
  said,
} from "./zstd-codes";

const MOST_OF_BLOCK: usize = 1 << 17;

let out: usize = 0;
let outEnd: usize = 0;
let repeats0: usize = 1,
  repeats1: usize = 4,
  repeats2: usize = 8;

// The codes of sequences.
let lengthsCode: usize = 0,
  offsetsCode: usize = 0,
  matchesCode: usize = 0;
let buffer: usize = 0;

export function unzstd(from: usize, bytes: usize, to: usize, size: usize): void {
  const before = mark();
  const end = from + bytes;
  out = to;
  outEnd = to + size;
  repeats0 = 1;
  repeats1 = 4;
  repeats2 = 8;
  openCodes();
  lengthsCode = emptyCode(9);
  offsetsCode = emptyCode(8);
  matchesCode = emptyCode(9);
  buffer = alloc(MOST_OF_BLOCK);
  from = header(from, end, size);
  const checksum = frameFlags & 4;
  let last: u32;
  do {
    need(from, 3, end);
    const head = (<u32>load<u16>(from)) | ((<u32>load<u8>(from, 2)) << 16);
    from += 3;
    last = head & 1;
    const kind = (head >> 1) & 3,
      count = <usize>(head >> 3);
    if (count > MOST_OF_BLOCK) fail("zstd: a block that is too long");
    if (kind == 3) fail("zstd: a block of no kind");
    need(from, kind == 1 ? 1 : count, end);
    if (kind < 2) {
      room(count);
      if (kind) memory.fill(out, load<u8>(from), count);
      else memory.copy(out, from, count);
      out += count;
      from += kind ? 1 : count;
    } else {
      block(from, from + count, to);
      from += count;
    }
  } while (!last);
  if (checksum) {
    need(from, 4, end);
    from += 4;
  }
  if (out != outEnd) fail("zstd: less than the declared size");
  if (from != end) fail("zstd: bytes follow its end");
  release(before);
}

let frameFlags: u32 = 0;

function header(from: usize, end: usize, size: usize): usize {
  need(from, 5, end);
  if (load<u32>(from) != 0xfd2fb528) fail("zstd: not a zstd frame");
  frameFlags = load<u8>(from, 4);
  from += 5;
  const single = (frameFlags >> 5) & 1,
    width = frameFlags >> 6;
  if (frameFlags & 8) fail("zstd: a reserved bit is set");
  if (frameFlags & 3) fail("zstd: it needs a dictionary");
  if (!width && !single) fail("zstd: the frame does not state its size");
  if (!single) from += 1; // the size of a window; the output is all here
  need(from, (<usize>1) << width, end);
  let stated: u64 = load<u8>(from);
  if (width == 1) stated = <u64>load<u16>(from) + 256;
  else if (width == 2) stated = load<u32>(from);
  else if (width == 3) stated = load<u64>(from);
  if (stated != size) fail("zstd: the frame states another size than declared");
  return from + ((<usize>1) << width);
}

function room(bytes: usize): void {
  if (bytes > outEnd - out) fail("zstd: more than the declared size");
}

function block(from: usize, end: usize, start: usize): void {
  const blockStart = out;
  // literals
  need(from, 1, end);
  const head = <u32>load<u8>(from),
    kind = head & 3,
    form = (head >> 2) & 3;
  let count: usize = 0,
    packed: usize = 0,
    streams = 1;
  let literals: usize;
  if (kind < 2) {
    const width: usize = form == 1 ? 2 : form == 3 ? 3 : 1;
    need(from, width, end);
    count = <usize>(
      (width == 1 ? head >> 3 : (load<u32>(from) & (width == 2 ? 0xffff : 0xffffff)) >> 4)
    );
    from += width;
    if (count > MOST_OF_BLOCK) fail("zstd: too many literals");
    need(from, kind ? 1 : count, end);
    literals = kind ? buffer : from;
    if (kind) memory.fill(buffer, load<u8>(from), count);
    from += kind ? 1 : count;
  } else {
    const width: usize = form < 2 ? 3 : form + 2,
      n: u64 = form < 2 ? 10 : form == 2 ? 14 : 18;
    need(from, width, end);
    const sizes = load<u64>(from) >> 4;
    count = <usize>(sizes & ((1 << n) - 1));
    packed = <usize>((sizes >> n) & ((1 << n) - 1));
    streams = form ? 4 : 1;
    from += width;
    if (count > MOST_OF_BLOCK) fail("zstd: too many literals");
    need(from, packed, end);
    literals = buffer;
    readLiterals(from, from + packed, kind == 2, streams, buffer, count);
    from += packed;
  }
  // sequences
  need(from, 1, end);
  let sequences = <usize>load<u8>(from++);
  if (sequences > 127) {
    need(from, sequences == 255 ? 2 : 1, end);
    if (sequences == 255) {
      sequences = <usize>load<u16>(from) + 0x7f00;
      from += 2;
    } else sequences = ((sequences - 128) << 8) + load<u8>(from++);
  }
  const literalsEnd = literals + count;
  if (sequences) {
    need(from, 1, end);
    const modes = <u32>load<u8>(from++);
    if (modes & 3) fail("zstd: a reserved bit is set");
    from = sequenceCode(modes >> 6, lengthsCode, LENGTHS_DEFAULT, 36, 6, 9, 35, from, end);
    from = sequenceCode((modes >> 4) & 3, offsetsCode, OFFSETS_DEFAULT, 29, 5, 8, 31, from, end);
    from = sequenceCode((modes >> 2) & 3, matchesCode, MATCHES_DEFAULT, 53, 6, 9, 52, from, end);
    literals = execute(from, end, sequences, literals, literalsEnd, start);
  } else if (from != end) fail("zstd: bytes follow a block's end");
  room(literalsEnd - literals);
  memory.copy(out, literals, literalsEnd - literals);
  out += literalsEnd - literals;
  if (out - blockStart > MOST_OF_BLOCK) fail("zstd: a block that is too long");
}

// Sequences

const LENGTHS_DEFAULT = memory.data<i16>([
  4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1,
  -1, -1, -1, -1,
]);
const OFFSETS_DEFAULT = memory.data<i16>([
  1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1,
]);
const MATCHES_DEFAULT = memory.data<i16>([
  1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
  1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
]);
// Of the symbols from 16 (lengths) and 32 (matches): the extra bits.
const LENGTH_BITS = memory.data<u8>([
  1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
]);
const MATCH_BITS = memory.data<u8>([
  1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
]);

function sequenceCode(
  mode: u32,
  code: usize,
  normal: usize,
  symbols: u32,
  accuracy: u32,
  most: u32,
  largest: u32,
  from: usize,
  end: usize,
): usize {
  if (mode == 0) makeStates(code, accuracy, normal, symbols);
  else if (mode == 1) {
    need(from, 1, end);
    const s = load<u8>(from++);
    if (s > largest) fail("zstd: a symbol of no meaning");
    store<u32>(code, 0);
    store<u32>(code, s, 4);
  } else if (mode == 2) return readCode(code, most, largest, from, end);
  else if (load<u32>(code) == 0xff) fail("zstd: a block that goes on with no code");
  return from;
}

/** Base and extra bits of a length's symbol, of a kind whose first `plain` symbols have neither. */
function extended(s: u32, plain: u32, first: u32, table: usize): u32 {
  if (s < plain) return s + first;
  let base = plain + first;
  for (let i: u32 = plain; i < s; i++) base += 1 << load<u8>(table + i - plain);
  return base + back(load<u8>(table + s - plain));
}

function execute(
  from: usize,
  end: usize,
  sequences: usize,
  literals: usize,
  literalsEnd: usize,
  start: usize,
): usize {
  openBack(from, end);
  let a = begun(lengthsCode),
    b = begun(offsetsCode),
    c = begun(matchesCode);
  for (let i: usize = 0; i < sequences; i++) {
    const power = said(offsetsCode, b);
    if (power > 31) fail("zstd: a distance of no meaning");
    let offset = ((<u64>1) << power) + back(power);
    const bytes = <usize>extended(said(matchesCode, c), 32, 3, MATCH_BITS);
    const count = <usize>extended(said(lengthsCode, a), 16, 0, LENGTH_BITS);
    if (i + 1 < sequences) {
      a = moved(lengthsCode, a);
      c = moved(matchesCode, c);
      b = moved(offsetsCode, b);
    }
    if (bitsLeft() < 0) fail("zstd: sequences end early");
    let distance: usize;
    if (offset > 3) {
      if (offset - 3 > 0xffffffff) fail("zstd: a distance beyond the start");
      distance = <usize>(offset - 3);
      repeats2 = repeats1;
      repeats1 = repeats0;
    } else {
      if (!count) offset++;
      distance =
        offset == 1 ? repeats0 : offset == 2 ? repeats1 : offset == 3 ? repeats2 : repeats0 - 1;
      if (offset > 2) repeats2 = repeats1;
      if (offset > 1) repeats1 = repeats0;
    }
    repeats0 = distance;
    if (count > literalsEnd - literals) fail("zstd: more literals than there are");
    room(count + bytes);
    memory.copy(out, literals, count);
    out += count;
    literals += count;
    if (!distance || distance > out - start) fail("zstd: a distance beyond the start");
    repeat(out, distance, bytes);
    out += bytes;
  }
  if (bitsLeft() != 0) fail("zstd: sequences that do not end where they must");
  return literals;
}
