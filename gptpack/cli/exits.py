"""What a command raises -> one line on stderr and an exit status.

Exit statuses: 0 all held; 1 over budget or worse than allowed; 2 usage or configuration; 3 corrupt
artifact; 4 the environment lacks something; 70 a bug of ours; 130 interrupted; 141 the reader of
the output is gone; 143 terminated.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from gptpack.cli.console import note, reader_may_go
from gptpack.errors import (
    ConfigError,
    GptpackError,
    InternalError,
    MissingDependencyError,
    lacks_compiler,
    out_of_memory,
)
from gptpack.version import VERSION

TERMINATED = 143
"""Status of a process that was terminated: 128 and the number of SIGTERM."""
CLEANING_SECONDS = 1.0
"""Time after a SIGTERM in which another one is taken for the same."""
READER_GONE = 141
"""Status of a process whose output nobody reads any more: 128 and the number of SIGPIPE."""


class Terminated(KeyboardInterrupt):
    """The process got SIGTERM, as `kill`, `timeout` and batch systems send it."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated`, so that it cleans up as Ctrl-C does.

    One that comes later ends the process at once: Python may lose what a handler raises.
    """

    def stop(*_: object) -> None:
        began = time.monotonic()

        def again(*_: object) -> None:
            # `timeout` sends two, and the second must not end what the first began to clean up
            if time.monotonic() - began > CLEANING_SECONDS:
                os._exit(TERMINATED)

        signal.signal(signal.SIGTERM, again)
        raise Terminated

    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def exit_statuses() -> Iterator[None]:
    """End the process with the status of what is raised inside."""
    if hasattr(sys.stdout, "reconfigure"):  # a name is shown in whatever letters a terminal has
        sys.stdout.reconfigure(errors="backslashreplace")
    GptpackError.in_options = True
    try:
        with _terminable():
            yield
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        _show(error)
        sys.exit(ConfigError.exit_status)
    except (click.Abort, KeyboardInterrupt) as stopped:
        where = f" at: {stopped}" if str(stopped) else ""
        how, status = (
            ("terminated", TERMINATED) if isinstance(stopped, Terminated) else ("interrupted", 130)
        )
        note(f"gptpack: {how}{where}; nothing unfinished has a final name")
        sys.exit(status)
    except BrokenPipeError:
        sys.exit(READER_GONE)
    except GptpackError as error:
        note(f"gptpack: {error}")
        sys.exit(error.exit_status)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        note(f"gptpack: {where}{error.strerror or error}")
        sys.exit(ConfigError.exit_status)
    except ModuleNotFoundError as error:
        # an installation without torch can check, inspect, compare and verify, and no more
        package = (error.name or "").partition(".")[0]
        if package in ("", "gptpack") or package in sys.stdlib_module_names:
            _crash(error)
        note(f"gptpack: this needs {package}, which is not installed; see: gptpack doctor")
        sys.exit(MissingDependencyError.exit_status)
    except Exception as error:
        if lacks := _lacking(error):
            note(f"gptpack: {lacks}")
            sys.exit(MissingDependencyError.exit_status)
        _crash(error)
    finally:
        GptpackError.in_options = False
        _flush()


def _flush() -> None:
    """Write out what is printed; a stream that was closed when the process began is None."""
    with reader_may_go():
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()


def _lacking(error: Exception) -> str:
    """What this machine has too little of, and the way out; empty where that is not the reason."""
    if out_of_memory(error):
        return "too little memory here; ask for less at once, or use a larger machine"
    if lacks_compiler(error):
        return (
            "torch.compile and Triton need a C++ compiler, which is not here; install gcc or "
            "clang, or do without: train --no-compile --kernels off, eval --compile off"
        )
    return ""


def _crash(error: Exception) -> NoReturn:
    """End the process over a bug of ours: its traceback, and what to do with that."""
    note(*(row for part in traceback.format_exception(error) for row in part.splitlines()))
    note(
        f"gptpack: this is a bug of gptpack {VERSION}; please report it with the lines above and "
        "the command, as SECURITY.md in its source says"
    )
    sys.exit(InternalError.exit_status)


def _show(error: click.ClickException) -> None:
    """Write one line to stderr; for a group without a subcommand, its help instead."""
    message = error.format_message().rstrip(".\n")
    if isinstance(error, click.MissingParameter):  # lists choices on lines of their own
        message = " ".join(message.split())
    asked = getattr(error, "ctx", None)
    where = asked.command_path if asked is not None else "gptpack"
    if "\n" not in message:
        message = f"{where}: {message}; see: {where} --help"
    note(*message.split("\n"))
