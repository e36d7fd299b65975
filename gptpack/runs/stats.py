"""Whether runs are below a threshold by more than chance: the contests' one-sided t-test.

The test is that of one sample: runs of one configuration with different seeds, against a fixed
number. Its p is the chance of a mean as low as the one found, or lower, if the true mean were the
threshold. Power and how many runs would do take the mean and the spread found for the truth.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gptpack.errors import ConfigError
from gptpack.runs.student_t import power_of, t_below

MOST_RUNS = 10_000
"""More runs than this are not looked for."""
LARGEST_FIGURE = 1e100
"""Squares of larger ones are beyond floats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run's figure."""

    name: str
    value: float
    tokens_per_byte: float | None = None
    """Turns nats per token into bits per byte: ``bpb = nats * tokens_per_byte / ln 2``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the runs show against a threshold."""

    runs: int
    mean: float
    sd: float
    """Of a run, by n - 1."""
    lowest: float
    highest: float
    threshold: float
    t: float
    df: int
    p: float
    alpha: float
    power: float
    """How often so many new runs with this mean and spread would be significant."""
    wanted_power: float
    more_runs: int | None
    """Further runs after which that would be at least `wanted_power`; 0 if these settle it, None
    if no number up to 10,000 would."""

    @property
    def significant(self) -> bool:
        return self.p < self.alpha

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "significant": self.significant}


def judge(
    values: Sequence[float], threshold: float, *, alpha: float = 0.01, power: float = 0.8
) -> Verdict:
    """Test whether the mean of `values` is below `threshold`.

    Raises:
        ConfigError: fewer than two values, one that is not finite, all of them equal, or levels
            outside (0, 1/2] and (0, 1).
    """
    if not 0 < alpha <= 0.5:
        raise ConfigError(f"alpha={alpha} must lie in (0, 0.5]")
    if not 0 < power < 1:
        raise ConfigError(f"power={power} must lie in (0, 1)")
    if len(values) < 2:
        raise ConfigError(f"{len(values)} run; a t-test needs at least 2")
    if wrong := [value for value in (*values, threshold) if not abs(value) < LARGEST_FIGURE]:
        raise ConfigError(f"{wrong[0]} is no figure to test")
    count = len(values)
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    gap = threshold - mean
    if sd == 0 or not abs(gap / sd) < LARGEST_FIGURE:
        raise ConfigError(
            f"all {count} figures are {mean:g}: runs of different seeds differ, and copies of one "
            "run show nothing"
        )
    t = -gap / (sd / math.sqrt(count))
    p = t_below(t, count - 1)
    more: int | None = 0
    if p >= alpha:
        more = None if gap <= 0 else _more_runs(gap / sd, count, alpha, power)
    return Verdict(
        runs=count,
        mean=mean,
        sd=sd,
        lowest=min(values),
        highest=max(values),
        threshold=threshold,
        t=t,
        df=count - 1,
        p=p,
        alpha=alpha,
        power=power_of(gap / sd, count, alpha),
        wanted_power=power,
        more_runs=more,
    )


def _more_runs(effect: float, count: int, alpha: float, power: float) -> int | None:
    """Power rises with the number of runs, so halving finds the smallest that is enough."""
    if power_of(effect, MOST_RUNS, alpha) < power:
        return None
    low, high = count, MOST_RUNS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power_of(effect, middle, alpha) < power else (low, middle)
    return high - count


def margin_in_bpb(margin_nats: float, runs: Sequence[Run]) -> float:
    """A margin in nats per token, in bits per byte of the runs' text.

    Raises:
        ConfigError: a run does not say its tokens per byte, or they differ.
    """
    rates = [run.tokens_per_byte for run in runs]
    if None in rates:
        name = runs[rates.index(None)].name
        raise ConfigError(
            f"{name} does not say how many tokens a byte has, which turns nats into bits per "
            "byte; give --tokens-per-byte, or the margin in bpb"
        )
    known = [rate for rate in rates if rate is not None]
    # Logs print eight digits of loss and of bits per byte.
    if max(known) - min(known) > 1e-6 * max(known):
        raise ConfigError(
            f"the runs have {min(known):.6f} to {max(known):.6f} tokens per byte; "
            "they were not scored on one text"
        )
    return margin_nats * statistics.fmean(known) / math.log(2)
