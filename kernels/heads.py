"""One merged projection -> queries, keys and values: norm, rotation and gain in one pass.

Shape legend: N = B T tokens, T = positions, H = query heads, G = key/value heads, D = width of a
head, P = programs. A projection is ``[N, (H + 2 G) D]``: all queries, all keys, all values.

With ``u = x / rms(x)`` over a head's channels and R the rotation of its first 2 E channels by the
angles of the token's position (channel i is paired with channel E + i),

    q = gain_h R u        k = R u        v = x (+ value embedding)

and backward, with ``t = R^T dq``:

    d gain_h = sum_N t . u        dx = (gain_h t - u mean(gain_h t u)) / rms(x)

Sums over a head are made in float32 registers. Those of the gain over tokens take two stages: each
program sums over its tokens, and then torch over the programs, so that runs agree to the bit.

A token moves so many heads' bytes: 2 (H + 2 G) forward, 3 (H + G) + 2 G backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILES = {"forward": (4, 4), "backward": (4, 4)}
"""Tokens of a tile and warps of a program where a token's queries are 512 channels."""
WAVES = 8
"""Programs on each multiprocessor that add up the gradient of the gain."""


@triton.jit
def _rows(block, tokens, HEADS: tl.constexpr, BLOCK_H: tl.constexpr, TOKENS: tl.constexpr):
    """Token and head of each row of a tile, and whether the row exists."""
    row = tl.arange(0, TOKENS * BLOCK_H)
    token = block * TOKENS + row // BLOCK_H
    head = row % BLOCK_H
    return token, head, (token < tokens) & (head < HEADS)


@triton.jit
def _columns(BLOCK_D: tl.constexpr, HALF: tl.constexpr):
    """Channels of a head, the channel each is paired with, the pair's angle, and its sign."""
    column = tl.arange(0, BLOCK_D)
    first = column < HALF
    paired = tl.where(first, column + HALF, column - HALF)
    angle = tl.where(first, column, column - HALF)
    if HALF % 8 == 0:
        # eight channels are one access of 16 bytes
        paired = tl.max_contiguous(tl.multiple_of(paired, 8), 8)
        angle = tl.max_contiguous(tl.multiple_of(angle, 8), 8)
    return column, paired, angle, tl.where(first, 1.0, -1.0)


@triton.jit
def _angles(
    cos_ptr,  # [T, E]
    sin_ptr,  # [T, E]
    token,
    exists,
    positions,
    HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Factors of a channel and of its partner in R x; they are 1 and 0 where nothing turns."""
    column, _, angle, sign = _columns(BLOCK_D, HALF)
    place = (token % positions)[:, None] * HALF + angle[None, :]
    turns = exists[:, None] & (column < 2 * HALF)[None, :]
    own = tl.load(cos_ptr + place, mask=turns, other=1.0).to(tl.float32)
    partner = tl.load(sin_ptr + place, mask=turns, other=0.0).to(tl.float32)
    return own, partner * sign[None, :]


@triton.jit
def _turn(
    in_ptr,  # first head of the projection's part
    out_ptr,  # [N, heads, D]
    gain_ptr,  # [heads], read if GAIN
    cos_ptr,
    sin_ptr,
    block,
    tokens,
    positions,
    eps,
    GAIN: tl.constexpr,
    HEADS: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Norm, rotate and scale one tile of heads."""
    token, head, exists = _rows(block, tokens, HEADS, BLOCK_H, TOKENS)
    column, paired, _, _ = _columns(BLOCK_D, HALF)
    mask = exists[:, None] & (column < WIDTH)[None, :]
    turns = exists[:, None] & (column < 2 * HALF)[None, :]
    row = (token.to(tl.int64) * STRIDE + head * WIDTH)[:, None]
    x = tl.load(in_ptr + row + column[None, :], mask=mask, other=0.0).to(tl.float32)
    # the partners come from the same cache lines; moving them between threads costs more
    other = tl.load(in_ptr + row + paired[None, :], mask=turns, other=0.0).to(tl.float32)
    own, partner = _angles(cos_ptr, sin_ptr, token, exists, positions, HALF, BLOCK_D)
    factor = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + eps)
    if GAIN:
        factor *= tl.load(gain_ptr + head, mask=exists, other=0.0).to(tl.float32)
    y = (x * own + other * partner) * factor[:, None]
    place = ((token.to(tl.int64) * HEADS + head) * WIDTH)[:, None] + column[None, :]
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _turn_back(
    dy_ptr,  # [N, heads, D]
    in_ptr,  # first head of the projection's part
    dx_ptr,  # the same part of the projection's gradient
    gain_ptr,  # [heads], read if GAIN
    cos_ptr,
    sin_ptr,
    block,
    tokens,
    positions,
    eps,
    GAIN: tl.constexpr,
    HEADS: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradient of `_turn`; returns each row's part of the gradient of the gain."""
    token, head, exists = _rows(block, tokens, HEADS, BLOCK_H, TOKENS)
    column, paired, _, _ = _columns(BLOCK_D, HALF)
    mask = exists[:, None] & (column < WIDTH)[None, :]
    turns = exists[:, None] & (column < 2 * HALF)[None, :]
    row = (token.to(tl.int64) * STRIDE + head * WIDTH)[:, None]
    place = ((token.to(tl.int64) * HEADS + head) * WIDTH)[:, None]
    x = tl.load(in_ptr + row + column[None, :], mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + place + column[None, :], mask=mask, other=0.0).to(tl.float32)
    other = tl.load(dy_ptr + place + paired[None, :], mask=turns, other=0.0).to(tl.float32)
    own, partner = _angles(cos_ptr, sin_ptr, token, exists, positions, HALF, BLOCK_D)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + eps)
    unit = x * inverse[:, None]
    turned = dy * own - other * partner
    along = tl.sum(turned * unit, axis=1)
    dx = turned - unit * (along / WIDTH)[:, None]
    if GAIN:
        inverse *= tl.load(gain_ptr + head, mask=exists, other=0.0).to(tl.float32)
    dx *= inverse[:, None]
    tl.store(dx_ptr + row + column[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask)
    return along


@triton.jit
def _forward(
    qkv_ptr,  # [N, (H + 2 G) D]
    extra_ptr,  # [N, G D], read if EXTRA
    gain_ptr,  # [H]
    cos_ptr,  # [T, E]
    sin_ptr,  # [T, E]
    q_ptr,  # [N, H, D]
    k_ptr,  # [N, G, D]
    v_ptr,  # [N, G, D]
    tokens,
    positions,
    eps,
    EXTRA: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    STRIDE: tl.constexpr = (HEADS + 2 * KV_HEADS) * WIDTH
    block = tl.program_id(0)
    _turn(
        qkv_ptr, q_ptr, gain_ptr, cos_ptr, sin_ptr, block, tokens, positions, eps,
        True, HEADS, STRIDE, WIDTH, HALF, TOKENS, BLOCK_H, BLOCK_D,
    )  # fmt: skip
    keys = qkv_ptr + HEADS * WIDTH
    _turn(
        keys, k_ptr, gain_ptr, cos_ptr, sin_ptr, block, tokens, positions, eps,
        False, KV_HEADS, STRIDE, WIDTH, HALF, TOKENS, BLOCK_G, BLOCK_D,
    )  # fmt: skip
    token, head, exists = _rows(block, tokens, KV_HEADS, BLOCK_G, TOKENS)
    column = tl.arange(0, BLOCK_D)
    mask = exists[:, None] & (column < WIDTH)[None, :]
    row = (token.to(tl.int64) * STRIDE + head * WIDTH)[:, None] + column[None, :]
    place = ((token.to(tl.int64) * KV_HEADS + head) * WIDTH)[:, None] + column[None, :]
    v = tl.load(keys + KV_HEADS * WIDTH + row, mask=mask, other=0.0)
    if EXTRA:
        extra = tl.load(extra_ptr + place, mask=mask, other=0.0)
        v = (v.to(tl.float32) + extra.to(tl.float32)).to(v_ptr.dtype.element_ty)
    tl.store(v_ptr + place, v, mask=mask)


@triton.jit
def _backward(
    dq_ptr,  # [N, H, D]
    dk_ptr,  # [N, G, D]
    dv_ptr,  # [N, G, D]
    qkv_ptr,  # [N, (H + 2 G) D]
    dqkv_ptr,  # [N, (H + 2 G) D]
    gain_ptr,  # [H]
    cos_ptr,  # [T, E]
    sin_ptr,  # [T, E]
    dgain_ptr,  # [P, H] float32
    tokens,
    positions,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    STRIDE: tl.constexpr = (HEADS + 2 * KV_HEADS) * WIDTH
    program = tl.program_id(0)
    sums = tl.zeros((TOKENS * BLOCK_H,), tl.float32)
    for block in range(program, tl.cdiv(tokens, TOKENS), tl.num_programs(0)):
        sums += _turn_back(
            dq_ptr, qkv_ptr, dqkv_ptr, gain_ptr, cos_ptr, sin_ptr, block, tokens, positions, eps,
            True, HEADS, STRIDE, WIDTH, HALF, TOKENS, BLOCK_H, BLOCK_D,
        )  # fmt: skip
        keys = HEADS * WIDTH
        _turn_back(
            dk_ptr, qkv_ptr + keys, dqkv_ptr + keys, gain_ptr, cos_ptr, sin_ptr,
            block, tokens, positions, eps,
            False, KV_HEADS, STRIDE, WIDTH, HALF, TOKENS, BLOCK_G, BLOCK_D,
        )  # fmt: skip
        token, head, exists = _rows(block, tokens, KV_HEADS, BLOCK_G, TOKENS)
        column = tl.arange(0, BLOCK_D)
        mask = exists[:, None] & (column < WIDTH)[None, :]
        row = (token.to(tl.int64) * STRIDE + head * WIDTH)[:, None] + column[None, :]
        place = ((token.to(tl.int64) * KV_HEADS + head) * WIDTH)[:, None] + column[None, :]
        dv = tl.load(dv_ptr + place, mask=mask, other=0.0)
        tl.store(dqkv_ptr + keys + KV_HEADS * WIDTH + row, dv, mask=mask)
    head = tl.arange(0, BLOCK_H)
    total = tl.sum(tl.reshape(sums, (TOKENS, BLOCK_H)), axis=0)
    tl.store(dgain_ptr + program * HEADS + head, total, mask=head < HEADS)


def _launch(
    which: str, tokens: int, heads: int, kv_heads: int, width: int, cos: Tensor
) -> tuple[int, dict[str, int]]:
    """Number of tiles that cover `tokens`, and a launch's constants; wide tokens, small tiles."""
    block_h, block_d = triton.next_power_of_2(heads), triton.next_power_of_2(width)
    size, warps = TILES[which]
    size = max(1, min(size, size * 512 // (block_h * block_d)))
    constants = {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "WIDTH": width,
        "HALF": cos.shape[-1],
        "TOKENS": size,
        "BLOCK_H": block_h,
        "BLOCK_G": triton.next_power_of_2(kv_heads),
        "BLOCK_D": block_d,
        "num_warps": warps,
    }
    return triton.cdiv(tokens, size), constants


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _shapes(qkv: Tensor, heads: int, kv_heads: int) -> tuple[list[int], list[int], int]:
    """Shapes of queries and of keys, and the width of a head."""
    batch, length, channels = qkv.shape
    width = channels // (heads + 2 * kv_heads)
    return [batch, length, heads, width], [batch, length, kv_heads, width], width


@torch.library.custom_op("gptpack::split_heads", mutates_args=())
def split_heads(
    qkv: Tensor,
    gain: Tensor,
    cos: Tensor,
    sin: Tensor,
    extra: Tensor | None,
    heads: int,
    kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """q ``[B, T, H, D]``, k and v ``[B, T, G, D]`` of qkv ``[B, T, (H + 2 G) D]``.

    Args:
        gain: factors of queries, ``[H]``.
        cos, sin: cosines and sines of the angles, ``[..., T, 1, E]``, contiguous.
        extra: ``[B, T, G D]``, added to the values; None adds nothing.
    """
    qkv = qkv.contiguous()
    of_queries, of_keys, width = _shapes(qkv, heads, kv_heads)
    q, k, v = qkv.new_empty(of_queries), qkv.new_empty(of_keys), qkv.new_empty(of_keys)
    tokens = qkv.shape[0] * qkv.shape[1]
    tiles, constants = _launch("forward", tokens, heads, kv_heads, width, cos)
    with torch.cuda.device_of(qkv):
        _forward[(tiles,)](
            qkv,
            qkv if extra is None else extra.contiguous(),
            gain.contiguous(),
            cos.contiguous(),
            sin.contiguous(),
            q,
            k,
            v,
            tokens,
            qkv.shape[1],
            eps,
            EXTRA=extra is not None,
            **constants,
        )
    return q, k, v


@torch.library.custom_op("gptpack::split_heads_backward", mutates_args=())
def split_heads_backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor,
    gain: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of qkv and of the gain, the latter in float32."""
    qkv = qkv.contiguous()
    dqkv = torch.empty_like(qkv)
    tokens = qkv.shape[0] * qkv.shape[1]
    width = dq.shape[-1]
    tiles, constants = _launch("backward", tokens, heads, kv_heads, width, cos)
    programs = min(tiles, WAVES * _multiprocessors(qkv.device))
    partial = torch.empty(programs, heads, dtype=torch.float32, device=qkv.device)
    with torch.cuda.device_of(qkv):
        _backward[(programs,)](
            dq.contiguous(),
            dk.contiguous(),
            dv.contiguous(),
            qkv,
            dqkv,
            gain.contiguous(),
            cos.contiguous(),
            sin.contiguous(),
            partial,
            tokens,
            qkv.shape[1],
            eps,
            **constants,
        )
    return dqkv, partial.sum(0)


@split_heads.register_fake
def _(qkv, gain, cos, sin, extra, heads, kv_heads, eps):
    of_queries, of_keys, _ = _shapes(qkv, heads, kv_heads)
    return qkv.new_empty(of_queries), qkv.new_empty(of_keys), qkv.new_empty(of_keys)


@split_heads_backward.register_fake
def _(dq, dk, dv, qkv, gain, cos, sin, heads, kv_heads, eps):
    return qkv.new_empty(qkv.shape), gain.new_empty(gain.shape, dtype=torch.float32)


def _keep(ctx, inputs, output):
    qkv, gain, cos, sin, extra, ctx.heads, ctx.kv_heads, ctx.eps = inputs
    ctx.extra_shape = None if extra is None else extra.shape
    ctx.save_for_backward(qkv, gain, cos, sin)


def _gradients(ctx, dq, dk, dv):
    qkv, gain, cos, sin = ctx.saved_tensors
    dqkv, dgain = split_heads_backward(
        dq, dk, dv, qkv, gain, cos, sin, ctx.heads, ctx.kv_heads, ctx.eps
    )
    dextra = None if ctx.extra_shape is None else dv.reshape(ctx.extra_shape)
    return dqkv, dgain.to(gain.dtype), None, None, dextra, None, None, None


split_heads.register_autograd(_gradients, setup_context=_keep)
