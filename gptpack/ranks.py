"""torchrun's environment -> this process's place among its ranks, and what ranks do together.

Without torchrun there is one rank. Tensors on CUDA go by NCCL, tensors on the CPU by gloo, also in
a run on CUDA: what only the hosts have to agree on is settled between the hosts. Launching,
rendezvous and failure are torchrun's business.
"""

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gptpack.errors import ConfigError, MissingDependencyError

# torch 2.13 deprecates the names that 2.11 has
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter_sum = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(slots=True)
class Pending:
    """A tensor that a collective is still writing to; `source` is what it reads."""

    tensor: Tensor
    source: Tensor | None = None
    work: dist.Work | None = None

    def wait(self) -> Tensor:
        """The finished tensor. On CUDA the device waits for it, not the host."""
        if self.work is not None:
            self.work.wait()
            # wait once: gloo writes the result at every wait, over any later change to it
            self.work = self.source = None
        return self.tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among `world` ranks, and its device.

    Collectives are launched by all ranks in the same order, and run in that order. With one rank
    there are none: a sum or a gathered tensor is the tensor itself.
    """

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

    def launch_sum(self, tensor: Tensor) -> Pending:
        """Begin to replace `tensor` by its sum over all ranks."""
        if self.world == 1:
            return Pending(tensor)
        return Pending(tensor, work=dist.all_reduce(tensor, async_op=True))

    def launch_scatter_sum(self, tensor: Tensor) -> Pending:
        """Begin to sum `tensor` over all ranks; each gets its part of the first axis.

        That axis is a multiple of the ranks; rank r gets the r-th of equal parts.
        """
        if self.world == 1:
            return Pending(tensor)
        part = tensor.new_empty((len(tensor) // self.world, *tensor.shape[1:]))
        source = tensor.contiguous()
        return Pending(part, source, _scatter_sum(part, source, async_op=True))

    def launch_gather(self, part: Tensor, out: Tensor | None = None) -> Pending:
        """Begin to join the ranks' parts, in the ranks' order, along the first axis.

        Args:
            out: tensor that receives the whole; `part` may be this rank's part of it.
        """
        if self.world == 1:
            return Pending(part)
        if out is None:
            out = part.new_empty((len(part) * self.world, *part.shape[1:]))
        source = part.contiguous()
        return Pending(out, source, _gather(out, source, async_op=True))

    def first(self, value: float) -> float:
        """Rank 0's `value`, on every rank. No device waits for it, or is waited for."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.item()

    def barrier(self) -> None:
        """Wait until every rank's host is here."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(()))


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device that `name` asks for; ``auto`` is CUDA where there is a device, or else the CPU.

    Args:
        local_rank: number of the CUDA device; None takes torch's current one, or that in `name`.

    Raises:
        ConfigError: no such device.
        MissingDependencyError: CUDA or MPS was asked for by name and is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdecimal()):
        raise ConfigError(f"device {name!r}: choose auto, cpu, cuda, mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError("device 'cuda': torch sees no CUDA device; use --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise MissingDependencyError("device 'mps': torch sees no GPU of Apple's; use --device cpu")
    return torch.device(name if kind != "cuda" or local_rank is None else f"cuda:{local_rank}")


def check_computes(device: torch.device) -> None:
    """Refuse MPS, which has no float64, for what takes more than running a model.

    Raises:
        ConfigError: `device` is that.
    """
    if device.type == "mps":
        raise ConfigError("device 'mps': models are only loaded and sampled there; use cpu or cuda")


@contextmanager
def ranks(device: str = "auto") -> Iterator[Ranks]:
    """This process among the ranks that torchrun started, or alone, on ``cpu`` or ``cuda``.

    Raises:
        ConfigError, MissingDependencyError: see `pick_device`; on MPS models only run.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    check_computes(chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world == 1:
        yield Ranks(0, 1, chosen)
        return
    # If torch's compiler is first imported (by AdamW, say) while there is a process group, defaults
    # of its functions keep that group for good, and gloo's threads with it. Processes that exited
    # under such threads were aborted once in some twenty runs (torch 2.13).
    importlib.import_module("torch._dynamo")
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    here = Ranks(rank, world, chosen)
    try:
        yield here
        # gloo aborts now and then if a rank leaves while another still receives (1 run in 14)
        here.barrier()
    finally:
        dist.destroy_process_group()
