"""A tensor table -> the sections that it calls for; writer and reader both follow this plan."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptpack.quant.methods import METHODS, ArraySpec, Shape

if TYPE_CHECKING:
    from gptpack.codec.sections import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """A row of the tensor table: a `PackedTensor` without its arrays."""

    name: str
    shape: Shape
    method: str
    parameters: Mapping[str, int | float]
    record: Mapping[str, Any]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionPlan:
    """A section that a tensor table calls for."""

    method: str
    array: ArraySpec
    members: tuple[int, ...]
    """Rows of the tensor table, in order."""
    shapes: tuple[Shape, ...]
    """Shapes of the members' arrays."""

    @property
    def name(self) -> str:
        return f"{self.method}.{self.array.name}"

    @property
    def member_bytes(self) -> tuple[int, ...]:
        """Raw bytes of each member's array."""
        return tuple(math.prod(shape) * self.array.itemsize for shape in self.shapes)

    def slots(self, tensors: Sequence[TensorEntry]) -> "list[Slot]":
        """The members' places, as the section's codec is told."""
        import numpy as np

        from gptpack.codec.sections import Slot

        dtype = np.dtype(self.array.dtype)
        return [
            Slot(shape=shape, dtype=dtype, parameters=tensors[member].parameters)
            for member, shape in zip(self.members, self.shapes, strict=True)
        ]


def plan_sections(tensors: Sequence[TensorEntry]) -> list[SectionPlan]:
    """The sections of a tensor table, in the order of the file.

    Methods come as they first appear in the table, and the arrays of a method in its own order,
    except that ``codes`` are last.
    """
    members: dict[str, list[int]] = {}
    for index, tensor in enumerate(tensors):
        members.setdefault(tensor.method, []).append(index)
    return [
        SectionPlan(
            method=method,
            array=array,
            members=tuple(rows),
            shapes=tuple(array.shape(tensors[row].shape) for row in rows),
        )
        for method, rows in members.items()
        for array in sorted(METHODS[method].arrays, key=lambda spec: spec.name == "codes")
    ]
