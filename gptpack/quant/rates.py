"""Matrices and a delta -> about how many bits their codes take, without coding: a search's start.

A code counts as a rounded Gaussian whose variance is a row's power times a column's, plus what the
errors of other columns add. On the 27 M checkpoint this is 1 % below the bytes from 5 bits a weight
down to 1.9, and it is right to 1 % about what an octave of delta takes. Below one bit, where a
trellis is not like rounding, it means little (docs/log.md, 2026-11-25).

Shape legend: R = rows, C = columns (some stand for all: every `EVERY`-th in the order of power),
P = columns in the order they are decided, N = points of a table.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gptpack.quant.allocation import ROW_POWER, Matrix, grid_indexes
from gptpack.quant.types import grid_scales
from gptpack.quant.workers import side_by_side

Floats = npt.NDArray[np.float64]

EVERY = 16
"""One row or column in so many stands for all."""
LEAST = -8.0
"""log2 of the least standard deviation that is told from 0, in grid steps."""
FINE = 4.0
"""log2 of the standard deviation, in grid steps, from which on a rounded Gaussian has the entropy
``log2(sigma sqrt(2 pi e))`` bits."""
PROBES = 16
"""Random errors that are followed through a matrix' feedback."""
ROW_BITS, COLUMN_BITS = 6, 2
"""Bits that a row's scale and a column's take, about."""


@functools.cache
def _entropies() -> tuple[Floats, Floats]:
    """A table: log2 of a Gaussian's standard deviation in grid steps, its entropy when rounded."""
    spread_N = np.linspace(LEAST, FINE, 193)
    edges_K = np.arange(-100, 102) - 0.5
    scaled = torch.from_numpy(edges_K / (2.0 ** spread_N[:, None] * np.sqrt(2)))
    share_NK = np.maximum(np.diff(torch.erf(scaled).numpy()) / 2, 1e-30)
    return spread_N, -(share_NK * np.log2(share_NK)).sum(1)


def rounded_bits(spread: Floats) -> Floats:
    """Entropy of rounded Gaussians, bits, by log2 of their standard deviations in grid steps."""
    beyond: Floats = np.maximum(spread - FINE, 0.0)
    return np.interp(spread, *_entropies()) + beyond


@dataclass(frozen=True, slots=True, kw_only=True)
class _Powers:
    """Sizes of a matrix' rows and columns, and the noise on them."""

    matrix: Matrix
    rows: npt.NDArray[np.int64]
    """Indexes of the rows that stand for all."""
    row: Floats
    """log2 of the rows' root mean square, in units of the column scales, ``[R]``."""
    column: Floats
    """Octaves by which columns are above the mean, ``[C]``."""
    noise: Floats
    """Variance that other columns' errors add, in squared grid steps, ``[C]``."""


def _added_noise(matrix: Matrix, own: float) -> Floats:
    """Variance that errors of other columns add to each column, in squared grid steps.

    A column's error e is its own rounding error less what it takes from earlier errors: ``(I + F) e
    = own``. Own errors all have the variance `own` in squared grid steps, and grid steps are in
    proportion to the reciprocals of the pivots.
    """
    factor = matrix.factor
    pivot_P = factor.pivots[factor.order]
    feedback_PP = torch.from_numpy(np.asarray(factor.feedback))
    probes = torch.randn(len(pivot_P), PROBES, generator=torch.Generator().manual_seed(0))
    probes *= torch.from_numpy(1 / pivot_P).float()[:, None]
    error = torch.linalg.solve_triangular(
        feedback_PP.float(), probes, upper=False, unitriangular=True
    )
    noise_C = np.empty_like(pivot_P)
    noise_C[factor.order] = np.square(error.numpy()).mean(1) * pivot_P**2
    return own * np.maximum(noise_C - 1, 0.0)


def _powers(matrix: Matrix, own: float) -> _Powers:
    row_R, column_C = _scales(matrix, 1e-4, ROW_POWER)
    square_RC = np.square(matrix.coded_part)
    # numpy's own products wait longer for their threads than they compute
    mean_R = np.einsum("rc,c->r", square_RC, column_C**-2.0) / len(column_C)
    row = 0.5 * np.log2(np.maximum(mean_R, 1e-60))
    column = np.einsum("r,rc->c", row_R**-2.0, square_RC) * column_C**-2.0
    column = 0.5 * np.log2(np.maximum(column / max(column.mean(), 1e-60), 1e-12))
    columns = np.argsort(column, kind="stable")[EVERY // 2 % len(column) :: EVERY]
    rows = np.argsort(row, kind="stable")[EVERY // 2 % len(row) :: EVERY]
    return _Powers(
        matrix=matrix,
        rows=rows,
        row=row[rows],
        column=column[columns],
        noise=_added_noise(matrix, own)[columns],
    )


def _scales(matrix: Matrix, delta: float, row_power: float) -> tuple[Floats, Floats]:
    row_R, column_C = grid_scales(*grid_indexes(matrix, delta, row_power=row_power))
    return row_R.astype(np.float64), column_C.astype(np.float64)


def rate_of(
    matrices: Sequence[Matrix],
    factor_of: Callable[[str], float],
    *,
    row_power: float = ROW_POWER,
    noise: float = 1 / 12,
) -> Callable[[float], float]:
    """A function from delta to the bits that all codes and scales take.

    Args:
        factor_of: gives by name how many times the common delta a matrix' own is.
        noise: variance of a rounding error, in squared grid steps.
    """
    parts = side_by_side(
        lambda matrix: _powers(matrix, noise), matrices, cost=lambda m: float(m.weight.size)
    )
    scales = sum(ROW_BITS * m.weight.shape[0] + COLUMN_BITS * m.weight.shape[1] for m in matrices)

    def rate(delta: float) -> float:
        bits = float(scales)
        for part in parts:
            own = delta * factor_of(part.matrix.name)
            row_R = np.log2(_scales(part.matrix, own, row_power)[0][part.rows])
            square_RC = 4.0 ** ((part.row - row_R)[:, None] + part.column) + part.noise
            mean = rounded_bits(0.5 * np.log2(square_RC)).mean()
            bits += float(mean) * part.matrix.weight.size
        return bits

    return rate
