/** Opens gptpack files in the browser: decodes their weights bit for bit, and runs their models. */

/** A file or a model that cannot be opened; its message is one sentence for people. */
export class ArtifactError extends Error {}

/**
 * The header's values as docs/format.md names them; whatever is in `pack` and `record` may be
 * hostile.
 */
export interface Header {
  version: 1 | 2;
  family: "golf" | "transformers" | "module";
  model: Record<string, any>;
  tokenizer: { sha256: string; vocab: number; bos: number } | null;
  /** Name, shape as coded, method, parameters, record. */
  tensors: [string, number[], string, Record<string, number>, Record<string, unknown>][];
  files: [string, number][];
  /** Name, codec, layout, stored bytes, raw bytes, digest. */
  sections: [string, string, string, number, number, string][];
  /** SHA-256 over the float32 weights, which `decode` has checked. */
  weights_sha256: string;
  pack: Record<string, any>;
}

export interface Tensor {
  /** Shape in the model's state. */
  readonly shape: number[];
  /** Row-major float32: a view of the module's memory, to be read anew after memory has grown. */
  readonly values: Float32Array;
}

export interface Decoded {
  header: Header;
  tensors: Map<string, Tensor>;
  /** The files that go with the model, such as its tokenizer and its licence. */
  files: Map<string, Uint8Array>;
}

/**
 * Decode a whole file, in the thread that asks, and check every digest and the weights' hash.
 *
 * @throws {ArtifactError} the file is damaged, hostile, or too large for this machine.
 */
export function decode(
  file: ArrayBuffer | Uint8Array,
  options?: { progress?: (share: number) => void },
): Promise<Decoded>;

export interface Model {
  readonly vocab: number;
  /** Tokens of its window. */
  readonly context: number;
  /** Logits of the token that follows all tokens so far and these. */
  feed(tokens: number[]): Float32Array;
  /** Forget all tokens. */
  reset(): void;
}

/**
 * @throws {ArtifactError} the tensors are not those of the file's model, or this package cannot run
 * it.
 */
export function openModel(decoded: Decoded): Model;

/** The likeliest token at temperature 0, and else one drawn by numbers from 0 to 1. */
export function pick(logits: Float32Array, temperature: number, random?: () => number): number;

export interface Tokenizer {
  readonly stops: Set<number>;
  /** The tokens that the model is given for a text to go on from. */
  start(text: string): number[];
  /** Ids of a text, with none before and none after. */
  encode(text: string): number[];
  decode(ids: number[]): string;
}

/** A SentencePiece model, BPE or unigram. */
export class SentencePiece implements Tokenizer {
  constructor(file: Uint8Array);
  readonly stops: Set<number>;
  readonly bos: number;
  start(text: string): number[];
  encode(text: string): number[];
  decode(ids: number[]): string;
}

/** A tokenizer.json whose model is BPE. */
export class HuggingFace implements Tokenizer {
  constructor(file: Uint8Array, options?: { begins?: number | null; stops?: number[] });
  readonly stops: Set<number>;
  start(text: string): number[];
  encode(text: string, options?: { specials?: boolean }): number[];
  decode(ids: number[]): string;
}

export interface Asked {
  /** Tokens at most; 100 where nothing is said. */
  tokens?: number;
  /** 0 takes the likeliest token each time; 0.8 where nothing is said. */
  temperature?: number;
  /** What a chat template puts before and after a message: the prompt is then one. */
  chat?: [string, string];
}

export interface Piece {
  /** What was added to the text. */
  text: string;
  /** Tokens drawn by now. */
  tokens: number;
}

export interface Speaker {
  readonly header: Header;
  readonly files: Map<string, Uint8Array>;
  readonly model: Model;
  readonly tokenizer: Tokenizer;
  generate(prompt: string, options?: Asked & { random?: () => number }): Generator<Piece, void>;
}

/**
 * Decode a file and make its model and tokenizer, in the thread that asks: in a worker, or under
 * node.
 */
export function open(
  file: ArrayBuffer | Uint8Array,
  options?: { tokenizer?: Uint8Array; progress?: (share: number) => void },
): Promise<Speaker>;

export interface Loaded {
  readonly header: Header;
  readonly files: Map<string, Uint8Array>;
  readonly context: number;
  /** Text that follows a prompt, in pieces; one prompt at a time. */
  generate(prompt: string, options?: Asked): AsyncGenerator<Piece, void>;
  /** End the text that is being generated. */
  stop(): void;
  /** End the worker, and give its memory back. */
  close(): void;
}

/**
 * Fetch, decode and open a model in a worker.
 *
 * A golf file needs the address of its SentencePiece model as `tokenizer`. What was fetched is kept
 * in the cache of the name `cache`, if one is given.
 *
 * @throws {ArtifactError} the file cannot be had, is damaged, or is of a model that cannot run
 *     here.
 */
export function load(
  model: string | URL,
  options?: {
    tokenizer?: string | URL;
    cache?: string;
    progress?: (stage: "download" | "decode", share: number, bytes?: number) => void;
  },
): Promise<Loaded>;
