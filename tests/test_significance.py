"""Verdicts on runs are those that the contests published; the distribution is SciPy's."""

import math
import statistics

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from gptpack.errors import ConfigError
from gptpack.runs.significance import fixed_sigma, judge, power_of, t_below, t_quantile, t_test

# modded-nanogpt, 2025-07-12 and 2025-09-29; parameter-golf, 2026-03-19.
TWENTY = """3.2784,3.2791,3.2819,3.2801,3.2788,3.2794,3.2782,3.277,3.2784,3.2773,
    3.2803,3.2792,3.2792,3.2804,3.2817,3.2805,3.2783,3.2789,3.2779,3.2778"""
TIMES = """173.368,173.424,173.291,173.441,173.397,173.348,173.402,173.463,173.209,173.338,
    173.291,173.377,173.322,173.287,173.265,173.375,173.331,173.413,173.384,173.462"""
SEVEN = [3.2789, 3.2792, 3.2796, 3.2776, 3.2797, 3.2787, 3.2792]
SEVEN_TIMES = [148.617, 148.580, 148.569, 148.653, 148.578, 148.542, 148.587]
SEEDS = [1.20143417, 1.19945102, 1.20319508]


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def test_twenty_losses_have_the_published_p() -> None:
    verdict = judge(numbers(TWENTY), 3.28)
    assert f"{verdict.p:.4f}" == "0.0049"
    assert (f"{verdict.sd:.4f}", f"{verdict.mean:.4f}") == ("0.0013", "3.2791")
    assert verdict.significant
    assert verdict.more_runs == 0


def test_seven_losses_and_times_have_the_published_figures() -> None:
    verdict = judge(SEVEN, 3.28)
    assert f"{verdict.p:.4f}" == "0.0045"
    assert (round(verdict.sd, 7), round(verdict.mean, 7)) == (0.0007058, 3.2789857)
    times = judge(SEVEN_TIMES, 149.6434)
    assert times.sd == pytest.approx(0.0358076, abs=2e-6)
    # The published figures were worked out in float32.
    assert times.mean == pytest.approx(148.5894318, abs=1e-5)
    assert times.p < 1e-9
    earlier = judge(numbers(TIMES), 180.0)
    assert (f"{earlier.sd:.4f}", f"{earlier.mean:.4f}") == ("0.0682", "173.3594")


def test_three_seeds_have_the_published_p() -> None:
    verdict = judge(SEEDS, 1.21113611)
    assert verdict.df == 2
    assert f"{verdict.p:.3f}" == "0.006"
    assert f"{verdict.mean:.8f}" == "1.20136009"
    # The published t of 9.06 comes from the standard deviation rounded to 0.00187.
    assert verdict.t == pytest.approx(-9.04, abs=0.005)
    assert (1.21113611 - verdict.mean) / (0.00187 / math.sqrt(3)) == pytest.approx(9.06, abs=0.006)


def test_the_rule_of_a_known_deviation_holds_after_as_many_runs_as_it_says() -> None:
    found = fixed_sigma([3.2784], 3.28)
    assert (found.holds, found.more_runs) == (False, 6)
    for more in range(9):
        assert fixed_sigma([3.2784] * (1 + more), 3.28).holds == (more >= 6)
    held = fixed_sigma([3.27], 3.28)
    assert (held.holds, held.more_runs, held.margin) == (True, 0, pytest.approx(0.01))
    assert fixed_sigma([3.28, 3.2801], 3.28).more_runs is None
    assert fixed_sigma([3.28 - 1e-7], 3.28).more_runs is None


@settings(max_examples=50)
@given(st.lists(st.floats(1, 4), min_size=2, max_size=30), st.floats(1, 4))
def test_the_test_is_scipys(values: list[float], threshold: float) -> None:
    assume(statistics.stdev(values) > 1e-6)
    verdict = judge(values, threshold)
    found = stats.ttest_1samp(values, threshold, alternative="less")
    assert verdict.p == pytest.approx(found.pvalue, rel=1e-6, abs=1e-12)
    assert verdict.t == pytest.approx(found.statistic, rel=1e-6, abs=1e-9)


def test_the_number_of_further_runs_is_the_smallest_that_is_enough() -> None:
    verdict = judge([3.2789, 3.2802, 3.2800, 3.2790], 3.28)
    effect = (3.28 - verdict.mean) / verdict.sd
    assert not verdict.significant
    assert verdict.more_runs is not None
    assert verdict.more_runs > 0
    enough = verdict.runs + verdict.more_runs
    assert power_of(effect, enough, 0.01) >= 0.8 > power_of(effect, enough - 1, 0.01)
    assert verdict.power == power_of(effect, 4, 0.01)


def test_runs_above_the_threshold_need_no_more() -> None:
    verdict = judge([3.29, 3.30, 3.28], 3.28)
    assert verdict.more_runs is None
    assert verdict.p > 0.5
    assert judge([3.2799, 3.2801, 3.27999999], 3.28).more_runs is None


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0], {}, "1 run; a t-test needs at least 2"),
        ([1.0, 1.0, 1.0], {}, "all 3 figures are 1: runs of different seeds differ"),
        ([1.0, math.nan], {}, "nan is no figure"),
        ([1e308, 1.5e308], {}, r"1e\+308 is no figure"),
        ([1e-310, 2e-310], {}, "all 2 figures are 1.5e-310"),
        ([1.0, 2.0], {"alpha": 0.0}, r"alpha=0.0 must lie in \(0, 0.5\]"),
        ([1.0, 2.0], {"power": 1.0}, r"power=1.0 must lie in \(0, 1\)"),
    ],
)
def test_what_cannot_be_tested_is_an_error(
    values: list[float], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        judge(values, 1.5, **options)


def test_a_record_of_one_loss_gives_students_test() -> None:
    runs = [1.881, 1.8822, 1.8815]
    found = t_test(runs, [1.889], margin=0.005)
    theirs = stats.ttest_1samp(runs, 1.889 - 0.005, alternative="less")
    assert (found.t, found.p) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert found.df == 2
    assert found.gain == pytest.approx(1.889 - sum(runs) / 3)


def test_a_record_of_several_losses_gives_welchs_test() -> None:
    runs, record = [1.881, 1.8822, 1.8815], [1.889, 1.8895, 1.8881, 1.8902]
    found = t_test(runs, record)
    theirs = stats.ttest_ind(runs, record, equal_var=False, alternative="less")
    assert (found.t, found.p, found.df) == pytest.approx(
        (theirs.statistic, theirs.pvalue, theirs.df)
    )


@given(st.floats(-200, 200), st.integers(1, 5000))
def test_the_distribution_is_scipys(t: float, df: int) -> None:
    # just above 0 SciPy gives 0.5 itself
    assert t_below(t, df) == pytest.approx(stats.t.cdf(t, df), rel=2e-10, abs=1e-300)


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
