// gptpack.wasm -> an instance of it, whose memory holds one model, and its functions.
import { ArtifactError } from "./errors.js";

const PAGE = new URL("gptpack.wasm", import.meta.url);
const WORDS = new URL("brotli.dictionary", import.meta.url);
const WORDS_BYTES = 122784;
const MOST_BYTES = 2 ** 32 - 2 ** 17;
let compiled;

/** The module, compiled once. */
function compile() {
  compiled ??= fetchBytes(PAGE).then((bytes) => {
    if (!WebAssembly.validate(bytes)) {
      throw new ArtifactError(
        "this browser lacks WebAssembly with SIMD; use one from 2023 or later",
      );
    }
    return WebAssembly.compile(bytes);
  });
  return compiled;
}

async function fetchBytes(url) {
  if (url.protocol === "file:") {
    const node = "node:fs/promises"; // a name that bundlers for browsers do not follow
    return (await import(node)).readFile(url);
  }
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url.pathname} cannot be had: ${answer.status}`);
  return answer.arrayBuffer();
}

export function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** An instance of the module: memory as a stack, and functions on what lies in it. */
export class Wasm {
  static async make() {
    return new Wasm(await compile());
  }

  constructor(module) {
    this.onProgress = () => {};
    const env = {
      fail: (message) => {
        const { buffer } = this.run.memory;
        const length = new Uint32Array(buffer, message - 4, 1)[0] / 2;
        throw new ArtifactError(String.fromCharCode(...new Uint16Array(buffer, message, length)));
      },
      progress: (share) => this.onProgress(share),
    };
    this.run = new WebAssembly.Instance(module, { env }).exports;
  }

  /** Where `bytes` bytes are free from now on. */
  alloc(bytes) {
    if (bytes > MOST_BYTES)
      throw new ArtifactError("the model does not fit into the memory that a page may have");
    return this.run.alloc(bytes) >>> 0;
  }

  /** What `work` returns; memory that it took is given back. */
  scratch(work) {
    const before = this.run.mark();
    const found = work();
    this.run.release(before);
    return found;
  }

  // Views; those made before memory grew are empty, so that none is kept.

  bytes(at, count) {
    return new Uint8Array(this.run.memory.buffer, at, count);
  }

  floats(at, count) {
    return new Float32Array(this.run.memory.buffer, at, count);
  }

  put(bytes) {
    const at = this.alloc(bytes.length);
    this.bytes(at, bytes.length).set(bytes);
    return at;
  }

  /** SHA-256 in hexadecimal. */
  sha256(bytes) {
    return this.scratch(() => {
      this.run.shaBegin();
      this.run.shaUpdate(this.put(bytes), bytes.length);
      return this.digest();
    });
  }

  /** The digest of what `shaUpdate` was given. */
  digest() {
    return this.scratch(() => {
      const at = this.alloc(32);
      this.run.shaEnd(at);
      return hex(this.bytes(at, 32));
    });
  }

  /**
   * Expand a stream of `stored` bytes at `from`, by a codec of bytes, to exactly `size` at `to`.
   */
  expand(codec, from, stored, to, size) {
    if (codec === "raw") {
      if (stored !== size) throw new ArtifactError("a raw section of another size than declared");
      this.bytes(to, size).set(this.bytes(from, stored));
    } else if (codec === "zlib") this.run.inflate(from, stored, to, size);
    else if (codec === "zstd") this.run.unzstd(from, stored, to, size);
    else if (codec === "lzma") {
      const power = 2 ** Math.max(12, Math.ceil(Math.log2(Math.max(size, 1))));
      this.run.lzma2(from, stored, to, size, Math.min(power, 2 ** 24));
    } else this.run.unbrotli(from, stored, to, size, this.words);
  }

  /** Fetch the words that brotli's streams may name; most files do without. */
  async learnWords() {
    const stored = new Uint8Array(await fetchBytes(WORDS));
    this.words = this.put(this.expanded("zlib", stored, WORDS_BYTES));
  }

  /** The same of bytes from outside, which come back as a copy. */
  expanded(codec, stored, size) {
    return this.scratch(() => {
      const to = this.alloc(size);
      this.expand(codec, this.put(stored), stored.length, to, size);
      return this.bytes(to, size).slice();
    });
  }
}
