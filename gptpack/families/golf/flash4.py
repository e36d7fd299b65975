"""FlashAttention-4 as operators that torch can compile: queries, keys and values -> outputs.

Shape legend: B = sequences, S = queries, H = heads, D = width of a head.

Importing this module registers them; the package itself is imported when they first run.
"""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gptpack.errors import MissingDependencyError


@cache
def flash_attention_4() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward pass of FlashAttention-4, https://github.com/Dao-AILab/flash-attention.

    ``flash_attn_func`` is an autograd function, which torch.compile(fullgraph=True) does not take;
    these two are what it calls.

    Raises:
        MissingDependencyError: the package flash-attn-4 is missing, or does not load.
    """
    try:
        interface: Any = importlib.import_module("flash_attn.cute.interface")
        return interface._flash_attn_fwd, interface._flash_attn_bwd
    except ImportError as error:
        raise MissingDependencyError(
            f"attention backend 'fa4': {error}; pip install 'gptpack[fa4]', or use auto"
        ) from error
    except Exception as error:
        # another version, or its compiler found no driver
        raise MissingDependencyError(
            f"attention backend 'fa4': flash-attn-4 does not load: {error}; use auto"
        ) from error


@torch.library.custom_op(
    "gptpack::fa4", mutates_args=(), schema="(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor)"
)
def fa4(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention like `attend`, and the logarithms of its sums, float32 ``[B, H, S]``."""
    forward, _ = flash_attention_4()
    # causal: the last query sees the last key, whatever their numbers are
    y, sums, *_ = forward(q, k, v, causal=True, return_lse=True)
    return y, sums


@torch.library.custom_op(
    "gptpack::fa4_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor y, Tensor sums)"
    " -> (Tensor, Tensor, Tensor)",
)
def fa4_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the same bits every time where torch is told to be deterministic."""
    _, backward = flash_attention_4()
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    same = torch.are_deterministic_algorithms_enabled()
    out = {"dq": dq, "dk": dk, "dv": dv}
    backward(q, k, v, y, dy.contiguous(), sums, causal=True, deterministic=same, **out)
    return dq, dk, dv


@torch.library.custom_op(
    "gptpack::fa4_within",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor starts, Tensor window) -> (Tensor, Tensor)",
)
def fa4_within(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, window: Tensor
) -> tuple[Tensor, Tensor]:
    """Like `fa4`, within documents and a window; the sums are float32 ``[H, B S]``.

    `starts` is that of `windows.document_starts`. `window` counts tokens and is on the CPU, so that
    the graph is one for all windows and no device is waited for.
    """
    forward, _ = flash_attention_4()
    flat = (x.flatten(0, 1) for x in (q, k, v))
    y, sums, *_ = forward(*flat, return_lse=True, **_within(starts, window))
    return y.view(q.shape), sums


@torch.library.custom_op(
    "gptpack::fa4_within_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor starts, Tensor window, Tensor y,"
    " Tensor sums) -> (Tensor, Tensor, Tensor)",
)
def fa4_within_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    window: Tensor,
    y: Tensor,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; see `fa4_backward`."""
    _, backward = flash_attention_4()
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    out = {name: x.flatten(0, 1) for name, x in (("dq", dq), ("dk", dk), ("dv", dv))}
    flat = (x.contiguous().flatten(0, 1) for x in (q, k, v, y, dy))
    same = torch.are_deterministic_algorithms_enabled()
    backward(*flat, sums, deterministic=same, **out, **_within(starts, window))
    return dq, dk, dv


def _within(starts: Tensor, window: Tensor) -> dict[str, Any]:
    return {
        "causal": True,
        "cu_seqlens_q": starts,
        "cu_seqlens_k": starts,
        "window_size_left": int(window) - 1,
        "window_size_right": 0,
    }


@fa4.register_fake
def _(q, k, v):  # type: ignore[no-untyped-def]
    batch, queries, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, queries), dtype=torch.float32)


@fa4_within.register_fake
def _(q, k, v, starts, window):  # type: ignore[no-untyped-def]
    batch, queries, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((heads, batch * queries), dtype=torch.float32)


@fa4_backward.register_fake
def _(dy, q, k, v, y, sums):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@fa4_within_backward.register_fake
def _(dy, q, k, v, starts, window, y, sums):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx: Any, dy: Tensor, _sums: None) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = torch.ops.gptpack.fa4_backward(dy, *ctx.saved_tensors)
    return dq, dk, dv


def _gradients_within(ctx: Any, dy: Tensor, _sums: None) -> tuple[Tensor | None, ...]:
    dq, dk, dv = torch.ops.gptpack.fa4_within_backward(dy, *ctx.saved_tensors)
    return dq, dk, dv, None, None


fa4.register_autograd(_gradients, setup_context=_keep)
fa4_within.register_autograd(_gradients_within, setup_context=_keep)
