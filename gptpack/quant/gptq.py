"""Weights -> points of uniform grids by GPTQ: unclipped for an entropy coder, or clipped.

Frantar et al. 2022, https://arxiv.org/abs/2210.17323, in the form of factor.py: columns are decided
one by one, each after what the earlier ones left behind.

Shape legend: R = rows (outputs), C = columns (inputs), P = columns in the order they are decided.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gptpack.compiled import compiled
from gptpack.errors import QuantError
from gptpack.quant.columns import (
    LIMIT,
    Array,
    Rounding,
    add_feedback,
    positive,
    prepare,
    settle_column,
)
from gptpack.quant.factor import Factor

CLIP_SCALES = tuple(1.0 - 0.04 * i for i in range(13))
"""Fractions of a row's largest magnitude that `quantize_clipped` tries: 1.0 down to 0.52."""


@compiled(fastmath={"contract"})
def _round_columns(
    target_PR: Array,
    error_PR: Array,
    feedback_PP: Array,
    cost_P2: Array,
    loss_R: Array,
    points_PR: Array,
    clip: float,
    block: int,
) -> None:  # pragma: no cover
    """Fill `points_PR`. Targets and errors both hold the weights at first."""
    columns, rows = target_PR.shape
    every = (0, rows)
    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        add_feedback(target_PR, error_PR, feedback_PP, (0, begin), (begin, end), every)
        for c in range(begin, end):
            add_feedback(target_PR, error_PR, feedback_PP, (begin, c), (c, c + 1), every)
            target_R, point_R = target_PR[c], points_PR[c]
            if cost_P2[c, 0] == 0:
                point_R[:] = 0
            else:
                for r in range(rows):
                    point_R[r] = np.int32(min(max(np.rint(target_R[r]), -clip), clip))
            costs = (cost_P2[c, 0], cost_P2[c, 1])
            settle_column(target_R, point_R, error_PR[c], costs, loss_R)


def quantize_uniform(
    weight: npt.ArrayLike,
    factor: Factor,
    row_scale: npt.ArrayLike,
    column_scale: npt.ArrayLike | None = None,
    *,
    clip: int | None = None,
    block: int = 128,
) -> Rounding:
    """Round to ``code * row_scale * column_scale`` so that ``tr((W - Q) H (W - Q)^T)`` stays small.

    Args:
        weight: weight of a linear layer, ``[R, C]``, any strides. Not modified.
        factor: the layer's Hessian, factored; its dtype is the arithmetic's.
        row_scale: ``[R]``.
        column_scale: ``[C]``; ones by default.
        clip: largest magnitude of a code. None leaves the grid unclipped, which is what an entropy
            coder wants: a clip costs distortion and saves almost no bits.
        block: columns between lazy updates; the result does not depend on it beyond rounding.

    Raises:
        QuantError: shapes disagree, a weight is not finite, a scale is not positive and finite, or
            a code would pass `columns.LIMIT`.
    """
    weight_RC = np.asarray(weight)
    row_R = positive(row_scale, weight_RC.shape[0], f"{factor.name}: row scales")
    column_C = positive(column_scale, factor.columns, f"{factor.name}: column scales")
    if block < 1 or (clip is not None and not 0 < clip < LIMIT):
        raise QuantError(f"{factor.name}: block={block}, clip={clip}; both must be positive")
    work = prepare(weight_RC, factor, row_R, column_C)
    _round_columns(
        *work.arrays,
        float(LIMIT if clip is None else clip),
        block,
    )
    return work.finish(factor, row_R, states=1)


def quantize_clipped(
    weight: npt.ArrayLike,
    factor: Factor,
    bits: int,
    *,
    scales: Sequence[float] = CLIP_SCALES,
) -> tuple[Rounding, Array]:
    """GPTQ to codes of `bits` bits, with one scale per row: ``code * scale``.

    Codes lie within ``+-(2^(bits-1) - 1)``. The scales ``[R]`` come back in float16, and the
    codes were decided with those. Every row tries its largest magnitude times each of `scales` as
    the end of its range and keeps the one with the smallest ``e H e^T`` after feedback. Rows do not
    depend on each other, so one GPTQ per candidate finds each row's best. A row of zeros gets the
    smallest normal scale.

    Raises:
        QuantError: as `quantize_uniform`; `bits` is not 2 to 8, or `scales` is empty; a row is too
            large for float16.
    """
    weight_RC = np.asarray(weight)
    if not 2 <= bits <= 8 or not scales:
        raise QuantError(
            f"{factor.name}: {bits} bits and {len(scales)} scales to try; need 2 to 8 bits and at "
            "least 1 scale"
        )
    clip = 2 ** (bits - 1) - 1
    info = np.finfo(np.float16)
    peak_R = np.abs(weight_RC).max(axis=1).astype(np.float64)
    if not (peak_R / clip <= float(info.max)).all():
        raise QuantError(
            f"{factor.name}: a row reaches {peak_R.max():.3g}, too much for {info.dtype} scales"
        )
    best: Rounding | None = None
    best_scale_R = np.empty(0)
    for fraction in scales:
        scale_R = np.maximum(peak_R * (fraction / clip), float(info.smallest_normal))
        scale_R = scale_R.astype(np.float16)
        tried = quantize_uniform(weight_RC, factor, scale_R, clip=clip)
        if best is None:
            best, best_scale_R = tried, scale_R
            continue
        better_R = tried.row_loss < best.row_loss
        best_scale_R = np.where(better_R, scale_R, best_scale_R)
        best = Rounding(
            points=np.where(better_R[:, None], tried.points, best.points),
            states=1,
            row_loss=np.minimum(tried.row_loss, best.row_loss),
        )
    assert best is not None
    return best, best_scale_R
