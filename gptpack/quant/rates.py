"""About how many bits codes will take, from weights and steps alone: where a search may begin.

A code is counted as a rounded Gaussian whose variance is a row's power times a column's, and what
other columns' errors add to it. On the 27 M checkpoint this is 1 % below the bytes from 5 bits a
weight to 1.9, and an octave of delta takes what it says to 1 %; below one bit, where a trellis is
not like rounding, it means little (docs/log.md, 2026-11-25).

Shape legend: R = rows, C = columns, of either every `EVERY`-th in the order of their power where
they stand for all; P = columns in the order they are decided; N = points of a table.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gptpack.quant.allocation import ROW_POWER, Matrix, grid_indexes
from gptpack.quant.types import grid_steps
from gptpack.quant.workers import side_by_side

Floats = npt.NDArray[np.float64]

EVERY = 16
LEAST = -8.0
"""log2 of the least standard deviation that is told from 0, in steps."""
FINE = 4.0
"""log2 of that beyond which rounding costs no entropy: ``log2(sigma sqrt(2 pi e))`` bits."""
PROBES = 16
"""Random errors that are followed through a matrix' feedback."""
ROW_BITS, COLUMN_BITS = 6, 2
"""About what a row's and a column's scale take."""


@functools.cache
def _entropies() -> tuple[Floats, Floats]:
    """log2 of a Gaussian's standard deviation, in steps; entropy of what it is rounded to, bits."""
    spread_N = np.linspace(LEAST, FINE, 193)
    edges_K = np.arange(-100, 102) - 0.5
    scaled = torch.from_numpy(edges_K / (2.0 ** spread_N[:, None] * np.sqrt(2)))
    share_NK = np.maximum(np.diff(torch.erf(scaled).numpy()) / 2, 1e-30)
    return spread_N, -(share_NK * np.log2(share_NK)).sum(1)


def rounded_bits(spread: Floats) -> Floats:
    """Entropy of rounded Gaussians, by log2 of their standard deviations in steps."""
    beyond: Floats = np.maximum(spread - FINE, 0.0)
    return np.interp(spread, *_entropies()) + beyond


@dataclass(frozen=True, slots=True, kw_only=True)
class _Powers:
    matrix: Matrix
    rows: npt.NDArray[np.int64]
    """Those that stand for all."""
    row: Floats
    """log2 of their root mean square, in units of the column steps, ``[R]``."""
    column: Floats
    """By how many octaves columns are above the mean, ``[C]``."""
    noise: Floats
    """Variance that other columns' errors add, in squared steps, ``[C]``."""


def _added_noise(matrix: Matrix, own: float) -> Floats:
    """Variance that errors of other columns add to each column, in squared steps.

    A column's error e is its `own` less what it takes from earlier errors, ``(I + F) e = own``, and
    own errors are alike in units of their steps, which are as the reciprocals of the pivots.
    """
    factor = matrix.factor
    pivot_P = factor.pivots[factor.order]
    feedback_PP = torch.from_numpy(factor.feedback)
    probes = torch.randn(len(pivot_P), PROBES, generator=torch.Generator().manual_seed(0))
    probes *= torch.from_numpy(1 / pivot_P).float()[:, None]
    error = torch.linalg.solve_triangular(
        feedback_PP.float(), probes, upper=False, unitriangular=True
    )
    noise_C = np.empty_like(pivot_P)
    noise_C[factor.order] = np.square(error.numpy()).mean(1) * pivot_P**2
    return own * np.maximum(noise_C - 1, 0.0)


def _powers(matrix: Matrix, own: float) -> _Powers:
    row_R, column_C = _steps(matrix, 1e-4, ROW_POWER)
    square_RC = np.square(matrix.weight)
    row = 0.5 * np.log2(np.maximum(square_RC @ column_C**-2.0 / len(column_C), 1e-60))
    column = (row_R**-2.0 @ square_RC) * column_C**-2.0
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


def _steps(matrix: Matrix, delta: float, row_power: float) -> tuple[Floats, Floats]:
    row_R, column_C = grid_steps(*grid_indexes(matrix, delta, row_power=row_power))
    return row_R.astype(np.float64), column_C.astype(np.float64)


def rate_of(
    matrices: Sequence[Matrix],
    factor_of: Callable[[str], float],
    *,
    row_power: float = ROW_POWER,
    noise: float = 1 / 12,
) -> Callable[[float], float]:
    """Bits of all codes and scales by delta.

    Args:
        factor_of: a matrix' own delta is that of its name times the common one.
        noise: variance of a rounding error, in squared steps.
    """
    parts = side_by_side(
        lambda matrix: _powers(matrix, noise), matrices, cost=lambda m: float(m.weight.size)
    )
    scales = sum(ROW_BITS * m.weight.shape[0] + COLUMN_BITS * m.weight.shape[1] for m in matrices)

    def rate(delta: float) -> float:
        bits = float(scales)
        for part in parts:
            own = delta * factor_of(part.matrix.name)
            row_R = np.log2(_steps(part.matrix, own, row_power)[0][part.rows])
            square_RC = 4.0 ** ((part.row - row_R)[:, None] + part.column) + part.noise
            mean = rounded_bits(0.5 * np.log2(square_RC)).mean()
            bits += float(mean) * part.matrix.weight.size
        return bits

    return rate
