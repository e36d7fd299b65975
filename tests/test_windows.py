"""Every target is scored exactly once, with the context that was promised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_scoring import slow_context

from gptpack.errors import ConfigError
from gptpack.evaluation.windows import Plan, batches, plan_windows, split


@st.composite
def settings(draw: st.DrawFn) -> tuple[int, int, int]:
    context = draw(st.integers(1, 24))
    return draw(st.integers(2, 150)), context, draw(st.integers(1, context))


def scored_targets(plan: Plan) -> list[int]:
    return [target for window in plan for target in range(window.first_scored, window.stop)]


@given(settings())
def test_with_the_tail_every_target_is_scored_exactly_once_and_in_order(
    setting: tuple[int, int, int],
) -> None:
    tokens, context, stride = setting
    plan = plan_windows(tokens, context=context, stride=stride, tail="score")
    assert scored_targets(plan) == list(range(tokens - 1))


@given(settings())
def test_dropping_the_tail_scores_whole_contexts_whatever_the_stride(
    setting: tuple[int, int, int],
) -> None:
    tokens, context, stride = setting
    if tokens - 1 < context:
        with pytest.raises(ConfigError, match="do not fill one context"):
            plan_windows(tokens, context=context, stride=stride, tail="drop")
        return
    plan = plan_windows(tokens, context=context, stride=stride, tail="drop")
    reference_tokens = ((tokens - 1) // context) * context + 1
    assert scored_targets(plan) == list(range(reference_tokens - 1))


@given(settings())
def test_each_target_sees_what_a_window_slid_along_by_hand_shows_it(
    setting: tuple[int, int, int],
) -> None:
    tokens, context, stride = setting
    for window in plan_windows(tokens, context=context, stride=stride, tail="score"):
        assert 1 <= window.scored <= window.length <= context
        assert window.start >= 0
        assert window.stop <= tokens - 1
        for target in range(window.first_scored, window.stop):
            seen = target - window.start + 1
            assert seen == slow_context(target, context, stride)
            assert seen >= min(target + 1, context - stride + 1)


@given(settings(), st.integers(0, 40))
def test_text_that_follows_does_not_change_what_a_target_sees(
    setting: tuple[int, int, int], more: int
) -> None:
    tokens, context, stride = setting

    def starts(count: int) -> list[int]:
        plan = plan_windows(count, context=context, stride=stride, tail="score")
        return [window.start for window in plan for _ in range(window.scored)]

    assert starts(tokens + more)[: tokens - 1] == starts(tokens)


@given(settings(), st.sampled_from(["score", "drop", None]))
def test_a_stride_equal_to_the_context_is_plain_evaluation(
    setting: tuple[int, int, int], tail: str | None
) -> None:
    tokens, context, _ = setting
    tokens += context
    plain = plan_windows(tokens, context=context, tail=tail)
    assert plain == plan_windows(tokens, context=context, stride=context, tail=tail)
    assert all(window.scored == window.length for window in plain)


def test_plain_drops_the_tail_by_default_and_sliding_scores_it() -> None:
    assert plan_windows(108, context=10).targets == 100
    assert plan_windows(108, context=10, stride=10).targets == 100
    assert plan_windows(108, context=10, stride=4).targets == 107


def test_whole_windows_are_those_of_the_reference() -> None:
    # openai/parameter-golf: starts 0, s, 2s, ... while start + context - s < total.
    total, context, stride = 4096, 1024, 64
    plan = plan_windows(total + 1, context=context, stride=stride, tail="drop")
    starts = [s for s in range(0, total, stride) if s + context - stride < total]
    assert [window.start for window in plan] == starts
    assert [window.scored for window in plan] == [1024] + [64] * (len(starts) - 1)


def test_a_limit_plans_for_the_first_targets_only() -> None:
    assert plan_windows(1000, context=8, stride=4, limit_tokens=50).targets == 50
    assert plan_windows(1000, context=8, limit_tokens=50).targets == 48
    assert plan_windows(20, context=8, stride=4, limit_tokens=50).targets == 19


@given(settings(), st.integers(1, 9), st.integers(1, 5))
def test_any_split_over_ranks_and_batches_takes_each_window_once(
    setting: tuple[int, int, int], rows: int, ranks: int
) -> None:
    tokens, context, stride = setting
    plan = plan_windows(tokens, context=context, stride=stride, tail="score")
    seen = []
    for rank in range(ranks):
        for batch in batches(plan, split(len(plan), rank, ranks), rows):
            windows = [plan.window(index) for index in batch]
            assert 1 <= len(windows) <= rows
            assert len({(window.length, window.scored) for window in windows}) == 1
            seen.extend(batch)
    assert seen == list(range(len(plan)))


@pytest.mark.parametrize(
    ("tokens", "context", "stride", "limit", "message"),
    [
        (100, 8, 0, 0, "stride=0 must be 1 to context=8"),
        (100, 8, 9, 0, "stride=9 must be 1 to context=8"),
        (100, 0, 1, 0, "context=0 must be at least 1"),
        (100, 8, 8, -1, "limit_tokens=-1 must not be negative"),
        (1, 8, 8, 0, "no target to score"),
        (0, 8, 4, 0, "no target to score"),
    ],
)
def test_a_plan_that_makes_no_sense_is_an_error_that_says_why(
    tokens: int, context: int, stride: int, limit: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_windows(tokens, context=context, stride=stride, limit_tokens=limit)
