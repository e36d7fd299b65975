"""Schedules at their ends, in between, and along whole runs of any pace."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptpack.families.golf.config import ModelConfig
from gptpack.training.recipe import OptimizerConfig, Recipe, TrainingConfig
from gptpack.training.schedules import (
    in_phase,
    momentum,
    phases,
    scheduled,
    share_done,
    steps_left,
    switch_at,
    taper,
    warmdown,
)

shares = st.floats(0, 1)
paces = st.lists(st.floats(0.01, 5), min_size=1, max_size=40)


def run(pace: list[float], training: TrainingConfig, optimizer: OptimizerConfig | None = None):
    """What every step of a run is made with whose steps take the seconds of `pace`, in turn."""
    elapsed, step, values = 0.0, 0, []
    seconds = itertools.cycle(pace)
    while step < training.steps and not (training.seconds and elapsed >= training.clock_seconds):
        values.append(scheduled(step, elapsed, training, optimizer or OptimizerConfig()))
        elapsed, step = elapsed + next(seconds), step + 1
    return values


def test_without_a_clock_the_rate_is_flat_then_falls_linearly_to_zero():
    training = TrainingConfig(seconds=0.0, steps=10, warmdown_steps=4)
    rates = [scheduled(s, 0.0, training, OptimizerConfig()).lr_multiplier for s in range(11)]
    assert rates == [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("pace", [0.1, 0.5, 2.0])
def test_steps_of_warmdown_are_time_at_the_pace_of_the_run(pace):
    training = TrainingConfig(seconds=100.0, warmdown_steps=10)
    for step in range(1, int(100 / pace) + 1):
        rate = scheduled(step, step * pace, training, OptimizerConfig()).lr_multiplier
        assert rate == pytest.approx(max(0.0, min(1.0, (100 - step * pace) / pace / 10)), abs=1e-9)


def test_a_share_of_warmdown_goes_by_whichever_limit_is_nearer():
    training = TrainingConfig(seconds=100.0, steps=200, warmdown_steps=0, warmdown_fraction=0.5)
    at = {
        (step, seconds): scheduled(step, seconds, training, OptimizerConfig()).lr_multiplier
        for step, seconds in ((0, 0.0), (10, 50.0), (10, 75.0), (150, 10.0), (199, 10.0), (9, 100))
    }
    assert list(at.values()) == pytest.approx([1, 1, 0.5, 0.5, 0.01, 0])


@pytest.mark.parametrize("share", [{"warmdown_steps": 0, "warmdown_fraction": 0.7}, {}])
def test_the_rate_does_not_fall_below_its_floor(share):
    training = TrainingConfig(seconds=60.0, lr_floor=0.1, **share)
    rates = [value.lr_multiplier for value in run([0.05], training)]
    assert min(rates) == rates[-1] == 0.1


def test_no_warmdown_leaves_the_rate_at_its_peak():
    training = TrainingConfig(seconds=3.0, warmdown_steps=0)
    assert {value.lr_multiplier for value in run([0.1], training)} == {1.0}


@given(pace=paces, fraction=st.floats(0.01, 1), floor=shares, steps=st.integers(1, 80))
def test_along_any_run_shares_only_go_one_way(pace, fraction, floor, steps):
    training = TrainingConfig(
        seconds=50.0,
        reserve_seconds=10.0,
        steps=steps,
        warmdown_steps=0,
        warmdown_fraction=fraction,
        lr_floor=floor,
        recurrence_start=0.35,
        context_halvings=3,
        full_context_start=fraction,
    )
    optimizer = OptimizerConfig(weight_decay_taper_start=0.7)
    values = run(pace, training, optimizer)
    for a, b in itertools.pairwise(values):
        assert a.progress <= b.progress <= 1
        assert a.lr_multiplier >= b.lr_multiplier >= floor
        assert a.weight_decay_multiplier >= b.weight_decay_multiplier >= 0.5
        assert a.recurrence <= b.recurrence
        assert 3 >= a.context_halvings >= b.context_halvings
    assert all((value.context_halvings == 0) == (value.progress >= fraction) for value in values)
    assert values[0].lr_multiplier == 1
    assert values[0].weight_decay_multiplier == 1


@given(pace=paces, window=st.integers(1, 60))
def test_at_a_steady_pace_steps_of_warmdown_only_go_down(pace, window):
    training = TrainingConfig(seconds=50.0, steps=80, warmdown_steps=window)
    rates = [value.lr_multiplier for value in run(pace[:1], training)]
    for a, b in itertools.pairwise(rates):
        assert b <= a * (1 + 1e-12)


def test_progress_is_the_larger_share():
    assert share_done(0, steps=10, elapsed=0.0, seconds=20.0) == 0
    assert share_done(5, steps=10, elapsed=4.0, seconds=20.0) == 0.5
    assert share_done(1, steps=10, elapsed=15.0, seconds=20.0) == 0.75
    assert share_done(1, steps=10, elapsed=15.0, seconds=0.0) == 0.1
    assert share_done(11, steps=10, elapsed=30.0, seconds=20.0) == 1


def test_steps_are_left_until_the_nearer_limit():
    assert steps_left(0, steps=10, elapsed=0.0, seconds=20.0) == 10
    assert steps_left(4, steps=10, elapsed=4.0, seconds=20.0) == 6
    assert steps_left(4, steps=10, elapsed=16.0, seconds=20.0) == 1
    assert steps_left(4, steps=10, elapsed=21.0, seconds=20.0) == 0
    assert steps_left(12, steps=10, elapsed=0.0, seconds=0.0) == 0


def test_a_warmdown_is_linear_in_what_is_left():
    assert [warmdown(left, 4) for left in (9, 4, 3, 1, 0)] == [1, 1, 0.75, 0.25, 0]
    assert [warmdown(left, 4, floor=0.5) for left in (4, 3, 1, 0)] == [1, 0.75, 0.5, 0.5]
    assert warmdown(0, 0) == 1


def test_momentum_warms_up_stays_and_cools_down():
    def values(**settings):
        return [momentum(s, 8 - s, start=0.8, final=0.9, **settings) for s in range(9)]

    assert values(warmup=2) == pytest.approx([0.8, 0.85, *[0.9] * 7])
    assert values(warmup=2, cooldown=4) == pytest.approx(
        [0.8, 0.85, 0.9, 0.9, 0.9, 0.875, 0.85, 0.825, 0.8]
    )
    assert values(warmup=0) == [0.9] * 9
    # a run shorter than both never gets to the final value, and does not jump
    assert values(warmup=8, cooldown=8) == pytest.approx(
        [0.8, 0.8125, 0.825, 0.8375, 0.85, 0.8375, 0.825, 0.8125, 0.8]
    )


def test_momentum_cools_down_by_the_clock_as_well():
    training = TrainingConfig(seconds=10.0, warmdown_steps=0)
    optimizer = OptimizerConfig(muon_momentum_warmup_steps=10, muon_momentum_cooldown_steps=20)
    values = [value.momentum for value in run([0.125], training, optimizer)]
    assert values[:10] == sorted(values[:10])
    assert set(values[10:60]) == {0.95}
    assert values[60:] == sorted(values[60:], reverse=True)
    assert values[-1] == pytest.approx(0.855)


def test_weight_decay_is_whole_until_its_taper_and_half_at_the_end():
    values = [taper(done, start=0.7, final=0.5) for done in (0, 0.69, 0.7, 0.85, 1)]
    assert values == pytest.approx([1, 1, 1, 0.75, 0.5])
    assert [taper(done, start=1.0, final=0.5) for done in (0, 0.5, 1)] == [1, 1, 1]
    assert taper(0.5, start=0.0, final=0.0) == 0.5


@given(done=shares, start=shares)
def test_a_switch_is_on_from_its_start_and_never_from_the_end(done, start):
    assert switch_at(done, start) == (done >= start and start < 1)
    assert switch_at(done, 0.0)
    assert not switch_at(done, 1.0)


def test_by_default_recurrence_is_on():
    values = run([1.0], TrainingConfig(seconds=20.0))
    assert all(value.recurrence for value in values)


def test_phases_are_what_the_schedules_say_all_along():
    training = TrainingConfig(recurrence_start=0.4, context_halvings=2, full_context_start=0.75)
    looped = ModelConfig(layers=3, loop_start=1, loop_layers=1, loops=1)
    found = phases(Recipe(model=looped, training=training))
    kinds = [(phase.recurrence, phase.context_halvings) for phase in found]
    assert kinds == [(False, 2), (False, 1), (True, 1), (True, 0)]
    ends = list(itertools.accumulate(phase.share for phase in found))
    assert ends == pytest.approx([0.375, 0.4, 0.75, 1])
    for share in np.linspace(0, 1, 401)[:-1]:
        now = scheduled(int(share * 20000), 0.0, replace(training, seconds=0.0), OptimizerConfig())
        phase = found[sum(share >= end - 1e-9 for end in ends)]
        assert (now.recurrence, now.context_halvings, now.ahead_weight > 0) == phase[1:]
        assert in_phase(now, phase) == now


def test_a_run_without_schedules_of_its_operations_is_one_phase():
    (phase,) = phases(Recipe(training=TrainingConfig(recurrence_start=0.4)))
    assert (phase.share, phase.context_halvings) == (1, 0)
