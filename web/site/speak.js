// A model and its tokenizer -> text that follows a prompt, piece by piece: in the thread that asks.
import { decode } from "./decode.js";
import { ArtifactError } from "./errors.js";
import { HuggingFace } from "./huggingface.js";
import { openModel, pick } from "./model.js";
import { SentencePiece } from "./sentencepiece.js";

const UNFINISHED = "\ufffd";
/** Tokens that are waited for while the last character is not whole: it has four bytes at most. */
const MOST_HELD = 3;

/**
 * Decode a file and make its model and tokenizer.
 *
 * @param {ArrayBuffer | Uint8Array} file
 * @param {{tokenizer?: Uint8Array, progress?: (share: number) => void}} [options] tokenizer is the
 *     SentencePiece model of a golf file; files of other families bring theirs.
 * @throws {ArtifactError} see `decode` and `openModel`; or the tokenizer is not the model's.
 */
export async function open(file, { tokenizer, progress } = {}) {
  const decoded = await decode(file, { progress });
  return new Speaker(decoded, openModel(decoded), tokenizerOf(decoded, tokenizer));
}

function tokenizerOf({ header, files, wasm }, given) {
  const brought = files.get("tokenizer.json");
  const bytes = brought ?? given;
  if (!bytes)
    throw new ArtifactError(
      "the file brings no tokenizer; give it the SentencePiece model that it was trained with",
    );
  const known = header.tokenizer?.sha256;
  if (known && wasm.sha256(bytes) !== known)
    throw new ArtifactError("the tokenizer is not the one that the model was trained with");
  if (!brought) return new SentencePiece(bytes);
  const { values, bos, begins } = header.model;
  const stops = [values.eos_token_id].flat().filter(Number.isInteger);
  return new HuggingFace(bytes, { begins: begins ? bos : null, stops });
}

/** A model that can be asked for text. */
export class Speaker {
  constructor({ header, files }, model, tokenizer) {
    Object.assign(this, { header, files, model, tokenizer });
  }

  /**
   * Text that follows `prompt`, in pieces, until the model ends it or `tokens` are drawn.
   *
   * Each piece is {text, tokens}: what was added, and how many tokens there are by now. `chat`, the
   * text [before, after] a message, makes a message of the prompt.
   */
  *generate(prompt, { tokens: most = 100, temperature = 0.8, chat, random } = {}) {
    const { model, tokenizer } = this;
    const given = chat
      ? tokenizer.encode(chat[0] + prompt + chat[1], { specials: true })
      : tokenizer.start(prompt);
    // a golf model's first token is BOS, which is no text
    const said = (ids) => tokenizer.decode(tokenizer instanceof SentencePiece ? ids.slice(1) : ids);
    model.reset();
    let logits = model.feed(given);
    const all = [...given];
    let shown = said(all),
      held = 0,
      drawn = 0;
    while (drawn < most) {
      const token = pick(logits, temperature, random);
      if (tokenizer.stops.has(token)) break;
      all.push(token);
      drawn++;
      held++;
      const text = said(all);
      // bytes that are part of no character are given out as such, once that is clear
      if (!text.endsWith(UNFINISHED) || held > MOST_HELD) {
        yield { text: text.slice(shown.length), tokens: drawn };
        shown = text;
        held = 0;
      }
      if (drawn < most) logits = model.feed([token]);
    }
    const rest = said(all).slice(shown.length);
    if (rest) yield { text: rest, tokens: drawn };
  }
}
