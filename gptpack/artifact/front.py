"""A file -> its header, and whether its sections are whole. Nothing is decoded: no numpy.

The file is hostile; whatever is wrong is `ArtifactError`.
"""

import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gptpack.artifact.header import ArtifactHeader, parse_header
from gptpack.artifact.layout import (
    DIGEST_BYTES,
    FIELDS,
    PREAMBLE_BYTES,
    SECTION_DIGEST_CHARACTERS,
    digest,
    read_preamble,
)
from gptpack.artifact.tables import SectionEntry
from gptpack.errors import ArtifactError, GptpackError, NotPackedError
from gptpack.inputs import MODELS, kind_of, opened

_PIECE = 1 << 20
"""Bytes that are hashed at once where nothing else needs a section."""


def read_header(path: str | Path) -> ArtifactHeader:
    """The header of the file at `path`; reads no more than the preamble and the header.

    Raises:
        GptpackError: there is no regular file that can be read.
        ArtifactError: preamble or header are corrupt, or the file has another size.
    """
    with opened_file(path) as (file, file_bytes):
        return header_of(file, file_bytes)


def verify_sections(path: str | Path) -> ArtifactHeader:
    """The header of the file at `path`, with every section's digest checked; decodes nothing.

    Raises:
        GptpackError: there is no regular file that can be read.
        ArtifactError: preamble, header or a section are corrupt, or the file has another size.
    """
    with opened_file(path) as (file, file_bytes):
        header = header_of(file, file_bytes)
        file.seek(header.header_bytes)
        for section in header.sections:
            state = hashlib.sha256()
            for start in range(0, section.stored_bytes, _PIECE):
                size = min(_PIECE, section.stored_bytes - start)
                state.update(read_part(file, size, f"section {section.name}"))
            check_digest(section, state.hexdigest()[:SECTION_DIGEST_CHARACTERS])
        return header


def decode_header(data: bytes) -> ArtifactHeader:
    """The header of a file's bytes."""
    return header_of(io.BytesIO(data), len(data))


@contextmanager
def opened_file(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """An open regular file and its size; errors inside get the path in front."""
    kind = kind_of(path)
    if kind in MODELS:
        folder = Path(path).parent
        model = folder if (folder / "config.json").is_file() else path
        raise NotPackedError(
            f"{path}: {kind}; pack it first: gptpack pack {model} --budget 16MB, or another budget"
        )
    if kind.startswith("a folder"):
        raise NotPackedError(f"{path}: {kind}, not a packed file; name the file itself")
    try:
        with opened(path) as file:
            yield file, os.fstat(file.fileno()).st_size
    except GptpackError as error:
        raise type(error)(f"{path}: {error}") from error
    except OSError as error:
        raise GptpackError(f"{path}: cannot read it: {error.strerror}") from error


def read_part(file: BinaryIO, size: int, what: str) -> bytes:
    """The next `size` bytes, which are `what` in the `ArtifactError` of a file that ends before."""
    data = file.read(size)
    if len(data) != size:
        raise ArtifactError(f"{what} ends after {len(data):,} of {size:,} bytes; get it again")
    return data


def header_of(file: BinaryIO, file_bytes: int) -> ArtifactHeader:
    """The header of an open file of so many bytes; what is wrong with it is an `ArtifactError`."""
    start = file.read(PREAMBLE_BYTES)
    preamble = read_preamble(start, file_bytes)
    stored = read_part(file, preamble.stored_header_bytes, "the header")
    declared = start[FIELDS.size :]
    assert len(declared) == DIGEST_BYTES
    if digest(start[: FIELDS.size], stored) != declared:
        raise ArtifactError("preamble and header do not match their SHA-256; get the file again")
    raw = stored
    if preamble.deflated:
        inflater = zlib.decompressobj()
        try:
            raw = inflater.decompress(stored, preamble.raw_header_bytes + 1)
        except zlib.error as error:
            raise ArtifactError(f"the header is not a zlib stream: {error}") from error
        if len(raw) != preamble.raw_header_bytes or not inflater.eof or inflater.unused_data:
            raise ArtifactError(
                f"the header is not one zlib stream of {preamble.raw_header_bytes:,} bytes"
            )
    return parse_header(
        raw,
        version=preamble.version,
        header_bytes=preamble.sections_start,
        file_bytes=file_bytes,
        header_sha256=declared.hex(),
    )


def check_digest(section: SectionEntry, found: str) -> None:
    """Raise the `ArtifactError` of a section whose bytes have another digest than its row says."""
    if found != section.digest:
        raise ArtifactError(
            f"section {section.name} does not match its SHA-256; get the file again"
        )
