// The module's exports.
export { alloc, mark, release } from "./memory";
export { shaBegin, shaUpdate, shaEnd } from "./sha256";
export { decodeVector, decodeMatrices } from "./range";
export { grid, rowsOfBytes, halves, brainFloats, finite, fromPlanes, transpose } from "./values";
export { inflate } from "./inflate";
export { unbrotli } from "./brotli";
export { lzma2 } from "./lzma";
export { unzstd } from "./zstd";
export {
  matmul,
  rmsNorm,
  rotate,
  attend,
  addScaled,
  add,
  blend,
  siluTimes,
  squaredRectifier,
  removeOwnValue,
} from "./kernels";
