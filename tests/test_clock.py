"""Phases exclude one another and add up; the limit counts from the start of the process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptpack.evaluation.clock import Clock, process_age


class FakeTime:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_phase_within_another_is_not_counted_twice() -> None:
    time = FakeTime()
    clock = Clock(now=time)
    with clock.phase("score"):
        time.now += 2
        with clock.phase("compile"):
            time.now += 5
        time.now += 1
    time.now += 4
    with clock.phase("score"):
        time.now += 0.5
    assert clock.ledger() == {"score": 3.5, "compile": 5.0, "other": 4.0, "total": 12.5}


def test_what_passed_before_is_the_start_and_counts_towards_the_limit() -> None:
    time = FakeTime()
    clock = Clock(10, age=4, now=time)
    clock.add("decode", 1.5)
    time.now += 5.9
    assert not clock.expired
    time.now += 0.2
    assert clock.expired
    ledger = clock.ledger()
    assert ledger["start"] == 4
    assert ledger["total"] == pytest.approx(10.1)
    assert ledger["other"] == pytest.approx(10.1 - 4 - 1.5)


def test_without_a_limit_time_is_never_up() -> None:
    time = FakeTime()
    clock = Clock(now=time)
    time.now += 1e9
    assert not clock.expired


def test_a_phase_that_fails_is_booked_and_closed() -> None:
    time = FakeTime()
    clock = Clock(now=time)

    def fail() -> None:
        time.now += 3
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), clock.phase("score"):
        fail()
    time.now += 1
    assert clock.ledger() == {"score": 3.0, "other": 1.0, "total": 4.0}


@given(st.recursive(st.integers(0, 9), lambda inner: st.lists(inner, max_size=4), max_leaves=12))
def test_any_nesting_adds_up_to_the_total(tree: object) -> None:
    time = FakeTime()
    clock = Clock(now=time)

    def walk(node: object, depth: int) -> None:
        if isinstance(node, int):
            time.now += node
            return
        with clock.phase(f"phase {depth % 2}"):
            for child in node:  # type: ignore[attr-defined]
                walk(child, depth + 1)

    walk(tree, 0)
    ledger = clock.ledger()
    assert sum(ledger.values()) == pytest.approx(2 * ledger["total"])


def test_the_age_of_this_process_is_known_or_zero() -> None:
    age = process_age()
    assert 0 <= age < 3600 * 24
    assert process_age() >= age
