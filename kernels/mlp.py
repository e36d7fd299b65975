"""Activations -> the MLP's output, with the squared rectifier inside the products.

Shape legend: N = tokens, W = width of the model, F = hidden width.

With ``r(z) = z if z > 0 else slope z``, up ``[F, W]`` and down ``[W, F]``:

    forward    pre = x up^T, post = r(pre)^2      one kernel
               y = post down^T                    cuBLAS
    backward   dpre = (dy down) * d post / d pre  one kernel
               dx = dpre up, dup = dpre^T x, ddown = dy^T post    cuBLAS

so that no pass over [N, F] is left outside of a product. Backward needs the derivative: with a
slope it is read off pre, ``2 pre`` or ``2 slope^2 pre``, which forward then keeps beside post;
without one it is ``2 sqrt(post)``, and post is kept for the product with dy anyway.

Products accumulate in float32, and float32 inputs are not rounded to TF32. The rectifier takes the
accumulator, not its rounding. One program stays on each multiprocessor and takes tile after tile,
the tiles of one row of x together: x is read from memory once, the weights stay in the L2 cache. On
Hopper tiles move by TMA, elsewhere (and where rows are no multiple of 16 bytes) by pointers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCKS = {
    ("tma", "forward"): (128, 256, 64, 2, 4, 8),
    ("tma", "backward"): (128, 256, 64, 2, 3, 8),
    ("pointers", "forward"): (128, 128, 32, 1, 4, 8),
    ("pointers", "backward"): (128, 128, 32, 1, 4, 8),
    ("float32", "forward"): (64, 64, 32, 1, 2, 4),
    ("float32", "backward"): (64, 64, 32, 1, 2, 4),
    ("interpreter", "forward"): (32, 32, 16, 2, 1, 1),
    ("interpreter", "backward"): (32, 32, 16, 2, 1, 1),
}
"""Rows, columns and depth of a tile, parts it is stored in, pipeline stages, warps."""
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _load(
    source,
    row,
    column,
    rows,
    columns,
    TMA: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile of a [rows, columns] matrix, with zeros outside of that."""
    if TMA:
        tile = source.load([row, column])
    else:
        r = (row + tl.arange(0, BLOCK_R))[:, None]
        c = (column + tl.arange(0, BLOCK_C))[None, :]
        mask = (r < rows) & (c < columns)
        tile = tl.load(source + r.to(tl.int64) * columns + c, mask=mask, other=0.0)
    return tile


@triton.jit
def _store(
    target,
    value,
    row,
    column,
    rows,
    columns,
    TMA: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    if TMA:
        target.store([row, column], value)
    else:
        r = (row + tl.arange(0, BLOCK_R))[:, None]
        c = (column + tl.arange(0, BLOCK_C))[None, :]
        mask = (r < rows) & (c < columns)
        tl.store(target + r.to(tl.int64) * columns + c, value, mask=mask)


@triton.jit
def _finish(
    product,
    saved,
    out,
    pre,
    row,
    column,
    rows,
    columns,
    slope,
    BACKWARD: tl.constexpr,
    LEAKY: tl.constexpr,
    TMA: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Apply the rectifier or its derivative to a part of a product's tile, and store it."""
    if BACKWARD:
        kept = _load(saved, row, column, rows, columns, TMA, BLOCK_R, BLOCK_C).to(tl.float32)
        half = tl.where(kept > 0, kept, slope * slope * kept) if LEAKY else tl.sqrt(kept)
        value = 2.0 * product * half
    else:
        if LEAKY:
            kept = product.to(DTYPE)
            _store(pre, kept, row, column, rows, columns, TMA, BLOCK_R, BLOCK_C)
        value = tl.where(product > 0, product, slope * product)
        value = value * value
    _store(out, value.to(DTYPE), row, column, rows, columns, TMA, BLOCK_R, BLOCK_C)


@triton.jit
def _product(
    left,  # x [N, W] forward, dy [N, W] backward
    weight,  # up [F, W] forward, down [W, F] backward
    saved,  # [N, F], read backward: pre if LEAKY, else post
    out,  # [N, F]: post forward, dpre backward
    pre,  # [N, F], written forward if LEAKY
    rows,
    hidden,
    width,
    slope,
    BACKWARD: tl.constexpr,
    LEAKY: tl.constexpr,
    TMA: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PARTS: tl.constexpr,
):
    columns = tl.cdiv(hidden, BLOCK_F)
    tiles = tl.cdiv(rows, BLOCK_N) * columns
    programs = tl.num_programs(0)
    # counted apart from the loop's own index, so that the loads of the next tile need not wait
    stored = tl.program_id(0) - programs
    for tile in tl.range(tl.program_id(0), tiles, programs, flatten=True):
        row, column = tile // columns * BLOCK_N, tile % columns * BLOCK_F
        sums = tl.zeros((BLOCK_N, BLOCK_F), tl.float32)
        for k in range(0, width, BLOCK_W):
            a = _load(left, row, k, rows, width, TMA, BLOCK_N, BLOCK_W)
            if BACKWARD:
                b = _load(weight, k, column, width, hidden, TMA, BLOCK_W, BLOCK_F)
            else:
                b = _load(weight, column, k, hidden, width, TMA, BLOCK_F, BLOCK_W).T
            sums = tl.dot(a, b, sums, input_precision=PRECISION)
        stored += programs
        row, column = stored // columns * BLOCK_N, stored % columns * BLOCK_F
        if PARTS == 1:
            _finish(
                sums, saved, out, pre, row, column, rows, hidden, slope,
                BACKWARD, LEAKY, TMA, DTYPE, BLOCK_N, BLOCK_F,
            )  # fmt: skip
        else:
            # half a tile at a time takes half the shared memory
            halves = tl.permute(tl.reshape(sums, (BLOCK_N, 2, BLOCK_F // 2)), (0, 2, 1))
            first, second = tl.split(halves)
            _finish(
                first, saved, out, pre, row, column, rows, hidden, slope,
                BACKWARD, LEAKY, TMA, DTYPE, BLOCK_N, BLOCK_F // 2,
            )  # fmt: skip
            _finish(
                second, saved, out, pre, row, column + BLOCK_F // 2, rows, hidden, slope,
                BACKWARD, LEAKY, TMA, DTYPE, BLOCK_N, BLOCK_F // 2,
            )  # fmt: skip


def by_tma(device: torch.device) -> bool:
    """Whether tiles move by TMA on `device` (Hopper and later); the interpreter imitates it."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] >= 9


def _described(matrices: list[Tensor]) -> bool:
    """Whether each matrix can be described to TMA: addresses and rows in units of 16 bytes."""
    return by_tma(matrices[0].device) and all(
        matrix.data_ptr() % 16 == 0 and matrix.shape[1] * matrix.element_size() % 16 == 0
        for matrix in matrices
    )


def _multiply(
    left: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    out: Tensor,
    pre: Tensor | None,
    slope: float,
) -> None:
    """Launch the forward product, or with `saved` the backward one; `pre`, if given, is written."""
    rows, width = left.shape
    hidden = out.shape[1]
    if not rows:
        return
    direction = "forward" if saved is None else "backward"
    tma = _described([left, weight, out])
    key = "tma" if tma else "pointers"
    if left.device.type != "cuda":
        key = "interpreter"
    elif left.dtype == torch.float32:
        key = "float32"
    block_n, block_f, block_w, parts, stages, warps = BLOCKS[key, direction]
    blocks = {
        "left": (left, [block_n, block_w]),
        "weight": (weight, [block_w, block_f] if saved is not None else [block_f, block_w]),
        "saved": (out if saved is None else saved, [block_n, block_f // parts]),
        "out": (out, [block_n, block_f // parts]),
        "pre": (out if pre is None else pre, [block_n, block_f // parts]),
    }
    arguments = {
        name: TensorDescriptor.from_tensor(matrix, block) if tma else matrix
        for name, (matrix, block) in blocks.items()
    }
    tiles = triton.cdiv(rows, block_n) * triton.cdiv(hidden, block_f)
    with torch.cuda.device_of(left):
        _product[(min(tiles, _multiprocessors(left.device)),)](
            **arguments,
            rows=rows,
            hidden=hidden,
            width=width,
            slope=slope,
            BACKWARD=saved is not None,
            LEAKY=slope != 0 if saved is not None else pre is not None,
            TMA=tma,
            DTYPE=DTYPES[left.dtype],
            PRECISION="ieee" if left.dtype == torch.float32 else "tf32",
            BLOCK_N=block_n,
            BLOCK_F=block_f,
            BLOCK_W=block_w,
            PARTS=parts,
            num_stages=stages,
            num_warps=warps,
        )


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


@torch.library.custom_op("gptpack::mlp", mutates_args=())
def mlp(
    x: Tensor, up: Tensor, down: Tensor, slope: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y ``[..., W]`` of x ``[..., W]``, and what a backward pass needs: post and pre ``[N, F]``.

    `pre` is empty unless it is needed: with a slope, and if `keep` says that backward will come.
    """
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    post = flat.new_empty(len(flat), len(up))
    pre = torch.empty_like(post) if slope and keep else flat.new_empty(0)
    _multiply(flat, up.contiguous(), None, post, pre if slope and keep else None, slope)
    return (post @ down.T).view(x.shape), post, pre


@torch.library.custom_op("gptpack::mlp_backward", mutates_args=())
def mlp_backward(dy: Tensor, down: Tensor, saved: Tensor, slope: float) -> Tensor:
    """dpre ``[N, F]`` of dy ``[N, W]``; `saved` is pre, or post if the slope is 0."""
    dpre = torch.empty_like(saved)
    _multiply(dy.contiguous(), down.contiguous(), saved, dpre, None, slope)
    return dpre


@mlp.register_fake
def _(x, up, down, slope, keep):
    rows = x.numel() // x.shape[-1]
    post = x.new_empty(rows, up.shape[0])
    return x.new_empty(x.shape), post, torch.empty_like(post) if slope and keep else x.new_empty(0)


@mlp_backward.register_fake
def _(dy, down, saved, slope):
    return torch.empty_like(saved)


def _keep(ctx, inputs, output):
    x, up, down, ctx.slope, keep = inputs
    _, post, pre = output
    assert keep, "the forward pass was told that no backward pass would come"
    ctx.mark_non_differentiable(post, pre)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, up, down, post, pre)


def _gradients(ctx, dy, *_):
    x, up, down, post, pre = ctx.saved_tensors
    dy = dy.reshape(-1, dy.shape[-1])
    dpre = mlp_backward(dy, down, pre if ctx.slope else post, ctx.slope)
    dup = dpre.T @ x.reshape(-1, x.shape[-1])
    return (dpre @ up).view(x.shape), dup, dy.T @ post, None, None


mlp.register_autograd(_gradients, setup_context=_keep)
