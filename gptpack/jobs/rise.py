"""A prepared model and a rise in bits per byte -> the smallest file found that costs no more.

Each point of the search is a file that is coded, reloaded in a fresh process and scored; what is
predicted of a file decides nothing but where to begin.
"""

import math
from collections.abc import Sequence

from gptpack.errors import ConfigError, LimitError, QuantError
from gptpack.evaluation.result import Evaluation
from gptpack.jobs.curve import Point, point_of
from gptpack.jobs.prepare import Prepared
from gptpack.packing.packer import UNLIMITED, CodedFile
from gptpack.packing.search import COARSEST_DELTA, FINEST_DELTA, FIRST_DELTA

MOST_POINTS = 8
"""Most files that are measured."""
FIRST_RISE = 0.03
"""Rise at `FIRST_DELTA` from which a search begins: that of SmolLM2-135M, to a third or so."""
CLOSE = 1.03
"""Ratio of two deltas between which no further one is tried: 0.04 bits a weight."""
FAR = 8.0
"""Largest ratio of a delta to the one before, where only one side of the limit is known."""

Scores = tuple[Evaluation, Evaluation]


def smallest(ready: Prepared, most: float) -> tuple[CodedFile, Scores | None, tuple[Point, ...]]:
    """The smallest file found whose bits per byte are at most `most` above the model's.

    Returns:
        the file, its scores before and after packing (None but on rank 0), and all that was tried.

    Raises:
        ConfigError: no method has a delta.
        LimitError: the finest file that was tried costs more.
    """
    if not ready.packer.matrices:
        raise ConfigError("--max-rise needs a method with a delta: gptq-trellis or gptq-uniform")
    best: tuple[CodedFile, Scores | None] | None = None
    size = UNLIMITED
    points: list[Point] = []
    tried: list[tuple[float, float]] = []
    delta: float | None = max(FINEST_DELTA, FIRST_DELTA * math.sqrt(most / FIRST_RISE))
    while delta is not None and len(tried) < MOST_POINTS:
        ready.progress("search for the rise", len(tried), MOST_POINTS)
        try:
            coded = ready.fit(delta=delta)
        except QuantError:  # so fine a grid cannot be stored
            break
        file = coded.assemble()
        scores = ready.proof.of(file, progress=ready.progress) if ready.ranks.main else None
        point = point_of(coded, scores)
        rise = ready.ranks.first(point.rise if point.rise is not None else math.nan)
        # of two within the limit the coarser need not be the smaller one
        if rise <= most and len(file) < size:
            size, best = len(file), (coded, scores)
        points.append(point)
        tried.append((delta, rise))
        delta = next_delta(tried, most)
    if best is None:
        least = min(rise for _, rise in tried) if tried else math.nan
        raise LimitError(
            f"no file of {len(tried)} that were measured costs at most {most:g} bits per byte; the "
            f"best costs {least:.5f}: give a larger --max-rise"
        )
    return *best, tuple(points)


def next_delta(tried: Sequence[tuple[float, float]], most: float) -> float | None:
    """The delta to measure next; None where no other one is worth it.

    A rise goes about as the square of delta, which leads from one side of the limit to the other;
    between two sides, logarithms of both are interpolated, a little on the safe side.

    Args:
        tried: pairs of a delta and its rise in bits per byte.
        most: the limit of the rise.
    """
    within = max((delta for delta, rise in tried if rise <= most), default=0.0)
    beyond = min((pair for pair in tried if pair[1] > most and pair[0] > within), default=None)
    if beyond is None:
        rise = dict(tried)[within]
        factor = FAR if rise <= 0 else min(FAR, 0.99 * math.sqrt(most / rise))
        delta = within * factor
        return min(delta, COARSEST_DELTA) if factor > CLOSE and within < COARSEST_DELTA else None
    if not within:
        delta = beyond[0] * max(1 / FAR, 0.97 * math.sqrt(most / beyond[1]))
        return max(delta, FINEST_DELTA) if beyond[0] > FINEST_DELTA else None
    octave = math.log(beyond[0] / within)
    if octave < math.log(CLOSE):
        return None
    share, rise = 0.5, dict(tried)[within]
    if rise > 0:
        share = 0.98 * math.log(most / rise) / math.log(beyond[1] / rise)
    edge = 0.5 * math.log(CLOSE) / octave
    return within * math.exp(octave * min(max(share, edge), 1 - edge))
