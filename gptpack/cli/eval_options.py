"""The options of `gptpack eval`, in the order of its help."""

from pathlib import Path

import click

from gptpack.cli.help import Choice, heading, together
from gptpack.cli.options import COUNT, DEVICE, EVAL_TOKENS, FINITE, Finite, renamed

PATH = click.Path(path_type=Path)

EVAL_OPTIONS = together(
    heading("On what text"),
    click.option("--data", type=PATH, help="Folder of shards, of which val is scored."),
    click.option(
        "--text",
        type=PATH,
        multiple=True,
        help="Text file to score by the model's own tokenizer; repeatable. With --data: the text "
        "that its tokens were made from, to audit their bytes.",
    ),
    click.option(
        "--tokenizer",
        type=PATH,
        help="SentencePiece model, ranks, or .npz or .json byte table.  [default: the "
        "one in --data]",
    ),
    EVAL_TOKENS,
    heading("What to measure"),
    click.option(
        "--stride",
        type=click.IntRange(min=1),
        help="Score also a sliding window that moves by so many tokens.",
    ),
    click.option(
        "--against",
        type=PATH,
        help="Compare predictions with this model's, such as what FILE was made of: KL divergence, "
        "same top token.",
    ),
    click.option("--max-bpb", type=FINITE, help="End with status 1 above so many bits per byte."),
    click.option(
        "--compressors/--no-compressors",
        default=True,
        show_default="compressors",
        help="Show what gzip -9, xz -9e and zstd -19 make of the same text, where it is at hand.",
    ),
    click.option(
        "--output", "-o", type=PATH, help="Write the JSON to this file as well as the report."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    heading("Test-time training"),
    click.option(
        "--ttt",
        "adaptations",
        multiple=True,
        metavar="SETTINGS",
        help="Score also while learning from what was scored: sgd:lr=0.002,epochs=3 or lora:rank=8 "
        "or sweep; repeatable.",
    ),
    heading("For experts"),
    click.option(
        "--context",
        type=COUNT,
        default=0,
        show_default="the model's",
        help="Tokens of a window.",
    ),
    click.option(
        "--rope",
        type=Choice(["model", "none", "ntk", "yarn"]),
        default="model",
        help="Rule for positions beyond the trained context.",
    ),
    click.option(
        "--documents",
        type=Choice(["packed", "masked"]),
        default="packed",
        help="Let a window see the document before (packed) or not (masked).",
    ),
    click.option(
        "--tail",
        type=Choice(["score", "drop"]),
        help="Score or drop targets after the last whole context.  [default: plain drops, sliding "
        "scores]",
    ),
    click.option(
        "--time-limit",
        type=Finite(min=0),
        default=0.0,
        show_default="never",
        help="Stop so many seconds after the process began.",
    ),
    click.option(
        "--batch-tokens",
        type=COUNT,
        default=0,
        show_default="by device",
        help="Most tokens that go through the model at once.",
    ),
    click.option("--model", help="Recipe, file or name, whose [model] a bare state dict has."),
    click.option("--device", type=DEVICE, default="auto", help="Device that computes."),
    click.option(
        "--compile",
        "compiled",
        type=Choice(["auto", "on", "off"]),
        default="auto",
        help="Use torch.compile; auto does on CUDA.",
    ),
    click.option("--wait", is_flag=True, hidden=True),
    click.option("--tell", "quiet", is_flag=True, hidden=True),
    renamed("--limit-tokens", "--eval-tokens"),
)
