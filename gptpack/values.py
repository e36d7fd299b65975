"""Values as text: sizes in bytes, frozen dataclasses <-> plain values, and which tokenizer.

Configuration consists of frozen dataclasses that are checked where they are made. `from_dict` makes
one of plain values, as TOML and JSON have them; unknown keys and wrong types are errors.
"""

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from gptpack.errors import ConfigError

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}

MOST_DIGITS = 18
"""Digits that a size may have; all such sizes fit into 64 bits."""
MOST_BITS = 63
"""Bits that an integer setting may have, without its sign."""
MAX_VOCAB = 1 << 20
"""Largest vocabulary of a tokenizer or a model."""
MAX_CONTEXT = 1 << 20
"""Longest window of a model, in tokens."""
LEAST_FLOAT, MOST_FLOAT = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""Bounds of a setting that is no integer and not 0, up to its sign: those of a normal float32."""


def parse_size(text: str) -> int:
    """Bytes that `text` stands for: ``16MB`` is 16,000,000 and ``16MiB`` is 16,777,216.

    Raises:
        ConfigError: not a number with one of the units, or not a whole number of bytes.
    """
    # a comma that parts no three digits is a decimal one, and would be read as ten times as much
    number = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]+)?"
    match = re.fullmatch(rf"\s*({number})\s*([A-Za-z]*)\s*", text)
    unit = UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        short = match is not None and f"{match[2]}B".upper() in UNITS
        meant = f"{text.strip()}B" if short else "16MB or 16MiB"
        raise ConfigError(f"size '{text}': write a number and a unit, such as {meant}")
    whole, _, fraction = match[1].replace(",", "").replace("_", "").partition(".")
    if len(whole + fraction) > MOST_DIGITS:
        raise ConfigError(
            f"size of {len(whole + fraction):,} digits: write at most {MOST_DIGITS} and a unit, "
            "such as 16MB or 16MiB"
        )
    numerator = int(whole + fraction) * unit
    size_bytes, remainder = divmod(numerator, int(10 ** len(fraction)))
    if remainder:
        more = "" if match[2] else f", or did you mean {text.strip()}MB?"
        raise ConfigError(f"size '{text}' is not a whole number of bytes; write it in bytes{more}")
    return size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerIdentity:
    """The identity of the tokenizer that a model's tokens belong to."""

    sha256: str
    """Hexadecimal digest of its file."""
    vocab: int
    bos: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ConfigError(f"tokenizer sha256 '{self.sha256}' is not 64 hexadecimal digits")
        if not 1 <= self.vocab <= MAX_VOCAB:
            raise ConfigError(f"tokenizer vocab={self.vocab} must lie in 1..{MAX_VOCAB}")
        if not 0 <= self.bos < self.vocab:
            raise ConfigError(f"tokenizer bos={self.bos} must lie in 0..{self.vocab - 1}")


Config = TypeVar("Config")
Check = tuple[str, Callable[[Any], bool]]
"""A condition: what a value must do, in words that follow "must", and the test of it."""

POSITIVE: Check = ("be at least 1", lambda value: value >= 1)
NOT_NEGATIVE: Check = ("not be negative", lambda value: value >= 0)
SHARE: Check = ("lie in [0, 1]", lambda value: 0 <= value <= 1)
BELOW_ONE: Check = ("lie in [0, 1)", lambda value: 0 <= value < 1)


def check_fields(config: Any, check: Check, names: str) -> None:
    """Hold the fields of `config` whose names stand in `names`, between spaces, to one condition.

    Raises:
        ConfigError: one does not meet it; names the field and its value.
    """
    what, holds = check
    for name in names.split():
        if not holds(value := getattr(config, name)):
            raise ConfigError(f"{name}={value} must {what}")


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error about a `word` that is none of those `known`: the nearest one, if any."""
    found = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def check_choice(name: str, value: Any, choices: Sequence[str | None]) -> None:
    """Raise the `ConfigError` of a setting that is none of `choices`, of which None has no name."""
    if value not in choices:
        known = list(filter(None, choices))
        raise ConfigError(
            f"{name}={value!r}: choose {', '.join(known)}{nearest(str(value), known)}"
        )


def check_idle(circumstance: str, idle: bool, **given: object) -> None:
    """Raise the `ConfigError` of settings that are `given` where they are `idle`.

    Args:
        circumstance: why they would do nothing, such as ``without --data``.
    """
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if idle and names:
        does = "does" if len(names) == 1 else "do"
        raise ConfigError(f"{', '.join(names)} {does} nothing {circumstance}")


def to_dict(config: Any) -> dict[str, Any]:
    """`config` as plain dictionaries, lists and scalars; `from_dict` reads it back."""
    plain = dataclasses.asdict(config)

    def listed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: listed(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return {key: listed(value) for key, value in plain.items()}


def non_default(config: Any) -> dict[str, Any]:
    """The items of `to_dict` that differ from the defaults of the configuration's class."""
    defaults = to_dict(type(config)())
    return {key: value for key, value in to_dict(config).items() if value != defaults[key]}


def from_dict(cls: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """Build `cls` from plain values; the types are checked against its annotations.

    Raises:
        ConfigError: an unknown key or a value of the wrong type; names its dotted path.
    """
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else key
        if key not in hints:
            known = ", ".join(sorted(hints))
            raise ConfigError(f"unknown setting '{path}'; there are: {known}{nearest(key, hints)}")
        arguments[key] = _coerce(hints[key], value, path)
    return cls(**arguments)


def _coerce(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ConfigError(
            f"{path} is an integer of {value.bit_length()} bits; it may have {MOST_BITS} and a sign"
        )
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(typing.cast(type[Any], hint), value, path)
    if origin is Literal and value in typing.get_args(hint):
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_coerce(typing.get_args(hint)[0], item, path) for item in value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{path}={value!r} must be a finite number")
        if value and not LEAST_FLOAT <= abs(value) <= MOST_FLOAT:
            raise ConfigError(
                f"{path}={value!r} must be 0, or lie within {LEAST_FLOAT:.3g} and {MOST_FLOAT:.3g} "
                "as float32 does"
            )
        return float(value)
    if origin is Mapping and isinstance(value, dict):
        return value
    if hint in (int, str, bool) and type(value) is hint:
        return value
    wanted = getattr(hint, "__name__", hint)
    if origin is Literal:
        wanted = "one of " + ", ".join(map(str, typing.get_args(hint)))
    if origin is tuple:
        wanted = "a list"
    raise ConfigError(f"{path}={value!r} must be {wanted}")
