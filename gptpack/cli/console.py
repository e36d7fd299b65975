"""Values -> what a command prints: tables and JSON on stdout, progress and notes on stderr."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

from gptpack.escape import line

if TYPE_CHECKING:
    from rich.console import Console

MOST_ROWS = 500
"""Rows of a table that are shown, as what has more may be anybody's file; JSON has all."""
LAST_ROWS = 4
"""Of those, the last ones, such as totals."""


def _console(**settings: Any) -> "Console":
    """A console that says when its reader has gone; rich's own would end with status 1."""
    from rich.console import Console

    class WhoseReaderMayGo(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return WhoseReaderMayGo(**settings)


@contextmanager
def reader_may_go() -> Iterator[None]:
    """Drop what is printed inside, and after it, once nobody reads it: a verdict stays its own."""
    try:
        yield
    except BrokenPipeError:
        # what is still in the buffers goes there as well
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def say(*lines: str) -> None:
    """Write lines to stdout, each as `escape.line` shows it."""
    with reader_may_go():
        for text in lines or ("",):
            click.echo(line(text))


def print_json(value: Any) -> None:
    """Write `value` as one JSON document to stdout."""
    text = json.dumps(value, indent=2, sort_keys=False, allow_nan=False)
    with reader_may_go():
        click.echo(text)


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    align: Literal["left", "right"] = "right",
    most: int = MOST_ROWS,
) -> None:
    """Write an aligned table to stdout; `align` is of every column but the first, which is text.

    Of more than `most` rows those between the first and the last ones are left out, and counted.
    """
    from rich.table import Table
    from rich.text import Text

    if (left_out := len(rows) - most) > 0:
        more = [f"({left_out:,} more; --json has all)", *[""] * (len(columns) - 1)]
        rows = [*rows[: most - LAST_ROWS], more, *rows[-LAST_ROWS:]]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else align, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(line(cell)) for cell in row))
    console = _console(soft_wrap=True)
    if not console.is_terminal:
        console = _console(width=200, soft_wrap=True, no_color=True)
    with reader_may_go():
        console.print(table)


def main_rank() -> bool:
    """Whether this process prints: it is rank 0 of those that torchrun started, or alone."""
    return os.environ.get("RANK", "0") == "0"


def note(*lines: str) -> None:
    """Write lines to stderr, each as `escape.line` shows it."""
    with reader_may_go():
        for text in lines:
            click.echo(line(text), err=True)


def note_assumed(assumed: Sequence[str]) -> None:
    """Say what a checkpoint did not and was taken for granted, if anything."""
    if assumed:
        note(
            f"the checkpoint does not say {', '.join(assumed)}: taken for granted; --model names "
            "others"
        )


def errors_console() -> "Console":
    """What draws on stderr."""
    return _console(stderr=True)
