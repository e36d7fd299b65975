"""A layer's output -> the same without some of its numbers, chosen by a hash of where they stand.

torch's dropout draws each number by Philox, some hundred integer operations, and again in
backward. A hash of a number's index and two random words takes a dozen: at width 512 a step takes
128 ms on an H100 instead of 137 (docs/log.md, 2026-11-25). torch.compile fuses it into the addition
to the residual stream, and nothing has to be stored for backward.
"""

import torch
from torch import Tensor, nn

WORD = 0x7FFFFFFF
MULTIPLIERS = (0x7FEB352D, 0x846CA68B - 2**32)
"""Multipliers, as signed numbers, of lowbias32, the hash of two rounds with the least bias that a
search found. Wellons 2018, https://nullprogram.com/blog/2018/07/31/"""


class Dropout(nn.Module):
    """What is left out of attention and MLP of each layer, until the next draw.

    The choice is not part of the model's state.
    """

    seeds: Tensor

    def __init__(self, layers: int, device: torch.device) -> None:
        super().__init__()
        zeros = torch.zeros(layers, 2, 2, dtype=torch.int32, device=device)
        self.register_buffer("seeds", zeros, persistent=False)
        """Two random words for each of a layer's two branches, ``[layers, 2, 2]``."""

    def draw(self, seed: int) -> None:
        """Choose anew what is left out; the same `seed` chooses the same."""
        generator = torch.Generator().manual_seed(seed)
        words = torch.randint(0, WORD, self.seeds.shape, dtype=torch.int32, generator=generator)
        if self.seeds.is_cuda:
            # from memory that is not pinned, the copy would wait for all that the device has to do
            words = words.pin_memory()
        self.seeds.copy_(words, non_blocking=True)


def thinned(branch: Tensor, seeds: Tensor, share: float) -> Tensor:
    """`branch`, of any shape, without a `share` of its numbers, and the rest scaled up.

    The two int32 `seeds` choose which. Srivastava et al. 2014.
    """
    words = hashed(branch.numel(), seeds).view(branch.shape)
    return torch.where(words < round(share * WORD), 0.0, branch / (1 - share))


def hashed(count: int, seeds: Tensor) -> Tensor:
    """`count` words of 31 random bits that follow from the two int32 `seeds`, int32 ``[count]``."""
    word = torch.arange(count, dtype=torch.int32, device=seeds.device) ^ seeds[0]
    word = _shifted(word, 16) * MULTIPLIERS[0]
    word = _shifted(word, 15) * MULTIPLIERS[1]
    return (_shifted(word, 16) ^ seeds[1]) & WORD


def _shifted(word: Tensor, bits: int) -> Tensor:
    """``word ^ (word >> bits)``, shifting in zeros."""
    return word ^ ((word >> bits) & (2 ** (32 - bits) - 1))
