"""A packer's grid steps and the bytes of its file, as training has to know them. numpy only.

The packer's grid depends on sensitivities, which training cannot measure itself. A `Foresight`
(gptpack/packing/foresight.py is one) measures them and hands the grid over in this form.

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
    """Variance, in squared grid steps, that the errors of other columns add to column c before it
    is rounded, ``[C]``: a coder sees it as well."""
    share: Floats
    """Ratio ``pivot_c / sqrt(H_cc)``, ``[C]``: so much smaller must an error of column c be to cost
    the same where no other column makes up for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The packer's grid for some weights at one delta, and the size of the file."""

    delta: float
    steps: Mapping[str, Steps]
    """Grid steps of the matrices that are coded, by weight name."""
    coded_bits: float
    """Bits of the matrices' codes, with tables and classes."""
    other_bytes: int
    """Bytes of the rest of the file: header, scales, tensors in floats."""
    noise: float
    """Variance of a rounding error, in squared grid steps: 1/12, less with a trellis."""

    @property
    def file_bytes(self) -> int:
        return self.other_bytes + round(self.coded_bits / 8)


class Foresight(Protocol):
    """A prediction of what the packer makes of weights that are still in training."""

    def coded(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Names of the tensors of these shapes that will be coded on a grid."""

    def look(self, weights: Mapping[str, Any]) -> None:
        """Measure how sensitive a model with these weights (tensors by name) is to their errors.

        Every rank calls this with the same weights.
        """

    def at(self, delta: float) -> Outlook:
        """The outlook at `delta` for the weights that were looked at last."""


def reciprocals(scale: npt.NDArray[Any], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """``1 / scale`` in `dtype`, rounded once, from float64.

    The packer and training's fake quantizer both multiply with these instead of dividing.
    """
    return (1 / scale.astype(np.float64)).astype(dtype)
