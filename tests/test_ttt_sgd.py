"""Test-time training of all weights is the slow twin's, and leaves the model as it was."""

from typing import Any

import numpy as np
import pytest
import torch
from reference_adaptation import (
    BOS,
    CONTEXT,
    byte_table,
    slow_sgd,
    text_of_documents,
    tiny_gpt,
)

from gptpack.errors import ConfigError, LimitError
from gptpack.evaluation.clock import Clock
from gptpack.evaluation.forward import Forward
from gptpack.evaluation.reading import Reading
from gptpack.evaluation.result import Score
from gptpack.evaluation.scoring import score
from gptpack.evaluation.settings import SgdSettings
from gptpack.evaluation.ttt_sgd import cosine, score_with_sgd
from gptpack.families.golf.gpt import GPT

TOKENS = text_of_documents([40, 70, 33])
FAST = SgdSettings(lr=0.05, epochs=2, chunk=24, rows=1)


def reading(**options: object) -> Reading:
    return Reading(
        tokens=TOKENS,
        token_bytes=byte_table(),
        context=CONTEXT,
        tail="score",
        per_token=True,
        **options,  # type: ignore[arg-type]
    )


def scored(model: GPT, settings: SgdSettings, *, stride: int = 4, **options: object) -> Score:
    return score_with_sgd(Forward(model), reading(stride=stride, **options), settings)


@pytest.mark.parametrize(
    "settings",
    [
        FAST,
        SgdSettings(lr=0.05, epochs=1, chunk=25, rows=8, momentum=0.0, clip=0.0),
        SgdSettings(lr=0.05, epochs=2, chunk=24, rows=2, reset=2),
        SgdSettings(lr=0.05, epochs=2, chunk=12, rows=2, reset=1),
        SgdSettings(lr=0.05, epochs=1, chunk=30, clip=0.1, freeze=1),
    ],
    ids=["momentum", "plain sgd", "reset", "reset at every chunk", "frozen block"],
)
@pytest.mark.parametrize("stride", [12, 5])
def test_losses_are_those_of_the_slow_twin(settings: SgdSettings, stride: int) -> None:
    model = tiny_gpt()
    found = scored(model, settings, stride=stride)
    slow = slow_sgd(model, TOKENS, settings, context=CONTEXT, stride=stride)
    np.testing.assert_allclose(found.losses, slow, rtol=1e-6)
    if settings.reset != 1:
        plain = score(Forward(model), reading(stride=stride))
        assert not np.allclose(found.losses, plain.losses, rtol=1e-4)


def test_a_reset_at_every_chunk_is_no_adaptation_at_all() -> None:
    model = tiny_gpt()
    found = scored(model, SgdSettings(lr=0.05, chunk=24, reset=1))
    assert np.array_equal(found.losses, score(Forward(model), reading(stride=4)).losses)
    assert found.details["updates"] == 0
    assert found.details["resets"] == found.details["chunks"] - 1


def test_after_a_reset_a_chunk_is_scored_by_the_weights_of_the_file() -> None:
    model = tiny_gpt()
    plain = score(Forward(model), reading(stride=4)).losses
    found = scored(model, SgdSettings(lr=0.05, epochs=1, chunk=24, reset=3))
    assert plain is not None
    assert found.losses is not None
    same = [
        np.array_equal(found.losses[start : start + 24], plain[start : start + 24])
        for start in range(0, 24 * found.details["chunks"], 24)
    ]
    assert same == [True, False, False, True, False, False, True][: len(same)]
    # A chunk before a reset is not trained on, nor is the last.
    assert found.details["updates"] == 2 * (len(same) // 3)
    assert found.details["resets"] == 2


def test_the_weights_and_their_gradients_come_back() -> None:
    model = tiny_gpt()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scored(model, FAST)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not frozen.requires_grad
    assert all(p.requires_grad and p.grad is None for p in model.parameters() if p is not frozen)


def test_several_settings_on_one_model_do_not_see_each_other() -> None:
    model = tiny_gpt()
    forward = Forward(model)
    first = score_with_sgd(forward, reading(stride=4), FAST)
    score_with_sgd(forward, reading(stride=4), SgdSettings(lr=0.2, chunk=24))
    again = score_with_sgd(forward, reading(stride=4), FAST)
    assert np.array_equal(first.losses, again.losses)


def test_compiled_training_learns_the_same() -> None:
    compiled: list[tuple[bool, torch.Size]] = []

    def compiler(function: Any, **_: Any) -> Any:
        def run(first: Any, lanes: Any, *others: Any, **named: Any) -> Any:
            compiled.append((torch.is_grad_enabled(), lanes.first.shape[:2]))
            return function(first, lanes, *others, **named)

        return run

    model = tiny_gpt()
    settings = SgdSettings(lr=0.05, epochs=1, chunk=36, rows=2)
    forward = Forward(model, compiled="on", compiler=compiler)
    found = score_with_sgd(forward, reading(stride=4), settings)
    np.testing.assert_allclose(found.losses, scored(model, settings).losses, rtol=1e-6)
    # Chunks have three rows: steps of two are compiled, those of one are run as they are.
    assert {shape for training, shape in compiled if training} == {torch.Size([2, CONTEXT])}
    assert found.details["updates"] == 2 * (found.details["chunks"] - 1)


def test_masked_documents_can_adapt_too() -> None:
    model = tiny_gpt()
    model.use_rope("model", CONTEXT)
    starts = np.flatnonzero(TOKENS == BOS)
    options = {"documents": starts, "stride": 4, "tail": None}
    base = Reading(
        tokens=TOKENS,
        token_bytes=byte_table(),
        context=CONTEXT,
        per_token=True,
        **options,  # type: ignore[arg-type]
    )
    plain, found = score(Forward(model), base), score_with_sgd(Forward(model), base, FAST)
    assert found.documents == "masked"
    assert found.tokens == plain.tokens == len(TOKENS) - 1
    assert plain.losses is not None
    assert found.losses is not None
    assert np.array_equal(found.losses[:24], plain.losses[:24])
    assert not np.allclose(found.losses[24:], plain.losses[24:], rtol=1e-4)


def test_the_result_says_what_was_done() -> None:
    found = scored(tiny_gpt(), SgdSettings(lr=0.05, chunk=24, reset=2)).to_dict()
    assert found["adaptation"] == "ttt-sgd(lr=0.05, epochs=3, chunk=24, reset=2)"
    assert "ttt-sgd(lr=0.05, epochs=3, chunk=24, reset=2)" in found["metric"]
    assert found["settings"].startswith("ttt-sgd(lr=0.05, epochs=3, momentum=0.9")
    assert (found["chunks"], found["resets"]) == (7, 3)
    assert found["seconds_adapting"] > 0


def test_the_rate_falls_as_half_a_cosine() -> None:
    assert [cosine(chunk, 3) for chunk in range(3)] == pytest.approx([1, 0.5, 0])
    assert cosine(0, 1) == 1


def test_a_time_limit_ends_scoring_and_learning() -> None:
    hand = iter(range(10_000))
    clock = Clock(25, now=lambda: float(next(hand)))
    model = tiny_gpt()
    found = score_with_sgd(Forward(model, clock=clock), reading(stride=4, batch_tokens=24), FAST)
    assert 0 < found.tokens < len(TOKENS) - 1
    whole = scored(model, FAST, batch_tokens=24)
    assert found.losses is not None
    assert whole.losses is not None
    assert np.array_equal(found.losses[: found.tokens], whole.losses[: found.tokens])
    assert np.isnan(found.losses[found.tokens :]).all()


def test_settings_that_do_not_fit_the_model_are_errors() -> None:
    with pytest.raises(ConfigError, match="chunk=8 holds no row of context=12"):
        scored(tiny_gpt(), SgdSettings(chunk=8))
    with pytest.raises(ConfigError, match="freeze=3, but the model has 2 blocks"):
        scored(tiny_gpt(), SgdSettings(chunk=24, freeze=3))


def test_a_rate_that_breaks_the_model_is_an_error_and_the_weights_come_back() -> None:
    model = tiny_gpt()
    before = model.blocks[0].mlp.fc.weight.clone()
    with pytest.raises(LimitError, match="the model is broken"):
        scored(model, SgdSettings(lr=1e200, clip=0, chunk=24))
    assert torch.equal(model.blocks[0].mlp.fc.weight, before)
