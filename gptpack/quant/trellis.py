"""Weights -> points by a trellis inside GPTQ, for an entropy coder. codec/trellis.py decodes.

The grid is twice as fine, and a trellis says at every weight which half of its points may be used:
a coded symbol is as cheap as on the coarse grid, and the best of all paths (Viterbi) comes 0.9 to
1.3 dB closer than rounding. A path runs down a column, because rows are independent once the
earlier columns are decided; the decided column's errors are then fed on as in columns.py.

The kernel walks the code in its feedforward form, ``(parity, k mod 2) = (h1(D), h0(D)) a``, whose
state is the last inputs a. States u and u + S/2 lead to 2u and 2u + 1, so that one row is S/2
butterflies over two contiguous runs, which LLVM vectorizes. Kept is which of its two predecessors
each state came from, R * S bytes: those of states 2u, then those of states 2u + 1. The 66
matrices of a 27 M GPT take 0.56 s with 8 states, 0.58 s with 64, 0.87 s with 256, and 0.30 s
without a trellis (benchmarks/bench_trellis.py, two cores with AVX-512; docs/log.md, 2026-11-30).

Shape legend: R = rows (outputs), C = columns (inputs), P = columns in the order they are decided,
S = states, K = 4 subsets (residues modulo 4).
"""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.codec.polynomials import polynomials
from gptpack.compiled import compiled
from gptpack.cores import usable_cores
from gptpack.errors import QuantError
from gptpack.quant.columns import (
    Array,
    Rounding,
    Workspace,
    add_feedback,
    positive,
    prepare,
    settle_column,
)
from gptpack.quant.factor import Factor, factorize
from gptpack.quant.gptq import quantize_uniform

UNREACHABLE = 1e30
"""Path metric of a state that no path comes to."""
BAND_ROWS = 4096
"""Rows of a band, or up to twice as many: what is kept of its paths stays in a core's cache. A path
ends with its band as if no rows followed, and the next goes on from there, which costs 0.07 % more
loss on 24,576 rows (docs/log.md, 2026-11-30)."""
RUN_COLUMNS = 16
"""Columns by which a band is behind the one above."""


def _bit_parity(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    return (np.bitwise_count(values) & 1).astype(np.int32)


@compiled(fastmath={"contract"})
def _subset_costs(target_R: Array, weight_R: Array, cost_KR: Array) -> None:  # pragma: no cover
    """Weighted squared distances to the nearest point of every subset, into `cost_KR`.

    A row that costs nothing gets the target 0, and only its points 0 and 1, whose symbol is 0.
    """
    for r in range(target_R.shape[0]):
        free = weight_R[r] == 0
        if free:
            target_R[r] = 0
        t = target_R[r]
        for k in range(4):
            y = (t - k) / 4
            d = (y - np.rint(y)) * 4
            cost_KR[k, r] = UNREACHABLE if free and k > 1 else weight_R[r] * d * d


@compiled(inline="always")
def _advance(
    metric_S: Array,
    next_S: Array,
    upper_S: Array,
    cost_KR: Array,
    r: int,
    odd_S: Array,
    second_S: Array,
) -> None:  # pragma: no cover
    """The path metrics after row `r`, and which states came from the upper half.

    The two arrays of metrics must be a function's own: only then does LLVM know that they are apart
    (four times as fast).
    """
    # no path comes to state 0 in the first rows after another
    base = metric_S[0] if metric_S[0] < UNREACHABLE / 2 else metric_S[0] - metric_S[0]
    d0, d1 = cost_KR[0, r] - base, cost_KR[1, r] - base
    d2, d3 = cost_KR[2, r] - base, cost_KR[3, r] - base
    half = odd_S.size
    for u in range(half):
        first_cost = d1 if odd_S[u] else d0
        other = d3 if odd_S[u] else d2
        straight = other if second_S[u] else first_cost
        crossed = first_cost if second_S[u] else other
        a0, a1 = metric_S[u] + straight, metric_S[u + half] + crossed
        b0, b1 = metric_S[u] + crossed, metric_S[u + half] + straight
        next_S[2 * u] = a1 if a1 < a0 else a0
        next_S[2 * u + 1] = b1 if b1 < b0 else b0
        upper_S[u] = a1 < a0
        upper_S[u + half] = b1 < b0


@functools.cache
def _kernel(states: int) -> Callable[..., None]:
    """The compiled search for one code. The number of states is a constant to the compiler."""
    h0, h1 = polynomials(states)
    half = states // 2
    low = np.arange(half)
    # The parity bit of state u, and the residue's second bit on its branch with input 0. State
    # u + half has the same parity and the opposite second bit: h1 has no last term, h0 has one.
    odd_S = _bit_parity(low & (h1 >> 1))
    second_S = _bit_parity(low & (h0 >> 1))

    @compiled(fastmath={"contract"})
    def trellis_columns(
        target_PR: Array,
        error_PR: Array,
        feedback_PP: Array,
        cost_P2: Array,
        loss_R: Array,
        points_PR: Array,
        weight_R: Array,
        state_P: Array,
        cost_KR: Array,
        upper_RS: Array,
        rows: Any,
        columns: Any,
        block: int,
    ) -> None:  # pragma: no cover
        first, last = rows
        count = last - first
        a_S = np.empty(states, target_PR.dtype)
        b_S = np.empty(states, target_PR.dtype)
        for c in range(columns[0], columns[1]):
            begin = c - c % block
            if c == begin:
                end = min(begin + block, target_PR.shape[0])
                add_feedback(target_PR, error_PR, feedback_PP, (0, begin), (begin, end), rows)
            add_feedback(target_PR, error_PR, feedback_PP, (begin, c), (c, c + 1), rows)
            target_R, error_R = target_PR[c, first:last], error_PR[c, first:last]
            point_R, costs = points_PR[c, first:last], (cost_P2[c, 0], cost_P2[c, 1])
            if costs[0] == 0:
                point_R[:] = 0  # all-zero symbols stay in state 0
                settle_column(target_R, point_R, error_R, costs, loss_R[first:last])
                continue
            _subset_costs(target_R, weight_R[first:last], cost_KR)
            a_S[:] = UNREACHABLE
            a_S[state_P[c]] = 0
            for r in range(0, count, 2):
                _advance(a_S, b_S, upper_RS[r], cost_KR, r, odd_S, second_S)
                if r + 1 < count:
                    _advance(b_S, a_S, upper_RS[r + 1], cost_KR, r + 1, odd_S, second_S)
                else:
                    a_S[:] = b_S
            s = 0
            for i in range(1, states):
                if a_S[i] < a_S[s]:
                    s = i
            state_P[c] = s
            for r in range(count - 1, -1, -1):
                u = s >> 1
                upper = int(upper_RS[r, u + half * (s & 1)])
                k = odd_S[u] + 2 * (second_S[u] ^ (s & 1) ^ upper)
                s = u + half * upper
                point_R[r] = k + 4 * np.int32(np.rint((target_R[r] - k) / 4))
            settle_column(target_R, point_R, error_R, costs, loss_R[first:last])

    return trellis_columns


def quantize_trellis(
    weight: npt.ArrayLike,
    factor: Factor,
    row_scale: npt.ArrayLike,
    column_scale: npt.ArrayLike | None = None,
    *,
    states: int = 8,
    row_weight: npt.ArrayLike | None = None,
    block: int = 128,
    threads: int | None = None,
) -> Rounding:
    """Quantize to ``point * row_scale * column_scale / 2`` with a trellis down every column.

    Trellis: Marcellin and Fischer 1990; entropy-coded: Fischer and Wang 1992. Each column's path
    minimizes ``sum over rows of row_weight (target - value)^2`` and is decided before the next.

    Args:
        weight: weight of a linear layer, ``[R, C]``, any strides. Not modified.
        factor: the layer's Hessian, factored; its dtype is the arithmetic's.
        row_scale: ``[R]``, that of a plain grid with the same symbols; points lie twice as dense.
        column_scale: ``[C]``; ones by default.
        states: a key of `gptpack.codec.polynomials.POLYNOMIALS`; more states are better and slower.
        row_weight: cost of a squared error in a row (Fisher information), ``[R]``. Only proportions
            matter. `Rounding.row_loss` is not multiplied by it. All symbols of a row that costs 0
            are 0.
        block: columns between lazy updates; the result does not depend on it beyond rounding.
        threads: bands of a tall matrix that are in work together; None takes one per core. The
            result does not depend on it.

    Raises:
        QuantError: no code has so many states, shapes disagree, a weight is not finite, a scale is
            not positive and finite, or a point would pass `columns.LIMIT`.
    """
    weight_RC = np.asarray(weight)
    row_R = positive(row_scale, weight_RC.shape[0], f"{factor.name}: row scales")
    column_C = positive(column_scale, factor.columns, f"{factor.name}: column scales")
    what = f"{factor.name}: row weights"
    gain_R = positive(row_weight, weight_RC.shape[0], what, or_zero=True) * row_R**2
    gain_R /= gain_R.mean() or 1.0
    if block < 1:
        raise QuantError(f"{factor.name}: block={block}; it must be positive")
    work = prepare(weight_RC, factor, row_R / 2, column_C)
    del weight_RC  # which may be a copy of its own, read for this
    _search(work, gain_R.astype(work.targets.dtype), states, block, threads)
    return work.finish(factor, row_R / 2, states=states)


def _search(work: Workspace, weight_R: Array, states: int, block: int, threads: int | None) -> None:
    """Fill the points, a band of rows after another.

    A band's path goes on from where the one above has ended in the same column. So bands are in
    work together, each some columns behind the one above.
    """
    kernel, dtype = _kernel(states), work.targets.dtype
    columns, rows = work.targets.shape
    bands = max(1, rows // BAND_ROWS)
    cuts = [rows * band // bands for band in range(bands + 1)]
    runs = [(c, min(c + RUN_COLUMNS, columns)) for c in range(0, columns, RUN_COLUMNS)]
    state_P = np.zeros(columns, np.int32)
    done = [[threading.Event() for _ in runs] for _ in range(bands)]

    def search(band: int) -> None:
        high = cuts[band + 1] - cuts[band]
        scratch = np.empty((4, high), dtype), np.empty((high, states), np.bool_)
        try:
            for index, run in enumerate(runs):
                if band:
                    done[band - 1][index].wait()
                kernel(
                    *work.arrays,
                    weight_R,
                    state_P,
                    *scratch,
                    (cuts[band], cuts[band + 1]),
                    run,
                    block,
                )
                done[band][index].set()
        finally:
            for event in done[band]:
                event.set()

    if bands == 1:
        search(0)
        return
    workers = min(bands, threads or usable_cores())
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for _ in pool.map(search, range(bands)):
            pass


def get_ready(states: int) -> None:
    """Load the loops of this trellis, or compile them where they were not kept."""
    factor = factorize(np.eye(8, dtype=np.float32))
    quantize_trellis(np.ones((8, 8), np.float32), factor, np.ones(8), states=states)


def quantize_on_grid(
    weight: npt.ArrayLike,
    factor: Factor,
    row_scale: npt.ArrayLike,
    column_scale: npt.ArrayLike | None = None,
    *,
    states: int,
    row_weight: npt.ArrayLike | None = None,
) -> Rounding:
    """`quantize_trellis`, or for one state `quantize_uniform`, where only weights of 0 count.

    Raises:
        QuantError: see `quantize_trellis`.
    """
    if states == 1:
        rounding = quantize_uniform(weight, factor, row_scale, column_scale)
        if row_weight is not None:
            rounding.points[np.asarray(row_weight) == 0] = 0
        return rounding
    return quantize_trellis(
        weight, factor, row_scale, column_scale, states=states, row_weight=row_weight
    )
