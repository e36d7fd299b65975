"""A Hugging Face ``config.json`` -> what packing and evaluation need of it, without the library.

The dictionary itself goes into a packed file, without what names code, kernels, or files elsewhere.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gptpack.errors import ConfigError
from gptpack.values import MAX_VOCAB, MOST_BITS

DROPPED = (
    "auto_map",
    "name_or_path",
    "quantization_config",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "num_labels",
    "id2label",
    "label2id",
)
"""Keys that say where code is, how the weights are kept here, how the model is called, or what it
tells apart beside tokens: none says what it is. Those that end in ``_implementation`` name kernels.
"""
MODEL_TYPE = "[A-Za-z0-9._-]{1,100}"
CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
MOST_CONTEXT = 2048
"""Tokens of a window where the model's positions reach further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersConfig:
    """The configuration of a transformers model, and the window in which it is measured."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """The keys of ``config.json``."""
    context: int = 0
    """Tokens of a window; 0 takes what the model's positions reach, `MOST_CONTEXT` at most."""
    bos: int = 0
    """Token that a text begins with."""
    begins: bool = False
    """Whether each window begins with `bos`, as the model's tokenizer puts it before a text."""

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping) or not isinstance(self.model_type, str):
            raise ConfigError("config.json does not say its model_type")
        if not re.fullmatch(MODEL_TYPE, self.model_type):
            raise ConfigError(f"model_type={self.model_type!a:.40} is no name of a model")
        for key, number in numbers(self.values):
            fits = (
                number.bit_length() <= MOST_BITS if type(number) is int else math.isfinite(number)
            )
            if not fits:
                raise ConfigError(f"{key!a:.40} is a number that no file can hold")
        if not _is_count(self.vocab) or self.vocab > MAX_VOCAB:
            raise ConfigError(f"vocab_size={self.vocab!a:.40} must lie in 1..{MAX_VOCAB:,}")
        if not self.context:
            object.__setattr__(self, "context", min(self.reach, MOST_CONTEXT))
        if not 2 <= self.context <= 1 << 20:
            raise ConfigError(f"context={self.context} must lie in 2..{1 << 20:,}")
        if not 0 <= self.bos < self.vocab:
            raise ConfigError(f"bos={self.bos} must lie in 0..{self.vocab - 1}")

    @property
    def model_type(self) -> str:
        """The architecture's name in transformers, such as ``llama``."""
        found: str = self.values.get("model_type", None)
        return found

    @property
    def reach(self) -> int:
        """Tokens that the model's positions reach; `MOST_CONTEXT` where that is not said."""
        return _first_count(self.values, CONTEXTS) or MOST_CONTEXT

    @property
    def vocab(self) -> int:
        """Rows of the token embedding."""
        found: int = self.values.get("vocab_size", 0)
        return found


def portable(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a ``config.json``, and of objects inside, that say what the model is."""
    return {
        key: _portable(value)
        for key, value in values.items()
        if key not in DROPPED and not key.startswith("_") and not key.endswith("_implementation")
    }


def _portable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return portable(value)
    return [_portable(item) for item in value] if isinstance(value, list | tuple) else value


def numbers(value: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """All numbers in `value` but truth values, each with the last key that leads to it."""
    if isinstance(value, Mapping):
        for inner, item in value.items():
            yield from numbers(item, inner)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from numbers(item, key)
    elif type(value) in (int, float):
        yield key, value


def _first_count(values: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    """The first positive integer among the values of `keys`, or 0."""
    return next((values[key] for key in keys if _is_count(values.get(key))), 0)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0
