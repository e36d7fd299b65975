"""Symmetric products: one triangle of tiles is computed, the other is its mirror.

Shape legend: N = matrices of equal shape, R = rows, C = columns, T = tokens, S = parts of them.

    gram              x x^T                 x [N, R, C]
    gram_polynomial   b A + c A^2           A [N, R, R], symmetric: A^2 = A A^T
    add_moments       total += x^T x        x [T, C], total float32 [C, C]

A program makes the tile of rows i and columns j >= i, and stores what lies on or above the diagonal
twice: results are symmetric to the bit. With B tiles of rows that is B (B + 1) / 2 of B^2 tiles, 10
of 16 at 512 rows and tiles of 128. Products accumulate in float32, of float32 inputs without TF32;
b A is added to the accumulator. Any strides will do: a tall matrix comes as a transposed view.

`add_moments` has one product of few tiles and great depth. Its tokens are cut into S parts, which
are S products of one batch; torch adds them up in order, so runs agree to the bit.

No gradients: these are steps of an optimizer and of calibration.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS = {
    ("hopper", "large"): (128, 64, 3, 8),
    ("hopper", "small"): (64, 64, 4, 4),
    ("older", "large"): (128, 32, 4, 8),
    ("older", "small"): (64, 32, 4, 4),
    ("float32", "large"): (64, 32, 2, 4),
    ("float32", "small"): (64, 32, 2, 4),
    ("interpreter", "large"): (16, 16, 1, 1),
    ("interpreter", "small"): (16, 16, 1, 1),
}
"""Rows (and columns) of a tile, its depth, pipeline stages, warps."""
LEAST_PART = 1024
"""Tokens that are worth a program's start, its tile in memory and another sum."""


@triton.jit
def _symmetric(
    x_ptr,  # [N, R, K], any strides; K of the last may end early
    add_ptr,  # [N, R, R], read if ADD
    out_ptr,  # [N, R, R]
    matrix_stride,
    row_stride,
    column_stride,
    rows,
    depth,  # K
    total_depth,  # N K, or less: what the last matrix does not have
    scale,
    add_scale,
    tiles,
    ADD: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """``out = scale x x^T``, and ``+ add_scale add`` if ADD; contiguous add and out."""
    matrix = (tl.program_id(0) // tiles).to(tl.int64)
    place = tl.program_id(0) % tiles
    # tile (i, j) of the triangle is at place j (j + 1) / 2 + i; the root may be off by a rounding
    j = ((tl.sqrt(8.0 * place.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    j -= (j * (j + 1) // 2 > place).to(tl.int32)
    j += ((j + 1) * (j + 2) // 2 <= place).to(tl.int32)
    i = place - j * (j + 1) // 2

    r = i * BLOCK + tl.arange(0, BLOCK)
    c = j * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, DEPTH)
    first = x_ptr + matrix * matrix_stride + r.to(tl.int64)[:, None] * row_stride
    second = x_ptr + matrix * matrix_stride + c.to(tl.int64)[None, :] * row_stride
    left = total_depth - matrix * depth
    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, tl.minimum(depth, left).to(tl.int32), DEPTH):
        here = start + k
        across = here.to(tl.int64) * column_stride
        a_mask, b_mask = (r < rows)[:, None], (c < rows)[None, :]
        if MASKED:
            inside = (here < depth) & (here < left)
            a_mask, b_mask = a_mask & inside[None, :], b_mask & inside[:, None]
        a = tl.load(first + across[None, :], mask=a_mask, other=0.0)
        b = tl.load(second + across[:, None], mask=b_mask, other=0.0)
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    sums *= scale
    plane = matrix * rows * rows
    target = plane + r.to(tl.int64)[:, None] * rows + c[None, :]
    mirror = plane + c.to(tl.int64)[:, None] * rows + r[None, :]
    there = (r < rows)[:, None] & (c < rows)[None, :]
    mirrored = (c < rows)[:, None] & (r < rows)[None, :]
    if ADD:
        sums += add_scale * tl.load(add_ptr + target, mask=there, other=0.0).to(tl.float32)
    value = sums.to(out_ptr.dtype.element_ty)
    # kept apart, as stores that a diagonal cuts go number by number
    if i == j:
        there = there & (r[:, None] <= c[None, :])
        mirrored = mirrored & (c[:, None] > r[None, :])
        tl.store(out_ptr + target, value, mask=there)
        tl.store(out_ptr + mirror, tl.trans(value), mask=mirrored)
    else:
        tl.store(out_ptr + target, value, mask=there)
        tl.store(out_ptr + mirror, tl.trans(value), mask=mirrored)


def _path(x: Tensor) -> str:
    if x.device.type != "cuda":
        return "interpreter"
    if x.dtype == torch.float32:
        return "float32"
    return "hopper" if torch.cuda.get_device_capability(x.device)[0] >= 9 else "older"


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def _triangle(rows: int, block: int) -> int:
    """Tiles on and above the diagonal."""
    blocks: int = triton.cdiv(rows, block)
    return blocks * (blocks + 1) // 2


def _launch(
    x: Tensor,
    out: Tensor,
    size: str,
    *,
    strides: tuple[int, ...],
    depth: int,
    total_depth: int,
    scale: float = 1.0,
    add: Tensor | None = None,
    add_scale: float = 0.0,
) -> None:
    """Fill `out` ``[N, R, R]`` from matrices ``[N, R, depth]`` that lie in `x` by `strides`."""
    matrices, rows, _ = out.shape
    block, step, stages, warps = BLOCKS[_path(x), size]
    tiles = _triangle(rows, block)
    if not out.numel():
        return
    with torch.cuda.device_of(x):
        _symmetric[(matrices * tiles,)](
            x,
            out if add is None else add,
            out,
            *strides,
            rows,
            depth,
            total_depth,
            scale,
            add_scale,
            tiles,
            ADD=add is not None,
            MASKED=depth % step != 0 or total_depth % step != 0,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            BLOCK=block,
            DEPTH=step,
            num_stages=stages,
            num_warps=warps,
        )


def _multiply(
    x: Tensor, *, scale: float = 1.0, add: Tensor | None = None, add_scale: float = 0.0
) -> Tensor:
    """``scale x x^T + add_scale add`` of each matrix of x ``[N, R, C]``, in its dtype."""
    matrices, rows, columns = x.shape
    out = x.new_empty(matrices, rows, rows)
    tiles = matrices * _triangle(rows, BLOCKS[_path(x), "large"][0])
    _launch(
        x,
        out,
        "large" if tiles >= _multiprocessors(x.device) else "small",
        strides=x.stride(),
        depth=columns,
        total_depth=matrices * columns,
        scale=scale,
        add=add,
        add_scale=add_scale,
    )
    return out


@torch.library.custom_op("gptpack::gram", mutates_args=())
def gram(x: Tensor) -> Tensor:
    """``x x^T`` of each matrix, ``[N, R, R]``; x is ``[N, R, C]``, any strides."""
    return _multiply(x)


@torch.library.custom_op("gptpack::gram_polynomial", mutates_args=())
def gram_polynomial(a: Tensor, b: float, c: float) -> Tensor:
    """``b A + c A^2`` of symmetric matrices ``[N, R, R]``, rounded once."""
    a = a.contiguous()
    return _multiply(a, scale=c, add=a, add_scale=b)


@torch.library.custom_op("gptpack::add_moments", mutates_args=("total",))
def add_moments(total: Tensor, x: Tensor) -> None:
    """Add ``x^T x`` to `total`, float32 ``[C, C]``; x is ``[T, C]``, any strides."""
    tokens, columns = x.shape
    block, step, _, _ = BLOCKS[_path(x), "large"]
    wanted = triton.cdiv(2 * _multiprocessors(x.device), _triangle(columns, block))
    part = triton.cdiv(tokens, max(1, min(wanted, tokens // LEAST_PART)))
    part = max(1, triton.cdiv(part, step)) * step
    parts = triton.cdiv(tokens, part)
    sums = total.new_empty(parts, columns, columns)
    row, column = x.stride()
    # what the last part has beyond the last token is not read
    strides = (part * row, column, row)
    _launch(x, sums, "large", strides=strides, depth=part, total_depth=tokens)
    total += sums.sum(0)


@gram.register_fake
def _(x):
    return x.new_empty(x.shape[0], x.shape[1], x.shape[1])


@gram_polynomial.register_fake
def _(a, b, c):
    return a.new_empty(a.shape)


@add_moments.register_fake
def _(total, x):
    return None
