"""Text files and a model's own tokenizer -> tokens, and the bytes of text that each stands for.

Documents are joined by a blank line into one text, which is tokenized as a whole. Each byte of it
is charged to one token; special tokens stand for none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gptpack.data.accounting import TokenBytes
from gptpack.data.documents import iterate_documents
from gptpack.errors import AccountingError, DataError
from gptpack.inputs import opened

BETWEEN = "\n\n"
"""Text between two documents."""

PIECE = 1 << 14
"""Most characters of a piece of a document."""
AT_ONCE = 64
"""Pieces that are tokenized at once, side by side."""
MOST_CHARACTERS = 1 << 28
"""Most characters that are read of files to calibrate on, the first ones."""

Integers = npt.NDArray[np.int64]


class SpellingTokenizer(Protocol):
    """A tokenizer that knows the bytes of its tokens."""

    begins_with: int | None

    def encode(self, texts: Sequence[str]) -> list[Integers]: ...

    def encode_with_bytes(self, text: str) -> tuple[Integers, Integers]: ...


@dataclass(frozen=True, slots=True)
class _EachToken(TokenBytes):
    """Bytes of the tokens of one text, each with a number of its own."""

    of_token: Integers

    def each(self, tokens: npt.NDArray[Any], targets: npt.NDArray[Any]) -> Integers:
        del tokens
        return self.of_token[targets + 1]


@dataclass(frozen=True, slots=True, eq=False)
class PlainText:
    """A text that is scored as it was written; `load` makes one."""

    tokens: npt.NDArray[np.uint32]
    token_bytes: _EachToken
    files: tuple[Path, ...]
    accounting: str = "the text itself"

    @classmethod
    def load(
        cls, paths: Sequence[Path], tokenizer: SpellingTokenizer, limit_tokens: int = 0
    ) -> "PlainText":
        """The text of the files at `paths` (``.txt``, ``.jsonl``, compressed or not).

        Args:
            limit_tokens: keep the first so many targets; 0 keeps all.

        Raises:
            AccountingError: the tokens do not stand for the bytes of the text.
            DataError: a file cannot be read, or there are not two tokens of text.
        """
        text = joined(paths)
        ids, each = tokenizer.encode_with_bytes(text)
        charged, written = int(each.sum()), len(text.encode())
        if charged != written:
            raise AccountingError(
                f"the tokens stand for {charged:,} bytes, the text has {written:,}; bits per byte "
                "would be wrong"
            )
        if tokenizer.begins_with is not None:
            ids = np.concatenate(([tokenizer.begins_with], ids))
            each = np.concatenate(([0], each))
        if len(ids) < 2:
            raise DataError(f"{', '.join(map(str, paths))}: no text to score")
        if limit_tokens:
            ids, each = ids[: limit_tokens + 1], each[: limit_tokens + 1]
        return cls(ids.astype(np.uint32), _EachToken(each), tuple(paths))

    def audited_bytes(self, targets: Iterable[int]) -> dict[int, int]:
        """Bytes of the first n targets for each n of `targets`."""
        return {n: self.token_bytes.charged(self.tokens, 0, n) for n in targets}


def text_files(option: str, paths: Iterable[str | Path]) -> tuple[Path, ...]:
    """The paths of files of text, asked for before long work: each has something to read.

    Raises:
        DataError: one cannot be read, or is empty; names `option` too.
    """
    found = tuple(map(Path, paths))
    for path in found:
        try:
            with opened(path) as file:
                if file.read(1):
                    continue
        except OSError as error:
            raise DataError(f"{option} {path}: cannot read: {error.strerror}") from error
        raise DataError(f"{option} {path}: the file is empty; it needs text")
    return found


def joined(paths: Sequence[Path]) -> str:
    """The documents of text files as one text."""
    return BETWEEN.join(document for path in paths for document in iterate_documents(path))


def stream(
    paths: Sequence[Path], tokenizer: SpellingTokenizer, least: int, *, seed: int
) -> npt.NDArray[np.uint32]:
    """At least `least` tokens of the files' documents, or all that there are.

    They are from pieces of documents in an order drawn from `seed`: neighbours in a corpus are
    often alike, and its first documents alone are not what it is (docs/log.md, 2026-11-29: Hessians
    of those cost 8 % more of the rise than of as many tokens from everywhere).

    Raises:
        DataError: a file cannot be read.
    """
    pieces: list[str] = []
    held = 0
    for document in (text + BETWEEN for path in paths for text in iterate_documents(path)):
        pieces += [document[i : i + PIECE] for i in range(0, len(document), PIECE)]
        held += len(document)
        if held >= MOST_CHARACTERS:
            break
    order = np.random.default_rng(seed).permutation(len(pieces)).tolist()
    parts: list[Integers] = []
    for start in range(0, len(order), AT_ONCE):
        parts += tokenizer.encode([pieces[i] for i in order[start : start + AT_ONCE]])
        if sum(map(len, parts)) >= least:
            break
    return np.concatenate(parts).astype(np.uint32) if parts else np.zeros(0, np.uint32)
