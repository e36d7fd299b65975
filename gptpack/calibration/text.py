"""A model and a source of text -> the windows to calibrate on -> sensitivities, kept in a cache.

Sources are training shards, text that the model writes itself, and random tokens. Validation is
never read: codes would fit the very text that proves the file.
"""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from gptpack.atomic import replacing
from gptpack.calibration.collect import Calibration, collect, finite
from gptpack.data.shards import Tokens
from gptpack.errors import DataError, GptpackError
from gptpack.families.language_model import LanguageModel
from gptpack.inputs import opened
from gptpack.progress import Progress, silent
from gptpack.quant.allocation import Sensitivity
from gptpack.ranks import Ranks

TextSource = Literal["shards", "text", "given", "self", "random"]
Array = npt.NDArray[Any]

TOKENS = {"cuda": 524288, "cpu": 65536}
"""Tokens of calibration text by device, unless a number is asked for."""
BATCH_TOKENS = {"cuda": 32768, "cpu": 2048}
"""Tokens that go through the model at once in calibration, by device."""
DIGEST = "sha256"
"""Name, in a cached file, of the digest of its arrays."""
TEMPERATURE = 0.8
"""Temperature of self-generated text; parameter-golf #1019 measured such text to be as good as
validation text."""


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


def self_generated(
    model: LanguageModel,
    *,
    windows: int,
    context: int,
    seed: int,
    start: Sequence[int] = (),
    progress: Progress = silent,
) -> Tensor:
    """`windows` texts that `model` samples from itself, each from `start` or BOS, ``[N, T]``.

    Raises:
        CheckpointError: the model's outputs are not finite.
    """
    device = model.device
    generator = torch.Generator(device=device).manual_seed(seed)
    begin = torch.tensor([start or (model.config.bos,)], dtype=torch.int64, device=device)
    parts = [begin[:, :context].expand(windows, -1)]
    read = model.reader()
    with torch.no_grad():
        for length in range(parts[0].shape[1], context):
            logits = finite(read(parts[-1])) / TEMPERATURE
            parts.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
            progress("write calibration text", length + 1, context)
    return torch.cat(parts, 1).cpu()


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
    progress: Progress = silent,
) -> Tensor:
    """Windows ``[N, T]`` of the model's context from `source`, about `tokens` in all.

    Args:
        shards: training tokens, for the sources ``shards``, ``text`` and ``given``.
        start: tokens that a text of the model's own begins with; none is BOS.
        tokens: 0 takes `TOKENS` of the model's device, or what there is of shards.

    Raises:
        DataError: the shards hold fewer.
        CheckpointError: see `self_generated`.
    """
    context = model.config.context
    count = max(1, (tokens or TOKENS[model.device.type]) // context)
    if source in ("shards", "text", "given"):
        if not tokens:
            held = sum(len(shard) // context for shard in shards)
            count = min(count, max(1, held))
        return model.window(shard_windows(shards, windows=count, context=context, seed=seed))
    if source == "self":
        return self_generated(
            model, windows=count, context=context, seed=seed, start=start, progress=progress
        )
    return random_tokens(model.config.vocab, windows=count, context=context, seed=seed)


def calibrate(
    model: LanguageModel,
    windows: Tensor,
    ranks: Ranks,
    *,
    fisher_windows: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
    background: Executor | None = None,
    progress: Progress = silent,
) -> Calibration:
    """Sensitivities by `collect`, or from `cache` after a call with the same weights and tokens.

    Args:
        fisher_windows: windows of the Fisher pass, the first ones; None takes a quarter of them.
        batch: windows that go through the model at once; None chooses by device.
        cache: folder of the cached file, whose name is a hash of everything that matters; None
            keeps no file. Only the main rank writes.
        background: executor that writes the file; None makes the caller wait for it.

    Raises:
        CheckpointError: see `collect`.
    """
    if fisher_windows is None:
        fisher_windows = max(1, len(windows) // 4)
    if batch is None:
        batch = max(1, BATCH_TOKENS[ranks.device.type] // windows.shape[1])
    path = None
    if cache is not None:
        said = f"2 {fisher_windows} {seed} {ranks.device.type} {ranks.world} {model.config}"
        key = hashlib.sha256(said.encode())
        for name, value in model.weights().items():
            key.update(name.encode())
            key.update(value.cpu().numpy().tobytes())
        key.update(windows.numpy().tobytes())
        path = cache / f".gptpack-hessians-{key.hexdigest()[:24]}.safetensors"
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
        progress=progress,
    )
    if path is not None and ranks.main:
        if background is None:
            _write(path, found)
        else:
            background.submit(_write, path, found)
    return found


def _write(path: Path, calibration: Calibration) -> None:
    arrays: dict[str, Array] = {
        "tokens": np.array([calibration.hessian_tokens, calibration.fisher_tokens])
    }
    for name, sensitivity in calibration.sensitivities.items():
        arrays[f"hessian {name}"] = np.ascontiguousarray(sensitivity.hessian, np.float32)
        arrays[f"rows {name}"] = np.ascontiguousarray(sensitivity.row_weight, np.float32)
    arrays[DIGEST] = _digest(arrays)
    # where a folder takes no file, the next run calibrates again, and this one loses nothing
    with suppress(GptpackError), replacing(path) as file:
        file.write(save(arrays))


def _digest(arrays: Mapping[str, Array]) -> Array:
    """SHA-256 of names, shapes and values, as safetensors has no checksum of its own."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].shape} ".encode())
        found.update(arrays[name].tobytes())
    return np.frombuffer(found.digest(), np.uint8)


def _read(path: Path) -> Calibration | None:
    """The calibration in a cached file; None if there is no file, or it has changed."""
    try:
        with opened(path):
            arrays = load_file(path)
        if not np.array_equal(arrays.pop(DIGEST), _digest(arrays)):
            return None
        hessian_tokens, fisher_tokens = arrays.pop("tokens").tolist()
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    names = [key.removeprefix("rows ") for key in arrays if key.startswith("rows ")]
    return Calibration(
        sensitivities={
            name: Sensitivity(hessian=arrays[f"hessian {name}"], row_weight=arrays[f"rows {name}"])
            for name in names
        },
        hessian_tokens=hessian_tokens,
        fisher_tokens=fisher_tokens,
    )
