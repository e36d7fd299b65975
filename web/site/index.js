// The package's public surface; index.d.ts has its types.
export { load } from "./client.js";
export { decode } from "./decode.js";
export { ArtifactError } from "./errors.js";
export { HuggingFace } from "./huggingface.js";
export { openModel, pick } from "./model.js";
export { SentencePiece } from "./sentencepiece.js";
export { open } from "./speak.js";
