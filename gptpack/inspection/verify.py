"""The weights of a packed file, verified -> a report with the hash of each tensor. numpy only."""

from dataclasses import asdict, dataclass
from typing import Any

from gptpack.artifact.tables import SectionEntry
from gptpack.inspection.compare import WeightErrors, Weights, value_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHash:
    """A decoded tensor and the hash of its values."""

    name: str
    shape: tuple[int, ...]
    method: str
    sha256: str
    """SHA-256 of its float32 values, see `gptpack.inspection.compare.value_sha256`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """A file of which everything that can be verified was."""

    path: str
    file_bytes: int
    header_sha256: str
    weights_sha256: str
    sections: tuple[SectionEntry, ...]
    tensors: tuple[TensorHash, ...]
    parameters: int
    seconds: float
    """Wall-clock time of reading, verifying and decoding."""
    errors: WeightErrors | None = None
    """Errors of the weights against those of a checkpoint, where one was given."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        if errors := values.pop("errors"):
            values["checkpoint"] = errors["reference"]
            values["relative_error"] = errors["relative"]
            values["errors"] = errors["tensors"]
        return values


def report_on_weights(file: Weights, seconds: float) -> VerifyReport:
    """The report on a file that took so many seconds to read."""
    header = file.header
    return VerifyReport(
        path=file.path,
        file_bytes=header.file_bytes,
        header_sha256=header.header_sha256,
        weights_sha256=header.weights_sha256,
        sections=header.sections,
        tensors=tuple(
            TensorHash(
                name=tensor.name,
                shape=tensor.shape,
                method=tensor.method,
                sha256=value_sha256(file.values[tensor.name]),
            )
            for tensor in header.tensors
        ),
        parameters=sum(tensor.numel for tensor in header.tensors),
        seconds=seconds,
    )
