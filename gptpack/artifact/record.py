"""A header's `pack` <-> provenance and measured quality, as typed values.

The size of a file must be known before the figures that are measured last; `widest` is the record
with as many digits as those may have.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

MOST_BPB = 1000.0
"""Bound of bits per byte; no evaluation gives as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Figures measured on a file before it got its name; None stands for one that was not."""

    bpb_before: float | None = None
    """Bits per byte of the model before packing, plain evaluation."""
    bpb_after: float | None = None
    """Bits per byte of the file, reloaded in a fresh process."""
    context: int | None = None
    """Tokens of a window."""
    tokens: int | None = None
    """Targets that were scored."""

    @classmethod
    def from_dict(cls, values: Any) -> "Quality":
        """The figures in a hostile header's JSON; those that make no sense are left out."""
        if not isinstance(values, Mapping):
            return cls()
        return cls(
            bpb_before=_score(values.get("bpb_before")),
            bpb_after=_score(values.get("bpb_after")),
            context=_count(values.get("context"), least=1),
            tokens=_count(values.get("tokens"), least=1),
        )

    def to_dict(self) -> dict[str, Any]:
        """The figures that are known, for a header."""
        return _known(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRecord:
    """Provenance and quality of a packed file; None stands for what a header does not say."""

    gptpack: str | None = None
    """Version of the package that packed."""
    method: str | tuple[tuple[str, str], ...] | None = None
    """The method of all tensors, or (pattern of names, method) pairs of which the last counts."""
    budget_bytes: int | None = None
    """Most bytes that file and code were allowed to have."""
    code_bytes: int | None = None
    """Bytes of source code that count towards the budget."""
    step_factors: tuple[tuple[str, float], ...] | None = None
    """(pattern of names, factor) pairs: how many times the common delta a matrix' own is."""
    checkpoint_sha256: str | None = None
    """SHA-256 of the checkpoint's file."""
    step: int | None = None
    """Optimizer steps that the checkpoint was trained for."""
    assumed: tuple[str, ...] | None = None
    """What the checkpoint did not say of its model and was taken for granted, such as
    ``context=1024``."""
    calibration: str | None = None
    """Source of the calibration text: shards, text, given, self or random."""
    calibration_tokens: int | None = None
    """Tokens that the Hessians are sums over."""
    tuned_steps: int | None = None
    """Optimizer steps of tuning."""
    tuned_labels: float | None = None
    """Weight of the text's cross entropy in the loss of tuning."""
    delta: float | None = None
    """The one number that sets how fine all grids are."""
    predicted_nats: float | None = None
    """Rise of the loss at that delta by the second order alone, nats per token: what deltas are
    compared by. At few bits the measured rise is several times as large."""
    quality: Quality = Quality()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PackRecord":
        """The record in a hostile header's `pack`; fields that make no sense are left out."""
        known: dict[str, Any] = {}
        for name in ("gptpack", "checkpoint_sha256", "calibration"):
            known[name] = _text(values.get(name))
        for name in ("budget_bytes", "code_bytes", "step", "calibration_tokens", "tuned_steps"):
            known[name] = _count(values.get(name), least=0)
        for name in ("tuned_labels", "delta", "predicted_nats"):
            known[name] = _number(values.get(name))
        method = values.get("method")
        known["method"] = _text(method) or _pairs(method, str)
        known["assumed"] = _texts(values.get("assumed"))
        known["step_factors"] = _pairs(values.get("step_factors"), float)
        return cls(**known, quality=Quality.from_dict(values.get("quality")))

    def to_dict(self) -> dict[str, Any]:
        """The fields that are known, for a header."""
        return _known(self)

    def widest(self, *, proved: bool) -> "PackRecord":
        """This record with the longest figures in place of those that are known last.

        The budget's digits are replaced as well, so that a file's size does not depend on the
        budget that it is made for.

        Args:
            proved: whether quality will be measured.
        """
        return replace(
            self,
            budget_bytes=9876543210,
            code_bytes=9876543,
            delta=0.000123456,
            predicted_nats=0.0123456,
            quality=WIDEST_QUALITY if proved else self.quality,
        )


WIDEST_QUALITY = Quality(bpb_before=9.876543, bpb_after=9.876543, context=65536, tokens=9999999999)


def _known(record: Quality | PackRecord) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in fields(record):
        value = getattr(record, each.name)
        if isinstance(value, Quality):
            value = value.to_dict() or None
        if isinstance(value, tuple):
            value = [item if isinstance(item, str) else list(item) for item in value]
        if value is not None:
            found[each.name] = value
    return found


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: Any) -> tuple[str, ...] | None:
    right = type(value) is list and all(isinstance(text, str) for text in value)
    return tuple(value) if right else None


def _count(value: Any, *, least: int) -> int | None:
    return value if type(value) is int and least <= value < 1 << 63 else None


def _number(value: Any) -> float | None:
    small = type(value) is int and abs(value) < 1 << 53
    return float(value) if small or (type(value) is float and math.isfinite(value)) else None


def _score(value: Any) -> float | None:
    return value if type(value) is float and 0 <= value < MOST_BPB else None


def _pairs(value: Any, kind: type) -> tuple[tuple[str, Any], ...] | None:
    """The (string, `kind`) pairs in a list of such pairs; None of anything else."""
    if type(value) is not list or not all(type(item) is list for item in value):
        return None
    right = all([*map(type, item)] == [str, kind] for item in value)
    return tuple((pattern, given) for pattern, given in value) if right else None
