"""The preamble's fields <-> bytes, and the limits of a file; docs/format.md is the specification.

preamble | digest of the preamble and the stored header | stored header | sections
"""

import hashlib
import struct
from dataclasses import dataclass

from gptpack.errors import ArtifactError
from gptpack.version import FORMAT_VERSION

MAGIC = b"\x89GPTPK\r\n"

HEADER_DEFLATED = 1
"""Bit of the preamble's flags: the header is stored as a zlib stream."""

FIELDS = struct.Struct("<8sHHIIQ")
"""Magic, version, flags, stored header bytes, raw header bytes, file bytes."""
DIGEST_BYTES = 32
PREAMBLE_BYTES = FIELDS.size + DIGEST_BYTES

SECTION_DIGEST_CHARACTERS = 32
"""Hexadecimal characters kept of a section's SHA-256. 128 bits protect from damage; from forgery no
length would, as a forger can write any digest."""

LARGEST_HEADER_BYTES = 1 << 20
"""Largest raw header. Parsed JSON takes some 25 times its size, so at most some 25 MB."""
HEADER_RAW_PER_STORED = 64
HEADER_RAW_ALWAYS = 65536
LARGEST_DEPTH = 32
LARGEST_RANK = 4
LARGEST_DIMENSION = (1 << 48) - 1
LONGEST_NAME = 200

MOST_FILES = 64
"""Most files that go with a model."""
FILES_SECTION = "files"
"""Name of the section that holds them."""
FILES_RAW_PER_STORED = 64
"""Factor of the memory rule for that section: who parses JSON takes 25 times its size again."""

LFS_POINTER = b"version https://git-lfs.github.com/"


def most_header_bytes(stored_bytes: int) -> int:
    """Largest raw header that `stored_bytes` may stand for."""
    return min(HEADER_RAW_PER_STORED * stored_bytes + HEADER_RAW_ALWAYS, LARGEST_HEADER_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preamble:
    """The first `PREAMBLE_BYTES` of a file."""

    version: int
    deflated: bool
    stored_header_bytes: int
    raw_header_bytes: int
    file_bytes: int

    @property
    def sections_start(self) -> int:
        return PREAMBLE_BYTES + self.stored_header_bytes

    def to_bytes(self, stored_header: bytes) -> bytes:
        """The preamble of a file with this header, digest included."""
        flags = HEADER_DEFLATED if self.deflated else 0
        fields = FIELDS.pack(
            MAGIC,
            self.version,
            flags,
            self.stored_header_bytes,
            self.raw_header_bytes,
            self.file_bytes,
        )
        return fields + digest(fields, stored_header)


def digest(fields: bytes, stored_header: bytes) -> bytes:
    """The SHA-256 that the preamble ends with; through the header it covers every bit of a file."""
    return hashlib.sha256(fields + stored_header).digest()


def section_digest(stored: bytes) -> str:
    """The digest by which the header names a section's stored bytes."""
    return hashlib.sha256(stored).hexdigest()[:SECTION_DIGEST_CHARACTERS]


def read_preamble(start: bytes, file_bytes: int) -> Preamble:
    """The preamble in the first `PREAMBLE_BYTES` (or fewer) of a file; its digest is not checked.

    Raises:
        ArtifactError: this is no artifact of this version, or its sizes cannot be; names what the
            file seems to be.
    """
    if not start:
        raise ArtifactError("the file is empty; write it again")
    if start.startswith(LFS_POINTER):
        raise ArtifactError("a git-lfs pointer, not the file it stands for; run: git lfs pull")
    if not start.startswith(MAGIC):
        if start.startswith(MAGIC[:6]):
            raise ArtifactError("line ends were converted in transfer; copy it again as binary")
        raise ArtifactError(f"not a gptpack artifact: it starts with {start[:8]!r}, not {MAGIC!r}")
    if len(start) < PREAMBLE_BYTES:
        raise ArtifactError(
            f"{file_bytes:,} bytes are less than the preamble of {PREAMBLE_BYTES}; get it again"
        )
    _, version, flags, stored, raw, declared = FIELDS.unpack_from(start)
    if not 1 <= version <= FORMAT_VERSION:
        raise ArtifactError(
            f"format version {version}, this gptpack reads versions 1 to {FORMAT_VERSION}; "
            "use the gptpack that wrote it, or a newer one"
        )
    if flags & ~HEADER_DEFLATED:
        raise ArtifactError(f"flags {flags:#06x} have bits that version {version} does not know")
    if declared != file_bytes:
        raise ArtifactError(f"{file_bytes:,} bytes, the preamble says {declared:,}; get it again")
    preamble = Preamble(
        version=version,
        deflated=bool(flags & HEADER_DEFLATED),
        stored_header_bytes=stored,
        raw_header_bytes=raw,
        file_bytes=declared,
    )
    if preamble.sections_start > file_bytes:
        raise ArtifactError(f"a header of {stored:,} bytes does not fit in {file_bytes:,} bytes")
    if raw > most_header_bytes(stored):
        raise ArtifactError(
            f"a header of {raw:,} bytes, {stored:,} stored bytes may hold "
            f"{most_header_bytes(stored):,} at most"
        )
    if not preamble.deflated and raw != stored:
        raise ArtifactError(f"a header of {raw:,} bytes is stored as is in {stored:,} bytes")
    return preamble
