"""The codes of a section and its stored bytes -> the bytes that each tensor takes up of them.

A section holds the codes of many tensors, and its row in the header says what all of them take.
Who has the codes shares the bytes out by what they cost: in the context coder's own tables where it
is the codec, else by their empirical entropy. The packer leaves the result in each tensor's record.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gptpack.artifact.plan import SectionPlan, plan_sections
from gptpack.artifact.recorded import CODED_BYTES, shared_out
from gptpack.artifact.tables import SectionEntry
from gptpack.codec.sections import Array, large_codes
from gptpack.quant.types import PackedTensor

if TYPE_CHECKING:
    from gptpack.artifact.writer import EncodedSections


def coded_bytes(
    plan: SectionPlan, section: SectionEntry, tensors: Sequence[PackedTensor], stored: bytes
) -> list[int]:
    """Bytes of each member of the section `stored`, whose array is ``codes``; together all."""
    members = [tensors[member] for member in plan.members]
    arrays = [tensor.arrays[plan.array.name] for tensor in members]
    if section.codec == "range" and arrays[0].ndim == 2:
        from gptpack.codec.range import matrix_bits
        from gptpack.codec.trellis import parities_of

        states = [int(t.parameters["states"]) for t in members if "states" in t.parameters]
        bits = matrix_bits(stored, arrays, parities=parities_of(arrays, states))
    else:
        bits = [_entropy_bits(array) for array in arrays]
    return shared_out(section.stored_bytes, bits)


def with_coded_bytes(
    encoded: "EncodedSections", tensors: Sequence[PackedTensor], *, draft: bool = False
) -> "EncodedSections":
    """`encoded` with `CODED_BYTES` in the records of tensors that share their section of codes.

    Args:
        tensors: what was encoded.
        draft: for sizes only: where zeros stand for codes, numbers of as many digits, and as unlike
            each other, as real ones.
    """
    entries = list(encoded.tensors)
    rows = zip(plan_sections(entries), encoded.sections, encoded.data, strict=False)
    for plan, section, stored in rows:
        if plan.array.name != "codes" or len(plan.members) == 1:
            continue
        if draft and section.codec == "range" and large_codes(plan.slots(entries)):
            spread = (np.arange(len(plan.members)) * 0.6180339887) % 1 + 1
            sizes = shared_out(section.stored_bytes, plan.member_bytes * spread)
        else:
            sizes = coded_bytes(plan, section, tensors, stored)
        for member, size in zip(plan.members, sizes, strict=True):
            record = {**entries[member].record, CODED_BYTES: size}
            entries[member] = replace(entries[member], record=record)
    return replace(encoded, tensors=tuple(entries))


def _entropy_bits(codes: Array) -> float:
    """Empirical entropy of all codes together, and one bit so that no tensor is free."""
    _, counts = np.unique(codes, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum()) + 1.0
