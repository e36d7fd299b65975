"""Whether runs beat a record by enough: Student's t, one-sided. Standard library only."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

TINY = 1e-300
MOST_STEPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs against a record, losses in nats per token; smaller is better."""

    gain: float
    """Mean of the record's losses less the mean of the runs'."""
    margin: float
    """The gain that is asked for."""
    t: float
    degrees: float
    p: float
    """Chance of so large a gain, or a larger one, if the true one were the margin."""


def compare(runs: Sequence[float], record: Sequence[float], *, margin: float) -> Comparison | None:
    """Student's test of one loss as record, Welch's of several; None where nothing varies.

    Args:
        runs: at least two losses.
        record: one loss that is taken as exact, or those of at least two runs.
        margin: what the gain must exceed.
    """
    gain = statistics.fmean(record) - statistics.fmean(runs)
    own = statistics.variance(runs) / len(runs)
    theirs = statistics.variance(record) / len(record) if len(record) > 1 else 0.0
    if own + theirs == 0:
        return None
    t = (gain - margin) / math.sqrt(own + theirs)
    # Welch and Satterthwaite; with an exact record it is len(runs) - 1.
    spread = own**2 / (len(runs) - 1)
    if theirs:
        spread += theirs**2 / (len(record) - 1)
    degrees = (own + theirs) ** 2 / spread
    return Comparison(gain=gain, margin=margin, t=t, degrees=degrees, p=t_tail(t, degrees))


def t_tail(t: float, degrees: float) -> float:
    """``P(T > t)`` of Student's distribution with `degrees` degrees of freedom."""
    if abs(t) < 1:  # of two ways to say it, the one in which nothing cancels
        half = (1 - incomplete_beta(0.5, degrees / 2, t * t / (degrees + t * t))) / 2
    else:
        half = incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t)) / 2
    return half if t >= 0 else 1 - half


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function ``I_x(a, b)``, by its continued fraction.

    Abramowitz and Stegun 26.5.8, evaluated by Lentz's method.
    """
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = a * math.log(x) + b * math.log1p(-x)
    front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), TINY)
    result = d
    for m in range(1, MOST_STEPS):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + numerator * d)
            c = _away_from_zero(1 + numerator / c)
            result *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(front) * result / a


def _away_from_zero(value: float) -> float:
    return value if abs(value) > TINY else TINY
