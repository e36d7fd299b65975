"""A file's bytes -> what each tensor really takes up of them. numpy only.

A header gives a section's bytes, not a tensor's. Here a section of codes is shared out by what its
codes cost: in the context coder's own tables where it is the codec, else by their empirical
entropy. Other sections are shared out by raw bytes.
"""

from collections.abc import Sequence

import numpy as np

from gptpack.artifact.plan import SectionPlan, plan_sections
from gptpack.artifact.reader import Artifact, decode_artifact, read_sections
from gptpack.artifact.tables import SectionEntry
from gptpack.codec.sections import Array
from gptpack.codec.trellis import parities_of


def measured_bytes(data: bytes) -> list[int]:
    """Stored bytes of each tensor of the file `data`; with the header's they are all.

    Raises:
        ArtifactError: the file is corrupt.
        MissingDependencyError: a section's codec is not installed.
    """
    artifact = decode_artifact(data)
    header = artifact.header
    shares = [0] * len(header.tensors)
    streams = read_sections(data, header)
    plans = plan_sections(header.tensors)
    for plan, section, stream in zip(plans, header.tensor_sections, streams, strict=False):
        weights = _weights(artifact, plan, section, stream.data)
        stops = np.rint(np.cumsum(weights) / max(sum(weights), 1e-9) * section.stored_bytes)
        stops[-1] = section.stored_bytes
        for member, size in zip(plan.members, np.diff(stops, prepend=0), strict=True):
            shares[member] += int(size)
    return shares


def _weights(
    artifact: Artifact, plan: SectionPlan, section: SectionEntry, stored: bytes
) -> Sequence[float]:
    """The proportion in which the members of a section share its bytes."""
    arrays = [artifact.tensors[member].arrays[plan.array.name] for member in plan.members]
    if plan.array.name != "codes":
        return [float(size) for size in plan.member_bytes]
    if section.codec == "range" and arrays[0].ndim == 2:
        return _range_bits(artifact, plan, arrays, stored)
    return [_entropy_bits(array) for array in arrays]


def _range_bits(
    artifact: Artifact, plan: SectionPlan, arrays: Sequence[Array], stored: bytes
) -> list[float]:
    from gptpack.codec.costs import matrix_bits

    parameters = [artifact.tensors[member].parameters for member in plan.members]
    states = [int(one["states"]) for one in parameters if "states" in one]
    return matrix_bits(stored, arrays, parities=parities_of(arrays, states))


def _entropy_bits(codes: Array) -> float:
    """Empirical entropy of all codes together, and one bit so that no tensor is free."""
    _, counts = np.unique(codes, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum()) + 1.0
