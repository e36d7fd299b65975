"""Shards and their sources <-> ``manifest.json``, which says what was made of what."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from gptpack.atomic import replacing
from gptpack.data.shards import Split
from gptpack.errors import ConfigError, DataError, TokenizerError
from gptpack.inputs import read_input
from gptpack.values import MAX_VOCAB, NOT_NEGATIVE, check_fields, from_dict, to_dict

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
FORMAT = 1


def _check_sha256(name: str, value: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise DataError(f"{name}: sha256 {value!r} is not 64 hexadecimal digits")


def _check_file_name(name: str) -> None:
    if not name or name.startswith(".") or re.search(r"[/\\\0]", name):
        raise DataError(f"{name!r} must be a plain file name")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceEntry:
    """A file of text that shards were made of."""

    name: str
    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        _check_sha256(self.name, self.sha256)
        check_fields(self, NOT_NEGATIVE, "size_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """A shard, whose file stands beside the manifest."""

    file: str
    tokens: int
    sha256: str

    def __post_init__(self) -> None:
        _check_file_name(self.file)
        _check_sha256(self.file, self.sha256)
        check_fields(self, NOT_NEGATIVE, "tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitEntry:
    """Totals of a split; all are 0 and empty for one that was not made."""

    sources: tuple[SourceEntry, ...] = ()
    documents: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    """Tokens that stand for text the vocabulary lacks; they count 0 bytes."""
    text_bytes: int = 0
    """UTF-8 bytes of the documents as they are."""
    normalized_bytes: int = 0
    """UTF-8 bytes of the documents as the tokenizer normalises them."""
    accounted_bytes: int = 0
    """Audited bytes that the tokens stand for, by which bits per byte divide; `normalized_bytes` if
    no token is unknown."""
    shards: tuple[ShardEntry, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, NOT_NEGATIVE, "documents tokens unknown_tokens")
        check_fields(self, NOT_NEGATIVE, "text_bytes normalized_bytes accounted_bytes")
        listed = sum(shard.tokens for shard in self.shards)
        if listed != self.tokens:
            raise DataError(f"the shards hold {listed} tokens, but the split states {self.tokens}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerEntry:
    """The tokenizer, of which a copy stands beside the manifest as `file`."""

    file: str
    name: str
    """Name of the original file."""
    vocab: int
    sha256: str
    pattern: str = ""
    """Expression that cut the text before ranks merged its bytes; empty for SentencePiece."""

    def __post_init__(self) -> None:
        _check_file_name(self.file)
        _check_sha256(self.file, self.sha256)
        if not 1 <= self.vocab <= MAX_VOCAB:
            raise DataError(f"{self.file}: vocab={self.vocab} must lie in 1..{MAX_VOCAB}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about one directory of shards."""

    format: int
    name: str
    split_rule: str
    """Rule by which documents went to train and val, in words."""
    separator: str
    tokenizer: TokenizerEntry
    train: SplitEntry
    val: SplitEntry
    disjoint: bool = False
    """Whether no document of train has the tokens of one of val; False if nobody has compared."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise DataError(f"manifest format {self.format}, but only {FORMAT} is known")

    def split(self, split: Split) -> tuple[ShardEntry, ...]:
        """The shards of a split."""
        return (self.train if split == "train" else self.val).shards

    def check_tokenizer(self, path: Path, sha256: str) -> None:
        """Raise a `TokenizerError` if a tokenizer is not the one that made the shards."""
        if sha256 != self.tokenizer.sha256:
            raise TokenizerError(
                f"{path}: sha256 {sha256}, but {MANIFEST} states that {self.tokenizer.sha256} "
                f"({self.tokenizer.name}) made the shards; give that one"
            )


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into `directory`."""
    with replacing(directory / MANIFEST, DataError) as file:
        file.write(json.dumps(to_dict(manifest), indent=2).encode() + b"\n")


def load_manifest(directory: str | Path) -> Manifest:
    """Read ``manifest.json`` of `directory`; types, names and sums are checked, no shard is read.

    Raises:
        DataError: missing, not JSON, or not what a manifest holds.
    """
    path = Path(directory) / MANIFEST
    try:
        values = json.loads(read_input(path))
        json.dumps(values, ensure_ascii=False).encode()  # a lone surrogate is in no name or text
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the manifest: {error.strerror or error}; "
            "'gptpack data tokenize' writes one"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON manifest: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: the manifest must be a JSON object")
    try:
        return from_dict(Manifest, values)
    except (ConfigError, DataError) as error:
        raise DataError(f"{path}: {error}") from error
    except TypeError as error:
        # a dataclass raises it for a missing argument
        raise DataError(f"{path}: incomplete manifest: {error}") from error
