"""A micro batch's passes forward and back -> the same, launched at once as a recorded CUDA graph.

A small model's passes are a thousand launches and more, which take the host longer than the device
has work for. A recorded graph is one launch, and the host has time to spare again.
"""

import gc
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gptpack.errors import TrainingError

Work = Callable[[], Tensor]

WARM_PASSES = 2
"""Passes of a kind that run as they are, so that everything is compiled and has its memory."""


class Recorder(Protocol):
    """What runs work and records it: `CudaGraphs`, or a test's stand-in."""

    def run(self, work: Work) -> None:
        """Run `work` where others will be recorded."""

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
        """See `Recorder`.

        Raises:
            TrainingError: CUDA refuses.
        """
        gc.collect()  # nothing that CUDA must free may be found while it records
        graph = torch.cuda.CUDAGraph()
        # other threads, which prepare batches, may do as they like in the meantime
        mode = "thread_local"
        try:
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode=mode):
                result = work()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise TrainingError(
                f"CUDA cannot record this model's passes: {error}; train with --no-compile"
            ) from error

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class Recorded(NamedTuple):
    """Passes of one kind."""

    given: tuple[Tensor, ...]
    """Where they read their inputs."""
    work: Work


class Recording:
    """Passes of a model with these parameters, recorded by their kind and launched again."""

    def __init__(self, parameters: Iterable[nn.Parameter], recorder: Recorder) -> None:
        self.parameters, self.recorder = list(parameters), recorder
        self.seen: Counter[Hashable] = Counter()
        self.moved: dict[Hashable, list[nn.Parameter]] = {}
        """The parameters that passes of each kind have gradients for."""
        self.recorded: dict[Hashable, Recorded] = {}
        self.buffers: dict[nn.Parameter, Tensor] = {}
        """Where recorded passes add up each parameter's gradient."""

    def __call__(self, passes: Callable[..., Tensor], kind: Hashable, *inputs: Tensor) -> Tensor:
        """The loss of `passes`, which is good until the next call; the first passes just run.

        Whoever takes the gradients leaves None in their place, as they are buffers.

        Args:
            passes: takes `inputs` and returns a loss; adds to the parameters' gradients.
            kind: what decides which work is launched, such as the phase of training, and so which
                parameters have gradients; inputs of one kind have the same shapes.
        """
        if kind not in self.recorded:
            begun = any(parameter.grad is not None for parameter in self.parameters)
            if begun or self.seen[kind] < WARM_PASSES:
                self.seen[kind] += 1
                loss = passes(*inputs)
                self.moved[kind] = [each for each in self.parameters if each.grad is not None]
                return loss
            self.recorded[kind] = self._record(passes, inputs, self.moved[kind])
        given, work = self.recorded[kind]
        for buffer, value in zip(given, inputs, strict=True):
            buffer.copy_(value)
        if fresh := [parameter for parameter in self.moved[kind] if parameter.grad is None]:
            torch._foreach_zero_([self.buffers[parameter] for parameter in fresh])
        for parameter in fresh:
            parameter.grad = self.buffers[parameter]
        return work()

    def _record(
        self,
        passes: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
        moved: list[nn.Parameter],
    ) -> Recorded:
        given = tuple(value.clone() for value in inputs)

        def work() -> Tensor:
            return passes(*given)

        if not self.recorded:
            # once, as libraries keep something for each stream; for each kind it would take the
            # memory of a pass beside that of those which are recorded
            self.recorder.run(work)
            for parameter in self.parameters:
                parameter.grad = None
        for parameter in moved:
            if parameter not in self.buffers:
                self.buffers[parameter] = torch.zeros_like(parameter)
            parameter.grad = self.buffers[parameter]
        recorded = self.recorder.record(work)
        for parameter in moved:
            parameter.grad = None
        return Recorded(given, recorded)
