// The `model` of a header -> the same, checked: what docs/format.md says of each family's fields.
import { ArtifactError, short } from "./errors.js";

export const MAX_VOCAB = 1 << 20;
const MAX_VOCAB_1 = 65536;

/** golf's fields and the values that they have where they are not there. */
const GOLF = {
  vocab: 1024,
  layers: 9,
  width: 512,
  heads: 8,
  kv_heads: 4,
  mlp_hidden: 1024,
  activation: "relu2",
  context: 1024,
  tied_embedding: true,
  rope_base: 10000,
  rope_dims: 0,
  rope_ntk_context: 0,
  qk_gain: 1.5,
  logit_softcap: 30,
  xsa_layers: 0,
  bigram_rows: 0,
  bigram_width: 0,
  smear_gate: false,
  smear_across_documents: false,
  bos: 1,
  value_embedding_layers: [],
  value_embedding_width: 0,
  ln_scale: false,
  orthogonal_init: false,
  skip_gates: false,
  attention_gate_inputs: 0,
  loop_start: 0,
  loop_layers: 0,
  loops: 0,
  parallel_layers: 0,
  parallel_lanes: 1,
  document_mask: false,
  architecture: "golf",
  value_tables: 0,
  attention_free_layers: [],
  mlp_free_layers: [],
  windows: [],
  short_windows: [],
  long_window_layers: [],
  window_yarn: false,
};
const FLOATS = ["rope_base", "qk_gain", "logit_softcap"];
const LARGEST_INTEGER = 2n ** 63n;
const LEAST_FLOAT = 2 ** -126;
const MOST_FLOAT = (2 - 2 ** -23) * 2 ** 127;
const MAX_CONTEXT = 1 << 20;
/** Layers that a model may run, each counted as often as it does. */
const MOST_PASSES = 4096;

export function isInteger(value, low, high) {
  return Number.isInteger(value) && low <= value && value <= high;
}

function isFloat32(value) {
  return LEAST_FLOAT <= value && value <= MOST_FLOAT;
}

/** Whether a number of the header fits in 64 bits. */
export function fits(value) {
  if (typeof value === "bigint") return -LARGEST_INTEGER < value && value < LARGEST_INTEGER;
  return typeof value === "number" || value instanceof Number;
}

/** Whether `value` is an object of exactly these keys. */
export function hasKeys(value, keys) {
  return isObject(value) && Object.keys(value).sort().join() === [...keys].sort().join();
}

export function isObject(value) {
  return (
    value !== null &&
    typeof value === "object" &&
    !Array.isArray(value) &&
    !(value instanceof Number)
  );
}

/** @throws {ArtifactError} the format allows no such model. */
export function checkModel(family, model, version) {
  if (!isObject(model)) throw new ArtifactError(`model is ${short(model)}, must be an object`);
  const problem = PROBLEMS[family](model, version);
  if (problem) throw new ArtifactError(`the header's model is not one: ${problem}`);
}

const PROBLEMS = {
  golf(model, version) {
    for (const [key, value] of Object.entries(model)) {
      if (!Object.hasOwn(GOLF, key)) return `it has an unknown field ${short(key)}`;
      if (!sameType(key, value)) return `${key} is ${short(value)}`;
    }
    const m = golfFields(model);
    const kv = (m.width / m.heads) * m.kv_heads;
    const loopEnd = m.loop_start + m.loop_layers;
    const few = ["vocab", "layers", "width", "heads", "kv_heads", "mlp_hidden", "context"];
    const none = [
      "bigram_rows",
      "bigram_width",
      "value_embedding_width",
      "loop_start",
      "loop_layers",
      "loops",
    ];
    const holds = [
      [few.every((key) => m[key] >= 1), `${few.join(", ")} must be at least 1`],
      [none.every((key) => m[key] >= 0), `${none.join(", ")} must not be negative`],
      [m.vocab <= (version === 1 ? MAX_VOCAB_1 : MAX_VOCAB), "vocab is too large"],
      [m.context <= MAX_CONTEXT, "context is too large"],
      [m.layers + m.loop_layers * m.loops <= MOST_PASSES, "its layers run too often"],
      [
        FLOATS.every((key) => m[key] === 0 || isFloat32(Math.abs(m[key]))),
        `${FLOATS.join(", ")} must be numbers of float32`,
      ],
      [
        m.width % m.heads === 0 && m.heads % m.kv_heads === 0 && kv % 2 === 0,
        "heads do not divide width evenly",
      ],
      [(m.width / m.heads) % 2 === 0, "the width of a head must be even"],
      [
        m.rope_dims % 2 === 0 && isInteger(m.rope_dims, 0, m.width / m.heads),
        "rope_dims is out of range",
      ],
      [isInteger(m.xsa_layers, 0, m.layers), "xsa_layers is out of range"],
      [m.logit_softcap > 0 && m.rope_base > 0, "logit_softcap and rope_base must be positive"],
      [isInteger(m.bos, 0, m.vocab - 1), "bos is out of range"],
      [
        m.bigram_rows > 0 === m.bigram_width > 0 && m.bigram_rows !== 1,
        "bigram_rows and bigram_width go together",
      ],
      [
        m.value_embedding_layers.length > 0 === m.value_embedding_width > 0,
        "value embeddings have no width",
      ],
      [
        m.value_embedding_layers.every((layer) => isInteger(layer, 0, m.layers - 1)),
        "a value embedding of no layer",
      ],
      [
        new Set(m.value_embedding_layers).size === m.value_embedding_layers.length,
        "value embeddings twice in a layer",
      ],
      [
        !m.smear_across_documents || m.smear_gate,
        "smear_across_documents means nothing without smear_gate",
      ],
      [isInteger(m.attention_gate_inputs, 0, m.width), "attention_gate_inputs is out of range"],
      [
        m.loop_layers > 0 === m.loops > 0 && (!m.loop_start || m.loops > 0),
        "loop_layers and loops go together",
      ],
      [loopEnd <= m.layers, "the loop ends beyond the layers"],
      [isInteger(m.parallel_layers, 0, m.layers), "parallel_layers is out of range"],
      [
        m.parallel_lanes === 1 || (m.parallel_lanes === 2 && m.parallel_layers > 0),
        "parallel_lanes is out of range",
      ],
      [
        !m.loops || loopEnd <= m.layers - m.parallel_layers,
        "the loop reaches into the parallel layers",
      ],
    ];
    return holds.find(([right]) => !right)?.[1];
  },

  transformers(model) {
    if (!hasKeys(model, ["values", "context", "bos", "begins"]))
      return "it must have begins, bos, context, values";
    const { values, context, bos, begins } = model;
    if (!isObject(values)) return "its values must be an object";
    if (
      typeof values.model_type !== "string" ||
      !/^[A-Za-z0-9._-]{1,100}$/.test(values.model_type)
    ) {
      return `model_type ${short(values.model_type)} is no name of a model`;
    }
    if (!everyNumberFits(values)) return "it has a number that does not fit in 64 bits";
    if (!isInteger(values.vocab_size, 1, MAX_VOCAB))
      return `vocab_size is ${short(values.vocab_size)}`;
    if (typeof begins !== "boolean") return `begins is ${short(begins)}`;
    return contextProblem(context, bos, values.vocab_size);
  },

  module(model) {
    if (!hasKeys(model, ["values", "context", "bos", "vocab"]))
      return "it must have bos, context, values, vocab";
    if (!isObject(model.values)) return "its values must be an object";
    if (!isInteger(model.vocab, 1, MAX_VOCAB)) return `vocab is ${short(model.vocab)}`;
    return contextProblem(model.context, model.bos, model.vocab);
  },
};

export const FAMILIES = Object.keys(PROBLEMS);

/** golf's fields, all of them, as plain numbers. */
export function golfFields(model) {
  const found = { ...GOLF, ...model };
  for (const key of FLOATS) found[key] = Number(found[key]);
  return found;
}

function sameType(key, value) {
  const normal = GOLF[key];
  if (FLOATS.includes(key)) return fits(value);
  if (Array.isArray(normal)) return Array.isArray(value) && value.every(Number.isSafeInteger);
  if (key === "activation") return value === "relu2" || value === "leaky_relu2";
  if (key === "architecture") return value === "golf" || value === "speedrun";
  return typeof normal === "boolean" ? typeof value === "boolean" : Number.isSafeInteger(value);
}

function everyNumberFits(value) {
  if (value === null || typeof value !== "object") return typeof value !== "bigint" || fits(value);
  return value instanceof Number || Object.values(value).every(everyNumberFits);
}

function contextProblem(context, bos, vocab) {
  if (!isInteger(context, 2, 1 << 20)) return `context is ${short(context)}`;
  if (!isInteger(bos, 0, vocab - 1)) return `bos is ${short(bos)}`;
  return undefined;
}
