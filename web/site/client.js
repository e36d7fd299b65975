// The address of a file -> its model in a worker, which a page can ask for text.
import { ArtifactError } from "./errors.js";

/**
 * Fetch, decode and open a model in a worker.
 *
 * @param {string | URL} model address of the packed file, from that of the page.
 * @param {object} [options]
 * @param {string | URL} [options.tokenizer] address of a golf file's SentencePiece model.
 * @param {string} [options.cache] name of the cache that keeps what was fetched; else nothing does.
 * @param {(stage: "download" | "decode", share: number, bytes?: number) => void} [options.progress]
 * @throws {ArtifactError} the file cannot be had, is damaged, or is of a model that cannot run
 *     here.
 */
export async function load(model, { tokenizer, cache, progress = () => {} } = {}) {
  const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  const found = new Loaded(worker);
  const here = globalThis.document?.baseURI ?? location.href;
  const absolute = (address) => address && new URL(address, here).href;
  worker.postMessage({
    task: "load",
    model: absolute(model),
    tokenizer: absolute(tokenizer),
    cache,
  });
  try {
    for (;;) {
      const message = await found.next();
      if (message.ready) return Object.assign(found, message.ready);
      progress(message.stage, message.share, message.bytes);
    }
  } catch (error) {
    found.close();
    throw error;
  }
}

/**
 * A model in a worker: `header` and `files` of its file, and `context`, the tokens of its window.
 */
class Loaded {
  constructor(worker) {
    this.worker = worker;
    this.messages = [];
    this.wake = () => {};
    worker.onmessage = ({ data }) => {
      this.messages.push(data);
      this.wake();
    };
    worker.onerror = (event) =>
      worker.onmessage({ data: { error: event.message || "the worker cannot be started" } });
  }

  async next() {
    while (!this.messages.length) await new Promise((resolve) => (this.wake = resolve));
    const message = this.messages.shift();
    if (message.error) throw new (message.known ? ArtifactError : Error)(message.error);
    return message;
  }

  /**
   * Text that follows a prompt, in pieces {text, tokens}; one prompt at a time.
   *
   * @param {string} prompt
   * @param {{tokens?: number, temperature?: number, chat?: [string, string]}} [options]
   */
  async *generate(prompt, options) {
    this.stopped = false;
    let message = { task: "start", prompt, options };
    while (!this.stopped) {
      this.worker.postMessage(message);
      const { piece } = await this.next();
      if (!piece || this.stopped) return;
      yield piece;
      message = { task: "next" };
    }
  }

  /** End the text that is being generated; what was asked for already is not given out. */
  stop() {
    this.stopped = true;
  }

  /** End the worker, and give its memory back. */
  close() {
    this.worker.terminate();
  }
}
