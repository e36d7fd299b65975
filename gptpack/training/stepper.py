"""A recipe and tokens -> optimizer steps, one after the other, and the state that they change."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gptpack.data.batches import Prefetcher, open_batches
from gptpack.data.shards import Tokens
from gptpack.errors import CheckpointError, ConfigError
from gptpack.families.golf.ahead import Ahead
from gptpack.families.golf.gpt import model_of
from gptpack.families.golf.speedrun import Speedrun
from gptpack.families.language_model import Losses, state_problem
from gptpack.quant.steps import Foresight, Outlook
from gptpack.ranks import Ranks
from gptpack.training.averages import Average
from gptpack.training.optimizers import Optimizers
from gptpack.training.pressure import Pressure
from gptpack.training.recipe import Recipe
from gptpack.training.recording import WARM_PASSES, CudaGraphs, Recording
from gptpack.training.schedules import Phase, Scheduled, draw_seed, in_phase, phases, scheduled

MICRO_BATCH_TOKENS = {"cuda": 65536, "cpu": 8192}
"""Tokens, at most, that go through the model at once where the recipe leaves it open."""


class Stepper:
    """A model in training: its weights, optimizers and averages, and the batches that it reads.

    Args:
        compiled: use torch.compile; None does so on CUDA only.
        kernels: ``auto``, ``on`` or ``off``: Triton kernels instead of torch's operations.
        foresight: measures what the packer would do; a recipe with a target in bytes needs one.
        recorded: launch passes as CUDA graphs; None does so on one GPU if the model is compiled
            and recordable.

    Raises:
        ConfigError: the batch has no whole window for each rank.
    """

    def __init__(
        self,
        recipe: Recipe,
        shards: Sequence[Tokens],
        ranks: Ranks,
        *,
        attention: str = "auto",
        compiled: bool | None = None,
        kernels: str = "auto",
        foresight: Foresight | None = None,
        recorded: bool | None = None,
    ) -> None:
        self.recipe, self.ranks = recipe, ranks
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
        self.ahead: Ahead | None = None
        if recipe.training.ahead_weight:
            seed = draw_seed(recipe.training.seed, -1)
            self.ahead = Ahead(recipe.model.width, seed=seed, device=ranks.device)
            self.model.ahead = self.ahead
        self.losses: Losses = self.model.token_losses
        if self.compiled:
            self.losses = self.model.compiled_losses(torch.compile, training=True)
        self.optimizers = Optimizers(self.model, recipe.optimizer, ranks, compiled=self.compiled)
        self.recording: Recording | None = None
        if recorded is None:
            # several ranks: not measured yet
            alone = ranks.device.type == "cuda" and ranks.world == 1
            recorded = alone and self.compiled and self.model.recordable
        if recorded:
            self.recording = Recording(self.optimizers.parameters.values(), CudaGraphs())
        self.average = Average(self.model, recipe.optimizer)
        self.pressure: Pressure | None = None
        if recipe.compression.target_bytes and foresight is not None:
            self.pressure = Pressure(
                dict(self.model.named_parameters()),
                recipe.compression,
                foresight,
                world=ranks.world,
                compiled=self.compiled,
            )
        self.step = 0
        """Steps that are made."""

    def micro_batch(self) -> int:
        """Windows that go through the model at once: the largest even split under the limit."""
        device = self.ranks.device.type
        limit = self.recipe.training.micro_batch_tokens or MICRO_BATCH_TOKENS[device]
        windows = max(1, limit // self.recipe.model.context)
        count = len(self.share)
        return next(size for size in range(min(windows, count), 0, -1) if count % size == 0)

    def gradients(self, now: Scheduled) -> Tensor:
        """Leave this rank's part of the next step's gradients; returns its part of the loss.

        The parts of all ranks add up to the gradients of the mean loss, and to that loss.
        """
        self.model.looped = now.recurrence or not self.recipe.model.loops
        if isinstance(self.model, Speedrun):
            self.model.use_stage(now.window_stage)
        else:
            self.model.use_halvings(now.context_halvings)
        if self.ahead is not None:
            self.ahead.use(now.ahead_weight)
        kind = (self.model.looped, now.context_halvings, now.ahead_weight > 0)
        inputs, targets = self.batches.get(self.step)
        micro = self.micro_batch()
        total = torch.zeros((), device=self.ranks.device)
        for start in range(0, len(inputs), micro):
            if self.dropout is not None:
                # a resumed run leaves out the same, and each window something else
                window = self.step * self.sequences + self.share.start + start
                self.dropout.draw(draw_seed(self.recipe.training.seed, window))
            part = (inputs[start : start + micro], targets[start : start + micro])
            if self.recording is None:
                total += self._passes(*part)
            else:
                total += self.recording(self._passes, kind, *part)
        return total

    def _passes(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Add a micro batch's part to the gradients; returns its part of the loss."""
        weighted = self.losses(inputs, targets).mean() * (len(inputs) / self.sequences)
        weighted.backward()  # type: ignore[no-untyped-call]
        return weighted.detach()

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
        part = self.gradients(now)
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
        parameters = [each.detach() for each in self.optimizers.parameters.values()]
        changing = [*parameters, *self.optimizers.tensors()]
        before = [tensor.detach().to("cpu", copy=True) for tensor in changing]
        now = scheduled(self.step, 0.0, self.recipe.training, self.recipe.optimizer)
        enough = 1 if self.recording is None else WARM_PASSES + 1
        # all phases in turn: those that are recorded keep the memory of a pass to themselves, so
        # all others should have run before
        for _ in range(max(enough, self.recipe.training.compile_warmup_steps)):
            for phase in phases(self.recipe):
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

    def figures(self) -> dict[str, float | Tensor]:
        """Figures that the last step writes down besides its loss."""
        return {} if self.pressure is None else self.pressure.figures

    def outlook(self) -> Outlook | None:
        """The packer's outlook for the checkpoint's weights; None without a target."""
        if self.pressure is None:
            return None
        return self.pressure.look({**self.model.state_dict(), **(self.average.packed() or {})})

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Weights to keep, on the CPU, and what going on from them takes.

        The weights are the averaged ones if there are any. Every rank calls this; it is None for
        all but the first.
        """
        optimizers = self.optimizers.state()
        if not self.ranks.main:
            return None
        raw = {name: value.detach().cpu() for name, value in self.model.state_dict().items()}
        average = self.average.packed()
        averaged = average and {name: value.cpu() for name, value in average.items()}
        return averaged or raw, {
            "raw": raw if averaged else None,
            "averaged": self.average.samples,
            "optimizers": optimizers,
            "ahead": self.ahead and self.ahead.matrix.detach().cpu(),
            "pressure": self.pressure.state() if self.pressure is not None else None,
        }

    def load_state(self, weights: Mapping[str, Tensor], rest: Mapping[str, Any], step: int) -> None:
        """Go on from `step` with what `state` gave.

        Raises:
            CheckpointError: the weights are not this model's.
        """
        raw = rest["raw"] or weights
        if problem := state_problem(self.model, raw):
            raise CheckpointError(problem)
        self.model.load_state_dict(raw)
        self.optimizers.load_state(rest["optimizers"])
        if self.ahead is not None:
            self.ahead.matrix.data.copy_(rest["ahead"])
        if rest["raw"]:
            self.average.load(dict(weights), rest["averaged"])
        if self.pressure is not None and rest.get("pressure"):
            self.pressure.load_state(rest["pressure"])
        self.step = step
