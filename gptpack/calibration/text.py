"""A model and a source of text -> the windows to calibrate on -> sensitivities, kept in a cache.

Sources are training shards, files of text, given tokens, text that the model writes itself, and
random tokens. Validation is never read: codes would fit the very text that proves the file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gptpack.calibration.collect import Calibration, collect
from gptpack.calibration.kept import Kept, read_kept
from gptpack.calibration.written import written
from gptpack.data.shards import Tokens
from gptpack.errors import DataError
from gptpack.families.language_model import LanguageModel
from gptpack.progress import Progress, silent
from gptpack.quant.allocation import Sensitivity
from gptpack.ranks import Ranks
from gptpack.shelf import Held

TextSource = Literal["shards", "text", "given", "self", "random"]

TOKENS = {"cuda": 524288, "cpu": 65536}
"""Tokens of calibration text by device, unless a number is asked for."""
COUNTED_TOKENS = 1 << 24
"""Tokens in which those of the vocabulary are counted, from the beginnings of all shards."""
BATCH_TOKENS = {"cuda": 32768, "cpu": 2048}
"""Tokens that go through the model at once in calibration, by device."""
WRITTEN_TOKENS = {"cuda": 524288, "cpu": 16384}
"""Tokens of calibration text where the model has to write it itself."""


def shard_windows(shards: Sequence[Tokens], *, windows: int, context: int, seed: int) -> Tensor:
    """`windows` different windows of training tokens, ``[N, T]``, spread over all shards.

    Raises:
        DataError: the shards hold fewer.
    """
    per_shard = [len(shard) // context for shard in shards]
    total = sum(per_shard)
    if total < windows:
        raise DataError(
            f"{total:,} windows of {context:,} training tokens, {windows:,} are needed for "
            "calibration; add text or ask for fewer tokens"
        )
    chosen = np.random.default_rng(seed).choice(total, windows, replace=False)
    ends = np.cumsum(per_shard)
    rows = []
    for index in chosen.tolist():
        shard = int(np.searchsorted(ends, index, side="right"))
        start = (index - (int(ends[shard - 1]) if shard else 0)) * context
        rows.append(shards[shard][start : start + context].astype(np.int64))
    return torch.from_numpy(np.stack(rows))


def random_tokens(vocab: int, *, windows: int, context: int, seed: int) -> Tensor:
    """`windows` rows of uniform tokens, ``[N, T]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab, (windows, context), generator=generator)


def calibration_text(
    model: LanguageModel,
    source: TextSource,
    shards: Sequence[Tokens],
    *,
    tokens: int = 0,
    seed: int = 0,
    start: Sequence[int] = (),
    kept: Kept | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Windows ``[N, T]`` of the model's context from `source`, about `tokens` in all.

    Args:
        shards: training tokens, for the sources ``shards``, ``text`` and ``given``.
        start: tokens that a text of the model's own begins with; none is BOS.
        tokens: 0 takes `TOKENS` of the model's device, `WRITTEN_TOKENS` of text of its own, or what
            there is of shards.
        kept: where the model's own text is kept; None keeps none.

    Raises:
        DataError: the shards hold fewer.
        CheckpointError: the model's outputs are not finite.
    """
    context = model.config.context
    usual = WRITTEN_TOKENS if source == "self" else TOKENS
    count = max(1, (tokens or usual[model.device.type]) // context)
    if source in ("shards", "text", "given"):
        if not tokens:
            held = sum(len(shard) // context for shard in shards)
            count = min(count, max(1, held))
        return model.window(shard_windows(shards, windows=count, context=context, seed=seed))
    if source == "self":
        return written(
            model,
            windows=count,
            context=context,
            seed=seed,
            start=start,
            kept=kept,
            progress=progress,
        )
    return random_tokens(model.config.vocab, windows=count, context=context, seed=seed)


def token_counts(shards: Sequence[Tokens], vocab: int) -> Tensor:
    """How often each token comes in `COUNTED_TOKENS` of `shards` at most, int64 ``[V]``."""
    share = max(1, COUNTED_TOKENS // max(1, len(shards)))
    counts = np.zeros(vocab, np.int64)
    for shard in shards:
        counts += np.bincount(np.asarray(shard[:share]), minlength=vocab)
    return torch.from_numpy(counts)


def calibrate(
    model: LanguageModel,
    windows: Tensor,
    ranks: Ranks,
    *,
    fisher_windows: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    counts: Tensor | None = None,
    kept: Kept | None = None,
    progress: Progress = silent,
) -> Calibration:
    """Sensitivities by `collect`, or those `kept` by a call with the same weights and tokens.

    Args:
        fisher_windows: windows of the Fisher pass, the first ones; None takes a quarter of them.
        batch: windows that go through the model at once; None chooses by device.
        counts: as in `collect`.
        kept: where they are kept, in a file whose name is a hash of everything that matters; None
            keeps none.

    Raises:
        CheckpointError: see `collect`.
    """
    if fisher_windows is None:
        fisher_windows = max(1, len(windows) // 4)
    if batch is None:
        batch = max(1, BATCH_TOKENS[ranks.device.type] // windows.shape[1])
    path = None
    if kept is not None:
        said = f"3 {fisher_windows} {seed} {ranks.device.type} {ranks.world}"
        path = kept.path("hessians", model, said, windows, *([] if counts is None else [counts]))
        if (found := _read(path)) is not None:
            progress("hessians (cached)", 1, 1)
            return found
    found = collect(
        model,
        windows,
        ranks,
        fisher_windows=fisher_windows,
        batch=batch,
        seed=seed,
        counts=counts,
        progress=progress,
    )
    if kept is not None and path is not None:
        kept.keep(path, lambda: _arrays(found))
    return found


def _arrays(calibration: Calibration) -> dict[str, Held]:
    arrays: dict[str, Held] = {
        "tokens": np.array([calibration.hessian_tokens, calibration.fisher_tokens])
    }
    for name, sensitivity in calibration.sensitivities.items():
        arrays[f"hessian {name}"] = sensitivity.hessian
        arrays[f"rows {name}"] = sensitivity.row_weight
    return arrays


def _read(path: Path) -> Calibration | None:
    """The calibration in a cached file; None if there is no file, or it has changed."""
    arrays = read_kept(path)
    if arrays is None or "tokens" not in arrays:
        return None
    hessian_tokens, fisher_tokens = np.asarray(arrays.pop("tokens")).tolist()
    names = [key.removeprefix("rows ") for key in arrays if key.startswith("rows ")]
    return Calibration(
        sensitivities={
            name: Sensitivity(
                hessian=arrays[f"hessian {name}"], row_weight=np.asarray(arrays[f"rows {name}"])
            )
            for name in names
        },
        hessian_tokens=hessian_tokens,
        fisher_tokens=fisher_tokens,
    )
