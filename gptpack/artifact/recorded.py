"""A section, and what its tensors' records say -> the bytes that each takes up of it. No numpy."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from gptpack.artifact.plan import SectionPlan, TensorEntry
from gptpack.artifact.tables import SectionEntry

CODED_BYTES = "coded_bytes"
"""Key of a tensor's record: bytes that its codes take up of their section."""


def shared_out(total: int, weights: Sequence[float]) -> list[int]:
    """`total` bytes in proportion to `weights`, whole and without a rest."""
    whole = max(sum(weights), 1e-9)
    stops = [0, *(round(part / whole * total) for part in accumulate(weights))]
    stops[-1] = total
    return [stop - start for start, stop in pairwise(stops)]


def recorded_bytes(
    plan: SectionPlan, section: SectionEntry, tensors: Sequence[TensorEntry]
) -> list[int] | None:
    """Bytes of each member as the records of a hostile header say; None where they do not.

    A section of one tensor is all its own, and one of other arrays than codes needs no record: its
    numbers all take about as many bytes.
    """
    if plan.array.name == "codes" and len(plan.members) > 1:
        said: list[Any] = [tensors[member].record.get(CODED_BYTES) for member in plan.members]
        whole = all(type(size) is int and size >= 0 for size in said)
        return said if whole and sum(said) == section.stored_bytes else None
    return shared_out(section.stored_bytes, plan.member_bytes)
