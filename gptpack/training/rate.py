"""Weights -> the bits that their codes will take, as something that can be trained.

The packer's coder gives each row and column of a matrix a scale, fitted to the squares of its
codes (gptpack/codec/contexts.py), and codes are nearly Gaussian given both. The estimate is that
density on the packer's own grid: with y = w / spacing, n the variance that feedback adds, and
1/12 that of rounding,

    m = y^2 + n + 1/12,        bits = sum of  1/2 log2(2 pi a_r b_c)  +  m / (2 ln 2 a_r b_c),

where a and b are refitted at every optimizer step, ``a_r = mean_c m / b_c`` and
``b_c = mean_r m / a_r``. At the fit the derivatives by a and b are zero: both count as constants.

Shape legend: S = matrices of one shape, R = rows (outputs), C = columns (inputs).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptpack.quant.steps import Outlook

TWELFTH = 1 / 12


@dataclass(slots=True)
class Stack:
    """Matrices of one shape, their grids, and the fit of the estimate."""

    names: list[str]
    matrices: list[nn.Parameter]
    row: Tensor
    """Spacings of the rows at a delta of 1, ``[S, R, 1]``."""
    column: Tensor
    """Spacings of the columns, ``[S, 1, C]``; times the row's and delta they are the packer's."""
    noise: Tensor
    """Variance that feedback adds to the columns, in squared spacings, ``[S, 1, C]``."""
    scale: Tensor
    """The fitted b of the module's formula, ``[S, 1, C]``; a follows from it."""


def stacked(matrices: Mapping[str, nn.Parameter]) -> list[Stack]:
    """Stacks of the matrices, all spacings and scales 1."""
    shapes: dict[torch.Size, dict[str, nn.Parameter]] = {}
    for name, matrix in matrices.items():
        shapes.setdefault(matrix.shape, {})[name] = matrix
    stacks = []
    for (rows, columns), members in shapes.items():
        one = next(iter(members.values())).detach().new_ones(())
        row_SR1 = one.expand(len(members), rows, 1).clone()
        column_S1C = one.expand(len(members), 1, columns).clone()
        stacks.append(
            Stack(
                list(members),
                list(members.values()),
                row_SR1,
                column_S1C,
                torch.zeros_like(column_S1C),
                column_S1C.clone(),
            )
        )
    return stacks


def coded_bits(
    matrices: Sequence[Sequence[Tensor]],
    stacks: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
    delta: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Bits of all matrices at `delta`, and the columns' scales, fitted anew.

    The function is pure and has no branches on values: torch.compile makes one graph of it.

    Args:
        stacks: for each stack the spacings of rows and of columns, the noise, the columns' scales.
    """
    total = delta.new_zeros(())
    scales: list[Tensor] = []
    for members, (row_SR1, column_S1C, noise_S1C, old_S1C) in zip(matrices, stacks, strict=True):
        y_SRC = torch.stack(list(members)) / (delta * row_SR1) / column_S1C
        moment_SRC = y_SRC.square() + (noise_S1C + TWELFTH)
        fixed_SRC = moment_SRC.detach()
        scale_SR1 = (fixed_SRC / old_S1C).mean(2, keepdim=True)
        scale_S1C = (fixed_SRC / scale_SR1).mean(1, keepdim=True)
        rows, columns = scale_SR1.shape[1], scale_S1C.shape[2]
        logs = columns * scale_SR1.log2().sum() + rows * scale_S1C.log2().sum()
        misfit = (moment_SRC / scale_SR1 / scale_S1C).sum() / math.log(2)
        total = total + (logs + misfit + moment_SRC.numel() * math.log2(2 * math.pi)) / 2
        scales.append(scale_S1C)
    return total, scales


class Rate:
    """The estimate of a model's coded bits, on the grids of the last outlook."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, compiled: bool) -> None:
        self.parameters = parameters
        self.compiled = compiled
        self.stacks: list[Stack] = []
        self.weights = 0
        self._bits = (
            torch.compile(coded_bits, fullgraph=True, dynamic=False) if compiled else coded_bits
        )

    def take(self, outlook: Outlook) -> None:
        """Go by the grids of `outlook` from now on; the next fit starts from the last one."""
        if {name for stack in self.stacks for name in stack.names} != set(outlook.steps):
            self.prepare(list(outlook.steps))
        for stack in self.stacks:
            for index, name in enumerate(stack.names):
                steps = outlook.steps[name]
                device = stack.row.device
                row = torch.from_numpy(steps.row).to(device) / outlook.delta
                stack.row[index, :, 0] = row
                stack.column[index, 0] = torch.from_numpy(steps.column).to(device)
                stack.noise[index, 0] = torch.from_numpy(steps.noise).to(device)

    def prepare(self, names: Sequence[str]) -> None:
        """Stack the matrices of these names."""
        self.stacks = stacked({name: self.parameters[name] for name in names})
        self.weights = sum(self.parameters[name].numel() for name in names)

    def bits(self, delta: Tensor) -> Tensor:
        """Bits of the weights as they are now, differentiable; the fit moves on."""
        matrices = [stack.matrices for stack in self.stacks]
        known = [(s.row, s.column, s.noise, s.scale) for s in self.stacks]
        total, scales = self._bits(matrices, known, delta)
        for stack, scale_S1C in zip(self.stacks, scales, strict=True):
            stack.scale = scale_S1C.detach()
        return total
