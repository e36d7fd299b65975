"""What training has to know of a packer: its steps, and what their codes cost. numpy only.

The packer's grid depends on sensitivities, which nobody has during training. Whoever can measure
them (gptpack/packing/foresight.py) hands them over in this form.

Shape legend: R = rows (outputs), C = columns (inputs).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The grid of one matrix: a point is an integer times ``row[r] * column[c]``."""

    row: Floats
    column: Floats
    noise: Floats
    """Variance, in squared steps, of what the errors of other columns add to column c before it is
    rounded, ``[C]``: a coder sees it as well."""
    share: Floats
    """By how much smaller an error of column c must be to cost the same where no other column makes
    up for it, ``[C]``: ``pivot_c / sqrt(H_cc)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a packer would do with some weights at one delta."""

    delta: float
    steps: Mapping[str, Steps]
    """By weight name: the matrices that are coded."""
    coded_bits: float
    """Of all their codes, tables and classes included."""
    other_bytes: int
    """The rest of the file: header, scales, what stays in floats."""
    noise: float
    """Variance of a rounding error, in squared steps: 1/12, less with a trellis."""

    @property
    def file_bytes(self) -> int:
        return self.other_bytes + round(self.coded_bits / 8)


class Foresight(Protocol):
    """Somebody who knows what a packer would do."""

    def coded(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Names of the tensors of these shapes that will be coded on a grid."""

    def look(self, weights: Mapping[str, Any]) -> None:
        """Take in a model's weights by name, tensors, and measure how sensitive it is to them.

        Every rank calls this with the same weights.
        """

    def at(self, delta: float) -> Outlook:
        """What those weights would become at `delta`."""


def reciprocals(step: npt.NDArray[Any], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """What a weight is multiplied by to be in units of `step`; rounded once, from float64.

    The packer and the fake quantizer of training both divide by multiplying with these.
    """
    return (1 / step.astype(np.float64)).astype(dtype)
