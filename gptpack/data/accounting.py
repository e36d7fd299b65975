"""Tokens -> the bytes of text that each stands for, and the audit that this is true.

The contest's rule: a piece counts the UTF-8 bytes of its characters, a byte piece 1, a control or
unknown piece 0; a leading space counts 1 unless the token before is a boundary (control, unknown),
so that the space which SentencePiece puts before a text by default counts nothing. Where a piece
has spaces further in, which no tokenizer of the contest has, each counts 1 as well. The text is the
one that the tokenizer normalised.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.data.tokenizer import SPACE, Tokenizer
from gptpack.errors import AccountingError, TokenizerError
from gptpack.inputs import opened

TokenArray = npt.NDArray[np.integer[Any]]

AUDIT_TOKENS = 1 << 20
"""Tokens that the audit decodes at a time, which bounds its memory."""
SHOWN_CULPRITS = 3
"""Places that the error of a failed audit names."""
START_BYTES = 1 << 12
"""First bytes of a tokenizer's file that show its kind; a line of ranks is shorter."""
BYTE_TABLES = {
    "merges": re.compile(rb"#version: "),
    "script": re.compile(rb"(?:export default|module\.exports =) ?\{"),
    "ranks": re.compile(rb"[A-Za-z0-9+/]+={0,2}(?:[ \t].*)?[\r\n]"),
    "npz": re.compile(rb"PK\x03\x04"),
    "json": re.compile(rb"\{"),
}
"""Kind of tokenizer that is no SentencePiece model (byte_tables.py) -> how its files begin."""


def table_kind(start: bytes) -> str:
    """Which of `BYTE_TABLES` a file is that begins so; empty where it is none of them."""
    return next((kind for kind, begins in BYTE_TABLES.items() if begins.match(start)), "")


def tokenizer_kind(path: Path) -> str:
    """`table_kind` of a tokenizer's file; raises TokenizerError if it cannot be read."""
    try:
        with opened(path) as file:
            return table_kind(file.read(START_BYTES))
    except OSError as error:
        raise TokenizerError(f"{path}: cannot read: {error.strerror or error}") from error


class TokenBytes(ABC):
    """Says how many bytes of text the targets of a token stream stand for, whatever the tokenizer.

    Target t of a stream is its token t + 1. `PieceBytes` is for SentencePiece models; other kinds
    are in byte_tables.py.
    """

    @abstractmethod
    def each(self, tokens: TokenArray, targets: TokenArray) -> npt.NDArray[np.int64]:
        """Bytes of each of `targets`, which are positions in the stream `tokens`.

        Raises:
            AccountingError: nothing is known of a token.
        """

    def charged(self, tokens: TokenArray, start: int, stop: int) -> int:
        """Sum of the bytes of targets ``start .. stop - 1``."""
        return sum(
            int(self.each(tokens, np.arange(i, min(i + AUDIT_TOKENS, stop))).sum())
            for i in range(start, stop, AUDIT_TOKENS)
        )


@dataclass(frozen=True, slots=True, eq=False)
class PieceBytes(TokenBytes):
    """Bytes per token id as read-only arrays ``[vocab]``; `from_tokenizer` makes one."""

    base: npt.NDArray[np.int32]
    """Bytes of the piece without its leading space; another U+2581 in it is a space, of 1 byte."""
    leading_space: npt.NDArray[np.bool_]
    boundary: npt.NDArray[np.bool_]
    """True for a control, an unknown or unused piece, and an id that the tokenizer lacks."""

    @staticmethod
    def from_tokenizer(tokenizer: Tokenizer, vocab: int = 0) -> "PieceBytes":
        """The table of `tokenizer`, padded with boundaries to a model's larger `vocab`."""
        size = max(vocab, tokenizer.vocab)
        base = np.zeros(size, np.int32)
        leading_space = np.zeros(size, np.bool_)
        boundary = np.ones(size, np.bool_)
        processor = tokenizer.processor
        for token in range(tokenizer.vocab):
            if (
                processor.is_control(token)
                or processor.is_unknown(token)
                or processor.is_unused(token)
            ):
                continue
            boundary[token] = False
            if processor.is_byte(token):
                base[token] = 1
                continue
            piece = tokenizer.piece(token)
            leading_space[token] = piece.startswith(SPACE)
            base[token] = _text_bytes(piece.removeprefix(SPACE))
        for array in (base, leading_space, boundary):
            array.setflags(write=False)
        return PieceBytes(base, leading_space, boundary)

    def each(self, tokens: TokenArray, targets: TokenArray) -> npt.NDArray[np.int64]:
        return self.of(tokens[targets], tokens[targets + 1])

    def of(self, previous: TokenArray, target: TokenArray) -> npt.NDArray[np.int64]:
        """Bytes of each `target`, given the token before it; both of one shape.

        Raises:
            AccountingError: an id beyond the table.
        """
        try:
            spaces = self.leading_space[target] & ~self.boundary[previous]
            return self.base[target].astype(np.int64) + spaces
        except IndexError as error:
            found = max(int(np.max(previous)), int(np.max(target)))
            raise AccountingError(
                f"token {found} is not below {len(self.base)}; use the tokenizer of these tokens"
            ) from error


def unknown_tokens(tokenizer: Tokenizer, tokens: TokenArray) -> int:
    """Number of `tokens` that stand for text which the vocabulary cannot express.

    They count 0 bytes, so bits per byte leaves that text out; a model with byte fallback has none.
    """
    return sum(
        int(np.count_nonzero(tokens[i : i + AUDIT_TOKENS] == tokenizer.unknown))
        for i in range(0, len(tokens), AUDIT_TOKENS)
    )


def audit(token_bytes: PieceBytes, tokenizer: Tokenizer, tokens: TokenArray) -> int:
    """Check that the table gives each document exactly the bytes of its decoded text.

    `tokens` is a stream of documents that begin with BOS. An unknown token stands for text that
    the tokens do not hold: it ends one run of text, and the next is decoded on its own. A character
    that the end of the stream cuts counts the byte tokens it has.

    Returns:
        Bytes of all tokens; equals ``token_bytes.charged(tokens, 0, len(tokens) - 1)``.

    Raises:
        AccountingError: some document differs (names tokens, bytes by the table and by decoding),
            the stream does not begin with BOS, or it holds ids that the tokenizer lacks.
    """
    if not len(tokens):
        return 0
    if tokens[0] != tokenizer.bos:
        raise AccountingError(
            f"the tokens begin with {tokens[0]}, not with BOS ({tokenizer.bos}); "
            "audit whole documents"
        )
    total = 0
    start = 0
    culprits: list[str] = []
    differing = 0
    while start < len(tokens):
        stop = _document_end(tokens, start + AUDIT_TOKENS, tokenizer.bos)
        part = np.asarray(tokens[start:stop])
        if part.max() >= tokenizer.vocab:
            raise AccountingError(
                f"token {part.max()} at {start + int(part.argmax())} is not below the "
                f"{tokenizer.vocab} pieces of {tokenizer.path}; use the tokenizer of these tokens"
            )
        counted, runs = _differing_runs(token_bytes, tokenizer, part, last=stop == len(tokens))
        total += counted
        differing += len(runs)
        for run in runs[: SHOWN_CULPRITS - len(culprits)]:
            culprits.append(_culprit(token_bytes, tokenizer, run))
        start = stop
    if differing:
        raise AccountingError(
            f"{tokenizer.path}: the bytes of the tokens are not those of the text in {differing} "
            f"runs: {'; '.join(culprits)}; the contest's rule charges no space at the start of a "
            "document, and three bytes for one that the vocabulary has no piece for"
        )
    return total


def _document_end(tokens: TokenArray, at: int, bos: int) -> int:
    """Position of the first document's start at or after `at`, or of the stream's end."""
    while at < len(tokens):
        found = np.flatnonzero(tokens[at : at + AUDIT_TOKENS] == bos)
        if len(found):
            return at + int(found[0])
        at += AUDIT_TOKENS
    return len(tokens)


def _differing_runs(
    token_bytes: PieceBytes, tokenizer: Tokenizer, tokens: TokenArray, *, last: bool
) -> tuple[int, list[list[int]]]:
    """Bytes of `tokens` by the table, and the runs of text that decode to another number of bytes.

    A run lies between BOS or unknown tokens, which are its first token's context.
    """
    breaks = np.flatnonzero((tokens == tokenizer.bos) | (tokens == tokenizer.unknown))
    by_table = token_bytes.of(np.concatenate(([tokenizer.bos], tokens[:-1])), tokens)
    sums = np.concatenate(([0], np.cumsum(by_table)))
    listed = tokens.tolist()
    starts = [int(i) + 1 for i in breaks]
    stops = [int(i) for i in breaks[1:]] + [len(listed)]
    if last:
        stops[-1] -= _cut_character(tokenizer, listed[starts[-1] :])
    runs = [listed[a:b] for a, b in zip(starts, stops, strict=True)]
    by_text = [_text_bytes(text) for text in tokenizer.decode_batch(runs)]
    charged = (sums[stops] - sums[starts]).tolist()
    wrong = [run for run, a, b in zip(runs, charged, by_text, strict=True) if a != b]
    return int(sums[-1]), wrong


def _text_bytes(text: str) -> int:
    """UTF-8 bytes of decoded text, where SPACE is a space that was spelled as three byte tokens.

    A space is spelled so if the vocabulary has no piece for it; normalised text has no U+2581. In
    a piece it is a space too.
    """
    return len(text.encode()) - 2 * text.count(SPACE)


def _cut_character(tokenizer: Tokenizer, run: Sequence[int]) -> int:
    """Number (0 to 3) of byte tokens at the end of `run` that are the start of a cut character."""
    for count in range(1, min(3, len(run)) + 1):
        token = run[-count]
        if not tokenizer.processor.is_byte(token):
            return 0
        value = int(tokenizer.piece(token)[3:5], 16)
        if value >= 0xC0:
            needed = 2 if value < 0xE0 else 3 if value < 0xF0 else 4
            return count if count < needed else 0
        if value < 0x80:
            return 0
    return 0


def _culprit(token_bytes: PieceBytes, tokenizer: Tokenizer, run: list[int]) -> str:
    """The first place of `run` at which table and decoding disagree, in words.

    Halving keeps an agreeing prefix and a longer one that differs; prefixes end at whole
    characters, so neighbouring byte tokens stay together.
    """
    is_byte = [bool(tokenizer.processor.is_byte(token)) for token in run]
    ends = [i for i in range(1, len(run)) if not (is_byte[i - 1] and is_byte[i])] + [len(run)]
    before = np.array([tokenizer.bos, *run[:-1]])
    sums = np.cumsum(token_bytes.of(before, np.array(run)))

    def bytes_until(end: int) -> tuple[int, int]:
        return int(sums[end - 1]), _text_bytes(tokenizer.decode(run[:end]))

    agrees, differs = -1, len(ends) - 1
    while differs - agrees > 1:
        middle = (agrees + differs) // 2
        table, text = bytes_until(ends[middle])
        agrees, differs = (middle, differs) if table == text else (agrees, middle)
    start = ends[agrees] if agrees >= 0 else 0
    table, text = bytes_until(ends[differs])
    if start:
        table_start, text_start = bytes_until(start)
        table, text = table - table_start, text - text_start
    unit = run[start : ends[differs]]
    names = " ".join(f"{token} {tokenizer.piece(token)!r}" for token in unit[:4])
    more = f" and {len(unit) - 4} more" if len(unit) > 4 else ""
    return f"tokens {names}{more}: {table} bytes by the table, {text} by decoding"
