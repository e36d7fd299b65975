"""What a command raises -> one line on stderr and an exit status.

Exit statuses: 0 all held; 1 over budget or worse than allowed; 2 usage or configuration; 3 corrupt
artifact; 4 the environment lacks something; 130 interrupted; 143 terminated.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

from gptpack.errors import ConfigError, GptpackError, MissingDependencyError


class Terminated(KeyboardInterrupt):
    """The process got SIGTERM, as `kill`, `timeout` and batch systems send it."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated`, so that it cleans up as Ctrl-C does."""

    def stop(*_: object) -> None:
        # `timeout` sends two, and the second must not end what the first began to clean up
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
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
    """End the process with the status of what is raised inside; a bug of ours is raised on."""
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
            ("terminated", 143) if isinstance(stopped, Terminated) else ("interrupted", 130)
        )
        click.echo(f"gptpack: {how}{where}; nothing unfinished has a final name", err=True)
        sys.exit(status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except GptpackError as error:
        click.echo(f"gptpack: {error}", err=True)
        sys.exit(error.exit_status)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        click.echo(f"gptpack: {where}{error.strerror or error}", err=True)
        sys.exit(ConfigError.exit_status)
    except ModuleNotFoundError as error:
        # an installation without torch can check, inspect, compare and verify, and no more
        package = (error.name or "").partition(".")[0]
        if package in ("", "gptpack") or package in sys.stdlib_module_names:
            raise
        click.echo(
            f"gptpack: this needs {package}, which is not installed; see: gptpack doctor", err=True
        )
        sys.exit(MissingDependencyError.exit_status)


def _show(error: click.ClickException) -> None:
    """Write one line to stderr; for a group without a subcommand, its help instead."""
    message = error.format_message().rstrip(".")
    asked = getattr(error, "ctx", None)
    where = asked.command_path if asked is not None else "gptpack"
    if "\n" not in message:
        message = f"{where}: {message}; see: {where} --help"
    click.echo(message, err=True)
