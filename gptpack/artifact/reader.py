"""A file -> header and packed tensors. The file is hostile; whatever is wrong is `ArtifactError`.

Nothing is allocated that the file's own size cannot justify: sizes are checked against the memory
rule before anything is decompressed, and decompression stops at the declared size. What the size
justifies may still be more than the caller or the machine can spare: `limit_bytes`.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from gptpack.artifact.front import check_digest, header_of, opened_file, read_part
from gptpack.artifact.header import ArtifactHeader
from gptpack.artifact.layout import FILES_SECTION, section_digest
from gptpack.artifact.memory import check_room, memory_here
from gptpack.artifact.plan import plan_sections
from gptpack.artifact.weights import Keep, weights_sha256
from gptpack.codec.general import BYTE_CODECS
from gptpack.codec.sections import Array, EncodedStream, decode_stream
from gptpack.errors import ArtifactError, GptpackError
from gptpack.quant.types import PackedTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A whole file, decoded."""

    header: ArtifactHeader
    tensors: tuple[PackedTensor, ...]
    """The tensors in the order of the table; their arrays may be read-only."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Name and content of the files that go with the model."""


def read_artifact(
    path: str | Path,
    *,
    verify_weights: bool = False,
    keep: Keep | None = None,
    limit_bytes: int | None = None,
) -> Artifact:
    """The file at `path`, decoded, with every section's digest verified.

    Args:
        verify_weights: also compute the float32 values and check their hash.
        keep: takes those values. They are not verified before this returns.
        limit_bytes: the most that `ArtifactHeader.decoded_bytes` may be; None takes the memory that
            is free on this machine. A file that needs more is refused by its header alone.

    Raises:
        GptpackError: there is no regular file that can be read.
        ArtifactError: the file is corrupt or hostile.
        MissingDependencyError: a section's codec is not installed, or memory does not suffice.
    """
    with opened_file(path) as (file, file_bytes):
        return _artifact(file, file_bytes, verify_weights, keep, limit_bytes)


def decode_artifact(data: bytes, *, verify_weights: bool = False) -> Artifact:
    """A file's bytes, decoded as `read_artifact` does."""
    return _artifact(io.BytesIO(data), len(data), verify_weights)


def read_sections(data: bytes, header: ArtifactHeader) -> list[EncodedStream]:
    """The stored sections of a file's bytes, digests verified, not decoded."""
    return list(_streams(io.BytesIO(data), header))


def _streams(file: BinaryIO, header: ArtifactHeader) -> Iterator[EncodedStream]:
    file.seek(header.header_bytes)
    for section in header.sections:
        data = read_part(file, section.stored_bytes, f"section {section.name}")
        check_digest(section, section_digest(data))
        yield EncodedStream(codec=section.codec, layout=section.layout, data=data)


def _artifact(
    file: BinaryIO,
    file_bytes: int,
    verify_weights: bool,
    keep: Keep | None = None,
    limit_bytes: int | None = None,
) -> Artifact:
    header = header_of(file, file_bytes)
    check_room(header.decoded_bytes, limit_bytes)
    with memory_here():
        return _decoded(file, header, verify_weights, keep)


def _decoded(
    file: BinaryIO, header: ArtifactHeader, verify_weights: bool, keep: Keep | None
) -> Artifact:
    decoded: list[dict[str, Array]] = [{} for _ in header.tensors]
    streams = _streams(file, header)
    for plan, stream in zip(plan_sections(header.tensors), streams, strict=False):
        try:
            arrays = decode_stream(stream, plan.slots(header.tensors))
        except GptpackError as error:
            raise type(error)(f"section {plan.name}: {error}") from error
        for member, array in zip(plan.members, arrays, strict=True):
            decoded[member][plan.array.name] = array
    files = {name: data for stream in streams for name, data in _files(header, stream)}
    tensors = tuple(
        PackedTensor(
            name=entry.name,
            shape=entry.shape,
            method=entry.method,
            arrays=arrays,
            parameters=entry.parameters,
            record=entry.record,
        )
        for entry, arrays in zip(header.tensors, decoded, strict=True)
    )
    if verify_weights:
        found = weights_sha256(tensors, keep)
        if found != header.weights_sha256:
            raise ArtifactError(
                f"the weights hash to {found[:16]}..., the header says "
                f"{header.weights_sha256[:16]}...; it was written by a faulty packer"
            )
    return Artifact(header=header, tensors=tensors, files=files)


def _files(header: ArtifactHeader, stream: EncodedStream) -> Iterator[tuple[str, bytes]]:
    """The files that go with the model, by name, of their section."""
    codec = next(codec for codec in BYTE_CODECS if codec.name == stream.codec)
    try:
        raw = codec.decode(stream.data, sum(entry.raw_bytes for entry in header.files))
    except GptpackError as error:
        raise type(error)(f"section {FILES_SECTION}: {error}") from error
    start = 0
    for entry in header.files:
        yield entry.name, raw[start : start + entry.raw_bytes]
        start += entry.raw_bytes
