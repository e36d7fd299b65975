"""Queries, keys and values -> attention within each position's document and a window before it.

Shape legend: B = sequences, T = positions, S = the last positions, those with a query,
H = query heads, G = key/value heads, D = head width, N = blocks of 128 positions.

A position attends to those of its own document that are at most ``window - 1`` before it. Windows
are tensors, so that a compiled graph serves all stages of training; FlashAttention-3 alone takes
them as numbers of the graph.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask

from gptpack.families.golf.masks import attend_masked

BLOCK = 128
"""Positions of a side of FlexAttention's blocks."""
CHUNK = 1024
"""Queries that the masked fallback takes at a time; its masks are of ``CHUNK + window`` keys."""

Flash = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention that is given queries, keys and values alone."""
_MASKED = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
"""Backends that take a mask; flash does on the CPU only."""


class Window(NamedTuple):
    """What all layers of one window attend by in one pass."""

    ids: Tensor
    """Number of each position's document within its sequence, ``[B, T]``."""
    tokens: Tensor
    """The window, int64 ``[]``."""
    most: int
    """A bound of it that is known without the device: the longest of all stages. The fallback reads
    keys no further back."""
    blocks: BlockMask | None = None
    """The same for FlexAttention."""
    flash: Flash | None = None
    """Attention by a flash kernel that knows the rest. Without this and `blocks` it is the
    fallback's, masked, in chunks."""


def block_mask(ids_BT: Tensor, window: Tensor) -> BlockMask:
    """FlexAttention's mask, found block by block: no ``[T, T]`` is ever made.

    Of a pair of blocks, the distances of positions are ``128 (i - j)`` give or take 127, and the
    documents of each rise from the first position's to the last one's.
    """
    length = ids_BT.shape[1]
    count = -(-length // BLOCK)
    padded_BT = F.pad(ids_BT, (0, count * BLOCK - length), mode="constant", value=-1)
    # what is beyond the text is of the last document: too much is computed, nothing too little
    padded_BT = torch.where(padded_BT < 0, ids_BT[:, -1:], padded_BT)
    first_BN, last_BN = padded_BT[:, ::BLOCK], padded_BT[:, BLOCK - 1 :: BLOCK]
    number_N = torch.arange(count, device=ids_BT.device)
    apart_NN = number_N[:, None] - number_N[None, :]
    within_NN = (apart_NN >= 0) & ((apart_NN - 1) * BLOCK + 1 < window)
    inside_NN = (apart_NN > 0) & ((apart_NN + 1) * BLOCK - 1 < window)
    # a query's document comes never before a key's, so they meet if the key's last reaches it
    meet_BNN = within_NN & (last_BN[:, None, :] >= first_BN[:, :, None])
    same_BNN = inside_NN & (first_BN[:, None, :] == last_BN[:, :, None])
    if length % BLOCK:
        same_BNN = same_BNN & (number_N < count - 1)[:, None]

    def allowed(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q - k < window) & (ids_BT[b, q] == ids_BT[b, k])

    partial, full = _listed(meet_BNN & ~same_BNN), _listed(same_BNN)
    return BlockMask.from_kv_blocks(
        *partial,
        *full,
        BLOCK_SIZE=BLOCK,
        mask_mod=allowed,
        seq_lengths=(length, length),
    )


def _listed(chosen_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row of blocks has, and which, those first; for all heads."""
    counts_BN = chosen_BNN.sum(-1, dtype=torch.int32)
    order_BNN = chosen_BNN.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return counts_BN.unsqueeze(1), order_BNN.to(torch.int32).unsqueeze(1)


def document_starts(tokens: Tensor, bos: int) -> tuple[Tensor, Tensor]:
    """Where documents begin in `tokens` ``[B, T]``, one sequence after another, for flash kernels.

    The first result is int32 ``[M + 1]`` and ends with as many times B T as it takes: its length
    must not depend on the text, so M is one for each 64 tokens. The second says whether there are
    more documents than that.
    """
    batch, length = tokens.shape
    begins_BT = (tokens == bos) | (torch.arange(length, device=tokens.device) == 0)
    number = begins_BT.flatten().cumsum(0) - 1
    most = batch * (length // 64 + 1)
    starts = number.new_full((most + 1,), batch * length)
    place = torch.arange(batch * length, device=tokens.device)
    starts = starts.scatter_reduce(0, number.clamp(max=most), place, "amin")
    return starts.to(torch.int32), number[-1] >= most


def attend_within(q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
    """Softmax attention; q ``[B, S, H, D]``, k and v ``[B, T, G, D]``, out like q.

    The queries are those of the last S of T positions.
    """
    if window.flash is not None:
        return window.flash(q, k, v)
    if window.blocks is not None:
        heads = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return attend_masked(*heads, window.blocks).transpose(1, 2)
    queries, keys = q.shape[1], k.shape[1]
    parts = [
        _attend_chunk(q, k, v, window, start, min(start + CHUNK, queries), keys - queries)
        for start in range(0, queries, CHUNK)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _attend_chunk(
    q: Tensor, k: Tensor, v: Tensor, window: Window, start: int, stop: int, before: int
) -> Tensor:
    """Attention of the queries from `start` to `stop`, of which `before` positions have none."""
    first = max(0, before + start + 1 - window.most)
    last = before + stop
    ids_BT, place_T = window.ids[:, first:last], torch.arange(first, last, device=q.device)
    apart_ST = place_T[start - stop :, None] - place_T[None, :]
    near_ST = (apart_ST >= 0) & (apart_ST < window.tokens)
    allowed = near_ST & (ids_BT[:, start - stop :, None] == ids_BT[:, None, :])
    q, k, v = q[:, start:stop], k[:, first:last], v[:, first:last]
    with sdpa_kernel(_MASKED, set_priority=True):
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=allowed.unsqueeze(1),
            enable_gqa=q.shape[2] != k.shape[2],
        )
    return y.transpose(1, 2)
