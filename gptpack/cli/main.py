"""The `gptpack` command: finds the subcommand, turns errors into one line and an exit status.

Exit statuses: 0 all held; 1 over budget or worse than allowed; 2 usage or configuration; 3 corrupt
artifact; 4 the environment lacks something; 130 interrupted.
"""

import importlib
import os
import sys

import click

from gptpack.errors import GptpackError
from gptpack.version import VERSION

COMMANDS = {
    "train": "Train a model and write a checkpoint.",
    "pack": "Pack a checkpoint into one file under a byte budget.",
    "eval": "Reload a packed file and measure its bits per byte.",
    "stats": "Test whether runs beat a threshold by more than chance.",
    "log": "Read a reference-style training log and check it.",
    "inspect": "Show what a packed file holds, from its header.",
    "data": "Text to tokens: tokenizers, shards, downloads.",
    "demo": "Train, pack and prove a small model on text that every machine has.",
}


class LazyGroup(click.Group):
    """Imports a subcommand's module only when it is called: `inspect` must not pay for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"gptpack.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="gptpack")
def group() -> None:
    """Train small GPT language models, pack them under a byte budget, and prove the result."""


def run(arguments: list[str] | None = None, command: str | None = None) -> None:
    """Run the command line and exit with its status; `command` is put before the arguments."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if command is not None:
        arguments = [command, *arguments]
    try:
        # not group.main: it would end a closed pipe with status 1, which means over budget here
        with group.make_context("gptpack", arguments) as context:
            group.invoke(context)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as stopped:
        where = f" at: {stopped}" if str(stopped) else ""
        click.echo(f"gptpack: interrupted{where}; nothing unfinished has a final name", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except GptpackError as error:
        click.echo(f"gptpack: {error}", err=True)
        sys.exit(error.exit_status)
