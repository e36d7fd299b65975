"""A model and a request -> the text that Hessians and tuning may see, as tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptpack.calibration.text import TOKENS
from gptpack.data.shards import Tokens, has_shards
from gptpack.data.splits import split_tokens
from gptpack.errors import ConfigError, DataError
from gptpack.evaluation.plain_text import stream
from gptpack.families.language_model import LanguageModel
from gptpack.families.modules.model import Module
from gptpack.jobs.load import Loaded
from gptpack.jobs.request import PackRequest
from gptpack.packing.config import PackConfig

TUNING_TOKENS = 1 << 24
"""Most tokens of text that tuning takes in: 8,192 windows of 2,048."""


def check_texts(loaded: Loaded, request: PackRequest) -> None:
    """Refuse text where it has no use."""
    model = loaded.runnable()
    if isinstance(model, Module):
        if request.data is not None or request.eval_text or request.text:
            raise ConfigError(
                "a module is calibrated on tokens and proved by its caller: give calibration "
                "(tokens), and score what load(...).state_dict() gives"
            )
        if request.tune != "none" and not model.copies:
            raise ConfigError(
                "tuning works on a copy of the module: make gptpack.Module with logits that take "
                "the module too, such as lambda module, tokens: module(tokens)"
            )
    if not (request.text or request.eval_text):
        return
    if loaded.tokenizer is None:
        raise ConfigError(
            "--text and --eval-text are for models that bring their tokenizer, as Hugging Face's "
            "do; give --data with shards"
        )


def training_tokens(loaded: Loaded, request: PackRequest, config: PackConfig) -> Sequence[Tokens]:
    """Text that Hessians and tuning may see, as tokens."""
    model = loaded.runnable()
    if request.tokens is not None:
        return [_given(request.tokens, model)]
    if request.text and loaded.tokenizer is not None:
        context = model.config.context
        least = request.calibration_tokens or TOKENS[model.device.type]
        if request.tune != "none":
            least = max(least, TUNING_TOKENS)
        paths = [Path(path) for path in request.text]
        tokens = stream(paths, loaded.tokenizer, least + context, seed=request.seed)
        if len(tokens) < context:
            raise DataError(
                f"--text: {len(tokens):,} tokens, fewer than the model's window of {context:,}; "
                "give more text"
            )
        return [tokens]
    there = request.data is not None and has_shards(Path(request.data), "train")
    wanted = config.calibrated and request.calibration in (None, "shards")
    if request.data is None or not (request.tune != "none" or (there and wanted)):
        return []
    return split_tokens(request.data, "train", model.config.vocab)


def _given(tokens: Any, model: LanguageModel) -> Tokens:
    """Tokens that the caller gave, as one stream."""
    found = np.asarray(tokens).reshape(-1).astype(np.int64)
    context, vocab = model.config.context, model.config.vocab
    if len(found) < context or found.min() < 0 or found.max() >= vocab:
        raise DataError(
            f"calibration: {len(found):,} tokens; needed at least the model's window of "
            f"{context:,}, each from 0 to {vocab - 1:,}"
        )
    return found.astype(np.uint32)
