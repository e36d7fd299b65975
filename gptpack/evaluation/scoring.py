"""Score tokens under a model: every planned target once, summed in float64.

Shape legend:  B = windows of a batch,  T = targets of a window,  S = scored targets of a window
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn

from gptpack.data.accounting import TokenBytes
from gptpack.errors import AccountingError, ConfigError, LimitError
from gptpack.evaluation.result import Score
from gptpack.evaluation.windows import Tail, batches, default_tail, plan_windows, split
from gptpack.progress import Progress, silent

BATCH_TOKENS = {"cpu": 8192, "cuda": 131072}
"""Tokens of a batch where none are asked for: logits of 131,072 x 1,024 float32 are 0.5 GiB."""


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def evaluate(
    model: nn.Module,
    tokens: npt.NDArray[np.uint16],
    token_bytes: TokenBytes,
    *,
    context: int,
    stride: int | None = None,
    tail: Tail | None = None,
    audited_bytes: int | None = None,
    batch_tokens: int = 0,
    limit_tokens: int = 0,
    device: torch.device | str = "cpu",
    per_token: bool = False,
    progress: Progress = silent,
    phase: str = "score",
) -> Score:
    """Bits per byte of `tokens` under `model`; see gptpack/evaluation/windows.py for which count.

    Where torch.distributed is initialised every rank calls this with the same tokens, scores its
    contiguous share of the windows, and gets the sums over all ranks.

    Args:
        model: has ``token_losses(inputs [B, T], targets [B, T]) -> nats [B, T]``, chooses its own
            precision, and is on `device`. Comes back in the mode (training or not) it was in.
        tokens: the text; documents begin with BOS.
        token_bytes: bytes of each target; only targets are charged.
        audited_bytes: what an audit of exactly the scored targets found; compared before scoring.
        batch_tokens: most tokens that go through the model at once; 0 chooses by device.
        limit_tokens: score at most the first so many targets; 0 scores all.
        per_token: also return each target's loss.

    Raises:
        AccountingError: the scored bytes are not `audited_bytes`, or there are none.
        ConfigError: a plan that makes no sense, or a negative setting.
        LimitError: the loss is not finite.
    """
    device = torch.device(device)
    plan = plan_windows(
        len(tokens), context=context, stride=stride, tail=tail, limit_tokens=limit_tokens
    )
    if batch_tokens < 0:
        raise ConfigError(f"batch_tokens={batch_tokens} must not be negative")
    scored = tokens[: plan.targets + 1]
    scored_bytes = token_bytes.total(scored[:-1], scored[1:])
    if audited_bytes is not None and scored_bytes != audited_bytes:
        raise AccountingError(
            f"the {plan.targets:,} targets are charged {scored_bytes:,} bytes, but the text that "
            f"they stand for has {audited_bytes:,}; bits per byte would be wrong"
        )
    if scored_bytes == 0:
        raise AccountingError(f"the {plan.targets:,} targets stand for no bytes of text")

    distributed = dist.is_available() and dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    share = split(len(plan), rank, ranks)
    rows = max(1, (batch_tokens or BATCH_TOKENS.get(device.type, 8192)) // plan.context)
    stream = torch.from_numpy(scored.astype(np.int32)).to(device)
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    losses = torch.zeros(plan.targets if per_token else 0, dtype=torch.float32, device=device)
    share_targets = plan.window(share[-1]).stop - plan.window(share[0]).first_scored if share else 0
    done = 0

    began = time.perf_counter()
    progress(phase, 0, share_targets)
    with _evaluating(model), torch.inference_mode():
        for batch in batches(plan, share, rows):
            first, last = plan.window(batch[0]), plan.window(batch[-1])
            rows_BT = stream[first.start : last.stop + 1].unfold(0, first.length + 1, plan.stride)
            inputs_BT, targets_BT = rows_BT[:, :-1].long(), rows_BT[:, 1:].long()
            losses_BT = cast(Any, model).token_losses(inputs_BT, targets_BT)
            assert losses_BT.shape == targets_BT.shape, (losses_BT.shape, targets_BT.shape)
            losses_BS = losses_BT[:, first.length - first.scored :]
            sums[0] += losses_BS.sum(dtype=torch.float64)
            sums[1] += losses_BS.numel()
            if per_token:
                losses[first.first_scored : last.stop] = losses_BS.flatten()
            done += losses_BS.numel()
            progress(phase, done, share_targets)
    if ranks > 1:
        dist.all_reduce(sums)
        dist.all_reduce(losses)
    nats, counted = sums.tolist()
    seconds = time.perf_counter() - began

    assert counted == plan.targets, (counted, plan)
    if not math.isfinite(nats):
        raise LimitError(f"the loss over {plan.targets:,} targets is {nats}; the model is broken")
    return Score(
        nats=nats,
        tokens=plan.targets,
        bytes=scored_bytes,
        context=plan.context,
        stride=plan.stride,
        tail=tail or default_tail(context, stride),
        windows=len(plan),
        seconds=seconds,
        losses=losses.cpu().numpy() if per_token else None,
    )
