"""Weights -> smaller weights: decay that is decoupled from the gradients, plain or cautious."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def decay_weights(weights: Sequence[Tensor], amount: float) -> None:
    """Shrink `weights` by `amount` of themselves. Loshchilov and Hutter 2019."""
    torch._foreach_mul_(list(weights), 1 - amount)


@torch.no_grad()
def decay_cautiously(
    weights: Sequence[Tensor], updates: Sequence[Tensor], amount: float, *, strict: bool
) -> None:
    """Shrink by `amount` those numbers in `weights` that the update, once subtracted, shrinks too.

    Chen et al. 2025, https://arxiv.org/abs/2510.12402

    Args:
        updates: what will be subtracted, up to a positive factor; of the weights' dtype.
        strict: do not decay numbers whose update is 0, such as rows of a table that no token had.
            Speedruns do so in Adam, and not in Muon.
    """
    shrunk = torch._foreach_mul(list(updates), list(weights))
    torch._foreach_sign_(shrunk)
    if not strict:
        torch._foreach_add_(shrunk, 1)
        torch._foreach_clamp_max_(shrunk, 1)
    torch._foreach_clamp_min_(shrunk, 0)
    torch._foreach_mul_(shrunk, list(weights))
    torch._foreach_add_(list(weights), shrunk, alpha=-amount)
