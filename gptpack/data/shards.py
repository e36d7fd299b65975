"""Tokens <-> shards in llm.c's two formats: a 1,024-byte header, then tokens of 16 or 32 bits.

Header: 256 little-endian int32: magic, version, number of tokens n, zeros. Magic 20240520, version
1 (the contest's): n little-endian uint16 follow, the file has exactly ``1024 + 2 n`` bytes. Magic
20240801, version 7: n little-endian uint32 follow, ``1024 + 4 n`` bytes. What is written depends on
the vocabulary, which up to 65,536 takes 16 bits; what is read, on the header.
"""

import hashlib
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from gptpack.atomic import replacing
from gptpack.errors import DataError, ShardError
from gptpack.inputs import kind_of, opened

Split = Literal["train", "val"]

HEADER = struct.Struct("<iii1012x")
"""Magic number, version and number of tokens, and padding."""
MAX_TOKENS = 2**31 - 1
SCAN_TOKENS = 1 << 22

Tokens = npt.NDArray[np.unsignedinteger[Any]]
"""Token ids as shards hold them, uint16 or uint32."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """One of the two formats: what its header states, and how its tokens lie in the file."""

    magic: int
    version: int
    token: np.dtype[np.unsignedinteger[Any]]


NARROW = Layout(20240520, 1, np.dtype("<u2"))
WIDE = Layout(20240801, 7, np.dtype("<u4"))
LAYOUTS = {layout.magic: layout for layout in (NARROW, WIDE)}
NARROW_VOCAB = 1 << 16
"""Largest vocabulary whose shards are `NARROW`."""


def layout_for(vocab: int) -> Layout:
    """The layout in which shards of a vocabulary are written."""
    return NARROW if vocab <= NARROW_VOCAB else WIDE


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """One shard, memory-mapped; `open` makes one."""

    path: Path
    tokens: Tokens
    sha256: str = ""
    """Hash of the file, in hex, where all of it was read."""

    @classmethod
    def open(cls, path: str | Path, vocab: int | None = None) -> "Shard":
        """Map a shard; with `vocab`, also read it: every id must be below, and it gets its hash.

        A process reads a file once, however often it is opened.

        Raises:
            ShardError: unreadable, malformed or empty file, or an id that is not below `vocab`.
        """
        path = Path(path)
        layout, size = _checked_header(path)
        try:
            tokens: Tokens = np.memmap(path, layout.token, "r", offset=HEADER.size, shape=(size,))
        except OSError as error:
            raise ShardError(
                f"{path}: cannot map the shard: {error.strerror or error}; each takes an open "
                "file, of which `ulimit -n` allows more"
            ) from error
        if vocab is None:
            return cls(path, tokens)
        now = path.stat()
        read = _read(path.absolute(), (now.st_ino, now.st_size, now.st_mtime_ns))
        if read.largest >= vocab:
            raise ShardError(
                f"{path}: token {read.largest} at {read.at} is not below the vocabulary's "
                f"{vocab}; use the tokenizer that made these shards"
            )
        return cls(path, tokens, read.sha256)


@dataclass(frozen=True, slots=True)
class _Read:
    """What one pass over a shard tells."""

    sha256: str
    largest: int
    at: int
    """Position of the first token that is the largest."""


@lru_cache(maxsize=1 << 12)
def _read(path: Path, stamp: tuple[int, int, int]) -> _Read:
    """Hash a well-formed shard and look for its largest token; `stamp` changes with the file."""
    layout, size = _checked_header(path)
    hashed, largest, at = hashlib.sha256(), -1, 0
    with opened(path) as file:
        hashed.update(file.read(HEADER.size))
        for start in range(0, size, SCAN_TOKENS):
            part = np.fromfile(file, layout.token, min(SCAN_TOKENS, size - start))
            hashed.update(part.data)
            if (most := int(part.max())) > largest:
                largest, at = most, start + int(part.argmax())
    return _Read(hashed.hexdigest(), largest, at)


def _checked_header(path: Path) -> tuple[Layout, int]:
    """Layout and number of tokens of a shard whose header and size agree."""
    try:
        with opened(path) as file:
            header = file.read(HEADER.size)
            size = file.seek(0, 2)
    except OSError as error:
        raise ShardError(f"{path}: cannot read the shard: {error.strerror or error}") from error
    if len(header) < HEADER.size:
        raise ShardError(f"{path}: {size} bytes; a shard begins with a header of {HEADER.size}")
    magic, version, count = HEADER.unpack(header)
    layout = LAYOUTS.get(magic)
    if layout is None:
        known = " or ".join(map(str, LAYOUTS))
        raise ShardError(f"{path}: magic number {magic}, but token shards have {known}")
    if version != layout.version:
        raise ShardError(
            f"{path}: shard version {version}, but only {layout.version} is known of {magic}"
        )
    if count < 1:
        raise ShardError(f"{path}: the header states {count} tokens; a shard holds at least 1")
    expected = HEADER.size + layout.token.itemsize * count
    if size != expected:
        raise ShardError(
            f"{path}: {size} bytes, but {count} {layout.token.name} tokens need {expected}; "
            "write it again"
        )
    return layout, int(count)


def write_shard(
    path: str | Path, tokens: npt.NDArray[np.integer[Any]], *, vocab: int = NARROW_VOCAB
) -> None:
    """Write `tokens`, all below `vocab`, as one shard, which has its name when it is complete.

    Raises:
        ShardError: no tokens, too many for the header, or ids that are not ``0..vocab - 1``.
    """
    path, layout = Path(path), layout_for(vocab)
    if not 1 <= tokens.size <= MAX_TOKENS or tokens.ndim != 1:
        raise ShardError(f"{path}: shape {tokens.shape}; a shard holds 1 to {MAX_TOKENS} tokens")
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise ShardError(
            f"{path}: ids {tokens.min()} to {tokens.max()}; shards of this vocabulary hold ids "
            f"of 0 to {vocab - 1}"
        )
    with replacing(path, DataError) as file:
        file.write(HEADER.pack(layout.magic, layout.version, tokens.size))
        file.write(tokens.astype(layout.token, copy=False).tobytes())


class ShardWriter:
    """Writes a stream of tokens as shards ``{name}_{split}_{number}.bin`` of `shard_tokens` each.

    A context manager; the files are written in place, so `directory` should be a staging one.
    `vocab` chooses between 16 and 32 bits a token.
    """

    def __init__(
        self, directory: Path, name: str, split: Split, shard_tokens: int, vocab: int
    ) -> None:
        self.paths: list[Path] = []
        self._layout = layout_for(vocab)
        self._prefix = directory / f"{name}_{split}_"
        self._shard_tokens = shard_tokens
        self._file: BinaryIO | None = None
        self._held = 0

    def append(self, tokens: Tokens) -> None:
        """Write `tokens` behind those before."""
        while len(tokens):
            if self._file is None:
                path = self._prefix.with_name(f"{self._prefix.name}{len(self.paths):06d}.bin")
                self.paths.append(path)
                self._file = path.open("wb")
                self._file.write(bytes(HEADER.size))
            part = tokens[: self._shard_tokens - self._held]
            self._file.write(part.astype(self._layout.token, copy=False).tobytes())
            self._held += len(part)
            tokens = tokens[len(part) :]
            if self._held == self._shard_tokens:
                self._finish()

    def _finish(self) -> None:
        file, held = self._file, self._held
        self._file, self._held = None, 0
        if file is not None:
            with file:
                file.seek(0)
                file.write(HEADER.pack(self._layout.magic, self._layout.version, held))
                file.flush()
                os.fsync(file.fileno())

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()


def shard_paths(directory: Path, split: Split) -> list[Path]:
    """Files of a directory that are named as shards of the split are, sorted by name."""
    named = re.compile(rf"[^.].*?_{split}_.*\.bin")
    paths = directory.glob(f"*_{split}_*.bin")
    return sorted(p for p in paths if named.fullmatch(p.name) and "_bytes_" not in p.name)


def has_shards(directory: Path, split: Split) -> bool:
    """Whether files of a directory are named as shards of the split are."""
    return bool(shard_paths(directory, split))


def find_shards(directory: str | Path, split: Split) -> list[Path]:
    """The split's shards ``NAME_{split}_NUMBER.bin`` in order, without ``_bytes_`` sidecars.

    Raises:
        ShardError: there are none, they belong to datasets of different names, or their numbers
            are not 0 (or 1), and each one more than the last.
    """
    directory = Path(directory)
    paths = shard_paths(directory, split)
    if not paths:
        if not directory.exists():
            raise ShardError(f"{directory}: no such folder; give the folder that shards are in")
        what = kind_of(directory) or "a file"
        if directory.is_dir():
            what += f", no shards named *_{split}_*.bin in it"
        raise ShardError(
            f"{directory}: {what}; needed the folder of shards that 'gptpack data tokenize' makes "
            "of text"
        )
    names = sorted({path.name.partition(f"_{split}_")[0] for path in paths})
    if len(names) > 1:
        raise ShardError(
            f"{directory}: shards of {len(names)} datasets ({', '.join(names)}); "
            "keep each in a directory of its own"
        )
    if len(paths) > 1:
        _check_numbers(paths, split)
    return paths


def _check_numbers(paths: Sequence[Path], split: Split) -> None:
    """Raise the `ShardError` of several shards whose numbers leave their order open, or a gap."""
    numbers: list[int] = []
    for path in paths:
        digits = path.stem.partition(f"_{split}_")[2]
        if not re.fullmatch("[0-9]{1,18}", digits):
            raise ShardError(
                f"{path}: '{digits}' is no number, so the order of these {len(paths)} shards is "
                f"open; name them NAME_{split}_000000.bin and so on"
            )
        numbers.append(int(digits))
    for path, before, number in zip(paths[1:], numbers, numbers[1:], strict=False):
        if number <= before:
            raise ShardError(
                f"{path}: number {number} comes behind {before} by its name; give all numbers as "
                "many digits, and each once"
            )
    for path, wanted, number in zip(paths, count(min(numbers[0], 1)), numbers, strict=False):
        if number != wanted:
            raise ShardError(
                f"{path}: no shard {wanted} before it; the numbers of a split have no gaps, fetch "
                "or make what is missing"
            )


def find_sidecars(directory: str | Path, split: Split) -> list[Path]:
    """The byte sidecar of each of the split's shards; empty if none has one.

    ``NAME_val_000000.bin`` has ``NAME_val_bytes_000000.bin`` beside it, in the same format.

    Raises:
        ShardError: there are no shards, or only some of them have a sidecar.
    """
    beside = [
        shard.with_name(shard.name.replace(f"_{split}_", f"_{split}_bytes_", 1))
        for shard in find_shards(directory, split)
    ]
    missing = [path for path in beside if not path.exists()]
    if missing and len(missing) < len(beside):
        raise ShardError(f"{missing[0]}: no such file, but other shards here have byte sidecars")
    return [] if missing else beside
