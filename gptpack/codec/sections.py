"""The arrays of a section <-> bytes: the codecs by name, and which of them is smallest.

A section holds one array (say, the codes) of every tensor of one method. A general codec sees the
concatenated bytes; a codec that knows more sees the arrays.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gptpack.codec.code_sections import OfCodes
from gptpack.codec.general import BYTE_CODECS, CODECS, ByteCodec, most_raw_bytes, padded_zlib
from gptpack.errors import GptpackError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One array's place in a section: all that is known before it is decoded."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """Type of the array: little endian, and the same for all slots of a section."""
    parameters: Mapping[str, int | float] = field(default_factory=dict)
    """Scalars that the tensor is decoded with."""

    @property
    def raw_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class SectionCodec(Protocol):
    """A lossless coder of the arrays of a section."""

    @property
    def name(self) -> str: ...

    def layouts(self, slots: Sequence[Slot]) -> tuple[str, ...]:
        """Members of `general.LAYOUTS` worth trying; none if the codec cannot hold such arrays."""

    def encode(self, slots: Sequence[Slot], arrays: Sequence[Array], layout: str) -> bytes:
        """The arrays as bytes; the same arrays give the same bytes."""

    def decode(self, stored: bytes, slots: Sequence[Slot], layout: str) -> list[Array]:
        """The arrays that `stored` holds, one for each slot, of its dtype and shape.

        The caller has checked that the slots' raw bytes obey the memory rule for `stored`.

        Raises:
            ArtifactError: `stored` is none that `encode` makes of such arrays.
        """


class OfBytes:
    """A section codec that hands the concatenated values of a section to a general codec."""

    def __init__(self, codec: ByteCodec) -> None:
        self.codec = codec

    @property
    def name(self) -> str:
        return self.codec.name

    def layouts(self, slots: Sequence[Slot]) -> tuple[str, ...]:
        if self.name == "raw":
            return ("row",)
        found = ["row"]
        if any(len(slot.shape) == 2 and min(slot.shape) > 1 for slot in slots):
            found.append("column")
        if any(slot.dtype.itemsize > 1 for slot in slots):
            found.append("planes")
        return tuple(found)

    def encode(self, slots: Sequence[Slot], arrays: Sequence[Array], layout: str) -> bytes:
        del slots
        raw = b"".join(
            array.tobytes("F" if layout == "column" and array.ndim == 2 else "C")
            for array in arrays
        )
        if layout == "planes":
            raw = np.frombuffer(raw, np.uint8).reshape(-1, arrays[0].itemsize).T.tobytes()
        return self.codec.encode(raw)

    def decode(self, stored: bytes, slots: Sequence[Slot], layout: str) -> list[Array]:
        raw = self.codec.decode(stored, sum(slot.raw_bytes for slot in slots))
        if layout == "planes":
            itemsize = slots[0].dtype.itemsize
            raw = np.frombuffer(raw, np.uint8).reshape(itemsize, -1).T.tobytes()
        arrays = []
        start = 0
        for slot in slots:
            flat = np.frombuffer(raw, slot.dtype, math.prod(slot.shape), start)
            start += slot.raw_bytes
            if layout == "column" and len(slot.shape) == 2:
                arrays.append(np.ascontiguousarray(flat.reshape(slot.shape[::-1]).T))
            else:
                arrays.append(flat.reshape(slot.shape))
        return arrays


def _general(codec: ByteCodec) -> Callable[[], SectionCodec]:
    return lambda: OfBytes(codec)


_BY_NAME = {codec.name: codec for codec in BYTE_CODECS}
SECTION_CODECS: dict[str, Callable[[], SectionCodec]] = {
    name: _general(_BY_NAME[name]) if name in _BY_NAME else OfCodes for name in CODECS
}
"""Makers of every codec of the format, by name. Only a codec in use imports what it needs."""


AUTO = ("raw", "zlib", "zstd", "lzma", "range")
"""The codecs that ``auto`` tries: every machine with gptpack can decode them."""


def codec_names(codecs: Sequence[str] | str) -> tuple[str, ...]:
    """The codecs that `codecs` (a list, one name, or ``auto``) asks for, in the format's order.

    Raises:
        GptpackError: no codec is asked for, or one that the format does not have.
    """
    asked = (codecs,) if isinstance(codecs, str) else tuple(codecs)
    unknown = [name for name in asked if name != "auto" and name not in SECTION_CODECS]
    if unknown or not asked:
        raise GptpackError(
            f"codec '{', '.join(unknown)}': there are auto, {', '.join(SECTION_CODECS)}"
        )
    wanted = {*asked, *(AUTO if "auto" in asked else ())}
    return tuple(name for name in SECTION_CODECS if name in wanted)


def large_codes(slots: Sequence[Slot]) -> bool:
    """Whether these are matrices of 16-bit codes, 64 KiB or more in all."""
    codes = all(len(slot.shape) == 2 and slot.dtype == np.dtype("<i2") for slot in slots)
    return codes and sum(slot.raw_bytes for slot in slots) >= 1 << 16


def worth_trying(codecs: Sequence[str], slots: Sequence[Slot]) -> Sequence[str]:
    """The codecs to try on a section: for a large one of code matrices, the context coder alone.

    On 16-bit codes general codecs are slower by minutes and larger by tenths of a bit per code
    (docs/log.md).
    """
    return ("range",) if large_codes(slots) and "range" in codecs else codecs


def get_ready() -> None:
    """Load the loops that code matrices, or compile them where they were not kept."""
    slot = Slot(shape=(8, 8), dtype=np.dtype("<i2"), parameters={"states": 256})
    codec, codes = OfCodes(), np.zeros(slot.shape, slot.dtype)
    codec.decode(codec.encode([slot], [codes], "row"), [slot], "row")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedStream:
    """A section's stored bytes, and the codec and layout that decode them."""

    codec: str
    layout: str
    data: bytes


def encode_streams(
    sections: Sequence[tuple[Sequence[Slot], Sequence[Array]]],
    codecs: Sequence[str],
    *,
    draft: bool = False,
) -> list[EncodedStream]:
    """Each section's smallest stream over `codecs` and their layouts; the first of equals.

    A stream that breaks the memory rule could not be read back and does not count. If the smallest
    does, zlib is tried as well, padded to what the rule asks for; the section's record shows it.

    Args:
        codecs: names from `codec_names`. They run on as many threads as there are cores, since the
            libraries release the interpreter lock.
        draft: do not code large sections of code matrices; zeros stand for their bytes.

    Raises:
        MissingDependencyError: a codec's library is not installed.
    """
    with ThreadPoolExecutor() as pool:

        def tried(index: int, names: Sequence[str]) -> Iterator[Callable[[], EncodedStream]]:
            slots, arrays = sections[index]

            def submitted(codec: SectionCodec, layout: str) -> Callable[[], EncodedStream]:
                encode = codec.encode
                if draft and isinstance(codec, OfCodes) and large_codes(slots):
                    encode = codec.draft
                future = pool.submit(encode, slots, arrays, layout)
                return lambda: EncodedStream(codec=codec.name, layout=layout, data=future.result())

            for name in worth_trying(names, slots):
                codec = SECTION_CODECS[name]()
                for layout in codec.layouts(slots):
                    yield submitted(codec, layout)

        def size(stream: EncodedStream) -> int:
            return len(stream.data)

        pending = [list(tried(index, codecs)) for index in range(len(sections))]
        streams = [
            [done() for done in each] or [done() for done in tried(index, ("zlib",))]
            for index, each in enumerate(pending)
        ]
        all_bytes = sum(min(map(size, each)) for each in streams)
        best = []
        for index, (slots, _) in enumerate(sections):
            raw_bytes = sum(slot.raw_bytes for slot in slots)

            def readable(stream: EncodedStream, raw_bytes: int = raw_bytes) -> bool:
                return raw_bytes <= most_raw_bytes(size(stream), all_bytes)

            found = streams[index]
            if not readable(min(found, key=size)):
                stream = min((done() for done in tried(index, ("zlib",))), key=size)
                padded = replace(stream, data=padded_zlib(stream.data, raw_bytes, all_bytes))
                found = [*filter(readable, found), padded]
            best.append(min(found, key=size))
    return best


def decode_stream(stream: EncodedStream, slots: Sequence[Slot]) -> list[Array]:
    """The arrays that `stream` holds, one for each slot; their sizes obey the memory rule.

    Raises:
        ArtifactError: the stream does not hold arrays of these shapes.
    """
    arrays = SECTION_CODECS[stream.codec]().decode(stream.data, slots, stream.layout)
    assert [(a.shape, a.dtype) for a in arrays] == [(s.shape, s.dtype) for s in slots]
    return arrays
