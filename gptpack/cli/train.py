"""`gptpack train`: recipe + shards -> checkpoint, then the validation loss of what was saved."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptpack.cli.console import note, print_json, print_table, progress_bars
from gptpack.cli.options import COUNT, DEVICE, Finite

if TYPE_CHECKING:
    from gptpack.data.batches import Tokens
    from gptpack.errors import GptpackError
    from gptpack.quant.steps import Foresight
    from gptpack.ranks import Ranks
    from gptpack.training.loop import TrainResult
    from gptpack.training.recipe import Recipe
    from gptpack.values import TokenizerIdentity

BITS = Finite(min=0, min_open=True, max=16)
FLOPS = Finite(min=0, min_open=True, max=1e21)
MEASURED_TOKENS = {"cuda": 131072, "cpu": 16384}
"""Training tokens of one look at the packer: a quarter of what `gptpack pack` calibrates with."""


@click.command()
@click.option("--recipe", default="baseline", show_default=True, help="TOML file or a name.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of shards.")
@click.option("--output", type=click.Path(path_type=Path), help="Run folder.")
@click.option("--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Override.")
@click.option("--target-bytes", metavar="SIZE", help="Train for a packed file of this size.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the run folder.")
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option(
    "--attention", default="auto", show_default=True, help="auto, fa3, cudnn, flash, math, flex."
)
@click.option("--kernels", default="auto", show_default=True, help="Triton's: auto, on, off.")
@click.option("--compile/--no-compile", "compiled", default=None, help="Default: on CUDA only.")
@click.option("--eval/--no-eval", "evaluate", default=True, help="Score validation at the end.")
@click.option(
    "--eval-tokens", type=COUNT, default=0, show_default=True, help="Score so many; 0: all."
)
@click.option("--plan", "planned", is_flag=True, help="Say what the run will take, and stop.")
@click.option("--bits", type=BITS, help="--plan: bits of a weight in the file.  [default: 3]")
@click.option("--budget", metavar="SIZE", help="--plan: take the bits that this size allows.")
@click.option("--flops", type=FLOPS, help="--plan: FLOP/s of a rank; otherwise steps are timed.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    recipe: str,
    data: Path | None,
    output: Path | None,
    overrides: tuple[str, ...],
    target_bytes: str | None,
    resume: bool,
    device: str,
    attention: str,
    kernels: str,
    compiled: bool | None,
    evaluate: bool,
    eval_tokens: int,
    planned: bool,
    bits: float | None,
    budget: str | None,
    flops: float | None,
    as_json: bool,
) -> None:
    """Train a model by a recipe and write a checkpoint.

    Runs under torchrun as well, one process per GPU. The checkpoint is written before anything
    else happens at the end; RUN/metrics.jsonl has a line per step.

    With --target-bytes the loss includes what the weights will cost in a packed file of that size;
    [compression] of the recipe says from when on, and how much. At the end the run says at which
    step `gptpack pack` should meet the size.

    With --plan nothing is trained or written: it prints parameters, memory, milliseconds of a step
    (of a few that it times, or by arithmetic), steps, tokens and the bytes of the packed file.

    \b
    Examples:
      gptpack train --recipe tiny --data data/ --output runs/tiny
      gptpack train --recipe seq4096 --set training.seconds=240 --data data/ --output runs/a
      gptpack train --recipe golf-1060 --plan --budget 16MB
      torchrun --nproc_per_node=8 train.py --recipe baseline --data data/ --output runs/b
    """
    from gptpack.data.manifest import TOKENIZER
    from gptpack.data.shards import Shard, find_shards
    from gptpack.data.tokenizer import Tokenizer
    from gptpack.ranks import ranks
    from gptpack.training.loop import train
    from gptpack.training.recipe import load_recipe
    from gptpack.training.recipe_files import find_recipe

    if not planned and (bits, budget, flops) != (None, None, None):
        raise click.UsageError("--bits, --budget and --flops go with --plan")
    if not planned and (data is None or output is None):
        raise click.UsageError("training needs --data and --output; --plan does without")
    settings = load_recipe(find_recipe(recipe), (*overrides, *_target(target_bytes, bits, budget)))
    vocab = settings.model.vocab
    shards = None
    if data is not None:
        shards = [Shard.open(path, vocab).tokens for path in find_shards(data, "train")]
    if planned:
        from gptpack.jobs.train_plan import plan, plan_rows

        with ranks(device) as here:
            known = None if shards is None else _foresight(settings, shards, None, here)
            figures = plan(
                settings,
                shards,
                here,
                attention=attention,
                kernels=kernels,
                compiled=compiled,
                flops=flops,
                bits=bits,
                budget=budget,
                foresight=known,
            )
        if here.main and as_json:
            print_json(figures)
        elif here.main:
            print_table(["plan", ""], plan_rows(figures))
        return
    assert shards is not None
    assert data is not None
    assert output is not None
    beside = data / TOKENIZER
    tokenizer = Tokenizer.load(beside).identity if beside.exists() else None
    if evaluate:
        _check_validation(settings, data, eval_tokens)
    with ranks(device) as here, progress_bars(quiet=as_json or not here.main) as progress:
        result = train(
            settings,
            shards,
            output,
            here,
            tokenizer=tokenizer,
            resume=resume,
            attention=attention,
            kernels=kernels,
            compiled=compiled,
            foresight=_foresight(settings, shards, tokenizer, here),
            progress=progress,
        )
    if not here.main:
        return
    scoring = (result.checkpoint, data, eval_tokens, device, as_json)
    score, failure = _score(*scoring) if evaluate else (None, None)
    if as_json:
        checkpoint = str(result.checkpoint)
        print_json({**asdict(result), "checkpoint": checkpoint, "validation": score})
    else:
        print_table(["training", ""], _rows(result, score))
        note(f"checkpoint: {result.checkpoint}")
    if failure is not None:
        raise failure


def _target(size: str | None, bits: float | None, budget: str | None) -> list[str]:
    """--target-bytes as an override of the recipe."""
    from gptpack.values import parse_size

    if size is None:
        return []
    if bits is not None or budget is not None:
        raise click.UsageError("--target-bytes gives --plan its budget; leave out the other")
    if not (target := parse_size(size)):
        raise click.UsageError("--target-bytes 0: leave it out to train without a target")
    return [f"compression.target_bytes={target}"]


def _check_validation(settings: "Recipe", data: Path, eval_tokens: int) -> None:
    """Refuse before training what would keep its result from being scored."""
    from gptpack.errors import GptpackError
    from gptpack.evaluation.text import Text
    from gptpack.evaluation.windows import plan_windows

    model = settings.model
    try:
        text = Text.load(data, vocab=model.vocab, bos=model.bos, limit_tokens=eval_tokens)
        plan_windows(len(text.tokens), context=model.context, limit_tokens=eval_tokens)
    except GptpackError as error:
        raise type(error)(f"validation after training: {error}; or pass --no-eval") from error


def _score(
    checkpoint: Path, data: Path, tokens: int, device: str, quiet: bool
) -> "tuple[dict[str, Any] | None, GptpackError | None]":
    """The validation of what was saved, or why there is none; what was trained is told first."""
    from gptpack.errors import GptpackError
    from gptpack.jobs.fresh import evaluate_in_fresh_process

    settings = {"limit_tokens": tokens, "device": device, "quiet": quiet}
    try:
        return evaluate_in_fresh_process(checkpoint, data, **settings).to_dict(), None
    except GptpackError as error:
        return None, error


def _rows(result: "TrainResult", score: dict[str, Any] | None) -> list[list[str]]:
    """The result as a table's rows."""
    loss = f"{result.loss_nats:.4f}" if result.loss_nats is not None else "none: no step was left"
    rows = [
        ["parameters", f"{result.parameters:,}"],
        ["steps", f"{result.steps:,} x {1000 * result.seconds / max(result.steps, 1):.1f} ms"],
        ["tokens", f"{result.tokens:,}"],
        ["training seconds", f"{result.seconds:.1f}"],
        ["compile seconds", f"{result.compile_seconds:.1f} (outside the clock)"],
        ["attention", result.attention],
        ["kernels", result.kernels],
        ["weights in the checkpoint", result.weights],
        ["training loss, nats", loss],
    ]
    if result.predicted_bytes is not None:
        rows += [
            ["steps on quantized weights", f"{result.qat_steps:,}"],
            ["seconds of looks at the packer", f"{result.look_seconds:.1f} (in the clock)"],
            ["predicted file, bytes", f"{result.predicted_bytes:,}"],
            ["  when packed with --delta", f"{result.packing_step:.6g}"],
        ]
    if result.peak_memory_bytes:
        rows.append(["peak memory, GB", f"{result.peak_memory_bytes / 1e9:.2f}"])
    if score is not None:
        rows.append(["validation bpb", f"{score['plain']['bpb']:.5f}"])
    return rows


def _foresight(
    settings: "Recipe",
    shards: "Sequence[Tokens]",
    tokenizer: "TokenizerIdentity | None",
    here: "Ranks",
) -> "Foresight | None":
    """Who knows the packer, for a run with a target in bytes."""
    if not settings.compression.target_bytes:
        return None
    from gptpack.calibration.text import shard_windows
    from gptpack.families.golf.gpt import build
    from gptpack.packing.foresight import PackerForesight

    context = settings.model.context
    return PackerForesight(
        build=partial(build, settings.model, device=here.device),
        windows=shard_windows(
            shards,
            windows=max(1, MEASURED_TOKENS[here.device.type] // context),
            context=context,
            seed=settings.training.seed & (2**64 - 1),
        ),
        ranks=here,
        tokenizer=tokenizer,
    )
