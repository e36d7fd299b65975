// Requests, a line of JSON each -> answers, a line each: the browser's code under node, for
// test_web*.py.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import zlib from "node:zlib";
import {
  ArtifactError,
  decode,
  HuggingFace,
  openModel,
  pick,
  SentencePiece,
} from "../web/site/index.js";
import { Wasm } from "../web/site/wasm.js";

/** Of a decoded file: of each tensor and file its shape, if any, and the SHA-256 of its bytes. */
async function decoded(bytes) {
  const { tensors, files } = await decode(bytes);
  const sha = (bytes) => createHash("sha256").update(bytes).digest("hex");
  const found = [...tensors].map(([name, { shape, values }]) => [
    name,
    shape,
    sha(new Uint8Array(values.buffer, values.byteOffset, values.byteLength)),
  ]);
  return { tensors: found, files: [...files].map(([name, bytes]) => [name, sha(bytes)]) };
}

/**
 * The answer, or a sentence for people; `fault` is an error that no file may cause, with its stack.
 */
async function tried(work) {
  try {
    return await work();
  } catch (error) {
    return error instanceof ArtifactError ? { error: error.message } : { fault: error.stack };
  }
}

const TASKS = {
  decode: ({ path }) => decoded(readFileSync(path)),

  /**
   * Ids of each of the texts, the texts of those ids, and ids where special tokens count as such.
   */
  tokens({ path, texts }) {
    const bytes = new Uint8Array(readFileSync(path));
    const tokenizer = path.endsWith(".json") ? new HuggingFace(bytes) : new SentencePiece(bytes);
    const ids = JSON.parse(readFileSync(texts, "utf8")).map((text) => tokenizer.encode(text));
    return { ids, decoded: ids.map((each) => tokenizer.decode(each)) };
  },

  /** The token that each of `randoms` draws. */
  draw: ({ logits, temperature, randoms }) =>
    randoms.map((r) => pick(Float32Array.from(logits), temperature, () => r)),

  /**
   * The likeliest tokens after `tokens`, and the first one's logits; `split` tokens are fed first.
   */
  async generate({ path, tokens, count, split = 0 }) {
    const model = openModel(await decode(readFileSync(path)));
    if (split) model.feed(tokens.slice(0, split));
    let logits = model.feed(tokens.slice(split));
    const first = [...logits],
      found = [];
    while (found.length < count) {
      found.push(pick(logits, 0));
      logits = model.feed(found.slice(-1));
    }
    return { tokens: found, logits: first };
  },

  /** How many streams of a file by node's brotli were tried, and which settings came back wrong. */
  async brotli({ path }) {
    const wasm = await Wasm.make();
    await wasm.learnWords();
    const source = readFileSync(path).subarray(0, 60000),
      wrong = [];
    let streams = 0;
    for (const quality of [0, 1, 4, 5, 9, 11]) {
      for (const window of [10, 16, 24]) {
        for (const mode of [0, 1]) {
          const postfix = streams % 4,
            { constants } = zlib;
          const params = {
            [constants.BROTLI_PARAM_QUALITY]: quality,
            [constants.BROTLI_PARAM_LGWIN]: window,
            [constants.BROTLI_PARAM_MODE]: mode,
            [constants.BROTLI_PARAM_NPOSTFIX]: postfix,
            [constants.BROTLI_PARAM_NDIRECT]: (streams++ % 16) << postfix,
          };
          const stored = new Uint8Array(zlib.brotliCompressSync(source, { params }));
          const same = () =>
            Buffer.compare(wasm.expanded("brotli", stored, source.length), source) === 0;
          const refused = (bytes, size) => {
            try {
              wasm.expanded("brotli", bytes, size);
              return false;
            } catch (error) {
              return error instanceof ArtifactError;
            }
          };
          if (
            !same() ||
            !refused(stored.subarray(0, -1), source.length) ||
            !refused(stored, source.length - 1)
          ) {
            wrong.push(params);
          }
        }
      }
    }
    return { streams, wrong };
  },

  /** Many files in one, each after its length as u32. */
  async corpus({ path }) {
    const all = readFileSync(path);
    const answers = [];
    for (let at = 0; at < all.length;) {
      const start = at + 4;
      at = start + all.readUInt32LE(at);
      answers.push(await tried(() => decoded(all.subarray(start, at))));
    }
    return answers;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { task, ...request } = JSON.parse(line);
  console.log(JSON.stringify(await tried(() => TASKS[task](request))));
}
