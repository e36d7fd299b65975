"""The operations of gptpack.ops once more, slowly: float64, one token and one head at a time.

Written with torch, so that autograd gives their gradients; nothing in here is fast or clever.
"""

import torch

EPS = torch.finfo(torch.float32).eps


def norm(x):
    """x [W]."""
    return x / torch.sqrt((x * x).mean() + EPS)


def each_token(function, *tensors):
    """`function` of the tokens' vectors, for tensors [B, T, ...]; results stacked the same way."""
    batch, length = tensors[0].shape[:2]
    rows = [
        [function(*(tensor[b, t] for tensor in tensors), t) for t in range(length)]
        for b in range(batch)
    ]
    return tuple(
        torch.stack([torch.stack([row[i] for row in sequence]) for sequence in rows])
        for i in range(len(rows[0][0]))
    )


def rotated(x, position, cos, sin):
    """Channel i of the first half of the rotated ones turns with channel i of the second."""
    pairs = cos.shape[-1]
    y = list(x)
    for i in range(pairs):
        c, s = cos[0, position, 0, i], sin[0, position, 0, i]
        y[i] = x[i] * c + x[pairs + i] * s
        y[pairs + i] = x[pairs + i] * c - x[i] * s
    return torch.stack(y)


def split_heads(qkv, gain, cos, sin, extra, heads, kv_heads):
    width = qkv.shape[-1] // (heads + 2 * kv_heads)

    def token(qkv, extra, position):
        parts = qkv.split(width)
        q = [g * rotated(norm(x), position, cos, sin) for g, x in zip(gain, parts, strict=False)]
        k = [rotated(norm(x), position, cos, sin) for x in parts[heads : heads + kv_heads]]
        v = torch.stack(parts[heads + kv_heads :]) + extra.view(kv_heads, width)
        return torch.stack(q), torch.stack(k), v

    if extra is None:
        extra = qkv.new_zeros(*qkv.shape[:2], kv_heads * width)
    return each_token(token, qkv, extra)


def remove_own_value(y, v):
    def token(y, v, _):
        left = []
        for h, x in enumerate(y):
            value = v[h * len(v) // len(y)]
            unit = value / torch.sqrt(value @ value)
            left.append(x - (x @ unit) * unit)
        return (torch.stack(left),)

    return each_token(token, y, v)


def mlp(x, up, down, slope):
    def token(x, _):
        hidden = [row @ x for row in up]
        hidden = torch.stack([h if h > 0 else slope * h for h in hidden])
        return (torch.stack([row @ (hidden * hidden) for row in down]),)

    return each_token(token, x)


def head_losses(hidden, head, targets, cap):
    def token(hidden, target, _):
        logits = torch.stack([cap * torch.tanh(row @ hidden / cap) for row in head])
        top = logits.max().item()
        total = sum(torch.exp(logit - top) for logit in logits)
        return (top + torch.log(total) - logits[target],)

    return each_token(token, hidden, targets)
