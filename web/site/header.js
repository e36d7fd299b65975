// The front of a file -> its header, checked by every rule of docs/format.md before anything is
// decoded.
import { ArtifactError, short } from "./errors.js";
import { checkModel, FAMILIES, fits, hasKeys, isInteger, isObject, MAX_VOCAB } from "./families.js";
import { parseCanonical, plain } from "./json.js";
import { hex } from "./wasm.js";

const MAGIC = "\x89GPTPK\r\n";
const PREAMBLE = 60;
const NEWEST = 2;
const MOST_HEADER = 1 << 20;
const MOST_DIMENSION = 2 ** 48 - 1;
const MOST_FILES = 64;

const whole = (shape) => shape;
const rows = (shape) => shape.slice(0, 1);
const columns = (shape) => shape.slice(1, 2);
const scalar = () => [];
const GRID = [
  ["row_scales", 2, rows],
  ["column_scales", 2, columns],
  ["codes", 2, whole],
];
const OFFSETS = [...GRID.slice(0, 2), ["column_offsets", 2, columns], GRID[2]];
/**
 * Of each method the rank that it takes, if one alone, and its arrays in the order of their
 * sections: name, bytes of a value, shape.
 */
export const METHODS = {
  float32: { arrays: [["values", 4, whole]] },
  float16: { arrays: [["values", 2, whole]] },
  bfloat16: { arrays: [["values", 2, whole]] },
  int8: {
    rank: 2,
    arrays: [
      ["scales", 2, rows],
      ["codes", 1, whole],
    ],
  },
  "int8-tensor": {
    arrays: [
      ["scales", 4, scalar],
      ["codes", 1, whole],
    ],
  },
  uniform: { rank: 2, arrays: GRID },
  trellis: { rank: 2, arrays: GRID },
  "uniform-offsets": { rank: 2, arrays: OFFSETS },
  "trellis-offsets": { rank: 2, arrays: OFFSETS },
};
const STATES = [4, 8, 16, 32, 64, 128, 256];
const CODECS = ["raw", "zlib", "zstd", "lzma", "range", "brotli"];
const LAYOUTS = ["row", "column", "planes"];

const known = (table) => Object.keys(table).join(", ");
const counted = (count) => count.toLocaleString("en");
export const product = (shape) => shape.reduce((a, b) => a * b, 1);

function refuse(message) {
  throw new ArtifactError(message);
}

/**
 * The header of a file, of which `bytes` are all.
 *
 * `wasm` inflates and hashes. Returns the header's values as the file has them, beside `version`
 * and `sections_start`, the byte at which the first section begins.
 */
export function readHeader(bytes, wasm) {
  if (!bytes.length) refuse("the file is empty");
  const magic = String.fromCharCode(...bytes.subarray(0, 8));
  if (magic !== MAGIC) {
    refuse(
      magic.startsWith(MAGIC.slice(0, 6))
        ? "line ends were converted in transfer; copy the file again as binary"
        : "this is no gptpack file",
    );
  }
  if (bytes.length < PREAMBLE) refuse("the file ends within its first 60 bytes; get it again");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const version = view.getUint16(8, true),
    flags = view.getUint16(10, true);
  const stored = view.getUint32(12, true),
    raw = view.getUint32(16, true);
  const size = view.getUint32(20, true) + view.getUint32(24, true) * 2 ** 32;
  if (version < 1 || version > NEWEST)
    refuse(`format version ${version}, this page reads versions 1 to ${NEWEST}`);
  if (flags > 1) refuse(`flags ${flags} have bits that version ${version} does not know`);
  if (size !== bytes.length) {
    refuse(`the file has ${counted(bytes.length)} bytes but says ${counted(size)}; get it again`);
  }
  const start = PREAMBLE + stored;
  if (start > size) refuse("the header does not fit in the file");
  if (raw > Math.min(64 * stored + 65536, MOST_HEADER))
    refuse("the header is larger than its stored bytes may hold");
  if (!(flags & 1) && raw !== stored) refuse("the header is stored as it is, in another size");
  const front = new Uint8Array(28 + stored);
  front.set(bytes.subarray(0, 28));
  front.set(bytes.subarray(PREAMBLE, start), 28);
  if (wasm.sha256(front) !== hex(bytes.subarray(28, PREAMBLE)))
    refuse("the front of the file is damaged; get it again");
  let text = bytes.subarray(PREAMBLE, start);
  if (flags & 1) text = wasm.expanded("zlib", text, raw);
  const header = parse(text, version, size - start);
  return { ...header, version, sections_start: start };
}

function parse(bytes, version, left) {
  const ascii = new TextDecoder("latin1").decode(bytes);
  const values = parseCanonical(ascii);
  const keys = ["model", "pack", "sections", "tensors", "tokenizer", "weights_sha256"];
  if (version > 1) keys.push("family", "files");
  if (!hasKeys(values, keys)) refuse(`the header must be an object of ${keys.sort().join(", ")}`);
  const family = version > 1 ? values.family : "golf",
    files = version > 1 ? values.files : [];
  if (!FAMILIES.includes(family))
    refuse(`family ${short(family)}, this page knows ${FAMILIES.join(", ")}`);
  if (!isObject(values.pack)) refuse("the header's pack must be an object");
  if (!isDigest(values.weights_sha256, 64))
    refuse(`weights_sha256 is ${short(values.weights_sha256)}`);
  checkModel(family, values.model, version);
  checkTokenizer(values.tokenizer, family, version);
  checkTensors(values.tensors, version);
  checkFiles(files);
  checkSections(values.sections, values.tensors, files, left);
  return plain({ ...values, family, files });
}

function isDigest(value, digits) {
  return typeof value === "string" && value.length === digits && /^[0-9a-f]*$/.test(value);
}

function checkTokenizer(tokenizer, family, version) {
  if (tokenizer === null && family !== "golf") return;
  const most = version === 1 ? 65536 : MAX_VOCAB;
  if (
    !hasKeys(tokenizer, ["bos", "sha256", "vocab"]) ||
    !isDigest(tokenizer.sha256, 64) ||
    !isInteger(tokenizer.vocab, 1, most) ||
    !isInteger(tokenizer.bos, 0, tokenizer.vocab - 1)
  )
    refuse(`the header's tokenizer is ${short(tokenizer)}`);
}

function checkTensors(table, version) {
  if (!Array.isArray(table) || !table.length)
    refuse("the tensor table must be a list of at least one tensor");
  const seen = new Set();
  for (const row of table) {
    if (!Array.isArray(row) || row.length !== 5)
      refuse(`tensor row ${short(row)} must have 5 columns`);
    const [name, shape, method, parameters, record] = row;
    if (typeof name !== "string" || !/^[ -~]{1,200}$/.test(name))
      refuse(`tensor name ${short(name)} is none`);
    if (seen.has(name)) refuse(`tensor ${name} appears twice in the table`);
    seen.add(name);
    if (
      !Array.isArray(shape) ||
      shape.length > 4 ||
      !shape.every((n) => isInteger(n, 1, MOST_DIMENSION))
    ) {
      refuse(`tensor ${name} has shape ${short(shape)}`);
    }
    if (typeof method !== "string" || !Object.hasOwn(METHODS, method)) {
      refuse(`tensor ${name} has method ${short(method)}, this page knows ${known(METHODS)}`);
    }
    if ((METHODS[method].rank ?? shape.length) !== shape.length)
      refuse(`tensor ${name} of rank ${shape.length} is ${method}`);
    if (!isObject(parameters) || !Object.values(parameters).every(fits)) {
      refuse(`tensor ${name} has parameters that are not 64-bit numbers`);
    }
    const { states, transposed } = parameters;
    const right = method.startsWith("trellis") ? STATES.includes(states) : states === undefined;
    if (!right) refuse(`tensor ${name}: ${short(states)} trellis states, for method ${method}`);
    if (version > 1 && transposed !== undefined && (transposed !== 1 || shape.length !== 2)) {
      refuse(`tensor ${name}: transposed must be 1, and the tensor a matrix`);
    }
    if (!isObject(record)) refuse(`tensor ${name} has a record that is not an object`);
  }
}

function checkFiles(table) {
  if (!Array.isArray(table) || table.length > MOST_FILES)
    refuse(`files must be a list of at most ${MOST_FILES}`);
  const seen = new Set();
  for (const row of table) {
    if (!Array.isArray(row) || row.length !== 2)
      refuse(`file row ${short(row)} must have 2 columns`);
    const [name, size] = row;
    if (
      typeof name !== "string" ||
      !/^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$/.test(name) ||
      seen.has(name)
    ) {
      refuse(`file name ${short(name)} is none, or appears twice`);
    }
    seen.add(name);
    if (!isInteger(size, 0, MOST_DIMENSION)) refuse(`file ${name} has ${short(size)} bytes`);
  }
}

/** The sections that a tensor table calls for: name, the rows of the table, and the array. */
export function planSections(tensors) {
  const members = new Map();
  tensors.forEach(([, , method], index) => {
    if (!members.has(method)) members.set(method, []);
    members.get(method).push(index);
  });
  return [...members].flatMap(([method, indexes]) =>
    METHODS[method].arrays.map(([array, size, shape]) => ({
      name: `${method}.${array}`,
      array,
      size,
      members: indexes,
      shapes: indexes.map((i) => shape(tensors[i][1])),
    })),
  );
}

function checkSections(table, tensors, files, left) {
  const plans = planSections(tensors).map(({ name, size, shapes }) => [
    name,
    size * shapes.reduce((sum, shape) => sum + product(shape), 0),
  ]);
  if (files.length) plans.push(["files", files.reduce((sum, [, size]) => sum + size, 0)]);
  if (!Array.isArray(table) || table.length !== plans.length) {
    refuse(`the section table must have ${plans.length} rows for these tensors`);
  }
  const all = left;
  plans.forEach(([planned, expected], index) => {
    const row = table[index];
    if (!Array.isArray(row) || row.length !== 6)
      refuse(`section row ${short(row)} must have 6 columns`);
    const [name, codec, layout, stored, raw, digest] = row;
    if (name !== planned) refuse(`section ${short(name)} stands where ${planned} must be`);
    if (!CODECS.includes(codec))
      refuse(`section ${name} has codec ${short(codec)}, this page knows ${CODECS.join(", ")}`);
    if (!LAYOUTS.includes(layout)) refuse(`section ${name} has layout ${short(layout)}`);
    if (name === "files" && (codec === "range" || layout !== "row"))
      refuse("section files has no such codec or layout");
    if (!isInteger(stored, 0, left))
      refuse(`section ${name} takes ${short(stored)} bytes, ${left} are left`);
    if (raw !== expected)
      refuse(`section ${name} declares ${short(raw)} raw bytes, its contents need ${expected}`);
    if (raw > (name === "files" ? 64 * stored : 128 * stored + all) + 65536)
      refuse(`section ${name} declares more raw bytes than ${stored} stored bytes may hold`);
    if (!isDigest(digest, 32)) refuse(`section ${name} has digest ${short(digest)}`);
    left -= stored;
  });
  if (left) refuse(`${left} bytes follow the last section`);
}
