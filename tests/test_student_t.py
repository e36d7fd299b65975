"""The t distribution against SciPy's."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gptpack.runs.student_t import power_of, t_below, t_quantile


@given(st.floats(-200, 200), st.integers(1, 5000))
def test_the_distribution_is_scipys(t: float, df: int) -> None:
    assert t_below(t, df) == pytest.approx(stats.t.cdf(t, df), rel=1e-10, abs=1e-300)


def test_the_ends_of_the_distribution() -> None:
    assert t_below(-math.inf, 3) == 0
    assert t_below(math.inf, 3) == 1
    assert t_below(0, 3) == 0.5


@given(st.floats(1e-9, 0.499), st.integers(1, 2000))
def test_a_quantile_is_scipys(probability: float, df: int) -> None:
    wanted = stats.t.ppf(probability, df)
    assert t_quantile(probability, df) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.floats(-0.3, 6), st.integers(2, 100), st.sampled_from([0.05, 0.01, 0.25]))
def test_power_is_that_of_the_noncentral_distribution(
    effect: float, runs: int, alpha: float
) -> None:
    df = runs - 1
    wanted = stats.nct.cdf(stats.t.ppf(alpha, df), df, -effect * math.sqrt(runs))
    assert power_of(effect, runs, alpha) == pytest.approx(wanted, abs=1e-6)


def test_no_effect_is_found_as_often_as_the_level_says() -> None:
    for runs in (3, 10, 100):
        assert power_of(0, runs, 0.05) == pytest.approx(0.05, abs=1e-9)
    assert power_of(5, 1, 0.05) == 0
