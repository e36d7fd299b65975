"""What a check comes to: an outcome for each rule, the figures of each file, one exit status.

A rule that held is an `Outcome` as well, so that a report shows all that was looked at.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gptpack.errors import spoken
from gptpack.gate.limits import Limits
from gptpack.inspection.inspect import InspectReport

SCHEMA = 1
"""Version of the JSON that `Result.to_dict` gives and `gptpack.gate.baseline` reads."""

State = Literal["pass", "fail", "skip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One rule, and whether it held."""

    rule: str
    state: State
    text: str
    """What was found, what was allowed, and the way out if it failed."""
    exit_status: int = 0
    """The exit status that a failure asks for: 1 to 4."""


def held(rule: str, text: str) -> Outcome:
    """The outcome of a rule that held."""
    return Outcome(rule=rule, state="pass", text=text)


def broken(rule: str, text: str, exit_status: int = 1) -> Outcome:
    """The outcome of a rule that did not hold."""
    return Outcome(rule=rule, state="fail", text=spoken(text), exit_status=exit_status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bpb:
    """A figure in bits per byte, and the text and windows that it is a figure of."""

    value: float
    source: Literal["measured", "recorded"]
    """Whether this check measured it, or the packer did and recorded it in the file."""
    tokens: int | None = None
    context: int | None = None
    stride: int | None = None
    text_sha256: str | None = None
    """SHA-256 over the SHA-256 of each shard, where the figure was measured."""

    def unlike(self, other: "Bpb") -> str | None:
        """What keeps two figures from being compared, if anything."""
        for name in ("source", "tokens", "context", "stride", "text_sha256"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name.replace('_', ' ')} {mine} here, {theirs} in the baseline"
        return None


def recorded_bpb(report: InspectReport) -> Bpb | None:
    """The score that the packer recorded in a file; None where there is none to be believed."""
    quality = report.record.quality
    if quality.bpb_after is None:
        return None
    return Bpb(
        value=quality.bpb_after,
        source="recorded",
        tokens=quality.tokens,
        context=quality.context,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One file, its figures, and the outcome of each rule."""

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
    """Bytes of file and code together, less those of the baseline."""
    change_bpb: float | None = None
    """Bits per byte, less those of the baseline."""

    @property
    def total_bytes(self) -> int | None:
        """Bytes of file and code together; None where there is no file."""
        return None if self.file_bytes is None else self.file_bytes + self.code_bytes

    @property
    def headroom_bytes(self) -> int | None:
        """Bytes that the budget leaves; negative when over, None where there is no budget."""
        if self.budget_bytes is None or self.total_bytes is None:
            return None
        return self.budget_bytes - self.total_bytes

    @property
    def failures(self) -> list[Outcome]:
        """The outcomes of the rules that did not hold."""
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
    """All files of one check."""

    artifacts: tuple[Checked, ...]
    baseline: str = ""
    """Path of the baseline that changes are against; empty where there is none."""

    @property
    def exit_status(self) -> int:
        """3 if a file is corrupt, else 4 if something was missing to look, 2 if a file cannot be
        measured on its data, 1 if a limit is broken, else 0."""
        found = {outcome.exit_status for checked in self.artifacts for outcome in checked.failures}
        return next((status for status in (3, 4, 2, 1) if status in found), 0)

    @property
    def passed(self) -> bool:
        """Whether every rule held for every file."""
        return self.exit_status == 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a later check takes them as its baseline."""
        return {
            "schema_version": SCHEMA,
            "passed": self.passed,
            "exit_status": self.exit_status,
            "baseline": self.baseline or None,
            "artifacts": [checked.to_dict() for checked in self.artifacts],
        }
