"""Two sets of weights -> how far they are apart, tensor by tensor. numpy only."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.artifact.header import ArtifactHeader
from gptpack.artifact.reader import read_artifact
from gptpack.errors import GptpackError

Values = Mapping[str, npt.NDArray[np.float32]]
SHOWN = 4
RELATIVE = (
    "a relative error counts directions that no input takes, so at few bits it may pass 1 in a "
    "good file; what the model lost is the change of its bits per byte"
)
"""What a relative error of weights says, and what it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weights of a packed file of which every checksum was verified."""

    path: str
    header: ArtifactHeader
    values: Values
    """Float32 values by the tensor's name, in the order of the file."""


def read_weights(path: str | Path, limit_bytes: int | None = None) -> Weights:
    """Verify and decode all of the file at `path`, in the memory that `read_artifact` allows.

    Raises:
        GptpackError: there is no regular file that can be read.
        ArtifactError: something in it is not what a checksum, the format or its header says.
        MissingDependencyError: a section's codec is not installed, or memory does not suffice.
    """
    values: dict[str, npt.NDArray[np.float32]] = {}
    artifact = read_artifact(
        path, verify_weights=True, keep=values.__setitem__, limit_bytes=limit_bytes
    )
    return Weights(path=str(path), header=artifact.header, values=values)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorError:
    """The difference of one tensor from its reference."""

    name: str
    shape: tuple[int, ...]
    relative: float | None
    """``|value - reference| / |reference|`` in the Frobenius norm; None where that is x / 0."""
    largest: float
    """Largest difference of a single weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightErrors:
    """The errors of a packed file's weights against reference weights."""

    reference: str
    """Path of the file or checkpoint that the reference weights are from."""
    relative: float | None
    """Relative error of all tensors as one vector; None where that is x / 0."""
    tensors: tuple[TensorError, ...]
    """The error of each tensor, in the order of the file."""
    caution: str = ""
    """Why the figures may not mean what they seem to: the file was made of another checkpoint."""


def weight_errors(
    file: Weights, reference: Values, path: str | Path, caution: str = ""
) -> WeightErrors:
    """The errors of a file's weights against the `reference` weights, which are from `path`.

    Raises:
        GptpackError: a tensor is missing on either side, or has another shape.
    """
    errors = _tensor_errors(reference, file.values, where=f"{file.path} and {path}")
    return WeightErrors(
        reference=str(path),
        relative=_overall(errors, reference),
        tensors=tuple(errors),
        caution=caution,
    )


def _tensor_errors(reference: Values, values: Values, *, where: str) -> list[TensorError]:
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
    power = _power(reference)
    squared = _power(difference)
    relative = math.sqrt(squared / power) if power else (None if squared else 0.0)
    return TensorError(
        name=name,
        shape=value.shape,
        relative=relative,
        largest=float(np.abs(difference).max(initial=0.0)),
    )


def _power(values: npt.NDArray[Any]) -> float:
    return float(np.sum(np.square(values, dtype=np.float64)))


def _overall(errors: list[TensorError], reference: Values) -> float | None:
    """The relative error of all tensors as one vector."""
    power = {error.name: _power(reference[error.name]) for error in errors}
    total = sum(power.values())
    if not total or any(error.relative is None for error in errors):
        return None
    squared = sum((error.relative or 0.0) ** 2 * power[error.name] for error in errors)
    return math.sqrt(squared / total)


def value_sha256(values: npt.NDArray[np.float32]) -> str:
    """SHA-256, in hex, of float32 values in row order, little endian."""
    return hashlib.sha256(values.astype("<f4", order="C", copy=False).reshape(-1).data).hexdigest()
