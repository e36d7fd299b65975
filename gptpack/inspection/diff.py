"""What differs between two packed files, from their headers: bytes, methods, settings, scores."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptpack.inspection.inspect import (
    InspectReport,
    TensorReport,
    flat,
    group_name,
    inspect,
    recorded_quality,
)
from gptpack.inspection.shares import inspect_decoded
from gptpack.values import to_dict


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A group of tensors in one of the files; all zero and empty where the file has none."""

    tensors: int = 0
    parameters: int = 0
    stored_bytes: int = 0
    methods: tuple[str, ...] = ()

    @property
    def bits_per_parameter(self) -> float | None:
        return 8 * self.stored_bytes / self.parameters if self.parameters else None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDiff:
    """Tensors whose names differ in layer numbers only, in both files."""

    name: str
    before: Side
    after: Side

    @property
    def change_bytes(self) -> int:
        return self.after.stored_bytes - self.before.stored_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A value that the headers give differently; None where a header lacks it."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffReport:
    """Two files side by side."""

    before: InspectReport
    after: InspectReport
    same_weights: bool
    """Both stand for the same float32 weights, bit for bit."""
    groups: tuple[GroupDiff, ...]
    """In the order of the first file, then what only the second has; the header's own last."""
    settings: tuple[Setting, ...]

    @property
    def change_bytes(self) -> int:
        return self.after.file_bytes - self.before.file_bytes

    @property
    def change_bpb(self) -> float | None:
        """Of the recorded figures, where both are of as many tokens at one context."""
        before, after = (recorded_quality(side.pack) for side in (self.before, self.after))
        alike = all(before.get(key) == after.get(key) for key in ("tokens", "context"))
        if not alike or "bpb_after" not in before or "bpb_after" not in after:
            return None
        return after["bpb_after"] - before["bpb_after"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "before": _summary(self.before),
            "after": _summary(self.after),
            "change_bytes": self.change_bytes,
            "change_bpb": self.change_bpb,
            "same_weights": self.same_weights,
            "groups": [
                {**dataclasses.asdict(group), "change_bytes": group.change_bytes}
                for group in self.groups
            ],
            "settings": [dataclasses.asdict(setting) for setting in self.settings],
        }


def _summary(report: InspectReport) -> dict[str, Any]:
    return {
        "path": report.path,
        "file_bytes": report.file_bytes,
        "parameters": report.parameters,
        "header_sha256": report.header_sha256,
        "weights_sha256": report.weights_sha256,
        "quality": recorded_quality(report.pack),
    }


def diff(before: str | Path, after: str | Path, *, decode: bool = False) -> DiffReport:
    """Compare the headers of two files.

    Args:
        decode: also decode both, to see what each tensor takes; else a section is shared out over
            its tensors in proportion to raw bytes.

    Raises:
        GptpackError: one of them cannot be read.
        ArtifactError: a preamble or header is corrupt.
    """
    look = inspect_decoded if decode else inspect
    first, second = look(before), look(after)
    header = "(header)"
    sides = [
        {**_sides(report.tensors), header: Side(stored_bytes=report.header_bytes)}
        for report in (first, second)
    ]
    names = [name for name in dict.fromkeys([*sides[0], *sides[1]]) if name != header]
    return DiffReport(
        before=first,
        after=second,
        same_weights=first.weights_sha256 == second.weights_sha256,
        groups=tuple(
            GroupDiff(
                name=name, before=sides[0].get(name, Side()), after=sides[1].get(name, Side())
            )
            for name in [*names, header]
        ),
        settings=tuple(_settings(first, second)),
    )


def _sides(tensors: Iterable[TensorReport]) -> dict[str, Side]:
    found: dict[str, Side] = {}
    for tensor in tensors:
        name = group_name(tensor.name)
        side = found.get(name, Side())
        found[name] = Side(
            tensors=side.tensors + 1,
            parameters=side.parameters + tensor.parameters,
            stored_bytes=side.stored_bytes + tensor.stored_bytes,
            methods=tuple(sorted({*side.methods, tensor.method})),
        )
    return found


def _settings(before: InspectReport, after: InspectReport) -> Iterable[Setting]:
    """What the headers say differently of model, tokenizer, packing and sections' codecs."""
    first, second = (dict(flat(_header(report))) for report in (before, after))
    for name in dict.fromkeys([*first, *second]):
        if first.get(name) != second.get(name):
            yield Setting(name=name, before=first.get(name), after=second.get(name))


def _header(report: InspectReport) -> Mapping[str, Any]:
    return {
        "model": report.model,
        "tokenizer": to_dict(report.tokenizer),
        "pack": report.pack,
        "codec": {section.name: section.codec for section in report.sections},
    }
