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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from gptpack.atomic import replacing
from gptpack.errors import DataError, ShardError

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

    @classmethod
    def open(cls, path: str | Path, vocab: int | None = None) -> "Shard":
        """Map a shard; with `vocab`, also read it to check that every id is below.

        Raises:
            ShardError: unreadable, malformed or empty file, or an id that is not below `vocab`.
        """
        path = Path(path)
        layout, count = _checked_header(path)
        tokens: Tokens = np.memmap(path, layout.token, "r", offset=HEADER.size, shape=(count,))
        if vocab is not None:
            for start in range(0, count, SCAN_TOKENS):
                part = tokens[start : start + SCAN_TOKENS]
                if part.max() >= vocab:
                    raise ShardError(
                        f"{path}: token {part.max()} at {start + int(part.argmax())} is not below "
                        f"the vocabulary's {vocab}; use the tokenizer that made these shards"
                    )
        return cls(path, tokens)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked_header(path: Path) -> tuple[Layout, int]:
    """Layout and number of tokens of a shard whose header and size agree."""
    try:
        with path.open("rb") as file:
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
        self, directory: Path, name: str, split: Split, shard_tokens: int, *, vocab: int
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


def has_shards(directory: Path, split: Split) -> bool:
    """Whether files of a directory are named as shards of the split are."""
    return any(directory.glob(f"*_{split}_*.bin"))


def find_shards(directory: str | Path, split: Split) -> list[Path]:
    """The split's shards ``*_{split}_*.bin`` in order, without ``_bytes_`` sidecars.

    Raises:
        ShardError: there are none, or they belong to datasets of different names.
    """
    directory = Path(directory)
    found: dict[Path, str] = {}
    for path in directory.glob(f"*_{split}_*.bin"):
        match = re.fullmatch(rf"([^.].*?)_{split}_.*\.bin", path.name)
        if match and "_bytes_" not in path.name:
            found[path] = match[1]
    if not found:
        raise ShardError(
            f"{directory}: no shards named *_{split}_*.bin; make some with 'gptpack data tokenize'"
        )
    names = sorted(set(found.values()))
    if len(names) > 1:
        raise ShardError(
            f"{directory}: shards of {len(names)} datasets ({', '.join(names)}); "
            "keep each in a directory of its own"
        )
    return sorted(found)


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


def split_tokens(directory: str | Path, split: Split, vocab: int, limit: int = 0) -> list[Tokens]:
    """Mapped tokens of each shard of a split, or of the shards that hold its first `limit`.

    Raises:
        ShardError: no shards, a malformed one, or an id that is not below `vocab`.
    """
    parts: list[Tokens] = []
    held = 0
    for path in find_shards(directory, split):
        parts.append(Shard.open(path, vocab).tokens)
        held += len(parts[-1])
        if limit and held >= limit:
            break
    return parts


def load_tokens(directory: str | Path, split: Split, vocab: int, limit: int = 0) -> Tokens:
    """All tokens of a split, or its first `limit`; mapped, not read, where one shard has them.

    Raises:
        ShardError: see `split_tokens`.
    """
    parts = split_tokens(directory, split, vocab, limit)
    tokens = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return tokens[:limit] if limit else tokens
