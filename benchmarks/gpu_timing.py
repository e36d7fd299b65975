"""How the GPU benchmarks time: one CUDA graph per candidate, a cold cache, the median of replays.

A graph leaves the host's launch overhead out, which a step of training hides as well; what is left
is the time of the kernels. Before each replay a buffer larger than the L2 cache is written.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

FLUSH_BYTES = 2**28


def milliseconds(run: Callable[[], object], *, replays: int = 25) -> float:
    """Median time of `run`, which may include a backward pass, on the current CUDA device."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(replays):
        flush.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        times.append((start, stop))
    torch.cuda.synchronize()
    del graph
    return statistics.median(start.elapsed_time(stop) for start, stop in times)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this device was measured to reach."""

    bytes_per_second: float
    """Of a copy, reads and writes counted."""
    flops_per_second: float
    """Of an 8,192 cubed product in bfloat16."""

    def floor_milliseconds(self, stages: tuple[tuple[int, int], ...]) -> float:
        """Of kernels one after the other, given as (bytes, operations)."""
        return 1000 * sum(
            max(size / self.bytes_per_second, flops / self.flops_per_second)
            for size, flops in stages
        )


def ceilings() -> Ceilings:
    source = torch.empty(2**30, dtype=torch.int8, device="cuda").random_()
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source))
    n = 8192
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = milliseconds(lambda: a @ b)
    return Ceilings(2 * 2**30 / copy * 1000, 2 * n**3 / product * 1000)
