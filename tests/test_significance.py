"""Student's t by our own hand is that of scipy."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from gptpack.submission.significance import compare, incomplete_beta, t_tail


@given(t=st.floats(-60, 60), degrees=st.floats(1, 500))
def test_the_tail_is_scipys(t, degrees):
    assert t_tail(t, degrees) == pytest.approx(stats.t.sf(t, degrees), rel=1e-9, abs=1e-300)


@given(a=st.floats(0.1, 200), b=st.floats(0.1, 200), x=st.floats(0, 1))
def test_the_incomplete_beta_function_is_scipys(a, b, x):
    assert incomplete_beta(a, b, x) == pytest.approx(special.betainc(a, b, x), rel=1e-8, abs=1e-12)


def test_a_record_of_one_loss_gives_students_test():
    runs = [1.881, 1.8822, 1.8815]
    found = compare(runs, [1.889], margin=0.005)
    theirs = stats.ttest_1samp(runs, 1.889 - 0.005, alternative="less")
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.degrees == pytest.approx(2)
    assert found.gain == pytest.approx(1.889 - sum(runs) / 3)


def test_a_record_of_several_losses_gives_welchs_test():
    runs, record = [1.881, 1.8822, 1.8815], [1.889, 1.8895, 1.8881, 1.8902]
    found = compare(runs, record, margin=0.0)
    theirs = stats.ttest_ind(runs, record, equal_var=False, alternative="less")
    assert found.p == pytest.approx(theirs.pvalue)


def test_runs_that_are_one_run_show_nothing():
    assert compare([1.5, 1.5], [1.6], margin=0.005) is None
    assert math.isclose(t_tail(0.0, 3), 0.5)
