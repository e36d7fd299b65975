"""`gptpack train`: recipe + shards -> checkpoint, then the validation loss of what was saved."""

from pathlib import Path
from typing import Any

import click

from gptpack.cli.bars import progress_bars
from gptpack.cli.console import main_rank, note, print_json, print_table
from gptpack.cli.help import Command
from gptpack.cli.train_options import TRAIN_OPTIONS
from gptpack.values import check_idle, parse_size


@click.command(cls=Command)
@TRAIN_OPTIONS
def command(
    recipe: str | None,
    data: Path | None,
    output: Path | None,
    overrides: tuple[str, ...],
    target_bytes: str | None,
    resume: bool,
    evaluate: bool,
    eval_tokens: int,
    planned: bool,
    bits: float | None,
    budget: str | None,
    flops: float | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Train a model by a recipe and write a checkpoint.

    \b
    Examples:
      gptpack train --recipe tiny --data data/ --output runs/tiny
      gptpack train --recipe seq4096 --set training.seconds=240 --data data/ --output runs/a
      gptpack train --recipe golf-1060 --plan --budget 16MB
      torchrun --nproc_per_node=8 train.py --recipe baseline --data data/ --output runs/b

    Runs under torchrun as well, one process per GPU. The checkpoint is written before anything
    else happens at the end; RUN/metrics.jsonl has a line per step.

    With --target-bytes the loss includes what the weights will cost in a packed file of that size;
    [compression] of the recipe says from when on, and how much. At the end the run says with which
    --delta `gptpack pack` should meet the size.

    With --plan nothing is trained or written: it prints parameters, memory, milliseconds of a step
    (of a few that it times, or by arithmetic), steps, tokens and the bytes of the packed file.
    """
    from gptpack.cli.train_report import plan_rows, result_rows
    from gptpack.jobs.train import UnscoredError, named_recipe, train
    from gptpack.jobs.train_plan import plan_training

    asked: dict[str, Any] = {"bits": bits, "budget": budget, "flops": flops}
    check_idle("without --plan", not planned, **asked)
    check_idle("with --plan", planned, resume=resume, eval_tokens=eval_tokens)
    check_idle("with --no-eval", not evaluate, eval_tokens=eval_tokens)
    overrides = (*overrides, *_target(target_bytes, bits, budget))
    first = main_rank()
    recipe = named_recipe(recipe)
    if planned:
        figures = plan_training(recipe, data, overrides=overrides, **how, **asked)
        if first and as_json:
            print_json(figures)
        elif first:
            print_table(["plan", ""], plan_rows(figures))
        return
    if data is None or output is None:
        raise click.UsageError("training needs --data and --output; --plan does without")
    failure = None
    with progress_bars(quiet=as_json or not first) as progress:
        try:
            result = train(
                recipe,
                data,
                output,
                overrides=overrides,
                resume=resume,
                validate=evaluate,
                eval_tokens=eval_tokens,
                progress=progress,
                **how,
            )
        except UnscoredError as error:
            result, failure = error.result, error
    if first and as_json:
        print_json(result.to_dict())
    elif first:
        print_table(["training", ""], result_rows(result))
        note(f"checkpoint: {result.checkpoint}")
    if failure is not None:
        raise failure


def _target(size: str | None, bits: float | None, budget: str | None) -> list[str]:
    """The override of a recipe that --target-bytes stands for."""
    if size is None:
        return []
    if bits is not None or budget is not None:
        raise click.UsageError("--target-bytes gives --plan its budget; leave out the other")
    if not (target := parse_size(size)):
        raise click.UsageError("--target-bytes 0: leave it out to train without a target")
    return [f"compression.target_bytes={target}"]
