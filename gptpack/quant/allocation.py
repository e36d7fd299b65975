"""Matrices and what their errors cost -> codes, all at the precision that one number says.

Rounding adds to the loss, in nats per token and to second order,

    1/2 sum over matrices and rows r of  g_r  e_r H e_r^T,

with H the second moment of a matrix's inputs and g_r the Fisher information of its outputs. Behind
an entropy coder a weight's rate is a constant minus log2 of its grid step, so at equal slope all
weights have the same distortion in units of the loss: the grid step of weight [r, c] is ``delta /
(sqrt(g_r) pivot_c)``, with pivots from the Cholesky factor of H (WaterSIC,
https://arxiv.org/abs/2603.04956). One delta serves all matrices.

Shape legend: R = rows (outputs), C = columns (inputs).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gptpack.errors import QuantError
from gptpack.quant.columns import Rounding
from gptpack.quant.factor import Factor, factorize
from gptpack.quant.grids import quantize_scale
from gptpack.quant.offsets import Offsets, less_offsets, worthwhile_offsets
from gptpack.quant.trellis import quantize_on_grid
from gptpack.quant.types import (
    COLUMN_SCALES_PER_OCTAVE,
    ROW_SCALES_PER_OCTAVE,
    PackedTensor,
    grid_scales,
    values_of_points,
)
from gptpack.quant.workers import side_by_side
from gptpack.shelf import Held

Array = npt.NDArray[Any]

ROW_POWER = 0.5
"""Power of the rows' Fisher information that sets their scales: the information is noisy, and its
square root is what transfers (docs/log.md)."""
LEAST_ROW_SHARE = 1e-4
"""Least Fisher information of a row, as a share of the mean."""
LARGEST_CODE = 2**15 - 1
"""Largest magnitude of a code; codes are stored in 16 bits."""
LEAST_GAIN = 0.1
"""Share of a row's loss that rescaling it after coding must remove to be done. The best fit shrinks
every row a little, which the loss to second order does not feel but the confidence of the model
does (docs/log.md, 2026-11-25)."""
MUCH_NOISE = 2.0
"""Noise of a row, as a multiple of its own power, from which on its scale grows more slowly."""
LITTLE = 0.1
"""Share of what columns give on average, below which one that takes a channel is decided before all
others: it becomes almost 0, and those after it can make up for that, while it could make up for
none of theirs (docs/log.md, 2026-11-30)."""
UNREAD = "unread_rows"
"""Key of a tensor's record: rows that nothing reads, whose codes are 0."""
BAND = 1 << 20
"""Numbers of a matrix that are multiplied by a Hessian at once."""
BEYOND = 0.125
"""Power of delta with which such a row's scale grows, little as the row seems to matter: that was
measured while its unit hardly ever fired, and enough noise makes it fire (docs/log.md,
2026-11-25)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The cost of errors e, nats per token: ``1/2 sum_r row_weight[r] e_r hessian e_r^T``."""

    hessian: Held
    """Second moment of the inputs, ``[C, C]``."""
    row_weight: Array
    """Fisher information of the outputs, ``[R]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A matrix ready to be quantized at any delta."""

    name: str
    weight: Held
    factor: Factor
    hessian: Held
    row_weight: npt.NDArray[np.float64]
    """Fisher information of the rows, raised to `LEAST_ROW_SHARE` where it is less, ``[R]``; 0 for
    rows that nothing reads, whose codes are 0."""
    row_mean: float
    """Mean of that information, against which rows are weighed."""
    energy: npt.NDArray[np.float64]
    """``w H w^T`` of every row w of `coded_part`, ``[R]``."""
    offsets: Offsets | None = None
    """What is taken off the columns before they are quantized; None where that would not pay."""

    @property
    def coded_part(self) -> Array:
        """The weight less its offsets, which goes on the grid, ``[R, C]``."""
        return less_offsets(np.asarray(self.weight), self.offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedMatrix:
    """A quantized matrix and what its errors are predicted to cost."""

    tensor: PackedTensor
    loss_nats: float
    """Predicted rise of the loss, nats per token."""


def prepare_matrix(
    name: str,
    weight: Array,
    sensitivity: Sensitivity,
    *,
    fed: bool = False,
    damp: float = 0.01,
) -> Matrix:
    """The matrix `weight` with its Hessian factored; `damp` as in `factorize`.

    Args:
        fed: whether its columns take channels that may be left out (`LanguageModel.feeds`).

    Raises:
        QuantError: shapes disagree, a number is not finite, row weights are negative or all zero,
            or the Hessian cannot be factored.
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
    hessian = np.asarray(sensitivity.hessian)
    raised_R = np.maximum(row_weight, LEAST_ROW_SHARE * row_weight.mean())
    offsets = worthwhile_offsets(weight, hessian.diagonal() > 0)
    part = less_offsets(weight, offsets)
    early_C = None
    if fed:
        given_C = np.einsum("r,rc,rc->c", raised_R, part, part) * hessian.diagonal()
        early_C = given_C < LITTLE * given_C.mean()
    energy_R = [_row_dots(_felt(part[rows], hessian), part[rows]) for rows in _bands(part)]
    return Matrix(
        name=name,
        weight=weight,
        factor=factorize(hessian, damp=damp, early=early_C, name=name),
        hessian=sensitivity.hessian,
        row_weight=raised_R,
        row_mean=float(raised_R.mean()),
        energy=np.maximum(np.concatenate(energy_R), 0.0),
        offsets=offsets,
    )


def grid_indexes(
    matrix: Matrix, delta: float, *, row_power: float = ROW_POWER
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """Row and column scales of the grid at `delta`, as indexes on the logarithmic grids.

    A row's scale hardly grows any more once its noise is `MUCH_NOISE` times its power.
    """
    mean = matrix.row_mean
    weight_R = mean * (matrix.row_weight / mean) ** row_power
    pivot_C = matrix.factor.pivots
    middle = np.exp(np.log(pivot_C).mean())
    scale_R = delta / np.sqrt(np.where(weight_R > 0, weight_R, mean))
    # a column with the grid step s / pivot adds s^2 / 12 to the noise of its row
    live_R = matrix.energy > 0
    much_R = np.sqrt(12 * MUCH_NOISE * matrix.energy[live_R] / len(pivot_C))
    beyond_R = np.maximum(scale_R[live_R] / much_R, 1.0)
    scale_R[live_R] *= beyond_R ** (BEYOND - 1)
    return (
        quantize_scale(scale_R / middle, per_octave=ROW_SCALES_PER_OCTAVE),
        quantize_scale(middle / pivot_C, per_octave=COLUMN_SCALES_PER_OCTAVE),
    )


def quantize_matrices(
    matrices: Sequence[Matrix],
    delta: float | Mapping[str, float],
    *,
    states: int,
    row_power: float = ROW_POWER,
    rescale: bool = True,
    threads: int | None = None,
) -> list[QuantizedMatrix]:
    """Quantize each matrix at `delta` (one number, or one per name).

    Args:
        states: states of the trellis; 1 for the plain uniform grid.
        rescale: after coding, scale each row so that its error costs least.
        threads: matrices that are quantized at once; None takes one per core.

    Raises:
        QuantError: see `gptpack.quant.trellis.quantize_trellis`; or a code beyond 16 bits.
    """

    def quantized(matrix: Matrix) -> QuantizedMatrix:
        own = delta if isinstance(delta, float) else delta[matrix.name]
        rows, columns = grid_indexes(matrix, own, row_power=row_power)
        rounding = quantize_on_grid(
            matrix.coded_part,
            matrix.factor,
            *grid_scales(rows, columns),
            states=states,
            row_weight=matrix.row_weight,
        )
        tensor = _tensor(matrix, rounding, (rows, columns))
        loss = float(matrix.row_weight @ rounding.row_loss) / 2
        if rescale:
            tensor, loss = _rescaled(matrix, tensor, rounding.points)
        return QuantizedMatrix(tensor=tensor, loss_nats=loss)

    return side_by_side(
        quantized,
        matrices,
        cost=lambda matrix: matrix.weight.size * len(matrix.hessian),
        threads=threads,
        # weights less offsets, targets, errors and points twice; the Hessian and the feedback twice
        takes=lambda matrix: 4.0 * (5 * matrix.weight.size + 3 * len(matrix.hessian) ** 2),
        weights=sum(matrix.weight.size for matrix in matrices),
    )


def grid_tensor(
    name: str,
    codes_RC: Array,
    scales: tuple[Array, Array],
    *,
    states: int,
    offsets: Offsets | None = None,
    record: Mapping[str, Any] | None = None,
) -> PackedTensor:
    """The tensor on a grid of these codes, indexes of scales, and offsets.

    Args:
        scales: indexes of row scales ``[R]`` and of column scales ``[C]``.
        states: states of the trellis; 1 for the plain uniform grid.
        offsets: what is added to the columns, if anything.
    """
    method = "trellis" if states > 1 else "uniform"
    arrays = {
        "codes": codes_RC.astype(np.int16),
        "row_scales": scales[0],
        "column_scales": scales[1],
    }
    if offsets is not None:
        method += "-offsets"
        arrays["column_offsets"] = offsets
    return PackedTensor(
        name=name,
        shape=codes_RC.shape,
        method=method,
        arrays=arrays,
        parameters={"states": states} if states > 1 else {},
        record=record or {},
    )


def _tensor(matrix: Matrix, rounding: Rounding, grid: tuple[Array, Array]) -> PackedTensor:
    symbols, states, factor = rounding.symbols, rounding.states, matrix.factor
    reach = int(max(symbols.max(initial=0), -symbols.min(initial=0)))
    if reach > LARGEST_CODE:
        raise QuantError(
            f"{matrix.name}: codes reach {reach:,}, {LARGEST_CODE:,} at most can be stored; "
            "use a larger delta or a smaller budget"
        )
    record: dict[str, Any] = {"damp": float(f"{factor.damp:.3g}")}
    if factor.dead_columns:
        record["dead_columns"] = len(factor.dead_columns)
    if unread := int((matrix.row_weight == 0).sum()):
        record[UNREAD] = unread
    return grid_tensor(
        matrix.name, symbols, grid, states=states, offsets=matrix.offsets, record=record
    )


def _rescaled(matrix: Matrix, tensor: PackedTensor, points_RC: Array) -> tuple[PackedTensor, float]:
    """`tensor` with the row scales that fit its codes best, in rows that gain `LEAST_GAIN` by it.

    Values v fit weights w best when multiplied by ``g = w H v^T / v H v^T``. One product with H
    gives g and the loss that is left: with e = v - w, ``g v - w = e - (1 - g) v``.
    """
    weight_RC, hessian_CC = matrix.coded_part, np.asarray(matrix.hessian)
    own_R, with_value_R, with_weight_R = np.empty((3, len(weight_RC)))
    for rows in _bands(weight_RC):
        scales = {**tensor.arrays, "row_scales": tensor.arrays["row_scales"][rows]}
        value_BC = values_of_points(replace(tensor, arrays=scales), points_RC[rows])
        error_BC = value_BC - weight_RC[rows]
        felt_BC = _felt(error_BC, hessian_CC)
        own_R[rows] = _row_dots(felt_BC, error_BC)
        with_value_R[rows] = _row_dots(felt_BC, value_BC)
        with_weight_R[rows] = _row_dots(felt_BC, weight_RC[rows])
    value_R = np.maximum(matrix.energy + 2 * with_weight_R + own_R, 0.0)
    gain_R = 1 - np.divide(with_value_R, value_R, out=np.zeros_like(value_R), where=value_R > 0)
    shift_R = np.rint(np.log2(np.clip(gain_R, 0.5, 2.0)) * ROW_SCALES_PER_OCTAVE).astype(np.int16)
    rest_R = 1 - 2.0 ** (shift_R / ROW_SCALES_PER_OCTAVE)
    left_R = own_R - 2 * rest_R * with_value_R + rest_R**2 * value_R
    kept_R = left_R > (1 - LEAST_GAIN) * own_R
    shift_R[kept_R] = 0
    left_R[kept_R] = own_R[kept_R]
    loss = float(matrix.row_weight @ np.maximum(left_R, 0.0)) / 2
    return with_row_scales(tensor, tensor.arrays["row_scales"] + shift_R), loss


def _bands(matrix_RC: Array) -> Iterator[slice]:
    """Rows of a matrix, some `BAND` numbers at a time: a table's products take room otherwise."""
    height = max(64, BAND // matrix_RC.shape[1] // 64 * 64)
    return (slice(start, start + height) for start in range(0, len(matrix_RC), height))


def _felt(a_RC: Array, hessian_CC: Array) -> Array:
    """``a H``, float32, ``[R, C]``."""
    right_CC = torch.from_numpy(np.ascontiguousarray(hessian_CC, np.float32))
    found: Array = (torch.from_numpy(a_RC) @ right_CC).numpy()
    return found


def _row_dots(a_RC: Array, b_RC: Array) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.einsum("rc,rc->r", a_RC, b_RC, dtype=np.float64)
    return found


def with_row_scales(tensor: PackedTensor, row_scales: Array) -> PackedTensor:
    """`tensor` with other indexes of row scales."""
    return replace(tensor, arrays={**tensor.arrays, "row_scales": row_scales.astype(np.int16)})
