"""A text file -> its documents, one at a time; the file is never in memory as a whole.

``.txt`` holds documents between separators, ``.jsonl`` one object with a ``text`` field per line;
either may be compressed (``.gz``, ``.xz``, ``.zst``). An empty piece before a separator is a
document, which becomes a lone BOS; after the last separator it is none. Blank lines of a ``.jsonl``
are skipped.
"""

import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from gptpack.errors import DataError

SEPARATOR = "\n\x1e\n"
COMPRESSIONS = (".gz", ".xz", ".zst")
READ_BYTES = 1 << 20
ZSTD_READ_BYTES = 1 << 12
"""Bytes given to zstandard at once: it returns all they expand to, up to 2^15 times as much,
which is 128 MiB."""

Position = Callable[[int], None]
"""Called with the number of bytes of the (compressed) file that were read so far."""


def iterate_documents(
    path: str | Path, separator: str = SEPARATOR, position: Position | None = None
) -> Iterator[str]:
    """Yield the documents of `path` in order.

    Raises:
        DataError: unreadable or truncated file, unknown suffix, invalid UTF-8 or JSON, no text
            field. Names the file and the byte (after decompression) or the line.
    """
    path = Path(path)
    kind = document_kind(path)
    chunks = _chunks(path, position)
    if kind == ".jsonl":
        yield from _json_documents(path, chunks)
    else:
        if not separator:
            raise DataError("the document separator is empty; give at least one character")
        for offset, piece in _split(chunks, separator.encode()):
            yield _decoded(path, piece, offset)


def document_kind(path: Path) -> str:
    """The kind of a text file, ``.txt`` or ``.jsonl``; raises DataError for any other suffix."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in (".txt", ".jsonl"):
        raise DataError(
            f"{path}: unknown kind of text file; name it .txt or .jsonl, optionally followed by "
            f"{', '.join(COMPRESSIONS)}"
        )
    return suffixes[-1]


def _json_documents(path: Path, chunks: Iterator[bytes]) -> Iterator[str]:
    for number, (offset, line) in enumerate(_split(chunks, b"\n"), start=1):
        if not line.strip():
            continue
        written = _decoded(path, line, offset)
        try:
            record = json.loads(written)
        except (ValueError, RecursionError) as error:
            # an integer of thousands of digits is a ValueError of its own
            reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
            raise DataError(f"{path}:{number}: not JSON: {reason}") from error
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            found = "no object" if not isinstance(record, dict) else "no string under 'text'"
            raise DataError(f'{path}:{number}: {found}; each line must be {{"text": "..."}}')
        if not _is_unicode(text):
            raise DataError(f"{path}:{number}: the text holds half of a UTF-16 surrogate pair")
        yield text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded(path: Path, piece: bytes, offset: int) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {offset + error.start}: not UTF-8 ({error.reason}); convert the file"
        ) from error


def _split(chunks: Iterator[bytes], separator: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield offset and content of each piece between separators; an empty last one is left out."""
    offset = 0
    parts: list[bytes] = []
    # Bytes that may be the start of a separator wait for the next chunk.
    carry = b""
    keep = len(separator) - 1
    for chunk in chunks:
        *complete, rest = (carry + chunk).split(separator)
        for piece in complete:
            parts.append(piece)
            document = b"".join(parts)
            yield offset, document
            offset += len(document) + len(separator)
            parts = []
        cut = max(len(rest) - keep, 0)
        parts.append(rest[:cut])
        carry = rest[cut:]
    last = b"".join([*parts, carry])
    if last:
        yield offset, last


def _chunks(path: Path, position: Position | None) -> Iterator[bytes]:
    """The decompressed bytes of `path` in pieces of bounded size."""
    done = 0
    try:
        with path.open("rb") as raw:
            if path.suffix in COMPRESSIONS and not raw.read(1):
                raise EOFError("the file is empty")
            raw.seek(0)
            for chunk in _decompressed(raw, path.suffix):
                done += len(chunk)
                yield chunk
                if position is not None:
                    position(raw.tell())
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(
            f"{path}: corrupt or truncated {path.suffix} after {done} decompressed bytes: {error}"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from error


def _decompressed(raw: BinaryIO, suffix: str) -> Iterator[bytes]:
    if suffix == ".zst":
        yield from _zstd(raw)
        return
    if suffix == ".gz":
        with gzip.GzipFile(fileobj=raw) as unzipped:
            yield from _reads(unzipped)
    elif suffix == ".xz":
        with lzma.LZMAFile(raw) as unpacked:
            yield from _reads(unpacked)
    else:
        yield from _reads(raw)


def _reads(stream: BinaryIO | gzip.GzipFile | lzma.LZMAFile) -> Iterator[bytes]:
    while chunk := stream.read(READ_BYTES):
        yield chunk


def _zstd(raw: BinaryIO) -> Iterator[bytes]:
    # A stream_reader ends without a word where a frame is cut short, so frames are fed by hand.
    frame = None
    while data := raw.read(ZSTD_READ_BYTES):
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            chunk = frame.decompress(data)
            data = b""
            if frame.eof:
                data, frame = frame.unused_data, None
            if chunk:
                yield chunk
    if frame is not None:
        raise EOFError("the last frame ends early")
