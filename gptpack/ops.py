"""The operations that have a kernel, by Triton on CUDA and by torch elsewhere. One function each.

Shape legend: B = sequences, T = positions, W = model width, H = query heads, G = key/value heads,
D = width of a head, F = hidden width of the MLP, V = vocabulary.

Without kernels a function is the torch expression in it and nothing else. With kernels it calls a
custom operator of ``gptpack/kernels``, which torch.compile takes as it is. kernel_choice.py
decides whether; docs/decisions/kernels.md says what is fused and why.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = torch.finfo(torch.float32).eps

KERNEL_VOCAB = 16384
"""Largest vocabulary whose losses take the Triton kernel, which holds a row in registers."""

Tables = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary angles, each ``[1, T, 1, dims / 2]``."""


def rms_norm(x: Tensor) -> Tensor:
    """`x` divided by its root mean square over the last axis. Zhang and Sennrich 2019."""
    return F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)


def rotate(x: Tensor, tables: Tables) -> Tensor:
    """`x` ``[B, T, H, D]`` with the first channels of each head rotated. Su et al. 2021.

    Channel i of the first half of the rotated channels is paired with channel i of the second.
    """
    cos, sin = tables
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    rotated = (first * cos + second * sin, second * cos - first * sin)
    return torch.cat((*rotated, rest) if rest.shape[-1] else rotated, dim=-1)


def scaled_rows(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``diag(scale) weight`` in `dtype`, rounded once; weight ``[R, C]``, scale ``[R]``."""
    return (scale.unsqueeze(1) * weight).to(dtype)


def split_heads(
    projections: Sequence[Tensor],
    gain: Tensor,
    tables: Tables,
    value_embedding: Tensor | None,
    *,
    heads: int,
    kv_heads: int,
    kernels: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``[B, T, H, D]``, keys and values ``[B, T, G, D]`` as attention takes them.

    Queries and keys are normalised and rotated, queries scaled by `gain` ``[H]``, and
    `value_embedding` ``[B, T, G D]`` is added to the values.

    Args:
        projections: those of queries, keys and values, or one of all three ``[B, T, (H + 2 G)
            D]``, which kernels need.
    """
    if kernels:
        (merged,) = projections
        cos, sin = tables
        q, k, v = torch.ops.gptpack.split_heads(
            merged, gain, cos, sin, value_embedding, heads, kv_heads, NORM_EPS
        )
        return q, k, v
    if len(projections) == 1:
        width = projections[0].shape[-1] // (heads + 2 * kv_heads)
        sizes = [n * width for n in (heads, kv_heads, kv_heads)]
        projections = torch.split(projections[0], sizes, dim=-1)
    q, k, v = projections
    batch, length, _ = q.shape
    if value_embedding is not None:
        v = v + value_embedding
    q = q.view(batch, length, heads, -1)
    k = k.view(batch, length, kv_heads, -1)
    v = v.view(batch, length, kv_heads, -1)
    q = rotate(rms_norm(q), tables) * gain.to(q.dtype).view(1, 1, -1, 1)
    return q, rotate(rms_norm(k), tables), v


def remove_own_value(y: Tensor, v: Tensor, *, kernels: bool) -> Tensor:
    """Subtract from each head's output its projection on the token's own value (XSA).

    With u = v / |v|, ``y - (y . u) u``; y is ``[B, T, H, D]`` and v ``[B, T, G, D]``, each value
    serving ``H / G`` heads. parameter-golf, `XSA`.
    """
    if kernels:
        left: Tensor = torch.ops.gptpack.remove_own_value(y, v)
        return left
    batch, length, heads, width = y.shape
    groups = v.shape[2]
    unit = F.normalize(v, dim=-1).unsqueeze(3)
    grouped = y.reshape(batch, length, groups, heads // groups, width)
    grouped = grouped - (grouped * unit).sum(dim=-1, keepdim=True) * unit
    return grouped.reshape(batch, length, heads, width)


def squared_rectifier(hidden: Tensor, slope: float) -> Tensor:
    """``leaky_relu(hidden, slope)^2``."""
    hidden = F.leaky_relu(hidden, slope) if slope else F.relu(hidden)
    return hidden.square()


def mlp(x: Tensor, up: Tensor, down: Tensor, slope: float, *, kernels: bool) -> Tensor:
    """``squared_rectifier(x up^T) down^T``; x ``[B, T, W]``, up ``[F, W]``, down ``[W, F]``.

    The weights are in the dtype of `x`.
    """
    if kernels:
        keep = torch.is_grad_enabled()
        y: Tensor = torch.ops.gptpack.mlp(x, up, down, slope, keep)[0]
        return y
    return F.linear(squared_rectifier(F.linear(x, up), slope), down)


def softcapped(hidden: Tensor, head: Tensor, cap: float) -> Tensor:
    """Float32 logits ``cap tanh(hidden head^T / cap)``; hidden ``[..., W]``, head ``[V, W]``."""
    return cap * torch.tanh(F.linear(hidden, head.to(hidden.dtype)).float() / cap)


def head_losses(
    hidden: Tensor, head: Tensor, targets: Tensor, cap: float, *, kernels: bool
) -> Tensor:
    """Cross entropy of `targets` ``[B, T]`` under the softcapped logits, nats, float32 ``[B, T]``.

    hidden is ``[B, T, W]``, head ``[V, W]``.
    """
    if kernels and head.shape[0] <= KERNEL_VOCAB:
        flat, weight = hidden.flatten(0, -2), head.to(hidden.dtype)
        keep = torch.is_grad_enabled()
        losses = torch.ops.gptpack.head_losses(flat, weight, targets.flatten(), cap, keep)[0]
    else:
        logits = softcapped(hidden, head, cap)
        losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape)
