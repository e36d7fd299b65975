"""Shards of val and of train -> the documents of val that are in train, by what a model sees.

Two texts that a tokenizer makes the same tokens of are one document here. A document is a BOS and
what follows until the next; one without anything behind its BOS is none.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.data.shards import Shard, Tokens, shard_paths
from gptpack.data.splits import manifest_beside
from gptpack.errors import DataError

MOST_SHARED = 0.01
"""Share of val's tokens, at most, in documents that train has as well, where no manifest promises
that there are none: published corpora hold pages that were fetched twice."""
COMPARED_TOKENS = 1 << 28
"""Tokens of train that are compared before an evaluation: 0.3 s (docs/decisions/data.md)."""
BLOCK_TOKENS = 1 << 23
PREFIX_TOKENS = 8
"""First tokens by which documents of train are told to need a closer look."""

NO_DOCUMENT = np.uint64(0)
"""Key of a lone BOS; another document that has it by chance, 1 in 2^64, is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """The documents of val that train has as well."""

    documents: int
    tokens: int
    """Tokens of these documents."""
    val_documents: int
    val_tokens: int
    compared_tokens: int
    """Tokens of train that were compared."""
    train_tokens: int

    def check(self, directory: Path) -> None:
        """Raise a `DataError` if they hold more than `MOST_SHARED` of val's tokens."""
        if self.tokens > MOST_SHARED * self.val_tokens:
            raise DataError(
                f"{directory}: {self.documents:,} of {self.val_documents:,} documents of val, "
                f"{self.tokens / self.val_tokens:.1%} of its tokens, are in train as well; take "
                "them out of one, or split one text with 'gptpack data tokenize --val-fraction'"
            )


def digest(document: Tokens) -> bytes:
    """A 128-bit hash of a document's tokens, in 16 or 32 bits alike."""
    return hashlib.blake2b(document.astype("<u4").tobytes(), digest_size=16).digest()


def overlap_beside(
    directory: str | Path, val: Sequence[Shard], bos: int, limit: int = 0
) -> Overlap | None:
    """The overlap of opened val shards with the train shards of their folder.

    None if there are no train shards, or the manifest says that the splits were made disjoint.

    Args:
        limit: compare no more than so many train tokens; 0 compares all.

    Raises:
        DataError: a manifest or a train shard that cannot be read.
    """
    manifest = manifest_beside(directory)
    if manifest is not None and manifest.disjoint:
        return None
    train = [Shard.open(path).tokens for path in shard_paths(Path(directory), "train")]
    return overlap([shard.tokens for shard in val], train, bos, limit) if train else None


def overlap(val: Sequence[Tokens], train: Sequence[Tokens], bos: int, limit: int = 0) -> Overlap:
    """Compare the documents of two splits, each a stream of shards; see `overlap_beside`."""
    blocks = [(block, bounds, _keys(block, bounds)) for block, bounds in _documents(val, bos)]
    prefixes = np.unique(np.concatenate([np.empty(0, np.uint64), *(keys for *_, keys in blocks)]))
    there: set[bytes] = set()
    near = [np.empty(0, np.uint64)]
    for block, bounds in _documents(_first(train, limit), bos):
        keys = _keys(block, bounds)
        close = np.flatnonzero(_among(keys, prefixes) & (keys != NO_DOCUMENT))
        near.append(keys[close])
        there.update(digest(block[bounds[i] : bounds[i + 1]]) for i in close.tolist())
    documents = tokens = 0
    looked_at = np.unique(np.concatenate(near))
    for block, bounds, keys in blocks:
        for i in np.flatnonzero(_among(keys, looked_at)).tolist():
            document = block[bounds[i] : bounds[i + 1]]
            if digest(document) in there:
                documents += 1
                tokens += len(document)
    total = sum(map(len, train))
    return Overlap(
        documents=documents,
        tokens=tokens,
        val_documents=sum(int((keys != NO_DOCUMENT).sum()) for *_, keys in blocks),
        val_tokens=sum(map(len, val)),
        compared_tokens=min(limit, total) if limit else total,
        train_tokens=total,
    )


def _first(parts: Sequence[Tokens], limit: int) -> Iterator[Tokens]:
    """The parts of a stream, or those of its first `limit` tokens."""
    left = limit or sum(map(len, parts))
    for part in parts:
        yield part[:left]
        left -= len(part[:left])


def _documents(
    parts: Sequence[Tokens] | Iterator[Tokens], bos: int
) -> Iterator[tuple[Tokens, npt.NDArray[np.int64]]]:
    """Blocks of whole documents, and in each the positions at which they begin and it ends.

    Tokens before the first BOS are left out. A document may go over the ends of shards.
    """
    held: list[Tokens] = []
    for part in parts:
        for at in range(0, len(part), BLOCK_TOKENS):
            block = np.asarray(part[at : at + BLOCK_TOKENS])
            starts = np.flatnonzero(block == bos)
            if held:
                held.append(block[: starts[0]] if len(starts) else block)
            if not len(starts):
                continue
            if held:
                whole = np.concatenate(held)
                yield whole, np.array([0, len(whole)])
            yield block, starts
            held = [block[starts[-1] :]]
    if held:
        whole = np.concatenate(held)
        yield whole, np.array([0, len(whole)])


def _keys(block: Tokens, bounds: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """A number for each document, of its length and first tokens; equal documents have one."""
    starts, stops = bounds[:-1], bounds[1:]
    keys = (stops - starts).astype(np.uint64)
    for offset in range(1, PREFIX_TOKENS + 1):
        keys = keys * np.uint64(1_000_003) + block[np.minimum(starts + offset, stops - 1)]
    keys[stops - starts == 1] = NO_DOCUMENT
    return keys


def _among(keys: npt.NDArray[Any], known: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which `keys` are among `known`, which are sorted: np.isin would sort them for each block."""
    if not len(known):
        return np.zeros(len(keys), np.bool_)
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    found: npt.NDArray[np.bool_] = known[at] == keys
    return found
