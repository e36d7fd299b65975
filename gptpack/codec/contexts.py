"""Code matrices -> the class of each code, which says by which frequency table it is coded.

Codes are nearly independent given their scale, and the scale is nearly a row factor times a column
factor: neighbours' magnitudes or signs, or tables of a matrix's own, are worth less than 0.001 bit
on real weights before their cost (benchmarks/bench_codec.py --contexts); only the table of a large
vocabulary has columns with a mean, worth 0.2 bits there (docs/log.md, 2026-11-30). A matrix
therefore carries one small integer per row and per column, on a grid of 1/6 octave, and a code's
class is their sum.
The decoder adds integers; only the encoder fits them.

Shape legend: R = rows, C = columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gptpack.codec.coder import Ints, count
from gptpack.codec.stepper import Codes, Parity
from gptpack.codec.tables import PLACES, REACH_MAX

GRID = 6
"""Classes per octave of scale; 4 to 8 are within 0.0006 bit of each other."""
CLASSES_MAX = 255
_WEIGHT = 1 << 12
_CLIP = 1 << 10


@dataclass(frozen=True)
class Scales:
    """Integers for rows and columns; the class of code [r, c] is ``rows[r] + columns[c]``."""

    rows: npt.NDArray[np.integer]
    columns: npt.NDArray[np.integer]


def fit_scales(codes_RC: Codes) -> Scales:
    """Row and column scales of `codes_RC` by alternating maximum likelihood for Gaussians.

    Each index minimises its bits of misfit plus its own bits under a Gaussian over the indexes of
    its kind (0.0003 bit less in all than rounding). Weights are integers and sums exact, so that
    no order of summation, and no number of threads, changes the result.
    """
    rows, columns = codes_RC.shape if codes_RC.size else (0, 0)
    squares_RC = codes_RC.astype(np.float32)  # which holds squares up to 2^24 exactly
    np.clip(squares_RC, -_CLIP, _CLIP, out=squares_RC)
    np.square(squares_RC, out=squares_RC)
    column_C = np.zeros(columns, dtype=np.int64)
    row_R = np.zeros(rows, dtype=np.int64)
    for _ in range(3 if codes_RC.size else 0):
        row_R = _pick(squares_RC, column_C)
        column_C = _pick(squares_RC.T, row_R)
    return Scales(row_R, column_C)


def _pick(squares_NM: npt.NDArray[np.float32], other_M: Ints) -> Ints:
    """Indexes of N lines whose M codes each have the scales `other_M`."""
    size = other_M.size
    middle = int(np.sort(other_M)[size // 2])
    weights_M = np.rint(_WEIGHT * np.exp2((middle - other_M).clip(-8 * GRID, 4 * GRID) * 2 / GRID))
    # A threaded matrix product waits longer for its threads than it computes.
    mean_N = np.einsum("nm,m->n", squares_NM, weights_M) / (size * _WEIGHT)
    # A line of zeros counts as one with a single code of magnitude 1/2.
    log_N = GRID / 2 * np.log2(np.maximum(mean_N, 0.25 / size)) - middle
    centre, spread = log_N.mean(), max(float(log_N.std()), 0.5)
    index_N = np.rint(log_N)
    best_N = np.full(log_N.size, np.inf)
    for shift in (0, -1, 1, -2, 2):
        candidate_N = np.rint(log_N) + shift
        ratio_N = (log_N - candidate_N) * (2 / GRID * np.log(2))
        cost_N = size * (np.exp(ratio_N) - 1 - ratio_N) + ((candidate_N - centre) / spread) ** 2
        index_N = np.where(cost_N < best_N, candidate_N, index_N)
        best_N = np.minimum(cost_N, best_N)
    return index_N.astype(np.int64)


def class_range(scales: Sequence[Scales]) -> tuple[int, int]:
    """The lowest class and the number of classes; classes beyond are clamped to those."""
    inhabited = [s for s in scales if s.rows.size and s.columns.size]
    if not inhabited:
        return 0, 1
    lowest = min(int(s.rows.min() + s.columns.min()) for s in inhabited)
    highest = max(int(s.rows.max() + s.columns.max()) for s in inhabited)
    lowest = max(lowest, highest - CLASSES_MAX + 1)
    return lowest, highest - lowest + 1


def count_values(
    codes_RC: Codes, parity_RC: Parity | None, scales: Scales, lowest: int, classes: int
) -> Ints:
    """Histograms by class, parity and value: ``[K, P, PLACES]`` with P = 1 without a parity."""
    if parity_RC is None:
        lanes, parity_RC = 1, np.zeros(codes_RC.shape, np.uint8)
    else:
        lanes = 2
    counts_KPV = np.zeros((classes, lanes, PLACES), dtype=np.int64)
    columns = scales.columns.astype(np.int64) - lowest
    count(codes_RC, parity_RC, scales.rows.astype(np.int64), columns, REACH_MAX + 1, counts_KPV)
    return counts_KPV


def merge_classes(histograms_KPV: Ints) -> Ints:
    """The group of each class: neighbours share tables where that saves more than it costs.

    Args:
        histograms_KPV: counts by class, parity and value.

    Returns:
        A group number per class, ``[K]``, that starts at 0 and rises by 0 or 1.
    """
    groups = [histograms_KPV[k] for k in range(len(histograms_KPV))]
    sizes = [1] * len(groups)
    alone = [_cost(group) for group in groups]
    pairs = [_cost(a + b) for a, b in pairwise(groups)]
    while pairs:
        gains = [alone[i] + alone[i + 1] - pairs[i] for i in range(len(pairs))]
        i = int(np.argmax(gains))
        if gains[i] < 0:
            break
        groups[i : i + 2] = [groups[i] + groups[i + 1]]
        sizes[i : i + 2] = [sizes[i] + sizes[i + 1]]
        alone[i : i + 2] = [pairs.pop(i)]
        for j in (i - 1, i):
            if 0 <= j < len(pairs):
                pairs[j] = _cost(groups[j] + groups[j + 1])
    return np.repeat(np.arange(len(sizes)), sizes)


def _cost(histogram_PV: Ints) -> float:
    """Bits of the symbols under their own frequencies, and of the tables that hold those."""
    present = histogram_PV[histogram_PV > 0].astype(np.float64)
    symbols = -float((present * np.log2(present)).sum())
    totals = histogram_PV.sum(axis=1)
    totals = totals[totals > 0].astype(np.float64)
    return symbols + float((totals * np.log2(totals)).sum()) + 30 * totals.size + 2.2 * present.size
