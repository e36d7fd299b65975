"""Text files -> token shards: documents are encoded in parallel, audited, and written in order.

The output does not depend on the number of workers. All files are made in a hidden directory and
get their final names at the end, the manifest last.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gptpack.atomic import staged_directory
from gptpack.data.byte_pairs import PATTERN, BytePairs
from gptpack.data.documents import SEPARATOR, iterate_documents
from gptpack.data.encode import COUNTS, Document, Encoded, encoder
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
from gptpack.data.shards import MAX_TOKENS, Shard, ShardWriter, Split
from gptpack.data.tokenizer import Tokenizer
from gptpack.errors import ConfigError, DataError
from gptpack.inputs import file_sha256, opened
from gptpack.progress import Progress, silent
from gptpack.values import BELOW_ONE, NOT_NEGATIVE, check_fields

CHUNK_CHARACTERS = 1 << 19
"""Characters of text that a worker gets at once; at most two such chunks per worker are held."""
CHUNK_DOCUMENTS = 4096
SPLITS: tuple[Split, Split] = ("val", "train")
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
    tokenizer: Tokenizer | BytePairs,
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
        try:
            opened(path).close()
        except OSError as error:
            raise DataError(f"{path}: cannot read: {error.strerror}") from error
    if not config.force and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} exists and is not empty; choose another, or give --force")
    if splitting:
        sources["val"] = sources["train"]
    choose = _split_rule(sources["train"], config, progress)

    def read(split: Split) -> Iterator[Document]:
        return _documents(sources[split], split, config, progress)

    with staged_directory(output, last=MANIFEST, replaces=REPLACED) as stage:
        (stage / TOKENIZER).write_bytes(tokenizer.content())
        if file_sha256(stage / TOKENIZER) != tokenizer.sha256:
            raise DataError(f"{tokenizer.path}: the file has changed since it was loaded")
        val, train = (
            _Made(ShardWriter(stage, config.name, split, config.shard_tokens, tokenizer.vocab))
            for split in SPLITS
        )
        with encoder(tokenizer, config.workers) as encode, val.writer, train.writer:
            _write(
                val,
                train,
                (encode(_chunks(choose(split, read(split)))) for split in SPLITS),
                together=bool(config.val_fraction),
            )
        for split, made in zip(SPLITS, (val, train), strict=True):
            if sources[split] and not made.documents:
                names = ", ".join(map(str, sources[split]))
                raise DataError(f"{split}: no documents in {names}{_left(config, val, train)}")
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
                pattern=PATTERN if isinstance(tokenizer, BytePairs) else "",
            ),
            train=train.entry(sources["train"]),
            val=val.entry(sources["val"]),
            disjoint=True,
        )
        write_manifest(stage, manifest)
    return manifest


def _write(
    val: "_Made",
    train: "_Made",
    encoded: Iterable[Iterator[tuple[list[Document], Encoded]]],
    *,
    together: bool,
) -> None:
    """Write the splits' documents, val's first: its hashes are the smaller set to keep.

    A document of train that a model sees as one of val goes to val, if they are to be `together`.

    Raises:
        DataError: there are such documents, and they are not.
    """
    twins = _Twins()
    of_val, of_train = encoded
    for _, each in of_val:
        val.add(each)
        twins.seen.update(filter(None, each.digests))
    for documents, each in of_train:
        both = twins.among(documents, each)
        if together:
            val.add(each.take(both))
        train.add(each.take(~both))
    if not together:
        twins.check()


# Documents and splits.


def _documents(
    sources: Sequence[Path], split: str, config: TokenizeConfig, progress: Progress
) -> Iterator[Document]:
    total = sum(path.stat().st_size for path in sources)
    before = 0
    for path in sources:

        def position(done: int, before: int = before) -> None:
            progress(f"{split} (source bytes)", before + done, total)

        texts = iterate_documents(path, config.separator, position)
        for number, text in enumerate(texts, start=1):
            yield Document(text, path, number)
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
            if belongs_to_val(document.text, config.val_fraction) == (split == "val")
        )
    return lambda split, documents: documents


def belongs_to_val(text: str, fraction: float) -> bool:
    """Whether a document's hash falls into val; equal documents fall into one split."""
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _rule_in_words(config: TokenizeConfig) -> str:
    if config.val_documents:
        return f"the last {config.val_documents} documents are val"
    if config.val_fraction:
        return f"documents whose hash is below {config.val_fraction} are val"
    return "separate sources"


def _left(config: TokenizeConfig, val: "_Made", train: "_Made") -> str:
    """Why a split by fraction left one of the splits empty, and the way out."""
    if not config.val_fraction:
        return ""
    return (
        f": --val-fraction {config.val_fraction} picks whole documents, and there are "
        f"{val.documents + train.documents:,}; name what stands between documents with "
        "--separator, such as '\\n\\n', or give a file of its own with --val"
    )


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    held = 0
    for document in documents:
        chunk.append(document)
        held += len(document.text)
        if held >= CHUNK_CHARACTERS or len(chunk) >= CHUNK_DOCUMENTS:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


# Totals and files.


@dataclass(slots=True)
class _Twins:
    """Looks for documents of train whose tokens are those of one of val."""

    seen: set[bytes] = field(default_factory=set)
    """Hashes of val's documents; an empty document is not among them and may be in both splits."""
    count: int = 0
    example: str = ""

    def among(self, documents: list[Document], encoded: Encoded) -> npt.NDArray[np.bool_]:
        both = np.array([digest in self.seen for digest in encoded.digests], np.bool_)
        self.count += int(both.sum())
        if both.any() and not self.example:
            first = documents[int(both.argmax())]
            self.example = f"document {first.number} of {first.path} ({first.text[:60]!r})"
        return both

    def check(self) -> None:
        if self.count:
            raise DataError(
                f"{self.count} documents of train are also in val, as a model sees them: "
                f"{self.example}; remove them from one, or split one source with a val fraction"
            )


@dataclass(slots=True)
class _Made:
    """A split as it is written, and its totals."""

    writer: ShardWriter
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    documents: int = 0

    def add(self, encoded: Encoded) -> None:
        self.writer.append(encoded.tokens)
        self.documents += len(encoded.digests)
        for name in COUNTS:
            self.totals[name] += int(getattr(encoded, name).sum())

    def entry(self, sources: Sequence[Path]) -> SplitEntry:
        totals = dict(self.totals)
        return SplitEntry(
            sources=tuple(
                SourceEntry(
                    name=path.name, sha256=file_sha256(path), size_bytes=path.stat().st_size
                )
                for path in sources
            ),
            documents=self.documents,
            tokens=totals.pop("lengths"),
            **totals,
            shards=tuple(
                ShardEntry(
                    file=path.name,
                    tokens=len(Shard.open(path).tokens),
                    sha256=file_sha256(path),
                )
                for path in self.writer.paths
            ),
        )
