"""Tokens and a model that stays as it is -> a score, summed in float64 over planned targets."""

from typing import Any

import numpy as np
import torch
from torch import nn

from gptpack.data.accounting import TokenBytes
from gptpack.data.shards import Tokens
from gptpack.evaluation.forward import Forward
from gptpack.evaluation.reading import Reading
from gptpack.evaluation.result import Score


def score_model(
    model: nn.Module,
    tokens: Tokens,
    token_bytes: TokenBytes,
    *,
    context: int,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Score:
    """Bits per byte of `tokens` under `model`; windows.py says which targets count.

    Where torch.distributed is initialised every rank calls this with the same tokens, scores its
    contiguous share of the windows, and gets the sums over all ranks.

    Args:
        model: has ``token_losses(inputs [B, T], targets [B, S]) -> nats [B, S]``, of the last S
            positions; chooses its own precision, and is on `device`. Comes back in the mode
            (training or not) it was in.
        options: further fields of `Reading`.

    Raises:
        AccountingError: the planned bytes are not ``audited_bytes``, or there are none.
        ConfigError: the settings make no plan, or one is negative.
        LimitError: the loss is not finite.
    """
    reading = Reading(tokens=tokens, token_bytes=token_bytes, context=context, **options)
    return score(Forward(model, device), reading)


def score(forward: Forward, reading: Reading) -> Score:
    """Bits per byte of a reading; several readings may share the model of a `forward`."""
    plan = reading.plan()
    scorer = reading.scorer(forward, plan)
    scorer.score(np.arange(len(plan)))
    return reading.finish(scorer)
