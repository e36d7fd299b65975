"""Scores are those of the slow twin, depend on nothing later, and count what they say."""

import math
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_scoring import ToyModel, slow_bytes, slow_losses, toy_bytes

from gptpack.errors import AccountingError, ConfigError, LimitError
from gptpack.evaluation.result import Score
from gptpack.evaluation.scoring import evaluate

VOCAB = 32


def text(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, count).astype(np.uint16)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(2, 70),
    st.integers(1, 12).flatmap(lambda c: st.tuples(st.just(c), st.integers(1, c))),
    st.integers(0, 60),
)
def test_fast_scores_equal_the_slow_twins(
    count: int, shape: tuple[int, int], batch_tokens: int
) -> None:
    context, stride = shape
    model, tokens = ToyModel(dtype=torch.float64), text(count, seed=1)
    score = evaluate(
        model,
        tokens,
        toy_bytes(),
        context=context,
        stride=stride,
        tail="score",
        batch_tokens=batch_tokens,
        per_token=True,
    )
    slow = slow_losses(model, tokens, targets=count - 1, context=context, stride=stride)
    assert score.tokens == count - 1
    assert score.bytes == slow_bytes(toy_bytes(), tokens, count - 1)
    assert score.nats == pytest.approx(slow.sum(), rel=1e-12)
    assert score.losses is not None
    assert np.array_equal(score.losses, slow.astype(np.float32)) or np.allclose(
        score.losses, slow, rtol=2**-23, atol=0
    )


def test_bpb_is_the_formula_of_the_reference() -> None:
    score = evaluate(ToyModel(), text(200), toy_bytes(), context=16)
    reference = (score.nats / score.tokens) / math.log(2) * (score.tokens / score.bytes)
    assert score.bpb == pytest.approx(reference, rel=1e-14)
    assert (score.tokens, score.windows, score.tail) == (192, 12, "drop")
    assert score.bytes == slow_bytes(toy_bytes(), text(200), 192)


@pytest.mark.parametrize("tail", ["score", "drop", None])
def test_a_stride_equal_to_the_context_scores_like_plain_evaluation_bit_for_bit(
    tail: str | None,
) -> None:
    model, tokens = ToyModel(), text(203)
    plain = evaluate(model, tokens, toy_bytes(), context=16, tail=tail, per_token=True)
    strided = evaluate(model, tokens, toy_bytes(), context=16, stride=16, tail=tail, per_token=True)
    assert plain.losses is not None
    assert np.array_equal(plain.losses, strided.losses)
    assert (plain.nats, plain.tokens, plain.bytes) == (strided.nats, strided.tokens, strided.bytes)


@pytest.mark.parametrize("stride", [16, 5, 1])
def test_replacing_every_later_token_changes_no_earlier_score(stride: int) -> None:
    model, tokens = ToyModel(), text(100)

    def losses(of: np.ndarray) -> np.ndarray:
        score = evaluate(
            model,
            of,
            toy_bytes(),
            context=16,
            stride=stride,
            tail="score",
            per_token=True,
            batch_tokens=64,
        )
        assert score.losses is not None
        return score.losses

    before = losses(tokens)
    for kept in (1, 15, 16, 17, 50, 98):
        changed = tokens.copy()
        changed[kept + 1 :] = (changed[kept + 1 :] + 7) % VOCAB
        after = losses(changed)
        assert np.array_equal(after[:kept], before[:kept])
        assert not np.array_equal(after[kept:], before[kept:])


def test_a_shorter_stride_changes_scores_but_not_which_targets_and_bytes_count() -> None:
    model, tokens = ToyModel(), text(131)
    plain = evaluate(model, tokens, toy_bytes(), context=16, tail="score")
    sliding = evaluate(model, tokens, toy_bytes(), context=16, stride=3, tail="score")
    assert (plain.tokens, plain.bytes) == (sliding.tokens, sliding.bytes) == (130, plain.bytes)
    assert plain.nats != sliding.nats


def test_the_batch_size_bounds_what_goes_through_the_model_at_once() -> None:
    model = ToyModel()
    evaluate(model, text(300), toy_bytes(), context=16, stride=4, batch_tokens=70)
    assert max(rows * length for rows, length in model.shapes) == 64
    model = ToyModel()
    evaluate(model, text(300), toy_bytes(), context=16, batch_tokens=1)
    assert set(model.shapes) == {(1, 16)}


def test_the_model_is_scored_in_evaluation_mode_and_comes_back_as_it_was() -> None:
    model = ToyModel().train()
    evaluate(model, text(50), toy_bytes(), context=16)
    assert not any(model.modes)
    assert model.training


def test_a_limit_scores_the_same_losses_as_the_whole_text_does() -> None:
    model, tokens = ToyModel(), text(200)
    whole = evaluate(model, tokens, toy_bytes(), context=16, stride=4, per_token=True)
    part = evaluate(
        model, tokens, toy_bytes(), context=16, stride=4, limit_tokens=77, per_token=True
    )
    assert part.tokens == 77
    assert part.losses is not None
    assert whole.losses is not None
    np.testing.assert_allclose(part.losses, whole.losses[:77], rtol=1e-6)


def test_scoring_stops_before_the_model_runs_when_the_audit_found_other_bytes() -> None:
    model, tokens = ToyModel(), text(200)
    right = slow_bytes(toy_bytes(), tokens, 192)
    assert evaluate(model, tokens, toy_bytes(), context=16, audited_bytes=right).bytes == right
    model.shapes.clear()
    with pytest.raises(AccountingError, match=f"charged {right:,} bytes, but .* has {right + 1:,}"):
        evaluate(model, tokens, toy_bytes(), context=16, audited_bytes=right + 1)
    assert model.shapes == []


def test_text_that_stands_for_no_bytes_is_an_error() -> None:
    with pytest.raises(AccountingError, match="no bytes"):
        evaluate(ToyModel(), np.zeros(50, np.uint16), toy_bytes(), context=16)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    model = ToyModel()
    torch.nn.init.constant_(model.head, float("nan"))
    with pytest.raises(LimitError, match="nan; the model is broken"):
        evaluate(model, text(50), toy_bytes(), context=16)


def test_a_negative_batch_is_an_error() -> None:
    with pytest.raises(ConfigError, match="batch_tokens=-1"):
        evaluate(ToyModel(), text(50), toy_bytes(), context=16, batch_tokens=-1)


def test_progress_counts_every_target_up_to_the_total() -> None:
    calls: list[tuple[str, float, float]] = []
    evaluate(
        ToyModel(),
        text(101),
        toy_bytes(),
        context=16,
        stride=4,
        batch_tokens=64,
        phase="sliding",
        progress=lambda *call: calls.append(call),
    )
    assert calls[0] == ("sliding", 0, 100)
    assert calls[-1] == ("sliding", 100, 100)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_the_dictionary_of_a_score_says_what_was_measured() -> None:
    score = evaluate(ToyModel(), text(101), toy_bytes(), context=16, stride=4)
    assert score.to_dict()["metric"] == "sliding, stride 4, context 16"
    assert evaluate(ToyModel(), text(101), toy_bytes(), context=16).metric == "plain, context 16"
    assert "losses" not in score.to_dict()


def _score_on_rank(rank: int, ranks: int, folder: str, stride: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    score = _score(stride)
    np.savez(
        f"{folder}/rank{rank}.npz",
        sums=np.array([score.nats, score.tokens, score.bytes, score.windows]),
        losses=score.losses,
    )
    dist.barrier()
    dist.destroy_process_group()


def _score(stride: int) -> Score:
    return evaluate(
        ToyModel(), text(1001), toy_bytes(), context=16, stride=stride, tail="score", per_token=True
    )


def test_two_processes_give_the_counts_and_sums_of_one(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ranks = [
        spawn.Process(target=_score_on_rank, args=(rank, 2, str(tmp_path), 5)) for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=120)
        assert process.exitcode == 0
    alone = _score(5)
    for rank in range(2):
        with np.load(tmp_path / f"rank{rank}.npz") as saved:
            nats, *counts = saved["sums"].tolist()
            assert counts == [alone.tokens, alone.bytes, alone.windows]
            assert nats == pytest.approx(alone.nats, rel=1e-12)
            assert saved["losses"].shape == (1000,)
            assert saved["losses"].astype(np.float64).sum() == pytest.approx(alone.nats, rel=1e-12)
