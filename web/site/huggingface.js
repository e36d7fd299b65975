// A tokenizer.json of Hugging Face's library tokenizers -> text to token ids and back: BPE of its
// kinds.
//
// A part that is not known is an error by its name, never a guess.
import { bytePiece, mergePairs, splitAt, textOfBytes } from "./bpe.js";
import { ArtifactError, short } from "./errors.js";

const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const SPACE = "\u2581";

function unknown(what, value) {
  throw new ArtifactError(
    `the tokenizer has ${what} ${short(value)}, which this page does not know`,
  );
}

export class HuggingFace {
  /** @throws {ArtifactError} the bytes are no tokenizer that this code knows. */
  constructor(bytes, { begins = null, stops = [] } = {}) {
    this.begins = begins;
    this.stops = new Set(stops);
    try {
      this.read(JSON.parse(new TextDecoder().decode(bytes)) ?? {});
    } catch (error) {
      if (error instanceof ArtifactError) throw error;
      throw new ArtifactError(`the file's tokenizer.json is not one: ${short(error.message)}`);
    }
  }

  read({ model, normalizer, pre_tokenizer, decoder, added_tokens }) {
    if (model?.type !== "BPE" || !model.vocab || !Array.isArray(model.merges))
      unknown("a model of type", model?.type);
    for (const key of ["dropout", "continuing_subword_prefix", "end_of_word_suffix"]) {
      if (model[key]) unknown(`${key} =`, model[key]);
    }
    this.model = model;
    this.vocab = new Map(Object.entries(model.vocab));
    this.merges = new Map(
      model.merges.map((pair, rank) => [Array.isArray(pair) ? pair.join(" ") : pair, rank]),
    );
    this.normalize = normalizerOf(normalizer);
    this.split = splitterOf(pre_tokenizer);
    this.added = Array.isArray(added_tokens) ? added_tokens : [];
    if (this.added.some((token) => token.single_word || token.lstrip || token.rstrip))
      unknown("a token that strips its", "surroundings");
    this.pieces = new Map([...this.vocab].map(([text, id]) => [id, { text }]));
    for (const { id, content, special, normalized } of this.added) {
      this.pieces.set(id, { text: normalized ? this.normalize(content) : content, special });
    }
    this.strip = stripOf(decoder);
    this.byteLevel = JSON.stringify(decoder ?? null).includes('"ByteLevel"');
    this.cache = new Map();
  }

  /** The tokens that the model is given for a text to go on from. */
  start(text) {
    return [...(this.begins === null ? [] : [this.begins]), ...this.encode(text)];
  }

  /**
   * Ids of a text, with none before and none after.
   *
   * What looks like a special token is text, unless `specials`: a chat template's are meant as
   * such.
   */
  encode(text, { specials = false } = {}) {
    const meant = this.added.filter((token) => specials || !token.special);
    // some are looked for in the text, others in what the normalizer makes of it
    const before = new Map(
      meant.filter((token) => !token.normalized).map(({ content, id }) => [content, id]),
    );
    const after = new Map(
      meant
        .filter((token) => token.normalized)
        .map(({ content, id }) => [this.normalize(content), id]),
    );
    const through = (text, words, rest) =>
      splitAt(text, [...words.keys()]).flatMap((part) =>
        part.word ? [words.get(part.text)] : rest(part.text),
      );
    return through(text, before, (part) =>
      through(this.normalize(part), after, (rest) =>
        this.split(rest).flatMap((word) => this.idsOf(word)),
      ),
    );
  }

  idsOf(word) {
    let found = this.cache.get(word);
    if (found === undefined) {
      found = this.merged(word);
      if (word.length < 100 && this.cache.size < 50000) this.cache.set(word, found);
    }
    return found;
  }

  merged(word) {
    const { model, vocab } = this;
    if (model.ignore_merges && vocab.has(word)) return [vocab.get(word)];
    // characters that are no piece go by their bytes, or are unknown
    const symbols = [...word].flatMap((c) =>
      vocab.has(c) || !model.byte_fallback ? [c] : bytePieces(c, vocab),
    );
    const pieces = mergePairs(symbols, (left, right) => this.merges.get(`${left} ${right}`));
    const found = [];
    let unknownBefore = false;
    for (const piece of pieces) {
      const id = vocab.get(piece) ?? vocab.get(model.unk_token);
      if (id === undefined) continue;
      const isUnknown = !vocab.has(piece);
      if (!(isUnknown && unknownBefore && model.fuse_unk)) found.push(id);
      unknownBefore = isUnknown;
    }
    return found;
  }

  /** The text of ids, special ones left out. */
  decode(ids) {
    const pieces = ids.map((id) => this.pieces.get(id)).filter((piece) => piece && !piece.special);
    if (this.byteLevel) {
      const bytes = pieces.flatMap(({ text }) =>
        [...text].every((c) => BYTE_OF.has(c))
          ? [...text].map((c) => BYTE_OF.get(c))
          : [...new TextEncoder().encode(text)],
      );
      return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
    }
    let found = "",
      bytes = [];
    for (const { text } of pieces) {
      const byte = /^<0x([0-9A-F]{2})>$/.exec(text);
      if (byte) {
        bytes.push(parseInt(byte[1], 16));
        continue;
      }
      found += textOfBytes(bytes) + text.replaceAll(SPACE, " ");
      bytes = [];
    }
    found += textOfBytes(bytes);
    return this.strip && found.startsWith(" ") ? found.slice(1) : found;
  }
}

function bytePieces(character, vocab) {
  const names = Array.from(new TextEncoder().encode(character), bytePiece);
  return names.every((name) => vocab.has(name)) ? names : [character];
}

/** GPT-2's table: printable bytes are characters of their own, the others those from U+0100 on. */
const BYTE_OF = new Map();
{
  const printable = (b) => (b > 0x20 && b < 0x7f) || (b > 0xa0 && b !== 0xad);
  let more = 0x100;
  for (let b = 0; b < 256; b++) BYTE_OF.set(String.fromCharCode(printable(b) ? b : more++), b);
}
const CHARACTER_OF = new Map([...BYTE_OF].map(([character, byte]) => [byte, character]));

function byteCharacters(word) {
  return [...new TextEncoder().encode(word)].map((byte) => CHARACTER_OF.get(byte)).join("");
}

function normalizerOf(part) {
  if (!part) return (text) => text;
  if (/^NFK?[CD]$/.test(part.type)) return (text) => text.normalize(part.type);
  if (part.type === "Prepend") return (text) => (text ? part.prepend + text : text);
  if (part.type === "Replace" && typeof part.pattern?.String === "string") {
    return (text) => text.replaceAll(part.pattern.String, () => part.content);
  }
  if (part.type === "Sequence") {
    const inner = part.normalizers.map(normalizerOf);
    return (text) => inner.reduce((t, normalize) => normalize(t), text);
  }
  return unknown("the normalizer", part.type);
}

/** A pre-tokenizer: a text -> its words, in the characters of the vocabulary. */
function splitterOf(part) {
  if (!part) return (text) => (text ? [text] : []);
  if (part.type === "Sequence") {
    const inner = part.pretokenizers.map(splitterOf);
    return (text) => inner.reduce((words, split) => words.flatMap(split), [text]);
  }
  if (part.type === "Digits") {
    const rule = part.individual_digits ? /\p{N}/gu : /\p{N}+/gu;
    return (text) => pieces(text, rule, "Isolated");
  }
  if (part.type === "Split") {
    const { pattern, behavior, invert } = part;
    if (!["Isolated", "Removed"].includes(behavior)) unknown("a split of behavior", behavior);
    const rule =
      pattern?.Regex !== undefined
        ? regex(pattern.Regex)
        : new RegExp(escaped(pattern?.String ?? ""), "gu");
    return (text) => pieces(text, rule, behavior, invert);
  }
  if (part.type === "ByteLevel") {
    const rule = regex(GPT2);
    return (text) => {
      const spaced = part.add_prefix_space && !text.startsWith(" ") ? ` ${text}` : text;
      return (part.use_regex === false ? [spaced] : pieces(spaced, rule, "Isolated")).map(
        byteCharacters,
      );
    };
  }
  if (part.type === "Metaspace") {
    const mark = part.replacement ?? SPACE,
      scheme = part.prepend_scheme ?? "always";
    if (scheme === "first") unknown("a Metaspace of prepend_scheme", scheme);
    return (text) => {
      let marked = text.replaceAll(" ", mark);
      if (scheme === "always" && !marked.startsWith(mark)) marked = mark + marked;
      return part.split === false
        ? [marked]
        : marked.split(new RegExp(`(?=${escaped(mark)})`, "u"));
    };
  }
  return unknown("the pre-tokenizer", part.type);
}

function escaped(text) {
  return text.replace(/[\\^$.*+?()[\]{}|/-]/g, (c) => (c === "-" ? "\\x2d" : `\\${c}`));
}

/** A regular expression of the library as one of JavaScript's. */
function regex(source) {
  const eitherCase = (_, inner) =>
    `(?:${inner.replace(/[a-z]/gi, (c) => `[${c.toLowerCase()}${c.toUpperCase()}]`)})`;
  const spelled = source
    .replace(/\(\?i:([^()\\[]*)\)/g, eitherCase)
    .replace(/\\s/g, "\\p{White_Space}")
    .replace(/\\S/g, "\\P{White_Space}");
  try {
    return new RegExp(spelled, "gu");
  } catch {
    return unknown("the pattern", source);
  }
}

/** What matches and what lies between, each a word of its own, or without what matches. */
function pieces(text, rule, behavior, invert = false) {
  const found = [];
  let at = 0;
  const keep = (word, matched) =>
    word && !(behavior === "Removed" && matched !== invert) && found.push(word);
  for (const match of text.matchAll(rule)) {
    keep(text.slice(at, match.index), false);
    keep(match[0], true);
    at = match.index + match[0].length;
  }
  keep(text.slice(at), false);
  return found;
}

/** Whether a space in front is taken away in decoding. */
function stripOf(decoder) {
  if (!decoder) return false;
  if (decoder.type === "Sequence") return decoder.decoders.map(stripOf).some(Boolean);
  if (decoder.type === "Strip") return decoder.content === " " && decoder.start > 0;
  if (decoder.type === "Metaspace") return (decoder.prepend_scheme ?? "always") !== "never";
  if (!["ByteLevel", "ByteFallback", "Fuse", "Replace"].includes(decoder.type))
    unknown("the decoder", decoder.type);
  return false;
}
