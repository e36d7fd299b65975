"""Attention's output and values -> the output without its share of the token's own value (XSA).

Shape legend: N = B T tokens, H = query heads, G = key/value heads, D = width of a head; heads
``h = g H / G + j`` share the value of g.

With ``u = v / |v|`` and, for a gradient z of the result, ``a = y . u`` and ``b = z . u``,

    forward     y - a u
    backward    dy = z - b u        du = -sum_j (a z + b y)        dv = (du - (du . u) u) / |v|

Sums over a head are made in float32 registers, and those over the heads of a value in the order of
the heads, so that runs agree to the bit. A length of ``SHORTEST`` or less counts as that.

A token moves ``2 H + G`` heads' numbers forward and ``3 H + 2 G`` backward; what torch.compile
makes of it reads most of them twice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SHORTEST = 1e-12
"""As in `torch.nn.functional.normalize`."""
CHANNELS = 1024
"""Numbers of a tile: so many channels of values."""
WARPS = 4


@triton.jit
def _unit(v_ptr, place, mask, SHORTEST: tl.constexpr):
    """Values over their lengths, one over these, and whether they are above `SHORTEST`."""
    v = tl.load(v_ptr + place, mask=mask, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(v * v, axis=1))
    inverse = 1.0 / tl.maximum(length, SHORTEST)
    return v * inverse[:, None], inverse, length > SHORTEST


@triton.jit
def _places(rows, SHARING: tl.constexpr, WIDTH: tl.constexpr, R: tl.constexpr, D: tl.constexpr):
    """Where a tile's values begin, and the first of their heads, and which of both exist."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column = tl.arange(0, D)
    mask = (row < rows)[:, None] & (column < WIDTH)[None, :]
    value = (row * WIDTH)[:, None] + column[None, :]
    return value, (row * SHARING * WIDTH)[:, None] + column[None, :], mask


@triton.jit
def _forward(
    y_ptr,  # [N, H, D]
    v_ptr,  # [N, G, D]
    out_ptr,  # [N, H, D]
    rows,  # N G
    SHARING: tl.constexpr,
    WIDTH: tl.constexpr,
    SHORTEST: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
):
    value, head, mask = _places(rows, SHARING, WIDTH, R, D)
    unit, _, _ = _unit(v_ptr, value, mask, SHORTEST)
    for j in tl.static_range(SHARING):
        y = tl.load(y_ptr + head + j * WIDTH, mask=mask, other=0.0).to(tl.float32)
        y -= tl.sum(y * unit, axis=1)[:, None] * unit
        tl.store(out_ptr + head + j * WIDTH, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    z_ptr,  # [N, H, D]
    y_ptr,  # [N, H, D]
    v_ptr,  # [N, G, D]
    dy_ptr,  # [N, H, D]
    dv_ptr,  # [N, G, D]
    rows,
    SHARING: tl.constexpr,
    WIDTH: tl.constexpr,
    SHORTEST: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
):
    value, head, mask = _places(rows, SHARING, WIDTH, R, D)
    unit, inverse, turns = _unit(v_ptr, value, mask, SHORTEST)
    du = tl.zeros((R, D), tl.float32)
    for j in tl.static_range(SHARING):
        z = tl.load(z_ptr + head + j * WIDTH, mask=mask, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + head + j * WIDTH, mask=mask, other=0.0).to(tl.float32)
        a = tl.sum(y * unit, axis=1)[:, None]
        b = tl.sum(z * unit, axis=1)[:, None]
        dy = z - b * unit
        tl.store(dy_ptr + head + j * WIDTH, dy.to(dy_ptr.dtype.element_ty), mask=mask)
        du -= a * z + b * y
    along = tl.where(turns, tl.sum(du * unit, axis=1), 0.0)
    dv = (du - along[:, None] * unit) * inverse[:, None]
    tl.store(dv_ptr + value, dv.to(dv_ptr.dtype.element_ty), mask=mask)


def _launch(y: Tensor, v: Tensor) -> tuple[tuple[int], int, dict[str, int | float]]:
    """The grid, the number of values, and a launch's constants."""
    heads, width = y.shape[-2:]
    channels = triton.next_power_of_2(width)
    tile = max(1, CHANNELS // channels)
    rows = v.numel() // width
    constants: dict[str, int | float] = {
        "SHARING": heads // v.shape[-2],
        "WIDTH": width,
        "SHORTEST": SHORTEST,
        "R": tile,
        "D": channels,
        "num_warps": WARPS,
    }
    return (triton.cdiv(rows, tile),), rows, constants


@torch.library.custom_op("gptpack::remove_own_value", mutates_args=())
def remove_own_value(y: Tensor, v: Tensor) -> Tensor:
    """`y` ``[B, T, H, D]`` without its projections on v ``[B, T, G, D]``, contiguous."""
    y, v = y.contiguous(), v.contiguous()
    out = torch.empty_like(y)
    grid, rows, constants = _launch(y, v)
    with torch.cuda.device_of(y):
        _forward[grid](y, v, out, rows, **constants)
    return out


@torch.library.custom_op("gptpack::remove_own_value_backward", mutates_args=())
def remove_own_value_backward(z: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y and v, for the gradient z of the result."""
    z, y, v = z.contiguous(), y.contiguous(), v.contiguous()
    dy, dv = torch.empty_like(y), torch.empty_like(v)
    grid, rows, constants = _launch(y, v)
    with torch.cuda.device_of(y):
        _backward[grid](z, y, v, dy, dv, rows, **constants)
    return dy, dv


@remove_own_value.register_fake
def _(y, v):
    return y.new_empty(y.shape)


@remove_own_value_backward.register_fake
def _(z, y, v):
    return y.new_empty(y.shape), v.new_empty(v.shape)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, z):
    return remove_own_value_backward(z, *ctx.saved_tensors)


remove_own_value.register_autograd(_gradients, setup_context=_keep)
