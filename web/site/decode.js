// The bytes of a gptpack file -> header, tensors and files, bit for bit. docs/format.md specifies
// it.
import { ArtifactError } from "./errors.js";
import { planSections, product, readHeader } from "./header.js";
import { Wasm } from "./wasm.js";

const STRUCT = 28; // bytes of a matrix in assembly/range.ts
/** Share of the time that sections take; the rest goes to values and their hash. */
const SECTIONS_SHARE = 0.7;

/** A tensor in the module's memory; `values` is a view that lasts until memory grows. */
export class Tensor {
  constructor(wasm, shape, at) {
    Object.assign(this, { wasm, shape, at });
  }

  get size() {
    return product(this.shape);
  }

  get values() {
    return this.wasm.floats(this.at, this.size);
  }
}

/**
 * Decode a whole file and check the hash of its weights.
 *
 * @param {ArrayBuffer | Uint8Array} file
 * @param {{progress?: (share: number) => void}} [options] progress is told shares from 0 to 1.
 * @returns {Promise<{header: object, tensors: Map<string, Tensor>, files: Map<string, Uint8Array>,
 *     wasm: Wasm}>}
 * @throws {ArtifactError} the file is damaged, hostile, or too large for this machine.
 */
export async function decode(file, { progress = () => {} } = {}) {
  const wasm = await Wasm.make();
  const bytes = file instanceof Uint8Array ? file : new Uint8Array(file);
  const header = readHeader(bytes, wasm);
  if (header.sections.some(([, codec]) => codec === "brotli")) await wasm.learnWords();
  const sizes = header.tensors.map(([, shape]) => 4 * product(shape));
  const total = sizes.reduce((a, b) => a + b, 0);
  if (total > 2 ** 32)
    throw new ArtifactError("the model does not fit into the memory that a page may have");
  const places = sizes.map((size) => wasm.alloc(size));
  const files = new Map();
  wasm.scratch(() => {
    const arrays = decodeSections(bytes, header, wasm, files, (share) =>
      progress(share * SECTIONS_SHARE),
    );
    let done = 0;
    wasm.run.shaBegin();
    header.tensors.forEach((row, index) => {
      setValues(row, arrays[index], places[index], wasm);
      hash(row, places[index], wasm);
      done += sizes[index];
      progress(SECTIONS_SHARE + ((1 - SECTIONS_SHARE) * done) / total);
    });
    if (wasm.digest() !== header.weights_sha256) {
      throw new ArtifactError(
        "the weights do not have the header's SHA-256: a faulty packer wrote this file",
      );
    }
  });
  const tensors = new Map();
  header.tensors.forEach(([name, [...shape], , parameters], index) => {
    if (parameters.transposed && header.version > 1) turn(places[index], shape.reverse(), wasm);
    tensors.set(name, new Tensor(wasm, shape, places[index]));
  });
  return { header, tensors, files, wasm };
}

/** Where the arrays of each tensor lie, by name; the files go into `files`. */
function decodeSections(bytes, header, wasm, files, progress) {
  const arrays = header.tensors.map(() => ({}));
  const rawOfAll = header.sections.reduce((sum, [, , , , raw]) => sum + raw, 0) || 1;
  let at = header.sections_start,
    done = 0;
  const plans = [...planSections(header.tensors), null];
  header.sections.forEach(([name, codec, layout, stored, raw, digest], index) => {
    const to = wasm.alloc(raw);
    wasm.onProgress = (share) => progress((done + share * raw) / rawOfAll);
    try {
      wasm.scratch(() => {
        const part = bytes.subarray(at, at + stored);
        const from = wasm.put(part);
        wasm.run.shaBegin();
        wasm.run.shaUpdate(from, stored);
        if (!wasm.digest().startsWith(digest))
          throw new ArtifactError("damaged; get the file again");
        if (codec === "range") decodeRange(plans[index], layout, from, stored, to, header, wasm);
        else if (plans[index] && layout !== "row")
          decodeLayout(plans[index], codec, layout, from, stored, to, raw, wasm);
        else wasm.expand(codec, from, stored, to, raw);
      });
    } catch (error) {
      throw error instanceof ArtifactError
        ? new ArtifactError(`section ${name}: ${error.message}`)
        : error;
    }
    let place = to;
    plans[index]?.members.forEach((member, k) => {
      arrays[member][plans[index].array] = place;
      place += plans[index].size * product(plans[index].shapes[k]);
    });
    if (!plans[index]) {
      for (const [file, size] of header.files) {
        files.set(file, wasm.bytes(place, size).slice());
        place += size;
      }
    }
    at += stored;
    done += raw;
    progress(done / rawOfAll);
  });
  return arrays;
}

function decodeLayout(plan, codec, layout, from, stored, to, raw, wasm) {
  let place = wasm.alloc(raw);
  wasm.expand(codec, from, stored, place, raw);
  if (layout === "planes") {
    wasm.run.fromPlanes(place, raw / plan.size, plan.size, to);
    return;
  }
  for (const shape of plan.shapes) {
    const [rows, columns] = shape.length === 2 ? shape : [product(shape), 1];
    wasm.run.transpose(place, rows, columns, plan.size, to);
    place += rows * columns * plan.size;
    to += rows * columns * plan.size;
  }
}

function decodeRange(plan, layout, from, stored, to, header, wasm) {
  const { name, size, shapes, members } = plan;
  const rank = shapes[0].length;
  const integers = /\.(codes|row_scales|column_scales)$/.test(name);
  if (
    layout !== "row" ||
    !integers ||
    ![1, 2].includes(rank) ||
    shapes.some((shape) => shape.length !== rank)
  ) {
    throw new ArtifactError(
      "the codec range holds integers, all of them vectors or all matrices, by rows",
    );
  }
  const wide = size === 2;
  if (rank === 1) {
    const count = shapes.reduce((sum, [n]) => sum + n, 0);
    wasm.run.decodeVector(from, stored, count, wide, to);
    return;
  }
  const trellis = name.startsWith("trellis");
  const matrices = wasm.alloc(STRUCT * shapes.length);
  shapes.forEach(([rows, columns], k) => {
    const states = header.tensors[members[k]][3].states ?? 0;
    new Uint32Array(wasm.run.memory.buffer, matrices + STRUCT * k, 4).set([
      rows,
      columns,
      states,
      to,
    ]);
    to += rows * columns * size;
  });
  wasm.run.decodeMatrices(from, stored, matrices, shapes.length, trellis, wide);
}

/** Write the float32 values of a tensor to `to`. */
function setValues([name, shape, method, parameters], held, to, wasm) {
  const count = product(shape),
    [rows, columns] = shape;
  const { codes, scales, values } = held;
  if (method === "float32") wasm.bytes(to, 4 * count).set(wasm.bytes(values, 4 * count));
  else if (method === "float16") wasm.run.halves(values, count, to);
  else if (method === "bfloat16") wasm.run.brainFloats(values, count, to);
  else if (method === "int8") wasm.run.rowsOfBytes(codes, scales, true, rows, columns, to);
  else if (method === "int8-tensor") wasm.run.rowsOfBytes(codes, scales, false, 1, count, to);
  else
    wasm.run.grid(
      codes,
      held.row_scales,
      held.column_scales,
      held.column_offsets ?? 0,
      rows,
      columns,
      parameters.states ?? 0,
      to,
    );
  if (!wasm.run.finite(to, count))
    throw new ArtifactError(`tensor ${name} has values that are not finite`);
}

/** Add a tensor to the hash that is being made: name, shape as coded, and values. */
function hash([name, shape], at, wasm) {
  const front = new Uint8Array(name.length + 2 + 8 * shape.length);
  front.set(new TextEncoder().encode(name));
  front[name.length + 1] = shape.length;
  const view = new DataView(front.buffer);
  shape.forEach((n, i) => view.setBigUint64(name.length + 2 + 8 * i, BigInt(n), true));
  wasm.scratch(() => wasm.run.shaUpdate(wasm.put(front), front.length));
  wasm.run.shaUpdate(at, 4 * product(shape));
}

/** Transpose in place to `shape`. */
function turn(at, shape, wasm) {
  const count = product(shape);
  wasm.scratch(() => {
    const copy = wasm.alloc(4 * count);
    wasm.bytes(copy, 4 * count).set(wasm.bytes(at, 4 * count));
    wasm.run.transpose(copy, shape[0], shape[1], 4, at);
  });
}
