"""A text file -> its documents, one at a time; the file is never in memory as a whole.

``.txt`` holds documents between separators, ``.jsonl`` one object with a ``text`` field per line;
either may be compressed (``.gz``, ``.xz``, ``.zst``). A compressed file is read to its last byte:
members, streams and frames one after another, with the padding and the skippable frames that their
formats allow; anything else in it is an error. An empty piece before a separator is a
document, which becomes a lone BOS; after the last separator it is none. Blank lines of a ``.jsonl``
are skipped. A byte order mark at the start of a file is no text.
"""

import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from gptpack.errors import DataError
from gptpack.inputs import opened

SEPARATOR = "\n\x1e\n"
COMPRESSIONS = (".gz", ".xz", ".zst")
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
        offset, piece = 0, b""
        for offset, piece in _split(chunks, separator.encode()):
            yield _decoded(path, piece, offset)
        if not offset:
            _check_whole(path, piece, separator)


def _check_whole(path: Path, piece: bytes, separator: str) -> None:
    """Raise the `DataError` of a file of one document that has its separator in another form."""
    core = separator.strip("\r\n")
    if core and core != separator and (count := piece.count(core.encode())):
        raise DataError(
            f"{path}: the separator {separator!r} does not occur, but {core!r} does, {count} "
            "times; give it as the file has it, with \\r\\n if its lines end so"
        )


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
        with opened(path) as raw:
            if path.suffix in COMPRESSIONS and not raw.read(1):
                raise EOFError("the file is empty")
            raw.seek(0)
            for chunk in _without_mark(_decompressed(raw, path.suffix)):
                done += len(chunk)
                yield chunk
                if position is not None:
                    position(raw.tell())
    except MemoryError as error:
        raise DataError(
            f"{path}: too little memory to decompress {path.suffix} after {done} bytes: {error}; "
            "write it again with a smaller window or dictionary"
        ) from error
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(
            f"{path}: corrupt or truncated {path.suffix} after {done} decompressed bytes: {error}"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from error


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


def _decompressed(raw: BinaryIO, suffix: str) -> Iterator[bytes]:
    if suffix == ".zst":
        yield from _zstd(raw)
        return
    if suffix == ".gz":
        with gzip.GzipFile(fileobj=raw) as unzipped:
            yield from _reads(unzipped)
    elif suffix == ".xz":
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
