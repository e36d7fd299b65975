"""Student's t distribution, as far as a one-sided test and its power need it.

A few functions instead of a dependency of 113 MB; tests/test_student_t.py holds them against SciPy.
"""

import math

NODES = 2048
"""Intervals of Simpson's rule: power to seven digits."""


def t_below(t: float, df: float) -> float:
    """P(T <= t) for `df` degrees of freedom, to a relative error of 1e-11 in the lower tail."""
    if math.isinf(t):
        return 1.0 if t > 0 else 0.0
    square = t * t
    tail = 0.5 * _incomplete_beta(df / (df + square), square / (df + square), df / 2, 0.5)
    return tail if t <= 0 else 1 - tail


def t_quantile(probability: float, df: float) -> float:
    """The t below which T falls with `probability` (at most 1/2); by bisection."""
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


def power_of(effect: float, runs: int, alpha: float) -> float:
    """How often `runs` runs would show that their mean is below a threshold.

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
    step = (high - low) / NODES
    log_scale = math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2)

    def density(s: float) -> float:
        if s <= 0:
            return math.exp(log_scale) if df == 1 else 0.0
        return math.exp(log_scale + (df - 1) * math.log(s) - df * s * s / 2)

    total = 0.0
    for node in range(NODES + 1):
        s = low + node * step
        weight = 1 if node in (0, NODES) else 4 if node % 2 else 2
        total += weight * density(s) * _normal_below(critical * s + shift)
    return min(1.0, total * step / 3)


def _normal_below(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


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
