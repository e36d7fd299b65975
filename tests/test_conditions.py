"""The contest's four conditions, for every kind of evaluation there is.

Parameter-golf, issue #1017: strict causality; a full normalised distribution; score before update;
one left-to-right pass. They are tested from outside, by changing the text and looking at scores.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference_adaptation import BOS, CONTEXT, VOCAB, byte_table, text_of_documents, tiny_gpt

from gptpack.evaluation.forward import Forward
from gptpack.evaluation.reading import Reading
from gptpack.evaluation.result import Score
from gptpack.evaluation.scorer import Scorer
from gptpack.evaluation.scoring import score
from gptpack.evaluation.settings import LoraSettings, SgdSettings
from gptpack.evaluation.ttt_lora import score_with_lora
from gptpack.evaluation.ttt_sgd import score_with_sgd

TOKENS = text_of_documents([17, 3, 16])
STARTS = np.flatnonzero(TOKENS == BOS)
TARGETS = len(TOKENS) - 1
SGD = SgdSettings(lr=0.1, epochs=1, chunk=12, rows=1)
LORA = LoraSettings(rank=2, lr=0.1, chunk=4, targets="c_q+c_v+fc+proj")

Evaluate = Callable[[Forward, Reading], Score]

METHODS: dict[str, tuple[Evaluate, dict[str, object]]] = {
    "plain": (score, {}),
    "sliding": (score, {"stride": 5}),
    "masked documents": (score, {"stride": 5, "documents": STARTS}),
    "sgd": (lambda f, r: score_with_sgd(f, r, SGD), {"stride": 5}),
    "sgd with resets": (lambda f, r: score_with_sgd(f, r, replace(SGD, reset=2)), {"stride": 5}),
    "sgd on masked documents": (
        lambda f, r: score_with_sgd(f, r, SGD),
        {"stride": 5, "documents": STARTS},
    ),
    "lora": (lambda f, r: score_with_lora(f, r, LORA), {"documents": STARTS}),
}


def losses(name: str, tokens: np.ndarray) -> np.ndarray:
    """Nats of each target by one of the methods."""
    method, options = METHODS[name]
    tail = None if "documents" in options else "score"
    reading = Reading(
        tokens=tokens,
        token_bytes=byte_table(),
        context=CONTEXT,
        tail=tail,
        per_token=True,
        batch_tokens=48,
        **options,  # type: ignore[arg-type]
    )
    model = tiny_gpt()
    model.use_rope("model", CONTEXT)
    found = method(Forward(model), reading).losses
    assert found is not None
    assert len(found) == TARGETS
    return found


@pytest.mark.parametrize("name", METHODS)
def test_1_replacing_all_later_tokens_changes_no_bit_of_an_earlier_score(name: str) -> None:
    before = losses(name, TOKENS)
    for kept in (1, 12, 13, 20, 30):
        changed = TOKENS.copy()
        later = np.arange(len(TOKENS)) > kept
        # Documents stay where they are.
        changed[later & (TOKENS != BOS)] = 2 + (changed[later & (TOKENS != BOS)] + 7) % (VOCAB - 2)
        after = losses(name, changed)
        assert np.array_equal(after[:kept], before[:kept]), kept
        assert not np.array_equal(after[kept:], before[kept:])


def sums(evaluate: Callable[[np.ndarray], np.ndarray], targets: list[int]) -> list[float]:
    """For each target, the sum over all tokens of the probability it would be scored with."""
    totals = []
    for target in targets:
        total = 0.0
        for token in range(VOCAB):
            changed = TOKENS.copy()
            changed[target + 1] = token
            total += np.exp(-np.float64(evaluate(changed)[target]))
        totals.append(total)
    return totals


@pytest.mark.parametrize("name", METHODS)
def test_2_the_scores_of_all_tokens_that_could_stand_there_sum_to_one(name: str) -> None:
    found = sums(lambda tokens: losses(name, tokens), [1, TARGETS - 1])
    assert found == pytest.approx([1.0] * 2, abs=2e-6)


def test_2_and_3_fail_for_a_model_that_learns_before_it_scores() -> None:
    """The control: one SGD step on the text itself, then its scores."""

    def cheat(tokens: np.ndarray) -> np.ndarray:
        model = tiny_gpt()
        window = torch.from_numpy(tokens[:13].astype(np.int64))[None]
        model.token_losses(window[:, :-1], window[:, 1:]).mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.1 * parameter.grad)
            return model.token_losses(window[:, :-1], window[:, 1:])[0].numpy()

    assert all(total > 1.001 for total in sums(cheat, [0, 5, 11]))


@pytest.mark.parametrize("name", ["sgd", "lora"])
def test_3_a_chunk_is_scored_before_the_model_learns_from_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights change between scoring and scoring; tokens are released when they have losses."""
    events: list[tuple[str, int]] = []
    run, release, rows = Scorer._run, Scorer.release, Scorer.release_rows

    def scored(self, batch, *, compiled):
        run(self, batch, compiled=compiled)
        events.extend(("scored", int(t)) for t in batch.windows.stop)

    def released(self, start, stop, lane=0):
        events.append(("released", stop))
        return release(self, start, stop, lane)

    def released_rows(self, indices):
        events.extend(("released", int(t)) for t in self.plan.select(indices).stop)
        return rows(self, indices)

    monkeypatch.setattr(Scorer, "_run", scored)
    monkeypatch.setattr(Scorer, "release", released)
    monkeypatch.setattr(Scorer, "release_rows", released_rows)
    losses(name, TOKENS)
    learned = [stop for event, stop in events if event == "released"]
    assert learned
    for at, (event, stop) in enumerate(events):
        if event == "released":
            lane = STARTS[np.searchsorted(STARTS, stop, side="left") - 1] if name == "lora" else 0
            before = [t for kind, t in events[:at] if kind == "scored" and t > lane]
            assert max(before) >= stop


@pytest.mark.parametrize("name", METHODS)
def test_4_every_target_is_scored_in_one_pass_from_left_to_right(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[int] = []
    claim = Scorer._claim

    def claimed(self, windows):
        for first, stop in zip(windows.first_scored, windows.stop, strict=True):
            order.extend(range(first, stop))
        return claim(self, windows)

    monkeypatch.setattr(Scorer, "_claim", claimed)
    found = losses(name, TOKENS)
    assert not np.isnan(found).any()
    assert sorted(order) == list(range(TARGETS))
    spans = np.searchsorted(STARTS, order, side="right") if name == "lora" else np.zeros(TARGETS)
    for span in np.unique(spans):
        own = np.array(order)[spans == span]
        assert (np.diff(own) > 0).all()
