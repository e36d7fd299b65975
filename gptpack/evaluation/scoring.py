"""Score tokens under a model that stays as it is: every planned target once, summed in float64."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from gptpack.data.accounting import TokenBytes
from gptpack.evaluation.forward import Forward
from gptpack.evaluation.ngram import NgramSettings, blend, check, make_hints
from gptpack.evaluation.reading import Reading
from gptpack.evaluation.result import Score
from gptpack.evaluation.scorer import Tokens

CHECKED_TARGETS = 256
"""Targets whose blended distribution is checked over the whole vocabulary."""


def evaluate(
    model: nn.Module,
    tokens: Tokens,
    token_bytes: TokenBytes,
    *,
    context: int,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Score:
    """Bits per byte of `tokens` under `model`; see gptpack/evaluation/windows.py for which count.

    Where torch.distributed is initialised every rank calls this with the same tokens, scores its
    contiguous share of the windows, and gets the sums over all ranks.

    Args:
        model: has ``token_losses(inputs [B, T], targets [B, S]) -> nats [B, S]``, of the last S
            positions; chooses its own precision, and is on `device`. Comes back in the mode
            (training or not) it was in.
        options: further fields of `Reading`.

    Raises:
        AccountingError: the planned bytes are not ``audited_bytes``, or there are none.
        ConfigError: a plan that makes no sense, or a negative setting.
        LimitError: the loss is not finite.
    """
    reading = Reading(tokens=tokens, token_bytes=token_bytes, context=context, **options)
    return score(Forward(model, device), reading)


def score(forward: Forward, reading: Reading) -> Score:
    """`evaluate`, for a model that several readings share."""
    plan = reading.plan()
    scorer = reading.scorer(forward, plan)
    scorer.score(np.arange(len(plan)))
    return reading.finish(scorer)


def score_with_ngram(
    forward: Forward, reading: Reading, settings: NgramSettings, *, seed: int = 0
) -> tuple[Score, Score]:
    """The network's score, and that of its blend with an n-gram model of the text so far.

    Both come from one pass. The second says how the blend's normalisation was checked.

    Raises:
        LimitError: the blended probabilities do not sum to one.
    """
    plan = reading.plan()
    tokens = reading.tokens[: plan.targets + 1]
    with forward.clock.phase("ngram"):
        hints = make_hints(tokens, settings)
    chosen = np.random.default_rng(seed).choice(
        plan.targets, min(CHECKED_TARGETS, plan.targets), replace=False
    )
    scorer = reading.scorer(forward, plan, hints=hints.tokens, samples=np.sort(chosen))
    scorer.score(np.arange(len(plan)))
    hint_losses, sampled = scorer.hint_losses()
    network = reading.finish(scorer)
    assert network.losses is not None
    with forward.clock.phase("ngram"):
        blended = blend(tokens, hints, network.losses, hint_losses, settings)
        normalisation = check(tokens[1:], hints, blended, sampled)
    agreeing = replace(
        network,
        nats=float(np.nansum(blended.losses)),
        adaptation=settings.description,
        losses=blended.losses.astype(np.float32) if reading.per_token else None,
        details={
            "normalisation": normalisation,
            "hinted": blended.hinted,
            "hint_hits": blended.hits,
        },
    )
    return network if reading.per_token else replace(network, losses=None), agreeing
