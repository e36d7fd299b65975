"""The report of an earlier check, or a packed file -> figures to compare with, and what changed."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptpack.artifact.front import verify_sections
from gptpack.artifact.record import MOST_BPB
from gptpack.errors import ArtifactError, ConfigError
from gptpack.gate.outcomes import SCHEMA, Bpb, Checked, Outcome, broken, held, recorded_bpb
from gptpack.inputs import read_input
from gptpack.inspection.inspect import report_on
from gptpack.values import parse_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What a baseline says of one file."""

    total_bytes: int
    """Bytes of file and code together."""
    bpb: Bpb | None


def load_baseline(path: Path, names: list[str]) -> dict[str, Past]:
    """Earlier figures by name: of a check's JSON, or of a packed file, which serves all `names`.

    Raises:
        ConfigError: neither of them, or unreadable.
    """
    try:
        data = read_input(path)
    except OSError as error:
        raise ConfigError(
            f"baseline {path}: {error.strerror}; write one on the main branch with "
            "'gptpack check --output main.json'"
        ) from error
    if not data.lstrip().startswith(b"{"):
        return dict.fromkeys(names, _past_of_file(path))
    try:
        values = json.loads(data)
        if values["schema_version"] != SCHEMA:
            raise ConfigError(f"baseline {path}: schema {values['schema_version']}, not {SCHEMA}")
        rows = [row for row in values["artifacts"] if row["total_bytes"] is not None]
        return {str(row["name"]): _past_of_row(row) for row in rows}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"baseline {path}: not the JSON of 'gptpack check' ({type(error).__name__}: {error})"
        ) from error


def _past_of_row(row: Mapping[str, Any]) -> Past:
    """One file of a report, which may hold anything; raises as a mapping does."""
    total, bpb = row["total_bytes"], row["bpb"] and Bpb(**row["bpb"])
    if type(total) is not int or not 0 <= total < 1 << 63:
        raise ValueError("total_bytes is no number of bytes")
    if bpb and (type(bpb.value) not in (int, float) or not 0 <= bpb.value < MOST_BPB):
        raise ValueError("bpb.value is no number of bits per byte")
    return Past(total_bytes=total, bpb=bpb or None)


def _past_of_file(path: Path) -> Past:
    try:
        report = report_on(verify_sections(path), str(path))
    except ArtifactError as error:
        raise ConfigError(f"baseline {error}; give a report of 'gptpack check' instead") from error
    total = report.file_bytes + (report.code_bytes or 0)
    return Past(total_bytes=total, bpb=recorded_bpb(report))


def compared(checked: Checked, baseline: Mapping[str, Past] | None) -> Checked:
    """`checked` with its change against `baseline`, and the outcome of the rules about that."""
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
        outcomes.append((held if change <= most else broken)("bytes rise", text))
    rise, outcome = _bpb_rise(checked.bpb, past.bpb, limits.max_bpb_rise)
    if rules["bpb rise"]:
        outcomes.append(outcome)
    return replace(checked, change_bytes=change, change_bpb=rise, outcomes=tuple(outcomes))


def _bpb_rise(now: Bpb | None, past: Bpb | None, most: float) -> tuple[float | None, Outcome]:
    """The rise, where two figures can be compared, and the outcome of the rule about it."""
    rule = "bpb rise"
    if now is None or past is None:
        which = "this file" if now is None else "the baseline"
        text = f"{which} has no bits per byte; measure both with --bpb"
        return None, broken(rule, text)
    if different := now.unlike(past):
        return None, broken(rule, f"not comparable: {different}; write the baseline again")
    rise = now.value - past.value
    text = f"{rise:+.6f} bits per byte against the baseline; at most {most:+} are allowed"
    return rise, (held if rise <= most else broken)(rule, text)
