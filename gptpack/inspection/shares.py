"""What each tensor really takes up of a file, from its decoded sections. numpy only.

A header gives a section's bytes, not a tensor's. Here a section of codes is shared out by what its
codes cost: in the context coder's own tables where it is the codec, else by their empirical
entropy. Other sections are shared out by raw bytes, as `gptpack.inspection.inspect` does for all.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gptpack.artifact.header import SectionEntry
from gptpack.artifact.plan import SectionPlan, plan_sections
from gptpack.artifact.reader import Artifact, decode_artifact, read_header, read_sections
from gptpack.codec.sections import Array
from gptpack.codec.trellis import parities_of
from gptpack.errors import GptpackError
from gptpack.inspection.inspect import InspectReport, report_on


def inspect_decoded(path: str | Path) -> InspectReport:
    """`gptpack.inspection.inspect.inspect` with the bytes that each tensor really takes.

    Raises:
        GptpackError: there is no file that can be read.
        ArtifactError: it is corrupt.
        MissingDependencyError: a section's codec is not installed.
    """
    header = read_header(path)
    data = Path(path).read_bytes()
    try:
        artifact = decode_artifact(data)
    except GptpackError as error:
        raise type(error)(f"{path}: {error}") from error
    return report_on(header, str(path), measured_bytes(data, artifact))


def measured_bytes(data: bytes, artifact: Artifact) -> list[int]:
    """Stored bytes of each tensor of the file `data`; with the header's they add up to the file's.

    Args:
        data: the file's bytes, of which `artifact` was decoded.
    """
    header = artifact.header
    shares = [0] * len(header.tensors)
    streams = read_sections(data, header)
    plans = plan_sections(header.tensors)
    for plan, section, stream in zip(plans, header.sections, streams, strict=True):
        weights = _weights(artifact, plan, section, stream.data)
        stops = np.rint(np.cumsum(weights) / max(sum(weights), 1e-9) * section.stored_bytes)
        stops[-1] = section.stored_bytes
        for member, size in zip(plan.members, np.diff(stops, prepend=0), strict=True):
            shares[member] += int(size)
    return shares


def _weights(
    artifact: Artifact, plan: SectionPlan, section: SectionEntry, stored: bytes
) -> Sequence[float]:
    """In what proportion the members of a section share its bytes."""
    arrays = [artifact.tensors[member].arrays[plan.array.name] for member in plan.members]
    if plan.array.name != "codes":
        return [float(size) for size in plan.member_bytes]
    if section.codec == "range" and arrays[0].ndim == 2:
        return _range_bits(artifact, plan, arrays, stored)
    return [entropy_bits(array) for array in arrays]


def _range_bits(
    artifact: Artifact, plan: SectionPlan, arrays: Sequence[Array], stored: bytes
) -> list[float]:
    from gptpack.codec.costs import matrix_bits

    parameters = [artifact.tensors[member].parameters for member in plan.members]
    states = [int(one["states"]) for one in parameters if "states" in one]
    return matrix_bits(stored, arrays, parities=parities_of(arrays, states))


def entropy_bits(codes: Array) -> float:
    """Empirical entropy of all codes together, as if each were drawn from their histogram."""
    _, counts = np.unique(codes, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum()) + 1.0
