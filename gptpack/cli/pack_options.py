"""The options of `gptpack pack`, in the order of its help."""

from pathlib import Path

import click

from gptpack.cli.help import Choice, heading, together
from gptpack.cli.options import COUNT, DEVICE, POSITIVE, SEED, Finite, renamed

PATH = click.Path(path_type=Path)

PACK_OPTIONS = together(
    heading("What to make, by one of the first four"),
    click.option("--budget", metavar="SIZE", help="Most bytes of the file, such as 16MB or 16MiB."),
    click.option(
        "--max-rise",
        type=POSITIVE,
        metavar="BPB",
        help="Make the smallest file that loses at most so many bits per byte; a search that packs "
        "and measures up to 8 files.",
    ),
    click.option("--bits", type=POSITIVE, help="Most coded bits of a weight on a grid."),
    click.option("--delta", type=POSITIVE, help="Delta of all grids, however large the file is."),
    click.option(
        "--output", "-o", type=PATH, help="File to write.  [default: CHECKPOINT's name, .gptpack]"
    ),
    click.option("--force", is_flag=True, help="Replace a packed file that stands at --output."),
    click.option(
        "--code",
        type=PATH,
        multiple=True,
        help="File whose bytes count into the budget too; repeatable.",
    ),
    click.option(
        "--plan", is_flag=True, help="Pack in memory, which takes as long; write nothing."
    ),
    heading("From what text"),
    click.option(
        "--data", type=PATH, help="Folder of shards: train calibrates and tunes, val proves."
    ),
    click.option(
        "--text",
        type=PATH,
        multiple=True,
        help="Text file that calibrates and tunes a Hugging Face model; repeatable.",
    ),
    click.option(
        "--calibration",
        type=Choice(["shards", "text", "self", "random"]),
        help="Text for the Hessians; self: the model writes it.  [default: train shards or --text "
        "where given, else self]",
    ),
    click.option(
        "--calibration-tokens",
        type=COUNT,
        default=0,
        show_default="524,288 on CUDA, 65,536 on a CPU, 16,384 there that the model writes",
        help="Tokens of that text.",
    ),
    click.option(
        "--tokenizer",
        type=PATH,
        help="SentencePiece model, or ranks.  [default: the one in --data]",
    ),
    heading("How to prove"),
    click.option(
        "--eval-text",
        type=PATH,
        multiple=True,
        help="Text file that proves a Hugging Face model; repeatable.",
    ),
    click.option(
        "--eval-tokens",
        type=COUNT,
        default=0,
        show_default="all",
        help="Prove on the first so many targets.",
    ),
    click.option(
        "--stride",
        type=click.IntRange(min=1),
        help="Measure also a sliding window that moves by so many tokens.",
    ),
    click.option(
        "--curve",
        type=PATH,
        help="Instead of a file: measure several deltas, and write a table to this CSV and a plot "
        "beside it.",
    ),
    click.option(
        "--curve-bits",
        metavar="LIST",
        help="About how many bits a weight has at the points of --curve.  [default: 4,3.5,3,2.5,2]",
    ),
    heading("Tuning"),
    click.option(
        "--tune",
        type=Choice(["none", "floats", "deep"]),
        default="none",
        help="Train what is not coded to say what the unpacked model says: once all is coded "
        "(floats), or layer by layer (deep: slower, better).",
    ),
    click.option(
        "--tune-seconds",
        type=POSITIVE,
        help="Tune for so many seconds.  [default: a number of steps]",
    ),
    click.option(
        "--tune-labels",
        type=Finite(min=0, max=1),
        default=0.0,
        help="Weight of cross entropy on the text, from 0 to 1; the rest is KL to the unpacked "
        "model.",
    ),
    heading("For experts"),
    click.option(
        "--method",
        "methods",
        multiple=True,
        help="METHOD, or PATTERN=METHOD for tensors by name: gptq-trellis, gptq-uniform, gptq-int4 "
        "to gptq-int8, int8, float16; repeatable.  [default: gptq-trellis]",
    ),
    click.option(
        "--delta-factor",
        "delta_factors",
        multiple=True,
        metavar="PATTERN=FACTOR",
        help="Multiply the delta of the matrices whose names match; repeatable.",
    ),
    click.option("--states", default=256, help="States of the trellis, 4 to 256."),
    click.option(
        "--codec",
        "codecs",
        multiple=True,
        help="Codec to try: raw, zlib, zstd, lzma, range, brotli; repeatable.  [default: zlib, "
        "zstd, range]",
    ),
    click.option("--strict", is_flag=True, help="End with an error where a tensor becomes int8."),
    click.option("--model", help="Recipe, file or name, whose [model] a bare state dict has."),
    click.option("--seed", type=SEED, default=0, help="Seed of the choice of calibration text."),
    click.option(
        "--keep/--no-keep",
        default=True,
        help="Keep Hessians for the next pack, in hidden files beside CHECKPOINT.",
    ),
    click.option("--device", type=DEVICE, default="auto", help="Device that computes."),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
    renamed("--step", "--delta"),
    renamed("--step-factor", "--delta-factor"),
)
