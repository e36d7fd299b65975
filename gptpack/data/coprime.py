"""Lengths of many shards -> steps that mix them, by coprime strides. parameter-golf #1060.

Each shard is walked in a stride that has no divisor in common with its number of blocks, so a walk
visits every block once, and blocks that follow each other lie far apart. A step mixes blocks of
some shards: few at first, drawn in favour of those with most left; more, and more evenly, later.
The originals hashed the paths of the files for a seed and let the mix depend on the number of
ranks; here both come from the configuration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gptpack.data.orders import (
    DataConfig,
    Positions,
    coprime_stride,
    generator,
    shards_with_blocks,
    stream_starts,
)

SNAPSHOT_STEPS = 64
"""Steps between remembered states; going back plans at most so many anew (about 0.1 ms each)."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Walk:
    """One pass over a shard: block k begins at ``phase + (start + k stride) mod blocks`` blocks."""

    phase: int
    start: int
    stride: int
    blocks: int


@lru_cache(maxsize=1 << 14)
def walk(seed: int, shard: int, number: int, tokens: int, context: int) -> Walk:
    """The walk `number` over shard `shard` of `tokens`, a function of these alone."""
    rng = generator(seed, 3, shard, number)
    phase = int(rng.integers(0, min(context - 1, tokens - context - 1), endpoint=True))
    blocks = (tokens - 1 - phase) // context
    start = int(rng.integers(blocks))
    return Walk(phase, start, coprime_stride(blocks, rng), blocks)


@dataclass(slots=True)
class State:
    """Progress of the walks over all shards with blocks, before a step."""

    walks: Counts
    """Finished walks of each shard."""
    taken: Counts
    """Blocks that each shard's current walk has taken."""
    blocks: Counts
    """Blocks that each shard's current walk has in all."""

    def copy(self) -> "State":
        return State(self.walks.copy(), self.taken.copy(), self.blocks.copy())


class Coprime:
    """Steps that mix blocks of many shards, each walked in a coprime stride.

    The draw of a step depends on the seed, the step and how far each shard is; that is a few
    integers a shard, which are moved on from step to step without reading tokens or placing
    blocks. A resumed run moves them there from the start.
    """

    def __init__(
        self, lengths: Sequence[int], config: DataConfig, *, context: int, sequences: int, seed: int
    ) -> None:
        self.config, self.context, self.sequences, self.seed = config, context, sequences, seed
        self.held = shards_with_blocks(lengths, context)
        self.lengths = [lengths[shard] for shard in self.held]
        self.starts = stream_starts(lengths)[self.held]
        self.epoch_tokens = sum((tokens - 1) // context for tokens in self.lengths) * context
        zeros = np.zeros(len(self.held), np.int64)
        first = [self._walk(shard, 0).blocks for shard in range(len(self.held))]
        self.step = 0
        self.state = State(zeros.copy(), zeros.copy(), np.array(first, np.int64))
        self.snapshots = {0: self.state.copy()}

    def _walk(self, shard: int, number: int) -> Walk:
        """Walk `number` over the shard of this index among those with blocks."""
        index, tokens = int(self.held[shard]), self.lengths[shard]
        return walk(self.seed, index, number, tokens, self.context)

    def _draw(self, step: int) -> tuple[np.random.Generator, Counts, Counts]:
        """A step's random numbers, the shards that it mixes, and the blocks it takes of each."""
        config, state = self.config, self.state
        rng = generator(self.seed, 4, step)
        done = min(step / config.mix_steps, 1.0) if config.mix_steps else 1.0
        power = (1 - done) * config.mix_power_start + done * config.mix_power_end
        wanted = (1 - done) * config.mix_shards_start + done * config.mix_shards_end
        mix = min(round(wanted), len(self.held), self.sequences)
        # a shard that is a walk ahead of the slowest waits for it, so that what a small shard
        # holds is not seen twice before all of a large one was
        left = np.where(state.walks == state.walks.min(), state.blocks - state.taken, 1)
        weights = left.astype(np.float64) ** power
        shards = rng.choice(len(left), mix, replace=False, p=weights / weights.sum())
        chosen = weights[shards] / weights[shards].sum()
        return rng, shards, 1 + rng.multinomial(self.sequences - mix, chosen)

    def _advance(self, shards: Counts, counts: Counts) -> None:
        """Move the walks on by a step's blocks."""
        state = self.state
        state.taken[shards] += counts
        for shard in shards[state.taken[shards] >= state.blocks[shards]]:
            while state.taken[shard] >= state.blocks[shard]:
                state.taken[shard] -= state.blocks[shard]
                state.walks[shard] += 1
                state.blocks[shard] = self._walk(int(shard), int(state.walks[shard])).blocks
        self.step += 1
        if self.step % SNAPSHOT_STEPS == 0 and self.step not in self.snapshots:
            self.snapshots[self.step] = state.copy()

    def _seek(self, step: int) -> None:
        if not self.step <= step < self.step + SNAPSHOT_STEPS:
            self.step = max(known for known in self.snapshots if known <= step)
            self.state = self.snapshots[self.step].copy()
        while self.step < step:
            self._advance(*self._draw(self.step)[1:])

    def _place(self, shard: int, count: int, rng: np.random.Generator) -> Positions:
        """Positions of the next `count` blocks of a shard, permuted; one walk before the next."""
        number, taken = int(self.state.walks[shard]), int(self.state.taken[shard])
        parts = []
        while count:
            path = self._walk(shard, number)
            index = np.arange(taken, min(taken + count, path.blocks), dtype=np.int64)
            block = (path.start + index * path.stride) % path.blocks
            block = rng.permutation(block)
            parts.append(self.starts[shard] + path.phase + block * self.context)
            count, number, taken = count - len(index), number + 1, 0
        return np.concatenate(parts)

    def positions(self, step: int) -> Positions:
        """Positions as `Order` has them; shards take turns, in a new random order each round."""
        self._seek(step)
        rng, shards, counts = self._draw(step)
        pairs = list(zip(shards.tolist(), counts.tolist(), strict=True))
        positions = np.concatenate([self._place(*pair, rng) for pair in pairs])
        rounds = np.concatenate([np.arange(count) for count in counts])
        turns = np.lexsort((rng.random(self.sequences), rounds))
        self._advance(shards, counts)
        return positions[turns]
