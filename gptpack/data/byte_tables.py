"""Tokens that no SentencePiece model decodes -> bytes of text, and their audit against the text.

Three kinds. *A sidecar*: files beside the shards that hold, for each token, the bytes of the
original text that it stands for (parameter-golf's case-op tokenizers, whose pieces spell a changed
text). *A metadata table*: bytes, leading space and boundary per token id, as arrays in a ``.npz``
or ``.json`` (TokenMonster's Scylla vocabulary and others that come without a decoder here). *A
byte-level BPE*: a file of mergeable ranks (rank_files.py).

None of them can be believed on sight: a published table that charged spaces twice made 1.1289 bits
per byte look like 0.9485. So the first two are evaluated only together with the text that the
tokens were made from, document by document. Ranks decode, so their tokens can be checked against
the bytes they spell even without it.
"""

import hashlib
import io
import json
import operator
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.data.accounting import (
    AUDIT_TOKENS,
    SHOWN_CULPRITS,
    PieceBytes,
    TokenArray,
    TokenBytes,
    table_kind,
)
from gptpack.data.rank_files import RANKS, ranks_file
from gptpack.data.shards import Shard, Split, Tokens, find_shards, find_sidecars
from gptpack.errors import AccountingError, ShardError, TokenizerError
from gptpack.inputs import read_input
from gptpack.values import MAX_VOCAB, TokenizerIdentity

_NAMES = {
    "base": ("base_bytes",),
    "leading_space": ("has_leading_space", "leading_space"),
    "boundary": ("is_boundary_token", "boundary"),
}


@dataclass(frozen=True, slots=True, eq=False)
class SidecarBytes(TokenBytes):
    """Bytes of the tokens of one stream, each with a number of its own."""

    of_token: Tokens
    """Bytes of each token, ``[tokens of the stream]``."""

    def each(self, tokens: TokenArray, targets: TokenArray) -> npt.NDArray[np.int64]:
        try:
            return self.of_token[targets + 1].astype(np.int64)
        except IndexError as error:
            raise AccountingError(
                f"the byte sidecar has {len(self.of_token):,} entries, but token "
                f"{int(np.max(targets)) + 1:,} is scored; take the sidecar of these shards"
            ) from error


def load_sidecar(directory: str | Path, split: Split, limit: int = 0) -> SidecarBytes:
    """The byte sidecars of a split's shards (`shards.find_sidecars`); with `limit` so many entries.

    Raises:
        ShardError: one is malformed, or has not one entry for each token.
    """
    parts: list[Tokens] = []
    held = 0
    pairs = zip(find_shards(directory, split), find_sidecars(directory, split), strict=True)
    for shard, sidecar in pairs:
        tokens, entries = len(Shard.open(shard).tokens), Shard.open(sidecar).tokens
        if len(entries) != tokens:
            raise ShardError(
                f"{sidecar}: {len(entries):,} entries for the {tokens:,} tokens of {shard.name}"
            )
        parts.append(entries)
        held += tokens
        if limit and held >= limit:
            break
    of_token = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return SidecarBytes(of_token[:limit] if limit else of_token)


@dataclass(frozen=True, slots=True, eq=False)
class ByteVocabulary:
    """A vocabulary that is no SentencePiece model; `load_vocabulary` makes one."""

    path: Path
    sha256: str
    """SHA-256 of the file, in hex; of ranks as tiktoken's file has them, whatever theirs is."""
    vocab: int
    bos: int
    table: PieceBytes
    pieces: tuple[bytes, ...] | None
    """Bytes that each token spells, if known; ids beyond these spell nothing."""

    @property
    def identity(self) -> TokenizerIdentity:
        """The tokenizer's identity as checkpoints and packed files record it."""
        return TokenizerIdentity(sha256=self.sha256, vocab=self.vocab, bos=self.bos)


def load_vocabulary(path: str | Path, *, vocab: int, bos: int | None = None) -> ByteVocabulary:
    """Read mergeable ranks (tiktoken's), or a metadata table (numpy's npz, or JSON).

    Args:
        vocab: vocabulary of the model; ids that the file lacks are boundaries without bytes.
        bos: token that begins a document. None: the first id after the ranks, or the table's.

    Raises:
        TokenizerError: unreadable, malformed, or more tokens than `vocab`.
    """
    path = Path(path)
    try:
        content = read_input(path)
    except OSError as error:
        raise TokenizerError(f"{path}: cannot read: {error.strerror or error}") from error
    pieces, own = None, bos is None
    kind = table_kind(content)
    if not kind:
        raise TokenizerError(f"{path}: no kind of tokenizer; needed ranks or a table of bytes")
    if kind in RANKS:
        pieces = RANKS[kind](path, content)
        content = ranks_file(pieces)
        known = len(pieces)
        base = np.array([len(piece) for piece in pieces], np.int32)
        space, boundary = np.zeros(known, np.bool_), np.zeros(known, np.bool_)
        bos = known if bos is None else bos
    else:
        base, space, boundary, stated = _parse_table(path, kind, content)
        known = len(base)
        bos = stated if bos is None else bos
    if bos is None:
        raise TokenizerError(f"{path}: does not say which token begins a document (bos)")
    size = max(known, bos + 1)
    if size > min(vocab, MAX_VOCAB):
        raise TokenizerError(
            f"{path}: {size:,} tokens, but the model has a vocabulary of {vocab:,}; "
            "give the file of the model's tokenizer"
        )
    missing = vocab - known
    table = PieceBytes(
        np.pad(base, (0, missing)),
        np.pad(space, (0, missing)),
        np.pad(boundary, (0, missing), constant_values=True),
    )
    if table.base[bos] or not table.boundary[bos]:
        where = f"; {known} is the first id behind the ranks" if pieces is not None else ""
        raise TokenizerError(
            f"{path}: token {bos} begins documents, says the {'file' if own else 'model'}, but "
            f"stands for text{where}; where a checkpoint does not say its bos, --model does"
        )
    digest = hashlib.sha256(content).hexdigest()
    return ByteVocabulary(path, digest, size, bos, table, pieces)


NOT_A_TABLE = (
    *(OSError, ValueError, TypeError, OverflowError, MemoryError, RuntimeError),
    *(zlib.error, zipfile.BadZipFile),
)
"""What numpy, zipfile and json raise of files that are none; RuntimeError of encrypted ones, of
unknown compressions and of arrays nested too deeply."""


def _parse_table(path: Path, kind: str, content: bytes) -> tuple[Any, Any, Any, int | None]:
    """Base bytes, leading space and boundary ``[tokens]``, and BOS if the file says it."""
    try:
        if kind == "npz":
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                values: dict[str, Any] = {name: file[name] for name in file.files}
        else:
            values = json.loads(content)
        found = {
            field: np.asarray(next(values[name] for name in names if name in values))
            for field, names in _NAMES.items()
        }
        bos = operator.index(values["bos"]) if "bos" in values else None
    except StopIteration as error:
        wanted = ", ".join(names[0] for names in _NAMES.values())
        raise TokenizerError(f"{path}: a table of bytes needs the arrays {wanted}") from error
    except NOT_A_TABLE as error:
        raise TokenizerError(f"{path}: not a table of bytes: {error}") from error
    base, space, boundary = (found[field] for field in _NAMES)
    if base.ndim != 1 or not len(base) or not base.shape == space.shape == boundary.shape:
        shapes = " ".join(str(array.shape) for array in (base, space, boundary))
        raise TokenizerError(f"{path}: the arrays must be one-dimensional and alike, not {shapes}")
    if base.dtype.kind not in "iu" or base.min() < 0 or base.max() > 1 << 16:
        raise TokenizerError(f"{path}: base_bytes must be whole numbers of 0 to {1 << 16}")
    flags = np.stack((space, boundary))
    if flags.dtype.kind not in "biu" or not np.isin(flags, (0, 1)).all():
        raise TokenizerError(f"{path}: has_leading_space and is_boundary_token must be 0 or 1")
    return base.astype(np.int32), space.astype(np.bool_), boundary.astype(np.bool_), bos


def audit_documents(
    token_bytes: TokenBytes,
    tokens: TokenArray,
    bos: int,
    documents: Iterable[str],
    *,
    cut: bool = False,
    normalised: bool = False,
) -> int:
    """Check that each document's tokens are charged the UTF-8 bytes of its text.

    `tokens` is a stream of documents that begin with BOS, made from `documents` in order.

    Args:
        cut: `tokens` may end before the text does, and inside a document, whose tokens must then
            not be charged more bytes than its text has.
        normalised: a document may be charged fewer bytes than its text has, never more.

    Returns:
        Bytes of all targets of `tokens`.

    Raises:
        AccountingError: some document differs (names the first, with both figures), or there are
            not as many in the text as in the tokens.
    """
    starts = _starts(tokens, bos)
    each = np.zeros(len(tokens), np.int64)
    for part in _parts(len(tokens) - 1):
        each[part] = token_bytes.each(tokens, part)
    # Target t is token t + 1, so the bytes of the document's own tokens begin at target `start`.
    charged = np.add.reduceat(each, starts).tolist()
    texts = iter(documents)
    culprits: list[str] = []
    for number, found in enumerate(charged):
        text = next(texts, None)
        if text is None:
            raise AccountingError(
                f"the tokens hold {len(starts):,} documents, the text {number:,}; "
                "give the text that the tokens were made from"
            )
        wanted = len(text.encode())
        partial = normalised or (cut and number == len(charged) - 1)
        if found > wanted or (found < wanted and not partial):
            culprits.append(
                f"document {number + 1} ({text[:24]!r}): {found:,} bytes by its tokens, "
                f"{wanted:,} in the text"
            )
        if len(culprits) == SHOWN_CULPRITS:
            break
    if culprits:
        raise AccountingError(
            f"the bytes of the tokens are not those of the text: {'; '.join(culprits)}; "
            "give the text and the table or sidecar that belong to these tokens"
        )
    if not cut and next(texts, None) is not None:
        raise AccountingError(
            f"the tokens hold {len(starts):,} documents, the text has more; "
            "give the text that the tokens were made from"
        )
    return int(sum(charged))


def audit_pieces(vocabulary: ByteVocabulary, tokens: TokenArray) -> int:
    """Check that the tokens of each document spell text in UTF-8; the last may be cut short.

    Returns:
        Bytes of all targets of `tokens`.

    Raises:
        AccountingError: some document does not, or a token spells nothing and is not BOS.
    """
    pieces = vocabulary.pieces
    assert pieces is not None
    total = 0
    starts = _starts(tokens, vocabulary.bos)
    for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
        ids = tokens[start + 1 : stop].tolist()
        if ids and max(ids) >= len(pieces):
            raise AccountingError(
                f"token {max(ids)} of the document at {start:,} spells nothing; use the ranks "
                f"of these tokens ({vocabulary.path} has {len(pieces):,})"
            )
        text = b"".join(pieces[token] for token in ids)
        try:
            text.decode()
        except UnicodeDecodeError as error:
            ends_early = error.reason == "unexpected end of data" and stop == len(tokens)
            if not ends_early:
                raise AccountingError(
                    f"the tokens of the document at {start:,} are not UTF-8: {error.reason} at "
                    f"byte {error.start:,}; use the ranks of these tokens"
                ) from error
        total += len(text)
    return total


def _starts(tokens: TokenArray, bos: int) -> TokenArray:
    """Positions at which documents begin."""
    if not len(tokens) or tokens[0] != bos:
        found = f"begin with {tokens[0]}" if len(tokens) else "are none"
        raise AccountingError(f"the tokens {found}, not with BOS ({bos}); audit whole documents")
    return np.flatnonzero(tokens == bos)


def _parts(targets: int) -> Iterator[TokenArray]:
    for start in range(0, targets, AUDIT_TOKENS):
        yield np.arange(start, min(start + AUDIT_TOKENS, targets))
