"""The finest steps that fit: one number, delta, searched on real coded bytes."""

from collections.abc import Callable

from gptpack.artifact.writer import EncodedSections
from gptpack.errors import BudgetError, QuantError
from gptpack.packing.packer import UNLIMITED, Packed, Packer, check_budget, grid_bits
from gptpack.progress import Progress, silent
from gptpack.quant.allocation import solve_delta

FIRST_DELTA = 1e-4
FINEST_DELTA = 2e-6
"""Steps below this cost bytes and change nothing: 1e-5 nats a token for a million weights."""


def pack_to_budget(
    packer: Packer,
    *,
    delta: float | None = None,
    bits: float | None = None,
    progress: Progress = silent,
) -> Packed:
    """The finest steps whose coded bytes fit the budget, found on the real bytes.

    Args:
        delta: use this step and do not search.
        bits: the finest steps at which a weight on a grid takes at most so many coded bits.

    Raises:
        BudgetError: nothing fits; names the smallest budget, or bits, that works.
    """
    if not packer.matrices:
        return packer.packed(packer.encode({}), delta=None, predicted_nats=0.0)
    seen: dict[float, tuple[EncodedSections, float]] = {}
    refused: list[QuantError] = []
    phase = "search steps" if delta is None else "quantize and code"

    def sized(measure: Callable[[EncodedSections], int]) -> Callable[[float], int]:
        def size_at(step: float) -> int:
            try:
                coded, loss = packer.quantize(step)
            except QuantError as error:
                # codes of so fine a step cannot be stored: as good as over the budget
                refused.append(error)
                return UNLIMITED
            encoded = packer.encode(coded)
            seen[step] = (encoded, loss)
            progress(phase, len(seen), 0)
            return measure(encoded)

        return size_at

    if delta is not None:
        sized(packer.size)(delta)
        if refused:
            raise refused[0]
        encoded, loss = seen[delta]
        return packer.packed(encoded, delta=delta, predicted_nats=loss)
    if bits is not None:
        target = int(bits * packer.weights / 8)
        size_at = sized(lambda encoded: round((grid_bits(encoded) or 0.0) * packer.weights / 8))
    else:
        target = packer.budget_bytes - packer.code_bytes
        size_at = sized(packer.size)
    solution = solve_delta(
        size_at,
        target,
        start=FIRST_DELTA,
        weights=packer.weights,
        finest=FINEST_DELTA,
        tolerance=packer.config.tolerance,
    )
    if solution is None:
        if not seen:
            raise refused[0]
        # the coarsest: the one step that a search with any budget comes to
        smallest = seen[max(seen)][0]
        if bits is not None:
            raise BudgetError(
                f"{bits:g} bits a weight: the coarsest steps take {grid_bits(smallest):.3f}; ask "
                "for at least that, or for other methods"
            )
        check_budget(packer.size(smallest), packer.budget_bytes, packer.code_bytes)
        raise AssertionError("a size within the budget was not taken")
    encoded, loss = seen[solution.delta]
    return packer.packed(encoded, delta=solution.delta, predicted_nats=loss)
