"""Two matrices, one fed by the other, at a delta -> the same without channels that give too little.

A row of the first matrix makes a channel, and a column of the second takes it. Where the column is
0, nothing reads the row, whose codes may then be 0 as well. Training leaves a tenth of the channels
of some models so small that rounding hardly tells them from 0, while their rows, which say when
such a channel fires, take as many bits as any (docs/log.md, 2026-11-30).

Shape legend: R = rows (outputs) and C = columns (inputs) of the second matrix.
"""

from dataclasses import replace

import numpy as np

from gptpack.quant.allocation import Matrix

LEAST_GIVEN = 0.0125
"""Least that a channel must give to be kept, for each weight that makes or takes it, in units of
half a delta squared: about a fifth of what those weights' bits are worth (docs/log.md,
2026-11-30)."""


def without_idle(first: Matrix, second: Matrix, delta: float) -> tuple[Matrix, Matrix]:
    """The matrices as they are quantized at `delta`: idle columns are dead, their rows unread.

    What a column gives is the loss of leaving it out, with the columns that are decided after it
    making up for it as they can. Its price is that of its bits, one for each weight: their true
    number finds the same channels (docs/log.md, 2026-11-30). Columns with offsets are never 0.
    """
    if second.offsets is not None:
        return first, second
    weight_RC = np.asarray(second.weight)
    factor = second.factor
    power_C = np.einsum("r,rc,rc->c", second.row_weight, weight_RC, weight_RC)
    weights = len(weight_RC) + len(first.hessian)
    idle_C = factor.dead | (power_C * factor.pivots**2 < LEAST_GIVEN * weights * delta**2)
    return (
        replace(first, row_weight=np.where(idle_C, 0.0, first.row_weight)),
        replace(second, factor=replace(factor, dead=idle_C)),
    )
