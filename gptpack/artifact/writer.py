"""Packed tensors -> a file. Same input, same bytes; a half-written file is never visible.

`encode_sections` does the work, `assemble` puts a header in front. So the header's `pack` can say
what was measured on the sections, and change without encoding them again.
"""

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptpack.artifact.header import header_json, parse_header, version_for
from gptpack.artifact.layout import (
    FILES_SECTION,
    PREAMBLE_BYTES,
    Preamble,
    most_header_bytes,
    section_digest,
)
from gptpack.artifact.plan import TensorEntry, plan_sections
from gptpack.artifact.tables import (
    FileEntry,
    SectionEntry,
    check_table,
    file_entries,
    most_files_bytes,
    named_files,
)
from gptpack.artifact.weights import weights_sha256
from gptpack.atomic import replacing
from gptpack.codec.general import BYTE_CODECS
from gptpack.codec.sections import codec_names, encode_streams
from gptpack.errors import ArtifactError
from gptpack.families.family import FamilyConfig
from gptpack.quant.methods import METHODS
from gptpack.quant.types import PackedTensor
from gptpack.values import TokenizerIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSections:
    """The sections of a file, without its header."""

    tensors: tuple[TensorEntry, ...]
    sections: tuple[SectionEntry, ...]
    data: tuple[bytes, ...]
    weights_sha256: str
    files: tuple[FileEntry, ...] = ()

    @property
    def stored_bytes(self) -> int:
        return sum(len(stored) for stored in self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedFiles:
    """The section of the files that go with a model; there is none where there are none."""

    files: tuple[FileEntry, ...] = ()
    sections: tuple[SectionEntry, ...] = ()
    data: tuple[bytes, ...] = ()

    @property
    def stored_bytes(self) -> int:
        return sum(len(stored) for stored in self.data)

    @property
    def named(self) -> str:
        """The largest file's name, and how many others there are, in words."""
        return named_files({file.name: file.raw_bytes for file in self.files})


def encode_files(files: Mapping[str, bytes]) -> EncodedFiles:
    """All `files` in one section, in the order of their names, by the codec that is smallest.

    Raises:
        ArtifactError: a file's name is none that the format allows, or there are too many.
    """
    if not files:
        return EncodedFiles()
    entries = tuple(file_entries([[name, len(files[name])] for name in sorted(files)]))
    raw = b"".join(files[name] for name in sorted(files))
    codecs = [codec for codec in BYTE_CODECS if codec.name != "brotli"]
    tried = [(codec.encode(raw), codec.name) for codec in codecs]
    readable = [pair for pair in tried if len(raw) <= most_files_bytes(len(pair[0]))]
    data, codec = min(readable, key=lambda pair: len(pair[0]))
    section = SectionEntry(
        name=FILES_SECTION,
        codec=codec,
        layout="row",
        stored_bytes=len(data),
        raw_bytes=len(raw),
        digest=section_digest(data),
    )
    return EncodedFiles(
        files=entries,
        sections=(section,),
        data=(data,),
    )


NO_FILES = EncodedFiles()


def encode_sections(
    tensors: Sequence[PackedTensor],
    codecs: Sequence[str] | str = "auto",
    *,
    files: EncodedFiles = NO_FILES,
    draft: bool = False,
) -> EncodedSections:
    """The tensors' arrays as sections, each by the smallest of `codecs` and their layouts.

    Args:
        codecs: names of codecs, one of them, or ``auto`` (`gptpack.codec.sections.AUTO`).
        files: the section of files, which `encode_files` made once.
        draft: for sizes only: zeros stand for the codes, and the weights are not hashed.

    Raises:
        ArtifactError: arrays are not those of the tensor's method, or values are not finite.
        GptpackError: a codec is unknown.
        MissingDependencyError: a codec's library is not installed.
    """
    names = codec_names(codecs)
    entries = tuple(_entry(tensor) for tensor in tensors)
    check_table(entries)
    plans = plan_sections(entries)
    contents = [
        (plan.slots(entries), [tensors[member].arrays[plan.array.name] for member in plan.members])
        for plan in plans
    ]
    with ThreadPoolExecutor(1) as beside:
        hashed = beside.submit(weights_sha256, [] if draft else tensors)
        streams = encode_streams(contents, names, draft=draft)
    return EncodedSections(
        tensors=entries,
        sections=(
            *(
                SectionEntry(
                    name=plan.name,
                    codec=stream.codec,
                    layout=stream.layout,
                    stored_bytes=len(stream.data),
                    raw_bytes=sum(plan.member_bytes),
                    digest=section_digest(stream.data),
                )
                for plan, stream in zip(plans, streams, strict=True)
            ),
            *files.sections,
        ),
        files=files.files,
        data=(*(stream.data for stream in streams), *files.data),
        weights_sha256=hashed.result(),
    )


def assemble(
    encoded: EncodedSections,
    *,
    model: FamilyConfig,
    tokenizer: TokenizerIdentity | None,
    pack: Mapping[str, Any],
) -> bytes:
    """The file's bytes: preamble, header, and the sections as they are.

    Raises:
        ArtifactError: the header cannot hold the names, the records, or `pack`.
    """
    front = _front(encoded, model, tokenizer, pack)
    return b"".join((front, *encoded.data))


def assembled_bytes(
    encoded: EncodedSections,
    *,
    model: FamilyConfig,
    tokenizer: TokenizerIdentity | None,
    pack: Mapping[str, Any],
) -> int:
    """Bytes that `assemble` makes of the same arguments; no section is copied."""
    return len(_front(encoded, model, tokenizer, pack)) + encoded.stored_bytes


def write_atomic(path: str | Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all, and on the disk by the time this returns.

    Raises:
        GptpackError: the directory or the disk does not take the file. Nothing is left behind.
    """
    with replacing(path) as file:
        file.write(data)


def _front(
    encoded: EncodedSections,
    model: FamilyConfig,
    tokenizer: TokenizerIdentity | None,
    pack: Mapping[str, Any],
) -> bytes:
    """Preamble and stored header."""
    raw = header_json(
        model=model,
        tokenizer=tokenizer,
        tensors=encoded.tensors,
        sections=encoded.sections,
        files=encoded.files,
        weights_sha256=encoded.weights_sha256,
        pack=pack,
    )
    deflated = zlib.compress(raw, 9)
    smaller = len(deflated) < len(raw) <= most_header_bytes(len(deflated))
    stored = deflated if smaller else raw
    version = version_for(model, encoded.tensors, encoded.files)
    preamble = Preamble(
        version=version,
        deflated=smaller,
        stored_header_bytes=len(stored),
        raw_header_bytes=len(raw),
        file_bytes=PREAMBLE_BYTES + len(stored) + encoded.stored_bytes,
    )
    if len(raw) > (most := most_header_bytes(len(stored))):
        raise ArtifactError(
            f"the header has {len(raw):,} bytes, but at most {most:,} can be read back; shorten "
            "the records or pack"
        )
    start = preamble.to_bytes(stored)
    parse_header(
        raw,
        version=version,
        header_bytes=preamble.sections_start,
        file_bytes=preamble.file_bytes,
        header_sha256=start[-32:].hex(),
    )
    return start + stored


def _entry(tensor: PackedTensor) -> TensorEntry:
    """The table row of `tensor`, whose arrays are checked against its method."""
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
