"""The n-gram model knows the past only, and blending keeps a distribution a distribution."""

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_scoring import ToyModel, toy_bytes

from gptpack.errors import ConfigError, LimitError
from gptpack.evaluation.agreement import score_with_ngram
from gptpack.evaluation.forward import Forward
from gptpack.evaluation.ngram import (
    AGREEMENT,
    CONFIDENCE,
    RELIABILITY,
    Blend,
    NgramSettings,
    blend,
    check_blend,
    make_hints,
)
from gptpack.evaluation.reading import Reading
from gptpack.evaluation.scoring import score

SETTINGS = NgramSettings(orders=(1, 2, 4), table_bits=16)


def repetitive(count: int, seed: int = 0) -> np.ndarray:
    """Phrases that come back, and noise between them."""
    draw = np.random.default_rng(seed)
    phrases = [draw.integers(1, 32, draw.integers(3, 9)) for _ in range(5)]
    parts = [phrases[i] if i < 5 else draw.integers(1, 32, 2) for i in draw.integers(0, 7, count)]
    return np.concatenate(parts)[:count].astype(np.uint16)


def slow_hints(tokens: np.ndarray, orders: tuple[int, ...]) -> list[tuple[int, int]]:
    """Hint and bucket of each target, with dictionaries that remember every context."""
    memory: dict[tuple[int, ...], list[int]] = {}
    found = []
    for target in range(len(tokens) - 1):
        now = int(tokens[target])
        for order in orders:
            if target >= order:
                key = (order, *tokens[target - order : target].tolist())
                entry = memory.setdefault(key, [now, 0])
                if entry[0] == now:
                    entry[1] = min(entry[1] + 1, 255)
                elif entry[1] > 1:
                    entry[1] //= 2
                else:
                    memory[key] = [now, 1]
        known = [
            (order, memory[(order, *tokens[target + 1 - order : target + 1].tolist())])
            for order in orders
            if target + 1 >= order
            and (order, *tokens[target + 1 - order : target + 1].tolist()) in memory
        ]
        if not known:
            found.append((-1, -1))
            continue
        order, (hint, count) = known[-1]
        agreeing = [entry[0] == hint for _, entry in known[:-1]]
        agreement = 2 if all(agreeing) else 1 if any(agreeing) else 0
        level = min(RELIABILITY - 1, int(math.log2(count)))
        found.append((hint, (orders.index(order) * RELIABILITY + level) * AGREEMENT + agreement))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_hints_are_those_of_dictionaries(seed: int) -> None:
    tokens = repetitive(600, seed)
    hints = make_hints(tokens, SETTINGS)
    assert list(zip(hints.tokens.tolist(), hints.buckets.tolist(), strict=True)) == slow_hints(
        tokens, SETTINGS.orders
    )
    assert hints.buckets.max() < hints.count
    assert (hints.tokens >= 0).mean() > 0.5


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 300), st.integers(0, 5))
def test_hints_do_not_depend_on_later_tokens(kept: int, seed: int) -> None:
    tokens = repetitive(301, seed)
    changed = tokens.copy()
    changed[kept + 1 :] = (changed[kept + 1 :] + 11) % 32
    one, other = make_hints(tokens, SETTINGS), make_hints(changed, SETTINGS)
    # Target t is token t + 1, and its hint may know token t.
    assert np.array_equal(one.tokens[: kept + 1], other.tokens[: kept + 1])
    assert np.array_equal(one.buckets[: kept + 1], other.buckets[: kept + 1])


def test_small_tables_forget_but_stay_causal() -> None:
    tokens = repetitive(500)
    tiny = NgramSettings(orders=(1, 2, 4), table_bits=4)
    changed = tokens.copy()
    changed[301:] = 7
    one, other = make_hints(tokens, tiny), make_hints(changed, tiny)
    assert np.array_equal(one.tokens[:301], other.tokens[:301])
    assert not np.array_equal(one.tokens, make_hints(tokens, SETTINGS).tokens)


@pytest.mark.parametrize("kept", [32768, 32769, 65536, 131072])
def test_hints_do_not_depend_on_how_much_text_follows(kept: int) -> None:
    # Where tables grow, or would if their size went by the text's; many contexts share slots.
    tokens = np.random.default_rng(3).integers(0, 64, 140_001).astype(np.uint16)
    wide = NgramSettings(orders=(1, 2, 3, 4))
    one, other = make_hints(tokens[: kept + 1], wide), make_hints(tokens, wide)
    assert np.array_equal(one.tokens, other.tokens[:kept])
    assert np.array_equal(one.buckets, other.buckets[:kept])


def test_a_table_that_grew_remembers_what_it_knew() -> None:
    phrase = np.arange(1, 30, dtype=np.uint16)
    noise = np.random.default_rng(4).integers(100, 1000, 40_000).astype(np.uint16)
    hints = make_hints(np.concatenate([phrase, noise, phrase]), NgramSettings(orders=(2, 4)))
    assert hints.tokens[-24:].tolist() == phrase[-24:].tolist()


def distributions(count: int, seed: int = 0) -> np.ndarray:
    """Log-probabilities ``[count, 32]`` of a network that is none."""
    logits = np.random.default_rng(seed).normal(0, 2, (count, 32))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def slow_blend(
    tokens: np.ndarray, log_p: np.ndarray, hints: list[tuple[int, int]], prior: float
) -> list[float]:
    """The whole distribution of each target, and its entry."""
    beta: dict[tuple[int, int], float] = defaultdict(float)
    information: dict[tuple[int, int], float] = defaultdict(lambda: prior)
    losses = []
    for t, (hint, bucket) in enumerate(hints):
        p = np.exp(log_p[t])
        if hint >= 0:
            odds = p[hint] / (1 - p[hint])
            key = (bucket, sum(math.log(odds) > edge for edge in CONFIDENCE))
            p[hint] *= math.exp(beta[key])
            p /= p.sum()
        losses.append(-math.log(p[tokens[t + 1]]))
        if hint >= 0:
            q = p[hint]
            information[key] += q * (1 - q)
            beta[key] += (float(tokens[t + 1] == hint) - q) / information[key]
    return losses


def test_blending_is_the_slow_twins_whole_distribution() -> None:
    tokens = repetitive(600)
    log_p = distributions(599)
    hints = make_hints(tokens, SETTINGS)
    losses = -log_p[np.arange(599), tokens[1:]]
    hint_losses = -log_p[np.arange(599), hints.tokens.clip(min=0)]
    blended = blend(tokens, hints, losses, hint_losses, SETTINGS)
    slow = slow_blend(tokens, log_p, slow_hints(tokens, SETTINGS.orders), SETTINGS.prior)
    np.testing.assert_allclose(blended.losses, slow, rtol=1e-9)
    # The text repeats itself and the network knows nothing: n-grams help.
    assert blended.losses.sum() < 0.8 * losses.sum()
    assert blended.hits == ((hints.tokens == tokens[1:]) & (hints.tokens >= 0)).sum()


def test_a_hint_starts_without_effect_and_unscored_targets_teach_nothing() -> None:
    tokens = repetitive(300)
    log_p = distributions(299)
    hints = make_hints(tokens, SETTINGS)
    losses = -log_p[np.arange(299), tokens[1:]]
    hint_losses = -log_p[np.arange(299), hints.tokens.clip(min=0)]
    losses[100:] = np.nan
    blended = blend(tokens, hints, losses, hint_losses, SETTINGS)
    first = np.flatnonzero(hints.tokens >= 0)[0]
    assert blended.losses[first] == losses[first]
    assert np.isnan(blended.losses[100:]).all()
    assert not blended.betas[100:].any()


@pytest.mark.parametrize("beta", [-30.0, -1.0, 0.0, 2.0, 30.0])
def test_the_check_accepts_what_sums_to_one_whatever_beta_is(beta: float) -> None:
    tokens = repetitive(50)
    log_p = distributions(49).astype(np.float32)
    hints = make_hints(tokens, SETTINGS)
    target = int(np.flatnonzero(hints.tokens >= 0)[3])
    p = np.exp(log_p[target].astype(np.float64))
    p[hints.tokens[target]] *= math.exp(beta)
    p /= p.sum()
    losses, betas = np.zeros(49), np.zeros(49)
    losses[target], betas[target] = -math.log(p[tokens[target + 1]]), beta
    blended = Blend(losses, betas, 0, 0)
    found = check_blend(tokens[1:], hints, blended, {target: log_p[target]})
    assert found["positions"] == 1
    assert found["largest_deviation_of_sum"] < 1e-6
    assert found["largest_difference_nats"] < 1e-5


def test_the_check_refuses_a_score_that_is_no_entry_and_a_sum_that_is_not_one() -> None:
    tokens = repetitive(50)
    log_p = distributions(49).astype(np.float32)
    hints = make_hints(tokens, SETTINGS)
    losses = -log_p[np.arange(49), tokens[1:]].astype(np.float64)
    fine = Blend(losses, np.zeros(49), 0, 0)
    check_blend(tokens[1:], hints, fine, {7: log_p[7]})
    # What hashed caches did: the target's own probability raised, nobody else's lowered.
    raised = Blend(losses - 0.5, np.zeros(49), 0, 0)
    with pytest.raises(LimitError, match=r"scores differ from them by 0\.5 nats"):
        check_blend(tokens[1:], hints, raised, {7: log_p[7]})
    with pytest.raises(LimitError, match=r"sum to 1 but for 0\.649"):
        check_blend(tokens[1:], hints, Blend(losses - 0.5, np.zeros(49), 0, 0), {7: log_p[7] + 0.5})


@pytest.mark.parametrize("stride", [16, 4])
def test_one_pass_gives_the_networks_score_and_the_blend(stride: int) -> None:
    tokens = repetitive(400)
    reading = Reading(
        tokens=tokens, token_bytes=toy_bytes(), context=16, stride=stride, per_token=True
    )
    model = ToyModel()
    plain = score(Forward(model), reading)
    network, blended = score_with_ngram(Forward(model), reading, SETTINGS)
    assert network.nats == pytest.approx(plain.nats, rel=1e-6)
    assert (network.adaptation, network.tokens) == ("none", plain.tokens)
    assert blended.adaptation == "ngram(orders=1+2+4, prior=0.4)"
    assert (blended.tokens, blended.bytes) == (plain.tokens, plain.bytes)
    assert blended.nats < network.nats
    found = blended.to_dict()["normalisation"]
    assert found["positions"] == 256
    assert found["largest_deviation_of_sum"] < 1e-5
    assert found["largest_difference_nats"] < 1e-5
    assert blended.losses is not None
    assert blended.losses.sum() == pytest.approx(blended.nats, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": ()}, "must rise from 1 or more"),
        ({"orders": (2, 2)}, "must rise"),
        ({"orders": (0, 2)}, "must rise"),
        ({"prior": 0.0}, "prior=0.0 must be above 0"),
        ({"table_bits": 40}, "must lie in 4..28"),
    ],
)
def test_settings_that_make_no_sense_are_errors(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NgramSettings(**options)
