// Tokens -> logits by models shaped like Llama (transformers' llama, mistral, qwen2, qwen3), in
// float32.
import { ArtifactError, short } from "./errors.js";
import { CHUNK, frequencies, Net } from "./net.js";

export const LLAMAS = ["llama", "mistral", "qwen2", "qwen3"];

export class Llama extends Net {
  constructor(decoded) {
    const { values, context } = decoded.header.model;
    super(decoded, context);
    const c = this.configuration(values);
    Object.assign(this, { c, vocab: c.vocab });
    this.embedding = this.weight("model.embed_tokens.weight", c.vocab, c.width);
    this.output = values.tie_word_embeddings
      ? this.embedding
      : this.weight("lm_head.weight", c.vocab, c.width);
    this.norm = this.weight("model.norm.weight", c.width);
    if (c.layers > this.tensors.size)
      throw new ArtifactError(`the file does not hold ${c.layers} layers`);
    this.layers = Array.from({ length: c.layers }, (_, layer) => this.layer(layer));
    this.remember(c.layers, c.groups, c.head);
    this.frequencies = frequencies(c.theta, c.head);
    for (const [name, width] of Object.entries({
      x: c.width,
      h: c.width,
      q: c.heads * c.head,
      y: c.heads * c.head,
      gate: c.hidden,
      up: c.hidden,
      angleTable: c.head,
    }))
      this[name] = this.room(CHUNK * width);
    this.logits = this.room(c.vocab);
  }

  /** The configuration's parts that are computed with; one that is not known is an error. */
  configuration(values) {
    const whole = (key, normal) => {
      const value = values[key] ?? normal;
      if (!Number.isInteger(value) || value < 1)
        throw new ArtifactError(`the model's ${key} is ${short(value)}`);
      return value;
    };
    const rope = {
      rope_theta: values.rope_theta,
      ...values.rope_scaling,
      ...values.rope_parameters,
    };
    const kind = rope.rope_type ?? rope.type ?? "default";
    const width = whole("hidden_size"),
      heads = whole("num_attention_heads");
    const window = (values.use_sliding_window ?? true) && values.sliding_window;
    const known = [
      ["hidden_act", values.hidden_act ?? "silu", "silu"],
      ["rope_type", kind, "default"],
      ["partial_rotary_factor", values.partial_rotary_factor ?? rope.partial_rotary_factor ?? 1, 1],
      ["sliding_window", window && window < this.context ? window : null, null],
    ];
    for (const [key, found, wanted] of known) {
      if (found !== wanted)
        throw new ArtifactError(`the model has ${key}=${short(found)}, which this page cannot run`);
    }
    const c = {
      vocab: values.vocab_size,
      width,
      heads,
      layers: whole("num_hidden_layers"),
      hidden: whole("intermediate_size"),
      groups: whole("num_key_value_heads", heads),
      head: whole("head_dim", width / heads),
      eps: Number(values.rms_norm_eps ?? 1e-6),
      theta: Number(rope.rope_theta ?? 10000),
    };
    if (c.heads % c.groups || c.head % 2)
      throw new ArtifactError("the model's heads do not divide evenly");
    return c;
  }

  layer(number) {
    const { c } = this,
      name = `model.layers.${number}`;
    const part = (path, ...shape) => this.weight(`${name}.${path}.weight`, ...shape);
    const maybe = (path, ...shape) =>
      this.has(`${name}.${path}`) ? this.weight(`${name}.${path}`, ...shape) : 0;
    const q = c.heads * c.head,
      kv = c.groups * c.head;
    return {
      before: part("input_layernorm", c.width),
      after: part("post_attention_layernorm", c.width),
      q: part("self_attn.q_proj", q, c.width),
      k: part("self_attn.k_proj", kv, c.width),
      v: part("self_attn.v_proj", kv, c.width),
      o: part("self_attn.o_proj", c.width, q),
      qBias: maybe("self_attn.q_proj.bias", q),
      kBias: maybe("self_attn.k_proj.bias", kv),
      vBias: maybe("self_attn.v_proj.bias", kv),
      oBias: maybe("self_attn.o_proj.bias", c.width),
      qNorm: maybe("self_attn.q_norm.weight", c.head),
      kNorm: maybe("self_attn.k_norm.weight", c.head),
      gate: part("mlp.gate_proj", c.hidden, c.width),
      up: part("mlp.up_proj", c.hidden, c.width),
      down: part("mlp.down_proj", c.width, c.hidden),
      gateBias: maybe("mlp.gate_proj.bias", c.hidden),
      upBias: maybe("mlp.up_proj.bias", c.hidden),
      downBias: maybe("mlp.down_proj.bias", c.width),
    };
  }

  /** y [n, rows] = x [n, columns] w^T, and a bias if there is one. */
  linear(y, weight, bias, x, rows, columns, n) {
    this.run.matmul(y, weight, x, rows, columns, n);
    if (bias) for (let t = 0; t < n; t++) this.run.addScaled(y + 4 * t * rows, bias, 1, rows);
  }

  forward(chunk, start, speaks) {
    const { c, run, x, h, q, y } = this,
      n = chunk.length,
      kv = c.groups * c.head,
      wide = c.heads * c.head;
    this.rows(this.embedding, chunk, c.width, x);
    this.angles(this.frequencies, start, n, this.angleTable);
    this.layers.forEach((layer, index) => {
      const k = this.keys(index, start),
        v = this.values(index, start);
      run.rmsNorm(h, x, layer.before, c.width, n, c.eps, 1);
      this.linear(q, layer.q, layer.qBias, h, wide, c.width, n);
      this.linear(k, layer.k, layer.kBias, h, kv, c.width, n);
      this.linear(v, layer.v, layer.vBias, h, kv, c.width, n);
      if (layer.qNorm) run.rmsNorm(q, q, layer.qNorm, c.head, n * c.heads, c.eps, 1);
      if (layer.kNorm) run.rmsNorm(k, k, layer.kNorm, c.head, n * c.groups, c.eps, 1);
      this.rotate(q, this.angleTable, c.heads, c.head, c.head / 2, n);
      this.rotate(k, this.angleTable, c.groups, c.head, c.head / 2, n);
      for (let t = 0; t < n; t++) {
        run.attend(
          y + 4 * t * wide,
          q + 4 * t * wide,
          this.keys(index),
          this.values(index),
          this.scores,
          0,
          start + t,
          c.heads,
          c.groups,
          c.head,
        );
      }
      this.linear(h, layer.o, layer.oBias, y, c.width, wide, n);
      run.add(x, h, 0, c.width, n);
      run.rmsNorm(h, x, layer.after, c.width, n, c.eps, 1);
      this.linear(this.gate, layer.gate, layer.gateBias, h, c.hidden, c.width, n);
      this.linear(this.up, layer.up, layer.upBias, h, c.hidden, c.width, n);
      run.siluTimes(this.gate, this.up, n * c.hidden);
      this.linear(h, layer.down, layer.downBias, this.gate, c.width, c.hidden, n);
      run.add(x, h, 0, c.width, n);
    });
    if (!speaks) return;
    run.rmsNorm(h, x + 4 * (n - 1) * c.width, this.norm, c.width, 1, c.eps, 1);
    run.matmul(this.logits, this.output, h, c.vocab, c.width, 1);
  }
}
