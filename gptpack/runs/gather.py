"""Paths -> `Source`: what runs left for a report, which is packed files, metrics, curves, JSON.

A source is a run's folder, or one of those files. Anything may be missing, but a file that is there
and cannot be read is an error.
"""

import codecs
import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptpack.errors import ConfigError, DataError
from gptpack.inputs import MODELS, file_sha256, kind_of, opened, read_text
from gptpack.inspection.inspect import InspectReport, inspect
from gptpack.runs.metrics import read_metrics

METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
LONGEST_LINE = 1 << 12
"""Bytes of a file's first line that show what it is."""
LONGEST_SECONDS = 1e12
"""Bound of a time; a longer one is passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFile:
    """A packed file, and what the reports beside it say of it."""

    name: str
    report: InspectReport
    sha256: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of packing and of evaluation by phase, where a report says them."""
    sliding_bpb: float | None = None
    checkpoint: Path | None = None
    """The checkpoint beside the file, which may be the one that it was made of."""

    @property
    def quality(self) -> dict[str, float]:
        return self.report.record.quality.to_dict()


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points of size and bits per byte from a file of ``gptpack pack --curve``."""

    name: str
    points: tuple[Mapping[str, float], ...]
    """Points with ``bytes``, and ``measured`` or ``predicted`` bits per byte or both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What one path has to show."""

    name: str
    packed: tuple[PackedFile, ...] = ()
    metrics: tuple[Mapping[str, Any], ...] = ()
    curves: tuple[Curve, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of training by phase."""


def gather(paths: Sequence[Path]) -> list[Source]:
    """Read every source; their names differ.

    Raises:
        ConfigError: a path is not there, or is given twice, or a folder has nothing to show.
        GptpackError: a file cannot be read.
    """
    names = _names(paths)
    return [_source(path, name) for path, name in zip(paths, names, strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    resolved = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, resolved), default=1) + 1):
        names = ["/".join(parts[-count:]) for parts in resolved]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("one path is given twice; name each run once")


def _source(path: Path, name: str) -> Source:
    if path.is_dir():
        return _folder(path, name)
    try:
        with opened(path) as file:
            start = file.readline(LONGEST_LINE)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read it: {error.strerror}; give a run's folder or a packed file"
        ) from error
    if kind_of(path) in MODELS:  # whatever its first bytes look like
        return Source(name=name, packed=(_packed(path, name, ()),))
    start = start.removeprefix(codecs.BOM_UTF8)
    if start.startswith(b"{"):
        return Source(name=name, metrics=tuple(read_metrics(path)))
    if b"," in start and start.isascii():
        return Source(name=name, curves=(read_curve(path, name),))
    beside = list(reports(path.parent))
    return Source(name=name, packed=(_packed(path, name, beside),))


def _folder(path: Path, name: str) -> Source:
    beside = list(reports(path))
    metrics = path / METRICS
    found = Source(
        name=name,
        packed=tuple(
            _packed(file, f"{name}/{file.name}", beside)
            for file in sorted(path.glob("[!.]*.gptpack"))
        ),
        metrics=tuple(read_metrics(metrics)) if metrics.exists() else (),
        curves=tuple(
            read_curve(file, f"{name}/{file.name}") for file in sorted(path.glob("[!.]*.csv"))
        ),
        seconds=_training_seconds(beside),
    )
    if not (found.packed or found.metrics or found.curves):
        raise ConfigError(
            f"{path}: no *.gptpack, {METRICS} or *.csv to show; "
            "give a run's folder or a packed file"
        )
    return found


def reports(folder: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects in the .json files of a folder; files that hold none are passed over."""
    for path in sorted(folder.glob("*.json")):
        try:
            values = json.loads(read_text(path))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            yield values


def _packed(path: Path, name: str, beside: Sequence[dict[str, Any]]) -> PackedFile:
    """A packed file with the reports that name it."""
    report = inspect(path, decode=True)
    sha256 = file_sha256(path)
    packings = [values for values in beside if values.get("sha256") == sha256]
    seconds: dict[str, float] = {}
    for values in packings:
        seconds |= _phases(values.get("seconds"), "")
    sliding = None
    proofs = [packing["after"] for packing in packings if "after" in packing]
    for values in [*proofs, *beside]:
        if not _evaluates(values, report.weights_sha256):
            continue
        if values not in proofs:  # the time of a proof is in that of packing
            seconds |= _phases(values.get("seconds"), "eval ")
        score = values.get("sliding")
        bpb = score.get("bpb") if isinstance(score, dict) else None
        if type(bpb) is float and math.isfinite(bpb):
            sliding = bpb
    checkpoint = path.with_name(CHECKPOINT)
    return PackedFile(
        name=name,
        report=report,
        sha256=sha256,
        seconds=seconds,
        sliding_bpb=sliding,
        checkpoint=checkpoint if checkpoint.exists() else None,
    )


def _evaluates(values: Any, weights_sha256: str) -> bool:
    """Whether a report is of ``gptpack eval`` on a file with these weights."""
    file = values.get("file") if isinstance(values, dict) else None
    return isinstance(file, dict) and file.get("weights_sha256") == weights_sha256


def _phases(values: Any, prefix: str) -> dict[str, float]:
    """Seconds by phase, from what a report has under ``seconds``."""
    if not isinstance(values, dict):
        return {}
    return {
        f"{prefix}{phase}": float(spent)
        for phase, spent in values.items()
        if type(spent) in (int, float) and 0 <= spent < LONGEST_SECONDS
    }


def _training_seconds(beside: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Seconds by phase from the report of ``gptpack train --json``, if it is there."""
    for values in beside:
        if "steps" in values and "compile_seconds" in values:
            phases = {"train": values.get("seconds"), "compile": values["compile_seconds"]}
            return _phases(phases, "")
    return {}


def read_curve(path: Path, name: str) -> Curve:
    """Read a table of sizes and bits per byte; the names of its columns say which are which.

    Raises:
        DataError: it cannot be read, lacks one of the columns, or holds something that is no
            number.
    """
    try:
        rows = list(csv.DictReader(read_text(path).splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot read the curve: {error}") from error
    header = list(rows[0]) if rows else []
    columns = {
        "bytes": _column(header, ("bytes",)),
        "predicted": _column(header, ("predicted",)),
        "measured": _column(header, ("measured", "bpb_after")) or _column(header, ("bpb",)),
    }
    if columns["measured"] == columns["predicted"]:
        columns["measured"] = None
    if columns["bytes"] is None or not (columns["predicted"] or columns["measured"]):
        raise DataError(
            f"{path}: needs a column of bytes and one of predicted or measured bpb, has "
            f"{', '.join(map(str, header)) or 'no rows'}"
        )
    try:
        points = tuple(
            {key: float(row[c]) for key, c in columns.items() if c is not None and row[c]}
            for row in rows
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: a value is no number: {error}") from error
    if not all(math.isfinite(value) for point in points for value in point.values()):
        raise DataError(f"{path}: a value is not finite")
    if not all("bytes" in point and len(point) > 1 for point in points):
        raise DataError(f"{path}: each row needs bytes and a score")
    return Curve(name=name, points=points)


def _column(header: Sequence[str], words: Sequence[str]) -> str | None:
    """The first column whose name has one of `words`."""
    return next((c for c in header if c and any(word in c.lower() for word in words)), None)
