"""The result of a check -> JSON, Markdown, JUnit XML, GitHub annotations, rows of a table."""

import itertools
import json
from collections.abc import Callable

from gptpack.escape import command_data, command_property, markdown, plain
from gptpack.gate.outcomes import Checked, Result

COLUMNS = ("artifact", "bytes", "code", "budget", "headroom", "bpb", "change", "status")
SUMMARY_BYTES = 1 << 20
"""Bytes of the largest step summary that GitHub accepts."""
MOST_ROWS = 500
MOST_ANNOTATIONS = 10
"""Annotations that GitHub shows for one step."""


def rows(result: Result) -> list[list[str]]:
    """One row of text for each file, under `COLUMNS`."""
    return [_row(checked) for checked in result.artifacts]


def _row(checked: Checked) -> list[str]:
    bpb = checked.bpb
    score = "" if bpb is None else f"{bpb.value:.4f} {bpb.source}"
    changes = []
    if checked.change_bytes is not None:
        changes.append(f"{checked.change_bytes:+,} bytes")
    if checked.change_bpb is not None:
        changes.append(f"{checked.change_bpb:+.4f} bpb")
    return [
        plain(checked.name, 80),
        _number(checked.file_bytes),
        _number(checked.code_bytes or None),
        _number(checked.budget_bytes),
        _number(checked.headroom_bytes),
        score,
        ", ".join(changes),
        "FAIL" if checked.failures else "pass",
    ]


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def failures(result: Result) -> list[tuple[Checked, str]]:
    """Each failure with its file, in words that say what to do."""
    found = []
    for checked in result.artifacts:
        said = _said(checked)
        for outcome in checked.failures:
            found.append((checked, f"{outcome.rule}: {plain(outcome.text)}.{said}"))
    return found


def _said(checked: Checked) -> str:
    """The words that the configuration adds to each failure of a file."""
    return f" {plain(checked.limits.message)}" if checked.limits.message else ""


def skipped(result: Result) -> list[str]:
    """Each rule that could not be looked at, with its file, in words that say why."""
    return [
        f"{plain(checked.name)}: {outcome.rule}: {plain(outcome.text)}"
        for checked in result.artifacts
        for outcome in checked.outcomes
        if outcome.state == "skip"
    ]


def to_json(result: Result) -> str:
    """The whole result as one JSON document, which a later check takes as its baseline."""
    return json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n"


def to_markdown(result: Result) -> str:
    """A table and the failures as Markdown, small enough for a step summary."""
    count = len(result.artifacts)
    failing = sum(bool(checked.failures) for checked in result.artifacts)
    verdict = f"{failing} of {count} failed" if failing else f"{count} passed"
    lines = [f"### gptpack check: {verdict}", ""]
    lines.append("| " + " | ".join(COLUMNS) + " |")
    lines.append("| --- |" + " ---: |" * (len(COLUMNS) - 2) + " --- |")
    lines += ["| " + " | ".join(map(markdown, row)) + " |" for row in rows(result)[:MOST_ROWS]]
    if count > MOST_ROWS:
        lines.append(f"\n{count - MOST_ROWS:,} more artifacts are not shown.")
    problems = [f"- **{markdown(c.name)}**: {markdown(text)}" for c, text in failures(result)]
    problems += [f"- {markdown(text)}" for text in skipped(result)]
    if problems:
        lines += ["", *problems[:MOST_ROWS]]
    if result.baseline:
        lines += ["", f"Changes are against {markdown(result.baseline)}."]
    ends = itertools.accumulate(len(line.encode()) + 1 for line in lines)
    kept = sum(end <= SUMMARY_BYTES - 100 for end in ends)
    if kept < len(lines):
        lines = [*lines[:kept], f"\n{len(lines) - kept:,} more lines are too long to show."]
    return "\n".join(lines) + "\n"


def to_junit(result: Result) -> str:
    """JUnit XML with a test case for each rule of each file."""
    from xml.etree import ElementTree

    cases = [(checked, outcome) for checked in result.artifacts for outcome in checked.outcomes]
    states = [outcome.state for _, outcome in cases]
    counts = {
        "name": "gptpack check",
        "tests": str(len(cases)),
        "failures": str(states.count("fail")),
        "errors": "0",
        "skipped": str(states.count("skip")),
    }
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", counts)
    for checked, outcome in cases:
        case = ElementTree.SubElement(
            suite, "testcase", classname=plain(checked.name), name=outcome.rule, time="0"
        )
        text = plain(outcome.text)
        if outcome.state == "fail":
            text += _said(checked)
            ElementTree.SubElement(case, "failure", message=text, type=outcome.rule).text = text
        elif outcome.state == "skip":
            ElementTree.SubElement(case, "skipped", message=text)
        else:
            ElementTree.SubElement(case, "system-out").text = text
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def annotations(result: Result) -> list[str]:
    """A GitHub workflow command for each failure, one line each."""
    return [
        f"::error file={command_property(checked.path)},title=gptpack check::"
        + command_data(f"{checked.name}: {text}")
        for checked, text in failures(result)[:MOST_ANNOTATIONS]
    ]


FORMATS: dict[str, Callable[[Result], str]] = {
    "json": to_json,
    "markdown": to_markdown,
    "junit": to_junit,
}
SUFFIXES = {".json": "json", ".md": "markdown", ".xml": "junit"}
"""Format in which a report is written, by the suffix of its name."""
