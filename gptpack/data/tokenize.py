"""Text files -> token shards: documents are encoded in parallel, audited, and written in order.

The output does not depend on the number of workers. All files are made in a hidden directory and
get their final names at the end, the manifest last.
"""

import hashlib
import itertools
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptpack.atomic import staged_directory
from gptpack.data.documents import SEPARATOR, document_kind, iterate_documents
from gptpack.data.encode import Document, Encoded, encoder
from gptpack.data.manifest import (
    FORMAT,
    MANIFEST,
    TOKENIZER,
    Manifest,
    ShardEntry,
    SourceEntry,
    SplitEntry,
    TokenizerEntry,
    write_manifest,
)
from gptpack.data.shards import MAX_TOKENS, Shard, ShardWriter, Split, file_sha256
from gptpack.data.tokenizer import Tokenizer
from gptpack.errors import ConfigError, DataError
from gptpack.progress import Progress, silent
from gptpack.values import BELOW_ONE, NOT_NEGATIVE, check_fields

CHUNK_CHARACTERS = 1 << 19
"""Characters of text that a worker gets at once; at most two such chunks per worker are held."""
CHUNK_DOCUMENTS = 4096
REPLACED = ("*_train_*.bin", "*_val_*.bin")
"""Files of an existing directory that make room for new shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeConfig:
    """Settings by which documents become shards."""

    name: str = "data"
    """First part of the shards' names, ``{name}_{split}_{number}.bin``."""
    shard_tokens: int = 100_000_000
    separator: str = SEPARATOR
    """Separator between the documents of a ``.txt`` source."""
    val_documents: int = 0
    """Documents at the end of the train sources that become val; goes without sources for val."""
    val_fraction: float = 0.0
    """Share of the documents, about, that becomes val by hash; goes without sources for val."""
    workers: int = 0
    """Processes that encode; 0 takes one per usable core."""
    force: bool = False
    """Replaces the shards and the manifest of an existing output directory."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) or re.search(
            r"_(train|val|bytes)_", self.name
        ):
            raise ConfigError(
                f"name '{self.name}': use letters, digits, '.', '-' and '_', "
                "without '_train_', '_val_' or '_bytes_'"
            )
        if not 1 <= self.shard_tokens <= MAX_TOKENS:
            raise ConfigError(f"shard_tokens={self.shard_tokens} must lie in 1..{MAX_TOKENS}")
        check_fields(self, NOT_NEGATIVE, "val_documents workers")
        check_fields(self, BELOW_ONE, "val_fraction")
        if self.val_documents and self.val_fraction:
            raise ConfigError("val_documents and val_fraction exclude each other; give one")


def tokenize_files(
    train_sources: Sequence[str | Path],
    val_sources: Sequence[str | Path],
    tokenizer: Tokenizer,
    output_dir: str | Path,
    config: TokenizeConfig | None = None,
    progress: Progress = silent,
) -> Manifest:
    """Write shards, the tokenizer and ``manifest.json`` to `output_dir`.

    Each document is BOS and its tokens. Either split may have no sources, not both.

    Raises:
        DataError: unreadable sources, a document that is in both splits, a split without
            documents, or an output directory that is not empty.
        AccountingError: the tokens of some document do not stand for its normalised text.
    """
    config = config or TokenizeConfig()
    output = Path(output_dir)
    sources: dict[Split, list[Path]] = {
        "train": [Path(path) for path in train_sources],
        "val": [Path(path) for path in val_sources],
    }
    splitting = bool(config.val_documents or config.val_fraction)
    if splitting and (sources["val"] or not sources["train"]):
        raise DataError("val_documents and val_fraction split train sources; give no val sources")
    if not sources["train"] and not sources["val"]:
        raise DataError("no sources; name at least one .txt or .jsonl file")
    for path in [*sources["train"], *sources["val"]]:
        document_kind(path)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
    if not config.force and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} exists and is not empty; choose another, or replace it by force")
    if splitting:
        sources["val"] = sources["train"]
    choose = _split_rule(sources["train"], config, progress)

    seen: set[bytes] = set()
    entries: dict[Split, SplitEntry] = {}
    with staged_directory(output, last=MANIFEST, replaces=REPLACED) as stage:
        shutil.copyfile(tokenizer.path, stage / TOKENIZER)
        if file_sha256(stage / TOKENIZER) != tokenizer.sha256:
            raise DataError(f"{tokenizer.path}: the file has changed since it was loaded")
        with encoder(tokenizer, config.workers) as encode:
            # val first: its hashes are the smaller set to keep.
            for split in ("val", "train"):
                documents = choose(split, _documents(sources[split], split, config, progress))
                totals = _Totals(seen=seen)
                with ShardWriter(
                    stage, config.name, split, config.shard_tokens, vocab=tokenizer.vocab
                ) as writer:
                    for texts, encoded in encode(_chunks(documents)):
                        totals.add(texts, encoded, keep=split == "val")
                        writer.append(encoded.tokens)
                totals.check(split, sources[split])
                entries[split] = totals.entry(sources[split], writer.paths)
        manifest = Manifest(
            format=FORMAT,
            name=config.name,
            split_rule=_rule_in_words(config),
            separator=config.separator,
            tokenizer=TokenizerEntry(
                file=TOKENIZER,
                name=tokenizer.path.name,
                vocab=tokenizer.vocab,
                sha256=tokenizer.sha256,
            ),
            train=entries["train"],
            val=entries["val"],
        )
        write_manifest(stage, manifest)
    return manifest


# Documents and splits.


def _documents(
    sources: Sequence[Path], split: str, config: TokenizeConfig, progress: Progress
) -> Iterator[Document]:
    total = sum(path.stat().st_size for path in sources)
    before = 0
    for path in sources:

        def position(done: int, before: int = before) -> None:
            progress(f"{split} (source bytes)", before + done, total)

        for text in iterate_documents(path, config.separator, position):
            yield text, hashlib.blake2b(text.encode(), digest_size=16).digest()
        before += path.stat().st_size


Choose = Callable[[Split, Iterator[Document]], Iterator[Document]]


def _split_rule(sources: Sequence[Path], config: TokenizeConfig, progress: Progress) -> Choose:
    """A function that picks a split's documents out of those of its sources."""
    if config.val_documents:
        count = sum(1 for _ in _documents(sources, "count documents", config, progress))
        cut = count - config.val_documents
        if cut < 1:
            raise DataError(
                f"val_documents={config.val_documents}, but the sources hold {count} documents; "
                "leave at least one for train"
            )
        return lambda split, documents: (
            itertools.islice(documents, cut)
            if split == "train"
            else itertools.islice(documents, cut, None)
        )
    if config.val_fraction:
        return lambda split, documents: (
            document
            for document in documents
            if belongs_to_val(document[1], config.val_fraction) == (split == "val")
        )
    return lambda split, documents: documents


def belongs_to_val(digest: bytes, fraction: float) -> bool:
    """Whether a document's hash falls into val; equal documents fall into one split."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _rule_in_words(config: TokenizeConfig) -> str:
    if config.val_documents:
        return f"the last {config.val_documents} documents are val"
    if config.val_fraction:
        return f"documents whose hash is below {config.val_fraction} are val"
    return "separate sources"


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    held = 0
    for document in documents:
        chunk.append(document)
        held += len(document[0])
        if held >= CHUNK_CHARACTERS or len(chunk) >= CHUNK_DOCUMENTS:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


# Totals and files.


@dataclass(slots=True)
class _Totals:
    seen: set[bytes]
    """Hashes of val's documents; an empty document is not among them and may be in both splits."""
    documents: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    text_bytes: int = 0
    normalized_bytes: int = 0
    accounted_bytes: int = 0
    overlap: int = 0
    example: str = ""

    def add(self, documents: list[Document], encoded: Encoded, *, keep: bool) -> None:
        self.documents += len(documents)
        self.tokens += len(encoded.tokens)
        self.unknown_tokens += encoded.unknown_tokens
        self.text_bytes += encoded.text_bytes
        self.normalized_bytes += encoded.normalized_bytes
        self.accounted_bytes += encoded.accounted_bytes
        for text, digest in documents:
            if keep and text:
                self.seen.add(digest)
            elif digest in self.seen:
                self.overlap += 1
                self.example = self.example or text[:60]

    def check(self, split: str, sources: Sequence[Path]) -> None:
        if self.overlap:
            raise DataError(
                f"{self.overlap} documents of train are also in val, such as {self.example!r}; "
                "remove them from one, or split one source with a val fraction"
            )
        if sources and not self.documents:
            raise DataError(f"{split}: no documents in {', '.join(map(str, sources))}")

    def entry(self, sources: Sequence[Path], shards: Sequence[Path]) -> SplitEntry:
        return SplitEntry(
            sources=tuple(
                SourceEntry(
                    name=path.name, sha256=file_sha256(path), size_bytes=path.stat().st_size
                )
                for path in sources
            ),
            documents=self.documents,
            tokens=self.tokens,
            unknown_tokens=self.unknown_tokens,
            text_bytes=self.text_bytes,
            normalized_bytes=self.normalized_bytes,
            accounted_bytes=self.accounted_bytes,
            shards=tuple(
                ShardEntry(
                    file=path.name,
                    tokens=len(Shard.open(path).tokens),
                    sha256=file_sha256(path),
                )
                for path in shards
            ),
        )
