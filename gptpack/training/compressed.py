"""A compressed checkpoint -> what torch.save wrote, in memory that the file's bytes justify.

Contest scripts compress what torch.save writes by zlib, gzip, xz or zstd, all under the same name
(``.ptz``), so the first bytes say which it is.
"""

import lzma
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from gptpack.errors import CheckpointError

GZIP = b"\x1f\x8b"
XZ = b"\xfd7zXZ\0"
ZSTD = b"\x28\xb5\x2f\xfd"
RAW_PER_STORED = 64
"""Most raw bytes of a compressed one; codes of 5 to 8 bits, one a byte, have 1.1 to 2."""
RAW_ALWAYS = 1 << 20
"""Raw bytes that any file may expand to, on top."""
WINDOW = 1 << 27
"""Most bytes that a stream may look back, those of zstd's level 22; xz's level 9 has half."""
PIECE = 1 << 20


def is_compressed(start: bytes) -> bool:
    """Whether a file that begins so is a zlib, gzip, xz or zstd stream."""
    deflate = len(start) > 1 and start[0] == 0x78 and int.from_bytes(start[:2], "big") % 31 == 0
    return deflate or start.startswith((GZIP, XZ, ZSTD))


def decompressed(where: object, file: BinaryIO) -> bytes:
    """What the stream holds that the file begins with; no more of the file is read than that takes.

    Raises:
        CheckpointError: it is damaged, ends early, looks back further than `WINDOW`, or expands
            beyond what weights can.
    """
    raw = bytearray()
    try:
        for piece in _pieces(file):
            raw += piece
            stored = file.tell()
            if len(raw) > (most := RAW_PER_STORED * stored + RAW_ALWAYS):
                raise CheckpointError(
                    f"{where}: {stored:,} compressed bytes that expand to more than {most:,}, "
                    "which no weights do; save the state dict without compression"
                )
    except EOFError as error:
        raise CheckpointError(
            f"{where}: a compressed file that ends early; get it again"
        ) from error
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError, MemoryError) as error:
        if "memory" in str(error).lower():
            raise CheckpointError(
                f"{where}: it is compressed with a window of more than {WINDOW >> 20} MiB; save it "
                "with a smaller one, or without compression"
            ) from error
        raise CheckpointError(
            f"{where}: a compressed file that is damaged ({error}); get it again"
        ) from error
    return bytes(raw)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """The raw bytes of the file's first stream, `PIECE` at most at a time."""
    start = file.read(len(XZ))
    file.seek(0)
    if start.startswith(ZSTD):
        # torch's loader sees where the frame was cut
        with zstandard.ZstdDecompressor(max_window_size=WINDOW).stream_reader(file) as reader:
            while piece := reader.read(PIECE):
                yield piece
        return
    xz = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WINDOW)
    stream = xz if start.startswith(XZ) else zlib.decompressobj(zlib.MAX_WBITS | 32)
    left = b""
    while not stream.eof:
        if not left and getattr(stream, "needs_input", True):
            left = file.read(PIECE)
        piece = stream.decompress(left, PIECE)
        if not (piece or left or stream.eof):
            raise EOFError
        yield piece
        left = getattr(stream, "unconsumed_tail", b"")
