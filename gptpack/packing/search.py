"""The finest steps that fit: one number, delta, searched on coded bytes.

While it searches, what codes will take is computed from their frequency tables, to some bytes; what
it ends with is coded, and if that does not fit after all, the search goes on with codes in full.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gptpack.artifact.writer import EncodedSections
from gptpack.codec.trellis import noise_of
from gptpack.errors import BudgetError, QuantError
from gptpack.packing.packer import UNLIMITED, CodedFile, Packer, check_budget, grid_bits
from gptpack.packing.solve import solve_delta
from gptpack.progress import Progress, silent
from gptpack.quant.rates import rate_of
from gptpack.quant.types import PackedTensor

FIRST_DELTA = 1e-4
GUESSES = 6
"""Guesses of where a search begins; each takes a bit a weight for an octave of delta and leaves a
few percent."""
FINEST_DELTA = 2e-6
"""Steps below this cost bytes and change nothing: 1e-5 nats a token for a million weights."""
COARSEST_DELTA = 4096 * FIRST_DELTA


@dataclass(frozen=True, slots=True)
class Tried:
    """Codes at one delta."""

    delta: float
    coded: dict[str, PackedTensor]
    loss_nats: float
    size: int


@dataclass(slots=True, kw_only=True)
class Search:
    """Sizes at the steps that are asked for; of their codes, those that may be needed again."""

    packer: Packer
    measure: Callable[[EncodedSections], int]
    target: int
    progress: Progress
    draft: bool = True
    """Whether sizes are those of drafts."""
    finest: Tried | None = None
    """The finest that is within the target."""
    smallest: Tried | None = None
    """The smallest that was seen; the coarsest steps need not have the fewest bytes."""
    refused: list[QuantError] = field(default_factory=list)
    sizes: int = 0

    def size_at(self, delta: float) -> int:
        try:
            coded, loss_nats = self.packer.quantize(delta)
        except QuantError as error:
            # codes of so fine a step cannot be stored: as good as over the budget
            self.refused.append(error)
            return UNLIMITED
        packer = self.packer
        encoded = packer.draft(coded) if self.draft else packer.encode(coded)
        size = self.measure(encoded)
        tried = Tried(delta, coded, loss_nats, size)
        if size <= self.target and (self.finest is None or delta < self.finest.delta):
            self.finest = tried
        if self.smallest is None or size < self.smallest.size:
            self.smallest = tried
        self.sizes += 1
        self.progress("search delta", self.sizes, 0)
        return size

    def run(self, start: float, octave_bits: float) -> Tried | None:
        """The finest that was found to fit; None if the coarsest does not.

        Args:
            octave_bits: what halving `start` costs.
        """
        solution = solve_delta(
            self.size_at,
            self.target,
            start=start,
            octave_bits=octave_bits,
            finest=FINEST_DELTA,
            coarsest=COARSEST_DELTA,
            tolerance=self.packer.config.tolerance,
        )
        return None if solution is None else self.finest


def expected_step(packer: Packer, target: int) -> tuple[float, float]:
    """The step whose file should have `target` bytes, and the bits that halving it should cost."""
    weights = packer.weights
    config = packer.config
    rate = rate_of(
        packer.matrices,
        config.step_factor_of,
        row_power=config.row_power,
        noise=noise_of(max(packer.states.values())),
    )
    fixed = sum(array.nbytes for t in packer.fixed.values() for array in t.arrays.values())
    bits = 8 * (target - fixed)
    lowest, highest = math.log2(FINEST_DELTA), math.log2(COARSEST_DELTA)
    position = math.log2(FIRST_DELTA)
    for _ in range(GUESSES):
        position += (rate(2.0**position) - bits) / weights
        position = min(max(position, lowest), highest)
    if position == lowest:
        # so fine that codes may not be storable
        return FIRST_DELTA, weights
    # sums of floats may end otherwise on other machines or threads, the start shall not
    position = round(position * 1024) / 1024
    slope = 4 * (rate(2.0 ** (position - 0.125)) - rate(2.0 ** (position + 0.125)))
    return 2.0**position, max(slope, weights / 16)


def pack_to_budget(
    packer: Packer,
    *,
    delta: float | None = None,
    bits: float | None = None,
    progress: Progress = silent,
) -> CodedFile:
    """The finest steps whose coded bytes fit the budget.

    Args:
        delta: use this step and do not search.
        bits: the finest steps at which a weight on a grid takes at most so many coded bits.

    Raises:
        BudgetError: nothing fits; names a budget, or bits, that work.
    """
    if not packer.matrices:
        return packer.seal(packer.encode({}), delta=None, predicted_nats=0.0)
    if delta is not None:
        coded, loss = packer.quantize(delta)
        progress("quantize and code", 1, 0)
        return packer.seal(packer.encode(coded), delta=delta, predicted_nats=loss)

    def measure(encoded: EncodedSections) -> int:
        if bits is None:
            return packer.size(encoded)
        return round((grid_bits(encoded) or 0.0) * packer.weights / 8)

    if bits is None:
        target = packer.budget_bytes - packer.code_bytes
    else:
        target = int(bits * packer.weights / 8)
    search = Search(packer=packer, measure=measure, target=target, progress=progress)
    start, octave_bits = expected_step(packer, target)
    found = search.run(start, octave_bits)
    encoded = None if found is None else packer.encode(found.coded)
    if encoded is None or measure(encoded) > target:
        # a draft may be off by some bytes
        search = replace(search, draft=False, finest=None, smallest=None)
        found = search.run(COARSEST_DELTA if found is None else found.delta, octave_bits)
        encoded = None if found is None else packer.encode(found.coded)
    if found is not None and encoded is not None:
        return packer.seal(encoded, delta=found.delta, predicted_nats=found.loss_nats)
    if search.smallest is None:
        raise search.refused[0]
    smallest = packer.encode(search.smallest.coded)
    if bits is not None:
        fewest = math.ceil(1000 * (grid_bits(smallest) or 0.0)) / 1000
        raise BudgetError(
            f"{bits:g} bits a weight: the fewest found are {fewest:.3f}; ask for at least that, or "
            "for other methods"
        )
    check_budget(packer.size(smallest), packer.budget_bytes, packer.code_bytes)
    raise AssertionError("a size within the budget was not taken")
