"""Cores: what the system leaves to a process, or all of them where it does not say."""

import os

import pytest

from gptpack.cores import usable_cores
from gptpack.quant.workers import side_by_side


def test_the_cores_are_those_that_the_system_leaves_to_the_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {2, 5, 7}, raising=False)
    assert usable_cores() == 3


@pytest.mark.parametrize(("told", "cores"), [(6, 6), (None, 1)])
def test_where_the_system_does_not_say_they_are_all_there_are(told, cores, monkeypatch):
    # as on macOS
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: told)
    assert usable_cores() == cores
    assert side_by_side(abs, [-1, 2, -3], cost=float) == [1, 2, 3]
