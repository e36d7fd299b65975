"""The residual stream's step and the norm after it, in one pass each way.

Shape legend: N = tokens, W = width of the model, P = programs.

    mix_norm   y = m0 x + m1 x0          h = s y / rms(y)
    add_norm   y = x + branch            h = s y / rms(y)

with m0, m1 per channel and ``rms(y)^2 = mean(y^2) + eps`` over a token's channels. Backward, with
g = s dh and u = y / rms(y):

    dy_total = dy + (g - u mean(g u)) / rms(y)
    mix_norm: dx = m0 dy_total, dx0 = m1 dy_total, dm0 = sum_N dy_total x, dm1 = sum_N dy_total x0
    add_norm: dx = dbranch = dy_total, one tensor

Sums over a token are made in float32 registers. The sums over tokens are made in two stages, so
that they do not depend on who comes first: each program adds up the tokens it loops over, torch
adds up the programs. `mix_norm` makes y again from x and x0, which its backward reads anyway, in
place of reading it.

Bytes a token moves, in tensors of W: mix_norm 4 forward and 6 backward, add_norm 4 and 4.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILES = {"forward": (4, 4), "add backward": (4, 4), "mix backward": (4, 4)}
"""Tokens of a tile and warps of a program where a token is 512 channels."""
WAVES = 4
"""Programs on each multiprocessor that add up the gradients of channels."""


@triton.jit
def _tile(block, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK_W: tl.constexpr):
    """Offsets into a contiguous [N, W] tensor, int64, and which of them lie in it."""
    row = block * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_W)
    offsets = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    return offsets, (row < rows)[:, None] & (column < WIDTH)[None, :]


@triton.jit
def _channels(pointer, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr):
    column = tl.arange(0, BLOCK_W)
    return tl.load(pointer + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _norm_backward(dh, y, scale, eps, WIDTH: tl.constexpr):
    """Gradient of ``scale y / rms(y)`` in y."""
    inverse = tl.rsqrt(tl.sum(y * y, axis=1) / WIDTH + eps)[:, None]
    unit = y * inverse
    g = dh * scale
    return (g - unit * (tl.sum(g * unit, axis=1) / WIDTH)[:, None]) * inverse


@triton.jit
def _forward(
    x_ptr,  # [N, W]
    other_ptr,  # [N, W], x0 or the branch
    mix_ptr,  # [2, W], read if MIX
    y_ptr,  # [N, W]
    h_ptr,  # [N, W]
    rows,
    scale,
    eps,
    MIX: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    offsets, mask = _tile(tl.program_id(0), rows, WIDTH, ROWS, BLOCK_W)
    y = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(other_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if MIX:
        y = _channels(mix_ptr, WIDTH, BLOCK_W) * y
        y += _channels(mix_ptr + WIDTH, WIDTH, BLOCK_W) * other
    else:
        y += other
    # the norm is of what is stored, as it is in torch
    stored = y.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + offsets, stored, mask=mask)
    y = stored.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(y * y, axis=1) / WIDTH + eps)[:, None]
    tl.store(h_ptr + offsets, (y * (inverse * scale)).to(h_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _add_backward(
    dy_ptr,  # [N, W]
    dh_ptr,  # [N, W]
    y_ptr,  # [N, W]
    dx_ptr,  # [N, W]
    rows,
    scale,
    eps,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    offsets, mask = _tile(tl.program_id(0), rows, WIDTH, ROWS, BLOCK_W)
    y = tl.load(y_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    dh = tl.load(dh_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    dy += _norm_backward(dh, y, scale, eps, WIDTH)
    tl.store(dx_ptr + offsets, dy.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _mix_backward(
    dy_ptr,  # [N, W]
    dh_ptr,  # [N, W]
    x_ptr,  # [N, W]
    x0_ptr,  # [N, W]
    mix_ptr,  # [2, W]
    dx_ptr,  # [N, W]
    dx0_ptr,  # [N, W]
    dmix_ptr,  # [P, 2, W] float32
    rows,
    scale,
    eps,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    program = tl.program_id(0)
    m0, m1 = _channels(mix_ptr, WIDTH, BLOCK_W), _channels(mix_ptr + WIDTH, WIDTH, BLOCK_W)
    # summed over the tokens of a tile only at the end: that needs the other warps
    sum0 = tl.zeros((ROWS, BLOCK_W), tl.float32)
    sum1 = tl.zeros((ROWS, BLOCK_W), tl.float32)
    for block in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        offsets, mask = _tile(block, rows, WIDTH, ROWS, BLOCK_W)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        x0 = tl.load(x0_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        dh = tl.load(dh_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        y = (m0 * x + m1 * x0).to(dx_ptr.dtype.element_ty).to(tl.float32)
        dy += _norm_backward(dh, y, scale, eps, WIDTH)
        tl.store(dx_ptr + offsets, (m0 * dy).to(dx_ptr.dtype.element_ty), mask=mask)
        tl.store(dx0_ptr + offsets, (m1 * dy).to(dx0_ptr.dtype.element_ty), mask=mask)
        sum0 += dy * x
        sum1 += dy * x0
    column = tl.arange(0, BLOCK_W)
    partial = dmix_ptr + program.to(tl.int64) * (2 * WIDTH) + column
    tl.store(partial, tl.sum(sum0, axis=0), mask=column < WIDTH)
    tl.store(partial + WIDTH, tl.sum(sum1, axis=0), mask=column < WIDTH)


def _launch(which: str, rows: int, width: int) -> tuple[int, dict[str, int]]:
    """Tiles that cover `rows`, and the constants of a launch; wider tokens get fewer to a tile."""
    tokens, warps = TILES[which]
    block = triton.next_power_of_2(width)
    tokens = max(1, min(tokens, tokens * 512 // block))
    constants = {"WIDTH": width, "ROWS": tokens, "BLOCK_W": block, "num_warps": warps}
    return triton.cdiv(rows, tokens), constants


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _step(
    x: Tensor, other: Tensor, mix: Tensor | None, scale: float, eps: float
) -> tuple[Tensor, Tensor]:
    x, other = x.contiguous(), other.contiguous()
    y, h = torch.empty_like(x), torch.empty_like(x)
    width = x.shape[-1]
    rows = x.numel() // width
    tiles, constants = _launch("forward", rows, width)
    with torch.cuda.device_of(x):
        _forward[(tiles,)](
            x,
            other,
            x if mix is None else mix.contiguous(),
            y,
            h,
            rows,
            scale,
            eps,
            MIX=mix is not None,
            **constants,
        )
    return y, h


@torch.library.custom_op("gptpack::mix_norm", mutates_args=())
def mix_norm(x: Tensor, x0: Tensor, mix: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor]:
    """``y = mix[0] x + mix[1] x0`` and ``scale y / rms(y)``, ``[..., W]``; mix is ``[2, W]``."""
    return _step(x, x0, mix, scale, eps)


@torch.library.custom_op("gptpack::add_norm", mutates_args=())
def add_norm(x: Tensor, branch: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor]:
    """``y = x + branch`` and ``scale y / rms(y)``, all ``[..., W]``."""
    return _step(x, branch, None, scale, eps)


@torch.library.custom_op("gptpack::mix_norm_backward", mutates_args=())
def mix_norm_backward(
    dy: Tensor, dh: Tensor, x: Tensor, x0: Tensor, mix: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in x, x0 and mix, the last in float32."""
    dy, dh, x, x0 = dy.contiguous(), dh.contiguous(), x.contiguous(), x0.contiguous()
    dx, dx0 = torch.empty_like(x), torch.empty_like(x)
    width = x.shape[-1]
    rows = x.numel() // width
    tiles, constants = _launch("mix backward", rows, width)
    programs = min(tiles, WAVES * _multiprocessors(x.device))
    partial = torch.empty(programs, 2, width, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _mix_backward[(programs,)](
            dy, dh, x, x0, mix.contiguous(), dx, dx0, partial, rows, scale, eps, **constants
        )
    return dx, dx0, partial.sum(0)


@torch.library.custom_op("gptpack::add_norm_backward", mutates_args=())
def add_norm_backward(dy: Tensor, dh: Tensor, y: Tensor, scale: float, eps: float) -> Tensor:
    """Gradient in x, which is that in the branch as well."""
    dy, dh, y = dy.contiguous(), dh.contiguous(), y.contiguous()
    dx = torch.empty_like(y)
    width = y.shape[-1]
    rows = y.numel() // width
    tiles, constants = _launch("add backward", rows, width)
    with torch.cuda.device_of(y):
        _add_backward[(tiles,)](dy, dh, y, dx, rows, scale, eps, **constants)
    return dx


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@mix_norm.register_fake
def _(x, x0, mix, scale, eps):
    return _like(x), _like(x)


@add_norm.register_fake
def _(x, branch, scale, eps):
    return _like(x), _like(x)


@mix_norm_backward.register_fake
def _(dy, dh, x, x0, mix, scale, eps):
    return _like(x), _like(x), mix.new_empty(mix.shape, dtype=torch.float32)


@add_norm_backward.register_fake
def _(dy, dh, y, scale, eps):
    return _like(y)


def _keep_mix(ctx, inputs, output):
    x, x0, mix, ctx.scale, ctx.eps = inputs
    ctx.save_for_backward(x, x0, mix)


def _mix_gradients(ctx, dy, dh):
    x, x0, mix = ctx.saved_tensors
    dx, dx0, dmix = mix_norm_backward(dy, dh, x, x0, mix, ctx.scale, ctx.eps)
    return dx, dx0, dmix.to(mix.dtype), None, None


def _keep_add(ctx, inputs, output):
    _, _, ctx.scale, ctx.eps = inputs
    ctx.save_for_backward(output[0])


def _add_gradients(ctx, dy, dh):
    (y,) = ctx.saved_tensors
    dx = add_norm_backward(dy, dh, y, ctx.scale, ctx.eps)
    return dx, dx, None, None


mix_norm.register_autograd(_mix_gradients, setup_context=_keep_mix)
add_norm.register_autograd(_add_gradients, setup_context=_keep_add)
