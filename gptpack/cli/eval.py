"""`gptpack eval`: a packed file, a tokenizer and shards -> bits per byte."""

from pathlib import Path
from typing import Any

import click

from gptpack.cli.console import main_rank, progress_bars
from gptpack.cli.eval_report import report
from gptpack.cli.options import COUNT, DEVICE, FINITE, Finite

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("path", metavar="FILE", type=PATH)
@click.option("--data", type=PATH, help="Folder of shards; val is scored.")
@click.option(
    "--tokenizer",
    type=PATH,
    help="SentencePiece model, .tiktoken ranks, or .npz/.json byte table. [default: in --data]",
)
@click.option(
    "--text",
    type=PATH,
    multiple=True,
    help="Text file to score, by the model's own tokenizer; repeatable. With --data: what the "
    "tokens were made from, to audit their bytes.",
)
@click.option(
    "--against",
    type=PATH,
    help="Reference, such as what FILE was made of: also compare predictions (KL, top tokens).",
)
@click.option("--model", help="Recipe (file or name) whose [model] a bare state dict has.")
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Also score a sliding window that moves by so many.",
)
@click.option("--context", type=COUNT, default=0, help="Tokens of a window. [default: the model's]")
@click.option(
    "--rope",
    type=click.Choice(["model", "none", "ntk", "yarn"]),
    default="model",
    show_default=True,
    help="Positions beyond the trained context.",
)
@click.option(
    "--documents",
    type=click.Choice(["packed", "masked"]),
    default="packed",
    show_default=True,
    help="Whether a window may see the document before.",
)
@click.option(
    "--tail",
    type=click.Choice(["score", "drop"]),
    help="Targets after the last whole context. [default: plain drops, sliding scores]",
)
@click.option(
    "--ttt",
    "adaptations",
    multiple=True,
    metavar="SETTINGS",
    help="Also with test-time training: sgd:lr=0.002,epochs=3 or lora:rank=8 or sweep. Repeats.",
)
@click.option(
    "--limit-tokens", type=COUNT, default=0, help="Score the first so many targets; 0: all."
)
@click.option(
    "--time-limit",
    type=Finite(min=0),
    default=0.0,
    help="Stop so many seconds after the process began; 0: never.",
)
@click.option("--batch-tokens", type=COUNT, default=0, help="Tokens at once; 0: by device.")
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option(
    "--compile",
    "compiled",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="torch.compile; auto: on CUDA, where it pays.",
)
@click.option("--max-bpb", type=FINITE, help="End with status 1 if bits per byte are above.")
@click.option("--wait", is_flag=True, hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--output", type=PATH, help="Also write the JSON to this file.")
def command(
    path: Path,
    max_bpb: float | None,
    wait: bool,
    as_json: bool,
    output: Path | None,
    **settings: Any,
) -> None:
    """Reload the packed FILE and measure its bits per byte on validation text.

    The model comes from FILE alone. Plain evaluation, by the reference's accounting, is always
    printed; --stride adds a sliding window in which every target is scored once, the tail
    included. FILE may also be a checkpoint. Runs under torchrun.

    --ttt lets the model learn from what has been scored, and from nothing else: sgd trains all
    weights on each chunk, lora low-rank factors within each document. Given more than once, each
    starts from the file; sweep stands for four known settings.

    --max-bpb is compared with the last figure of plain, sliding and (if there is one
    only) test-time training. --time-limit counts from the start of the process; when it comes,
    the exact share that was scored is reported and the status is 1.

    \b
    Examples:
      gptpack eval model.gptpack --data shards/
      gptpack eval model.gptpack --data shards/ --stride 64 --json
      gptpack eval model.gptpack --data shards/ --tokenizer tok.model --max-bpb 1.23
      gptpack eval model.gptpack --data shards/ --stride 64 --ttt sweep --time-limit 600
      gptpack eval model.gptpack --data shards/ --ttt lora:rank=8,chunk=256
      torchrun --nproc_per_node=8 eval.py model.gptpack --data shards/ --stride 64
    """
    from gptpack.jobs.evaluate import evaluate, wait_for_file

    with progress_bars(quiet=as_json or not main_rank()) as progress:
        found = evaluate(
            path,
            settings.pop("data"),
            progress=progress,
            on_ready=wait_for_file if wait else None,
            **settings,
        )
    if main_rank():
        report(found, as_json=as_json, output=output)
    found.check(max_bpb)
