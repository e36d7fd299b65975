"""`gptpack demo`: text -> tokens -> training -> one file -> its bits per byte, on this machine.

The demo runs gptpack's own commands, shows each as one would type it, and measures nothing itself.
"""

import contextlib
import io
import os
import shlex
import time
from pathlib import Path
from typing import Any

import click

from gptpack.cli import main
from gptpack.cli.bars import progress_bars
from gptpack.cli.console import note, print_json, print_table, say
from gptpack.cli.help import Command
from gptpack.cli.options import DEVICE, POSITIVE
from gptpack.errors import GptpackError
from gptpack.escape import plain
from gptpack.jobs.demo import STRIDE, prove, speak
from gptpack.values import parse_size

VOCAB = 1024
VAL_FRACTION = 0.05
BUDGET = "150KB"


@click.command(cls=Command)
@click.option(
    "--output",
    default=Path("demo"),
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for everything that the demo writes; an earlier demo there is replaced.",
)
@click.option("--budget", default=BUDGET, help="Most bytes of the packed file.")
@click.option("--seconds", type=POSITIVE, help="Training time. [default: the recipe's]")
@click.option("--device", type=DEVICE, default="cpu", help="Device that trains and packs.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(output: Path, budget: str, seconds: float | None, device: str, as_json: bool) -> None:
    """Train, pack and prove a small model on text that every machine has.

    \b
    Examples:
      gptpack demo
      gptpack demo --seconds 20 --output /tmp/demo

    The text is the documentation in this Python's standard library, a few megabytes; nothing is
    downloaded. Takes about two and a half minutes on two CPU cores.
    """
    # Read when torch loads. Threads that wait for each other spin less: more than twice the steps
    # where other programs use the cores, about a fifth fewer where they do not (docs/log.md,
    # 2026-11-21).
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    began = time.perf_counter()
    parse_size(budget)
    if str(output).startswith("-"):  # which the commands below would read as an option
        output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    text = write_demo_text(output / "text.txt")
    tokenizer, data, run = output / "tokenizer.model", output / "data", output / "run"
    checkpoint, packed = run / "checkpoint.pt", output / "demo.gptpack"

    # fmt: off
    execute("data", "tokenizer", text, "--vocab", VOCAB, "--normalization", "identity",
            "--keep-whitespace", "--output", tokenizer, "--force")
    execute("data", "tokenize", "--train", text, "--val-fraction", VAL_FRACTION,
            "--tokenizer", tokenizer, "--output", data, "--force")
    checkpoint.unlink(missing_ok=True)
    limit = () if seconds is None else ("--set", f"training.seconds={seconds}")
    execute("train", "--recipe", "demo", *limit, "--data", data, "--output", run,
            "--device", device, "--no-eval")
    execute("pack", checkpoint, "--budget", budget, "--data", data, "--output", packed, "--force",
            "--device", device)
    # fmt: on
    note(f"$ python -m gptpack eval {packed} --data {data} --stride {STRIDE}")
    result = prove(packed, data, device)
    note("", f"$ gptpack sample {packed} --tokenizer {tokenizer} --prompt ...", "")
    result["samples"] = speak(packed, tokenizer, device)
    result["seconds"] = time.perf_counter() - began
    if as_json:
        print_json(result)
    else:
        report(result)


def write_demo_text(path: Path) -> Path:
    """Write the demo's text to `path`, with a note on its source."""
    from gptpack.jobs.demo_text import standard_library, write_text

    note(f"text: the documentation in Python's standard library, {standard_library()}")
    with progress_bars() as progress:
        size_bytes = write_text(path, progress=progress)
    note(f"{size_bytes:,} bytes; {VAL_FRACTION:.0%} of its documents are kept for validation", "")
    return path


def execute(*arguments: object) -> None:
    """Run a gptpack command in this process and show it; its tables are not shown.

    Raises:
        GptpackError: as the command does, or its options are wrong.
    """
    words = [str(argument) for argument in arguments]
    note(f"$ gptpack {shlex.join(words)}")
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main.group.main(words, prog_name="gptpack", standalone_mode=False)
        except click.ClickException as error:
            raise GptpackError(f"gptpack {words[0]}: {error.format_message()}") from error
    note("")


def report(result: dict[str, Any]) -> None:
    """Print the table of results, and what the model in the file says."""
    print_table(
        ["demo", ""],
        [
            ["parameters", f"{result['parameters']:,}"],
            ["budget, bytes", f"{result['budget_bytes']:,}"],
            ["file, bytes", f"{result['bytes']:,}"],
            ["headroom, bytes", f"{result['headroom_bytes']:,}"],
            ["bits per byte before packing", f"{result['bpb_before']:.4f}"],
            ["bits per byte of the reloaded file", f"{result['bpb']:.4f}"],
            [f"the same, sliding window, stride {STRIDE}", f"{result['sliding_bpb']:.4f}"],
            ["seconds in all", f"{result['seconds']:.0f}"],
        ],
    )
    say("", f"{result['file']} says:")
    for line in result["samples"]:
        say(f"  {plain(' '.join(line.split()), 90)}")
