"""A model -> text that it writes itself, as tokens; kept beside it for the next time."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gptpack.calibration.fisher import finite
from gptpack.calibration.kept import Kept, read_kept
from gptpack.families.language_model import LanguageModel
from gptpack.progress import Progress, silent

TEMPERATURE = 0.8
"""Temperature of self-generated text; parameter-golf #1019 measured such text to be as good as
validation text."""
AT_ONCE = {"cuda": 131072, "cpu": 16384}
"""Tokens of texts that are written side by side, by device: the model's cache holds keys and values
of all of them, 46 KB for each token of a model of 135 M parameters."""
PHASE = "write text to calibrate on (tokens; --data or --text spares it)"


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
    begin = begin[:, :context]
    rows = max(1, AT_ONCE[device.type] // context)
    texts: list[Tensor] = []
    for first in range(0, windows, rows):
        parts = [begin.expand(min(rows, windows - first), -1)]
        read = model.reader()
        with torch.no_grad():
            for length in range(begin.shape[1], context):
                logits = finite(read(parts[-1])) / TEMPERATURE
                parts.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
                done = first * context + len(parts[0]) * (length + 1)
                progress(PHASE, done, windows * context)
        texts.append(torch.cat(parts, 1).cpu())
    return torch.cat(texts)


def written(
    model: LanguageModel,
    *,
    windows: int,
    context: int,
    seed: int,
    start: Sequence[int] = (),
    kept: Kept | None = None,
    progress: Progress = silent,
) -> Tensor:
    """`self_generated`, or the same text from a file that is `kept`, ``[N, T]``."""
    path = None
    if kept is not None:
        said = f"1 {windows} {context} {seed} {list(start)} {model.device.type}"
        path = kept.path("text", model, said)
        if (found := read_kept(path)) is not None and "tokens" in found:
            progress("text to calibrate on (kept from before)", 1, 1)
            return torch.from_numpy(np.asarray(found["tokens"]))
    text = self_generated(
        model, windows=windows, context=context, seed=seed, start=start, progress=progress
    )
    if kept is not None and path is not None:
        kept.keep(path, lambda: {"tokens": text.numpy()})
    return text
