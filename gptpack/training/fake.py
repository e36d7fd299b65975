"""Weights -> what passes see in their place: values of the packer's grid, or with its noise.

This is quantization-aware training (QAT). While the passes of an optimizer step run, the weights
themselves are replaced; they are put back before the optimizer updates them. The gradient that
arrives is that of the replacement: for rounded weights a straight-through estimator (Bengio et al.
2013, https://arxiv.org/abs/1308.3432), for noise the exact one. The model's graph has no switch
that a compiler could take for a constant: two contest records had their late QAT compiled away.

Shape legend: S = matrices of one shape, R = rows (outputs), C = columns (inputs).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from gptpack.quant.steps import Outlook, reciprocals
from gptpack.training.schedules import draw_seed

Grid = tuple[Tensor, Tensor, Tensor, Tensor]
"""Spacings of rows ``[S, R, 1]`` and columns ``[S, 1, C]``, and the reciprocals of both."""


def grid_codes(weight: Tensor, inverse_row: Tensor, inverse_column: Tensor) -> Tensor:
    """Indexes of the grid points nearest to the weights, as float32.

    They are the packer's own codes on a uniform grid where no column's error is fed into another:
    the same products in the same order, ties to even.
    """
    return torch.round(weight * inverse_row * inverse_column)


def replaced(
    matrices: Sequence[Sequence[Tensor]], grids: Sequence[Grid], uniform: Sequence[Tensor]
) -> list[Tensor]:
    """Values that stand for the matrices in a pass: grid points as a decoder would make them.

    Args:
        uniform: random numbers in 0..1 by stack, ``[S, R, C]``. If there are any, weights get noise
            of -1/2 to 1/2 of a grid's spacing instead, which has no dead zone (Baskin et al. 2018,
            https://arxiv.org/abs/1804.10969) and, like a rounding error, never exceeds the weight.
    """
    found: list[Tensor] = []
    for index, (members, grid) in enumerate(zip(matrices, grids, strict=True)):
        row_SR1, column_S1C, inverse_SR1, inverse_S1C = grid
        weight_SRC = torch.stack(list(members))
        if uniform:
            width_SRC = torch.minimum(row_SR1 * column_S1C, 2 * weight_SRC.abs())
            value_SRC = weight_SRC + (uniform[index] - 0.5) * width_SRC
        else:
            value_SRC = grid_codes(weight_SRC, inverse_SR1, inverse_S1C) * row_SR1 * column_S1C
        found += value_SRC.unbind()
    return found


class FakeQuantizer:
    """Replaces the weights of an outlook's matrices while the passes of a step run."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], *, noise: bool, seed: int, compiled: bool
    ) -> None:
        self.parameters, self.noise, self.seed = parameters, noise, seed
        self.matrices: list[list[nn.Parameter]] = []
        self.grids: list[Grid] = []
        self.steps = 0
        """Optimizer steps whose passes saw replaced weights; a run writes this number down."""
        self._replaced = (
            torch.compile(replaced, fullgraph=True, dynamic=False) if compiled else replaced
        )

    def take(self, outlook: Outlook) -> None:
        """Go by the grids of `outlook` from now on."""
        shapes: dict[torch.Size, list[str]] = {}
        for name in outlook.steps:
            shapes.setdefault(self.parameters[name].shape, []).append(name)
        self.matrices = [[self.parameters[name] for name in names] for names in shapes.values()]
        self.grids = []
        for matrices, names in zip(self.matrices, shapes.values(), strict=True):
            device = matrices[0].device
            row_SR1 = np.stack([outlook.steps[name].row for name in names])[:, :, None]
            column_S1C = np.stack([outlook.steps[name].column for name in names])[:, None]
            if self.noise:
                # a trellis makes the packer's errors smaller, and GPTQ partly makes up for them
                share_S1C = np.stack([outlook.steps[name].share for name in names])[:, None]
                column_S1C = column_S1C * share_S1C * np.float32((12 * outlook.noise) ** 0.5)
            arrays = (row_SR1, column_S1C, reciprocals(row_SR1), reciprocals(column_S1C))
            first, second, third, fourth = (torch.from_numpy(a).to(device) for a in arrays)
            self.grids.append((first, second, third, fourth))

    def values(self, step: int) -> list[Tensor]:
        """Values that the passes of a step see; noise depends on the step alone."""
        uniform: list[Tensor] = []
        if self.noise:
            device = self.matrices[0][0].device
            generator = torch.Generator(device).manual_seed(draw_seed(self.seed, step))
            for members in self.matrices:
                shape = (len(members), *members[0].shape)
                uniform.append(torch.rand(shape, device=device, generator=generator))
        return self._replaced(self.matrices, self.grids, uniform)

    @contextmanager
    def seen(self, step: int) -> Iterator[None]:
        """Inside, the model's weights are replaced; afterwards they are the same bits as before."""
        weights: list[Tensor] = [matrix for members in self.matrices for matrix in members]
        with torch.no_grad():
            kept = [weight.clone() for weight in weights]
            torch._foreach_copy_(weights, self.values(step))
        self.steps += 1
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, kept)
