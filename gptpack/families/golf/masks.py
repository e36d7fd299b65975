"""Tokens -> a mask of the earlier positions that each position may attend to.

Shape legend: B = sequences, T = positions, S = the last positions, those with a query.
"""

from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Mask: TypeAlias = Tensor | BlockMask
"""Booleans that are true where a position may attend, ``[B, 1, S, T]``; in blocks for
FlexAttention."""


def document_ids(tokens: Tensor, bos: int) -> Tensor:
    """The number of each token's document within its sequence, ``[B, T]``, counted at `bos`."""
    return (tokens == bos).cumsum(1)


def document_mask(tokens: Tensor, bos: int, *, last: int | None = None) -> Mask:
    """The mask of causal attention within a document, for tokens ``[B, T]``.

    On CUDA it is made in blocks, so that attention skips other documents; elsewhere, and for the
    `last` so many positions alone, in full.
    """
    ids_BT = document_ids(tokens, bos)
    batch, length = tokens.shape
    if last is not None or tokens.device.type != "cuda":
        late_BS = ids_BT if last is None else ids_BT[:, -last:]
        queries = late_BS.shape[1]
        causal_ST = torch.ones(queries, length, dtype=torch.bool, device=tokens.device)
        same_BST = late_BS.unsqueeze(2) == ids_BT.unsqueeze(1)
        return same_BST.unsqueeze(1) & causal_ST.tril(length - queries)

    def allowed(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (ids_BT[b, q] == ids_BT[b, k])

    return create_block_mask(allowed, batch, None, length, length, device=tokens.device)


@cache
def _compiled() -> Any:
    """FlexAttention, compiled: only then has it a kernel, and else it computes all scores."""
    return torch.compile(flex_attention, dynamic=False)


def attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Softmax attention under `mask`; q ``[B, H, T, D]``, k and v ``[B, G, T, D]``, out like q."""
    call = flex_attention if torch.compiler.is_compiling() else _compiled()
    found: Tensor = call(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return found
