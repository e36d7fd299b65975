"""Weights after each step -> their average, which the checkpoint holds and which gets packed.

An exponential average of every step's weights (EMA), or the plain mean of those after every so many
steps towards the end (SWA; Izmailov et al. 2018, https://arxiv.org/abs/1803.05407).
"""

import torch
from torch import Tensor, nn

from gptpack.training.recipe import OptimizerConfig
from gptpack.training.schedules import switch_at


class Average:
    """The running average of `model`'s weights that `config` asks for, if it asks for one."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.kept = bool(config.ema_decay or config.swa_every)
        self.live = {name: value.detach() for name, value in model.state_dict().items()}
        self.mean = {name: value.clone() for name, value in self.live.items() if self.kept}
        self.samples = 0
        """Number of times that weights went into the mean."""

    def update(self, step: int, progress: float) -> None:
        """Take in the weights after `step` steps, the last of them made at `progress` of the run.

        SWA's mean of n samples moves by ``1 / n`` towards the next, EMA's by ``1 - decay``.
        """
        config = self.config
        due = config.swa_every and step % config.swa_every == 0
        if not config.ema_decay and not (due and switch_at(progress, config.swa_start)):
            return
        self.samples += 1
        weight = 1 - config.ema_decay if config.ema_decay else 1 / self.samples
        torch._foreach_lerp_(list(self.mean.values()), list(self.live.values()), weight)

    def packed(self) -> dict[str, Tensor] | None:
        """The averaged weights; None where the last ones are to be packed."""
        return self.mean if self.samples else None

    def load(self, mean: dict[str, Tensor], samples: int) -> None:
        """Go on from a `mean` of so many `samples`."""
        self.samples = samples
        for name, value in self.mean.items():
            value.copy_(mean[name])

    @property
    def told(self) -> str:
        """Which weights get packed, in words."""
        if self.config.ema_decay and self.samples:
            return f"exponential average, decay {self.config.ema_decay:g}"
        if self.samples:
            return f"mean of the weights after {self.samples:,} steps (SWA)"
        average = "EMA" if self.config.ema_decay else "SWA"
        return "those of the last step" + (f", {average} had no step to take" if self.kept else "")
