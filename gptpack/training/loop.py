"""Batches -> weights: the training run as a story.

Set up, compile outside the clock, then step until the steps or the seconds are spent; every step's
loss is looked at one step later, so that looking never makes the device wait.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gptpack.atomic import check_writable, remove_leftovers
from gptpack.data.manifest import ShardEntry
from gptpack.data.shards import Tokens
from gptpack.errors import CheckpointError, ConfigError, TrainingError
from gptpack.families.language_model import not_finite
from gptpack.progress import Progress, silent
from gptpack.quant.steps import Foresight
from gptpack.ranks import Ranks
from gptpack.training.checkpoint import (
    Checkpoint,
    load_resumable,
    refusing_damage,
    save_checkpoint,
)
from gptpack.training.metrics import Metrics
from gptpack.training.recipe import Recipe
from gptpack.training.schedules import Scheduled, steps_left
from gptpack.training.stepper import Stepper
from gptpack.training.stopping import stoppable
from gptpack.values import TokenizerIdentity

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
SAVED = b"PK"
"""The first bytes of a file that torch.save wrote, and of no other file in a run's folder."""
INTERRUPTED = -1.0
"""What stands for the clock once somebody has asked the run to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Figures of a run that has ended."""

    checkpoint: Path
    parameters: int
    steps: int
    tokens: int
    seconds: float
    """Seconds of the training clock, which compilation and its warm-up are not in."""
    compile_seconds: float
    """Seconds that compilation and its warm-up took before the clock started."""
    loss_nats: float | None
    """Mean training loss of the last step; None if a finished run was resumed and made no step."""
    peak_memory_bytes: int
    """CUDA memory at its peak; 0 on a CPU."""
    attention: str
    kernels: str
    """Whether Triton kernels ran, and why (`gptpack.kernel_choice.choose_kernels`)."""
    weights: str
    """Which weights the checkpoint holds: the last ones, or an average, in words."""
    predicted_bytes: int | None = None
    """Bytes of the file if packed at `packing_delta`; None for a run without a target."""
    packing_delta: float | None = None
    """The delta (`gptpack pack --delta`) at which the file should meet the target."""
    look_seconds: float = 0.0
    """Seconds of the training clock that measuring the packer's grid took."""


class Taken(NamedTuple):
    """An optimizer step that was launched; its tensors may still be on their way."""

    step: int
    elapsed: float
    loss: Tensor
    now: Scheduled
    figures: Mapping[str, float | Tensor]


def train(
    recipe: Recipe,
    shards: Sequence[Tokens],
    output: Path,
    ranks: Ranks,
    *,
    tokenizer: TokenizerIdentity | None = None,
    data: Sequence[ShardEntry] = (),
    resume: bool = False,
    attention: str = "auto",
    kernels: str = "auto",
    compiled: bool | None = None,
    foresight: Foresight | None = None,
    progress: Progress = silent,
) -> RunResult:
    """Train by `recipe` on `shards` and leave ``checkpoint.pt`` and ``metrics.jsonl`` in `output`.

    With a limit in steps, a run on one device that is killed and resumed ends with the same bits
    as one that was not; with a limit in seconds the clock goes on from where it stood, and the
    recipe may have a later one than before. An interrupt ends the run after the step that it is
    at, and leaves a checkpoint.

    Args:
        data: names, counts and hashes of `shards`, which a run that is resumed must have again.
        kernels: ``auto``, ``on`` or ``off``: Triton kernels instead of torch's operations.
        compiled: use torch.compile; None does so on CUDA only.
        foresight: measures what the packer would do; a recipe with a target in bytes needs one.

    Raises:
        BudgetError: the target in bytes is out of reach.
        CheckpointError: there is no run to resume, or it is another one.
        ConfigError: `output` holds another run's checkpoint, or the batch has no whole window.
        TrainingError: the loss is not finite; names the step, the rate and the last checkpoint.
    """
    if recipe.compression.target_bytes and foresight is None:
        raise ConfigError(
            f"compression.target_bytes={recipe.compression.target_bytes} needs a foresight of what "
            "the packer would do; pass one (gptpack.train makes it), or set target_bytes=0"
        )
    check_writable(output / CHECKPOINT, CheckpointError)
    stepper = Stepper(
        recipe,
        shards,
        ranks,
        attention=attention,
        compiled=compiled,
        kernels=kernels,
        foresight=foresight,
    )
    run = Run(stepper, output, tokenizer=tokenizer, data=data)
    try:
        if resume and not run.path.exists():
            if not (output / METRICS).exists():
                raise CheckpointError(f"{output}: no run to resume; begin it without --resume")
            progress("begin again: killed before its first checkpoint", 0, 0)
        elif resume:
            run.restore()
        elif run.path.exists():
            raise ConfigError(
                f"{run.path} exists; continue it with --resume or choose another folder"
            )
        return run.until_done(progress)
    finally:
        stepper.batches.close()


class Run:
    """A training run between steps, and its folder."""

    def __init__(
        self,
        stepper: Stepper,
        output: Path,
        *,
        tokenizer: TokenizerIdentity | None = None,
        data: Sequence[ShardEntry] = (),
    ) -> None:
        self.stepper, self.output = stepper, output
        self.recipe, self.ranks = stepper.recipe, stepper.ranks
        self.tokenizer, self.data = tokenizer, tuple(data)
        self.path = output / CHECKPOINT
        self.spent_seconds = 0.0
        """Training seconds of earlier processes of this run."""

    def until_done(self, progress: Progress) -> RunResult:
        """Train to the recipe's end, save, and only then return."""
        stepper, training, device = self.stepper, self.recipe.training, self.ranks.device
        if self.ranks.main:
            self.output.mkdir(parents=True, exist_ok=True)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        compile_seconds = stepper.warm_up()
        metrics = Metrics(self.output / METRICS, stepper.step) if self.ranks.main else None
        start = time.perf_counter() - self.spent_seconds
        saved: float | None = None
        last: float | None = None
        before: Taken | None = None
        try:
            with stoppable() as stop:
                while True:
                    # Rank 0's clock is everybody's: the rate, the end and the saves follow it, so
                    # no rank ever disagrees. It goes from host to host before the step is launched,
                    # while the device is at the step before, so that no device waits (ranks.py).
                    clock = INTERRUPTED if stop.asked else time.perf_counter() - start
                    elapsed = self.ranks.first(clock)
                    saved = elapsed if saved is None else saved
                    over = bool(training.seconds) and elapsed >= training.clock_seconds
                    if over or stepper.step >= training.steps or elapsed == INTERRUPTED:
                        break
                    loss, schedule = stepper.update(elapsed)
                    now = Taken(stepper.step, elapsed, loss, schedule, stepper.figures())
                    if before is not None:
                        last = self._look(before, metrics)
                    before = now
                    progress("train (steps)", stepper.step, stepper.step + self._left(elapsed))
                    every = training.checkpoint_seconds
                    if every and elapsed - saved >= every:
                        last, before = self._look(now, metrics), None
                        self.save(time.perf_counter() - start)
                        # counts from the next look at the clock on: saving itself takes time
                        saved = None
                if before is not None:
                    last = self._look(before, metrics)
                stepper.synchronize()
                seconds = time.perf_counter() - start
                if elapsed == INTERRUPTED and not stepper.step:
                    stop.end()
                self.save(seconds)
                if elapsed == INTERRUPTED:
                    progress("train (steps; saved, --resume goes on)", stepper.step, 0)
                    stop.end()
            outlook = stepper.outlook()
        finally:
            if metrics is not None:
                metrics.close()
        progress("train (steps)", stepper.step, stepper.step)
        return RunResult(
            checkpoint=self.path,
            parameters=sum(parameter.numel() for parameter in stepper.model.parameters()),
            steps=stepper.step,
            tokens=stepper.step * training.batch_tokens,
            seconds=seconds,
            compile_seconds=compile_seconds,
            loss_nats=last,
            peak_memory_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
            attention=stepper.attention,
            kernels=stepper.kernels,
            weights=stepper.average.told,
            predicted_bytes=outlook.file_bytes if outlook is not None else None,
            packing_delta=outlook.delta if outlook is not None else None,
            look_seconds=stepper.pressure.look_seconds if stepper.pressure is not None else 0.0,
        )

    def _left(self, elapsed: float) -> int:
        """Steps until the run ends, at its pace so far."""
        training = self.recipe.training
        seconds = training.clock_seconds
        left = steps_left(self.stepper.step, steps=training.steps, elapsed=elapsed, seconds=seconds)
        return math.ceil(left)

    def _look(self, taken: Taken, metrics: Metrics | None) -> float:
        """Write a finished step down; a loss that is not finite ends the run."""
        now, loss = taken.now, float(taken.loss)
        if not math.isfinite(loss):
            rate = self.recipe.optimizer.matrix_lr * now.lr_multiplier
            raise self._diverged(
                f"the loss of step {taken.step} is {loss} at matrix learning rate {rate:.3g}"
            )
        if metrics is not None:
            metrics.write(
                step=taken.step,
                loss_nats=loss,
                lr_multiplier=now.lr_multiplier,
                momentum=now.momentum,
                seconds=round(taken.elapsed, 4),
                **{name: float(f"{float(value):.8g}") for name, value in taken.figures.items()},
            )
        return loss

    def _diverged(self, what: str) -> TrainingError:
        kept = (
            f"the last good checkpoint is {self.path}"
            if self.path.exists()
            else "no checkpoint had been written"
        )
        return TrainingError(
            f"{what}; {kept}; lower the learning rates or clip gradients (optimizer.grad_clip)"
        )

    def save(self, seconds: float) -> None:
        """Write the checkpoint; the weights in it are the averaged ones if there are any.

        Every rank calls this; rank 0 writes.

        Raises:
            TrainingError: weights are not finite. The loss, taken before the update, may still be.
        """
        if broken := not_finite(dict(self.stepper.model.named_parameters())):
            raise self._diverged(f"after step {self.stepper.step} {broken[0]} is not finite")
        state = self.stepper.state()
        if state is None:
            return
        weights, training = state
        checkpoint = Checkpoint(
            model=self.recipe.model,
            weights=weights,
            tokenizer=self.tokenizer,
            data=self.data,
            recipe=self.recipe,
            step=self.stepper.step,
            training={**training, "seconds": seconds},
        )
        save_checkpoint(self.path, checkpoint)

    def restore(self) -> None:
        """Take up the run of the checkpoint in the output folder.

        Raises:
            CheckpointError: there is none, or it belongs to another run.
        """
        checkpoint, training = load_resumable(self.path, self.recipe, self.tokenizer, self.data)
        with refusing_damage(self.path):
            self.stepper.load_state(checkpoint.weights, training, checkpoint.step)
            self.spent_seconds = float(training["seconds"])
        if self.ranks.main:
            remove_leftovers(self.path, SAVED)
