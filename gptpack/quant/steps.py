"""Types in which a packer tells training which grids it would use, and what their codes cost.

The packer's grids depend on sensitivities, which training does not measure. A `Foresight` does
(gptpack/packing/foresight.py is one), and answers with an `Outlook`. numpy only.

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
    """Grid steps of one matrix: a point is an integer times ``row[r] * column[c]``."""

    row: Floats
    column: Floats
    noise: Floats
    """Variance that errors of other columns add to column c before it is rounded, ``[C]``, in
    squared spacings. It takes bits too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The grids, bits and bytes that a packer would make of some weights at one delta."""

    delta: float
    steps: Mapping[str, Steps]
    """Grid of each matrix that is coded, by name."""
    coded_bits: float
    """Bits of all codes, with the coder's tables and classes."""
    other_bytes: int
    """Bytes of the rest of the file: header, scales, tensors that stay in floats."""
    noise: float
    """Variance of a rounding error, in squared spacings: 1/12, less with a trellis."""

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.other_bytes + round(self.coded_bits / 8)


class Foresight(Protocol):
    """Tells training what a packer would make of the weights at hand: `look`, then `at`."""

    def coded(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Names of the tensors of these shapes that will be coded on a grid."""

    def look(self, weights: Mapping[str, Any]) -> None:
        """Measure how sensitive the loss of a model with these weights is to changes in them.

        Every rank calls this with the same weights, tensors by name.
        """

    def at(self, delta: float) -> Outlook:
        """The packer's outlook at `delta` for the weights that were looked at last."""


def reciprocals(scale: npt.NDArray[Any], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Reciprocals of a grid's spacings, rounded once, from float64.

    Quantizers multiply by these instead of dividing.
    """
    return (1 / scale.astype(np.float64)).astype(dtype)
