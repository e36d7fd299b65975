"""A matrix -> columns in units of its own grid, as rounding and the trellis both need them.

Weights are divided by row and column scales on the way in, so that the kernels round to integers;
the feedback between columns is divided alike. Arrays inside are transposed (``_PR``), which makes a
column contiguous and every inner loop a run over rows.

The lazy batch updates are a numba loop rather than BLAS: eight errors per pass over a target reach
20 G multiply-adds/s on one core of the reference machine (two cores of Zen 3, 2.4 GHz; the 66
matrices of a 27 M GPT need 11 G), release the GIL, and give the same bits whatever the number of
threads is.

Shape legend: R = rows (outputs), C = columns (inputs), P = columns in the order they are decided.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.compiled import compiled
from gptpack.errors import QuantError
from gptpack.quant.factor import Factor
from gptpack.quant.steps import reciprocals

Array = npt.NDArray[Any]

LIMIT = 2.0**22
"""Largest magnitude of a point: float32 targets do not resolve larger ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """Quantized weights: ``point * row_scale * column_scale``, halved with a trellis."""

    points: npt.NDArray[np.int32]
    states: int
    """Trellis states, or 1 for a plain uniform grid."""
    row_loss: npt.NDArray[np.float64]
    """``e H e^T`` of each row's error e, ``[R]``; H is the Hessian as given, without damping."""

    @property
    def symbols(self) -> npt.NDArray[np.int32]:
        """The integers that are coded: the points, or ``(point - parity) / 2`` with a trellis."""
        return self.points if self.states == 1 else self.points >> 1

    @property
    def loss(self) -> float:
        """``tr(E H E^T)``."""
        return float(self.row_loss.sum())


@compiled(fastmath={"contract"})
def _pack(
    weight_RC: Array, order_P: Array, row_R: Array, column_P: Array, out_PR: Array
) -> None:  # pragma: no cover
    """``out[p, r] = weight[r, order[p]] * row[r] * column[p]``, tile by tile."""
    rows = weight_RC.shape[0]
    for start in range(0, rows, 32):
        stop = min(start + 32, rows)
        for p in range(order_P.shape[0]):
            c = order_P[p]
            for r in range(start, stop):
                out_PR[p, r] = weight_RC[r, c] * row_R[r] * column_P[p]


@compiled()
def _unpack(points_PR: Array, order_P: Array, out_RC: Array) -> None:  # pragma: no cover
    """``out[r, order[p]] = points[p, r]``, tile by tile."""
    rows = out_RC.shape[0]
    for start in range(0, rows, 32):
        stop = min(start + 32, rows)
        for p in range(order_P.shape[0]):
            c = order_P[p]
            for r in range(start, stop):
                out_RC[r, c] = points_PR[p, r]


@compiled(fastmath={"contract"})
def add_feedback(
    target_PR: Array, error_PR: Array, feedback_PP: Array, sources: Any, sinks: Any, rows: Any
) -> None:  # pragma: no cover
    """``target[c] += sum of feedback[c, i] * error[i]``, i of `sources` and c of `sinks`.

    Both are half-open ranges, and so is that of `rows`. Errors go eight at a time: six loads and
    one store per eight multiply-adds, with 512 rows of each in L1.
    """
    begin, end = sources
    for start in range(rows[0], rows[1], 512):
        stop = min(start + 512, rows[1])
        i = begin
        while i + 8 <= end:
            e0 = error_PR[i, start:stop]
            e1 = error_PR[i + 1, start:stop]
            e2 = error_PR[i + 2, start:stop]
            e3 = error_PR[i + 3, start:stop]
            e4 = error_PR[i + 4, start:stop]
            e5 = error_PR[i + 5, start:stop]
            e6 = error_PR[i + 6, start:stop]
            e7 = error_PR[i + 7, start:stop]
            for c in range(sinks[0], sinks[1]):
                f0, f1 = feedback_PP[c, i], feedback_PP[c, i + 1]
                f2, f3 = feedback_PP[c, i + 2], feedback_PP[c, i + 3]
                f4, f5 = feedback_PP[c, i + 4], feedback_PP[c, i + 5]
                f6, f7 = feedback_PP[c, i + 6], feedback_PP[c, i + 7]
                t = target_PR[c, start:stop]
                for r in range(stop - start):
                    t[r] += (
                        (f0 * e0[r] + f1 * e1[r] + f2 * e2[r] + f3 * e3[r])
                        + (f4 * e4[r] + f5 * e5[r] + f6 * e6[r] + f7 * e7[r])
                    )  # fmt: skip
            i += 8
        while i < end:
            e0 = error_PR[i, start:stop]
            for c in range(sinks[0], sinks[1]):
                f0 = feedback_PP[c, i]
                t = target_PR[c, start:stop]
                for r in range(stop - start):
                    t[r] += f0 * e0[r]
            i += 1


@compiled(fastmath={"contract"})
def settle_column(
    target_R: Array, point_R: Array, error_R: Array, costs: Any, loss_R: Array
) -> None:  # pragma: no cover
    """Replace a decided column's weights (in `error_R`) by its errors, and add up the loss.

    `costs` is (squared pivot, damping) in units of the column's grid, and (0, 0) for a dead column.
    """
    pivot2, damping = costs
    for r in range(target_R.shape[0]):
        own = target_R[r] - point_R[r]
        error = error_R[r] - point_R[r]
        error_R[r] = error
        loss_R[r] += pivot2 * own * own - damping * error * error


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A matrix in units of its own grid, in decision order: what the kernels work on."""

    targets: Array
    """Weights with the feedback so far, ``[P, R]``."""
    errors: Array
    """Weights, and the errors of decided columns, ``[P, R]``."""
    feedback: Array
    """``[P, P]``."""
    costs: npt.NDArray[np.float64]
    """Squared pivot and damping of each column, ``[P, 2]``."""
    row_loss: npt.NDArray[np.float64]
    points: npt.NDArray[np.int32]

    @property
    def arrays(self) -> tuple[Array, Array, Array, Array, Array, Array]:
        """All of it, in the order in which the kernels take it."""
        return (
            self.targets,
            self.errors,
            self.feedback,
            self.costs,
            self.row_loss,
            self.points,
        )

    def finish(
        self, factor: Factor, row_scale_R: npt.NDArray[np.float64], *, states: int
    ) -> Rounding:
        """The points and losses in the caller's order and units.

        Raises:
            QuantError: a target passes `LIMIT`.
        """
        highest, lowest = self.targets.max(initial=0.0), self.targets.min(initial=0.0)
        reach = float(np.maximum(highest, -lowest))
        if not reach < LIMIT:
            raise QuantError(
                f"{factor.name}: the grid is too fine, codes would reach {reach:.3g} "
                f"(at most {LIMIT:.0f}); use larger scales or more damping"
            )
        points_RC = np.empty(self.points.shape[::-1], np.int32)
        _unpack(self.points, factor.order, points_RC)
        loss_R = np.maximum(self.row_loss, 0.0) * row_scale_R**2
        return Rounding(points=points_RC, states=states, row_loss=loss_R)


def positive(
    values: npt.ArrayLike | None, size: int, what: str, *, or_zero: bool = False
) -> npt.NDArray[np.float64]:
    """`values` as float64 numbers ``[size]``; None gives ones. Errors call them `what`.

    Raises:
        QuantError: the shape is another, or one is not a positive finite number.
    """
    if values is None:
        return np.ones(size)
    array = np.asarray(values, np.float64)
    if array.shape != (size,):
        raise QuantError(f"{what} have shape {array.shape}, need ({size},)")
    if not (np.isfinite(array) & ((array > 0) | (or_zero & (array == 0)))).all():
        raise QuantError(f"{what} are not all positive finite numbers{' or 0' * or_zero}")
    return array


def prepare(
    weight_RC: Array,
    factor: Factor,
    row_scale_R: npt.NDArray[np.float64],
    column_scale_C: npt.NDArray[np.float64],
) -> Workspace:
    """The weights divided by the scales, permuted, and laid out column after column.

    No argument is modified.

    Raises:
        QuantError: shapes disagree, or a weight is not finite.
    """
    if weight_RC.ndim != 2 or weight_RC.shape[1] != factor.columns or not weight_RC.size:
        raise QuantError(
            f"{factor.name}: weight {weight_RC.shape}, but its Hessian has {factor.columns} columns"
        )
    dtype = factor.feedback.dtype
    weight_RC = np.asarray(weight_RC, dtype)
    if not np.isfinite(weight_RC).all():
        raise QuantError(f"{factor.name}: a weight is not finite")
    order_P = factor.order
    scale_P = column_scale_C[order_P]
    target_PR = np.empty(weight_RC.shape[::-1], dtype)
    inverse_R, inverse_P = reciprocals(row_scale_R, dtype), reciprocals(scale_P, dtype)
    _pack(weight_RC, order_P, inverse_R, inverse_P, target_PR)
    # an error of column i is in units of i's grid, what column c takes from it in units of c's
    feedback_PP = np.asarray(factor.feedback) * scale_P.astype(dtype)
    feedback_PP *= inverse_P[:, None]
    live_P = ~factor.dead[order_P]
    cost_P2 = np.stack([(factor.pivots[order_P] * scale_P) ** 2, factor.damping * scale_P**2], 1)
    return Workspace(
        targets=target_PR,
        errors=target_PR.copy(),
        feedback=feedback_PP,
        costs=np.where(live_P[:, None], cost_P2, 0.0),
        row_loss=np.zeros(weight_RC.shape[0]),
        points=np.empty(weight_RC.shape[::-1], np.int32),
    )
