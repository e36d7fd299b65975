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
from gptpack.data.batches import Prefetcher, open_batches
from gptpack.data.manifest import ShardEntry
from gptpack.data.shards import Tokens
from gptpack.errors import CheckpointError, ConfigError, TrainingError
from gptpack.families.golf.gpt import model_of
from gptpack.families.golf.speedrun import Speedrun
from gptpack.families.language_model import Losses, not_finite, state_problem
from gptpack.progress import Progress, silent
from gptpack.quant.steps import Foresight, Outlook
from gptpack.ranks import Ranks
from gptpack.training.averages import Average
from gptpack.training.checkpoint import (
    Checkpoint,
    load_resumable,
    refusing_damage,
    save_checkpoint,
)
from gptpack.training.metrics import Metrics
from gptpack.training.optimizers import Optimizers
from gptpack.training.pressure import Pressure
from gptpack.training.recipe import Recipe
from gptpack.training.schedules import (
    Phase,
    Scheduled,
    draw_seed,
    in_phase,
    phases,
    scheduled,
    steps_left,
)
from gptpack.training.stopping import stoppable
from gptpack.values import TokenizerIdentity

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
SAVED = b"PK"
"""The first bytes of a file that torch.save wrote, and of no other file in a run's folder."""
INTERRUPTED = -1.0
"""What stands for the clock once somebody has asked the run to end."""
MICRO_BATCH_TOKENS = {"cuda": 65536, "cpu": 8192}
"""Tokens, at most, that go through the model at once where the recipe leaves it open."""


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
    """Whether Triton kernels ran, and why (`gptpack.ops.choose_kernels`)."""
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
    how = (attention, compiled, kernels, foresight, data)
    run = Run(recipe, shards, output, ranks, tokenizer, *how)
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
        run.batches.close()


class Run:
    """The state of a training run between steps."""

    def __init__(
        self,
        recipe: Recipe,
        shards: Sequence[Tokens],
        output: Path,
        ranks: Ranks,
        tokenizer: TokenizerIdentity | None,
        attention: str,
        compiled: bool | None,
        kernels: str = "auto",
        foresight: Foresight | None = None,
        data: Sequence[ShardEntry] = (),
    ) -> None:
        self.recipe, self.ranks, self.tokenizer, self.output = recipe, ranks, tokenizer, output
        self.data = tuple(data)
        self.path = output / CHECKPOINT
        context = recipe.model.context
        self.sequences, rest = divmod(recipe.training.batch_tokens, context)
        if rest or self.sequences < ranks.world:
            raise ConfigError(
                f"batch_tokens={recipe.training.batch_tokens} must be a multiple of "
                f"context={context} and hold a window for each of {ranks.world} ranks"
            )
        self.share = ranks.share(self.sequences)
        stream = open_batches(
            shards,
            recipe.data,
            context=context,
            sequences=self.sequences,
            seed=recipe.training.seed,
            bos=recipe.model.bos,
        )
        self.batches = Prefetcher(stream, self.share, ranks.device)
        self.compiled = ranks.device.type == "cuda" if compiled is None else compiled
        self.model = model_of(recipe.model, seed=recipe.training.seed).to(ranks.device)
        self.attention = self.model.use_attention(attention)
        self.kernels = self.model.use_kernels(kernels)
        self.dropout = self.model.use_dropout(recipe.training.dropout)
        self.losses: Losses = self.model.token_losses
        if self.compiled:
            self.losses = self.model.compiled_losses(torch.compile)
        self.optimizers = Optimizers(self.model, recipe.optimizer, ranks, compiled=self.compiled)
        self.average = Average(self.model, recipe.optimizer)
        self.pressure: Pressure | None = None
        if recipe.compression.target_bytes and foresight is not None:
            self.pressure = Pressure(
                self.optimizers.parameters,
                recipe.compression,
                foresight,
                world=ranks.world,
                compiled=self.compiled,
            )
        self.step = 0
        self.spent_seconds = 0.0
        """Training seconds of earlier processes of this run."""

    def micro_batch(self) -> int:
        """Windows that go through the model at once: the largest even split under the limit."""
        device = self.ranks.device.type
        limit = self.recipe.training.micro_batch_tokens or MICRO_BATCH_TOKENS[device]
        windows = max(1, limit // self.recipe.model.context)
        count = len(self.share)
        return next(size for size in range(min(windows, count), 0, -1) if count % size == 0)

    def gradients(self, step: int) -> Tensor:
        """Leave this rank's part of a step's gradients in the model; returns its part of the loss.

        The parts of all ranks add up to the gradients of the mean loss, and to that loss.
        """
        inputs, targets = self.batches.get(step)
        micro = self.micro_batch()
        total = torch.zeros((), device=self.ranks.device)
        for start in range(0, len(inputs), micro):
            if self.dropout is not None:
                # a resumed run leaves out the same, and each window something else
                window = step * self.sequences + self.share.start + start
                self.dropout.draw(draw_seed(self.recipe.training.seed, window))
            losses = self.losses(inputs[start : start + micro], targets[start : start + micro])
            weighted = losses.mean() * (micro / self.sequences)
            weighted.backward()  # type: ignore[no-untyped-call]
            total += weighted.detach()
        return total

    def update(self, elapsed: float, *, phase: Phase | None = None) -> tuple[Tensor, Scheduled]:
        """Make one optimizer step; returns its loss and the settings it was made with.

        Args:
            phase: whose operations the step takes; None goes by the schedule.
        """
        now = scheduled(self.step, elapsed, self.recipe.training, self.recipe.optimizer)
        if phase is not None:
            now = in_phase(now, phase)
        if self.pressure is not None:
            self.pressure.follow(now, self.model)
        loss = self._learn(now)
        self.step += 1
        self.average.update(self.step, now.progress)
        return loss, now

    def _learn(self, now: Scheduled) -> Tensor:
        self.model.looped = now.recurrence or not self.recipe.model.loops
        if isinstance(self.model, Speedrun):
            self.model.use_stage(now.window_stage)
        else:
            self.model.use_halvings(now.context_halvings)
        part = self.gradients(self.step)
        if self.pressure is not None:
            self.pressure.press(now)
        loss = self.ranks.launch_sum(part)
        self.optimizers.step(
            lr_multiplier=now.lr_multiplier,
            momentum=now.momentum,
            weight_decay_multiplier=now.weight_decay_multiplier,
        )
        return loss.wait()

    def warm_up(self) -> float:
        """Compile by training a few steps whose effect is undone; returns the seconds it took."""
        if not self.compiled:
            return 0.0
        start = time.perf_counter()
        pressure = self.pressure.state() if self.pressure is not None else None
        changing = [*self.model.state_dict().values(), *self.optimizers.tensors()]
        before = [tensor.detach().to("cpu", copy=True) for tensor in changing]
        now = scheduled(self.step, 0.0, self.recipe.training, self.recipe.optimizer)
        for phase in phases(self.recipe):
            for _ in range(max(1, self.recipe.training.compile_warmup_steps)):
                self._learn(in_phase(now, phase))
        for tensor, value in zip(changing, before, strict=True):
            tensor.copy_(value)
        if self.pressure is not None and pressure is not None:
            self.pressure.warm_up()
            self.pressure.load_state(pressure)
        self.synchronize()
        self.ranks.barrier()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize()

    def until_done(self, progress: Progress) -> RunResult:
        """Train to the recipe's end, save, and only then return."""
        training = self.recipe.training
        device = self.ranks.device
        if self.ranks.main:
            self.output.mkdir(parents=True, exist_ok=True)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        compile_seconds = self.warm_up()
        metrics = Metrics(self.output / METRICS, self.step) if self.ranks.main else None
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
                    if over or self.step >= training.steps or elapsed == INTERRUPTED:
                        break
                    loss, schedule = self.update(elapsed)
                    now = Taken(self.step, elapsed, loss, schedule, self.figures())
                    if before is not None:
                        last = self._look(before, metrics)
                    before = now
                    progress("train (steps)", self.step, self.step + self._left(elapsed))
                    every = training.checkpoint_seconds
                    if every and elapsed - saved >= every:
                        last, before = self._look(now, metrics), None
                        self.save(time.perf_counter() - start)
                        # counts from the next look at the clock on: saving itself takes time
                        saved = None
                if before is not None:
                    last = self._look(before, metrics)
                self.synchronize()
                seconds = time.perf_counter() - start
                if elapsed == INTERRUPTED and not self.step:
                    stop.end()
                self.save(seconds)
                if elapsed == INTERRUPTED:
                    progress("train (steps; saved, --resume goes on)", self.step, 0)
                    stop.end()
            outlook = self.outlook()
        finally:
            if metrics is not None:
                metrics.close()
        progress("train (steps)", self.step, self.step)
        return RunResult(
            checkpoint=self.path,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            steps=self.step,
            tokens=self.step * training.batch_tokens,
            seconds=seconds,
            compile_seconds=compile_seconds,
            loss_nats=last,
            peak_memory_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
            attention=self.attention,
            kernels=self.kernels,
            weights=self.average.told,
            predicted_bytes=outlook.file_bytes if outlook is not None else None,
            packing_delta=outlook.delta if outlook is not None else None,
            look_seconds=self.pressure.look_seconds if self.pressure is not None else 0.0,
        )

    def _left(self, elapsed: float) -> int:
        """Steps until the run ends, at its pace so far."""
        training = self.recipe.training
        seconds = training.clock_seconds
        left = steps_left(self.step, steps=training.steps, elapsed=elapsed, seconds=seconds)
        return math.ceil(left)

    def figures(self) -> dict[str, float | Tensor]:
        """Figures that the last step writes down besides its loss."""
        return {} if self.pressure is None else self.pressure.figures

    def outlook(self) -> Outlook | None:
        """The packer's outlook for the checkpoint's weights; None without a target."""
        if self.pressure is None:
            return None
        return self.pressure.look({**self.model.state_dict(), **(self.average.packed() or {})})

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
        if broken := not_finite(dict(self.model.named_parameters())):
            raise self._diverged(f"after step {self.step} {broken[0]} is not finite")
        optimizers = self.optimizers.state()
        if not self.ranks.main:
            return
        raw = {name: value.detach().cpu() for name, value in self.model.state_dict().items()}
        average = self.average.packed()
        averaged = average and {name: value.cpu() for name, value in average.items()}
        training = {
            "raw": raw if averaged else None,
            "averaged": self.average.samples,
            "optimizers": optimizers,
            "seconds": seconds,
            "pressure": self.pressure.state() if self.pressure is not None else None,
        }
        checkpoint = Checkpoint(
            model=self.recipe.model,
            weights=averaged or raw,
            tokenizer=self.tokenizer,
            data=self.data,
            recipe=self.recipe,
            step=self.step,
            training=training,
        )
        save_checkpoint(self.path, checkpoint)

    def restore(self) -> None:
        """Take up the run of the checkpoint in the output folder.

        Raises:
            CheckpointError: there is none, or it belongs to another run.
        """
        checkpoint, training = load_resumable(self.path, self.recipe, self.tokenizer, self.data)
        with refusing_damage(self.path):
            raw = training["raw"] or checkpoint.weights
            if problem := state_problem(self.model, raw):
                raise CheckpointError(problem)
            self.model.load_state_dict(raw)
            self.optimizers.load_state(training["optimizers"])
            if training["raw"]:
                self.average.load(dict(checkpoint.weights), training["averaged"])
            if self.pressure is not None and training.get("pressure"):
                self.pressure.load_state(training["pressure"])
            self.step = checkpoint.step
            self.spent_seconds = float(training["seconds"])
        if self.ranks.main:
            remove_leftovers(self.path, SAVED)
