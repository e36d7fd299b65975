"""Calls that say where a job is -> bars on a terminal, lines elsewhere, each with an estimate."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from gptpack.cli.console import errors_console, note
from gptpack.escape import line
from gptpack.progress import Progress as ProgressCallback

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

NOTE_SECONDS = 10.0
"""Seconds between two lines, where there is no terminal."""


@dataclass
class _Phase:
    """How far a part of the work is."""

    name: str
    began: float
    done: float = 0.0
    total: float = 0.0
    start: float = 0.0
    """What was done when it began."""
    at: float = 0.0
    """When `done` was said."""

    def __str__(self) -> str:
        of = f" of {self.total:,.0f}" if self.total else ""
        return f"{self.name}, {self.done:,.0f}{of}"

    def estimate(self) -> str:
        """The share that is done, with the seconds that the rest takes at the same pace."""
        now, made = time.monotonic(), self.done - self.start
        if made > 0 and self.done < self.total:
            left = (self.at - self.began) * (self.total - self.done) / made - (now - self.at)
            if left > 0:
                return f"{self.name}: {self.done / self.total:.0%}, about {left:,.0f} s left"
        return f"{self.name}: {now - self.began:,.0f} s so far"


def _bars() -> "Progress | None":
    """What draws the bars; None where stderr is no terminal."""
    console = errors_console()
    if not console.is_terminal:
        return None
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def progress_bars(*, quiet: bool = False) -> Iterator[ProgressCallback]:
    """A callback that draws one bar per phase on stderr, with an estimate of what is left.

    Without a terminal it writes a line per phase, and one every `NOTE_SECONDS`, also where the
    callback is not called. An interrupt is raised again with what had been reached as its message.
    """
    bars = None if quiet else _bars()
    tasks: dict[str, TaskID] = {}
    phases: dict[str, _Phase] = {}
    latest = [_Phase("getting ready", time.monotonic())]
    ended = threading.Event()

    def report(phase: str, done: float, total: float) -> None:
        phase = line(phase)
        if phase not in phases:
            phases[phase] = _Phase(phase, time.monotonic())
            if bars is not None:
                tasks[phase] = bars.add_task(phase, total=total or None)
            elif not quiet:
                note(f"{phase} ...")
        here, at = phases[phase], time.monotonic()
        if latest[0] is not here or done < here.done:  # another part of the work, or once more
            here.began, here.start = at, done
        here.done, here.total, here.at = done, total, at
        latest[:] = [here]
        if bars is not None:
            bars.update(tasks[phase], completed=done, total=total or None)

    def write_lines() -> None:
        while not ended.wait(NOTE_SECONDS):
            note(latest[0].estimate())

    lines = threading.Thread(target=write_lines, daemon=True)
    try:
        if bars is not None:
            bars.start()
        elif not quiet:
            lines.start()
        yield report
    except KeyboardInterrupt as stopped:
        raise type(stopped)(str(latest[0]) if phases else "") from None
    finally:
        ended.set()
        if bars is not None:
            bars.stop()
        elif not quiet:
            lines.join()


def tell(phase: str, done: float, total: float) -> None:
    """Write where a job is as a line of JSON to stdout, for the process that waits for it."""
    click.echo(json.dumps([phase, done, total]))
