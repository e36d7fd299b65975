"""Bytes <-> fewer bytes, by general compressors that decode within the memory the caller allows.

The memory rule of docs/format.md, `most_raw_bytes`, limits the size that a stream may expand to by
the size that it has in the file. Where weights are nearly all equal, streams are too small for it;
`padded_zlib` then takes as many bytes as it asks for.
"""

import lzma
import zlib
from typing import Any, Protocol

from gptpack.errors import ArtifactError, MissingDependencyError

LAYOUTS = ("row", "column", "planes")
"""Orders in which a general codec may see the values; docs/format.md defines each."""
RAW_PER_STORED = 128
"""Factor of the memory rule: six times the largest ratio found in trained weights (docs/log.md)."""
RAW_ALWAYS = 65536
LZMA_LARGEST_DICTIONARY = 1 << 24


def most_raw_bytes(stored_bytes: int, all_bytes: int) -> int:
    """Largest raw size of a section of `stored_bytes`, in a file of `all_bytes` of sections."""
    return RAW_PER_STORED * stored_bytes + all_bytes + RAW_ALWAYS


def padded_zlib(stored: bytes, raw_bytes: int, all_bytes: int) -> bytes:
    """The zlib stream `stored`, or one that the memory rule allows to hold `raw_bytes`.

    Empty stored blocks, of 5 bytes each, go before the stream's own blocks.
    """
    least = -(-(raw_bytes - all_bytes - RAW_ALWAYS) // RAW_PER_STORED)
    blocks = -(-max(0, least - len(stored)) // 5)
    return stored[:2] + b"\x00\x00\x00\xff\xff" * blocks + stored[2:]


class ByteCodec(Protocol):
    """A compressor of one byte string."""

    @property
    def name(self) -> str: ...

    def encode(self, raw: bytes) -> bytes: ...

    def decode(self, stored: bytes, raw_bytes: int) -> bytes:
        """The `raw_bytes` bytes that were encoded; allocates no more than a small multiple of that.

        Raises:
            ArtifactError: `stored` is not one whole stream of exactly `raw_bytes` bytes.
            MissingDependencyError: the compressor is not installed.
        """


def _wrong(name: str, why: object) -> ArtifactError:
    return ArtifactError(f"not a {name} stream of the declared size: {why}; get the file again")


def _checked(name: str, raw: bytes, raw_bytes: int, ended: bool, rest: bytes) -> bytes:
    if len(raw) > raw_bytes:
        raise _wrong(name, f"it expands to more than the {raw_bytes:,} declared bytes")
    if not ended:
        raise _wrong(name, "it ends early")
    if rest:
        raise _wrong(name, f"{len(rest):,} bytes follow its end")
    if len(raw) < raw_bytes:
        raise _wrong(name, f"it holds {len(raw):,} bytes, {raw_bytes:,} are declared")
    return raw


class Raw:
    """The bytes themselves."""

    name = "raw"

    def encode(self, raw: bytes) -> bytes:
        return raw

    def decode(self, stored: bytes, raw_bytes: int) -> bytes:
        return _checked(self.name, stored, raw_bytes, True, b"")


class Zlib:
    """RFC 1950 at level 9."""

    name = "zlib"

    def encode(self, raw: bytes) -> bytes:
        return zlib.compress(raw, 9)

    def decode(self, stored: bytes, raw_bytes: int) -> bytes:
        stream = zlib.decompressobj()
        try:
            # One byte more than declared, so that the end of the stream is always reached.
            raw = stream.decompress(stored, raw_bytes + 1)
        except zlib.error as error:
            raise _wrong(self.name, error) from error
        return _checked(self.name, raw, raw_bytes, stream.eof, stream.unused_data)


class Zstd:
    """RFC 8878, one frame that states its content size; of levels 1 and 19, the smaller.

    Quantized weights have no repeats to find, and level 1, which hardly looks for any, is then the
    smallest as well: 2 MiB of Gaussian int8 codes take 0.8 % more than their empirical entropy at
    level 1 in 5 ms, 0.9 % at level 19 in 1.3 s, 5 % at level 9 (zlib: 10 %). So level 19 is tried
    only where level 9 finds repeats that pay.
    """

    name = "zstd"

    def encode(self, raw: bytes) -> bytes:
        quick = self._at(1, raw)
        if len(self._at(9, raw)) >= len(quick):
            return quick
        return min(quick, self._at(19, raw), key=len)

    def _at(self, level: int, raw: bytes) -> bytes:
        zstandard = _zstandard()
        parameters = zstandard.ZstdCompressionParameters.from_level(level, source_size=len(raw))
        stored: bytes = zstandard.ZstdCompressor(compression_params=parameters).compress(raw)
        return stored

    def decode(self, stored: bytes, raw_bytes: int) -> bytes:
        zstandard = _zstandard()
        try:
            # The library allocates what the frame claims, so the claim is checked first.
            frame = zstandard.get_frame_parameters(stored)
            if frame.content_size != raw_bytes:
                raise _wrong(self.name, f"its frame does not state {raw_bytes:,} bytes")
            raw = zstandard.ZstdDecompressor().decompress(
                stored, max_output_size=raw_bytes, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise _wrong(self.name, error) from error
        return _checked(self.name, raw, raw_bytes, True, b"")


class Lzma:
    """A bare LZMA2 stream; its dictionary follows from the raw size and is at most 16 MiB."""

    name = "lzma"

    def encode(self, raw: bytes) -> bytes:
        return lzma.compress(raw, lzma.FORMAT_RAW, filters=self._filters(len(raw)))

    def decode(self, stored: bytes, raw_bytes: int) -> bytes:
        stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=self._filters(raw_bytes))
        try:
            raw = stream.decompress(stored, raw_bytes + 1)
        except lzma.LZMAError as error:
            raise _wrong(self.name, error) from error
        rest = stream.unused_data if stream.eof else b""
        return _checked(self.name, raw, raw_bytes, stream.eof, rest)

    def _filters(self, raw_bytes: int) -> list[dict[str, Any]]:
        power = 1 << max(12, (raw_bytes - 1).bit_length())
        return [
            {
                "id": lzma.FILTER_LZMA2,
                "preset": 9 | lzma.PRESET_EXTREME,
                "dict_size": min(power, LZMA_LARGEST_DICTIONARY),
            }
        ]


class Brotli:
    """RFC 7932 at quality 11 with a 16 MiB window. An optional dependency, so never in `AUTO`."""

    name = "brotli"

    def encode(self, raw: bytes) -> bytes:
        stored: bytes = _brotli().compress(raw, quality=11, lgwin=24)
        return stored

    def decode(self, stored: bytes, raw_bytes: int) -> bytes:
        brotli = _brotli()
        stream = brotli.Decompressor()
        pieces: list[bytes] = []
        size = 0
        feed = stored
        try:
            while size <= raw_bytes and not stream.is_finished():
                piece = stream.process(feed, output_buffer_limit=raw_bytes + 1 - size)
                if not piece and stream.can_accept_more_data():
                    break
                feed = b""
                pieces.append(piece)
                size += len(piece)
        except brotli.error as error:
            raise _wrong(self.name, error) from error
        return _checked(self.name, b"".join(pieces), raw_bytes, stream.is_finished(), b"")


def _zstandard() -> Any:
    """The module; a file without zstd sections is read where it is not installed."""
    try:
        import zstandard
    except ImportError as error:
        raise MissingDependencyError(
            "codec zstd needs a package that is not installed; pip install zstandard"
        ) from error
    return zstandard


def _brotli() -> Any:
    """The module, of a version whose decoder can be told where to stop."""
    try:
        import brotli
    except ImportError as error:
        raise MissingDependencyError(
            "codec brotli needs a package that is not installed; pip install 'brotli>=1.2'"
        ) from error
    if not hasattr(brotli.Decompressor, "can_accept_more_data"):
        raise MissingDependencyError(
            f"codec brotli found brotli {brotli.__version__}, whose decoder cannot be bounded; "
            "pip install 'brotli>=1.2'"
        )
    return brotli


BYTE_CODECS: tuple[ByteCodec, ...] = (Raw(), Zlib(), Zstd(), Lzma(), Brotli())

CODECS = (*(codec.name for codec in BYTE_CODECS if codec.name != "brotli"), "range", "brotli")
"""Names of the codecs of the format, in its order: these, and ``range``, which sees the arrays."""
