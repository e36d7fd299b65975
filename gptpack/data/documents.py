"""A text file -> its documents, one at a time; the file is never in memory as a whole.

Text is documents between separators, or JSON lines: objects with a ``text`` field, one a line.
Either may be compressed (gzip, xz, zstd). The content says which, not the name; but what is called
``.jsonl`` or ``.gz`` must be that. A compressed file is read to its last byte: members, streams and
frames one after another, with the padding and the skippable frames that their formats allow;
anything else in it is an error. An empty piece before a separator is a document, which becomes a
lone BOS; after the last separator it is none. Blank JSON lines are skipped. A byte order mark at
the start of a file is no text.
"""

import codecs
import gzip
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import zstandard

from gptpack.errors import DataError
from gptpack.inputs import TEXT, kind_of, opened

SEPARATOR = "\n\x1e\n"
COMPRESSIONS = {
    ".gz": re.compile(rb"\x1f\x8b"),
    ".xz": re.compile(rb"\xfd7zXZ\0"),
    ".zst": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
}
"""Compression -> how its files begin; zstd's may begin with a skippable frame."""
LONGEST_START = 8
MOST_DOCUMENT_BYTES = 1 << 30
"""Bytes of a document, at most, as it is in memory whole."""
READ_BYTES = 1 << 20
ZSTD_READ_BYTES = 1 << 12
"""Bytes given to zstandard at once: it returns all they expand to, up to 2^15 times as much,
which is 128 MiB."""

ZSTD_WINDOW_BYTES = 1 << 31
"""Largest window of a frame: that of ``zstd --long=31``, of which memory is taken as text fills
it."""
XZ_PADDING_BYTES = 4
"""Bytes of which zeros between the streams of an ``.xz`` file are a multiple."""

Position = Callable[[int], None]
"""Called with the number of bytes of the (compressed) file that were read so far."""


def iterate_documents(
    path: str | Path, separator: str = SEPARATOR, position: Position | None = None
) -> Iterator[str]:
    """Yield the documents of `path` in order.

    Raises:
        DataError: unreadable or truncated file, invalid UTF-8 or JSON, no text field, or a
            document of more than `MOST_DOCUMENT_BYTES`. Names the file and the byte (after
            decompression) or the line.
    """
    path = Path(path)
    chunks = _chunks(path, position)
    head = _first_line(chunks)
    chunks = itertools.chain([head], chunks)
    named = [suffix.lower() for suffix in path.suffixes]
    if ".jsonl" in named or _is_record(head, other=".txt" not in named):
        yield from _json_documents(path, chunks)
    else:
        if not separator:
            raise DataError("the document separator is empty; give at least one character")
        for number, piece in enumerate(_split(path, chunks, separator.encode()), start=1):
            yield _decoded(path, f" document {number}", piece.content, piece.offset)
            if number == 1 and not piece.ended:
                _check_whole(path, piece.content, separator)


def _first_line(chunks: Iterator[bytes]) -> bytes:
    """The chunks up to the end of the first line that is not blank, if that may be of JSON."""
    parts: list[bytes] = []
    held, record = 0, False
    for chunk in chunks:
        parts.append(chunk)
        held += len(chunk)
        start = chunk if record else chunk.lstrip()
        if start and not record:
            record = start.startswith(b"{")
            if not record:
                break
        if b"\n" in start or held > MOST_DOCUMENT_BYTES:
            break
    return b"".join(parts)


def _is_record(head: bytes, *, other: bool) -> bool:
    """Whether the first line is an object of JSON with a text, or with `other` content."""
    line = head.lstrip().partition(b"\n")[0]
    try:
        record = json.loads(line) if line.startswith(b"{") else None
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and (other or isinstance(record.get("text"), str))


def _check_whole(path: Path, piece: bytes, separator: str) -> None:
    """Raise the `DataError` of a file of one document that has its separator in another form."""
    plain = separator.replace("\r\n", "\n")
    ends = {end: plain.replace("\n", end) for end in ("\r\n", "\r")}
    for other in (*ends.values(), separator.strip("\r\n") or separator):
        if other != separator and (count := piece.count(other.encode())):
            raise DataError(
                f"{path}: the separator {separator!r} does not occur, but {other!r} does, {count} "
                "times; write the file with lines that end in '\\n', or for shards tell "
                f"'gptpack data' --separator {other!r}"
            )


def _json_documents(path: Path, chunks: Iterator[bytes]) -> Iterator[str]:
    for number, line in enumerate(_split(path, chunks, b"\n"), start=1):
        if not line.content.strip():
            continue
        written = _decoded(path, str(number), line.content, line.offset)
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


def _decoded(path: Path, place: str, piece: bytes, offset: int) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError as error:
        if (kind := kind_of(path)) and kind != TEXT:
            raise DataError(f"{path}: {kind}; needed a file of text") from error
        raise DataError(
            f"{path}:{place}: byte {offset + error.start}: not UTF-8 ({error.reason}); convert the "
            "file"
        ) from error


class Piece(NamedTuple):
    """What stands between two separators."""

    offset: int
    content: bytes
    ended: bool
    """Whether a separator follows."""


def _split(path: Path, chunks: Iterator[bytes], separator: bytes) -> Iterator[Piece]:
    """The pieces between separators; an empty last one is left out."""
    offset = held = 0
    parts: list[bytes] = []
    # Bytes that may be the start of a separator wait for the next chunk.
    carry = b""
    keep = len(separator) - 1
    for chunk in chunks:
        *complete, rest = (carry + chunk).split(separator)
        for piece in complete:
            parts.append(piece)
            document = b"".join(parts)
            yield Piece(offset, document, ended=True)
            offset += len(document) + len(separator)
            parts, held = [], 0
        cut = max(len(rest) - keep, 0)
        parts.append(rest[:cut])
        held += cut
        carry = rest[cut:]
        if held > MOST_DOCUMENT_BYTES:
            raise DataError(
                f"{path}: byte {offset:,}: a document of more than {MOST_DOCUMENT_BYTES:,} bytes; "
                f"cut it up, or name the separator that the file has instead of {separator!r}"
            )
    last = b"".join([*parts, carry])
    if last:
        yield Piece(offset, last, ended=False)


def _chunks(path: Path, position: Position | None) -> Iterator[bytes]:
    """The decompressed bytes of `path` in pieces of bounded size."""
    done, kind = 0, ""
    try:
        with opened(path) as raw:
            kind = _compression(path, raw.peek(LONGEST_START))
            for chunk in _without_mark(_decompressed(raw, kind)):
                done += len(chunk)
                yield chunk
                if position is not None:
                    position(raw.tell())
    except MemoryError as error:
        raise DataError(
            f"{path}: too little memory to decompress {kind} after {done} bytes: {error}; "
            "write it again with a smaller window or dictionary"
        ) from error
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(
            f"{path}: corrupt or truncated {kind or path.suffix} after {done} decompressed bytes: "
            f"{error}"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from error


def _compression(path: Path, start: bytes) -> str:
    """How a file that begins so is compressed; empty if it is not."""
    found = next((kind for kind, begins in COMPRESSIONS.items() if begins.match(start)), "")
    if not found and path.suffix.lower() in COMPRESSIONS:
        raise EOFError(f"it begins as no {path.suffix} file" if start else "the file is empty")
    return found


def _without_mark(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks of a file without the byte order mark at its start, if there is one."""
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) >= len(codecs.BOM_UTF8):
            break
    if start := start.removeprefix(codecs.BOM_UTF8):
        yield start
    yield from chunks


def _decompressed(raw: BinaryIO, kind: str) -> Iterator[bytes]:
    if kind == ".zst":
        yield from _zstd(raw)
        return
    if kind == ".gz":
        with gzip.GzipFile(fileobj=raw) as unzipped:
            yield from _reads(unzipped)
    elif kind == ".xz":
        yield from _xz(raw)
    else:
        yield from _reads(raw)


def _reads(stream: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    while chunk := stream.read(READ_BYTES):
        yield chunk


def _xz(raw: BinaryIO) -> Iterator[bytes]:
    # LZMAFile ends without a word at whatever is no further stream, so streams are fed by hand.
    stream: lzma.LZMADecompressor | None = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    padding = 0
    while data := raw.read(READ_BYTES):
        while data:
            if stream is None:
                begins = data.lstrip(b"\0")
                padding += len(data) - len(begins)
                if not begins:
                    break
                _check_padding(padding)
                data, padding, stream = begins, 0, lzma.LZMADecompressor(lzma.FORMAT_XZ)
            if chunk := stream.decompress(data, READ_BYTES):
                yield chunk
            while not stream.eof and not stream.needs_input:
                yield stream.decompress(b"", READ_BYTES)
            data = stream.unused_data
            if stream.eof:
                stream = None
    if stream is not None:
        raise EOFError("the last stream ends early")
    _check_padding(padding)


def _check_padding(padding: int) -> None:
    if padding % XZ_PADDING_BYTES:
        raise EOFError(f"{padding} zeros behind a stream, not a multiple of {XZ_PADDING_BYTES}")


def _zstd(raw: BinaryIO) -> Iterator[bytes]:
    # A stream_reader ends without a word where a frame is cut short, so frames are fed by hand.
    frame = None
    reader = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    while data := raw.read(ZSTD_READ_BYTES):
        while data:
            frame = frame or reader.decompressobj()
            try:
                chunk = frame.decompress(data)
            except zstandard.ZstdError as error:
                if "memory" in str(error):
                    raise MemoryError(str(error)) from error
                raise
            data = b""
            if frame.eof:
                data, frame = frame.unused_data, None
            if chunk:
                yield chunk
    if frame is not None:
        raise EOFError("the last frame ends early")
