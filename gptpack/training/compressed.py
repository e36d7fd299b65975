"""A compressed checkpoint's bytes -> what torch.save wrote, in memory that their number justifies.

Contest scripts compress what torch.save writes by zlib, gzip, xz or zstd, all under the same name
(``.ptz``), so the first bytes say which it is.
"""

import lzma
import zlib

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


def decompressed(where: object, stored: bytes) -> bytes:
    """What the stream holds.

    Raises:
        CheckpointError: it is damaged, ends early, or expands beyond what weights can.
    """
    most = RAW_PER_STORED * len(stored) + RAW_ALWAYS
    try:
        if stored.startswith(ZSTD):
            raw, ended = _zstd(stored, most), True  # torch's loader sees where it was cut
        else:
            xz = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WINDOW)
            stream = xz if stored.startswith(XZ) else zlib.decompressobj(zlib.MAX_WBITS | 32)
            raw = stream.decompress(stored, most + 1)
            ended = stream.eof
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError, MemoryError) as error:
        raise CheckpointError(
            f"{where}: a compressed file that is damaged ({error}); get it again"
        ) from error
    if len(raw) > most:
        raise CheckpointError(
            f"{where}: {len(stored):,} compressed bytes that expand to more than {most:,}, which "
            "no weights do; save the state dict without compression"
        )
    if not ended:
        raise CheckpointError(f"{where}: a compressed file that ends early; get it again")
    return raw


def _zstd(stored: bytes, most: int) -> bytes:
    """The first frame, as far as the piece that is beyond `most` bytes."""
    raw = bytearray()
    with zstandard.ZstdDecompressor(max_window_size=WINDOW).stream_reader(stored) as stream:
        while len(raw) <= most and (piece := stream.read(PIECE)):
            raw += piece
    return bytes(raw)
