"""Tokens -> losses, in batches of fixed shape, compiled where that pays.

Shape legend:  B = windows of a batch,  T = positions,  S = the last positions, those asked for
their targets

The one method that a model needs is ``token_losses(inputs [B, T], targets [B, S]) -> nats [B, S]``,
whose targets belong to the last S positions; `compiled_losses` may say how that is compiled. So the
output head and the softmax run for scored positions alone, and the model may leave out of its last
layer what only the others would need: at stride 64 and context 2,048 the head and the losses shrink
32 times, and one layer of eleven becomes nearly free. All else is computed anew for each sliding
window: from the second layer on, the state of a position depends on where its window begins.
"""

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from gptpack.evaluation.clock import Clock

BATCH_TOKENS = {"cpu": 2048, "cuda": 131072}
"""Tokens of a batch by device, by default: logits of 131,072 x 1,024 float32 are 0.5 GiB, and a CPU
is faster where activations stay in its cache (docs/log.md, 2026-11-30)."""

Compile = Literal["auto", "on", "off"]

COMPILE_POSITIONS = 1 << 24
"""Positions that must go through a shape for ``auto`` to compile it: with fewer, compiling takes
longer than it saves. This is an estimate; no more than one device has been measured."""

IN_FLIGHT = 2
"""Batches that may be queued on a CUDA device: enough to keep it busy, few enough that progress
and a time limit mean what they say."""


def batch_tokens_for(device: torch.device, asked: int = 0) -> int:
    """Most tokens of a batch: `asked`, or what suits `device`."""
    return asked or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])


class Forward:
    """A model as a function of token windows; all passes share one, so that it compiles once.

    Args:
        compiled: ``auto`` compiles on CUDA where enough work has a shape; ``on`` always.
        compiler: `torch.compile`, or a test's stand-in.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str = "cpu",
        *,
        compiled: Compile = "auto",
        clock: Clock | None = None,
        compiler: Callable[..., Any] = torch.compile,
    ) -> None:
        self.model = model
        self.device = torch.device(device)
        self.clock = clock or Clock()
        self.compiled = compiled
        self._compiler = compiler
        self._function: Callable[..., Tensor] | None = None
        self._ready: set[tuple[Any, ...]] = set()
        self._queued: deque[torch.cuda.Event] = deque()

    def pays(self, positions: int) -> bool:
        """Whether to compile a shape that so many positions will go through."""
        if self.compiled == "auto":
            return self.device.type == "cuda" and positions >= COMPILE_POSITIONS
        return self.compiled == "on"

    def losses(self, inputs: Tensor, targets: Tensor, *, compiled: bool = False) -> Tensor:
        """Nats ``[B, S]`` of `targets` ``[B, S]``, which belong to the last S positions."""
        found = (self._compiled_losses if compiled else self._plain_losses)(inputs, targets)
        assert found.shape == targets.shape, (found.shape, targets.shape)
        return found

    def _plain_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return cast(Any, self.model).token_losses(inputs, targets)

    def _compiled_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Losses by the compiled model, and by kernels where it has some; the first call of a shape
        is booked as ``compile``."""
        key = (torch.is_grad_enabled(), inputs.shape, targets.shape)
        new = key not in self._ready
        with (
            self.clock.phase("compile") if new else nullcontext(),
            getattr(self.model, "by_kernels", nullcontext)(),
        ):
            if self._function is None:
                own = getattr(self.model, "compiled_losses", None)
                whole = partial(self._compiler, self._plain_losses, fullgraph=True, dynamic=False)
                self._function = own(self._compiler) if own is not None else whole()
            found = self._function(inputs, targets)
            if new:
                self.synchronize()
        self._ready.add(key)
        return found

    def pace(self) -> None:
        """Wait until few batches are queued; call this after each."""
        if self.device.type != "cuda":
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._queued.append(event)
        while len(self._queued) > IN_FLIGHT:
            self._queued.popleft().synchronize()

    def synchronize(self) -> None:
        """Wait for the device."""
        self._queued.clear()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
