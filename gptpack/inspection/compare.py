"""How far two sets of weights are apart, tensor by tensor. numpy only."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.artifact.reader import Artifact
from gptpack.errors import GptpackError
from gptpack.quant.types import dequantize

Values = Mapping[str, npt.NDArray[np.float32]]
SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorError:
    """The difference of one tensor from its reference."""

    name: str
    shape: tuple[int, ...]
    relative: float | None
    """``|value - reference| / |reference|`` in the Frobenius norm; None where that is x / 0."""
    largest: float
    """Largest difference of a single weight."""


def values_of(artifact: Artifact) -> dict[str, npt.NDArray[np.float32]]:
    """The float32 weights that a file stands for, by name."""
    return {tensor.name: dequantize(tensor) for tensor in artifact.tensors}


def tensor_errors(reference: Values, values: Values, *, where: str) -> list[TensorError]:
    """The error of each of `values`, in their order; sums are in float64.

    Raises:
        GptpackError: a tensor is missing on either side, or has another shape; `where` names the
            two sides.
    """
    if strays := sorted(reference.keys() ^ values.keys()):
        more = f" and {len(strays) - SHOWN} more" if len(strays) > SHOWN else ""
        raise GptpackError(
            f"{where}: not the same tensors: only one has {', '.join(strays[:SHOWN])}{more}"
        )
    return [_error(name, reference[name], value, where) for name, value in values.items()]


def _error(
    name: str, reference: npt.NDArray[Any], value: npt.NDArray[Any], where: str
) -> TensorError:
    if reference.shape != value.shape:
        raise GptpackError(f"{where}: {name} has the shapes {reference.shape} and {value.shape}")
    difference = value.astype(np.float64) - reference
    power = float(np.sum(np.square(reference, dtype=np.float64)))
    squared = float(np.sum(np.square(difference)))
    relative = math.sqrt(squared / power) if power else (None if squared else 0.0)
    return TensorError(
        name=name,
        shape=value.shape,
        relative=relative,
        largest=float(np.abs(difference).max(initial=0.0)),
    )


def overall(errors: list[TensorError], reference: Values) -> float | None:
    """The relative error of all tensors as one vector."""
    power = {e.name: float(np.sum(np.square(reference[e.name], dtype=np.float64))) for e in errors}
    total = sum(power.values())
    if not total or any(error.relative is None for error in errors):
        return None
    squared = sum((error.relative or 0.0) ** 2 * power[error.name] for error in errors)
    return math.sqrt(squared / total)


def value_sha256(values: npt.NDArray[np.float32]) -> str:
    """SHA-256, in hex, of float32 values in row order, little endian."""
    return hashlib.sha256(values.astype("<f4", order="C", copy=False).tobytes()).hexdigest()
