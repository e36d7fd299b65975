"""A recipe and shards -> a trained checkpoint, and the score of its validation."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from gptpack.artifact.memory import physical_bytes
from gptpack.calibration.text import shard_windows
from gptpack.data.manifest import TOKENIZER
from gptpack.data.shards import Tokens
from gptpack.data.splits import entries, manifest_beside, open_split
from gptpack.errors import ConfigError, GptpackError
from gptpack.evaluation.result import Evaluation
from gptpack.evaluation.text import read_vocabulary
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import build
from gptpack.jobs.data import check_scorable
from gptpack.jobs.fresh import evaluate_in_fresh_process
from gptpack.packing.foresight import PackerForesight
from gptpack.progress import Progress, silent
from gptpack.ranks import Ranks, ranks
from gptpack.training import loop
from gptpack.training.recipe import Recipe, load_recipe, recipe_names
from gptpack.values import TokenizerIdentity

Named = TypeVar("Named", bound="str | Path | Recipe")

MEASURED_TOKENS = {"cuda": 131072, "cpu": 16384}
"""Training tokens of one look at the packer: a quarter of what `gptpack pack` calibrates with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult(loop.RunResult):
    """Figures of a run that has ended, and the scores of its checkpoint."""

    validation: Evaluation | None = None
    """Scores of the checkpoint; None if not asked for, and on later ranks."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["checkpoint"] = str(self.checkpoint)
        values["validation"] = self.validation and self.validation.to_dict()
        return values


class UnscoredError(GptpackError):
    """A run ended well, but its checkpoint could not be scored; `result` says what was trained."""

    def __init__(self, cause: GptpackError, result: TrainResult) -> None:
        super().__init__(str(cause))
        self.exit_status, self.result = cause.exit_status, result  # type: ignore[misc]


def train(
    recipe: str | Path | Recipe,
    data: str | Path,
    output: str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    device: str = "auto",
    attention: str = "auto",
    kernels: str = "auto",
    compiled: bool | None = None,
    validate: bool = True,
    eval_tokens: int = 0,
    progress: Progress = silent,
) -> TrainResult:
    """Train a model by `recipe` and leave a run in the folder `output`.

    The run is ``checkpoint.pt``, and ``metrics.jsonl`` with a line per optimizer step. At the end
    the checkpoint is scored on the val shards, by a process that has nothing else. Nothing is
    printed. Under torchrun every rank calls this; the first one writes, scores, and tells progress.

    Args:
        recipe: a recipe, the name of a packaged one such as ``"tiny"``, or a TOML file.
        data: folder with train shards, and with val shards and ``tokenizer.model`` to score on.
        output: folder of the run; it must not hold a checkpoint, unless `resume`.
        overrides: settings of the recipe, such as ``"training.steps=200"`` or
            ``"compression.target_bytes=16000000"`` to train for a file of that size.
        resume: go on from the checkpoint in `output`; recipe and data must be the same.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        attention: ``"auto"``, or by name: fa4, fa3, cudnn, flash, math, flex.
        kernels: ``"auto"``, ``"on"`` or ``"off"``: Triton kernels in place of torch's operations.
        compiled: whether torch.compile is used; None compiles on CUDA only.
        validate: whether the checkpoint is scored.
        eval_tokens: number of targets that are scored; 0 scores all.
        progress: called with phase, done and total as training goes on.

    Returns:
        Steps, tokens, seconds, loss in nats, and the scores in ``result.validation``.

    Raises:
        ConfigError: settings that make no sense, or a checkpoint in `output`.
        DataError: `data` has no shards that fit the recipe, or nothing to validate on.
        CheckpointError: `output` cannot be written, or holds another run than the one to resume.
        TrainingError: the loss is not finite; the last checkpoint stands.
        BudgetError: the target in bytes is out of reach.
        UnscoredError: the run ended well, but scoring failed; ``error.result`` is its result.
        MissingDependencyError: the device or kernels asked for by name are not there.

    Example:
        >>> few = ["training.steps=20", "training.seconds=0"]
        >>> result = gptpack.train("tiny", "shards", "runs/tiny", overrides=few)
        >>> result.steps
        20
        >>> result.validation.plain.bpb < 8
        True
    """
    settings = load_recipe(named_recipe(recipe), overrides)
    data, output = Path(data), Path(output)
    opened = open_split(data, "train", settings.model.vocab)
    shards = [shard.tokens for shard in opened]
    beside, manifest = data / TOKENIZER, manifest_beside(data)
    tokenizer = None
    if beside.exists():
        shape = settings.model
        tokenizer = read_vocabulary(beside, vocab=shape.vocab, bos=shape.bos).identity
    if manifest is not None and tokenizer is not None:
        manifest.check_tokenizer(beside, tokenizer.sha256)
    if validate:
        _check_validation(settings, data, eval_tokens)
    with ranks(device) as here:
        check_memory(settings.model, here.device)
        progress = progress if here.main else silent
        run = loop.train(
            settings,
            shards,
            output,
            here,
            tokenizer=tokenizer,
            data=entries(opened),
            resume=resume,
            attention=attention,
            kernels=kernels,
            compiled=compiled,
            foresight=packer_foresight(settings, shards, tokenizer, here),
            progress=progress,
        )
    result = {field.name: getattr(run, field.name) for field in fields(run)}
    if not (validate and here.main):
        return TrainResult(**result)
    progress("score the checkpoint", 0, 0)
    try:
        found = evaluate_in_fresh_process(
            run.checkpoint, data, eval_tokens=eval_tokens, device=device, quiet=True
        )
    except GptpackError as error:
        raise UnscoredError(error, TrainResult(**result)) from error
    return TrainResult(**result, validation=found)


def named_recipe(recipe: Named | None) -> Named:
    """`recipe`, if one is given.

    Raises:
        ConfigError: none is; names those that come with the package.
    """
    if recipe is None:
        raise ConfigError(f"training needs --recipe: {', '.join(recipe_names())}, or a file")
    return recipe


def check_memory(model: ModelConfig, device: torch.device) -> None:
    """Refuse a model whose weights alone take more than the memory of the device.

    Raises:
        ConfigError: they do.
    """
    needed = 4 * model.least_weights()
    there = physical_bytes()
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    if there is not None and needed > there:
        raise ConfigError(
            f"a model of this shape has {needed:,} bytes of weights in its matrices alone; this "
            f"machine has {there:,} bytes of memory ({device.type})"
        )


def _check_validation(settings: Recipe, data: Path, tokens: int) -> None:
    """Refuse before training a validation that could not be scored after it."""
    model = settings.model
    try:
        check_scorable(
            data, vocab=model.vocab, bos=model.bos, context=model.context, limit_tokens=tokens
        )
    except GptpackError as error:
        raise type(error)(f"validation after training: {error}; or pass --no-eval") from error


def packer_foresight(
    settings: Recipe,
    shards: Sequence[Tokens],
    tokenizer: TokenizerIdentity | None,
    here: Ranks,
) -> PackerForesight | None:
    """The foresight of a run with a target in bytes; None for other runs."""
    if not settings.compression.target_bytes:
        return None
    context = settings.model.context
    held = sum(len(shard) // context for shard in shards)
    return PackerForesight(
        build=partial(build, settings.model, device=here.device),
        windows=shard_windows(
            shards,
            windows=max(1, min(held, MEASURED_TOKENS[here.device.type] // context)),
            context=context,
            seed=settings.training.seed & (2**64 - 1),
        ),
        ranks=here,
        tokenizer=tokenizer,
    )
