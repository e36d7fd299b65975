"""Lengths of shards and a seed -> where the windows of each step begin, in integers.

An order is a pure function of the step: it gives positions in the stream of all shards one after
another. It knows nothing of ranks, so any number of them sees the same stream, and nothing
of files, so a run does not change with the folder that its data lies in.

A block is `context` inputs at a multiple of `context` from its shard's phase; with the target of
its last input it needs ``context + 1`` tokens, all of one shard.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from gptpack.data.shards import Tokens
from gptpack.errors import DataError
from gptpack.values import NOT_NEGATIVE, POSITIVE, check_fields

Loader = Literal["sequential", "coprime", "coprime-shards", "shuffled", "bos"]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The order in which training sees the shards (docs/decisions/order-of-the-data.md)."""

    loader: Loader = "sequential"
    """``coprime`` mixes blocks of many shards, ``coprime-shards`` reorders whole shards,
    ``shuffled`` permutes all blocks, ``bos`` begins every window at a document's start."""
    mix_shards_start: int = 8
    """Shards that ``coprime`` mixes in the first step."""
    mix_shards_end: int = 64
    """Shards that ``coprime`` mixes from `mix_steps` on. The record starts at ``max(8, ranks)`` and
    ends at ``max(32, 8 ranks)``; the defaults are its values on eight ranks."""
    mix_steps: int = 1800
    """Steps over which the mix goes linearly from its start to its end; 0 begins at the end."""
    mix_power_start: float = 0.9
    """The same as `mix_power_end`, in the first step."""
    mix_power_end: float = 0.5
    """From `mix_steps` on a shard is drawn by the number of its blocks left, to this power."""
    document_tokens: int = 0
    """Tokens of a document that are trained on, the first ones; 0 takes all."""

    def __post_init__(self) -> None:
        check_fields(self, POSITIVE, "mix_shards_start mix_shards_end")
        check_fields(self, NOT_NEGATIVE, "mix_steps document_tokens")
        # higher powers of a large shard's blocks are beyond floats, and mix nothing any more
        few = ("lie in [0, 10]", lambda power: 0 <= power <= 10)
        check_fields(self, few, "mix_power_start mix_power_end")


class Order(Protocol):
    """Places the windows of each step."""

    epoch_tokens: int
    """Tokens of an epoch: each is an input once before any is again, except in a block that a phase
    cuts off."""

    def positions(self, step: int) -> Positions:
        """Positions of the first token of each of the step's windows, ``[sequences]``.

        Any step may be asked for. One thread at a time: an order may remember where it was.
        """
        ...


def generator(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that depend on the run's seed and on `key` alone.

    The first number of `key` is the use: 1 shards in strides, 2 epochs, 3 walks, 4 steps.
    """
    return np.random.default_rng((seed & (2**64 - 1), *key))


def coprime_stride(blocks: int, rng: np.random.Generator) -> int:
    """A random stride whose multiples modulo `blocks` visit every block once."""
    stride = 1
    while blocks > 1:
        stride = int(rng.integers(1, blocks))
        if gcd(stride, blocks) == 1:
            break
    return stride


def stream_starts(lengths: Sequence[int]) -> Positions:
    """Position of each shard's first token in the stream of all shards."""
    return np.cumsum([0, *lengths[:-1]], dtype=np.int64)


def shards_with_blocks(lengths: Sequence[int], context: int) -> npt.NDArray[np.int64]:
    """Indexes of the shards that hold at least one block.

    Raises:
        DataError: there are none.
    """
    held = np.flatnonzero(np.asarray(lengths) > context)
    if not held.size:
        raise DataError(
            f"no shard holds a window of {context + 1} tokens, the longest has {max(lengths)}; "
            "add text or shorten model.context"
        )
    return held


class Sequential:
    """Windows one after another, round and round, across the ends of shards."""

    def __init__(self, lengths: Sequence[int], *, context: int, sequences: int) -> None:
        self.epoch_tokens = sum(lengths)
        self.context, self.sequences = context, sequences
        if self.epoch_tokens < context + 1:
            raise DataError(
                f"{self.epoch_tokens} training tokens are fewer than one window of {context + 1}; "
                "add text or shorten model.context"
            )

    def positions(self, step: int) -> Positions:
        windows = np.arange(step * self.sequences, (step + 1) * self.sequences, dtype=np.int64)
        return windows * self.context % self.epoch_tokens


def coprime_shards(count: int, *, seed: int) -> list[int]:
    """An order of `count` shards in strides, so that neighbours in time are none in the files.

    Start and stride come from the seed; the stride has no divisor in common with `count`.
    """
    rng = generator(seed, 1)
    start, stride = int(rng.integers(count)), coprime_stride(count, rng)
    return [(start + index * stride) % count for index in range(count)]


class Shuffled:
    """Every block of every shard once per epoch, all in one random order.

    Each epoch draws a phase for each shard, so that blocks are cut elsewhere than before.
    parameter-golf #1218, `ShuffledSequenceLoader`: its draw of a shard by the blocks it has left,
    then of one of those, is a uniform permutation; this one is over all shards for all ranks.
    """

    def __init__(self, lengths: Sequence[int], *, context: int, sequences: int, seed: int) -> None:
        self.context, self.sequences, self.seed = context, sequences, seed
        self.held = shards_with_blocks(lengths, context)
        self.lengths = np.asarray(lengths, np.int64)[self.held]
        self.starts = stream_starts(lengths)[self.held]
        self.epoch_tokens = int(((self.lengths - 1) // context).sum()) * context
        self.first = [0]
        """The first window of each epoch, as far as epochs have been counted."""
        self.shuffled: tuple[int, Positions] | None = None

    def _cut(self, epoch: int) -> tuple[np.random.Generator, Positions, Positions]:
        """The epoch's random numbers, and each shard's phase and number of blocks."""
        rng = generator(self.seed, 2, epoch)
        bound = np.minimum(self.context - 1, self.lengths - self.context - 1)
        phases = rng.integers(0, bound, endpoint=True)
        return rng, phases, (self.lengths - 1 - phases) // self.context

    def _epoch(self, epoch: int) -> Positions:
        """Positions of all blocks in the epoch's order: 8 bytes to a block's ``2 context``."""
        if self.shuffled is None or self.shuffled[0] != epoch:
            rng, phases, blocks = self._cut(epoch)
            within = np.arange(blocks.sum()) - np.repeat(stream_starts(blocks.tolist()), blocks)
            positions = np.repeat(self.starts + phases, blocks) + within * self.context
            self.shuffled = epoch, rng.permutation(positions)
        return self.shuffled[1]

    def positions(self, step: int) -> Positions:
        window, end = step * self.sequences, (step + 1) * self.sequences
        parts = []
        while window < end:
            while self.first[-1] <= window:
                blocks = int(self._cut(len(self.first) - 1)[2].sum())
                self.first.append(self.first[-1] + blocks)
            epoch = int(np.searchsorted(self.first, window, side="right")) - 1
            offset = window - self.first[epoch]
            part = self._epoch(epoch)[offset : offset + end - window]
            parts.append(part)
            window += len(part)
        return np.concatenate(parts)


class BosAligned:
    """Windows that begin at a document's first token and do not overlap, in the stream's order.

    From a window's start s the next is the first BOS at ``s + context`` or later, which skips the
    fewest tokens of all such choices: nothing that starts later could end earlier. Every rank's
    windows come from one plan. After modded-nanogpt, record of 2025-07-12; here a shard is used to
    its end.
    """

    def __init__(self, shards: Sequence[Tokens], *, context: int, sequences: int, bos: int) -> None:
        self.sequences = sequences
        starts = stream_starts([len(shard) for shard in shards])
        self.windows = np.concatenate(
            [
                start + _aligned(np.flatnonzero(np.asarray(shard) == bos), len(shard), context)
                for start, shard in zip(starts, shards, strict=True)
            ]
        )
        self.epoch_tokens = len(self.windows) * context
        if not len(self.windows):
            raise DataError(
                f"no document's first token ({bos}) has {context} tokens behind it in its shard; "
                "check model.bos, add text or shorten model.context"
            )

    def positions(self, step: int) -> Positions:
        windows = np.arange(step * self.sequences, (step + 1) * self.sequences)
        return self.windows[windows % len(self.windows)]


def _aligned(documents: Positions, length: int, context: int) -> Positions:
    """The starts among `documents` (sorted) of a shard of `length` tokens."""
    documents = documents[documents + context < length]
    following = np.searchsorted(documents, documents + context).tolist()
    chosen, index = [], 0
    while index < len(following):
        chosen.append(index)
        index = following[index]
    return documents[chosen].astype(np.int64)
