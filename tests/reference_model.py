"""The model once more, slowly: float64, one position at a time, straight from the formulas."""

import itertools
import math

import numpy as np


def norm(x):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.finfo(np.float32).eps)


def rotate(x, position, dims, base):
    """x [D]; channel i of the first half of `dims` turns with channel i of the second."""
    y = x.copy()
    for i in range(dims // 2):
        angle = position * base ** (-2 * i / dims)
        a, b = x[i], x[dims // 2 + i]
        y[i] = a * math.cos(angle) + b * math.sin(angle)
        y[dims // 2 + i] = b * math.cos(angle) - a * math.sin(angle)
    return y


def attention(config, layer, weights, x, value_embedding, tokens):
    """x [T, W] -> [T, W], head by head."""
    documents = np.cumsum(tokens == config.bos)
    name = f"blocks.{layer}.attn."
    length, width = x.shape
    per_head = width // config.heads
    dims, base = config.rope_dims or per_head, config.rope_base
    if config.rope_ntk_context and length > config.rope_ntk_context:
        base *= (length / config.rope_ntk_context) ** (dims / (dims - 2))
    q, k, v = (x @ weights[name + part + ".weight"].T for part in ("c_q", "c_k", "c_v"))
    if value_embedding is not None:
        v = v + value_embedding
    out = np.zeros((length, width))
    for head in range(config.heads):
        group = head // (config.heads // config.kv_heads)
        own, shared = (slice(i * per_head, (i + 1) * per_head) for i in (head, group))
        gain = weights[name + "q_gain"][head]
        qs = [gain * rotate(norm(q[t, own]), t, dims, base) for t in range(length)]
        ks = [rotate(norm(k[t, shared]), t, dims, base) for t in range(length)]
        for t in range(length):
            scores = np.array([qs[t] @ ks[s] / math.sqrt(per_head) for s in range(t + 1)])
            if config.document_mask:
                scores[documents[: t + 1] != documents[t]] = -np.inf
            p = np.exp(scores - scores.max())
            y = (p / p.sum()) @ v[: t + 1, shared]
            if layer >= config.layers - config.xsa_layers:
                unit = v[t, shared] / np.linalg.norm(v[t, shared])
                y = y - (y @ unit) * unit
            if config.attention_gate_inputs:
                gate = weights[name + "gate"][head] @ x[t, : config.attention_gate_inputs]
                y = y * 2 / (1 + np.exp(-gate))
            out[t, own] = y
    return out @ weights[name + "proj.weight"].T


def mlp(config, layer, weights, x):
    hidden = x @ weights[f"blocks.{layer}.mlp.fc.weight"].T
    slope = 0.5 if config.activation == "leaky_relu2" else 0.0
    return np.where(hidden > 0, hidden, slope * hidden) ** 2 @ (
        weights[f"blocks.{layer}.mlp.proj.weight"].T
    )


def embed(config, weights, tokens):
    x = weights["tok_emb.weight"][tokens]
    if config.bigram_rows:
        m = config.bigram_rows - 1
        rows = [m] + [
            ((36313 * int(b)) ^ (27191 * int(a))) % m for a, b in itertools.pairwise(tokens)
        ]
        if config.document_mask:
            rows = [m if t == config.bos else row for t, row in zip(tokens, rows, strict=True)]
        table = weights["bigram.embed.weight"][rows] @ weights["bigram.proj.weight"].T
        x = x + weights["bigram.scale"] * table
    x = norm(x)
    if config.smear_gate:
        g = 1 / (1 + np.exp(-weights["smear.gate"]))
        before = np.vstack([np.zeros((1, x.shape[1])), x[:-1]])
        if not config.smear_across_documents:
            before[tokens == config.bos] = 0
        x = (1 - g) * x + g * before
    return x


def take_up(config, weights, index, x, skip):
    skip = weights["skip_weights"][index] * skip
    if not config.skip_gates:
        return x + skip
    g = 1 / (1 + np.exp(-weights["skip_gates"][index]))
    return skip + g * (x - skip)


def block(config, layer, weights, lanes, x0, value_embedding, tokens):
    """One or two lanes [T, W] -> one or two."""
    name = f"blocks.{layer}."
    mix = weights[name + "resid_mix"]
    scale = 1 / math.sqrt(layer + 1) if config.ln_scale else 1.0

    def attended(x):
        y = attention(config, layer, weights, norm(x) * scale, value_embedding, tokens)
        return weights[name + "attn_scale"] * y

    def transformed(x):
        return weights[name + "mlp_scale"] * mlp(config, layer, weights, norm(x) * scale)

    lanes = [mix[0] * lane + mix[1] * x0 for lane in lanes]
    if layer < config.layers - config.parallel_layers:
        x = lanes[0] + attended(lanes[0])
        return [x + transformed(x)]
    attention_out, mlp_out = attended(lanes[0]), transformed(lanes[-1])
    if config.parallel_lanes == 1:
        return [lanes[0] + attention_out + mlp_out]
    residual, post = weights[name + "resid_lambdas"], weights[name + "post_lambdas"]
    return [
        residual[i] * lanes[min(i, len(lanes) - 1)]
        + post[0, i] * attention_out
        + post[1, i] * mlp_out
        for i in range(2)
    ]


def token_losses(config, weights, tokens, targets, looped=True):
    """Nats [T] of `targets` [T] given `tokens` [T]."""
    weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    x = x0 = embed(config, weights, tokens)
    values = {}
    for index, layer in enumerate(config.value_embedding_layers):
        table = weights["ve_shared.embed.weight"][tokens] @ weights["ve_shared.proj.weight"].T
        values[layer] = table * weights["ve_shared.scale"] * weights[f"ve_layer_scales.{index}"]
    end = config.loop_start + config.loop_layers
    order = [*range(end), *list(range(config.loop_start, end)) * (config.loops if looped else 0)]
    order += range(end, config.layers)
    half = len(order) // 2
    lanes, skips = [x], []
    for position, layer in enumerate(order):
        if position >= half and skips:
            skip, index = skips.pop(), position - half
            lanes = [
                take_up(config, weights, index, lane, skip[min(i, len(skip) - 1)])
                for i, lane in enumerate(lanes)
            ]
        lanes = block(config, layer, weights, lanes, x0, values.get(layer), tokens)
        if position < half:
            skips.append(lanes)
    x = sum(lanes) / len(lanes)
    head = weights["tok_emb.weight" if config.tied_embedding else "lm_head.weight"]
    logits = config.logit_softcap * np.tanh(norm(x) @ head.T / config.logit_softcap)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(targets)), targets]
