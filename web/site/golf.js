// Tokens -> logits by the GPT of the family golf (gptpack/families/golf), in float32.
import { ArtifactError } from "./errors.js";
import { golfFields } from "./families.js";
import { CHUNK, frequencies, Net } from "./net.js";

const EPS = 2 ** -23; // of torch.finfo(torch.float32)
const sigmoid = (x) => 1 / (1 + Math.exp(-x));

export class Golf extends Net {
  constructor(decoded) {
    const c = golfFields(decoded.header.model);
    super(decoded, c.context);
    if (c.architecture !== "golf")
      throw new ArtifactError(
        `the model has architecture=${c.architecture}, which this page cannot run`,
      );
    if (c.parallel_lanes > 1)
      throw new ArtifactError("the model has parallel_lanes=2, which this page cannot run");
    const head = c.width / c.heads;
    Object.assign(this, { c, head, vocab: c.vocab, dims: c.rope_dims || head });
    // of the order of the layers first, whose length the skips' shape bounds by the file
    const end = c.loop_start + c.loop_layers;
    const passes = c.layers + c.loop_layers * c.loops;
    this.encoders = Math.floor(passes / 2);
    if (this.encoders) this.weight("skip_weights", this.encoders, c.width);
    this.blocks = Array.from({ length: Math.min(c.layers, this.tensors.size) }, (_, layer) =>
      this.block(layer),
    );
    if (c.layers > this.blocks.length)
      throw new ArtifactError(`the file does not hold ${c.layers} layers`);
    const layers = this.blocks.map((_, layer) => layer);
    const looped = Array.from({ length: c.loops }, () => layers.slice(c.loop_start, end)).flat();
    this.order = [...layers.slice(0, end), ...looped, ...layers.slice(end)];
    this.parts();
    this.remember(passes, c.kv_heads, head);
    for (const [name, width] of Object.entries({
      x: c.width,
      x0: c.width,
      h: c.width,
      q: c.width,
      y: c.width,
      out: c.width,
      up: c.mlp_hidden,
      pair: c.bigram_width,
      shared: this.kvWidth,
      word: c.value_embedding_width,
      skips: c.width * this.encoders,
      angleTable: this.dims,
    }))
      this[name] = this.room(CHUNK * width);
    Object.assign(this, {
      last: this.room(c.width),
      none: this.room(c.width),
      logits: this.room(c.vocab),
      gates: this.room(c.heads),
    });
    this.wasm.floats(this.none, c.width).fill(0);
    this.turn(c.rope_base);
  }

  block(layer) {
    const { c, head } = this,
      kv = c.kv_heads * head,
      name = `blocks.${layer}`;
    const vector = (part, ...shape) => this.weight(`${name}.${part}`, ...shape);
    return {
      q: vector("attn.c_q.weight", c.width, c.width),
      k: vector("attn.c_k.weight", kv, c.width),
      v: vector("attn.c_v.weight", kv, c.width),
      proj: vector("attn.proj.weight", c.width, c.width),
      gain: vector("attn.q_gain", c.heads),
      gate: c.attention_gate_inputs ? vector("attn.gate", c.heads, c.attention_gate_inputs) : 0,
      fc: vector("mlp.fc.weight", c.mlp_hidden, c.width),
      down: vector("mlp.proj.weight", c.width, c.mlp_hidden),
      attnScale: vector("attn_scale", c.width),
      mlpScale: vector("mlp_scale", c.width),
      mix: vector("resid_mix", 2, c.width),
      normScale: c.ln_scale ? (layer + 1) ** -0.5 : 1,
      xsa: layer >= c.layers - c.xsa_layers,
      parallel: layer >= c.layers - c.parallel_layers,
    };
  }

  /** The parts outside of layers. */
  parts() {
    const { c, head } = this,
      kv = c.kv_heads * head;
    this.embedding = this.weight("tok_emb.weight", c.vocab, c.width);
    this.output = c.tied_embedding
      ? this.embedding
      : this.weight("lm_head.weight", c.vocab, c.width);
    if (c.bigram_rows) {
      this.bigram = {
        rows: this.weight("bigram.embed.weight", c.bigram_rows, c.bigram_width),
        proj: this.weight("bigram.proj.weight", c.width, c.bigram_width),
        scale: this.scalar("bigram.scale"),
      };
    }
    if (c.smear_gate) {
      const gates = [...this.wasm.floats(this.weight("smear.gate", c.width), c.width)].map(sigmoid);
      this.smear = {
        own: this.constants(gates.map((g) => 1 - Math.fround(g))),
        previous: this.constants(gates),
      };
    }
    if (c.value_embedding_layers.length) {
      this.valueEmbedding = {
        rows: this.weight("ve_shared.embed.weight", c.vocab, c.value_embedding_width),
        proj: this.weight("ve_shared.proj.weight", kv, c.value_embedding_width),
        scale: this.scalar("ve_shared.scale"),
        layers: new Map(
          c.value_embedding_layers.map((layer, i) => [
            layer,
            this.scalar(`ve_layer_scales.${i}`, 1),
          ]),
        ),
      };
    }
    if (!this.encoders) return;
    const size = this.encoders * c.width;
    this.skipWeights = this.weight("skip_weights", this.encoders, c.width);
    if (!c.skip_gates) return;
    const weights = [...this.wasm.floats(this.skipWeights, size)];
    const gates = [
      ...this.wasm.floats(this.weight("skip_gates", this.encoders, c.width), size),
    ].map(sigmoid);
    this.skipGates = {
      own: this.constants(gates),
      skip: this.constants(gates.map((g, i) => (1 - g) * weights[i])),
    };
  }

  constants(values) {
    const at = this.room(values.length);
    this.wasm.floats(at, values.length).set(values);
    return at;
  }

  turn(base) {
    this.frequencies = frequencies(base, this.dims);
    this.base = base;
  }

  /**
   * Beyond the context that it stretches from, the base of the angles follows the text's length;
   * here it goes to that of the whole window at once, and the keys and values are made anew.
   */
  feed(tokens) {
    const { c } = this,
      trained = c.rope_ntk_context;
    if (
      trained &&
      this.tokens.length + tokens.length > trained &&
      c.context > trained &&
      this.dims > 2 &&
      this.base === c.rope_base
    ) {
      this.turn(c.rope_base * (c.context / trained) ** (this.dims / (this.dims - 2)));
      const before = this.tokens;
      this.tokens = [];
      return super.feed([...before, ...tokens]);
    }
    return super.feed(tokens);
  }

  reset() {
    super.reset();
    this.turn(this.c.rope_base);
  }

  forward(chunk, start, speaks) {
    const { c, run, x, x0, h } = this,
      width = c.width,
      n = chunk.length;
    this.embed(chunk, start);
    this.copy(x, x0, n * width);
    this.angles(this.frequencies, start, n, this.angleTable, -1);
    let held = 0;
    this.order.forEach((layer, pass) => {
      if (pass >= this.encoders && held) this.takeUp(--held, pass - this.encoders, n);
      const block = this.blocks[layer];
      run.blend(x, x0, block.mix, block.mix + 4 * width, width, n);
      run.rmsNorm(h, x, 0, width, n, EPS, block.normScale);
      this.attention(block, layer, pass, chunk, start);
      if (!block.parallel) run.rmsNorm(h, x, 0, width, n, EPS, block.normScale);
      run.matmul(this.up, block.fc, h, c.mlp_hidden, width, n);
      run.squaredRectifier(this.up, c.activation === "relu2" ? 0 : 0.5, n * c.mlp_hidden);
      run.matmul(this.out, block.down, this.up, width, c.mlp_hidden, n);
      run.add(x, this.out, block.mlpScale, width, n);
      if (pass < this.encoders) this.copy(x, this.skips + 4 * CHUNK * width * held++, n * width);
    });
    if (!speaks) return;
    run.rmsNorm(h, x + 4 * (n - 1) * width, 0, width, 1, EPS, 1);
    run.matmul(this.logits, this.output, h, c.vocab, width, 1);
    const logits = this.wasm.floats(this.logits, c.vocab),
      cap = c.logit_softcap;
    for (let i = 0; i < c.vocab; i++) logits[i] = cap * Math.tanh(logits[i] / cap);
  }

  /** The stream that the first layer reads. */
  embed(chunk, start) {
    const { c, run, x, wasm } = this,
      width = c.width,
      n = chunk.length;
    const before = [this.tokens[start - 1], ...chunk];
    this.rows(this.embedding, chunk, width, x);
    if (this.bigram) {
      this.rows(
        this.bigram.rows,
        chunk.map((token, i) => this.pairRow(before[i], token)),
        c.bigram_width,
        this.pair,
      );
      run.matmul(this.out, this.bigram.proj, this.pair, width, c.bigram_width, n);
      run.addScaled(x, this.out, this.bigram.scale, n * width);
    }
    run.rmsNorm(x, x, 0, width, n, EPS, 1);
    if (this.smear) {
      if (!start) wasm.floats(this.last, width).fill(0);
      this.copy(x + 4 * (n - 1) * width, this.out, width);
      for (let t = n - 1; t >= 0; t--) {
        const cut = chunk[t] === c.bos && !c.smear_across_documents;
        const previous = cut ? this.none : t ? x + 4 * (t - 1) * width : this.last;
        run.blend(x + 4 * t * width, previous, this.smear.own, this.smear.previous, width, 1);
      }
      this.copy(this.out, this.last, width);
    }
    if (this.valueEmbedding) {
      const { rows, proj, scale } = this.valueEmbedding;
      this.rows(rows, chunk, c.value_embedding_width, this.word);
      run.matmul(this.shared, proj, this.word, this.kvWidth, c.value_embedding_width, n);
      const shared = wasm.floats(this.shared, n * this.kvWidth);
      for (let i = 0; i < shared.length; i++) shared[i] *= scale;
    }
  }

  /** The row of the hashed pair of a token and the one before it. */
  pairRow(previous, token) {
    const modulus = this.c.bigram_rows - 1;
    if (previous === undefined || (this.c.document_mask && token === this.c.bos)) return modulus;
    return Number(((36313n * BigInt(token)) ^ (27191n * BigInt(previous))) % BigInt(modulus));
  }

  takeUp(place, index, n) {
    const { run, c } = this,
      skip = this.skips + 4 * CHUNK * c.width * place,
      row = 4 * index * c.width;
    if (this.skipGates)
      run.blend(this.x, skip, this.skipGates.own + row, this.skipGates.skip + row, c.width, n);
    else run.add(this.x, skip, this.skipWeights + row, c.width, n);
  }

  attention(block, layer, pass, chunk, start) {
    const { c, run, head, wasm, h, q, y } = this,
      width = c.width,
      n = chunk.length;
    const k = this.keys(pass, start),
      v = this.values(pass, start);
    run.matmul(q, block.q, h, width, width, n);
    run.matmul(k, block.k, h, this.kvWidth, width, n);
    run.matmul(v, block.v, h, this.kvWidth, width, n);
    const scale = this.valueEmbedding?.layers.get(layer);
    if (scale !== undefined) run.addScaled(v, this.shared, scale, n * this.kvWidth);
    run.rmsNorm(q, q, 0, head, n * c.heads, EPS, 1);
    run.rmsNorm(k, k, 0, head, n * c.kv_heads, EPS, 1);
    this.rotate(q, this.angleTable, c.heads, head, this.dims / 2, n);
    this.rotate(k, this.angleTable, c.kv_heads, head, this.dims / 2, n);
    this.scaleHeads(q, wasm.floats(block.gain, c.heads), n);
    for (let t = 0; t < n; t++) {
      const [qt, yt] = [q, y].map((at) => at + 4 * t * width);
      run.attend(
        yt,
        qt,
        this.keys(pass),
        this.values(pass),
        this.scores,
        this.documentStart(chunk, start, t),
        start + t,
        c.heads,
        c.kv_heads,
        head,
      );
      if (block.xsa) run.removeOwnValue(yt, v + 4 * t * this.kvWidth, c.heads, c.kv_heads, head);
      if (block.gate) {
        run.matmul(this.gates, block.gate, h + 4 * t * width, c.heads, c.attention_gate_inputs, 1);
        this.scaleHeads(
          yt,
          wasm.floats(this.gates, c.heads).map((g) => 2 * sigmoid(g)),
          1,
        );
      }
    }
    run.matmul(this.out, block.proj, y, width, width, n);
    run.add(this.x, this.out, block.attnScale, width, n);
  }

  /** The first position that the one at `t` of a chunk attends to. */
  documentStart(chunk, start, t) {
    if (!this.c.document_mask) return 0;
    const here = chunk.lastIndexOf(this.c.bos, t);
    return here < 0 ? Math.max(0, this.tokens.lastIndexOf(this.c.bos)) : start + here;
  }

  /** Multiply each head of n positions by its factor. */
  scaleHeads(at, factors, n) {
    const values = this.wasm.floats(at, n * this.c.width);
    for (let i = 0; i < values.length; i++)
      values[i] *= factors[Math.floor(i / this.head) % this.c.heads];
  }
}
