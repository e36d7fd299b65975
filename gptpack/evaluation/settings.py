"""Text such as ``sgd:lr=0.002,epochs=3`` or ``lora:rank=8`` <-> settings of test-time training.

They say how a model adapts to the text that it has been scored on. `describe` is for a result.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptpack.errors import ConfigError
from gptpack.values import BELOW_ONE, NOT_NEGATIVE, check_fields, from_dict


@dataclass(frozen=True, slots=True, kw_only=True)
class SgdSettings:
    """SGD of all weights on each chunk of text once it is scored (parameter-golf #549, #1060)."""

    lr: float = 0.002
    """Learning rate on the first chunk; it falls to 0 with the last as half a cosine."""
    epochs: int = 3
    momentum: float = 0.9
    clip: float = 1.0
    """Largest global gradient norm; 0 does not clip."""
    chunk: int = 32768
    """Targets that are scored, then trained on."""
    rows: int = 32
    """Most training rows of one context each in a step, over all ranks."""
    reset: int = 0
    """Chunks after which weights are the file's again, without momentum; 0 never."""
    freeze: int = 0
    """Number of blocks, the first ones, that stay as they are."""

    def __post_init__(self) -> None:
        _positive(self, "lr", "epochs", "chunk", "rows")
        check_fields(self, NOT_NEGATIVE, "clip reset freeze")
        check_fields(self, BELOW_ONE, "momentum")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """Low-rank additions to some matrices, learned anew for each document (parameter-golf #77).

    A document's own chunks are scored and trained on in turn, within its own text. Where not said,
    the settings are those of #77; #1530 has ``rank=80,alpha=144,lr=1e-4,decay=0.5,chunk=48`` on
    all matrices.
    """

    rank: int = 8
    alpha: float = 0.0
    """Times `rank`, the scale of the product of the two factors: ``alpha / rank``; 0 is `rank`."""
    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    decay: float = 0.0
    """Decoupled weight decay."""
    steps: int = 1
    """Gradient steps on each chunk."""
    chunk: int = 256
    """Targets that are scored, then trained on; the stride of the evaluation."""
    documents: int = 64
    """Most documents that are worked on side by side; no score depends on it."""
    targets: str = "c_q+c_v"
    """Last names of the linear layers that get factors, joined by ``+``; ``hidden`` is the state
    that the output head reads."""

    def __post_init__(self) -> None:
        _positive(self, "rank", "lr", "steps", "chunk", "documents")
        check_fields(self, NOT_NEGATIVE, "alpha decay")
        check_fields(self, BELOW_ONE, "beta1 beta2")
        if not all(self.targets.split("+")):
            raise ConfigError(f"targets={self.targets!r}: write names joined by +, such as c_q+c_v")

    @property
    def scale(self) -> float:
        """Factor of the additions."""
        return (self.alpha or self.rank) / self.rank


LARGEST_COUNT = 2**31
"""Largest count of targets, rows, documents or epochs; no text or patience has more."""

Settings = SgdSettings | LoraSettings

_KINDS: dict[str, type[SgdSettings] | type[LoraSettings]] = {
    "sgd": SgdSettings,
    "lora": LoraSettings,
}

SWEEP = {
    "A": "sgd:lr=0.002,epochs=3",
    "B": "sgd:lr=0.0025,epochs=4",
    "C": "sgd:lr=0.0025,epochs=4,reset=100",
    "D": "sgd:lr=0.0025,epochs=4,reset=50",
}
"""Four settings, swept on one checkpoint to see whether drift keeps test-time training from
helping: two known ones, and the second with two kinds of resets."""


def parse_settings(text: str) -> Settings:
    """Settings from ``kind:key=value,key=value``; fields that are not named keep their defaults.

    Raises:
        ConfigError: the kind or a key is unknown, or a value does not fit.
    """
    kind, _, rest = text.partition(":")
    if kind not in _KINDS:
        raise ConfigError(
            f"'{text}': write {' or '.join(f'{name}:key=value,...' for name in _KINDS)}, or sweep"
        )
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, found, value = part.partition("=")
        if not found:
            raise ConfigError(f"'{text}': '{part}' is not key=value")
        values[key.strip()] = _number(value.strip())
    return from_dict(_KINDS[kind], values, kind)


def named_settings(texts: Sequence[str]) -> dict[str, Settings]:
    """Each way of test-time training by the name of its score; ``sweep`` stands for four.

    Raises:
        ConfigError: see `parse_settings`.
    """
    named: dict[str, str] = {}
    for text in texts:
        if text == "sweep":
            named |= {f"ttt {letter}": setting for letter, setting in SWEEP.items()}
        else:
            named[f"ttt {len(named) + 1}" if len(texts) > 1 else "ttt"] = text
    return {name: parse_settings(text) for name, text in named.items()}


def describe(settings: Settings) -> str:
    """All fields, as in ``ttt-sgd(lr=0.002, epochs=3, ...)``, so that the run can be repeated."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(settings, cls))
    parts = [f"{key}={value}" for key, value in dataclasses.asdict(settings).items()]
    return f"ttt-{kind}({', '.join(parts)})"


def brief(settings: Settings) -> str:
    """Those fields of `describe` that differ from their defaults or matter most."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(settings, cls))
    always = ("lr", "epochs") if isinstance(settings, SgdSettings) else ("rank", "lr", "chunk")
    defaults = dataclasses.asdict(type(settings)())
    parts = [
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in dataclasses.asdict(settings).items()
        if key in always or value != defaults[key]
    ]
    return f"ttt-{kind}({', '.join(parts)})"


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _positive(settings: Settings, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not value > 0:
            raise ConfigError(f"{name}={value} must be above 0")
        if isinstance(value, int) and value > LARGEST_COUNT:
            raise ConfigError(f"{name}={value} must be at most {LARGEST_COUNT}")
