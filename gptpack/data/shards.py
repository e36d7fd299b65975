"""Tokens <-> shards in the contest's format: a 1,024-byte header, then 16-bit tokens.

Header: 256 little-endian int32: magic 20240520, version 1, number of tokens n, zeros. Then n
little-endian uint16; the file has exactly ``1024 + 2 n`` bytes.
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

MAGIC = 20240520
VERSION = 1
HEADER = struct.Struct("<iii1012x")
"""Magic number, version and number of tokens, and padding."""
TOKEN = np.dtype("<u2")
MAX_TOKENS = 2**31 - 1
SCAN_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """One shard, memory-mapped; `open` makes one."""

    path: Path
    tokens: npt.NDArray[np.uint16]

    @classmethod
    def open(cls, path: str | Path, vocab: int | None = None) -> "Shard":
        """Map a shard; with `vocab`, also read it to check that every id is below.

        Raises:
            ShardError: unreadable, malformed or empty file, or an id that is not below `vocab`.
        """
        path = Path(path)
        count = _checked_count(path)
        tokens = np.memmap(path, TOKEN, "r", offset=HEADER.size, shape=(count,))
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


def _checked_count(path: Path) -> int:
    try:
        with path.open("rb") as file:
            header = file.read(HEADER.size)
            size = file.seek(0, 2)
    except OSError as error:
        raise ShardError(f"{path}: cannot read the shard: {error.strerror or error}") from error
    if len(header) < HEADER.size:
        raise ShardError(f"{path}: {size} bytes; a shard begins with a header of {HEADER.size}")
    magic, version, count = HEADER.unpack(header)
    if magic != MAGIC:
        raise ShardError(f"{path}: magic number {magic}, but token shards have {MAGIC}")
    if version != VERSION:
        raise ShardError(f"{path}: shard version {version}, but only {VERSION} is known")
    if count < 1:
        raise ShardError(f"{path}: the header states {count} tokens; a shard holds at least 1")
    expected = HEADER.size + TOKEN.itemsize * count
    if size != expected:
        raise ShardError(
            f"{path}: {size} bytes, but {count} uint16 tokens need {expected}; write it again"
        )
    return int(count)


def write_shard(path: str | Path, tokens: npt.NDArray[np.integer[Any]]) -> None:
    """Write `tokens` as one shard, under the final name only when it is complete.

    Raises:
        ShardError: no tokens, too many for the header, or ids that are not 0..65535.
    """
    path = Path(path)
    if not 1 <= tokens.size <= MAX_TOKENS or tokens.ndim != 1:
        raise ShardError(f"{path}: shape {tokens.shape}; a shard holds 1 to {MAX_TOKENS} tokens")
    if tokens.min() < 0 or tokens.max() > 0xFFFF:
        raise ShardError(
            f"{path}: ids {tokens.min()} to {tokens.max()}; shards hold ids of 0 to 65535"
        )
    with replacing(path, DataError) as file:
        file.write(HEADER.pack(MAGIC, VERSION, tokens.size))
        file.write(tokens.astype(TOKEN, copy=False).tobytes())


class ShardWriter:
    """Writes a stream of tokens as shards ``{name}_{split}_{number}.bin`` of `shard_tokens` each.

    A context manager; the files are written in place, so `directory` should be a staging one.
    """

    def __init__(self, directory: Path, name: str, split: Split, shard_tokens: int) -> None:
        self.paths: list[Path] = []
        self._prefix = directory / f"{name}_{split}_"
        self._shard_tokens = shard_tokens
        self._file: BinaryIO | None = None
        self._held = 0

    def append(self, tokens: npt.NDArray[np.uint16]) -> None:
        """Write `tokens` behind those before."""
        while len(tokens):
            if self._file is None:
                path = self._prefix.with_name(f"{self._prefix.name}{len(self.paths):06d}.bin")
                self.paths.append(path)
                self._file = path.open("wb")
                self._file.write(bytes(HEADER.size))
            part = tokens[: self._shard_tokens - self._held]
            self._file.write(part.astype(TOKEN, copy=False).tobytes())
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
                file.write(HEADER.pack(MAGIC, VERSION, held))
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


def split_tokens(
    directory: str | Path, split: Split, vocab: int, limit: int = 0
) -> list[npt.NDArray[np.uint16]]:
    """Mapped tokens of each shard of a split, or of the shards that hold its first `limit`.

    Raises:
        ShardError: no shards, a malformed one, or an id that is not below `vocab`.
    """
    parts: list[npt.NDArray[np.uint16]] = []
    held = 0
    for path in find_shards(directory, split):
        parts.append(Shard.open(path, vocab).tokens)
        held += len(parts[-1])
        if limit and held >= limit:
            break
    return parts


def load_tokens(
    directory: str | Path, split: Split, vocab: int, limit: int = 0
) -> npt.NDArray[np.uint16]:
    """All tokens of a split, or its first `limit`; mapped, not read, where one shard has them.

    Raises:
        ShardError: see `split_tokens`.
    """
    parts = split_tokens(directory, split, vocab, limit)
    tokens = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return tokens[:limit] if limit else tokens
