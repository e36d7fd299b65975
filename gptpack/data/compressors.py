"""A text -> its bits per byte when gzip, xz and zstd store it, beside which a model's mean more."""

import gzip
import lzma
from collections.abc import Callable, Mapping
from typing import Any

import zstandard

MOST_BYTES = 1 << 22
"""Most bytes of a text that are compressed, the first ones; more take longer and say no more."""


def _xz(text: bytes) -> bytes:
    # a dictionary longer than the text changes nothing but the memory, which would be 0.7 GB
    size = max(len(text), 4096)
    xz = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": size}
    return lzma.compress(text, filters=[xz])


COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip -9": lambda text: gzip.compress(text, 9, mtime=0),
    "xz -9e": _xz,
    "zstd -19": lambda text: zstandard.ZstdCompressor(level=19).compress(text),
}


def compressed(text: bytes) -> dict[str, Any]:
    """What the compressors make of the first `MOST_BYTES` of a text that is not empty.

    Returns:
        ``bytes`` that were compressed, and ``bpb``: bits per byte of each compressor's whole
        output, container included, by its command line.
    """
    text = text[:MOST_BYTES]
    sizes = {name: len(compress(text)) for name, compress in COMPRESSORS.items()}
    return {"bytes": len(text), "bpb": {name: 8 * size / len(text) for name, size in sizes.items()}}
