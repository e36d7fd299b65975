"""What one asks of a pack, as text or numbers -> one frozen value, checked where it is made."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from gptpack.codec.sections import codec_names
from gptpack.errors import ConfigError, DataError
from gptpack.evaluation.plain_text import text_files
from gptpack.inputs import once
from gptpack.packing.config import PackConfig
from gptpack.values import SHARE, Check, check_choice, check_fields, check_idle, parse_size

Calibration = Literal["shards", "text", "self", "random"]
Tune = Literal["none", "floats", "deep"]
CHOICES: dict[str, tuple[str | None, ...]] = {
    "calibration": (None, *get_args(Calibration)),
    "tune": get_args(Tune),
    "device": ("auto", "cpu", "cuda"),
}
SOME: Check = ("be a number above 0", lambda v: v is None or (_number(v) and 0 < v < math.inf))
DELTA: Check = (
    "be a number of 1e-12 to 1e12",
    lambda v: v is None or (_number(v) and 1e-12 <= v <= 1e12),
)
COUNT: Check = ("be a whole number below 2^63", lambda v: type(v) is int and 0 <= v < 2**63)
WIDTH: Check = ("be a whole number above 0", lambda v: v is None or (type(v) is int and v > 0))
BYTES: Check = (
    "be text such as 16MB, or a whole number above 0",
    lambda v: v is None or isinstance(v, str) or (type(v) is int and v > 0),
)
SWITCH: Check = ("be True or False", lambda v: type(v) is bool)
SEVERAL: Check = ("be a tuple or list", lambda v: isinstance(v, tuple | list))


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRequest:
    """What one asks of a pack. One of `budget`, `max_rise`, `bits` and `delta` says how large the
    file is."""

    budget: str | int | None = None
    """Most bytes of the file and of the files in `code`: a number, or such as 16MB or 16MiB."""
    max_rise: float | None = None
    """Most bits per byte that the file may cost, on the text that proves; the smallest file found
    is made. Up to 8 files are coded and measured to find it."""
    bits: float | None = None
    """Most coded bits that a weight on a grid may take."""
    delta: float | None = None
    """The delta that sets all grids, whatever the file takes."""
    output: str | Path | None = None
    """Where the file goes; None writes nothing."""
    force: bool = False
    """Whether a packed file that stands there is replaced."""
    data: str | Path | None = None
    """Folder of shards: those of train calibrate and tune, those of val prove."""
    text: tuple[str | Path, ...] = ()
    """Files of text that calibrate and tune, by the tokenizer that came with the model; never those
    that prove."""
    eval_text: tuple[str | Path, ...] = ()
    """Files of text that prove, by that tokenizer."""
    tokenizer: str | Path | None = None
    """The tokenizer's file; None takes what the checkpoint says, else the one in `data`."""
    model: str | None = None
    """Recipe, by file or name, whose ``[model]`` a bare state dict has."""
    methods: tuple[str, ...] = ()
    """METHOD for all tensors, or PATTERN=METHOD by name, of which the last that matches counts:
    int8, gptq-int4 to gptq-int8, gptq-uniform, gptq-trellis (where nothing is said), float16."""
    delta_factors: tuple[str, ...] = ()
    """PATTERN=FACTOR: how many times the delta of all grids matching matrices get."""
    states: int = 256
    """States of the trellis, a power of two from 4 to 256."""
    strict: bool = False
    """Whether a tensor that falls back to int8 is an error."""
    codecs: tuple[str, ...] = ()
    """Codecs to try: raw, zlib, zstd, lzma, range, brotli; ``auto``, or none named, are zlib, zstd
    and range. On large matrices of codes range is tried alone where it is among them."""
    code: tuple[str | Path, ...] = ()
    """Files whose bytes count into the budget too."""
    calibration: Any = None
    """Text for the Hessians: training shards, `text`, text that the model writes itself, or random
    tokens; or an array or tensor of tokens, which tuning sees too. None takes shards where `data`
    has those of train, `text` where it is given, else the model's own."""
    calibration_tokens: int = 0
    """Tokens of that text; 0 takes 524,288 on CUDA, and on a CPU 65,536, or 16,384 of the
    model's own."""
    seed: int = 0
    """Seed of the choice of calibration text."""
    keep: bool = True
    """Whether Hessians, and text that the model wrote, are kept beside the checkpoint for its next
    pack, in hidden files that may be deleted. Those that are there are read either way."""
    tune: Tune = "none"
    """What trains against the unpacked model: nothing, what is not coded once all is coded
    (``floats``), or what is not coded yet, layer by layer (``deep``)."""
    tune_labels: float = 0.0
    """Weight of cross entropy on the text in tuning; the rest is KL to the unpacked model."""
    tune_seconds: float | None = None
    """Seconds of tuning after the first search; None makes a number of steps."""
    eval_tokens: int = 0
    """Prove on the first so many validation targets; 0 proves on all."""
    stride: int | None = None
    """Also measure a sliding window that moves by so many tokens."""
    plan: bool = False
    """Find out what would be made, and no more: nothing is written, kept or proved."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""

    def __post_init__(self) -> None:
        for each in fields(self):
            if isinstance(value := getattr(self, each.name), np.generic):
                object.__setattr__(self, each.name, value.item())
        if self.tokens is None and not isinstance(self.calibration, str | None):
            raise ConfigError(_no_tokens(self.calibration))
        for name, choices in CHOICES.items():
            if name != "calibration" or self.tokens is None:
                check_choice(name, getattr(self, name), choices)
        check_fields(self, BYTES, "budget")
        check_fields(self, SOME, "max_rise bits tune_seconds")
        check_fields(self, DELTA, "delta")
        check_fields(self, COUNT, "calibration_tokens eval_tokens seed")
        check_fields(self, WIDTH, "stride states")
        check_fields(self, SWITCH, "force strict keep plan")
        check_fields(self, SHARE, "tune_labels")
        check_fields(self, SEVERAL, "methods delta_factors codecs code text eval_text")
        check_idle(
            "without --tune floats or deep",
            self.tune == "none",
            tune_seconds=self.tune_seconds,
            tune_labels=self.tune_labels,
        )
        check_idle(
            "without --data or --eval-text, which prove the file",
            self.data is None and not self.eval_text,
            stride=self.stride,
            eval_tokens=self.eval_tokens,
        )

    @property
    def sizes(self) -> list[str]:
        """The options given that say how large the file is, of which there is to be one."""
        asked = {
            "--budget": self.budget,
            "--max-rise": self.max_rise,
            "--bits": self.bits,
            "--delta": self.delta,
        }
        return [option for option, value in asked.items() if value is not None]

    @property
    def config(self) -> PackConfig:
        """How tensors are quantized and coded.

        Raises:
            ConfigError: no such method, number of states, codec or factor.
        """
        return PackConfig(
            methods=_methods(self.methods),
            delta_factors=_factors(self.delta_factors),
            states=self.states,
            strict=self.strict,
            codecs=codec_names(self.codecs or PackConfig().codecs),
        )

    @property
    def tokens(self) -> Any:
        """The array or tensor of tokens that was given as `calibration`; else None."""
        return self.calibration if _is_tokens(self.calibration) else None

    @property
    def budget_bytes(self) -> int | None:
        """The budget in bytes; None where the file is not made for one."""
        return parse_size(self.budget) if isinstance(self.budget, str) else self.budget

    def code_bytes(self) -> int:
        """Bytes of the files in `code`, each counted once.

        Raises:
            ConfigError: one cannot be read.
        """
        return sum(map(_code_size, once(self.code)))

    def check_files(self) -> None:
        """Raise the error of text that cannot be read or is empty, or that cannot go together."""
        fitted, proof = (
            {path.resolve() for path in text_files(option, paths)}
            for option, paths in (("--text", self.text), ("--eval-text", self.eval_text))
        )
        if self.data is not None and (fitted or proof):
            raise ConfigError("--data and --text: give one of them")
        if self.data is not None and not Path(self.data).is_dir():
            raise DataError(
                f"{self.data}: not a folder of shards; 'gptpack data tokenize' makes one"
            )
        if fitted & proof:
            raise ConfigError(
                f"{min(fitted & proof)}: --text and --eval-text must be different files, or the "
                "proof would be made on text that the codes were fitted to"
            )

    def check_size(self) -> None:
        """Raise the `ConfigError` of a request that does not say once how large the file is."""
        if len(self.sizes) > 1:
            raise ConfigError(f"{' and '.join(self.sizes)} exclude each other; give one of them")
        if not self.sizes:
            raise ConfigError("give one of --budget, such as 16MB, --max-rise, --bits and --delta")
        if self.max_rise is not None and self.plan:
            raise ConfigError("--max-rise is found by measuring, and --plan measures nothing")
        if self.max_rise is not None and not (self.data or self.eval_text):
            raise ConfigError(
                "--max-rise is measured on text: give --eval-text, or --data with val shards"
            )


def _is_tokens(value: Any) -> bool:
    """Whether this is an array or tensor of integers, of one dimension or two."""
    return hasattr(value, "dtype") and "int" in str(value.dtype) and value.ndim in (1, 2)


def _no_tokens(value: Any) -> str:
    """What is wrong with a `calibration` that is neither a word nor tokens."""
    found = type(value).__name__
    if hasattr(value, "dtype"):
        found += f" of {value.dtype} in {value.ndim} dimensions"
    return (
        f"calibration: a {found}; needed one of shards, text, self and random, or an array or "
        "tensor of integers in 1 or 2 dimensions"
    )


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _methods(options: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(pattern, method) pairs, the one for all tensors first."""
    pairs = [tuple(option.split("=", 1)) if "=" in option else ("*", option) for option in options]
    if sum(pattern == "*" for pattern, _ in pairs) > 1:
        raise ConfigError("--method names several methods for all tensors; write PATTERN=METHOD")
    if not any(pattern == "*" for pattern, _ in pairs):
        pairs.insert(0, ("*", "gptq-trellis"))
    return tuple(sorted(((p, m) for p, m in pairs), key=lambda pair: pair[0] != "*"))


def _factors(options: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    pairs = []
    for option in options:
        pattern, found, text = option.rpartition("=")
        try:
            pairs.append((pattern, float(text)))
        except ValueError:
            found = ""
        if not found:
            raise ConfigError(
                f"--delta-factor {option}: write PATTERN=FACTOR, such as blocks.0.*=0.7"
            )
    return tuple(pairs)


def _code_size(path: Path) -> int:
    try:
        if not path.is_file():
            raise ConfigError(f"--code {path}: no such file; name each file of the code")
        return path.stat().st_size
    except OSError as error:
        raise ConfigError(f"--code {path}: {error.strerror}") from error
