"""Low-rank factors per document are the slow twin's, and no document knows of another."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from reference_adaptation import BOS, CONTEXT, byte_table, slow_lora, text_of_documents, tiny_gpt
from torch import nn

from gptpack.errors import ConfigError
from gptpack.evaluation.clock import Clock
from gptpack.evaluation.forward import Forward
from gptpack.evaluation.reading import Reading
from gptpack.evaluation.result import Score
from gptpack.evaluation.scoring import score
from gptpack.evaluation.settings import LoraSettings
from gptpack.evaluation.ttt_lora import Factors, alike_in_length, find_layers, score_with_lora
from gptpack.evaluation.windows import plan_windows
from gptpack.families.golf.gpt import GPT

TOKENS = text_of_documents([30, 3, 17, 1, 22])
SMALL = LoraSettings(rank=2, lr=0.05, chunk=5, documents=2, targets="c_q+c_v")


def fixed(model: GPT) -> GPT:
    """The model with positions that do not depend on lengths."""
    model.use_rope("model", CONTEXT)
    return model


def reading(tokens: np.ndarray = TOKENS, **options: object) -> Reading:
    return Reading(
        tokens=tokens,
        token_bytes=byte_table(),
        context=CONTEXT,
        documents=np.flatnonzero(tokens == BOS),
        per_token=True,
        **options,  # type: ignore[arg-type]
    )


def scored(settings: LoraSettings, tokens: np.ndarray = TOKENS) -> Score:
    return score_with_lora(Forward(fixed(tiny_gpt())), reading(tokens), settings)


def start_of(settings: LoraSettings) -> dict[str, torch.Tensor]:
    """Each layer's A as every document begins with it."""
    factors = Factors(fixed(tiny_gpt()), settings, 3, torch.device("cpu"))
    assert all(torch.equal(a[0], row) for a in factors.a.values() for row in a)
    assert not any(b.any() for b in factors.b.values())
    return {name: a[0].detach().double() for name, a in factors.a.items()}


@pytest.mark.parametrize(
    "settings",
    [
        SMALL,
        LoraSettings(rank=2, lr=0.05, chunk=5, steps=3, alpha=6, decay=0.1, targets="c_q+fc+proj"),
        LoraSettings(rank=1, lr=0.05, chunk=12, beta1=0.0, beta2=0.5, targets="c_k"),
    ],
    ids=["queries and values", "steps, alpha, decay", "one chunk a window"],
)
def test_losses_are_those_of_the_slow_twin(settings: LoraSettings) -> None:
    found = scored(settings)
    model = fixed(tiny_gpt())
    slow = slow_lora(model, TOKENS, settings, context=CONTEXT, factors=start_of(settings))
    # Factors are float32, those of the twin float64.
    np.testing.assert_allclose(found.losses, slow, rtol=2e-5)
    assert found.tokens == len(TOKENS) - 1
    assert found.details["updates"] > 0


def test_how_many_documents_are_side_by_side_changes_no_score() -> None:
    one = scored(LoraSettings(rank=2, lr=0.05, chunk=5, documents=1))
    for documents in (2, 3, 64):
        many = scored(LoraSettings(rank=2, lr=0.05, chunk=5, documents=documents))
        np.testing.assert_allclose(many.losses, one.losses, rtol=1e-6)


def test_factors_are_never_compiled_in() -> None:
    def compiler(function: object, **_: object) -> object:
        raise AssertionError("compiled")

    forward = Forward(fixed(tiny_gpt()), compiled="on", compiler=compiler)
    found = score_with_lora(forward, reading(), SMALL)
    assert np.array_equal(found.losses, scored(SMALL).losses)


def test_a_document_is_scored_the_same_whatever_stands_around_it() -> None:
    alone = scored(SMALL, text_of_documents([17], seed=5)).losses
    assert alone is not None
    own = text_of_documents([17], seed=5)
    others = text_of_documents([9, 26], seed=6)
    between = np.concatenate((others[:10], own, others[10:]))
    found = scored(SMALL, between).losses
    assert found is not None
    # The last target of a document that another follows is the other's BOS.
    np.testing.assert_allclose(found[10 : 10 + 17], alone, rtol=1e-6)


def test_first_chunks_are_scored_as_without_adaptation() -> None:
    settings = LoraSettings(rank=2, lr=0.5, chunk=4)
    found = scored(settings).losses
    model = fixed(tiny_gpt())
    plan = reading().plan(stride=4, head=4)
    plain = reading(stride=4).scorer(Forward(model), plan)
    plain.score(np.arange(len(plan)))
    losses = plain.finish(tail="score").losses
    assert found is not None
    assert losses is not None
    for start, stop in pairwise((*plan.spans, plan.targets)):
        first = slice(start, min(start + 4, stop))
        np.testing.assert_allclose(found[first], losses[first], rtol=1e-6)
    assert not np.allclose(found, losses, rtol=1e-3)


def test_the_hidden_state_can_have_factors() -> None:
    found = scored(LoraSettings(rank=2, lr=0.05, chunk=5, targets="hidden"))
    model = fixed(tiny_gpt())
    plain = score(Forward(model), reading(stride=5))
    assert found.nats != plain.nats
    assert "hidden" not in vars(model)


def test_the_model_comes_back_without_hooks_and_with_its_gradients() -> None:
    model = fixed(tiny_gpt())
    inputs = torch.randint(2, 16, (1, 9))
    before = model.hidden(inputs)
    score_with_lora(
        Forward(model), reading(), LoraSettings(rank=2, lr=0.05, chunk=5, targets="c_q+hidden")
    )
    assert torch.equal(model.hidden(inputs), before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_documents_of_similar_length_stand_together_the_longest_first() -> None:
    starts = np.flatnonzero(TOKENS == BOS)
    plan = plan_windows(len(TOKENS), context=CONTEXT, stride=5, head=5, documents=starts)
    groups = alike_in_length(plan, 2)
    assert groups == [[0, 4], [2, 1], [3]]
    assert alike_in_length(plan, 64) == [[0, 4, 2, 1, 3]]


def test_layers_are_found_by_their_last_names() -> None:
    model = tiny_gpt()
    assert find_layers(model, ["c_q"]) == {
        "blocks.0.attn.c_q": (16, 16),
        "blocks.1.attn.c_q": (16, 16),
    }
    assert find_layers(model, ["c_v", "hidden"])["hidden"] == (16, 16)
    with pytest.raises(ConfigError, match="no linear layer named q_proj"):
        find_layers(model, ["c_q", "q_proj"])


class Sidestepping(nn.Module):
    """Uses its layer's weight, but never calls the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.up = nn.Linear(8, 8, bias=False)

    def token_losses(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(inputs) @ self.up.weight.T
        logits = (hidden @ self.embed.weight.T)[:, -targets.shape[1] :]
        return nn.functional.cross_entropy(logits.mT, targets, reduction="none")


def test_factors_that_would_do_nothing_are_an_error() -> None:
    forward = Forward(Sidestepping())
    with pytest.raises(ConfigError, match="up: not run as a layer of its own"):
        score_with_lora(forward, reading(), LoraSettings(rank=2, chunk=5, targets="up"))


def test_settings_that_do_not_fit_the_text_are_errors() -> None:
    with pytest.raises(ConfigError, match="chunk=13 is longer than context=12"):
        scored(LoraSettings(chunk=13))
    packed = Reading(tokens=TOKENS, token_bytes=byte_table(), context=CONTEXT)
    with pytest.raises(ConfigError, match="need masked documents"):
        score_with_lora(Forward(tiny_gpt()), packed, SMALL)


def test_a_time_limit_ends_with_what_was_scored() -> None:
    hand = iter(range(10_000))
    forward = Forward(fixed(tiny_gpt()), clock=Clock(40, now=lambda: float(next(hand))))
    found = score_with_lora(forward, reading(), SMALL)
    assert 0 < found.tokens < found.planned_tokens
    assert found.losses is not None
    scored_targets = np.flatnonzero(~np.isnan(found.losses))
    assert len(scored_targets) == found.tokens
    assert found.bytes == byte_table().each(TOKENS, scored_targets).sum()
