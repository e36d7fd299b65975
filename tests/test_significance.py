"""Tests against a record are those of scipy."""

import pytest
from scipy import stats

from gptpack.contest.significance import compare


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
