"""Ranks of a data-parallel run. torchrun starts them; without it there is one.

NCCL on CUDA, gloo on CPU. Launching, rendezvous and failure are torchrun's business.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gptpack.errors import MissingDependencyError


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among `world` ranks, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this rank prints and writes files."""
        return self.rank == 0

    def share(self, items: int) -> range:
        """This rank's contiguous share of `items`; shares differ by one at most."""
        return range(self.rank * items // self.world, (self.rank + 1) * items // self.world)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, through one flat buffer."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        offset = 0
        for tensor in tensors:
            tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()

    def first(self, value: float) -> float:
        """Rank 0's `value`, on every rank."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return shared.item()

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` is this rank's CUDA device if there is one, else the CPU.

    Raises:
        MissingDependencyError: CUDA was asked for by name and is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise MissingDependencyError(
                "device 'cuda': torch sees no CUDA device; use --device cpu"
            )
        return torch.device("cuda", local_rank)
    return torch.device(name)


@contextmanager
def ranks(device: str = "auto") -> Iterator[Ranks]:
    """The ranks that torchrun's environment describes, or a single one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world == 1:
        yield Ranks(0, 1, chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, world, chosen)
        # gloo aborts now and then if a rank leaves while another still receives (1 run in 14)
        dist.barrier()
    finally:
        dist.destroy_process_group()
