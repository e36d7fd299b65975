"""From packed tensors to a file. Same input, same bytes; nothing half-written is ever visible.

`encode_sections` does the work, `assemble` puts a header in front. What the header's `pack` says
may thus be measured on the sections, and changed without encoding them again.
"""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptpack.artifact.header import (
    SectionEntry,
    check_table,
    header_json,
    parse_header,
)
from gptpack.artifact.layout import (
    PREAMBLE_BYTES,
    Preamble,
    most_header_bytes,
    section_digest,
)
from gptpack.artifact.plan import TensorEntry, plan_sections
from gptpack.artifact.reader import decode_header, read_sections
from gptpack.artifact.weights import weights_sha256
from gptpack.atomic import replacing
from gptpack.codec.sections import Array, codec_names, encode_streams
from gptpack.errors import ArtifactError
from gptpack.families.golf.config import ModelConfig
from gptpack.quant.types import METHODS, PackedTensor
from gptpack.values import TokenizerIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSections:
    """The sections of a file, without the header that goes in front of them."""

    tensors: tuple[TensorEntry, ...]
    sections: tuple[SectionEntry, ...]
    """Offsets count from the first section here."""
    data: tuple[bytes, ...]
    weights_sha256: str

    @property
    def stored_bytes(self) -> int:
        return sum(len(stored) for stored in self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactSummary:
    """What `write_artifact` wrote."""

    path: Path
    file_bytes: int
    header_bytes: int
    """Preamble and stored header."""
    file_sha256: str
    header_sha256: str
    weights_sha256: str
    sections: tuple[SectionEntry, ...]


def encode_sections(
    tensors: Sequence[PackedTensor], codecs: Sequence[str] | str = "auto", *, draft: bool = False
) -> EncodedSections:
    """Code the tensors' arrays; each section by the smallest of `codecs` and their layouts.

    Args:
        codecs: names of codecs, one of them, or ``auto`` (`gptpack.codec.sections.AUTO`).
        draft: only the sizes matter. Zeros stand for the codes, and the weights are not hashed.

    Raises:
        ArtifactError: arrays that are not those of the tensor's method, or not finite values.
        GptpackError: an unknown codec.
        MissingDependencyError: a codec's library is not installed.
    """
    names = codec_names(codecs)
    entries = tuple(_entry(tensor) for tensor in tensors)
    check_table(entries)
    plans = plan_sections(entries)
    before: list[dict[str, Array]] = [{} for _ in tensors]
    jobs = []
    for plan in plans:
        arrays = [tensors[member].arrays[plan.array.name] for member in plan.members]
        jobs.append((plan.slots(entries, [dict(context) for context in before]), arrays))
        for member, array in zip(plan.members, arrays, strict=True):
            before[member][plan.array.name] = array
    sections = []
    offset = 0
    streams = encode_streams(jobs, names, draft=draft)
    for plan, stream in zip(plans, streams, strict=True):
        sections.append(
            SectionEntry(
                name=plan.name,
                codec=stream.codec,
                layout=stream.layout,
                stored_bytes=len(stream.data),
                raw_bytes=sum(plan.member_bytes),
                digest=section_digest(stream.data),
                offset=offset,
            )
        )
        offset += len(stream.data)
    return EncodedSections(
        tensors=entries,
        sections=tuple(sections),
        data=tuple(stream.data for stream in streams),
        weights_sha256=weights_sha256([] if draft else tensors),
    )


def assemble(
    encoded: EncodedSections,
    *,
    model: ModelConfig,
    tokenizer: TokenizerIdentity,
    pack: Mapping[str, Any],
) -> bytes:
    """The file's bytes: preamble, header, and the sections as they are.

    Raises:
        ArtifactError: names, records, or `pack` that the header cannot hold.
    """
    front = _front(encoded, model, tokenizer, pack)
    return b"".join((front, *encoded.data))


def assembled_bytes(
    encoded: EncodedSections,
    *,
    model: ModelConfig,
    tokenizer: TokenizerIdentity,
    pack: Mapping[str, Any],
) -> int:
    """``len(assemble(...))``, without copying the sections."""
    return len(_front(encoded, model, tokenizer, pack)) + encoded.stored_bytes


def encode_artifact(
    *,
    model: ModelConfig,
    tokenizer: TokenizerIdentity,
    tensors: Sequence[PackedTensor],
    pack: Mapping[str, Any],
    codecs: Sequence[str] | str = "auto",
) -> bytes:
    """A whole file in memory: `encode_sections`, then `assemble`."""
    encoded = encode_sections(tensors, codecs)
    return assemble(encoded, model=model, tokenizer=tokenizer, pack=pack)


def with_pack(data: bytes, pack: Mapping[str, Any]) -> bytes:
    """The artifact `data` with another `pack`; its sections stay as they are, bit for bit.

    Raises:
        ArtifactError: `data` is corrupt, or `pack` does not fit a header.
    """
    header = decode_header(data)
    encoded = EncodedSections(
        tensors=header.tensors,
        sections=header.sections,
        data=tuple(stream.data for stream in read_sections(data, header)),
        weights_sha256=header.weights_sha256,
    )
    return assemble(encoded, model=header.model, tokenizer=header.tokenizer, pack=pack)


def write_artifact(
    path: str | Path,
    *,
    model: ModelConfig,
    tokenizer: TokenizerIdentity,
    tensors: Sequence[PackedTensor],
    pack: Mapping[str, Any],
    codecs: Sequence[str] | str = "auto",
) -> ArtifactSummary:
    """Encode the tensors and put the file at `path`.

    Raises:
        ArtifactError, MissingDependencyError: as `encode_sections` and `assemble`.
        GptpackError: the file cannot be written.
    """
    data = encode_artifact(
        model=model, tokenizer=tokenizer, tensors=tensors, pack=pack, codecs=codecs
    )
    write_atomic(path, data)
    return summarize(path, data)


def summarize(path: str | Path, data: bytes) -> ArtifactSummary:
    """What the file at `path`, of these bytes, is."""
    header = decode_header(data)
    return ArtifactSummary(
        path=Path(path),
        file_bytes=len(data),
        header_bytes=header.header_bytes,
        file_sha256=hashlib.sha256(data).hexdigest(),
        header_sha256=header.header_sha256,
        weights_sha256=header.weights_sha256,
        sections=header.sections,
    )


def write_atomic(path: str | Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all, and on the disk by the time this returns.

    Raises:
        GptpackError: the directory or the disk does not take it. Nothing is left behind.
    """
    with replacing(path) as file:
        file.write(data)


def _front(
    encoded: EncodedSections,
    model: ModelConfig,
    tokenizer: TokenizerIdentity,
    pack: Mapping[str, Any],
) -> bytes:
    """Preamble and stored header."""
    raw = header_json(
        model=model,
        tokenizer=tokenizer,
        tensors=encoded.tensors,
        sections=encoded.sections,
        weights_sha256=encoded.weights_sha256,
        pack=pack,
    )
    deflated = zlib.compress(raw, 9)
    smaller = len(deflated) < len(raw) <= most_header_bytes(len(deflated))
    stored = deflated if smaller else raw
    preamble = Preamble(
        deflated=smaller,
        stored_header_bytes=len(stored),
        raw_header_bytes=len(raw),
        file_bytes=PREAMBLE_BYTES + len(stored) + encoded.stored_bytes,
    )
    if len(raw) > most_header_bytes(len(stored)):
        raise ArtifactError(
            f"a header of {len(raw):,} bytes, {most_header_bytes(len(stored)):,} at most can be "
            "read back; shorten the records or pack"
        )
    start = preamble.to_bytes(stored)
    parse_header(
        raw,
        header_bytes=preamble.sections_start,
        file_bytes=preamble.file_bytes,
        header_sha256=start[-32:].hex(),
    )
    return start + stored


def _entry(tensor: PackedTensor) -> TensorEntry:
    """The table row of `tensor`, given that its arrays are what its method says."""
    if tensor.method not in METHODS:
        raise ArtifactError(f"{tensor.name}: no method {tensor.method}; use {', '.join(METHODS)}")
    specs = METHODS[tensor.method].arrays
    if set(tensor.arrays) != {spec.name for spec in specs}:
        raise ArtifactError(
            f"{tensor.name}: has arrays {sorted(tensor.arrays)}, {tensor.method} needs "
            f"{sorted(spec.name for spec in specs)}"
        )
    for spec in specs:
        array = tensor.arrays[spec.name]
        shape = spec.shape(tensor.shape)
        if array.dtype != np.dtype(spec.dtype) or array.shape != shape:
            raise ArtifactError(
                f"{tensor.name}: {spec.name} are {array.dtype.str} {list(array.shape)}, "
                f"{tensor.method} needs {spec.dtype} {list(shape)}"
            )
    return TensorEntry(
        name=tensor.name,
        shape=tensor.shape,
        method=tensor.method,
        parameters=tensor.parameters,
        record=tensor.record,
    )
