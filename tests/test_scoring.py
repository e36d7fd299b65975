"""Scores are those of the slow twin, depend on nothing later, and count what they say."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_adaptation import (
    BOS,
    CONFIG,
    CONTEXT,
    byte_table,
    text_of_documents,
    tiny_gpt,
)
from reference_scoring import ToyModel, slow_bytes, slow_losses, toy_bytes

from gptpack import kernel_choice
from gptpack.errors import AccountingError, ConfigError, LimitError
from gptpack.evaluation.forward import Forward
from gptpack.evaluation.reading import Reading
from gptpack.evaluation.scoring import score, score_model

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
    score = score_model(
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
    score = score_model(ToyModel(), text(200), toy_bytes(), context=16)
    reference = (score.nats / score.tokens) / math.log(2) * (score.tokens / score.bytes)
    assert score.bpb == pytest.approx(reference, rel=1e-14)
    assert (score.tokens, score.windows, score.tail) == (192, 12, "drop")
    assert score.bytes == slow_bytes(toy_bytes(), text(200), 192)


@pytest.mark.parametrize("tail", ["score", "drop", None])
def test_a_stride_equal_to_the_context_scores_like_plain_evaluation_bit_for_bit(
    tail: str | None,
) -> None:
    model, tokens = ToyModel(), text(203)
    plain = score_model(model, tokens, toy_bytes(), context=16, tail=tail, per_token=True)
    settings = {"context": 16, "tail": tail, "per_token": True}
    strided = score_model(model, tokens, toy_bytes(), stride=16, **settings)
    assert plain.losses is not None
    assert np.array_equal(plain.losses, strided.losses)
    assert (plain.nats, plain.tokens, plain.bytes) == (strided.nats, strided.tokens, strided.bytes)


@pytest.mark.parametrize("stride", [16, 5, 1])
def test_replacing_every_later_token_changes_no_earlier_score(stride: int) -> None:
    model, tokens = ToyModel(), text(100)

    def losses(of: np.ndarray) -> np.ndarray:
        score = score_model(
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
    plain = score_model(model, tokens, toy_bytes(), context=16, tail="score")
    sliding = score_model(model, tokens, toy_bytes(), context=16, stride=3, tail="score")
    assert (plain.tokens, plain.bytes) == (sliding.tokens, sliding.bytes) == (130, plain.bytes)
    assert plain.nats != sliding.nats


def test_the_batch_size_bounds_what_goes_through_the_model_at_once() -> None:
    model = ToyModel()
    score_model(model, text(300), toy_bytes(), context=16, stride=4, batch_tokens=70)
    assert max(rows * length for rows, length in model.shapes) == 64
    model = ToyModel()
    score_model(model, text(300), toy_bytes(), context=16, batch_tokens=1)
    assert set(model.shapes) == {(1, 16)}


def test_the_model_is_scored_in_evaluation_mode_and_comes_back_as_it_was() -> None:
    model = ToyModel().train()
    score_model(model, text(50), toy_bytes(), context=16)
    assert not any(model.modes)
    assert model.training


def test_a_limit_scores_the_same_losses_as_the_whole_text_does() -> None:
    model, tokens = ToyModel(), text(200)
    whole = score_model(model, tokens, toy_bytes(), context=16, stride=4, per_token=True)
    part = score_model(
        model, tokens, toy_bytes(), context=16, stride=4, limit_tokens=77, per_token=True
    )
    assert part.tokens == 77
    assert part.losses is not None
    assert whole.losses is not None
    np.testing.assert_allclose(part.losses, whole.losses[:77], rtol=1e-6)


def test_scoring_stops_before_the_model_runs_when_the_audit_found_other_bytes() -> None:
    model, tokens = ToyModel(), text(200)
    right = slow_bytes(toy_bytes(), tokens, 192)
    assert score_model(model, tokens, toy_bytes(), context=16, audited_bytes=right).bytes == right
    model.shapes.clear()
    with pytest.raises(AccountingError, match=f"charged {right:,} bytes, but .* has {right + 1:,}"):
        score_model(model, tokens, toy_bytes(), context=16, audited_bytes=right + 1)
    assert model.shapes == []


@pytest.mark.parametrize("stride", [None, 5])
def test_masked_documents_score_like_each_alone(stride: int | None) -> None:
    lengths = [3, 30, 1, 64, 17, 16]
    tokens = text_of_documents(lengths, seed=4)
    model = tiny_gpt()
    model.use_rope("model", CONTEXT)
    starts = np.flatnonzero(tokens == BOS)
    masked = score_model(
        model,
        tokens,
        byte_table(),
        context=CONTEXT,
        stride=stride,
        documents=starts,
        per_token=True,
        rope="model (unscaled)",
    )
    slow = [
        slow_losses(
            model,
            # The BOS of the next document is this one's last target.
            np.append(tokens[start : start + length + 1], BOS)[: length + 2],
            targets=min(length + 1, len(tokens) - 1 - start),
            context=CONTEXT,
            stride=stride or CONTEXT,
        )
        for start, length in zip(starts, lengths, strict=True)
    ]
    np.testing.assert_allclose(masked.losses, np.concatenate(slow), rtol=1e-6)
    assert masked.tokens == len(tokens) - 1
    assert masked.metric.endswith("documents masked")
    assert (masked.documents, masked.rope) == ("masked", "model (unscaled)")
    packed = score_model(
        model, tokens, byte_table(), context=CONTEXT, stride=stride, tail="score", per_token=True
    )
    assert packed.losses is not None
    assert not np.allclose(masked.losses, packed.losses, rtol=1e-3)


def test_a_gpt_that_computes_scored_positions_alone_scores_like_the_slow_twin() -> None:
    model = tiny_gpt()
    tokens = text_of_documents([50, 41], seed=2)
    found = score_model(
        model, tokens, byte_table(), context=CONTEXT, stride=3, tail="score", per_token=True
    )
    slow = slow_losses(model, tokens, targets=len(tokens) - 1, context=CONTEXT, stride=3)
    np.testing.assert_allclose(found.losses, slow, rtol=1e-6)


def test_a_cut_window_is_run_whole_so_that_positions_do_not_depend_on_the_texts_end() -> None:
    model = tiny_gpt(config=replace(CONFIG, rope_ntk_context=4))
    tokens = text_of_documents([60], seed=2)

    def losses(count: int) -> np.ndarray:
        found = score_model(
            model, tokens[:count], byte_table(), context=CONTEXT, stride=5, per_token=True
        ).losses
        assert found is not None
        return found

    whole = losses(61)
    for count in (5, 13, 20, 41):
        np.testing.assert_allclose(losses(count), whole[: count - 1], rtol=1e-5)


def test_compiled_batches_give_the_same_score() -> None:
    model = tiny_gpt()
    tokens = text_of_documents([120], seed=2)
    reading = Reading(
        tokens=tokens,
        token_bytes=byte_table(),
        context=CONTEXT,
        stride=4,
        batch_tokens=60,
        per_token=True,
    )
    graphs: list[int] = []

    def compiler(function: Any, **options: Any) -> Any:
        def count(module: Any, _: Any) -> Any:
            graphs.append(1)
            return module.forward

        return torch.compile(function, backend=count, **options)

    forward = Forward(model, compiled="on", compiler=compiler)
    found = score(forward, reading)
    first = len(graphs)
    assert first
    np.testing.assert_allclose(found.losses, score(Forward(model), reading).losses, rtol=1e-6)
    # A second pass, even after the weights have moved, compiles nothing again.
    with torch.no_grad():
        model.tok_emb.weight.mul_(1.1)
    moved = score(forward, reading)
    assert len(graphs) == first
    np.testing.assert_allclose(moved.losses, score(Forward(model), reading).losses, rtol=1e-6)
    assert found.nats != moved.nats
    ledger = forward.clock.ledger()
    assert ledger["compile"] > 0
    assert sum(ledger.values()) == pytest.approx(2 * ledger["total"])


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
def test_a_compiled_sliding_window_on_a_gpu_scores_as_an_eager_one() -> None:
    wide = {"width": 128, "heads": 4, "kv_heads": 2, "mlp_hidden": 256, "context": 512}
    model = tiny_gpt(torch.float32, config=replace(CONFIG, **wide)).cuda()
    model.use_rope("model", 512)
    reading = Reading(
        tokens=text_of_documents([900] * 40), token_bytes=byte_table(), context=512, stride=64
    )

    def found(attention: str, compiled: Any) -> float:
        model.use_attention(attention)
        return score(Forward(model, "cuda", compiled=compiled), reading).bpb

    exact = found("math", "off")
    model.compute_dtype = None
    # bfloat16 is off by 0.1 % where weights are as wild as these
    assert found("auto", "off") == pytest.approx(exact, rel=4e-3)
    assert found("auto", "on") == pytest.approx(exact, rel=4e-3)
    assert not model.kernels


def test_compiled_passes_alone_run_by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        kernel_choice, "choose_kernels", lambda name, device: f"on, as {name} on {device}"
    )
    model, by_kernels = tiny_gpt(torch.float32), []

    def switches() -> set[bool]:
        return {module.kernels for module in model.modules() if hasattr(module, "kernels")}

    def compiler(_function: object, **_options: object) -> object:
        return lambda _block, lanes, *_others, **_named: lanes

    def end(_lanes: object, targets: torch.Tensor) -> torch.Tensor:
        by_kernels.append(switches())
        return torch.zeros(targets.shape)

    monkeypatch.setattr(model, "end", end)
    forward = Forward(model, compiled="on", compiler=compiler)
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    for compiled in (True, False, True):
        assert forward.losses(tokens[:, :-1], tokens[:, 1:], compiled=compiled).shape == (1, 4)
        assert switches() == {False}
    assert by_kernels == [{True}, {True}]


def test_auto_compiles_nothing_on_a_cpu_and_only_large_work_elsewhere() -> None:
    assert not Forward(ToyModel()).pays(1 << 40)
    assert Forward(ToyModel(), compiled="on").pays(1)
    assert not Forward(ToyModel(), "cuda", compiled="off").pays(1 << 40)
    auto = Forward(ToyModel(), "cuda")
    assert auto.pays(1 << 24)
    assert not auto.pays((1 << 24) - 1)


def test_text_that_stands_for_no_bytes_is_an_error() -> None:
    with pytest.raises(AccountingError, match="no bytes"):
        score_model(ToyModel(), np.zeros(50, np.uint16), toy_bytes(), context=16)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    model = ToyModel()
    torch.nn.init.constant_(model.head, float("nan"))
    with pytest.raises(LimitError, match="nan; the model is broken"):
        score_model(model, text(50), toy_bytes(), context=16)


def test_a_negative_batch_is_an_error() -> None:
    with pytest.raises(ConfigError, match="batch_tokens=-1"):
        score_model(ToyModel(), text(50), toy_bytes(), context=16, batch_tokens=-1)


def test_progress_counts_every_target_up_to_the_total() -> None:
    calls: list[tuple[str, float, float]] = []
    score_model(
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
    score = score_model(ToyModel(), text(101), toy_bytes(), context=16, stride=4)
    assert score.to_dict()["metric"] == "sliding, stride 4, context 16"
    assert score_model(ToyModel(), text(101), toy_bytes(), context=16).metric == "plain, context 16"
    assert "losses" not in score.to_dict()
