"""`gptpack pack`: a checkpoint -> one file that fits the budget, proved before it gets its name."""

from pathlib import Path
from typing import Any

import click

from gptpack.cli.console import main_rank, note, note_assumed, print_json, progress_bars
from gptpack.cli.options import COUNT, DEVICE, POSITIVE, SEED, Finite, beside, renamed
from gptpack.cli.pack_report import print_curve, print_report
from gptpack.values import check_idle

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--budget", help="Most bytes, such as 16MB or 16MiB.")
@click.option("--bits", type=POSITIVE, help="Instead: most coded bits a weight on a grid may take.")
@click.option("--delta", type=POSITIVE, help="Instead: this delta, whatever the file takes.")
@click.option("--output", "-o", type=PATH, help="[default: the checkpoint's name, .gptpack]")
@click.option("--force", is_flag=True, help="Replace a packed file that stands at --output.")
@click.option("--data", type=PATH, help="Folder of shards: train calibrates, val proves.")
@click.option(
    "--text",
    type=PATH,
    multiple=True,
    help="Text file that calibrates and tunes, by the model's own tokenizer; repeatable.",
)
@click.option("--eval-text", type=PATH, multiple=True, help="Text file that proves; repeatable.")
@click.option("--tokenizer", type=PATH, help="SentencePiece model. [default: that in --data]")
@click.option("--model", help="Recipe (file or name) whose [model] a bare state dict has.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="METHOD, or PATTERN=METHOD for tensors by name; repeatable. int8, gptq-int4 to gptq-int8, "
    "gptq-uniform, gptq-trellis, float16. [default: gptq-trellis]",
)
@click.option(
    "--delta-factor",
    "delta_factors",
    multiple=True,
    metavar="PATTERN=FACTOR",
    help="How many times the delta of all grids matching matrices get; repeatable.",
)
@click.option("--states", default=256, show_default=True, help="States of the trellis: 4 to 256.")
@click.option(
    "--tune",
    type=click.Choice(["none", "floats", "deep"]),
    default="none",
    show_default=True,
    help="Train what is not coded against the unpacked model, on training text: after coding "
    "(floats), or layer by layer (deep).",
)
@click.option(
    "--tune-labels",
    type=Finite(min=0, max=1),
    default=0.0,
    show_default=True,
    help="Weight of cross entropy on the text in --tune; the rest is KL to the unpacked model.",
)
@click.option("--tune-seconds", type=POSITIVE, help="Most seconds of --tune; else it has steps.")
@click.option(
    "--calibration",
    type=click.Choice(["shards", "text", "self", "random"]),
    help="Text for the Hessians. [default: train shards or --text if there, else self]",
)
@click.option("--calibration-tokens", type=COUNT, default=0, help="0: 524,288 tokens at most.")
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Seed of the calibration text."
)
@click.option("--strict", is_flag=True, help="A tensor that falls back to int8 is an error.")
@click.option("--code", type=PATH, multiple=True, help="File whose bytes count too; repeatable.")
@click.option(
    "--codec", "codecs", multiple=True, help="raw, zlib, zstd, lzma, range, brotli; repeatable."
)
@click.option(
    "--eval-tokens", type=COUNT, default=0, help="Prove on the first so many targets; 0: all."
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Also measure a sliding window that moves by so many.",
)
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option("--plan", is_flag=True, help="Say what would be done, write nothing.")
@click.option(
    "--curve",
    type=PATH,
    help="Write bytes and measured bpb at several deltas to this CSV, and a plot beside "
    "it; no file is packed.",
)
@click.option(
    "--curve-bits", help="About how many bits a weight its points have. [default: 4,3.5,3,2.5,2]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@renamed("--step", "--delta")
@renamed("--step-factor", "--delta-factor")
def command(
    checkpoint: Path, curve: Path | None, curve_bits: str | None, as_json: bool, **settings: Any
) -> None:
    """Pack a CHECKPOINT, Hugging Face folder or GGUF file into one file within the budget.

    With --data the file is reloaded in a fresh process and its bits per byte are measured, beside
    those of the checkpoint, before it gets its name. Files given by --code count into the budget.
    Hessians are kept beside the checkpoint and used again. Runs under torchrun as well:
    calibration and tuning are shared among the ranks.

    \b
    Examples:
      gptpack pack runs/a/checkpoint.pt --budget 16MB --data shards/
      gptpack pack checkpoint.pt --budget 8MB --data shards/ --tune deep
      gptpack pack ./SmolLM2-135M --budget 50MB --text train.txt --eval-text val.txt
      gptpack pack checkpoint.pt --budget 16MB --method int8 --code train.py --data shards/
      gptpack pack checkpoint.pt --budget 16MB --delta-factor 'blocks.0.*=0.7' --data shards/
      gptpack pack checkpoint.pt --curve curve.csv --data shards/
      gptpack pack final_model.pt --model golf-1060 --tokenizer tok.model --budget 16MiB
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
        print_report(packed.to_dict())
    else:
        print_curve(found)
