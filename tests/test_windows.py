"""Every target is scored exactly once, with the context that was promised."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_scoring import slow_context

from gptpack.errors import ConfigError
from gptpack.evaluation.windows import Plan, batches, plan_windows
from gptpack.ranks import Ranks


@st.composite
def settings(draw: st.DrawFn) -> tuple[int, int, int]:
    context = draw(st.integers(1, 24))
    return draw(st.integers(2, 150)), context, draw(st.integers(1, context))


@dataclass(frozen=True)
class Window:
    start: int
    stop: int
    first_scored: int

    @property
    def scored(self) -> int:
        return self.stop - self.first_scored


def windows_in(plan: Plan, chosen: range | None = None) -> list[Window]:
    found = plan.select(np.array(range(len(plan)) if chosen is None else chosen))
    arrays = (found.start.tolist(), found.stop.tolist(), found.first_scored.tolist())
    return [Window(*numbers) for numbers in zip(*arrays, strict=True)]


def scored_targets(plan: Plan) -> list[int]:
    return [
        target for window in windows_in(plan) for target in range(window.first_scored, window.stop)
    ]


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
    plan = plan_windows(tokens, context=context, stride=stride, tail="score")
    for window in windows_in(plan):
        assert 1 <= window.scored <= window.stop - window.start <= context
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
        return [window.start for window in windows_in(plan) for _ in range(window.scored)]

    assert starts(tokens + more)[: tokens - 1] == starts(tokens)


@given(settings(), st.sampled_from(["score", "drop", None]))
def test_a_stride_equal_to_the_context_is_plain_evaluation(
    setting: tuple[int, int, int], tail: str | None
) -> None:
    tokens, context, _ = setting
    tokens += context
    plain = plan_windows(tokens, context=context, tail=tail)
    assert plain == plan_windows(tokens, context=context, stride=context, tail=tail)
    assert all(window.first_scored == window.start for window in windows_in(plain))


def test_plain_drops_the_tail_by_default_and_sliding_scores_it() -> None:
    assert plan_windows(108, context=10).targets == 100
    assert plan_windows(108, context=10, stride=10).targets == 100
    assert plan_windows(108, context=10, stride=4).targets == 107


def test_whole_windows_are_those_of_the_reference() -> None:
    # openai/parameter-golf: starts 0, s, 2s, ... while start + context - s < total.
    total, context, stride = 4096, 1024, 64
    plan = plan_windows(total + 1, context=context, stride=stride, tail="drop")
    starts = [s for s in range(0, total, stride) if s + context - stride < total]
    assert [window.start for window in windows_in(plan)] == starts
    assert [window.scored for window in windows_in(plan)] == [1024] + [64] * (len(starts) - 1)


def test_a_limit_plans_for_the_first_targets_only() -> None:
    assert plan_windows(1000, context=8, stride=4, limit_tokens=50).targets == 50
    assert plan_windows(1000, context=8, limit_tokens=50).targets == 48
    assert plan_windows(20, context=8, stride=4, limit_tokens=50).targets == 19


@given(settings(), st.integers(1, 90), st.integers(1, 5), st.booleans())
def test_any_split_over_ranks_and_batches_takes_each_window_once(
    setting: tuple[int, int, int], batch_tokens: int, ranks: int, shorten: bool
) -> None:
    tokens, context, stride = setting
    plan = plan_windows(tokens, context=context, stride=stride, tail="score")
    seen = []
    for rank in range(ranks):
        share = Ranks(rank, ranks, torch.device("cpu")).share(len(plan))
        windows = plan.select(np.arange(share.start, share.stop))
        for batch in batches(windows, batch_tokens, shorten=shorten):
            assert 1 <= len(batch.windows) <= max(1, batch_tokens // batch.size)
            # Every scored target is among the last `asked` of `size` positions.
            assert (batch.windows.start + batch.size >= batch.windows.stop).all()
            asked_from = batch.windows.start + batch.size - batch.asked
            assert (asked_from <= batch.windows.first_scored).all()
            for start, stop in zip(asked_from, batch.windows.stop, strict=True):
                seen.extend(range(start, stop))
    assert sorted(seen) == list(range(tokens - 1))


def test_batches_of_a_text_come_in_its_order() -> None:
    plan = plan_windows(1000, context=16, stride=4)
    firsts = [
        batch.windows.first_scored for batch in batches(plan.select(np.arange(len(plan))), 64)
    ]
    assert (np.diff(np.concatenate(firsts)) > 0).all()


@st.composite
def texts_of_documents(draw: st.DrawFn) -> tuple[Plan, list[int]]:
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    context = draw(st.integers(1, 24))
    stride = draw(st.integers(1, context))
    head = draw(st.sampled_from([0, stride, context]))
    starts = np.concatenate(([0], np.cumsum(lengths)))
    plan = plan_windows(
        sum(lengths) + 1, context=context, stride=stride, documents=starts, head=head
    )
    return plan, lengths


@given(texts_of_documents())
def test_documents_are_scored_once_and_see_nothing_of_each_other(
    text: tuple[Plan, list[int]],
) -> None:
    plan, lengths = text
    assert scored_targets(plan) == list(range(sum(lengths)))
    for span, start in enumerate(np.cumsum([0, *lengths[:-1]]).tolist()):
        alone = plan_windows(
            lengths[span] + 1,
            context=plan.context,
            stride=plan.stride,
            tail="score",
            head=plan.head,
        )
        assert windows_in(plan, plan.windows_of(span)) == [
            Window(w.start + start, w.stop + start, w.first_scored + start)
            for w in windows_in(alone)
        ]


@given(texts_of_documents())
def test_a_short_head_lets_windows_grow_until_they_are_whole(
    text: tuple[Plan, list[int]],
) -> None:
    plan, _ = text
    head = plan.head or plan.context
    for span, start in enumerate(plan.spans):
        for nth, window in enumerate(windows_in(plan, plan.windows_of(span))):
            whole_stop = head + nth * plan.stride
            assert window.start - start == max(0, whole_stop - plan.context)
            assert window.stop - start <= whole_stop
            assert window.first_scored - start == (whole_stop - plan.stride if nth else 0)


def test_documents_that_a_limit_cuts_off_are_left_out() -> None:
    starts = np.array([0, 5, 9, 20])
    plan = plan_windows(30, context=8, stride=4, documents=starts, limit_tokens=9)
    assert (plan.targets, plan.spans) == (9, (0, 5))
    with pytest.raises(ConfigError, match="no common tail to drop"):
        plan_windows(30, context=8, documents=starts, tail="drop")


def test_spans_and_heads_that_make_no_sense_are_errors() -> None:
    for spans in ((1,), (0, 4, 4), (0, 10)):
        with pytest.raises(ConfigError, match="spans must begin with target 0, rise"):
            Plan(targets=10, context=4, stride=2, spans=spans)
    with pytest.raises(ConfigError, match="head=5 must be 0 to context=4"):
        Plan(targets=10, context=4, stride=2, head=5)


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
