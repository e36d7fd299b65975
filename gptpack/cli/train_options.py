"""The options of `gptpack train`, in the order of its help."""

from pathlib import Path

import click

from gptpack.cli.help import heading, together
from gptpack.cli.options import DEVICE, EVAL_TOKENS, Finite

PATH = click.Path(path_type=Path)
BITS = Finite(min=0, min_open=True, max=16)
FLOPS = Finite(min=0, min_open=True, max=1e21)

TRAIN_OPTIONS = together(
    heading("What to make"),
    click.option("--recipe", help="Recipe: a TOML file, or the name of one that comes along."),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="TABLE.KEY=VALUE",
        help="Override a setting of the recipe; repeatable.",
    ),
    click.option("--output", "-o", type=PATH, help="Folder of the run."),
    click.option("--target-bytes", metavar="SIZE", help="Train for a packed file of this size."),
    click.option("--resume", is_flag=True, help="Go on from the checkpoint in the run's folder."),
    heading("From what text"),
    click.option("--data", type=PATH, help="Folder of shards: train trains, val is scored."),
    heading("How to prove"),
    click.option(
        "--eval/--no-eval",
        "evaluate",
        default=True,
        show_default="eval",
        help="Score the val shards at the end.",
    ),
    EVAL_TOKENS,
    heading("To plan"),
    click.option(
        "--plan", "planned", is_flag=True, help="Say what the run will take, and train nothing."
    ),
    click.option(
        "--bits", type=BITS, help="With --plan: bits of a weight in a file.  [default: 3]"
    ),
    click.option("--budget", metavar="SIZE", help="With --plan: take the bits that fit this size."),
    click.option(
        "--flops", type=FLOPS, help="With --plan: FLOP/s of a rank.  [default: steps are timed]"
    ),
    heading("For experts"),
    click.option("--device", type=DEVICE, default="auto", help="Device that trains."),
    click.option(
        "--attention",
        default="auto",
        help="Implementation of attention: auto, fa4, fa3, cudnn, flash, math, flex.",
    ),
    click.option("--kernels", default="auto", help="Use Triton's kernels: auto, on, off."),
    click.option(
        "--compile/--no-compile",
        "compiled",
        default=None,
        show_default="on CUDA only",
        help="Use torch.compile.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)
