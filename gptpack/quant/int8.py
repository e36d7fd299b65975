"""Tensors -> int8 as the reference makes it: a scale per row, large weights clipped; or floats.

parameter-golf baseline, `quantize_state_dict_int8`. Shape legend: R = rows, C = columns.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.errors import QuantError
from gptpack.quant.types import PackedTensor

CLIP_QUANTILE = 0.9999984
"""Share of a row's magnitudes that must not be clipped."""
SMALL_NUMEL = 65536
"""Most elements of a tensor that stays in float16."""
CONTROL = (
    "attn_scale",
    "mlp_scale",
    "resid_mix",
    "q_gain",
    "skip_weight",
)
"""Parts of the names of tensors that stay in float32, because they steer the residual stream."""

Float32 = npt.NDArray[np.float32]


def to_float16(name: str, values: Float32) -> npt.NDArray[Any]:
    """`values`, which are those or the scales of the tensor `name`, rounded to float16.

    Raises:
        QuantError: a value is beyond float16.
    """
    with np.errstate(over="ignore"):
        stored = values.astype(np.float16)
    if not np.isfinite(stored).all():
        raise QuantError(
            f"{name}: needs {np.abs(values).max():g} in float16, which ends at 65,504; choose "
            "another method for it, or clip its largest weights"
        )
    return stored


def quantize_int8_rows(name: str, weight_RC: Float32) -> PackedTensor:
    """Codes in -127..127 and one float16 scale per row of a matrix ``[R, C]``.

    The scale is ``max(clip / 127, 1 / 127)`` with `clip` the row's `CLIP_QUANTILE` magnitude:
    the floor makes the scale the same in all rows without large weights.

    Raises:
        QuantError: a scale is beyond float16.
    """
    clip_R = np.quantile(np.abs(weight_RC), CLIP_QUANTILE, axis=1).astype(np.float32)
    scale_R = to_float16(name, np.maximum(clip_R / 127, 1 / 127))
    limit_R1 = np.minimum(clip_R, 127 * scale_R.astype(np.float32))[:, None]
    clipped_RC = np.clip(weight_RC, -limit_R1, limit_R1)
    codes_RC = np.rint(clipped_RC / scale_R.astype(np.float32)[:, None])
    return PackedTensor(
        name=name,
        shape=weight_RC.shape,
        method="int8",
        arrays={"codes": np.clip(codes_RC, -127, 127).astype(np.int8), "scales": scale_R},
    )


def quantize_int8_tensor(name: str, values: Float32) -> PackedTensor:
    """Codes in -127..127 and one float32 scale for a tensor of any shape."""
    clip = np.float32(np.quantile(np.abs(values), CLIP_QUANTILE))
    scale = np.float32(clip / 127 if clip > 0 else 1)
    codes = np.clip(np.rint(np.clip(values, -clip, clip) / scale), -127, 127)
    return PackedTensor(
        name=name,
        shape=values.shape,
        method="int8-tensor",
        arrays={"codes": codes.astype(np.int8), "scales": np.array(scale, np.float32)},
    )


def to_bfloat16(values: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """The upper halves of the float32 `values`, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def keep_float(name: str, values: Float32, dtype: str) -> PackedTensor:
    """`values` in `dtype`: ``float32``, ``float16`` or ``bfloat16`` (nearest, ties to even).

    Raises:
        QuantError: a value is beyond float16.
    """
    if dtype == "bfloat16":
        stored = to_bfloat16(values)
    else:
        half = dtype == "float16"
        stored = to_float16(name, values) if half else values.astype(np.dtype(dtype))
    return PackedTensor(
        name=name, shape=values.shape, method=dtype, arrays={"values": stored.reshape(values.shape)}
    )


def quantize_reference(name: str, values: Float32) -> PackedTensor:
    """The tensor as the reference packs one of this name and size.

    Raises:
        QuantError: a value or a scale is beyond float16.
    """
    if any(part in name for part in CONTROL):
        return keep_float(name, values, "float32")
    if values.size <= SMALL_NUMEL:
        return keep_float(name, values, "float16")
    if values.ndim == 2:
        return quantize_int8_rows(name, values)
    return quantize_int8_tensor(name, values)
