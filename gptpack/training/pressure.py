"""Weights and a target in bytes -> gradients that make the packed file meet it.

A few times in a run the packer itself is asked what it would do with the weights: a *look*, through
a foresight (gptpack/quant/steps.py). In between, every optimizer step estimates the coded bits
(rate.py), adds them to the loss at the packer's own exchange rate, and moves delta a little towards
the one at which the file has the target's bytes.

At delta a weight's rounding costs ``v delta^2 / 2`` nats a token, v the variance of a rounding
error in squared spacings, and a quarter of that with one bit more: a bit is worth
``ln 2 v delta^2`` nats. That is the multiplier. A file that is too large raises delta, which raises
the multiplier with its square, until a coarser grid and cheaper weights together meet the target.
"""

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gptpack.errors import BudgetError, QuantError
from gptpack.quant.steps import Foresight, Outlook, Steps
from gptpack.training.rate import Rate
from gptpack.training.recipe import CompressionConfig
from gptpack.training.schedules import Scheduled, switch_at

FIRST_DELTA = 1e-3
"""Delta at which the first look begins; the estimate then finds the right one in a few moves."""
FINEST_DELTA = 2e-6
"""The smallest delta, as in gptpack/packing/search.py."""
GAIN = 0.1
"""Share of a file's excess, in bits a weight, by which log2 delta moves in an optimizer step. A
weight takes one bit less per doubling of delta, so an excess is gone after some twenty steps."""
LEAST_BITS = 0.3
"""Bits a weight below which no target is tried. At 0.25, where all codes are zero, the estimate
ends."""
CLOSE = 0.02
"""Octaves that delta may move away from where the grids were made before they are made anew."""


class Pressure:
    """The part of a run that works towards its target in bytes.

    Every rank does the same; the gradients that each adds sum up to one whole over the ranks.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: CompressionConfig,
        foresight: Foresight,
        *,
        world: int,
        compiled: bool,
    ) -> None:
        self.parameters, self.config, self.foresight = parameters, config, foresight
        self.start = config.start
        self.world = world
        self.rate = Rate(parameters, compiled=compiled)
        self._check_target({name: tuple(p.shape) for name, p in parameters.items()})
        device = next(iter(parameters.values())).device
        self.log2_delta = torch.tensor(math.log2(FIRST_DELTA), device=device)
        self.log2_finest = math.log2(FINEST_DELTA)
        self.outlook: Outlook | None = None
        self.looked = -1
        """Index of the run's last look; -1 before the first."""
        self.look_seconds = 0.0
        """Seconds of the training clock that looks took in this process."""
        self.unseen_bits = torch.zeros((), device=device)
        """Bits of the coder beyond the estimate: tables, classes, shapes that are not Gaussian."""
        self.figures: dict[str, float | Tensor] = {}
        """Figures of the last step, for its line; tensors may still be on their way."""

    def _check_target(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise BudgetError for a target that no weights could meet."""
        coded = set(self.foresight.coded(shapes))
        if not coded:
            return
        numbers = {name: math.prod(shape) for name, shape in shapes.items()}
        weights = sum(number for name, number in numbers.items() if name in coded)
        kept = sum(numbers.values()) - weights
        least = 2 * kept + math.ceil(LEAST_BITS * weights / 8)
        if least > self.config.target_bytes:
            raise BudgetError(
                f"target_bytes={self.config.target_bytes:,}: {kept:,} numbers that stay in floats "
                f"and {LEAST_BITS} bits for each of {weights:,} weights take {least:,} bytes; "
                "allow more or choose a smaller model"
            )

    def follow(self, now: Scheduled, model: nn.Module) -> None:
        """Look at what the packer would do with `model`, if a look is due."""
        if not switch_at(now.progress, self.start):
            return
        due = int((now.progress - self.start) / (1 - self.start) * self.config.looks)
        if due > self.looked:
            start = time.perf_counter()
            self.look(model.state_dict())
            self.looked = due
            self.look_seconds += time.perf_counter() - start

    def look(self, weights: Mapping[str, Tensor]) -> Outlook:
        """Measure the sensitivities anew, and find the delta at which `weights` meet the target.

        Raises:
            BudgetError: no delta is large enough for it.
        """
        self.foresight.look(weights)
        for _ in range(4):
            outlook = self._at_delta()
            self._take(outlook)
            left = self.config.target_bytes - outlook.other_bytes
            if 8 * left < LEAST_BITS * self.rate.weights:
                needed = outlook.other_bytes + math.ceil(LEAST_BITS * self.rate.weights / 8)
                raise BudgetError(
                    f"target_bytes={self.config.target_bytes:,}: what stays in floats, scales and "
                    f"the header take {outlook.other_bytes:,} bytes, which leaves less than "
                    f"{LEAST_BITS} bits for each of {self.rate.weights:,} weights; it takes "
                    f"{needed:,} bytes or a smaller model"
                )
            with torch.no_grad():
                estimate = self._estimate(moves=4)
                self.unseen_bits = outlook.coded_bits - estimate
                for _ in range(24):
                    self._move(self._excess(self._estimate()), 1.0)
            if abs(float(self.log2_delta) - math.log2(outlook.delta)) < CLOSE:
                break
        return outlook

    def _at_delta(self) -> Outlook:
        """The outlook at the present delta, or at the smallest one whose codes can be stored."""
        while True:
            try:
                return self.foresight.at(float(self.log2_delta.exp2()))
            except QuantError:
                self.log2_finest = float(self.log2_delta) + 1
                self._move(torch.zeros_like(self.log2_delta), 0.0)

    def _take(self, outlook: Outlook) -> None:
        self.outlook = outlook
        self.rate.take(outlook)

    def _estimate(self, *, moves: int = 1) -> Tensor:
        """Bits at the present delta, after so many more moves of the fit."""
        bits = self.log2_delta
        for _ in range(moves):
            bits = self.rate.bits(self.log2_delta.exp2())
        return bits

    def _excess(self, bits: Tensor) -> Tensor:
        """Bits that each weight takes beyond what the target leaves it."""
        excess: Tensor = (self._bytes(bits) - self.config.target_bytes) * (8 / self.rate.weights)
        return excess

    def _bytes(self, bits: Tensor) -> Tensor:
        assert self.outlook is not None
        return self.outlook.other_bytes + (bits.detach() + self.unseen_bits) / 8

    def _move(self, excess: Tensor, gain: float) -> None:
        moved = self.log2_delta + gain * excess.clamp(-1, 1)
        self.log2_delta = moved.clamp_min(self.log2_finest)

    def press(self, now: Scheduled) -> None:
        """Add the gradient of the coded bits to the weights' gradients, and move delta on."""
        self.figures = {}
        if self.outlook is None:
            return
        delta = self.log2_delta.exp2()
        pressed = switch_at(now.progress, self.config.start) and self.config.pressure > 0
        with nullcontext() if pressed else torch.no_grad():
            bits = self.rate.bits(delta)
            multiplier = self.config.pressure * math.log(2) * self.outlook.noise * delta.square()
            if pressed:
                (bits * (multiplier / self.world)).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.figures = {
                "predicted_bytes": self._bytes(bits),
                "packing_delta": delta,
                "bit_price_nats": multiplier if pressed else 0.0,
            }
            self._move(self._excess(bits), GAIN)

    def warm_up(self) -> None:
        """Compile what the run will need, on grids of spacing 1; the state before is lost."""
        names = self.foresight.coded(
            {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        )
        steps = {}
        for name in names:
            rows, columns = self.parameters[name].shape
            one_R, one_C = np.ones(rows, np.float32), np.ones(columns, np.float32)
            steps[name] = Steps(row=one_R, column=one_C, noise=0 * one_C)
        nothing = Outlook(delta=1.0, steps=steps, coded_bits=0.0, other_bytes=0, noise=1 / 12)
        self._take(nothing)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                bits = self.rate.bits(self.log2_delta.exp2())
            if grad:
                (0 * bits).backward()  # type: ignore[no-untyped-call]
        for name in names:
            self.parameters[name].grad = None
        self.rate.prepare(names)

    def state(self) -> dict[str, Any]:
        """State that a resumed run needs to go on with the same bits."""
        outlook = self.outlook
        return {
            "log2_delta": self.log2_delta.cpu(),
            "unseen_bits": self.unseen_bits.cpu(),
            "log2_finest": self.log2_finest,
            "looked": self.looked,
            "outlook": outlook
            and {
                "delta": outlook.delta,
                "coded_bits": outlook.coded_bits,
                "other_bytes": outlook.other_bytes,
                "noise": outlook.noise,
                "steps": {
                    name: {kind: torch.from_numpy(a) for kind, a in asdict(steps).items()}
                    for name, steps in outlook.steps.items()
                },
            },
            "column_scales": [stack.scale.cpu() for stack in self.rate.stacks],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state that `state` returned."""
        device = self.log2_delta.device
        self.log2_delta = state["log2_delta"].to(device)
        self.unseen_bits = state["unseen_bits"].to(device)
        self.log2_finest = state["log2_finest"]
        self.looked = state["looked"]
        self.outlook = None
        if state["outlook"] is None:
            return
        known = dict(state["outlook"])
        known["steps"] = {
            name: Steps(**{kind: tensor.numpy() for kind, tensor in kinds.items()})
            for name, kinds in known["steps"].items()
        }
        self._take(Outlook(**known))
        for stack, scale_S1C in zip(self.rate.stacks, state["column_scales"], strict=True):
            stack.scale = scale_S1C.to(device)
