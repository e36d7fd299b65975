"""Tokens, keys and values of texts so far -> what the model's next tokens look back at.

Shape legend: B = texts, T = positions so far, G = key/value heads, D = head width.
"""

import torch
from torch import Tensor

LOOKS_BACK = 2
"""Earlier tokens that a position's embedding depends on: the smear gate takes the embedding of the
one before, and that one's hashed bigram the one before it."""


class Cache:
    """What a model keeps of texts that it goes on reading; a new one has read nothing."""

    def __init__(self) -> None:
        self._text: Tensor | None = None
        self._passes: dict[int, tuple[Tensor, Tensor]] = {}

    def read(self, tokens: Tensor) -> Tensor:
        """All tokens so far ``[B, T]``, of which `tokens` ``[B, n]`` are now the last."""
        self._text = tokens if self._text is None else torch.cat((self._text, tokens), 1)
        return self._text

    def extend(self, place: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions ``[B, T, G, D]``, now that `k` and `v` are the last.

        Args:
            place: place in the order of layers; one that runs several times has keys for each.
        """
        if (past := self._passes.get(place)) is not None:
            k, v = torch.cat((past[0], k), 1), torch.cat((past[1], v), 1)
        self._passes[place] = k, v
        return k, v
