"""`gptpack eval`: a packed file, a tokenizer and shards -> bits per byte."""

from pathlib import Path
from typing import Any

import click

from gptpack.atomic import check_target
from gptpack.cli.bars import progress_bars, tell
from gptpack.cli.console import main_rank
from gptpack.cli.eval_options import EVAL_OPTIONS
from gptpack.cli.eval_report import report
from gptpack.cli.help import Command

PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("path", metavar="FILE", type=PATH)
@EVAL_OPTIONS
def command(
    path: Path,
    max_bpb: float | None,
    wait: bool,
    quiet: bool,
    as_json: bool,
    output: Path | None,
    **settings: Any,
) -> None:
    """Reload the packed FILE and measure its bits per byte on validation text.

    \b
    Examples:
      gptpack eval model.gptpack --data shards/
      gptpack eval model.gptpack --data shards/ --stride 64 --json
      gptpack eval model.gptpack --data shards/ --tokenizer tok.model --max-bpb 1.23
      gptpack eval model.gptpack --data shards/ --stride 64 --ttt sweep --time-limit 600
      gptpack eval model.gptpack --data shards/ --ttt lora:rank=8,chunk=256
      torchrun --nproc_per_node=8 eval.py model.gptpack --data shards/ --stride 64

    The model comes from FILE alone. Plain evaluation, by the reference's accounting, is always
    printed; --stride adds a sliding window in which every target is scored once, the tail
    included. FILE may also be a checkpoint. Runs under torchrun.

    --ttt lets the model learn from what has been scored, and from nothing else: sgd trains all
    weights on each chunk, lora low-rank factors within each document. Given more than once, each
    starts from the file; sweep stands for four known settings.

    Where the text itself is given, gzip, xz and zstd are shown what to make of it as well: a model
    that needs more bits than those is none to ship.

    --max-bpb is compared with the last figure of plain, sliding and (if there is one
    only) test-time training. --time-limit counts from the start of the process; when it comes,
    the exact share that was scored is reported and the status is 1.
    """
    from gptpack.jobs.evaluate import evaluate, wait_for_file

    if output is not None:
        check_target(output, "report of an evaluation", b'{\n  "')
    with progress_bars(quiet=quiet or as_json or not main_rank()) as progress:
        found = evaluate(
            path,
            settings.pop("data"),
            progress=tell if quiet else progress,
            on_ready=wait_for_file if wait else None,
            **settings,
        )
    if main_rank():
        report(
            found, as_json=as_json, output=output, quiet=quiet, compressors=settings["compressors"]
        )
    found.check(max_bpb)
