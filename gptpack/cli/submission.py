"""`gptpack submission`: runs and what a person says of them -> a contest folder; see also
submission_check.py."""

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptpack.cli.bars import progress_bars
from gptpack.cli.console import note, print_json, print_table
from gptpack.cli.help import DefaultGroup, heading
from gptpack.cli.options import DEVICE, WORDS
from gptpack.cli.submission_check import check
from gptpack.runs.logged import CAP_BYTES

if TYPE_CHECKING:
    from gptpack.jobs.submission import Made

PATH = click.Path(path_type=Path)


@click.group(cls=DefaultGroup, default="make")
def command() -> None:
    """Make a contest submission out of runs (the word `make` may be left out), or check one.

    \b
    Examples:
      gptpack submission runs/a runs/b runs/c --data shards/ --github-id me -o submission
      gptpack submission check submission --data shards/ --record-loss 1.8912
    """


@command.command("make", short_help="Make a folder that can be submitted, out of runs.")
@click.argument("runs", nargs=-1, required=True, metavar="[SEED=]RUN...")
@heading("What to make")
@click.option("--output", "-o", required=True, type=PATH, help="Folder to write.")
@click.option("--data", required=True, type=PATH, help="Folder of validation shards.")
@click.option("--tokenizer", type=PATH, help="SentencePiece model. [default: that in --data]")
@heading("What the record says of it")
@click.option("--github-id", required=True, help="GitHub id of whoever submits.")
@click.option("--author", type=WORDS, help="Who submits. [default: the GitHub id]")
@click.option("--name", type=WORDS, help="Name of the submission. [default: the folder's name]")
@click.option(
    "--blurb", type=WORDS, default="", show_default="none", help="A sentence on what it does."
)
@click.option("--track", default="10min_16mb", help="Track of the contest.")
@click.option(
    "--hardware",
    default="",
    show_default="none",
    help="What training ran on, such as '8xH100 SXM'.",
)
@click.option(
    "--date",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="YYYY-MM-DD",
    help="Its date. [default: today]",
)
@heading("How to prove")
@click.option("--stride", default=64, help="Stride of the sliding window; 0: none.")
@click.option(
    "--readable", is_flag=True, help="Ship the readable form of the script, not the small one."
)
@click.option("--device", type=DEVICE, default="auto", help="Device that evaluates.")
@click.option("--force", is_flag=True, help="Replace a submission that stands at --output.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def make(
    runs: tuple[str, ...],
    output: Path,
    github_id: str,
    author: str | None,
    name: str | None,
    blurb: str,
    track: str,
    hardware: str,
    date: datetime.datetime | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Make a folder that can be submitted: README.md, submission.json, logs, requirements.txt, the
    first run's artifact, and train_gpt.py.

    \b
    Examples:
      gptpack submission runs/a runs/b runs/c --data shards/ --github-id me -o submission
      gptpack submission make 1337=model.gptpack --data shards/ --github-id me -o submission

    A RUN is a folder that `gptpack train` wrote, with one packed file in it, or that file. The
    script is one file of gptpack's own modules: it decodes and evaluates an artifact where gptpack
    is not installed. It is run here, offline, on every run's artifact, and all figures are read
    from what it printed. The reports of `gptpack pack --json`, if they lie in the runs' folders,
    say how long packing took.
    """
    from gptpack.contest.folder import About
    from gptpack.jobs.submission import make_submission

    about = About(
        name=name or output.resolve().name,
        author=author or github_id,
        github_id=github_id,
        date=(date or datetime.datetime.now()).date().isoformat(),
        blurb=blurb,
        track=track,
        hardware=hardware,
    )
    with progress_bars() as progress:
        made = make_submission(runs, output, about, **settings, progress=progress)
    if as_json:
        sizes = {"readable_bytes": made.readable_bytes, "small_bytes": made.small_bytes}
        print_json({"folder": str(output), **sizes, "submission": made.figures})
    else:
        _print_made(output, made)


def _print_made(output: Path, made: "Made") -> None:
    values = made.figures
    rows = [
        ["train_gpt.py, readable, bytes", f"{made.readable_bytes:,}"],
        ["train_gpt.py, small, bytes", f"{made.small_bytes:,}"],
        ["code that ships, bytes", f"{values['bytes_code']:,}"],
        ["artifact that ships, bytes", f"{values['bytes_model']:,}"],
        ["total, bytes", f"{values['bytes_total']:,}"],
        ["headroom, bytes", f"{CAP_BYTES - values['bytes_total']:,}"],
    ]
    for seed, result in values["seed_results"].items():
        rows.append([f"seed {seed}, bpb", f"{result['val_bpb']:.6f}"])
    rows.append([f"mean bpb, {values['metric']}", f"{values['val_bpb']:.6f}"])
    print_table(["submission", ""], rows)
    note(f"wrote {output}{os.sep}; check it with: gptpack submission check {output}")


command.add_command(check)
