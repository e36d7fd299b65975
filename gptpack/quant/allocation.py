"""Where precision goes: one number for a whole model, from what each weight's error costs.

Rounding adds to the loss, in nats per token and to second order,

    1/2 sum over matrices and rows r of  g_r  e_r H e_r^T,

with H the second moment of a matrix's inputs and g_r the Fisher information of its outputs. Behind
an entropy coder a weight's rate is a constant minus log2 of its step, so at equal slope all weights
have the same distortion in units of the loss: ``step[r, c] = delta / (sqrt(g_r) pivot_c)``, pivots
from the Cholesky factor of H (WaterSIC, https://arxiv.org/abs/2603.04956). One delta for all.

Shape legend: R = rows (outputs), C = columns (inputs).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gptpack.errors import QuantError
from gptpack.quant.factor import Factor, factorize
from gptpack.quant.grids import quantize_scale, stretches
from gptpack.quant.trellis import Job
from gptpack.quant.types import (
    COLUMN_SCALES_PER_OCTAVE,
    ROW_SCALES_PER_OCTAVE,
    PackedTensor,
    grid_steps,
    values_of_points,
)
from gptpack.quant.workers import side_by_side

Array = npt.NDArray[Any]

ROW_POWER = 0.5
"""Row Fisher is noisy; its square root is what transfers (docs/log.md)."""
LEAST_ROW_SHARE = 1e-4
"""Rows without any Fisher information are treated as having this share of the mean."""
LARGEST_CODE = 2**15 - 1
LEAST_GAIN = 0.1
"""Rows are rescaled after coding where that takes this share of their loss or more. To fit best is
to shrink a little, everywhere, which the loss to second order does not feel but the confidence of
the model does (docs/log.md, 2026-11-25)."""
MUCH_NOISE = 2.0
BEYOND = 0.125
"""Where a row's noise passes so many times its own power, its steps grow with this power of delta
only, little as the row seems to matter: that was measured while its unit hardly ever fired, and
enough noise makes it fire (docs/log.md, 2026-11-25)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """An error costs ``1/2 sum_r row_weight[r] e_r hessian e_r^T`` nats per token."""

    hessian: Array
    """``[C, C]``."""
    row_weight: Array
    """``[R]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A matrix ready to be quantized at any delta."""

    name: str
    weight: npt.NDArray[np.float32]
    factor: Factor
    hessian: Array
    row_weight: npt.NDArray[np.float64]
    """Fisher information of the rows, floored so that it is positive."""
    energy: npt.NDArray[np.float64]
    """``w H w^T`` of every row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A quantized matrix and what it is predicted to cost."""

    tensor: PackedTensor
    loss_nats: float
    """Per token, by the formula above."""


def prepare_matrix(
    name: str, weight: Array, sensitivity: Sensitivity, *, damp: float = 0.01, max_damp: float = 1.0
) -> Matrix:
    """Factor the Hessian of a matrix.

    Raises:
        QuantError: shapes disagree, something is not finite, or the Hessian cannot be factored.
    """
    weight = np.ascontiguousarray(weight, np.float32)
    rows, columns = weight.shape
    if sensitivity.hessian.shape != (columns, columns) or sensitivity.row_weight.shape != (rows,):
        raise QuantError(
            f"{name}: weight {weight.shape} does not go with a Hessian of "
            f"{sensitivity.hessian.shape} and {sensitivity.row_weight.shape} row weights"
        )
    if not np.isfinite(weight).all():
        raise QuantError(f"{name}: the weight is not finite")
    row_weight = sensitivity.row_weight.astype(np.float64)
    if not np.isfinite(row_weight).all() or (row_weight < 0).any() or not row_weight.any():
        raise QuantError(f"{name}: row weights must be finite, not negative, and not all zero")
    hessian = np.ascontiguousarray(sensitivity.hessian, np.float32)
    felt_RC = (torch.from_numpy(weight) @ torch.from_numpy(hessian)).numpy()
    return Matrix(
        name=name,
        weight=weight,
        factor=factorize(sensitivity.hessian, damp=damp, max_damp=max_damp, name=name),
        hessian=sensitivity.hessian,
        row_weight=np.maximum(row_weight, LEAST_ROW_SHARE * row_weight.mean()),
        energy=np.maximum(_row_dots(felt_RC, weight), 0.0),
    )


def grid_indexes(
    matrix: Matrix, delta: float, *, row_power: float = ROW_POWER
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """Row and column scales of the steps at `delta`, as indexes of the logarithmic grids.

    A row's steps hardly grow any more where its noise is `MUCH_NOISE` times its power.
    """
    mean = matrix.row_weight.mean()
    weight_R = mean * (matrix.row_weight / mean) ** row_power
    pivot_C = matrix.factor.pivots
    middle = np.exp(np.log(pivot_C).mean())
    step_R = delta / np.sqrt(weight_R)
    # a column that is decided in steps of s / pivot adds s^2 / 12 to the noise of its row
    live_R = matrix.energy > 0
    much_R = np.sqrt(12 * MUCH_NOISE * matrix.energy[live_R] / len(pivot_C))
    beyond_R = np.maximum(step_R[live_R] / much_R, 1.0)
    step_R[live_R] *= beyond_R ** (BEYOND - 1)
    return (
        quantize_scale(step_R / middle, per_octave=ROW_SCALES_PER_OCTAVE),
        quantize_scale(middle / pivot_C, per_octave=COLUMN_SCALES_PER_OCTAVE),
    )


def quantize_matrices(
    matrices: Sequence[Matrix],
    delta: float | Mapping[str, float],
    *,
    states: int,
    row_power: float = ROW_POWER,
    shrink: bool = True,
    rescale: bool = True,
    threads: int | None = None,
) -> list[Coded]:
    """Quantize each matrix at `delta` (one number, or one per name).

    Args:
        states: of the trellis; 1 for the plain uniform grid.
        shrink: decide on a slightly wider grid, as a conditional mean does (`grids.stretches`).
        rescale: after coding, scale each row so that its error costs least.

    Raises:
        QuantError: see `gptpack.quant.trellis.quantize_trellis`; or a code beyond 16 bits.
    """

    def coded(matrix: Matrix) -> Coded:
        own = delta if isinstance(delta, float) else delta[matrix.name]
        rows, columns = grid_indexes(matrix, own, row_power=row_power)
        row_step, column_step = grid_steps(rows, columns)
        job = Job(
            weight=matrix.weight,
            factor=matrix.factor,
            row_step=row_step,
            column_step=column_step,
            row_weight=matrix.row_weight,
            stretch=stretches(matrix.weight, row_step, column_step, states=states)
            if shrink
            else None,
        )
        rounding = job.quantize(states)
        symbols = rounding.symbols
        reach = int(np.abs(symbols).max(initial=0))
        if reach > LARGEST_CODE:
            raise QuantError(
                f"{matrix.name}: codes reach {reach:,}, {LARGEST_CODE:,} at most can be stored; "
                "use larger steps or a smaller budget"
            )
        tensor = _tensor(matrix, symbols, (rows, columns), states)
        loss = float(matrix.row_weight @ rounding.row_loss) / 2
        if rescale:
            tensor, loss = _rescaled(matrix, tensor, rounding.points, loss)
        return Coded(tensor=tensor, loss_nats=loss)

    return side_by_side(
        coded,
        matrices,
        cost=lambda matrix: matrix.weight.size * len(matrix.hessian),
        threads=threads,
    )


def _tensor(matrix: Matrix, symbols: Array, grid: tuple[Array, Array], states: int) -> PackedTensor:
    factor = matrix.factor
    record: dict[str, Any] = {"damp": float(f"{factor.damp:.3g}")}
    if factor.dead_columns:
        record["dead_columns"] = len(factor.dead_columns)
    return PackedTensor(
        name=matrix.name,
        shape=matrix.weight.shape,
        method="trellis" if states > 1 else "uniform",
        arrays={
            "codes": symbols.astype(np.int16),
            "row_scales": grid[0],
            "column_scales": grid[1],
        },
        parameters={"states": states} if states > 1 else {},
        record=record,
    )


def _rescaled(
    matrix: Matrix, tensor: PackedTensor, points_RC: Array, loss: float
) -> tuple[PackedTensor, float]:
    """`tensor` with the row scales that fit its codes best, in rows that gain `LEAST_GAIN` by it.

    The best gain is that of `grids.row_gains`, ``w H v^T / v H v^T``. One product with H gives it
    and what it leaves: with e = v - w, ``g v - w = e - (1 - g) v``.
    """
    value_RC = values_of_points(tensor, points_RC)
    error_RC = value_RC - matrix.weight
    hessian_CC = np.ascontiguousarray(matrix.hessian, np.float32)
    felt_RC = (torch.from_numpy(error_RC) @ torch.from_numpy(hessian_CC)).numpy()
    own_R = _row_dots(felt_RC, error_RC)
    with_value_R = _row_dots(felt_RC, value_RC)
    with_weight_R = _row_dots(felt_RC, matrix.weight)
    value_R = np.maximum(matrix.energy + 2 * with_weight_R + own_R, 0.0)
    gain_R = 1 - np.divide(with_value_R, value_R, out=np.zeros_like(value_R), where=value_R > 0)
    shift_R = np.rint(np.log2(np.clip(gain_R, 0.5, 2.0)) * ROW_SCALES_PER_OCTAVE).astype(np.int16)
    rest_R = 1 - 2.0 ** (shift_R / ROW_SCALES_PER_OCTAVE)
    left_R = own_R - 2 * rest_R * with_value_R + rest_R**2 * value_R
    kept_R = left_R > (1 - LEAST_GAIN) * own_R
    shift_R[kept_R] = 0
    left_R[kept_R] = own_R[kept_R]
    better = float(matrix.row_weight @ np.maximum(left_R, 0.0)) / 2
    if better >= loss:
        return tensor, loss
    return with_row_scales(tensor, tensor.arrays["row_scales"] + shift_R), better


def _row_dots(a_RC: Array, b_RC: Array) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.einsum("rc,rc->r", a_RC, b_RC, dtype=np.float64)
    return found


def with_row_scales(tensor: PackedTensor, row_scales: Array) -> PackedTensor:
    """`tensor` with other indexes of row scales."""
    return replace(tensor, arrays={**tensor.arrays, "row_scales": row_scales.astype(np.int16)})
