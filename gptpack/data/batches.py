"""Token shards -> training batches, as a pure function of the step.

The stream is the shards one after another, round and round. Step s takes the next `sequences`
windows of `context` tokens; any number of ranks sees the same stream, and resuming at a step needs
no state.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gptpack.errors import DataError

Tokens = npt.NDArray[np.uint16]


class SequentialBatches:
    """Windows of consecutive tokens; targets are the inputs one token later."""

    def __init__(self, shards: Sequence[Tokens], *, context: int, sequences: int) -> None:
        self.shards = shards
        self.starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self.context, self.sequences = context, sequences
        if self.total < context + 1:
            raise DataError(
                f"{self.total} training tokens are fewer than one window of {context + 1}; "
                "add text or shorten model.context"
            )

    @property
    def total(self) -> int:
        """Tokens of the stream before it begins again."""
        return int(self.starts[-1])

    def window(self, index: int) -> Tokens:
        """The ``context + 1`` tokens of window `index`, counted from the first step's first."""
        position = index * self.context % self.total
        pieces, needed = [], self.context + 1
        while needed:
            shard = int(np.searchsorted(self.starts, position, side="right")) - 1
            offset = position - int(self.starts[shard])
            piece = self.shards[shard][offset : offset + needed]
            pieces.append(piece)
            needed -= len(piece)
            position = (position + len(piece)) % self.total
        return np.concatenate(pieces)

    def batch(self, step: int, share: range) -> tuple[Tensor, Tensor]:
        """Inputs and targets of step `step`, int64 ``[len(share), context]``.

        `share` picks this rank's windows among the step's `sequences`.
        """
        first = step * self.sequences
        windows = np.stack([self.window(first + index) for index in share]).astype(np.int64)
        tokens = torch.from_numpy(windows)
        return tokens[:, :-1], tokens[:, 1:]


class Prefetcher:
    """Prepares the next step's batch on a thread while the current one trains."""

    def __init__(self, batches: SequentialBatches, share: range, device: torch.device) -> None:
        self.batches, self.share, self.device = batches, share, device
        self.pool = ThreadPoolExecutor(1)
        self.next: tuple[int, Future[Any]] | None = None

    def _load(self, step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batches.batch(step, self.share)
        if self.device.type == "cuda":
            return inputs.contiguous().pin_memory(), targets.contiguous().pin_memory()
        return inputs, targets

    def get(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of `step` on the device; starts preparing that of ``step + 1``."""
        if self.next is None or self.next[0] != step:
            self.next = (step, self.pool.submit(self._load, step))
        inputs, targets = self.next[1].result()
        self.next = (step + 1, self.pool.submit(self._load, step + 1))
        move = {"device": self.device, "non_blocking": True}
        return inputs.to(**move), targets.to(**move)

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
