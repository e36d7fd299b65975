"""A scorer hands out each loss once, in order, and tokens only after their losses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_adaptation import BOS, CONTEXT, VOCAB, byte_table, text_of_documents, tiny_gpt
from reference_scoring import ToyModel, slow_losses, toy_bytes

from gptpack.evaluation.clock import Clock
from gptpack.evaluation.forward import Forward
from gptpack.evaluation.reading import Reading
from gptpack.evaluation.scorer import OrderError, Scorer
from gptpack.evaluation.windows import plan_windows


def text(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 32, count).astype(np.uint16)


def scorer_of(
    tokens: np.ndarray, *, stride: int = 4, clock: Clock | None = None, **options: object
) -> Scorer:
    plan = plan_windows(len(tokens), context=16, stride=stride, tail="score")
    forward = Forward(ToyModel(), clock=clock)
    return Scorer(forward, tokens, toy_bytes(), plan, per_token=True, **options)  # type: ignore[arg-type]


def test_nothing_is_released_before_it_is_scored() -> None:
    tokens = text(101)
    scorer = scorer_of(tokens)
    assert len(scorer.released()) == 0
    with pytest.raises(OrderError, match=r"targets 0..0 are wanted, scored are range\(0, 0\)"):
        scorer.release(0, 1)
    scorer.score(np.arange(3))
    assert scorer.released() == range(0, 24)
    assert scorer.release(0, 24).tolist() == tokens[:25].tolist()
    for start, stop in ((0, 25), (24, 25), (-1, 4), (5, 4)):
        with pytest.raises(OrderError, match="are wanted"):
            scorer.release(start, stop)
    with pytest.raises(OrderError, match="have not been scored"):
        scorer.release_rows(np.array([3]))


def test_a_target_is_scored_once_and_in_order() -> None:
    scorer = scorer_of(text(101))
    scorer.score(np.arange(2))
    with pytest.raises(OrderError, match=r"targets 16..19 are asked for, but the next one of"):
        scorer.score(np.array([1]))
    with pytest.raises(OrderError, match=r"targets 24..27 .* the next one of lane 0 is 20"):
        scorer.score(np.array([3]))
    with pytest.raises(OrderError):
        scorer.score(np.array([3, 2]))
    scorer.score(np.array([2, 3]))


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 120), st.data())
def test_any_cut_of_the_windows_gives_the_same_losses(count: int, data: st.DataObject) -> None:
    tokens = text(count)
    scorer = scorer_of(tokens)
    total = len(scorer.plan)
    cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=5)))
    for start, stop in zip([0, *cuts], [*cuts, total], strict=True):
        assert scorer.score(np.arange(start, stop))
    score = scorer.finish(tail="score")
    slow = slow_losses(ToyModel(), tokens, targets=count - 1, context=16, stride=4)
    np.testing.assert_allclose(score.losses, slow, rtol=2e-6)
    assert score.complete


def test_documents_are_lanes_of_their_own() -> None:
    tokens = text_of_documents([20, 3, 9])
    starts = np.flatnonzero(tokens == BOS)
    plan = plan_windows(len(tokens), context=CONTEXT, stride=4, head=4, documents=starts)
    scorer = Scorer(Forward(tiny_gpt()), tokens, byte_table(), plan, lanes="documents")
    first, second = plan.windows_of(0), plan.windows_of(2)
    scorer.score_rows(np.array([first[0], second[0]]))
    assert scorer.released(0) == range(0, 4)
    assert scorer.released(1) == range(21, 21)
    assert scorer.released(2) == range(25, 29)
    with pytest.raises(OrderError, match="lane 2 is 29"):
        scorer.score_rows(np.array([second[0]]))
    inputs, targets, exists = scorer.release_rows(np.array([second[0]]))
    assert inputs.tolist() == [tokens[25:29].tolist()]
    assert targets.tolist() == [tokens[26:30].tolist()]
    assert exists.all()


def test_a_window_that_ends_early_marks_what_does_not_exist() -> None:
    tokens = text_of_documents([5, 30])
    starts = np.flatnonzero(tokens == BOS)
    plan = plan_windows(len(tokens), context=CONTEXT, stride=4, head=4, documents=starts)
    scorer = Scorer(Forward(tiny_gpt()), tokens, byte_table(), plan, lanes="documents")
    own = plan.windows_of(0)
    scorer.score_rows(np.array([own[0]]))
    scorer.score_rows(np.array([own[1]]))
    inputs, targets, exists = scorer.release_rows(np.array([own[1]]))
    # Targets 4 and 5 are left of the first document; nothing of the second is shown.
    assert exists.tolist() == [[True, True, False, False]]
    assert inputs[0].tolist() == [*tokens[:7].tolist(), 0]
    assert targets[0].tolist() == [int(tokens[5]), int(tokens[6]), 0, 0]


class Steps:
    """A clock hand that moves a second with each look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.mark.parametrize("limit", [1, 7, 9, 14])
def test_a_time_limit_stops_with_the_exact_share_scored(limit: float) -> None:
    tokens = text(101)
    scorer = scorer_of(tokens, clock=Clock(limit, now=Steps()), batch_tokens=32)
    assert not scorer.score(np.arange(len(scorer.plan)))
    score = scorer.finish(tail="score")
    assert not score.complete
    assert score.losses is not None
    scored = ~np.isnan(score.losses)
    # A prefix of the text, counted to the target and the byte.
    assert scored[: score.tokens].all()
    assert not scored[score.tokens :].any()
    assert score.bytes == toy_bytes().charged(tokens, 0, score.tokens)
    whole = scorer_of(tokens, batch_tokens=32)
    whole.score(np.arange(len(whole.plan)))
    losses = whole.finish(tail="score").losses
    assert losses is not None
    assert score.nats == pytest.approx(float(losses[: score.tokens].sum()), rel=1e-6, abs=1e-12)
    assert score.to_dict()["share"] == score.tokens / 100
    assert (limit > 1) == (score.tokens > 0)
    assert score.metric.endswith(f"first {score.tokens / 100:.2%} only")


def test_a_share_that_is_no_prefix_is_not_called_one() -> None:
    # Batches of one shape go together: the short documents last, wherever they stand.
    tokens = text_of_documents([200, 70, 200, 70, 200])
    starts = np.flatnonzero(tokens == BOS)
    plan = plan_windows(len(tokens), context=256, documents=starts)
    forward = Forward(ToyModel(vocab=VOCAB), clock=Clock(6, now=Steps()))
    options = {"shorten": True, "per_token": True, "batch_tokens": 256}
    scorer = Scorer(forward, tokens, toy_bytes(VOCAB), plan, **options)  # type: ignore[arg-type]
    assert not scorer.score(np.arange(len(plan)))
    score = scorer.finish(tail="score", documents="masked")
    assert score.losses is not None
    assert np.isnan(score.losses[: score.tokens]).any()
    assert score.metric.endswith(f"{score.tokens / plan.targets:.2%} only (not in order)")
    assert "first" not in score.metric


def test_a_limit_that_came_before_the_first_batch_leaves_figures_open() -> None:
    scorer = scorer_of(text(50), clock=Clock(1, now=Steps()))
    scorer.score(np.arange(len(scorer.plan)))
    found = scorer.finish(tail="score").to_dict()
    assert (found["tokens"], found["bytes"], found["bpb"]) == (0, 0, None)
    assert found["nats_per_token"] is None


def test_what_was_claimed_when_the_time_was_up_is_not_released() -> None:
    scorer = scorer_of(text(101), clock=Clock(14, now=Steps()), batch_tokens=32)
    scorer.score(np.arange(len(scorer.plan)))
    assert len(scorer.released()) == 0
    with pytest.raises(OrderError):
        scorer.score(np.arange(len(scorer.plan)))


def test_rows_are_scored_in_the_order_given() -> None:
    tokens = text_of_documents([8, 8, 8])
    starts = np.flatnonzero(tokens == BOS)
    plan = plan_windows(len(tokens), context=CONTEXT, stride=4, head=4, documents=starts)
    model = ToyModel(vocab=VOCAB)
    seen: list[torch.Tensor] = []
    plain = model.token_losses

    def spy(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(inputs.clone())
        return plain(inputs, targets)

    model.token_losses = spy  # type: ignore[method-assign]
    scorer = Scorer(Forward(model), tokens, byte_table(), plan, lanes="documents")
    scorer.score_rows(np.array([plan.windows_of(2)[0], plan.windows_of(0)[0]]))
    assert seen[0][:, 1:].tolist() == [tokens[19:22].tolist(), tokens[1:4].tolist()]


def test_bytes_are_compared_with_the_audit_before_anything_is_scored() -> None:
    tokens = text(60)
    reading = Reading(tokens=tokens, token_bytes=toy_bytes(), context=16, stride=4, audited_bytes=1)
    model = ToyModel()
    with pytest.raises(ValueError, match="has 1; bits per byte would be wrong"):
        reading.scorer(Forward(model), reading.plan())
    assert model.shapes == []


def test_the_scorer_learns_which_shapes_are_worth_compiling() -> None:
    compiled: list[tuple[int, ...]] = []

    def compiler(function: object, **options: object) -> object:
        assert options == {"fullgraph": True, "dynamic": False}

        def run(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            compiled.append((*inputs.shape, targets.shape[1]))
            return function(inputs, targets)  # type: ignore[operator]

        return run

    tokens = text(203)
    plain = scorer_of(tokens)
    plain.score(np.arange(len(plain.plan)))
    forward = Forward(ToyModel(), compiled="on", compiler=compiler)
    plan = plan_windows(len(tokens), context=16, stride=4, tail="score")
    scorer = Scorer(forward, tokens, toy_bytes(), plan, per_token=True, batch_tokens=96)
    scorer.score(np.arange(len(plan)))
    # Every batch is filled up to the same rows: one shape for the head, one for all the others.
    assert set(compiled) == {(6, 16, 16), (6, 16, 4)}
    one, other = plain.finish(tail="score"), scorer.finish(tail="score")
    assert (one.tokens, one.bytes) == (other.tokens, other.bytes) == (202, one.bytes)
    assert one.losses is not None
    np.testing.assert_allclose(other.losses, one.losses, rtol=1e-6)
    assert forward.clock.seconds("compile") > 0
