"""A Hessian -> the factor through which GPTQ feeds its errors: numpy in and out, float64 inside.

Shape legend: C = columns (inputs of the layer), P = columns in the order they are decided.

With the damped Hessian in decision order written as ``H = U U^T``, U upper triangular, the loss of
an error E is ``||E U||_F^2``, and its column c depends on the errors of columns 0..c only. Deciding
columns one by one, each rounded after adding what the earlier ones leave behind,

    target_c = w_c + sum over i < c of e_i U[i, c] / U[c, c],        e_i = w_i - q_i,

is Babai's nearest plane and, code for code, GPTQ (Chen et al. 2025, https://arxiv.org/abs/2507.18553;
the textbook form with the inverse's Cholesky factor is in tests/reference.py). One factorization
instead of three, and ``(target_c - q_c) U[c, c]`` is the loss itself.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from gptpack.errors import QuantError
from gptpack.shelf import Held

Array = npt.NDArray[Any]
Order = Literal["activation", "natural"]

FIRST_DAMP = 2.0**-24
"""Damping that replaces a `damp` of 0 where the Hessian turns out to be singular."""
LEAST_PIVOT = 2.0**-46
"""Least squared pivot as a fraction of its diagonal entry: below, it is rounding noise, and the
Hessian is not positive definite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A factored Hessian. Safe to share between threads; nothing writes to it."""

    name: str
    """Name of the tensor, for messages."""
    order: npt.NDArray[np.int64]
    """`order[p]` is the column that is decided p-th."""
    feedback: Held
    """Row c holds ``U[i, c] / U[c, c]`` for i < c: what column c takes from earlier errors. It is
    float32 or float64, and so is the arithmetic of the quantizers that use it."""
    pivots: npt.NDArray[np.float64]
    """``U[c, c]`` by column, so an error e made in deciding column c costs ``(e pivots[c])^2``.
    Grid steps proportional to ``1 / pivots`` spread the loss evenly (WaterSIC)."""
    dead: npt.NDArray[np.bool_]
    """Which columns have an input that is always 0. They are quantized to 0 and cost nothing; their
    pivot is the root mean square of the others, so that a scale derived from it is ordinary."""
    damping: float
    """Number that was added to the diagonal, in the Hessian's own unit."""
    damp: float
    """The damping as a fraction of the mean diagonal; `notes` says where it was raised."""
    notes: tuple[str, ...] = field(default=())
    """Warnings for a person, each naming the tensor."""

    @property
    def columns(self) -> int:
        return len(self.order)

    @property
    def dead_columns(self) -> list[int]:
        return [int(column) for column in np.flatnonzero(self.dead)]


def _checked(hessian: Array, name: str) -> npt.NDArray[np.float64]:
    """A symmetric float64 copy."""
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1] or not hessian.size:
        raise QuantError(f"{name}: the Hessian has shape {hessian.shape}, but needs [C, C]")
    hessian_CC = hessian.astype(np.float64)
    if not np.isfinite(hessian_CC).all():
        bad = int(hessian_CC.size - np.isfinite(hessian_CC).sum())
        raise QuantError(
            f"{name}: {bad} of {hessian_CC.size} entries of the Hessian are not finite; "
            "check the calibration activations"
        )
    symmetric_CC: npt.NDArray[np.float64] = (hessian_CC + hessian_CC.T) / 2
    least = float(symmetric_CC.diagonal().min())
    if least < 0:
        raise QuantError(
            f"{name}: the Hessian's diagonal holds {least:.3g}; sums of squares are not negative"
        )
    return symmetric_CC


def _upper(hessian_PP: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """U with ``U U^T = hessian_PP``, or None if that is not positive definite."""
    # torch's LAPACK: numpy's OpenBLAS threads spin, and took 10x as long on a busy machine.
    lower_PP, failed = torch.linalg.cholesky_ex(torch.from_numpy(hessian_PP[::-1, ::-1].copy()))
    if int(failed):
        return None
    upper_PP: npt.NDArray[np.float64] = lower_PP.numpy()[::-1, ::-1]
    pivot_P = upper_PP.diagonal()
    if not np.isfinite(pivot_P).all():
        return None
    if (pivot_P**2 < LEAST_PIVOT * hessian_PP.diagonal()).any():
        return None
    return upper_PP


def factorize(
    hessian: npt.ArrayLike,
    *,
    damp: float = 0.01,
    max_damp: float = 1.0,
    order: Order = "activation",
    early: npt.NDArray[np.bool_] | None = None,
    dtype: npt.DTypeLike = np.float32,
    name: str = "hessian",
) -> Factor:
    """Factor a layer's Hessian for `quantize_uniform` and `quantize_trellis`.

    Args:
        hessian: ``X^T X / n`` over calibration inputs, ``[C, C]``. Symmetrized, not modified.
        damp: added to the diagonal, as a fraction of the mean over live columns. Doubled as often
            as the factorization fails, up to `max_damp`; each doubling is in the result's `notes`.
        order: "activation" decides the column with the largest diagonal first, "natural" column 0.
        early: which columns ``[C]`` are decided before all others, the smallest diagonal first.
        dtype: float32 or float64, for `Factor.feedback` and so for the quantizers' arithmetic.
        name: the tensor's, for messages.

    Raises:
        QuantError: `hessian` is not square, finite and of a nonnegative diagonal, is all zeros, or
            is not positive definite at `max_damp`; or another argument is none of those above.
    """
    if not 0 <= damp <= max_damp:
        raise QuantError(f"{name}: damp={damp} is not within 0 and max_damp={max_damp}")
    if order not in ("activation", "natural"):
        raise QuantError(f"{name}: unknown order {order!r}; use 'activation' or 'natural'")
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise QuantError(f"{name}: dtype={np.dtype(dtype)}; use float32 or float64")
    hessian_CC = _checked(np.asarray(hessian), name)
    diagonal_C = hessian_CC.diagonal().copy()
    dead_C = diagonal_C == 0
    if dead_C.all():
        raise QuantError(
            f"{name}: every column of the Hessian is zero; no calibration input reached the layer"
        )
    hessian_CC[dead_C, :] = 0
    hessian_CC[:, dead_C] = 0
    mean = float(diagonal_C[~dead_C].mean())
    hessian_CC[dead_C, dead_C] = mean
    notes: list[str] = []
    if dead_C.any():
        notes.append(
            f"{name}: {int(dead_C.sum())} of {len(dead_C)} inputs are always zero; "
            "their weights become 0"
        )

    early_C = np.zeros(len(dead_C), bool) if early is None else early
    size_C = -diagonal_C if order == "activation" else np.arange(len(dead_C))
    order_P = np.lexsort((np.where(early_C, diagonal_C, size_C), ~early_C)).astype(np.int64)
    hessian_PP = hessian_CC[np.ix_(order_P, order_P)]
    del hessian_CC
    live_P = ~dead_C[order_P]
    undamped_P = hessian_PP.diagonal().copy()

    while True:
        np.fill_diagonal(hessian_PP, np.where(live_P, undamped_P + damp * mean, mean))
        upper_PP = _upper(hessian_PP)
        if upper_PP is not None:
            break
        raised = 2 * damp if damp else FIRST_DAMP
        if raised > max_damp:
            raise QuantError(
                f"{name}: the Hessian is not positive definite even with damp={damp:.3g} of its "
                f"mean diagonal (max_damp={max_damp:.3g}); collect more calibration tokens"
            )
        notes.append(f"{name}: singular Hessian, damp raised from {damp:.3g} to {raised:.3g}")
        damp = raised

    pivot_P = upper_PP.diagonal()
    feedback_PP = np.tril((upper_PP / pivot_P).T, k=-1).astype(dtype)
    pivot_C = np.empty_like(pivot_P)
    pivot_C[order_P] = pivot_P
    pivot_C[dead_C] = np.sqrt(np.mean(pivot_C[~dead_C] ** 2))
    return Factor(
        name=name,
        order=order_P,
        feedback=np.ascontiguousarray(feedback_PP),
        pivots=pivot_C,
        dead=dead_C,
        damping=damp * mean,
        damp=damp,
        notes=tuple(notes),
    )
