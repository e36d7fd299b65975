"""The speedrun's model once more, slowly: float64, one position at a time, from the formulas."""

import math

import numpy as np
from reference_model import norm


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rotate(x, position, frequencies):
    """x [D]; channel i turns with channel i + n, for n frequencies."""
    y, n = x.copy(), len(frequencies)
    for i, frequency in enumerate(frequencies):
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        y[i] = x[i] * cos + x[n + i] * sin
        y[n + i] = x[n + i] * cos - x[i] * sin
    return y


def attention(config, stage, layer, weights, x, table, tokens):
    """x [T, W] -> [T, W]; position t sees t - window + 1 to t, from its document's start on."""
    name = f"blocks.{layer}.attn."
    q, k, v = (x @ weights[f"{name}{part}.weight"].T for part in ("c_q", "c_k", "c_v"))
    mix = weights[name + "value_mix"]
    v = mix[0] * v if table is None else mix[0] * v + mix[1] * table
    window = stage.long if layer in config.long_window_layers else stage.short
    width = config.width // config.heads
    out = np.zeros((len(x), config.width))
    for head in range(config.heads):
        group = head // (config.heads // config.kv_heads)
        own, shared = (slice(i * width, (i + 1) * width) for i in (head, group))
        for t in range(len(x)):
            first = max([0, t - window + 1, *np.flatnonzero(tokens[: t + 1] == config.bos)[-1:]])
            query = stage.gain * rotate(norm(q[t, own]), t, stage.frequencies)
            keys = [rotate(norm(k[s, shared]), s, stage.frequencies) for s in range(first, t + 1)]
            scores = np.array(keys) @ query / math.sqrt(width)
            p = np.exp(scores - scores.max())
            y = (p / p.sum()) @ v[first : t + 1, shared]
            if config.attention_gate_inputs:
                gate = weights[name + "gate"][head] @ x[t, : config.attention_gate_inputs]
                y = y * sigmoid(gate)
            out[t, own] = y
    return out @ weights[name + "proj.weight"].T


def token_losses(config, stage, weights, tokens, targets):
    """Nats of each target [T], in one stage of training."""
    x = weights["tok_emb.weight"][tokens]
    if config.smear_gate:
        before = np.vstack([np.zeros((1, config.width)), x[:-1]])
        before[tokens == config.bos] = 0
        gate = sigmoid(x[:, :12] @ weights["smear.gate"][0])
        x = x + weights["smear.scale"] * gate[:, None] * before
    x = x0 = norm(x)
    tables = [weights[f"value_tables.{i}.weight"][tokens] for i in range(config.value_tables)]
    given = {**dict(enumerate(tables)), **dict(enumerate(tables, config.layers - len(tables)))}
    skips = weights["skip_weights"]
    kept = []
    for layer in range(config.layers):
        if layer >= config.layers // 2:
            weight = skips[layer - config.layers // 2]
            x = x + (sigmoid(weight) if config.skip_gates else weight) * kept.pop()
        mix = weights[f"blocks.{layer}.resid_mix"]
        x = mix[0] * x + mix[1] * x0
        if layer not in config.attention_free_layers:
            x = x + attention(config, stage, layer, weights, norm(x), given.get(layer), tokens)
        if layer not in config.mlp_free_layers:
            hidden = np.maximum(norm(x) @ weights[f"blocks.{layer}.mlp.fc.weight"].T, 0) ** 2
            x = x + hidden @ weights[f"blocks.{layer}.mlp.proj.weight"].T
        if layer < config.layers // 2:
            kept.append(x)
    z = norm(x) @ weights["lm_head.weight"].T
    # 30 sigmoid(z / 7.5) and c (tanh(z / c) + 1) for c = 15 are one, and softmax sees no shift
    logits = 2 * config.logit_softcap * sigmoid(2 * z / config.logit_softcap)
    chosen = logits[np.arange(len(x)), targets]
    return np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1) - chosen
