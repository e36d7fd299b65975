"""Whether artifacts keep their limits: existence, checksums, bytes, bits per byte, and the change
against a baseline. Nothing is decoded and torch is not needed; a score is proved by whoever calls.

Every rule that was looked at is an `Outcome`, so that a report shows what held as well.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gptpack.artifact.layout import LFS_POINTER
from gptpack.artifact.reader import verify_sections
from gptpack.errors import ArtifactError, ConfigError, GptpackError, MissingDependencyError
from gptpack.gate.limits import CheckConfig, Limits, expanded, files
from gptpack.inspection.inspect import InspectReport, recorded_quality, report_on
from gptpack.values import parse_size

SCHEMA = 1
"""Version of the JSON that `Result.to_dict` gives and `load_baseline` reads."""
LARGEST_BASELINE_BYTES = 1 << 26
LARGEST_SHOWN = 3
MOST_BPB = 1000.0

State = Literal["pass", "fail", "skip"]
Prove = Callable[[Path, Limits], Mapping[str, Any]]
"""The JSON of ``gptpack eval`` for a file and the sample of its limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One rule, and whether it held."""

    rule: str
    state: State
    text: str
    """What was found, what was allowed, and the way out if it failed."""
    exit_status: int = 0
    """What a failure ends the command with: 1, 3 or 4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bpb:
    """Bits per byte, and of what."""

    value: float
    source: Literal["measured", "recorded"]
    """By this check, or by the packer, who wrote it into the file."""
    tokens: int | None = None
    context: int | None = None
    stride: int | None = None
    text_sha256: str | None = None
    """Of the hashes of the shards, where it was measured."""

    def unlike(self, other: "Bpb") -> str | None:
        """What keeps two figures from being compared, if anything."""
        for name in ("source", "tokens", "context", "stride", "text_sha256"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name.replace('_', ' ')} {mine} here, {theirs} in the baseline"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One artifact and all outcomes."""

    name: str
    path: str
    limits: Limits
    outcomes: tuple[Outcome, ...] = ()
    file_bytes: int | None = None
    code_bytes: int = 0
    budget_bytes: int | None = None
    bpb: Bpb | None = None
    header_sha256: str | None = None
    change_bytes: int | None = None
    """Against the baseline, file and code together."""
    change_bpb: float | None = None

    @property
    def total_bytes(self) -> int | None:
        return None if self.file_bytes is None else self.file_bytes + self.code_bytes

    @property
    def headroom_bytes(self) -> int | None:
        """What the budget leaves; negative when over."""
        if self.budget_bytes is None or self.total_bytes is None:
            return None
        return self.budget_bytes - self.total_bytes

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.state == "fail"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        limits = {key: value for key, value in asdict(self.limits).items() if value != math.inf}
        return {
            "name": self.name,
            "path": self.path,
            "passed": not self.failures,
            "file_bytes": self.file_bytes,
            "code_bytes": self.code_bytes,
            "total_bytes": self.total_bytes,
            "budget_bytes": self.budget_bytes,
            "headroom_bytes": self.headroom_bytes,
            "bpb": self.bpb and asdict(self.bpb),
            "change_bytes": self.change_bytes,
            "change_bpb": self.change_bpb,
            "header_sha256": self.header_sha256,
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
            "limits": limits,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All artifacts of one check."""

    artifacts: tuple[Checked, ...]
    baseline: str = ""

    @property
    def exit_status(self) -> int:
        """3 if a file is corrupt, else 4 if something was missing to look, else 1, else 0."""
        found = {outcome.exit_status for checked in self.artifacts for outcome in checked.failures}
        return next((status for status in (3, 4, 1) if status in found), 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a later check takes them as its baseline."""
        return {
            "schema_version": SCHEMA,
            "passed": self.exit_status == 0,
            "exit_status": self.exit_status,
            "baseline": self.baseline or None,
            "artifacts": [checked.to_dict() for checked in self.artifacts],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What a baseline says of one artifact."""

    total_bytes: int
    bpb: Bpb | None


def check(
    config: CheckConfig,
    *,
    baseline: Mapping[str, Past] | None = None,
    baseline_name: str = "",
    prove: Prove | None = None,
) -> Result:
    """Look at every artifact of `config`.

    Args:
        baseline: earlier figures by the artifact's name; see `load_baseline`.
        prove: measures the bits per byte; None leaves that to what the files have recorded.

    Raises:
        GptpackError: proving failed for a reason that does not lie in the artifact.
    """
    checked = [_check(config.folder, limits, prove) for limits in expanded(config)]
    return Result(
        artifacts=tuple(_compared(item, baseline) for item in checked), baseline=baseline_name
    )


def load_baseline(path: Path, names: list[str]) -> dict[str, Past]:
    """Earlier figures: the JSON of a check, or an artifact, which stands for each of `names`.

    Raises:
        ConfigError: neither of them, or unreadable.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BASELINE_BYTES)
    except OSError as error:
        raise ConfigError(
            f"baseline {path}: {error.strerror}; write one on the main branch with "
            "'gptpack check --output main.json'"
        ) from error
    if not data.lstrip().startswith(b"{"):
        report, total = _header(path)
        return dict.fromkeys(names, Past(total_bytes=total, bpb=recorded_bpb(report)))
    try:
        values = json.loads(data)
        if values["schema_version"] != SCHEMA:
            raise ConfigError(f"baseline {path}: schema {values['schema_version']}, not {SCHEMA}")
        rows = [row for row in values["artifacts"] if row["total_bytes"] is not None]
        return {str(row["name"]): _past(row) for row in rows}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"baseline {path}: not the JSON of 'gptpack check' ({type(error).__name__}: {error})"
        ) from error


def _past(row: Mapping[str, Any]) -> Past:
    """One artifact of a report, which may hold anything; raises as a mapping does."""
    total, bpb = row["total_bytes"], row["bpb"] and Bpb(**row["bpb"])
    if type(total) is not int or not 0 <= total < 1 << 63:
        raise ValueError("total_bytes is no number of bytes")
    if bpb and (type(bpb.value) not in (int, float) or not 0 <= bpb.value < MOST_BPB):
        raise ValueError("bpb.value is no number of bits per byte")
    return Past(total_bytes=total, bpb=bpb or None)


def _header(path: Path) -> tuple[InspectReport, int]:
    """The report on an artifact that serves as baseline, and its bytes with code."""
    try:
        report = report_on(verify_sections(path), str(path))
    except ArtifactError as error:
        raise ConfigError(f"baseline {error}; give a report of 'gptpack check' instead") from error
    return report, report.file_bytes + (report.code_bytes or 0)


def recorded_bpb(report: InspectReport) -> Bpb | None:
    """What the packer wrote into the file about its score, if that is a score."""
    quality = recorded_quality(report.pack)
    if "bpb_after" not in quality:
        return None
    tokens, context = (quality.get(key) for key in ("tokens", "context"))
    return Bpb(
        value=quality["bpb_after"],
        source="recorded",
        tokens=None if tokens is None else int(tokens),
        context=None if context is None else int(context),
    )


def _check(folder: Path, limits: Limits, prove: Prove | None) -> Checked:
    """Existence, format and checksums, bytes, bits per byte."""
    path = folder / limits.path
    checked = Checked(name=limits.label, path=limits.path, limits=limits)
    if missing := _missing(path):
        return replace(checked, outcomes=(_fail("exists", missing),))
    outcomes = [_pass("exists", "it is there")]
    size = path.stat().st_size
    code_bytes, unnamed = _code(folder, limits)
    if unnamed:
        outcomes.append(_fail("code", unnamed))
    try:
        report = report_on(verify_sections(path), str(path))
    except ArtifactError as error:
        outcomes.append(_fail("format", str(error), 3))
        checked = replace(checked, file_bytes=size, code_bytes=code_bytes)
        if limits.budget:
            checked = replace(checked, budget_bytes=parse_size(limits.budget))
            outcomes.append(_budget(checked, None))
        return replace(checked, outcomes=tuple(outcomes))
    outcomes.append(
        _pass("format", f"version {report.format_version}, {len(report.sections)} sections whole")
    )
    named = parse_size(limits.budget) if limits.budget else report.budget_bytes
    checked = replace(
        checked,
        file_bytes=size,
        code_bytes=code_bytes if limits.code else report.code_bytes or 0,
        budget_bytes=named,
        header_sha256=report.header_sha256,
    )
    outcomes.append(_budget(checked, report))
    bpb, failure = _score(path, limits, report, prove)
    if failure is not None:
        outcomes.append(failure)
    elif not math.isinf(limits.max_bpb):
        outcomes.append(_bpb(bpb, limits))
    return replace(checked, bpb=bpb, outcomes=tuple(outcomes))


def _missing(path: Path) -> str | None:
    """Why there is no file at `path`; None if there is one."""
    if not os.path.lexists(path):
        return f"{path}: no such file; build it first, or correct the path"
    try:
        if not path.is_file():
            return f"{path}: not a regular file"
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        return f"{path}: cannot read it: {error.strerror}"
    if not start.startswith(LFS_POINTER):
        return None
    sizes = [line.split()[-1] for line in start.splitlines() if line.startswith(b"size ")]
    of = f" to a file of {int(sizes[0]):,} bytes" if sizes and sizes[0].isdigit() else ""
    return f"{path}: a git-lfs pointer{of}, not the file itself; run: git lfs pull"


def _code(folder: Path, limits: Limits) -> tuple[int, str | None]:
    """Bytes of the counted code, and what is wrong with its list."""
    total = 0
    for pattern in limits.code:
        found = [name for name in files(folder, pattern) if (folder / name).is_file()]
        if not found:
            return total, f"{folder / pattern}: no such file; its bytes count into the budget"
        total += sum((folder / name).stat().st_size for name in found)
    return total, None


def _budget(checked: Checked, report: InspectReport | None) -> Outcome:
    total, headroom, budget = checked.total_bytes, checked.headroom_bytes, checked.budget_bytes
    assert total is not None
    code = f" ({checked.code_bytes:,} of code)" if checked.code_bytes else ""
    if budget is None or headroom is None:
        return Outcome(rule="budget", state="skip", text=f"{total:,} bytes{code}; no budget is set")
    source = "" if checked.limits.budget else ", which the file itself names"
    if headroom >= 0:
        return _pass(
            "budget", f"{total:,} of {budget:,} bytes{code}{source}; headroom {headroom:,}"
        )
    share = f"{-headroom / budget:.2%}" if budget else "all of it"
    groups = sorted(report.groups, key=lambda group: -group.stored_bytes) if report else []
    largest = ", ".join(f"{g.name} {g.stored_bytes:,}" for g in groups[:LARGEST_SHOWN])
    advice = max(0, budget - checked.code_bytes)
    return _fail(
        "budget",
        f"{total:,} bytes{code}, over the budget of {budget:,}{source} by {-headroom:,} ({share})"
        + (f"; largest: {largest}" if largest else "")
        + f"; pack again with --budget {advice}",
    )


def _score(
    path: Path, limits: Limits, report: InspectReport, prove: Prove | None
) -> tuple[Bpb | None, Outcome | None]:
    """Bits per byte, measured where `prove` is given and the limits name data."""
    recorded = recorded_bpb(report)
    if prove is None or not limits.data:
        return recorded, None
    try:
        found = prove(path, limits)
    except (ArtifactError, MissingDependencyError) as error:
        return None, _fail("bpb", str(error), error.exit_status)
    except GptpackError as error:
        raise type(error)(f"{limits.label}: {error}") from error
    score = found["sliding"] or found["plain"]
    return (
        Bpb(
            value=float(score["bpb"]),
            source="measured",
            tokens=score["tokens"],
            context=score["context"],
            stride=score["stride"],
            text_sha256=hashlib.sha256(
                " ".join(shard["sha256"] for shard in found["shards"]).encode()
            ).hexdigest(),
        ),
        None,
    )


def _bpb(bpb: Bpb | None, limits: Limits) -> Outcome:
    if bpb is None:
        return _fail(
            "bpb",
            f"at most {limits.max_bpb} bits per byte are allowed, but the file records none; "
            "measure it with --bpb and --data, or pack it with --data",
        )
    of = f" over {bpb.tokens:,} tokens" if bpb.tokens else ""
    words = f"{bpb.value:.6f} bits per byte, {bpb.source}{of}"
    if bpb.value <= limits.max_bpb:
        return _pass("bpb", f"{words}; at most {limits.max_bpb} are allowed")
    return _fail(
        "bpb",
        f"{words}, {bpb.value - limits.max_bpb:.6f} above the limit of {limits.max_bpb}; train "
        "longer, or pack with a larger budget",
    )


def _compared(checked: Checked, baseline: Mapping[str, Past] | None) -> Checked:
    """`checked` with its change against `baseline`, and the rules about that."""
    limits = checked.limits
    rules = {
        "bytes rise": bool(limits.max_bytes_rise),
        "bpb rise": not math.isinf(limits.max_bpb_rise),
    }
    past = (baseline or {}).get(checked.name)
    if past is None or checked.total_bytes is None:
        why = "no baseline was given" if baseline is None else "it is not in the baseline"
        skipped = [
            Outcome(rule=rule, state="skip", text=f"{why}: nothing to compare with")
            for rule, asked in rules.items()
            if asked and checked.total_bytes is not None
        ]
        return replace(checked, outcomes=(*checked.outcomes, *skipped))
    change = checked.total_bytes - past.total_bytes
    outcomes = list(checked.outcomes)
    if rules["bytes rise"]:
        most = parse_size(limits.max_bytes_rise)
        text = f"{change:+,} bytes against the baseline; at most {most:+,} are allowed"
        outcomes.append(_pass("bytes rise", text) if change <= most else _fail("bytes rise", text))
    rise, outcome = _bpb_rise(checked.bpb, past.bpb, limits.max_bpb_rise)
    if rules["bpb rise"]:
        outcomes.append(outcome)
    return replace(checked, change_bytes=change, change_bpb=rise, outcomes=tuple(outcomes))


def _bpb_rise(now: Bpb | None, past: Bpb | None, most: float) -> tuple[float | None, Outcome]:
    """The rise, where two figures can be compared, and what is to be said of it."""
    rule = "bpb rise"
    if now is None or past is None:
        which = "this file" if now is None else "the baseline"
        text = f"{which} has no bits per byte; measure both with --bpb and --data"
        return None, _fail(rule, text)
    if different := now.unlike(past):
        return None, _fail(rule, f"not comparable: {different}; write the baseline again")
    rise = now.value - past.value
    text = f"{rise:+.6f} bits per byte against the baseline; at most {most:+} are allowed"
    return rise, _pass(rule, text) if rise <= most else _fail(rule, text)


def _pass(rule: str, text: str) -> Outcome:
    return Outcome(rule=rule, state="pass", text=text)


def _fail(rule: str, text: str, exit_status: int = 1) -> Outcome:
    return Outcome(rule=rule, state="fail", text=text, exit_status=exit_status)
