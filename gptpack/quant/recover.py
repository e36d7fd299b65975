"""Weights that were unpacked from a file -> the codes that they were, or nothing.

A value on a grid is ``point * row scale * column scale``, and both scales are powers of two, in
steps of 1/64 and of 1/4 octave. So 64 log2 |value| is an integer, but for the odd part of the
point, whose fraction tells which it is. Offsets of columns come off first. What is found counts
only if it decodes to the very weights.

Shape legend: R = rows (outputs), C = columns (inputs).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.codec.trellis import next_states
from gptpack.errors import ArtifactError, QuantError
from gptpack.quant.allocation import grid_tensor
from gptpack.quant.offsets import Offsets, frequent_values, less_offsets
from gptpack.quant.types import (
    COLUMN_SCALES_PER_OCTAVE,
    ROW_SCALES_PER_OCTAVE,
    PackedTensor,
    dequantize,
    grid_scales,
)

Array = npt.NDArray[Any]

CLOSE = 4e-5
"""Most by which 64 log2 of a value is off, as its factors are rounded to 24 bits."""
CLOSE_BY_OFFSETS = 1e-3
"""The same where offsets were taken off, which are up to some 150 times as large as the value."""
COARSE = ROW_SCALES_PER_OCTAVE // COLUMN_SCALES_PER_OCTAVE
"""Steps of a row scale in one of a column scale."""
ODD_PARTS = range(1, 16, 2)
"""Odd parts of points that are looked for; some points of each row and column have one of them."""
LEAST_SHARE = 0.1
"""Least share of such points in a row; elsewhere one value in 1,500 looks like one, or one in 16 of
those in bfloat16."""
DIGITS = 16
"""Bits of a point; a file's codes have as many."""
DIGITS_BY_OFFSETS = 10
"""Bits of a point that are right where offsets were taken off."""
NOTHING = 1 << 40
"""Number that stands last among values, for what does not count."""
MOST_DOUBLINGS = 4
"""Times that a row is doubled at most."""
SHARES = ((0.25, 0.25), (0.25, 0.0), (0.0, 0.0))
"""Which of its values tells a column, and which a row, as they settle in turns: at last, the
least."""


def recovered(
    name: str, weight_RC: npt.NDArray[np.float32], states: int, *, offsets: bool = False
) -> PackedTensor | None:
    """The tensor on a grid of so many trellis states that decodes to `weight_RC`, bit for bit.

    None where there is none, or where too many points are 0 to tell the scales by.

    Args:
        offsets: whether columns may have offsets.
    """
    offset_C = frequent_values(weight_RC) if offsets else None
    part_RC = less_offsets(weight_RC, offset_C)
    precision = (CLOSE, DIGITS) if offset_C is None else (CLOSE_BY_OFFSETS, DIGITS_BY_OFFSETS)
    # a row's worth shows of nearly all weights that they are on no grid
    row_C = part_RC[len(part_RC) // 2]
    if _logs(row_C, precision[0])[1].sum() < LEAST_SHARE * np.count_nonzero(row_C):
        return None
    scales = _scales(part_RC, *precision)
    if scales is None:
        return None
    row_R, column_C = scales
    points_RC = np.rint(_unscaled(part_RC, row_R, column_C))
    if np.abs(points_RC).max() >= 2**DIGITS:
        return None
    if states > 1:
        row_R = row_R - ROW_SCALES_PER_OCTAVE * _doublings(points_RC.astype(np.int32), states)
    # Packers center column scales. Each scale is rounded, so that it counts which has a part of an
    # octave.
    middle = int(np.rint(column_C.mean()))
    shifted = (
        _on_grid(name, weight_RC, (row_R - COARSE * shift, column_C + shift), states, offset_C)
        for shift in (-middle, -middle - 1, -middle + 1, -middle - 2)
    )
    return next((tensor for tensor in shifted if tensor is not None), None)


def _on_grid(
    name: str,
    weight_RC: Array,
    scales: tuple[Array, Array],
    states: int,
    offsets: Offsets | None,
) -> PackedTensor | None:
    """The tensor of these weights, scales and offsets; None if it does not decode to them."""
    row_R, column_C = (scale.astype(np.int16) for scale in scales)
    try:
        row_scale_R, column_scale_C = grid_scales(row_R, column_C)
        part_RC = less_offsets(weight_RC, offsets)
        points_RC = np.rint(part_RC / row_scale_R[:, None] / column_scale_C).astype(np.int64)
        trellis = states > 1
        # a trellis' points lie twice as dense as its row scale says
        stored_R = row_R + np.int16(trellis * ROW_SCALES_PER_OCTAVE)
        tensor = grid_tensor(
            name, points_RC >> trellis, (stored_R, column_C), states=states, offsets=offsets
        )
        return tensor if np.array_equal(dequantize(tensor), weight_RC) else None
    except (ArtifactError, QuantError):
        return None


def _logs(weight_RC: Array, close: float) -> tuple[Array, Array]:
    """64 log2 of each magnitude, but for the odd part of its point, and where that was found."""
    with np.errstate(divide="ignore"):
        log_RC = ROW_SCALES_PER_OCTAVE * np.log2(np.abs(weight_RC), dtype=np.float64)
    log_RC[np.isneginf(log_RC)] = 0.5
    found_RC, here_RC = np.zeros(log_RC.shape, np.int64), np.zeros(log_RC.shape, bool)
    for odd in ODD_PARTS:
        left_RC = log_RC - ROW_SCALES_PER_OCTAVE * np.log2(odd)
        whole_RC = np.rint(left_RC)
        new_RC = (np.abs(left_RC - whole_RC) < close) & ~here_RC
        found_RC[new_RC] = whole_RC[new_RC]
        here_RC |= new_RC
    return found_RC, here_RC


def _scales(weight_RC: Array, close: float, digits: int) -> tuple[Array, Array] | None:
    """Indexes of row and column scales; None if the weights disagree about them.

    Small points tell the scales but for whole octaves; those are told by how often a point can be
    halved, as some of each row and column are odd.
    """
    row_R, column_C = _potentials(*_logs(weight_RC, close))
    coarse_C, off_C = np.divmod(column_C - column_C[0], COARSE)
    if off_C.any():
        return None
    row_R += column_C[0]
    part_RC, octave_RC = np.frexp(_unscaled(weight_RC, row_R, coarse_C))
    digits_RC = np.rint(np.ldexp(np.abs(part_RC), digits)).astype(np.int64)
    halvings_RC = octave_RC + np.log2(np.maximum(digits_RC & -digits_RC, 1)).astype(np.int64)
    more_R, more_C = _potentials(halvings_RC - digits, digits_RC > 0)
    return row_R + ROW_SCALES_PER_OCTAVE * more_R, coarse_C + COLUMN_SCALES_PER_OCTAVE * more_C


def _unscaled(weight_RC: Array, row_R: Array, column_C: Array) -> Array:
    """The weights divided by the scales of these indexes, in float64."""
    scale_R = 2.0 ** (row_R / ROW_SCALES_PER_OCTAVE)
    found: Array = weight_RC / scale_R[:, None] / 2.0 ** (column_C / COLUMN_SCALES_PER_OCTAVE)
    return found


def _doublings(points_RC: npt.NDArray[np.int32], states: int) -> Array:
    """How often each row must be doubled for its points to be as even and odd as a trellis says.

    A row without an odd point, such as the first always is, was taken for half of what it is.
    """
    found_R = np.zeros(len(points_RC), np.int64)
    state_C = np.zeros(points_RC.shape[1], np.int32)
    for r, point_C in enumerate(points_RC):
        while found_R[r] < MOST_DOUBLINGS and ((point_C ^ state_C) & 1).any():
            point_C = 2 * point_C  # noqa: PLW2901
            found_R[r] += 1
        state_C = next_states(state_C, point_C >> 1, states)
    return found_R


def _potentials(value_RC: Array, here_RC: Array) -> tuple[Array, Array]:
    """A number for each row and column, whose sum is the least that a value may be.

    Values count where `here_RC`. Many of them are that least. Row by row, those with most values
    first, a row's number is about the median of how far it is from the columns seen so far: powers
    are as often larger as smaller. From there rows and columns settle in turns.
    """
    row_R, column_C = (np.zeros(size, np.int64) for size in value_RC.shape)
    seen_C = np.zeros(len(column_C), bool)
    for r in np.argsort(-here_RC.sum(1), kind="stable"):
        shared_C, new_C = here_RC[r] & seen_C, here_RC[r] & ~seen_C
        # a row that shares no column may have any number
        apart = (value_RC[r] - column_C)[shared_C if shared_C.any() else here_RC[r]]
        if len(apart):
            row_R[r] = np.sort(apart)[len(apart) // 2]
        column_C[new_C] = value_RC[r, new_C] - row_R[r]
        seen_C |= new_C
    for share, row_share in SHARES:
        column_C = _low(value_RC - row_R[:, None], here_RC, 0, share)
        row_R = _low(value_RC - column_C, here_RC, 1, row_share)
    return row_R, column_C


def _low(value_RC: Array, here_RC: Array, axis: int, share: float) -> Array:
    """The value below which a share of those lie that count, along an axis; 0 where none does."""
    sorted_RC = np.sort(np.where(here_RC, value_RC, NOTHING), axis)
    place = np.expand_dims((share * here_RC.sum(axis)).astype(np.int64), axis)
    found = np.take_along_axis(sorted_RC, place, axis).squeeze(axis)
    return np.where(found == NOTHING, 0, found)
