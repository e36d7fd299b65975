"""`gptpack submission check`: a contest folder -> a line for each of the contest's rules."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from gptpack.cli.bars import progress_bars
from gptpack.cli.console import print_json, say
from gptpack.cli.help import Command
from gptpack.cli.options import DEVICE, renamed
from gptpack.errors import LimitError
from gptpack.escape import plain

PATH = click.Path(path_type=Path)


@click.command("check", cls=Command, short_help="Hold a submission to the contest's rules.")
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--data", type=PATH, help="Folder of validation shards: run the script as well.")
@click.option("--tokenizer", type=PATH, help="SentencePiece model. [default: that in --data]")
@click.option(
    "--eval-tokens",
    default=0,
    show_default="all, as the log",
    help="Score the first so many targets.",
)
@click.option(
    "--tolerance",
    default=0.001,
    help="Bits per byte that a figure may be off the log.",
)
@click.option(
    "--record-loss",
    "record",
    type=float,
    multiple=True,
    help="Loss in nats per token that is to be beaten; repeat it for a record's several runs.",
)
@renamed("--tokens", "--eval-tokens")
@click.option("--device", type=DEVICE, default="auto", help="Device that evaluates.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcomes as JSON.")
def check(folder: Path, as_json: bool, **settings: Any) -> None:
    """Hold the submission DIR to the contest's rules, a PASS, FAIL or SKIP line for each.

    \b
    Examples:
      gptpack submission check submission
      gptpack submission check submission --data shards/ --record-loss 1.8912

    The cap is 16,000,000 bytes over the files that ship. Without --data nothing is run; with it
    the script is run with every connection refused, its figure is compared with the log's, and it
    is tried whether scores depend on tokens after them. The script is a program: give --data for a
    folder that you would run. The exit status is 1 if a rule fails.
    """
    from gptpack.jobs.submission_check import check_submission

    with progress_bars() as progress:
        outcomes = check_submission(folder, **settings, progress=progress)
    failed = [outcome.rule for outcome in outcomes if outcome.state == "fail"]
    if as_json:
        print_json({"passed": not failed, "outcomes": [asdict(outcome) for outcome in outcomes]})
    else:
        width = max(len(outcome.rule) for outcome in outcomes)
        for outcome in outcomes:
            state = outcome.state.upper()
            say(f"{state}  {outcome.rule:<{width}}  {plain(outcome.text)}")
    if failed:
        raise LimitError(f"{folder}: {len(failed)} rules fail: {', '.join(failed)}")
