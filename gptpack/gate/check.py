"""Packed files and their limits -> the outcome of each rule.

The rules are existence, format and checksums, bytes, bits per byte, and the change against a
baseline. Nothing is decoded and torch is not needed; a score is measured by whoever calls.
"""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gptpack.artifact.front import verify_sections
from gptpack.artifact.layout import LFS_POINTER
from gptpack.artifact.tables import named_files
from gptpack.errors import ArtifactError, GptpackError, InternalError
from gptpack.gate.baseline import compared, load_baseline
from gptpack.gate.limits import CheckConfig, Limits, expanded, files
from gptpack.gate.outcomes import Bpb, Checked, Outcome, Result, broken, held, recorded_bpb
from gptpack.inputs import once, opened
from gptpack.inspection.inspect import InspectReport, report_on
from gptpack.values import parse_size

LARGEST_SHOWN = 3

Measure = Callable[[Path, Limits], Bpb]
"""Measures the bits per byte of a file on the sample that its limits name."""


def check(
    config: CheckConfig, *, baseline: Path | None = None, measure: Measure | None = None
) -> Result:
    """Look at every file of `config`.

    Args:
        baseline: report of an earlier check, or a packed file; by default what `config` names.
        measure: called where limits name data or text; None leaves scores to what files have
            recorded.

    Raises:
        ConfigError: the baseline cannot be read.
        InternalError: the process that measures crashed.
    """
    named = expanded(config)
    if baseline is None and config.baseline:
        baseline = config.folder / config.baseline
    past = None if baseline is None else load_baseline(baseline, [one.label for one in named])
    return Result(
        artifacts=tuple(compared(_check(config.folder, one, measure), past) for one in named),
        baseline="" if baseline is None else str(baseline),
    )


def _check(folder: Path, limits: Limits, measure: Measure | None) -> Checked:
    """One file under every rule that needs no baseline."""
    path = folder / limits.path
    checked = Checked(name=limits.label, path=limits.path, limits=limits)
    if missing := _missing(path):
        return replace(checked, outcomes=(broken("exists", missing),))
    outcomes = [held("exists", "it is there")]
    size = path.stat().st_size
    code_bytes, unnamed = _code(folder, limits)
    if unnamed:
        outcomes.append(broken("code", unnamed))
    try:
        report = report_on(verify_sections(path), str(path))
    except ArtifactError as error:
        outcomes.append(broken("format", str(error), error.exit_status))
        checked = replace(checked, file_bytes=size, code_bytes=code_bytes)
        if limits.budget:
            checked = replace(checked, budget_bytes=parse_size(limits.budget))
            outcomes.append(_budget(checked, None))
        return replace(checked, outcomes=tuple(outcomes))
    outcomes.append(
        held("format", f"version {report.format_version}, {len(report.sections)} sections whole")
    )
    checked = replace(
        checked,
        file_bytes=size,
        code_bytes=code_bytes if limits.code else report.code_bytes or 0,
        budget_bytes=parse_size(limits.budget) if limits.budget else report.budget_bytes,
        header_sha256=report.header_sha256,
    )
    outcomes.append(_budget(checked, report))
    bpb, failure = _score(path, limits, report, measure)
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
        with opened(path) as file:
            start = file.read(1024)
    except OSError as error:
        return f"{path}: cannot read it: {error.strerror}"
    if not start.startswith(LFS_POINTER):
        return None
    sizes = [line.split()[-1] for line in start.splitlines() if line.startswith(b"size ")]
    of = f" to a file of {int(sizes[0]):,} bytes" if sizes and sizes[0].isdigit() else ""
    return f"{path}: a git-lfs pointer{of}, not the file itself; run: git lfs pull"


def _code(folder: Path, limits: Limits) -> tuple[int, str | None]:
    """Bytes of the counted code, each file once, and what is wrong with its list."""
    counted: list[Path] = []
    missing = None
    for pattern in limits.code:
        found = [path for name in files(folder, pattern) if (path := folder / name).is_file()]
        if not found:
            missing = missing or f"{folder / pattern}: no such file"
        counted += found
    # a pattern such as * finds the packed file as well, whose bytes are counted already
    _, *code = once([folder / limits.path, *counted])
    total = sum(path.stat().st_size for path in code)
    return total, missing and f"{missing}; its bytes count into the budget"


def _budget(checked: Checked, report: InspectReport | None) -> Outcome:
    total, headroom, budget = checked.total_bytes, checked.headroom_bytes, checked.budget_bytes
    assert total is not None
    code = f" ({checked.code_bytes:,} of code)" if checked.code_bytes else ""
    if budget is None or headroom is None:
        return Outcome(rule="budget", state="skip", text=f"{total:,} bytes{code}; no budget is set")
    source = "" if checked.limits.budget else ", which the file itself names"
    if headroom >= 0:
        return held("budget", f"{total:,} of {budget:,} bytes{code}{source}; headroom {headroom:,}")
    share = f"{-headroom / budget:.2%}" if budget else "all of it"
    largest = ", ".join(f"{name} {size:,}" for size, name in _largest(report))
    advice = max(0, budget - checked.code_bytes)
    return broken(
        "budget",
        f"{total:,} bytes{code}, over the budget of {budget:,}{source} by {-headroom:,} ({share})"
        + (f"; largest: {largest}" if largest else "")
        + f"; pack again with --budget {advice}",
    )


def _largest(report: InspectReport | None) -> list[tuple[int, str]]:
    """Bytes and name of what takes most of a file that says it: groups of tensors, and the files
    that go with the model."""
    if report is None or not report.exact:
        return []
    parts = [(group.stored_bytes, group.name) for group in report.groups]
    if report.files:
        parts.append((report.files_bytes, named_files(report.files)))
    return sorted(parts, reverse=True)[:LARGEST_SHOWN]


def _score(
    path: Path, limits: Limits, report: InspectReport, measure: Measure | None
) -> tuple[Bpb | None, Outcome | None]:
    """Bits per byte, measured where that can be done, else recorded; or why there are none."""
    if measure is None or not limits.sample:
        return recorded_bpb(report), None
    try:
        return measure(path, limits), None
    except InternalError:
        raise
    except GptpackError as error:
        return None, broken("bpb", str(error), error.exit_status)


def _bpb(bpb: Bpb | None, limits: Limits) -> Outcome:
    if bpb is None:
        return broken(
            "bpb",
            f"at most {limits.max_bpb} bits per byte are allowed, but the file records none; "
            "measure it with --bpb and --data or --text, or pack it with text that proves it",
        )
    of = f" over {bpb.tokens:,} tokens" if bpb.tokens else ""
    words = f"{bpb.value:.6f} bits per byte, {bpb.source}{of}"
    if bpb.value <= limits.max_bpb:
        return held("bpb", f"{words}; at most {limits.max_bpb} are allowed")
    return broken(
        "bpb",
        f"{words}, {bpb.value - limits.max_bpb:.6f} above the limit of {limits.max_bpb}; train "
        "longer, or pack with a larger budget",
    )
