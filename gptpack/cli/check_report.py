"""The verdict of a check -> a table, reports in files, and what GitHub shows of it."""

import os
from pathlib import Path

import click

from gptpack.cli.console import note, print_table, reader_may_go, say
from gptpack.escape import plain
from gptpack.gate import formats
from gptpack.gate.outcomes import Result


def write_reports(result: Result, outputs: tuple[Path, ...]) -> None:
    """Write the reports that were asked for, and append to GitHub's step summary if it is set."""
    from gptpack.atomic import replacing

    for path in outputs:
        with replacing(path) as file:
            file.write(formats.FORMATS[formats.SUFFIXES[path.suffix]](result).encode())
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with open(summary, "a", encoding="utf-8") as stream:
                stream.write(formats.to_markdown(result))
        except OSError as error:
            note(f"GITHUB_STEP_SUMMARY: cannot write {summary}: {error.strerror}")


def print_result(result: Result) -> None:
    """Print a line for each file, what fails, and GitHub's annotations where it runs this."""
    print_table(formats.COLUMNS, formats.rows(result))
    problems = formats.failures(result)
    if problems:
        say()
    for checked, text in problems:
        say(f"FAIL {plain(checked.name)}: {text}")
    for text in formats.skipped(result):
        say(f"skipped {text}")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in formats.annotations(result):
            with reader_may_go():
                click.echo(line)
