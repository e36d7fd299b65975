"""Token shards and a step -> the windows of its training batch.

An order (orders.py, coprime.py) says where each window of a step begins; here windows are read,
shared out among ranks and made ready ahead of time. To resume at a step its number is enough.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import numpy as np
import torch
from torch import Tensor

from gptpack.data.coprime import Coprime
from gptpack.data.cut import CutDocuments
from gptpack.data.orders import (
    BosAligned,
    DataConfig,
    Order,
    Sequential,
    Shuffled,
    coprime_shards,
    stream_starts,
)
from gptpack.data.shards import Tokens

AHEAD_STEPS = 2
"""Batches that are read ahead, so that no step waits for one slow read."""


class Batches:
    """Windows of `context` tokens as an order places them; targets are one token later."""

    def __init__(self, shards: Sequence[Tokens], order: Order, *, context: int) -> None:
        lengths = [len(shard) for shard in shards]
        self.shards, self.order, self.context = shards, order, context
        self.starts = stream_starts(lengths)
        self.total = sum(lengths)
        """Tokens of the stream before it begins again."""

    def window(self, position: int) -> Tokens:
        """The ``context + 1`` tokens from `position` of the stream on."""
        pieces, needed = [], self.context + 1
        while needed:
            shard = int(np.searchsorted(self.starts, position, side="right")) - 1
            offset = position - int(self.starts[shard])
            pieces.append(self.shards[shard][offset : offset + needed])
            needed -= len(pieces[-1])
            position = (position + len(pieces[-1])) % self.total
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def batch(self, step: int, share: range, *, pinned: bool = False) -> tuple[Tensor, Tensor]:
        """Inputs and targets of step `step`, int64 ``[len(share), context]``.

        `share` picks this rank's windows among the step's; `pinned` puts both into page-locked
        memory, from which a copy to a CUDA device does not wait.
        """
        shape = (len(share), self.context)
        inputs, targets = (
            torch.empty(shape, dtype=torch.int64, pin_memory=pinned) for _ in range(2)
        )
        into, after = inputs.numpy(), targets.numpy()
        positions = self.order.positions(step)
        for row, index in enumerate(share):
            window = self.window(int(positions[index]))
            into[row], after[row] = window[:-1], window[1:]
        return inputs, targets


def open_batches(
    shards: Sequence[Tokens],
    config: DataConfig,
    *,
    context: int,
    sequences: int,
    seed: int,
    bos: int,
) -> Batches:
    """The batches of the configured loader, `sequences` windows of `context` tokens a step.

    Args:
        bos: token that starts each document; only the loader ``bos``, and one that cuts documents,
            looks for it.

    Raises:
        DataError: the shards hold no window of this loader.
    """
    sizes = {"context": context, "sequences": sequences}
    if most := config.document_tokens:
        # a view, which is read like the array that it stands for
        shards = [cast(Tokens, CutDocuments(shard, bos=bos, most=most)) for shard in shards]
    if config.loader == "bos":
        return Batches(shards, BosAligned(shards, bos=bos, **sizes), context=context)
    if config.loader == "coprime-shards":
        shards = [shards[index] for index in coprime_shards(len(shards), seed=seed)]
    lengths = [len(shard) for shard in shards]
    order: Order
    if config.loader == "coprime":
        order = Coprime(lengths, config, seed=seed, **sizes)
    elif config.loader == "shuffled":
        order = Shuffled(lengths, seed=seed, **sizes)
    else:
        order = Sequential(lengths, **sizes)
    return Batches(shards, order, context=context)


class Prefetcher:
    """Prepares the next steps' batches on a thread while the current one trains."""

    def __init__(self, batches: Batches, share: range, device: torch.device) -> None:
        self.batches, self.share, self.device = batches, share, device
        self.pool = ThreadPoolExecutor(1)
        self.ready: deque[tuple[int, Future[tuple[Tensor, Tensor]]]] = deque()

    def _submit(self, step: int) -> None:
        pinned = self.device.type == "cuda"
        future = self.pool.submit(self.batches.batch, step, self.share, pinned=pinned)
        self.ready.append((step, future))

    def get(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of `step` on the device; starts preparing those of the steps after it."""
        if not self.ready or self.ready[0][0] != step:
            for _, future in self.ready:
                future.cancel()
            self.ready.clear()
            self._submit(step)
        inputs, targets = self.ready.popleft()[1].result()
        while len(self.ready) < AHEAD_STEPS:
            self._submit(step + 1 + len(self.ready))
        return (
            inputs.to(self.device, non_blocking=True),
            targets.to(self.device, non_blocking=True),
        )

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
