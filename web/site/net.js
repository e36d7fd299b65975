// Weights of a decoded file -> what every model is made of: checked tensors, buffers, rotary
// angles.
import { ArtifactError } from "./errors.js";

/** Positions that go through the layers together. */
export const CHUNK = 16;
const MOST_CONTEXT = 4096;

/**
 * A model whose layers remember keys and values. What extends it has `run`, and calls `remember`.
 */
export class Net {
  /** @param {object} decoded what `decode` returned. */
  constructor({ tensors, wasm }, context) {
    Object.assign(this, { tensors, wasm, run: wasm.run });
    this.context = Math.min(context, MOST_CONTEXT);
    /** Tokens whose keys and values are remembered. */
    this.tokens = [];
  }

  /**
   * Logits of the token that follows all tokens so far and these; float32, by token.
   *
   * @throws {ArtifactError} the window is full, or a token is beyond the vocabulary.
   */
  feed(tokens) {
    if (!tokens.length)
      throw new ArtifactError(
        "an empty prompt gives this model nothing to begin with; write a word",
      );
    if (this.tokens.length + tokens.length > this.context) {
      throw new ArtifactError(
        `the text is longer than the ${this.context} tokens of the model's window`,
      );
    }
    if (tokens.some((token) => !(token < this.vocab)))
      throw new ArtifactError("a token beyond the model's vocabulary");
    for (let start = 0; start < tokens.length; start += CHUNK) {
      const chunk = tokens.slice(start, start + CHUNK);
      this.forward(chunk, this.tokens.length, start + CHUNK >= tokens.length);
      this.tokens.push(...chunk);
    }
    return this.wasm.floats(this.logits, this.vocab).slice();
  }

  /** Forget all tokens. */
  reset() {
    this.tokens = [];
  }

  has(name) {
    return this.tensors.has(name);
  }

  /** Where a tensor of this shape lies. */
  weight(name, ...shape) {
    const tensor = this.tensors.get(name);
    if (!tensor) throw new ArtifactError(`the file has no tensor ${name}, which its model needs`);
    if (tensor.shape.join() !== shape.join()) {
      throw new ArtifactError(
        `tensor ${name} has shape [${tensor.shape}], its model needs [${shape}]`,
      );
    }
    return tensor.at;
  }

  scalar(name, ...shape) {
    return this.wasm.floats(this.weight(name, ...shape), 1)[0];
  }

  /** Room for so many float32. */
  room(count) {
    return this.wasm.alloc(4 * count);
  }

  copy(from, to, count) {
    this.wasm.floats(to, count).set(this.wasm.floats(from, count));
  }

  /** Rows of a table [_, width] by their numbers, at `to`. */
  rows(table, numbers, width, to) {
    numbers.forEach((row, i) => this.copy(table + 4 * row * width, to + 4 * i * width, width));
  }

  /** Keys and values of every layer: where they begin, layer by layer. */
  remember(layers, groups, width) {
    this.kvWidth = groups * width;
    const bytes = 4 * this.context * this.kvWidth;
    const all = this.wasm.alloc(2 * layers * bytes);
    this.keys = (layer, position = 0) => all + 2 * layer * bytes + 4 * position * this.kvWidth;
    this.values = (layer, position = 0) => this.keys(layer, position) + bytes;
    this.scores = this.room(this.context);
  }

  /**
   * Cosines and sines of a chunk's positions, at `to` and behind: the float32 of angles in float32.
   *
   * `sign` -1 turns the other way.
   */
  angles(frequencies, start, count, to, sign = 1) {
    const half = frequencies.length;
    const cos = this.wasm.floats(to, count * half),
      sin = this.wasm.floats(to + 4 * CHUNK * half, count * half);
    for (let t = 0; t < count; t++) {
      for (let i = 0; i < half; i++) {
        const angle = Math.fround((start + t) * frequencies[i]);
        cos[t * half + i] = Math.cos(angle);
        sin[t * half + i] = sign * Math.sin(angle);
      }
    }
  }

  /** Rotate heads [count, heads, width] by the angles at `angles`. */
  rotate(x, angles, heads, width, half, count) {
    this.run.rotate(x, angles, angles + 4 * CHUNK * half, heads, width, half, count);
  }
}

/** Frequencies of rotary angles, base^(-2 i / dims), in float32. */
export function frequencies(base, dims) {
  return Array.from({ length: dims / 2 }, (_, i) =>
    Math.fround(base ** -Math.fround((2 * i) / dims)),
  );
}
