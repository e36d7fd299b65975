"""Arguments -> a command, whose module is imported only when it is called, and its exit status."""

import importlib
import os
import sys

import click

from gptpack.cli.exits import exit_statuses
from gptpack.version import FORMAT_VERSION, VERSION

COMMANDS = {
    "train": "Train a model and write a checkpoint.",
    "pack": "Pack a checkpoint into one file under a byte budget.",
    "eval": "Reload a packed file and measure its bits per byte.",
    "sample": "Let a packed model go on from a prompt.",
    "unpack": "Write a packed model for others: a Hugging Face folder, safetensors, GGUF.",
    "stats": "Test whether runs beat a threshold by more than chance.",
    "log": "Read a reference-style training log and check it.",
    "check": "Hold packed files to limits on bytes and bits per byte, in CI.",
    "diff": "Show what differs between two packed files.",
    "verify": "Verify every checksum of a packed file and decode all of it.",
    "submission": "Make a contest submission out of runs, or check one.",
    "report": "Make one HTML page about runs and packed files.",
    "web": "Make a static page in which a packed model runs in the browser.",
    "inspect": "Show what a packed file holds, from its header.",
    "data": "Text to tokens: tokenizers, shards, downloads.",
    "doctor": "Show what this machine can do, and what is missing for what.",
    "completion": "Print a shell's completion script.",
    "demo": "Train, pack and prove a small model on text that every machine has.",
}


class LazyGroup(click.Group):
    """A group that imports a subcommand's module only when it is called, as some load torch."""

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


COMPLETE = "_GPTPACK_COMPLETE"
"""Environment variable through which a shell's completion script asks what could come next."""


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command takes --help, most take --json. Tutorials, conventions and the file "
    "format are in the folder docs of the project.",
)
@click.version_option(
    VERSION,
    prog_name="gptpack",
    message=f"%(prog)s %(version)s, artifact format {FORMAT_VERSION}",
)
def group() -> None:
    """Train small GPT language models, pack them under a byte budget, and prove the result.

    \b
    From text to a checked file:
      gptpack data tokenizer corpus.txt --vocab 1024 --output tok.model
      gptpack data tokenize --train corpus.txt --val-fraction 0.01 \\
          --tokenizer tok.model --output shards
      gptpack train --recipe tiny --data shards --output runs/tiny
      gptpack pack runs/tiny/checkpoint.pt --budget 1MB --data shards -o tiny.gptpack
      gptpack eval tiny.gptpack --data shards --stride 64
      gptpack check tiny.gptpack --budget 1MB

    \b
    Exit statuses:
      0    all held
      1    over a budget, worse than a limit, or training broke down
      2    usage, configuration, data or checkpoint
      3    a packed file is corrupt or hostile
      4    the environment lacks something that was asked for, or memory
      70   a bug of gptpack, to be reported
      130  interrupted
      141  nobody reads the output any more
      143  terminated

    \b
    Environment:
      NO_COLOR             no colours and no styles
      GITHUB_STEP_SUMMARY  check appends its report to this file
      GITHUB_ACTIONS       where this is true, check annotates what failed
    """


def run(arguments: list[str] | None = None, command: str | None = None) -> None:
    """Run the command line and exit with its status; `command` is put before the arguments."""
    # torch's threads on a CPU wait for each other by spinning, which takes twice to forty times as
    # long where other programs run (docs/log.md, 2026-11-25); read when torch is imported
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    arguments = sys.argv[1:] if arguments is None else arguments
    if command is not None:
        arguments = [command, *arguments]
    if instruction := os.environ.get(COMPLETE):
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(group, {}, "gptpack", COMPLETE, instruction))
    # not group.main: it would end a closed pipe with status 1, which means over budget here
    with exit_statuses(), group.make_context("gptpack", arguments) as context:
        group.invoke(context)
