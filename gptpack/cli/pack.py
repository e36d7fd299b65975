"""`gptpack pack`: a checkpoint -> one file that fits the budget, proved before it gets its name."""

from pathlib import Path
from typing import Any

import click

from gptpack.cli.bars import progress_bars
from gptpack.cli.console import main_rank, note, note_assumed, print_json
from gptpack.cli.help import Command
from gptpack.cli.options import beside
from gptpack.cli.pack_options import PACK_OPTIONS
from gptpack.cli.pack_report import print_curve, print_report
from gptpack.values import check_idle

PATH = click.Path(path_type=Path)
PLANNED = (
    "--plan packs in memory: it takes as long as the pack itself, but for the proof, and writes "
    "nothing"
)


@click.command(cls=Command)
@click.argument("checkpoint", type=PATH)
@PACK_OPTIONS
def command(
    checkpoint: Path, curve: Path | None, curve_bits: str | None, as_json: bool, **settings: Any
) -> None:
    """Pack a CHECKPOINT, Hugging Face folder or GGUF file into one file within the budget.

    \b
    Examples:
      gptpack pack ./SmolLM2-135M --budget 50MB --text train.txt --eval-text val.txt
      gptpack pack ./SmolLM2-135M --max-rise 0.01 --text train.txt --eval-text val.txt
      gptpack pack runs/a/checkpoint.pt --budget 16MB --data shards/
      gptpack pack checkpoint.pt --budget 8MB --data shards/ --tune deep
      gptpack pack checkpoint.pt --budget 16MB --method int8 --code train.py --data shards/
      gptpack pack checkpoint.pt --budget 16MB --delta-factor 'blocks.0.*=0.7' --data shards/
      gptpack pack checkpoint.pt --curve curve.csv --data shards/
      gptpack pack final_model.pt --model golf-1060 --tokenizer tok.model --budget 16MiB

    With --data or --eval-text the file is reloaded in a fresh process and its bits per byte are
    measured, beside those of the checkpoint, before it gets its name. Hessians are kept beside the
    checkpoint, unless --no-keep is given, and those that a pack before has left are used. Runs
    under torchrun as well: calibration and tuning are shared by the ranks.
    """
    from gptpack.jobs.curve import make_curve, parse_bits
    from gptpack.jobs.pack import pack
    from gptpack.jobs.request import PackRequest

    points = parse_bits(curve_bits)
    check_idle("without --curve", curve is None, curve_bits=curve_bits)
    check_idle(
        "with --curve", curve is not None, output=settings["output"], force=settings["force"]
    )
    if curve is None:
        settings["output"] = settings["output"] or beside(checkpoint)
    request = PackRequest(**settings)
    if request.plan and curve is None and main_rank():
        note(PLANNED)
    with progress_bars(quiet=as_json or not main_rank()) as progress:
        if curve is not None:
            found = make_curve(checkpoint, request, curve, points, progress=progress)
        else:
            packed = pack(checkpoint, request, progress=progress)
    if not main_rank():
        return
    result = packed if curve is None else found
    note_assumed(result.assumed)
    for remark in result.notes:
        note(remark)
    if as_json:
        print_json(result.to_dict())
    elif curve is None:
        print_report(packed)
    else:
        print_curve(found)
