"""A packer and a budget -> the file with the finest delta that fits, searched on coded bytes.

During the search the size of codes is computed from their frequency tables, to some bytes. The
result is coded; if it does not fit after all, the search goes on with codes in full.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from gptpack.artifact.writer import EncodedSections
from gptpack.codec.polynomials import noise_of
from gptpack.errors import BudgetError, QuantError
from gptpack.packing.packer import (
    UNLIMITED,
    CodedFile,
    Packer,
    grid_bits,
    grid_bytes,
)
from gptpack.packing.solve import solve_delta
from gptpack.progress import Progress, silent
from gptpack.quant.rates import rate_of
from gptpack.quant.types import PackedTensor

FIRST_DELTA = 1e-4
"""Delta from which the start of a search is guessed."""
GUESSES = 6
"""Guesses of a search's start, each as if an octave of delta took a bit per weight; the last is
right to a few percent."""
FINEST_DELTA = 2e-6
"""Finest delta that is tried; a finer one costs bytes and changes nothing, as this predicts a rise
of 1e-5 nats per token for a million weights."""
FINEST = (
    "the file is smaller than it may be: its grids are the finest there are, and more bytes would "
    "make it no better"
)
"""What there is to say of a file at that delta."""
LARGE = 1 << 26
"""Weights from which a search begins with a sample of rows: coding them all takes minutes."""
SAMPLE = 8
"""Rows of which one is in the sample."""
BY_ROW = (".codes", ".row_scales")
"""Ends of the names of sections that grow with the rows."""
COARSEST_DELTA = 4096 * FIRST_DELTA
"""Coarsest delta that is tried."""


class Goal(NamedTuple):
    """Bytes of a file, or of its grids, and the most there may be."""

    measure: Callable[[EncodedSections], int]
    limit: int

    def less(self, room: int) -> "Goal":
        """This goal with `room` bytes left free."""
        return Goal(self.measure, self.limit - room)


def goal_of(packer: Packer, bits: float | None) -> Goal:
    """The budget of `packer`, or `bits` for each weight that is on a grid now."""
    if bits is None:
        return Goal(packer.size, packer.budget_bytes - packer.code_bytes)
    return Goal(grid_bytes, int(bits * packer.weights / 8))


@dataclass(frozen=True, slots=True)
class Tried:
    """Codes at one delta."""

    delta: float
    coded: dict[str, PackedTensor]
    loss_nats: float
    size: int


@dataclass(slots=True, kw_only=True)
class Search:
    """Sizes at one delta after another, and the codes that may be needed again."""

    packer: Packer
    goal: Goal
    progress: Progress
    draft: bool = True
    """Whether sizes are those of drafts."""
    finest: Tried | None = None
    """The codes of the finest delta whose size is within the goal."""
    smallest: Tried | None = None
    """The codes of the smallest size seen, where none is within the goal; the coarsest delta need
    not have the fewest bytes."""
    refused: list[QuantError] = field(default_factory=list)
    """Errors of deltas that are too fine."""
    sizes: int = 0
    """Number of sizes that were asked for."""

    def size_at(self, delta: float) -> int:
        """The size at `delta`; `UNLIMITED` where codes of so fine a grid cannot be stored."""
        try:
            coded, loss_nats = self.packer.quantize(delta)
        except QuantError as error:
            self.refused.append(error)
            return UNLIMITED
        packer = self.packer
        encoded = packer.draft(coded) if self.draft else packer.encode(coded)
        size = self.goal.measure(encoded)
        tried = Tried(delta, coded, loss_nats, size)
        if size <= self.goal.limit:
            # one set of codes is kept: they take half of what the weights do
            self.smallest = None
            if self.finest is None or delta < self.finest.delta:
                self.finest = tried
        elif self.finest is None and (self.smallest is None or size < self.smallest.size):
            self.smallest = tried
        self.sizes += 1
        self.progress("search delta", self.sizes, 0)
        return size

    def run(self, start: float, octave_bits: float) -> Tried | None:
        """The codes of the finest delta found to fit; None if the coarsest does not.

        Args:
            octave_bits: bits that halving `start` costs.
        """
        delta = solve_delta(
            self.size_at,
            self.goal.limit,
            start=start,
            octave_bits=octave_bits,
            finest=FINEST_DELTA,
            coarsest=COARSEST_DELTA,
            tolerance=self.packer.config.tolerance,
        )
        return None if delta is None else self.finest


def expected_delta(packer: Packer, room: int) -> tuple[float, float]:
    """The delta whose grids should take `room` bytes, and the bits that halving it should cost."""
    weights = packer.weights
    config = packer.config
    rate = rate_of(
        packer.matrices,
        config.delta_factor_of,
        row_power=config.row_power,
        noise=noise_of(max(packer.states.values())),
    )
    lowest, highest = math.log2(FINEST_DELTA), math.log2(COARSEST_DELTA)
    position = math.log2(FIRST_DELTA)
    for _ in range(GUESSES):
        position += (rate(2.0**position) - 8 * room) / weights
        position = min(max(position, lowest), highest)
    if position == lowest:
        # so fine that codes may not be storable
        return FIRST_DELTA, weights
    # sums of floats may differ between machines and numbers of threads; the start must not
    position = round(position * 1024) / 1024
    slope = 4 * (rate(2.0 ** (position - 0.125)) - rate(2.0 ** (position + 0.125)))
    return 2.0**position, max(slope, weights / 16)


def sampled(packer: Packer) -> Packer:
    """A packer of every `SAMPLE`-th row of each matrix: rows are coded without each other."""
    return replace(
        packer,
        matrices=[
            replace(
                matrix,
                weight=np.ascontiguousarray(np.asarray(matrix.weight)[::SAMPLE]),
                row_weight=matrix.row_weight[::SAMPLE],
                energy=matrix.energy[::SAMPLE],
            )
            for matrix in packer.matrices
        ],
        feeds={},
    )


def start_of_search(packer: Packer, goal: Goal) -> tuple[float, float]:
    """The delta to begin with, and the bits that halving it should cost.

    That of a large model is searched on a sample of its rows, whose codes take as many bits a
    weight as all: the search proper then needs one size, or two.
    """
    room = goal.limit
    if goal.measure is not grid_bytes:
        room -= sum(array.nbytes for t in packer.fixed.values() for array in t.arrays.values())
    start, octave_bits = expected_delta(packer, room)
    if packer.weights < LARGE:
        return start, octave_bits
    few = sampled(packer)
    ratio = packer.weights / few.weights

    def size_at(delta: float) -> int:
        try:
            encoded = few.draft(few.quantize(delta)[0])
        except QuantError:
            return UNLIMITED
        by_row = sum(s.stored_bytes for s in encoded.sections if s.name.endswith(BY_ROW))
        return goal.measure(encoded) + int((ratio - 1) * by_row)

    found = solve_delta(
        size_at,
        int((1 - packer.config.tolerance / 4) * goal.limit),
        start=start,
        octave_bits=octave_bits,
        finest=FINEST_DELTA,
        coarsest=COARSEST_DELTA,
        tolerance=packer.config.tolerance / 2,
    )
    return (start if found is None else found), octave_bits


def pack_to_budget(
    packer: Packer,
    *,
    delta: float | None = None,
    bits: float | None = None,
    progress: Progress = silent,
) -> CodedFile:
    """The file with the finest delta whose coded bytes fit the budget.

    Args:
        delta: take this one and do not search.
        bits: take the finest delta at which a weight on a grid has at most so many coded bits.

    Raises:
        BudgetError: nothing fits; names a budget, or bits, that work.
        QuantError: codes at `delta`, or at every delta tried, cannot be stored.
    """
    if not packer.matrices:
        return packer.seal_smallest(packer.encode({}), delta=None, predicted_nats=0.0)
    if delta is not None:
        coded, loss = packer.quantize(delta)
        progress("quantize and code", 1, 0)
        return packer.seal(packer.encode(coded), delta=delta, predicted_nats=loss)
    goal = goal_of(packer, bits)
    search = Search(packer=packer, goal=goal, progress=progress)
    start, octave_bits = start_of_search(packer, goal)
    found = search.run(start, octave_bits)
    encoded = None if found is None else packer.encode(found.coded)
    if encoded is None or goal.measure(encoded) > goal.limit:
        # a draft may be off by some bytes
        search = replace(search, draft=False, finest=None, smallest=None)
        found = search.run(COARSEST_DELTA if found is None else found.delta, octave_bits)
        encoded = None if found is None else packer.encode(found.coded)
    if found is not None and encoded is not None:
        file = packer.seal(encoded, delta=found.delta, predicted_nats=found.loss_nats)
        rest = goal.limit - goal.measure(encoded)
        if found.delta < 1.001 * FINEST_DELTA and rest > packer.config.tolerance * goal.limit:
            file = replace(file, notes=(*file.notes, FINEST))
        return file
    if search.smallest is None:
        raise search.refused[0]
    smallest = packer.encode(search.smallest.coded)
    if bits is not None:
        fewest = math.ceil(1000 * (grid_bits(smallest) or 0.0)) / 1000
        raise BudgetError(
            f"{bits:g} bits a weight: the fewest found are {fewest:.3f}; ask for at least that, or "
            "for other methods"
        )
    return packer.seal_smallest(
        smallest, delta=search.smallest.delta, predicted_nats=search.smallest.loss_nats
    )
