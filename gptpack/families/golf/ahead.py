"""Hidden states and targets -> the loss of the token after the next, for training alone.

A matrix of its own makes of each position's hidden state the one from which the model's own output
layer predicts the target of the position after it. It goes when training ends: the model is as it
was. Gloeckle et al. 2024, https://arxiv.org/abs/2404.19737, have whole layers in its place.

Shape legend: B = sequences, T = positions, W = model width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptpack.ops import rms_norm

Losses = Callable[[Tensor, Tensor], Tensor]
"""Normalised hidden states ``[B, T, W]`` and targets ``[B, T]`` -> losses in nats, ``[B, T]``."""


class Ahead:
    """The matrix ``[W, W]``, and the weight of its loss.

    It is no module, so that it is in no model's state. `on` says whether there is a loss at all.
    """

    def __init__(self, width: int, *, seed: int, device: torch.device) -> None:
        matrix = torch.empty(width, width)
        nn.init.orthogonal_(matrix, generator=torch.Generator().manual_seed(seed))
        self.matrix = nn.Parameter(matrix.to(device))
        self.weight = torch.zeros((), device=device)
        self.on = False

    def use(self, weight: float) -> None:
        """Set the weight; at 0 there is no such loss."""
        self.on = weight > 0
        self.weight.fill_(weight)

    def added(self, losses: Tensor, hidden: Tensor, targets: Tensor, losses_of: Losses) -> Tensor:
        """`losses` ``[B, T]`` as they are, with the gradient of this loss as well."""
        states = F.linear(hidden[:, :-1], self.matrix.to(hidden.dtype))
        ahead = self.weight * losses_of(rms_norm(states), targets[:, 1:])
        return losses + F.pad(ahead - ahead.detach(), (0, 1))
