"""A matrix -> numbers to take off its columns before it is quantized, where they save bytes.

Shape legend: R = rows (outputs), C = columns (inputs).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.quant.int8 import to_bfloat16
from gptpack.quant.types import from_bfloat16

Array = npt.NDArray[Any]
Offsets = npt.NDArray[np.uint16]
"""A number for each column, bits of bfloat16, ``[C]``."""

MARGIN = 2.0
"""How many times what they take offsets must save."""
METHOD_BYTES = 140
"""Bytes that another method takes in a file: rows of the section table."""
LEAST_SAVING = 0.1
"""Bits a weight that offsets must save: an addition for each takes readers time, and older readers
do not know it."""
NOISE = 2.0**-8
"""Noise of each column, as a share of the matrix' mean square: a column of less variance takes no
fewer bits."""
MOST_ROWS = 1 << 14
"""Rows from which offsets are told."""


def worthwhile_offsets(weight_RC: Array, live_C: npt.NDArray[np.bool_]) -> Offsets | None:
    """The mean of each live column; None where that saves too little.

    Rows of a large vocabulary's table share a direction (https://arxiv.org/abs/1702.01417), which
    would be coded in each of them. Less its mean, a column takes ``R / 2 log2(1 + mean^2 /
    variance)`` bits fewer: below one, where the numbers are random.
    """
    rows, columns = weight_RC.shape
    mean_C = np.where(live_C, weight_RC.mean(0, dtype=np.float64), 0.0)
    square_C = np.einsum("rc,rc->c", weight_RC, weight_RC, dtype=np.float64) / rows
    noise = NOISE * square_C.mean() + np.finfo(np.float64).tiny
    saved = rows / 2 * np.log2(1 + mean_C**2 / (square_C - mean_C**2 + noise)).sum()
    takes = 16 * columns + 8 * METHOD_BYTES
    pays = saved > max(MARGIN * takes, LEAST_SAVING * weight_RC.size)
    return to_bfloat16(mean_C) if pays else None


def less_offsets(weight_RC: Array, offsets: Offsets | None) -> Array:
    """The weight less its offsets; itself where there are none."""
    return weight_RC if offsets is None else weight_RC - from_bfloat16(offsets)


def frequent_values(weight_RC: npt.NDArray[np.float32]) -> Offsets | None:
    """The most frequent of each column's values that are exact in bfloat16; None if all are 0.

    Where codes have offsets these are they, as of all points 0 is the most frequent.
    """
    bits_CR = np.ascontiguousarray(weight_RC[:MOST_ROWS].T).view(np.uint32)
    found_C = np.zeros(len(bits_CR), np.uint16)
    for c, bits_R in enumerate(bits_CR):
        values, counts = np.unique(bits_R[(bits_R & 0xFFFF) == 0] >> 16, return_counts=True)
        if len(values):
            found_C[c] = values[counts.argmax()]
    return found_C if found_C.any() else None
