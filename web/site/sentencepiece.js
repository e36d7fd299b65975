// A SentencePiece model's file -> text to token ids and back, as the library has them.
//
// Kudo and Richardson 2018; the file is the protobuf message ModelProto of the library.
import { bytePiece, mergePairs, splitAt, textOfBytes } from "./bpe.js";
import { ArtifactError } from "./errors.js";

const SPACE = "\u2581";
const UNIGRAM = 1,
  BPE = 2;
const NORMAL = 1,
  UNKNOWN = 2,
  CONTROL = 3,
  USER_DEFINED = 4,
  UNUSED = 5,
  BYTE = 6;
const UNKNOWN_PENALTY = 10;

export class SentencePiece {
  /** @throws {ArtifactError} the bytes are no model that this code knows. */
  constructor(bytes) {
    let model;
    try {
      model = readModel(bytes);
    } catch {
      throw new ArtifactError("the tokenizer's file is not a SentencePiece model");
    }
    const { pieces, trainer, normalizer } = model;
    if (!pieces.length)
      throw new ArtifactError("the tokenizer's file is not a SentencePiece model");
    if (![UNIGRAM, BPE].includes(trainer.type))
      throw new ArtifactError("the tokenizer is neither BPE nor unigram");
    Object.assign(this, { pieces, trainer, normalizer, vocab: pieces.length, bos: trainer.bos });
    this.stops = new Set([trainer.bos]);
    const kinds = [NORMAL, USER_DEFINED, UNUSED];
    /** Ids of the pieces that text may become, and of all others. */
    this.ids = new Map(
      pieces.flatMap(({ text, kind }, id) => (kinds.includes(kind) ? [[text, id]] : [])),
    );
    this.reserved = new Map(
      pieces.flatMap(({ text, kind }, id) => (kinds.includes(kind) ? [] : [[text, id]])),
    );
    this.userDefined = pieces.filter(({ kind }) => kind === USER_DEFINED).map(({ text }) => text);
    this.charsmap = normalizer.charsmap.length ? new Charsmap(normalizer.charsmap) : null;
    this.unknown = pieces.findIndex(({ kind }) => kind === UNKNOWN);
    if (this.unknown < 0)
      throw new ArtifactError("the tokenizer has no piece for unknown characters");
    if (!(this.bos < this.vocab))
      throw new ArtifactError("the tokenizer has no BOS piece; a text needs one to begin with");
    if (trainer.type === UNIGRAM) {
      const scores = pieces.filter(({ kind }) => kind === NORMAL).map(({ score }) => score);
      this.lowest = scores.reduce((a, b) => Math.min(a, b), Infinity);
      this.highest = scores.reduce((a, b) => Math.max(a, b), -Infinity);
      this.longest = pieces.reduce((most, { text }) => Math.max(most, text.length), 1);
    }
  }

  /** The tokens that the model is given for a text to go on from. */
  start(text) {
    return [this.bos, ...this.encode(text)];
  }

  encode(text) {
    const normal = this.normalize(text);
    const words = splitAt(normal, this.userDefined).flatMap(({ text: part, word }) =>
      word ? [part] : this.trainer.type === BPE ? this.byPairs(part) : this.byScores(part),
    );
    const found = [];
    let unknownBefore = false;
    for (const word of words) {
      const id = this.reserved.get(word) ?? this.ids.get(word) ?? this.unknown;
      const unknown = id === this.unknown;
      if (unknown && this.trainer.byteFallback) found.push(...this.bytesOf(word));
      else if (!unknown || !unknownBefore) found.push(id); // a run of unknown pieces is one token
      unknownBefore = unknown;
    }
    return found;
  }

  bytesOf(word) {
    return Array.from(new TextEncoder().encode(word), (byte) => this.reserved.get(bytePiece(byte)));
  }

  byPairs(text) {
    const parts = new Map(); // of pieces that may not be used, what they were merged from
    const rank = (left, right) => {
      const id = this.ids.get(left + right);
      if (id === undefined) return undefined;
      if (this.pieces[id].kind === UNUSED) parts.set(left + right, [left, right]);
      return -this.pieces[id].score;
    };
    const apart = (piece) => (parts.has(piece) ? parts.get(piece).flatMap(apart) : [piece]);
    return mergePairs([...text], rank).flatMap(apart);
  }

  /** The likeliest way to cut a text (Viterbi). */
  byScores(text) {
    const best = [{ score: 0 }];
    for (let at = 0; at < text.length;) {
      const width = String.fromCodePoint(text.codePointAt(at)).length,
        here = best[at].score;
      const offer = (length, score) => {
        const candidate = Math.fround(here + score),
          old = best[at + length];
        if (!old || candidate > old.score)
          best[at + length] = { score: Math.fround(candidate), from: at };
      };
      let single = false;
      for (let length = width; length <= this.longest && at + length <= text.length; length++) {
        const id = this.ids.get(text.slice(at, at + length));
        if (id === undefined || this.pieces[id].kind === UNUSED) continue;
        offer(length, this.pieces[id].score);
        single ||= length === width;
      }
      if (!single) offer(width, Math.fround(this.lowest - UNKNOWN_PENALTY));
      at += width;
    }
    const found = [];
    for (let at = text.length; at; at = best[at].from) found.push(text.slice(best[at].from, at));
    return found.reverse();
  }

  normalize(text) {
    const { dummyPrefix, removeExtra, escape } = this.normalizer,
      suffix = this.trainer.spaceAsSuffix;
    const space = escape ? SPACE : " ";
    const parts = splitAt(text, this.userDefined).flatMap(({ text: part, word }) =>
      word ? [part] : this.charsmap ? this.charsmap.normalize(part) : [...part],
    );
    let found = "",
      afterSpace = removeExtra,
      first = 0;
    if (removeExtra) while (parts[first] === " ") first++;
    if (first === parts.length) return "";
    for (let part of parts.slice(first)) {
      while (afterSpace && part.startsWith(" ")) part = part.slice(1);
      if (!part) continue;
      found += part.replaceAll(" ", space);
      afterSpace = removeExtra && part.endsWith(" ");
    }
    if (removeExtra) while (found.endsWith(space)) found = found.slice(0, -1);
    if (!dummyPrefix) return found;
    return suffix ? found + space : space + found;
  }

  /** The text of ids, without what only controls. */
  decode(ids) {
    const { dummyPrefix, removeExtra } = this.normalizer;
    let found = "",
      bytes = [],
      atStart = true,
      startSeen = false;
    const flush = () => {
      if (bytes.length) found += textOfBytes(bytes);
      bytes = [];
    };
    for (const { text, kind } of ids.map((id) => this.pieces[id]).filter(Boolean)) {
      if (kind === BYTE) {
        bytes.push(parseInt(text.slice(3, 5), 16));
        continue;
      }
      flush();
      if (startSeen || found) atStart = false;
      startSeen = false;
      if (kind === CONTROL) continue;
      if (kind === UNKNOWN) {
        found += this.trainer.unknownText;
        continue;
      }
      let piece = text;
      if (atStart && (dummyPrefix || removeExtra) && piece.startsWith(SPACE)) {
        piece = piece.slice(1);
        startSeen = !removeExtra;
      }
      found += piece.replaceAll(SPACE, " ");
    }
    flush();
    return found;
  }
}

/** A compiled table of the normalizer: a double-array trie of UTF-8 keys, and what they become. */
class Charsmap {
  constructor(bytes) {
    const size = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
    this.units = new Uint32Array(bytes.slice(4, 4 + size).buffer);
    this.texts = bytes.subarray(4 + size);
  }

  /** The text in the parts that are replaced together: the longest key at each place. */
  normalize(text) {
    const bytes = new TextEncoder().encode(text);
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    const found = [];
    for (let at = 0; at < bytes.length;) {
      let { length, value } = this.longest(bytes, at);
      if (length) {
        found.push(utf8.decode(this.texts.subarray(value, this.texts.indexOf(0, value))));
      } else {
        length = bytes[at] < 0x80 ? 1 : bytes[at] < 0xe0 ? 2 : bytes[at] < 0xf0 ? 3 : 4;
        found.push(utf8.decode(bytes.subarray(at, at + length)));
      }
      at += length;
    }
    return found;
  }

  longest(bytes, start) {
    const offset = (unit) => (unit >>> 10) << ((unit & 512) >>> 6);
    const { units } = this;
    let place = offset(units[0]),
      length = 0,
      value = 0;
    for (let at = start; at < bytes.length; at++) {
      place ^= bytes[at];
      const unit = units[place];
      if (unit === undefined || (unit & 0x800000ff) >>> 0 !== bytes[at]) break;
      place ^= offset(unit);
      if (unit & 256) {
        length = at + 1 - start;
        value = units[place] & 0x7fffffff;
      }
    }
    return { length, value };
  }
}

// The message ModelProto, of which these fields are read by number.

function readModel(bytes) {
  const pieces = [];
  const trainer = {
    type: UNIGRAM,
    bos: 1,
    byteFallback: false,
    spaceAsSuffix: false,
    unknownText: " \u2047 ",
  };
  const normalizer = {
    charsmap: new Uint8Array(0),
    dummyPrefix: true,
    removeExtra: true,
    escape: true,
  };
  const text = (value) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(value);
  for (const [field, message] of fields(bytes)) {
    if (field === 1) {
      const piece = { text: "", score: 0, kind: NORMAL };
      for (const [number, value] of fields(message)) {
        if (number === 1) piece.text = text(value);
        else if (number === 2) piece.score = value;
        else if (number === 3) piece.kind = value;
      }
      pieces.push(piece);
    } else if (field === 2) {
      for (const [number, value] of fields(message)) {
        if (number === 3) trainer.type = value;
        else if (number === 24) trainer.spaceAsSuffix = value === 1;
        else if (number === 35) trainer.byteFallback = value === 1;
        else if (number === 41) trainer.bos = value;
        else if (number === 44) trainer.unknownText = text(value);
      }
    } else if (field === 3) {
      for (const [number, value] of fields(message)) {
        if (number === 2) normalizer.charsmap = value;
        else if (number === 3) normalizer.dummyPrefix = value === 1;
        else if (number === 4) normalizer.removeExtra = value === 1;
        else if (number === 5) normalizer.escape = value === 1;
      }
    }
  }
  return { pieces, trainer, normalizer };
}

/** Number and value of each field of a protobuf message: integers, floats, and bytes. */
function* fields(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  const varint = () => {
    let value = 0,
      scale = 1,
      byte;
    do {
      byte = view.getUint8(at++);
      value += (byte & 127) * scale;
      scale *= 128;
    } while (byte & 128);
    return value;
  };
  while (at < bytes.length) {
    const key = varint(),
      kind = key % 8;
    let value;
    if (kind === 0) value = varint();
    else if (kind === 2) {
      const size = varint();
      if (at + size > bytes.length) throw new RangeError("a field ends beyond its message");
      value = bytes.subarray(at, at + size);
      at += size;
    } else if (kind === 5) {
      value = view.getFloat32(at, true);
      at += 4;
    } else if (kind === 1) at += 8;
    else throw new RangeError("a field of no kind");
    yield [Math.floor(key / 8), value];
  }
}
