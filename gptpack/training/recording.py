"""A micro batch's passes forward and back -> the same, launched at once as a recorded CUDA graph.

A small model's passes are a thousand launches and more, which take the host longer than the device
has work for. A recorded graph is one launch, and the host has time to spare again.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

Work = Callable[[], Tensor]

WARM_PASSES = 2
"""Passes of a kind that run as they are, so that everything is compiled and has its memory."""


class Recorder(Protocol):
    """What runs work and records it: `CudaGraphs`, or a test's stand-in."""

    def run(self, work: Work) -> None:
        """Run `work` where it will be recorded."""

    def record(self, work: Work) -> Work:
        """Record what `work` launches, without running it; the result runs that."""


class CudaGraphs:
    """Records on a stream of its own; all graphs share one memory, as one runs at a time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def run(self, work: Work) -> None:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream().wait_stream(self.stream)

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # other threads, which prepare batches, may do as they like in the meantime
        mode = "thread_local"
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode=mode):
            result = work()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class Recording:
    """Calls of `passes`, recorded by their kind and launched again.

    Args:
        passes: takes inputs and targets, both of one shape throughout, and returns a loss; adds to
            the gradients of `parameters`, some of them perhaps not at all.
    """

    def __init__(
        self,
        passes: Callable[[Tensor, Tensor], Tensor],
        parameters: Iterable[nn.Parameter],
        recorder: Recorder,
    ) -> None:
        self.passes, self.recorder = passes, recorder
        self.parameters = list(parameters)
        self.seen: Counter[Hashable] = Counter()
        self.recorded: dict[Hashable, tuple[Work, list[nn.Parameter]]] = {}
        self.buffers: dict[nn.Parameter, Tensor] = {}
        """Where recorded passes add up each parameter's gradient."""
        self.given: tuple[Tensor, Tensor] | None = None
        """Where they read inputs and targets."""

    def __call__(self, kind: Hashable, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of `passes`, which is good until the next call; the first passes just run.

        Whoever takes the gradients leaves None in their place, as they are buffers.

        Args:
            kind: what decides which work is launched, such as the phase of training.
        """
        if kind not in self.recorded:
            self.seen[kind] += 1
            begun = any(parameter.grad is not None for parameter in self.parameters)
            if begun or self.seen[kind] <= WARM_PASSES:
                return self.passes(inputs, targets)
            self.recorded[kind] = self._record(inputs, targets)
        work, moved = self.recorded[kind]
        self._give(inputs, targets)
        fresh = [parameter for parameter in moved if parameter.grad is None]
        if fresh:
            torch._foreach_zero_([self.buffers[parameter] for parameter in fresh])
        for parameter in fresh:
            parameter.grad = self.buffers[parameter]
        return work()

    def _give(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self.given is None:
            self.given = (inputs.clone(), targets.clone())
        for buffer, value in zip(self.given, (inputs, targets), strict=True):
            buffer.copy_(value)
        return self.given

    def _record(self, inputs: Tensor, targets: Tensor) -> tuple[Work, list[nn.Parameter]]:
        """The recorded passes, and the parameters that they have gradients for."""
        given = self._give(inputs, targets)

        def work() -> Tensor:
            return self.passes(*given)

        self.recorder.run(work)
        moved = [parameter for parameter in self.parameters if parameter.grad is not None]
        for parameter in moved:
            assert parameter.grad is not None
            parameter.grad = self.buffers.setdefault(parameter, parameter.grad)
        recorded = self.recorder.record(work)
        for parameter in moved:
            parameter.grad = None
        return recorded, moved
