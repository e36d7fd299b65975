"""Whether runs beat a record by enough: Student's t, one-sided. Standard library only."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gptpack.runs.student_t import t_below


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
    return Comparison(gain=gain, margin=margin, t=t, degrees=degrees, p=t_below(-t, degrees))
