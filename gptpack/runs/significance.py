"""Figures of runs -> whether their mean is below a threshold by more than chance.

The contests' test is Student's, one-sided: its p is the chance of a mean as low as the one found,
or lower, if the true mean were the threshold. The threshold is a number, or the mean of other runs,
which makes it Welch's test. Power, and the number of runs that would be enough, take the mean and
the standard deviation that were found for the true ones.

The distribution is a few functions here instead of a dependency of 113 MB;
tests/test_significance.py holds them against SciPy.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gptpack.errors import ConfigError

MOST_RUNS = 10_000
"""Runs beyond which `judge` stops looking for a number that is enough."""
LARGEST_FIGURE = 1e100
"""Bound of figures that can be tested: squares of larger ones overflow floats."""
FIXED_MARGIN = 0.004
"""Margin in nats of one run by which `fixed_sigma` judges: 3.1 of the standard deviations, 0.0013,
that speedruns' losses were found to have, so that p is 0.001."""
NODES = 2048
"""Intervals of Simpson's rule in `power_of`; they give seven digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TTest:
    """A one-sided t-test of runs against a threshold."""

    gain: float
    """Threshold before the margin is taken off, less the mean of the runs."""
    t: float
    """Negative where the mean is below the threshold."""
    df: float
    """Degrees of freedom."""
    p: float
    """Chance of so low a mean, or a lower one, if the true one were the threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What runs show against a threshold that is a number."""

    runs: int
    mean: float
    sd: float
    """Standard deviation of a run, by n - 1."""
    lowest: float
    highest: float
    threshold: float
    t: float
    df: int
    p: float
    alpha: float
    power: float
    """How often as many new runs with this mean and standard deviation would be significant."""
    wanted_power: float
    more_runs: int | None
    """Further runs after which the power would reach `wanted_power`: 0 if these are significant
    already, None if no number up to 10,000 is enough."""

    @property
    def significant(self) -> bool:
        return self.p < self.alpha

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "significant": self.significant}


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSigma:
    """What runs show by the rule that takes the standard deviation of a loss as known."""

    margin: float
    """``(threshold - mean) sqrt(runs)``, in nats."""
    holds: bool
    """Whether that is `FIXED_MARGIN` or more."""
    more_runs: int | None
    """Further runs with this mean after which it would hold; None if no number is enough."""


def fixed_sigma(values: Sequence[float], threshold: float) -> FixedSigma:
    """Judge losses in nats per token by modded-nanogpt's rule for its track of optimizers.

    A z-test does not reward runs that happen to be alike, and one run can be judged.
    """
    gap = threshold - statistics.fmean(values)
    margin = gap * math.sqrt(len(values))
    holds = margin >= FIXED_MARGIN
    more = None
    if gap > FIXED_MARGIN / math.sqrt(MOST_RUNS):
        more = max(0, math.ceil((FIXED_MARGIN / gap) ** 2) - len(values))
    return FixedSigma(margin=margin, holds=holds, more_runs=more)


def t_test(values: Sequence[float], against: Sequence[float], *, margin: float = 0.0) -> TTest:
    """Test whether the mean of `values` is below that of `against` by more than `margin`.

    Args:
        values: figures of at least two runs.
        against: one figure that is taken as exact, or those of at least two runs (Welch's test).

    Raises:
        ConfigError: fewer than two values, one that is not finite, or nothing varies.
    """
    if len(values) < 2:
        raise ConfigError(f"{len(values)} run; a t-test needs at least 2")
    if wrong := [value for value in (*values, *against) if not abs(value) < LARGEST_FIGURE]:
        raise ConfigError(f"{wrong[0]} is no figure to test")
    mean = statistics.fmean(values)
    gain = statistics.fmean(against) - mean
    own = statistics.variance(values) / len(values)
    theirs = statistics.variance(against) / len(against) if len(against) > 1 else 0.0
    error = math.sqrt(own + theirs)
    if error == 0 or not abs((gain - margin) / error) < LARGEST_FIGURE:
        raise ConfigError(
            f"all {len(values)} figures are {mean:g}: runs of different seeds differ, and copies "
            "of one run show nothing"
        )
    t = (margin - gain) / error
    df = float(len(values) - 1)
    if theirs:  # Welch and Satterthwaite
        spread = own**2 / (len(values) - 1) + theirs**2 / (len(against) - 1)
        df = (own + theirs) ** 2 / spread
    return TTest(gain=gain, t=t, df=df, p=t_below(t, df))


def judge(
    values: Sequence[float], threshold: float, *, alpha: float = 0.01, power: float = 0.8
) -> Verdict:
    """Test whether the mean of `values` is below `threshold`, and say what more runs would do.

    Raises:
        ConfigError: as `t_test`, or `alpha` is outside (0, 1/2], or `power` outside (0, 1).
    """
    if not 0 < alpha <= 0.5:
        raise ConfigError(f"alpha={alpha} must lie in (0, 0.5]")
    if not 0 < power < 1:
        raise ConfigError(f"power={power} must lie in (0, 1)")
    found = t_test(values, [threshold])
    count, mean, sd = len(values), statistics.fmean(values), statistics.stdev(values)
    effect = (threshold - mean) / sd
    more: int | None = 0
    if found.p >= alpha:
        more = None if effect <= 0 else _more_runs(effect, count, alpha, power)
    return Verdict(
        runs=count,
        mean=mean,
        sd=sd,
        lowest=min(values),
        highest=max(values),
        threshold=threshold,
        t=found.t,
        df=count - 1,
        p=found.p,
        alpha=alpha,
        power=power_of(effect, count, alpha),
        wanted_power=power,
        more_runs=more,
    )


def _more_runs(effect: float, count: int, alpha: float, power: float) -> int | None:
    """Smallest number of further runs that reaches `power`, which rises with their number."""
    if power_of(effect, MOST_RUNS, alpha) < power:
        return None
    low, high = count, MOST_RUNS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power_of(effect, middle, alpha) < power else (low, middle)
    return high - count


def power_of(effect: float, runs: int, alpha: float) -> float:
    """Chance that `runs` runs show their mean to be below a threshold.

    The test is one-sided with level `alpha`; `effect` is (threshold - mean) / sd of a run. With V
    chi-squared, T = (Z - effect sqrt(runs)) / sqrt(V / df), so the power is the mean of
    ``Phi(t_alpha s + effect sqrt(runs))`` over ``s = sqrt(V / df)``.
    """
    if runs < 2:
        return 0.0
    df = runs - 1
    critical = t_quantile(alpha, df)
    shift = effect * math.sqrt(runs)
    spread = 9 / math.sqrt(2 * df)
    low, high = max(0.0, 1 - spread), 1 + spread
    width = (high - low) / NODES
    log_scale = math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2)

    def density(s: float) -> float:
        if s <= 0:
            return math.exp(log_scale) if df == 1 else 0.0
        return math.exp(log_scale + (df - 1) * math.log(s) - df * s * s / 2)

    total = 0.0
    for node in range(NODES + 1):
        s = low + node * width
        weight = 1 if node in (0, NODES) else 4 if node % 2 else 2
        total += weight * density(s) * 0.5 * math.erfc(-(critical * s + shift) / math.sqrt(2))
    return min(1.0, total * width / 3)


def t_below(t: float, df: float) -> float:
    """P(T <= t) for `df` degrees of freedom, to a relative error of 1e-11 in the lower tail."""
    if math.isinf(t):
        return 1.0 if t > 0 else 0.0
    square = t * t
    tail = 0.5 * _incomplete_beta(df / (df + square), square / (df + square), df / 2, 0.5)
    return tail if t <= 0 else 1 - tail


def t_quantile(probability: float, df: float) -> float:
    """The t below which T falls with `probability` (at most 1/2), by bisection."""
    assert 0 < probability <= 0.5, probability
    low, high = -1.0, 0.0
    while t_below(low, df) > probability:
        low *= 2
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if t_below(middle, df) > probability:
            high = middle
        else:
            low = middle


def _incomplete_beta(x: float, y: float, a: float, b: float) -> float:
    """Regularised I_x(a, b) with y = 1 - x, by its continued fraction (modified Lentz).

    Abramowitz and Stegun 26.5.8. Both x and y are given, so that neither loses digits near 1.
    """
    if x <= 0 or y <= 0:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(y, x, b, a)
    log_front = a * math.log(x) + b * math.log(y)
    log_front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) - math.log(a)
    tiny = 1e-300
    fraction = c = 1.0
    d = 0.0
    for index in range(1000):
        m = index // 2
        if index == 0:
            numerator = 1.0
        elif index % 2:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / ((1 + numerator * d) or tiny)
        c = (1 + numerator / c) or tiny
        fraction *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return math.exp(log_front) * (fraction - 1)
