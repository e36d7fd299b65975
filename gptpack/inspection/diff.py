"""The reports on two packed files -> what differs: bytes, methods, settings, recorded scores."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gptpack.evaluation.result import Score
from gptpack.inspection.compare import WeightErrors
from gptpack.inspection.inspect import (
    InspectReport,
    TensorReport,
    flat,
    group_name,
)
from gptpack.values import to_dict

HEADER, FILES = "(header)", "(files)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A group of tensors in one of the files; all zero and empty where the file has none."""

    tensors: int = 0
    parameters: int = 0
    stored_bytes: int = 0
    methods: tuple[str, ...] = ()

    @property
    def bits_per_parameter(self) -> float | None:
        """Stored bits for each number; None where there is none."""
        return 8 * self.stored_bytes / self.parameters if self.parameters else None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDiff:
    """Tensors whose names differ in layer numbers only, in both files."""

    name: str
    before: Side
    after: Side

    @property
    def change_bytes(self) -> int:
        """Stored bytes of the second file, less those of the first."""
        return self.after.stored_bytes - self.before.stored_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A value that the headers give differently; None where a header lacks it."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffReport:
    """Two files side by side; a change is the second's figure less the first's."""

    before: InspectReport
    after: InspectReport
    same_weights: bool
    """Whether both stand for the same float32 weights, bit for bit."""
    groups: tuple[GroupDiff, ...]
    """Groups in the order of the first file, then what only the second has, then what is beside
    tensors."""
    settings: tuple[Setting, ...]
    weights: WeightErrors | None = None
    """Errors of the second file's weights against the first's, where asked for."""
    errors: tuple[WeightErrors, WeightErrors] | None = None
    """Errors of each file's weights against those of a checkpoint, where one was given."""
    measured: tuple[Score, Score] | None = None
    """Each file's score by an evaluation, where asked for."""

    @property
    def change_bytes(self) -> int:
        """Bytes of the second file, less those of the first."""
        return self.after.file_bytes - self.before.file_bytes

    @property
    def change_bpb(self) -> float | None:
        """Change of the recorded scores; None unless both are of as many tokens at one context."""
        before, after = (side.record.quality for side in (self.before, self.after))
        alike = (before.tokens, before.context) == (after.tokens, after.context)
        if not alike or before.bpb_after is None or after.bpb_after is None:
            return None
        return after.bpb_after - before.bpb_after

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = {
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
        if self.weights is not None:
            rows = [dataclasses.asdict(row) for row in self.weights.tensors]
            values["weights"] = {"relative": self.weights.relative, "tensors": rows}
        if self.errors is not None:
            first, second = self.errors
            later = {row.name: row.relative for row in second.tensors}
            values["errors"] = {
                "before": first.relative,
                "after": second.relative,
                "tensors": [
                    {"name": row.name, "before": row.relative, "after": later[row.name]}
                    for row in first.tensors
                ],
            }
        if self.measured is not None:
            before, after = (score.to_dict() for score in self.measured)
            values["measured"] = {"before": before, "after": after}
        return values


def _summary(report: InspectReport) -> dict[str, Any]:
    return {
        "path": report.path,
        "file_bytes": report.file_bytes,
        "parameters": report.parameters,
        "header_sha256": report.header_sha256,
        "weights_sha256": report.weights_sha256,
        "quality": report.record.quality.to_dict(),
    }


def diff_reports(before: InspectReport, after: InspectReport) -> DiffReport:
    """What two reports say differently."""
    first, second = ({**_sides(report.tensors), **_beside(report)} for report in (before, after))
    beside = [name for name in (FILES, HEADER) if name in first or name in second]
    names = [name for name in dict.fromkeys([*first, *second]) if name not in beside]
    return DiffReport(
        before=before,
        after=after,
        same_weights=before.weights_sha256 == after.weights_sha256,
        groups=tuple(
            GroupDiff(name=name, before=first.get(name, Side()), after=second.get(name, Side()))
            for name in [*names, *beside]
        ),
        settings=tuple(_settings(before, after)),
    )


def _beside(report: InspectReport) -> dict[str, Side]:
    """What a file holds beside tensors: files that go with the model, and the header."""
    files = {FILES: Side(stored_bytes=report.files_bytes)} if report.files else {}
    return {**files, HEADER: Side(stored_bytes=report.header_bytes)}


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
        "family": report.family,
        "model": report.model,
        "tokenizer": report.tokenizer and to_dict(report.tokenizer),
        "files": report.files,
        "pack": report.pack,
        "codec": {section.name: section.codec for section in report.sections},
    }
