"""Softcapped cross entropy: logits become losses and their own gradient where they stand.

Shape legend: N = tokens, W = width of the model, V = vocabulary.

With ``d = 2 / (1 + exp(2 l / c))`` of the logits l,

    z = c tanh(l / c) = c - c d
    loss = logsumexp(z) - z_target
    dloss / dl = (exp(z - logsumexp(z)) - [target]) d (2 - d)

One program holds whole rows in registers: it reads the logits once, in their own precision,
computes in float32, and overwrites them with the gradient of each token's own loss. What comes back
as gradient of the losses then scales rows of the narrow side of both products,

    dhidden = diag(g) (dl head)        dhead = dl^T (diag(g) hidden)

so that [N, V] is written by its product, read and written here, and read by two products; the usual
way reads it once more. Losses are float32. A target of -100 has no loss and no gradient; any other
target outside the vocabulary has the loss nan.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

IGNORED = -100
TILE = 1024
"""Logits of a tile where rows are shorter than that; otherwise a tile is a row."""
LOGITS_PER_WARP = 512
BOUND = 40.0
"""Largest cap c for which no sum of exp(-2 c) leaves float32; with a larger one, a row's largest z
is subtracted."""
REGISTERS = 64
"""Registers of a thread: with 16 logits to each, two rows of 8,192 fit at a time."""


@triton.jit
def _capped(logits, cap, EXACT: tl.constexpr):
    """The factor d of `logits`, and z up to a constant."""
    d = 2.0 / (1.0 + tl.exp2(logits * (2.885390081777927 / cap)))  # 2 / ln 2
    if EXACT:
        # near 0, 1 - d has lost the digits that float32 logits have
        u = logits / cap
        v = u * u
        near = v * (-17 / 315 + v * (62 / 2835))
        near = u + u * v * (-1 / 3 + v * (2 / 15 + near))
        z = cap * tl.where(v < 0.06, near, 1.0 - d)
    else:
        z = -cap * d
    return d, z


@triton.jit
def _losses(
    logits_ptr,  # [N, V]; the gradient in its place if GRADIENT
    targets_ptr,  # [N] int64
    losses_ptr,  # [N] float32
    rows,
    cap,
    GRADIENT: tl.constexpr,
    EXACT: tl.constexpr,
    BOUNDED: tl.constexpr,
    IGNORED: tl.constexpr,
    VOCAB: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_V)
    exists = row < rows
    mask = exists[:, None] & (column < VOCAB)[None, :]
    start = logits_ptr + row.to(tl.int64) * VOCAB
    place = start[:, None] + column[None, :]
    logits = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    target = tl.load(targets_ptr + row, mask=exists, other=IGNORED)
    known = (target >= 0) & (target < VOCAB)
    chosen = tl.load(start + target, mask=exists & known, other=0.0).to(tl.float32)
    _, chosen = _capped(chosen, cap, EXACT)
    d, z = _capped(logits, cap, EXACT)
    if BOUNDED:
        # z lies in [-2 c, 0]
        top = tl.zeros((ROWS,), tl.float32)
    else:
        top = tl.max(tl.where(mask, z, -2.0 * cap), axis=1)
    e = tl.exp2((z - top[:, None]) * 1.4426950408889634)
    if VOCAB != BLOCK_V:
        e = tl.where((column < VOCAB)[None, :], e, 0.0)
    total = tl.sum(e, axis=1)
    loss = tl.where(known, tl.log(total) + (top - chosen), float("nan"))
    tl.store(losses_ptr + row, tl.where(target == IGNORED, 0.0, loss), mask=exists)
    if GRADIENT:
        # every warp has read its target's logit before any warp overwrites a row
        tl.debug_barrier()
        # an ignored target has no hit, and everything times 0
        share = tl.where(known, 1.0 / total, 0.0)
        hit = column[None, :] == tl.where(known, target, -1).to(tl.int32)[:, None]
        gradient = (e * share[:, None] - tl.where(hit, 1.0, 0.0)) * (d * (2.0 - d))
        tl.store(place, gradient.to(logits_ptr.dtype.element_ty), mask=mask)


def _launch(logits: Tensor, targets: Tensor, cap: float, *, gradient: bool) -> Tensor:
    """Losses ``[N]`` of contiguous `logits`; with `gradient`, that stands in their place after."""
    rows, vocab = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if not rows:
        return losses
    block = triton.next_power_of_2(vocab)
    tokens = max(1, TILE // block)
    warps = max(1, min(32, tokens * block // LOGITS_PER_WARP))
    with torch.cuda.device_of(logits):
        _losses[(triton.cdiv(rows, tokens),)](
            logits,
            targets.contiguous(),
            losses,
            rows,
            cap,
            GRADIENT=gradient,
            EXACT=logits.dtype == torch.float32,
            BOUNDED=cap <= BOUND and logits.dtype != torch.float32,
            IGNORED=IGNORED,
            VOCAB=vocab,
            ROWS=tokens,
            BLOCK_V=block,
            num_warps=warps,
            maxnreg=REGISTERS,
        )
    return losses


@torch.library.custom_op("gptpack::head_losses", mutates_args=())
def head_losses(
    hidden: Tensor, head: Tensor, targets: Tensor, cap: float, keep: bool
) -> tuple[Tensor, Tensor]:
    """Losses ``[N]`` (float32) of hidden ``[N, W]``, head ``[V, W]`` and targets ``[N]``.

    The second result is the gradient of each loss in its logits, ``[N, V]`` in the inputs' dtype,
    or empty unless `keep` says that a backward pass will come.
    """
    logits = hidden @ head.T
    losses = _launch(logits, targets, cap, gradient=keep)
    return losses, logits if keep else hidden.new_empty(0)


@head_losses.register_fake
def _(hidden, head, targets, cap, keep):
    rows = hidden.shape[0]
    gradient = hidden.new_empty(rows, head.shape[0]) if keep else hidden.new_empty(0)
    return hidden.new_empty(rows, dtype=torch.float32), gradient


def _keep(ctx, inputs, output):
    hidden, head, _, _, keep = inputs
    assert keep, "the forward pass was told that no backward pass would come"
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, head, output[1])


def _gradients(ctx, dlosses, _):
    hidden, head, gradient = ctx.saved_tensors
    scale = dlosses.unsqueeze(1)
    dhidden = ((gradient @ head) * scale).to(hidden.dtype)
    dhead = gradient.T @ (hidden * scale).to(hidden.dtype)
    return dhidden, dhead, None, None, None


head_losses.register_autograd(_gradients, setup_context=_keep)
