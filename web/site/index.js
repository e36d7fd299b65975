// The package's public surface; index.d.ts has its types.
export { decode } from "./decode.js";
export { ArtifactError } from "./errors.js";
