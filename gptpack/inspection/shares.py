"""A file's bytes -> what each tensor really takes up of them. numpy only.

For files whose header does not say it, and for sections of general codecs.
"""

from gptpack.artifact.plan import plan_sections
from gptpack.artifact.reader import decode_artifact, read_sections
from gptpack.artifact.recorded import shared_out
from gptpack.artifact.shares import coded_bytes


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
        if plan.array.name == "codes":
            sizes = coded_bytes(plan, section, artifact.tensors, stream.data)
        else:
            sizes = shared_out(section.stored_bytes, plan.member_bytes)
        for member, size in zip(plan.members, sizes, strict=True):
            shares[member] += size
    return shares
