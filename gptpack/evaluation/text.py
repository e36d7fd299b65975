"""A folder of shards -> the text that is scored: tokens, their bytes, and the audit of both."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gptpack.data.accounting import (
    PieceBytes,
    TokenBytes,
    audit,
    tokenizer_kind,
    unknown_tokens,
)
from gptpack.data.manifest import TOKENIZER
from gptpack.data.overlap import COMPARED_TOKENS, overlap_beside
from gptpack.data.shards import Shard, Tokens, find_sidecars
from gptpack.data.splits import joined, manifest_beside, open_split
from gptpack.data.tokenizer import Tokenizer, check_tokenizer
from gptpack.errors import (
    AccountingError,
    ConfigError,
    MissingDependencyError,
    TokenizerError,
)

if TYPE_CHECKING:
    from gptpack.data.byte_tables import ByteVocabulary

Accounting = Literal["pieces", "sidecar", "table", "ranks"]
MOST_LONGER = 1e-4
"""By how much of a text its tokens may be charged more: the contest's tokenizers spell a few
characters as longer ones, and a score in bits per byte becomes as much too good."""


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """Validation tokens and how many bytes they stand for; `load` makes one."""

    tokens: Tokens
    vocabulary: "Tokenizer | ByteVocabulary"
    token_bytes: TokenBytes
    accounting: Accounting
    """Source of the bytes: ``pieces`` of a SentencePiece model, a byte ``sidecar``, a metadata
    ``table``, or the ``ranks`` of a byte-level BPE."""
    shards: tuple[Shard, ...]
    """Shards that hold `tokens`, and more if `cut`."""
    source: Path | None = None
    """The text that the tokens were made from, where it was given."""
    cut: bool = False
    """Whether `tokens` are only the first ones of the shards."""
    stated: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the whole split by its manifest: of the text as written (``text_bytes``), as the
    tokenizer normalises it, and as its tokens are charged (``token_bytes``)."""

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        vocab: int,
        tokenizer: Path | None = None,
        sha256: str | None = None,
        bos: int | None = None,
        source: Path | None = None,
        limit_tokens: int = 0,
    ) -> "Text":
        """The validation shards of `directory`.

        Args:
            vocab: that of the model, which is at least the tokenizer's.
            tokenizer: its file: a SentencePiece model, ranks, or a ``.npz`` or
                ``.json`` table of bytes. None is ``tokenizer.model`` beside the shards.
            sha256: hash that the tokenizer's file must have; None takes any.
            bos: token that begins a document, where the tokenizer's file does not say it.
            source: the text that the tokens were made from (``.txt``, ``.jsonl``, compressed or
                not). Byte sidecars and tables need it for their audit; a document of pieces must
                not be charged more bytes than it has there.
            limit_tokens: read no more than the first so many targets need; 0 reads all.

        Raises:
            TokenizerError: there is no tokenizer, or it is not the model's.
            ShardError: there are no shards, they are malformed, others than their manifest states,
                or ids are not below `vocab`.
            DataError: documents of val are in the train shards beside it.
            AccountingError: tokens are charged more bytes than the text has, says the manifest.
            ConfigError: bytes cannot be audited without `source`.
        """
        sidecar = bool(find_sidecars(directory, "val"))
        path = tokenizer or directory / TOKENIZER
        if tokenizer is None and not path.exists():
            raise TokenizerError(
                f"{path}: no tokenizer beside the shards; name its file with --tokenizer"
            )
        limit = limit_tokens + 1 if limit_tokens else 0
        loaded: Any = read_vocabulary(path, vocab=vocab, bos=bos)
        token_bytes: TokenBytes
        accounting: Accounting = "pieces"
        if isinstance(loaded, Tokenizer):
            token_bytes = PieceBytes.from_tokenizer(loaded, vocab)
        else:
            accounting = "table" if loaded.pieces is None else "ranks"
            token_bytes = loaded.table
        if sidecar:
            accounting = "sidecar"
            token_bytes = _byte_tables().load_sidecar(directory, "val", limit)
        check_tokenizer(path, loaded, sha256=sha256, vocab=vocab)
        if accounting in ("sidecar", "table") and source is None:
            what = "the byte sidecars beside the shards" if sidecar else str(path)
            raise ConfigError(
                f"{what} can only be audited against the text that the tokens were made from; "
                "give it with --text"
            )
        stated: dict[str, int] = {}
        manifest = manifest_beside(directory)
        if manifest is not None and accounting in ("pieces", "ranks"):
            manifest.check_tokenizer(path, loaded.sha256)
            stated = {"text_bytes": manifest.val.text_bytes}
            stated |= {"normalized_bytes": manifest.val.normalized_bytes}
            stated |= {"token_bytes": manifest.val.accounted_bytes}
            if stated["token_bytes"] > stated["text_bytes"] * (1 + MOST_LONGER):
                raise AccountingError(
                    f"{directory}: the tokens of val are charged {stated['token_bytes']:,} bytes "
                    f"for a text of {stated['text_bytes']:,}: {path} normalises it to a longer "
                    "form; use a tokenizer that does not (--normalization identity)"
                )
        shards = open_split(directory, "val", vocab, limit)
        shared = overlap_beside(directory, shards, loaded.bos, COMPARED_TOKENS)
        if shared is not None:
            shared.check(directory)
        tokens = joined(shards, limit)
        return cls(
            tokens=tokens,
            vocabulary=loaded,
            token_bytes=token_bytes,
            accounting=accounting,
            shards=tuple(shards),
            source=source,
            cut=len(tokens) == limit,
            stated=stated,
        )

    @property
    def documents(self) -> npt.NDArray[np.int64]:
        """Positions at which documents begin.

        Raises:
            AccountingError: the tokens do not begin with one.
        """
        starts = np.flatnonzero(self.tokens == self.vocabulary.bos)
        if not len(starts) or starts[0] != 0:
            raise AccountingError(
                f"the tokens do not begin with BOS ({self.vocabulary.bos}); documents cannot be "
                "told apart"
            )
        return starts.astype(np.int64)

    def unknown_tokens(self, targets: int) -> int:
        """How many of the first `targets` targets stand for text that the vocabulary lacks."""
        if self.accounting != "pieces":
            return 0
        assert isinstance(self.vocabulary, Tokenizer)
        return unknown_tokens(self.vocabulary, self.tokens[1 : targets + 1])

    def audited_bytes(self, targets: Iterable[int]) -> dict[int, int]:
        """Bytes of the first n targets for each n of `targets`; the largest n is audited.

        Those of the others follow, without the bytes of the targets after theirs.

        Raises:
            AccountingError: the tokens' bytes are not those of the text they stand for.
        """
        counts = sorted(targets)
        longest = counts[-1]
        found = self._audit(longest)
        return {
            count: found - self.token_bytes.charged(self.tokens, count, longest) for count in counts
        }

    def _audit(self, targets: int) -> int:
        tokens = self.tokens[: targets + 1]
        if self.source is not None:
            # loads a compressor, which may be missing where a submission runs
            from gptpack.data.documents import iterate_documents

            found: int = _byte_tables().audit_documents(
                self.token_bytes,
                tokens,
                self.vocabulary.bos,
                iterate_documents(self.source),
                cut=self.cut or len(tokens) < len(self.tokens),
                normalised=self.accounting == "pieces",
            )
            if self.accounting != "pieces":
                return found
        if self.accounting == "ranks":
            return _byte_tables().audit_pieces(self.vocabulary, tokens)
        assert isinstance(self.token_bytes, PieceBytes)
        assert isinstance(self.vocabulary, Tokenizer)
        return audit(self.token_bytes, self.vocabulary, tokens)


def read_vocabulary(
    path: Path, *, vocab: int, bos: int | None = None
) -> "Tokenizer | ByteVocabulary":
    """The tokenizer in a file, of whatever kind its content is.

    Args:
        vocab: that of the model, which is at least the tokenizer's.
        bos: token that begins a document, where the file does not say it.

    Raises:
        TokenizerError: unreadable, malformed, or more tokens than `vocab`.
        MissingDependencyError: no SentencePiece model, and this runs in a submission's script.
    """
    if not tokenizer_kind(path):
        return Tokenizer.load(path)
    found: ByteVocabulary = _byte_tables().load_vocabulary(path, vocab=vocab, bos=bos)
    return found


def _byte_tables() -> Any:
    """The module for other tokenizers, which a submission's script does not contain.

    Raises:
        MissingDependencyError: this runs in such a script.
    """
    try:
        from gptpack.data import byte_tables
    except ImportError as error:
        raise MissingDependencyError(
            "this file evaluates tokens of SentencePiece models only; use gptpack eval"
        ) from error
    return byte_tables
