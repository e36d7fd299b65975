"""Counts of symbols -> a table as a file holds it -> frequencies, in integers alone.

A table is written as logarithms on a grid of 1/16 octave, which cost some 1.5 bits each and lose
0.0001 bit per symbol. Integer arithmetic alone turns them into frequencies that sum to 2^24.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.codec.coder import PRECISION, Ints
from gptpack.compiled import compiled

OCTAVE = 16
"""Grid points of logarithms per factor of two."""
TOP = 20 * OCTAVE
"""The logarithm of probability 1; 0 stands for 2^-20 and below."""
REACH = 127
"""Largest magnitude in a parametric table, which also has an escape."""
SHAPES = 128
"""Number of parametric tables."""
REACH_MAX = 255
"""Largest magnitude in an explicit table."""
PLACES = 2 * REACH_MAX + 3
"""Places of a histogram: one for each such value, and one beyond them on either side."""
CENTRE_MAX = OCTAVE * REACH_MAX
CURVATURE_MAX = 20 * OCTAVE
"""Largest magnitudes of a `Span`'s centre and curvature; its table fits 64 bits within them."""
_PRICES = (1.2, 4.0)
"""Bits that a unit of a residual must save: what it takes, or what it and its undoing take."""


@cache
def _roots() -> Ints:
    """The integer part of ``2^(15 + j/16)`` for j = 0 .. 15."""
    powers = [1 << (15 * OCTAVE + j) for j in range(OCTAVE)]
    for _ in range(4):
        powers = [math.isqrt(power) for power in powers]
    return np.array(powers, dtype=np.int64)


def frequencies(logs: Ints) -> Ints:
    """Frequencies, each at least 1 and 2^24 in all, in proportion to ``2^(logs / 16)``."""
    clipped = np.clip(logs, 0, TOP)
    weights = _roots()[clipped % OCTAVE] << (clipped // OCTAVE)
    # 36 + 24 bits: no product overflows.
    shares = weights * ((1 << PRECISION) - weights.size) // weights.sum() + 1
    shares[np.argmax(weights)] += (1 << PRECISION) - shares.sum()
    return shares


@dataclass(frozen=True)
class FrequencyTable:
    """Frequencies of the values `low` .. `low + size - 1` and, in the last place, of an escape."""

    low: int
    logs: Ints

    @property
    def size(self) -> int:
        return self.logs.size - 1

    @cached_property
    def frequencies(self) -> Ints:
        return frequencies(self.logs)

    @cached_property
    def bits(self) -> npt.NDArray[np.float64]:
        """Bits of each symbol, as the encoder estimates them; decoding does without."""
        bits: npt.NDArray[np.float64] = PRECISION - np.log2(self.frequencies)
        return bits


@cache
def parametric(shape: int) -> FrequencyTable:
    """Table number `shape` of the fixed family, centred on 0.

    Even shapes fall off as |k|, odd ones as k^2, with four slopes to an octave. The escape has a
    probability of some 2^-10.
    """
    slope = (4 + shape // 2 % 4) << (shape // 8)
    k = np.abs(np.arange(-REACH, REACH + 1, dtype=np.int64)) ** (1 + shape % 2)
    return FrequencyTable(-REACH, np.append(TOP - (slope * k >> 8), TOP - 10 * OCTAVE))


@cache
def _parametric_costs() -> npt.NDArray[np.float64]:
    """Bits of each symbol by shape, in units of 2^-16 so that sums are exact: ``[SHAPES, 2 REACH +
    2]``."""
    return np.rint([parametric(shape).bits * 65536 for shape in range(SHAPES)])


def best_parametric(values: npt.NDArray[np.integer]) -> tuple[int, int]:
    """The centre and the shape of the fixed family that code `values` in the fewest bits."""
    if not values.size:
        return 0, 0
    centre = int(np.sort(values)[values.size // 2])
    places = np.where(np.abs(values - centre) <= REACH, values - centre, REACH + 1) + REACH
    counts = np.bincount(places, minlength=2 * REACH + 2)
    return centre, int(np.argmin(np.einsum("sv,v->s", _parametric_costs(), counts)))


@dataclass(frozen=True)
class Span:
    """A table as a file holds it: logarithms on a parabola, bent where the values ask for it."""

    low: int
    size: int
    escape: int
    """The escape's logarithm."""
    peak: int
    """The parabola's largest logarithm."""
    centre: int
    """The value with the parabola's largest logarithm, in units of 1/16."""
    curvature: int
    """Logarithm, in 1/16 octave, of the parabola's second difference in units of 2^-10."""
    residuals: tuple[int, ...]
    """Bends: each value's is added to the slope over the parabola from there outwards, and that of
    the value at the centre to the logarithm itself."""

    @property
    def pivot(self) -> int:
        """The place of the value at the centre."""
        return min(max((self.centre + OCTAVE // 2) // OCTAVE - self.low, 0), self.size - 1)

    def table(self) -> FrequencyTable:
        curvature = int(_roots()[self.curvature % OCTAVE]) << (self.curvature // OCTAVE)
        distances = OCTAVE * np.arange(self.low, self.low + self.size) - self.centre
        parabola = self.peak - (distances * distances * curvature >> 34)
        residuals = np.array(self.residuals, dtype=np.int64)
        above = np.cumsum(np.cumsum(residuals[self.pivot + 1 :]))
        below = np.cumsum(np.cumsum(residuals[: self.pivot][::-1]))[::-1]
        bends = residuals[self.pivot] + np.concatenate((below, [0], above))
        return FrequencyTable(self.low, np.append(parabola + bends, self.escape))


def histogram(values: npt.NDArray[np.integer]) -> Ints:
    """Counts of -256 and below, -255 .. 255, 256 and above: ``[PLACES]``."""
    bound = REACH_MAX + 1
    counts: Ints = np.bincount(np.clip(values, -bound, bound).ravel() + bound, minlength=PLACES)
    return counts


def fit_span(counts: Ints) -> Span:
    """The table for values of which a `histogram` counts `counts`.

    Values so rare that naming them costs more than escaping from the table are left out. Each
    logarithm is chosen to minimise the bits of its symbols plus those of its own residual.
    """
    total = int(counts.sum())
    low, high = 0, 1
    if total:
        rare = 1 + (total >> 18)
        inner = counts[1:-1]
        centre = int(np.argmax(inner))
        above = np.flatnonzero(np.cumsum(inner[::-1])[::-1] > rare)
        below = np.flatnonzero(np.cumsum(inner) > rare)
        low = min(int(below[0]), centre) if below.size else centre
        high = max(int(above[-1]), centre) + 1 if above.size else centre + 1
        low, high = low - REACH_MAX, high - REACH_MAX
    counts = counts[low + REACH_MAX + 1 : high + REACH_MAX + 1]
    escapes = total - int(counts.sum())
    escape = int(_logarithm(escapes + 0.25, total + 1))
    fits = [
        _bent(Span(low, counts.size, escape, *parabola, (0,) * counts.size), counts, price)
        for parabola in _parabolas(low, counts)
        for price in _PRICES
    ]
    return min(fits, key=lambda fit: fit[0])[1]


def _bent(span: Span, counts: Ints, price: float) -> tuple[float, Span]:
    """`span` with residuals, and the bits of its symbols and residuals."""
    residual_N = np.zeros(span.size, np.int64)
    bits = _bend(counts, span.table().logs, span.pivot, price, residual_N)
    return float(bits), replace(span, residuals=tuple(residual_N.tolist()))


@compiled()
def _bend(
    count_N: Ints, log_N: Ints, pivot: int, price: float, residual_N: Ints
) -> Any:  # pragma: no cover
    """Fill `residual_N` from `pivot` outwards, where a unit costs `price`; returns all bits."""
    total = count_N.sum()
    bits = 0.0
    for way in (1, -1):
        first, stop = (pivot, count_N.size) if way > 0 else (pivot - 1, -1)
        bend, slope = residual_N[pivot], 0
        for place in range(first, stop, way):
            count, log = count_N[place], log_N[place] + bend + slope
            residual = _residual(count, total, log, price)
            residual_N[place] = residual
            bits += _symbol_bits(count, total, log + residual) + 1 + _PRICES[0] * abs(residual)
            if place == pivot:
                bend = residual
            else:
                slope += residual
                bend += slope
    return bits


@compiled()
def _residual(count: int, total: int, log: int, price: float) -> Any:  # pragma: no cover
    """The number to add to `log` for the fewest bits, where each unit costs `price`."""
    share = total * 2.0 ** min(log / OCTAVE - TOP // OCTAVE, 0.0)
    if abs(share - count) <= price * OCTAVE:
        return 0
    wanted = count + math.copysign(price * OCTAVE, share - count)
    return _logarithm(wanted, total) - log


@compiled()
def _symbol_bits(count: int, total: int, log: int) -> Any:  # pragma: no cover
    """Bits of `count` symbols out of `total`, and the bits that their share costs the others."""
    height = min(max(log, 0), TOP) / OCTAVE - TOP // OCTAVE
    return total * 2.0**height / math.log(2) - count * height


@compiled()
def _logarithm(count: float, total: float) -> Any:  # pragma: no cover
    return max(round(OCTAVE * math.log2(count / total)) + TOP, 0)


def _parabolas(low: int, counts: Ints) -> Iterator[tuple[int, int, int]]:
    """Peak, centre and curvature of Gaussians with the mean of the values and wide enough."""
    k = np.arange(low, low + counts.size)
    total = max(int(counts.sum()), 1)
    mean = float(counts @ k) / total
    variance = max(float(counts @ (k - mean) ** 2) / total, 0.2)
    peak = round(TOP - OCTAVE / 2 * math.log2(2 * math.pi * variance))
    for widening in (1, 3, 20):
        curve = math.log2(1024 * OCTAVE / (math.log(2) * variance * widening))
        yield peak, round(OCTAVE * mean), max(round(OCTAVE * curve), 0)
