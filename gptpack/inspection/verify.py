"""Every checksum of a file, a full decode, and the hash of each tensor. numpy only."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptpack.artifact.header import SectionEntry
from gptpack.artifact.reader import Artifact, read_artifact
from gptpack.inspection.compare import Values, value_sha256, values_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHash:
    """A decoded tensor."""

    name: str
    shape: tuple[int, ...]
    method: str
    sha256: str
    """Of its float32 values, see `gptpack.inspection.compare.value_sha256`."""


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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def verify(path: str | Path) -> tuple[VerifyReport, Artifact, Values]:
    """Read, check and decode all of the file at `path`.

    Returns:
        The report, the artifact, and its weights by name.

    Raises:
        GptpackError: there is no regular file that can be read.
        ArtifactError: something in it is not what a checksum, the format or its header says.
        MissingDependencyError: a section's codec is not installed.
    """
    began = time.perf_counter()
    artifact = read_artifact(path, verify_weights=True)
    values = values_of(artifact)
    header = artifact.header
    report = VerifyReport(
        path=str(path),
        file_bytes=header.file_bytes,
        header_sha256=header.header_sha256,
        weights_sha256=header.weights_sha256,
        sections=header.sections,
        tensors=tuple(
            TensorHash(
                name=tensor.name,
                shape=tensor.shape,
                method=tensor.method,
                sha256=value_sha256(values[tensor.name]),
            )
            for tensor in artifact.tensors
        ),
        parameters=sum(tensor.numel for tensor in artifact.tensors),
        seconds=time.perf_counter() - began,
    )
    return report, artifact, values
