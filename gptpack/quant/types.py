"""The arrays that a packed tensor consists of -> its values. numpy only, no torch.

methods.py says which arrays a method has. Shape legend: R = rows (outputs), C = columns (inputs).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.codec.trellis import decode_trellis
from gptpack.errors import ArtifactError, QuantError
from gptpack.quant.grids import scale_values
from gptpack.quant.methods import METHODS, Shape

ROW_SCALES_PER_OCTAVE = 64
"""Resolution of row scales, which are tuned after coding: with 32 an octave bits per byte rise by
0.00025 at 2.5 bits (docs/log.md, 2026-11-21)."""
COLUMN_SCALES_PER_OCTAVE = 4
"""Resolution of column scales, which only say where precision goes: codes are decided with them as
they are stored."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTensor:
    """A tensor as the artifact holds it."""

    name: str
    shape: Shape
    method: str
    """A key of `gptpack.quant.methods.METHODS`."""
    arrays: Mapping[str, Array]
    """The coded arrays, by the names of the method's `ArraySpec`s."""
    parameters: Mapping[str, int | float] = field(default_factory=dict)
    """Scalars that decoding needs."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """How the tensor was made (damping, fallbacks, error); decoding does not look at it."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def _stored(tensor: PackedTensor) -> npt.NDArray[np.float32]:
    return tensor.arrays["values"].astype(np.float32)


def from_bfloat16(bits: Array) -> npt.NDArray[np.float32]:
    """The float32 whose upper 16 bits are `bits`, the others 0."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _stored_bfloat16(tensor: PackedTensor) -> npt.NDArray[np.float32]:
    return from_bfloat16(tensor.arrays["values"])


def _int8_row(tensor: PackedTensor) -> npt.NDArray[np.float32]:
    scales = tensor.arrays["scales"].astype(np.float32)
    return tensor.arrays["codes"].astype(np.float32) * scales[:, None]


def _int8_tensor(tensor: PackedTensor) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = tensor.arrays["codes"].astype(np.float32)
    return values * np.float32(tensor.arrays["scales"])


def grid_values(tensor: PackedTensor) -> npt.NDArray[np.float32]:
    """The values of a tensor on a grid before offsets are added, ``[R, C]``."""
    states = int(tensor.parameters.get("states", 1))
    return values_of_points(tensor, decode_trellis(tensor.arrays["codes"], states))


def column_offsets(tensor: PackedTensor) -> npt.NDArray[np.float32] | None:
    """What is added to the grid's values in each column, ``[C]``; None where nothing is."""
    bits = tensor.arrays.get("column_offsets")
    return None if bits is None else from_bfloat16(bits)


def _grid(tensor: PackedTensor) -> npt.NDArray[np.float32]:
    values, offset_C = grid_values(tensor), column_offsets(tensor)
    if offset_C is not None:
        values += offset_C
    return values


def grid_scales(rows: Array, columns: Array) -> tuple[Array, Array]:
    """Row and column scales, float32, of their indexes."""
    return (
        scale_values(rows, per_octave=ROW_SCALES_PER_OCTAVE),
        scale_values(columns, per_octave=COLUMN_SCALES_PER_OCTAVE),
    )


def values_of_points(tensor: PackedTensor, points_RC: Array) -> npt.NDArray[np.float32]:
    """``point * row scale * column scale``, the row scale halved where there is a trellis."""
    states = int(tensor.parameters.get("states", 1))
    row_R, column_C = grid_scales(tensor.arrays["row_scales"], tensor.arrays["column_scales"])
    if states > 1:
        row_R = row_R * np.float32(0.5)
    values: npt.NDArray[np.float32] = points_RC.astype(np.float32)
    values *= row_R[:, None]
    values *= column_C
    return values


_VALUES: dict[str, Callable[[PackedTensor], npt.NDArray[np.float32]]] = {
    "float32": _stored,
    "float16": _stored,
    "bfloat16": _stored_bfloat16,
    "int8": _int8_row,
    "int8-tensor": _int8_tensor,
    "uniform": _grid,
    "trellis": _grid,
    "uniform-offsets": _grid,
    "trellis-offsets": _grid,
}
"""How float32 values are computed from the arrays of a method."""


def dequantize(tensor: PackedTensor) -> npt.NDArray[np.float32]:
    """The values of `tensor`, float32, in its shape; the same on every machine.

    Raises:
        ArtifactError: the parameters are not the method's, or the arrays do not decode to finite
            values of the shape.
    """
    if problem := METHODS[tensor.method].problem(tensor.parameters):
        raise ArtifactError(f"{tensor.name}: {problem}")
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            # numpy turns arrays without dimensions into scalars
            values = np.asarray(_VALUES[tensor.method](tensor), np.float32)
    except QuantError as error:
        raise ArtifactError(f"{tensor.name}: {error}") from error
    if values.shape != tensor.shape or not np.isfinite(values).all():
        raise ArtifactError(f"{tensor.name}: {tensor.method} does not decode to finite values")
    return values
