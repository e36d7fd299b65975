"""Arguments -> a command, whose module is imported only when it is called, and its exit status."""

import atexit
import gc
import importlib
import os
import sys

import click

from gptpack.cli.commands import COMMANDS, EPILOG, FIRST, SECTIONS
from gptpack.cli.exits import exit_statuses
from gptpack.cli.help import SETTINGS, Group
from gptpack.version import FORMAT_VERSION, VERSION


class LazyGroup(Group):
    """A group that imports a subcommand's module only when it is called, as some load torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"gptpack.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            raise click.UsageError(FIRST, ctx)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{width}}", text) for name, text in commands.items()])


COMPLETE = "_GPTPACK_COMPLETE"
"""Environment variable through which a shell's completion script asks what could come next."""


@click.command(
    cls=LazyGroup,
    context_settings=SETTINGS,
    epilog=EPILOG,
)
@click.version_option(
    VERSION,
    prog_name="gptpack",
    message=f"%(prog)s %(version)s, artifact format {FORMAT_VERSION}",
)
def group() -> None:
    """Turn a small language model into one file under a byte budget, and prove how good it is.

    \b
    A model of Hugging Face:
      gptpack pack ./SmolLM2-135M --budget 50MB --text train.txt --eval-text val.txt
      gptpack sample SmolLM2-135M.gptpack --prompt "Why is the sky blue?"

    \b
    From text to a checked file:
      gptpack data tokenizer corpus.txt --vocab 1024 --output tok.model
      gptpack data tokenize --train corpus.txt --val-fraction 0.01 \\
          --tokenizer tok.model --output shards
      gptpack train --recipe tiny --data shards --output runs/tiny
      gptpack pack runs/tiny/checkpoint.pt --budget 1MB --data shards -o tiny.gptpack
      gptpack eval tiny.gptpack --data shards --stride 64
      gptpack check tiny.gptpack --budget 1MB
    """


def run(arguments: list[str] | None = None, command: str | None = None) -> None:
    """Run the command line and exit with its status; `command` is put before the arguments."""
    # torch's threads on a CPU wait for each other by spinning, which takes twice to forty times as
    # long where other programs run (docs/log.md, 2026-11-25); read when torch is imported
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # a process that ends need not look for cycles in all that torch has made, for 0.3 s and more
    atexit.register(gc.freeze)
    arguments = sys.argv[1:] if arguments is None else arguments
    if command is not None:
        arguments = [command, *arguments]
    if instruction := os.environ.get(COMPLETE):
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(group, {}, "gptpack", COMPLETE, instruction))
    # not group.main: it would end a closed pipe with status 1, which means over budget here
    with exit_statuses(), group.make_context("gptpack", arguments) as context:
        group.invoke(context)
