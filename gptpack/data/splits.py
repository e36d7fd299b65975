"""A folder of shards -> the tokens of one split, held to the folder's manifest.

What reads shards reads them here, so no figure comes of files that ``manifest.json`` does not
state. Names and sizes of a whole split are checked; what is read is hashed on the way.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from gptpack.data.manifest import MANIFEST, Manifest, ShardEntry, load_manifest
from gptpack.data.shards import Shard, Split, Tokens, find_shards
from gptpack.errors import ShardError
from gptpack.progress import Progress, silent


def manifest_beside(directory: str | Path) -> Manifest | None:
    """The manifest of a folder; None if it has none.

    Raises:
        DataError: see `load_manifest`.
    """
    return load_manifest(directory) if (Path(directory) / MANIFEST).exists() else None


def open_split(
    directory: str | Path,
    split: Split,
    vocab: int,
    limit: int = 0,
    progress: Progress = silent,
) -> list[Shard]:
    """The split's shards in order, or those that hold its first `limit` tokens, read once.

    With a manifest the files, their counts and, of those that are read, their hashes must be those
    that it states. Without one no two may be the same.

    Raises:
        ShardError: no shards, a malformed one, an id that is not below `vocab`, names without an
            order, or others than the manifest states.
        DataError: a manifest that cannot be read.
    """
    directory = Path(directory)
    manifest = manifest_beside(directory)
    stated = None if manifest is None else {entry.file: entry for entry in manifest.split(split)}
    paths = find_shards(directory, split)
    if stated is not None:
        _check_files(paths, stated)
    counts = [len(Shard.open(path).tokens) for path in paths]
    for path, count in zip(paths, counts, strict=True):
        if stated is not None and count != stated[path.name].tokens:
            raise ShardError(
                f"{path}: {count:,} tokens, but {MANIFEST} states "
                f"{stated[path.name].tokens:,}; make the data again"
            )
    total = min(limit, sum(counts)) if limit else sum(counts)
    opened: list[Shard] = []
    held = 0
    for path, count in zip(paths, counts, strict=True):
        progress(f"read {split} (tokens)", held, total)
        shard = Shard.open(path, vocab)
        if stated is not None and shard.sha256 != stated[path.name].sha256:
            raise ShardError(
                f"{path}: sha256 {shard.sha256}, but {MANIFEST} states "
                f"{stated[path.name].sha256}; make the data again"
            )
        opened.append(shard)
        held += count
        if limit and held >= limit:
            break
    progress(f"read {split} (tokens)", total, total)
    if stated is None:
        _check_copies(opened)
    return opened


def _check_files(paths: list[Path], stated: dict[str, ShardEntry]) -> None:
    """Raise the `ShardError` of a split whose files are not those of its manifest."""
    folder, names = paths[0].parent, {path.name for path in paths}
    if missing := sorted(stated.keys() - names):
        raise ShardError(
            f"{folder / missing[0]}: no such file, but {MANIFEST} states it "
            f"({len(missing)} of {len(stated)} shards are missing); make the data again"
        )
    if extra := sorted(names - stated.keys()):
        raise ShardError(
            f"{folder / extra[0]}: {MANIFEST} does not state this shard ({len(extra)} such files); "
            "remove it, or make the data again"
        )


def _check_copies(shards: list[Shard]) -> None:
    twice = {sha256 for sha256, count in Counter(s.sha256 for s in shards).items() if count > 1}
    if twice:
        first, second = [shard.path for shard in shards if shard.sha256 in twice][:2]
        raise ShardError(
            f"{second}: the same bytes as {first.name} or another shard; remove the copy, which "
            "would count its text twice"
        )


def entries(shards: list[Shard]) -> tuple[ShardEntry, ...]:
    """What identifies the data that `open_split` gave: names, counts and hashes."""
    return tuple(
        ShardEntry(file=shard.path.name, tokens=len(shard.tokens), sha256=shard.sha256)
        for shard in shards
    )


def split_tokens(directory: str | Path, split: Split, vocab: int) -> list[Tokens]:
    """Mapped tokens of each shard that `open_split` gives; its errors are raised here as well."""
    return [shard.tokens for shard in open_split(directory, split, vocab)]


def load_tokens(directory: str | Path, split: Split, vocab: int, limit: int = 0) -> Tokens:
    """All tokens of a split, or its first `limit`; mapped, not copied, where one shard has them.

    Errors are those of `open_split`.
    """
    return joined(open_split(directory, split, vocab, limit), limit)


def joined(shards: list[Shard], limit: int = 0) -> Tokens:
    """The tokens of `shards` one after another, or the first `limit`."""
    parts = [shard.tokens for shard in shards]
    tokens = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return tokens[:limit] if limit else tokens
