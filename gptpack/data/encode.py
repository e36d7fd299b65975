"""Documents -> audited tokens in the same order, in this process or spread over others."""

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gptpack.cores import usable_cores
from gptpack.data.accounting import PieceBytes, audit
from gptpack.data.byte_pairs import BytePairs, load_tokenizer
from gptpack.data.byte_tables import audit_pieces
from gptpack.data.overlap import digest
from gptpack.data.shards import Tokens, layout_for
from gptpack.data.tokenizer import Tokenizer
from gptpack.errors import AccountingError, DataError

Counts = npt.NDArray[np.int64]


class Document(NamedTuple):
    """A text and where it is from."""

    text: str
    path: Path
    number: int
    """Its place among the file's documents, from 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Tokens of documents, each after a BOS, and their counts, ``[documents]``."""

    tokens: Tokens
    lengths: Counts
    """Tokens of each document, its BOS included."""
    unknown_tokens: Counts
    text_bytes: Counts
    normalized_bytes: Counts
    accounted_bytes: Counts
    digests: tuple[bytes, ...]
    """128 bits of each document's tokens; empty for a document of nothing but a BOS."""

    def take(self, chosen: npt.NDArray[np.bool_]) -> "Encoded":
        """Only those documents for which `chosen` is true."""
        return Encoded(
            self.tokens[np.repeat(chosen, self.lengths)],
            digests=tuple(itertools.compress(self.digests, chosen)),
            **{name: getattr(self, name)[chosen] for name in COUNTS},
        )


COUNTS = ("lengths", "unknown_tokens", "text_bytes", "normalized_bytes", "accounted_bytes")


class _Worker:
    """A tokenizer and its table of bytes, made once per process."""

    current: "_Worker"

    def __init__(self, tokenizer: Tokenizer | BytePairs) -> None:
        self.tokenizer = tokenizer
        self.token_bytes = (
            tokenizer.token_bytes
            if isinstance(tokenizer, BytePairs)
            else PieceBytes.from_tokenizer(tokenizer)
        )

    @classmethod
    def start(cls, path: Path) -> None:
        cls.current = cls(load_tokenizer(path))

    @classmethod
    def encode_here(cls, documents: list[Document]) -> Encoded:
        return cls.current.encode(documents)

    def encode(self, documents: list[Document]) -> Encoded:
        tokenizer = self.tokenizer
        texts = [document.text for document in documents]
        ids = tokenizer.encode_batch(texts)
        lengths = np.array([1 + len(each) for each in ids])
        stream = itertools.chain.from_iterable((tokenizer.bos, *document) for document in ids)
        tokens = np.fromiter(stream, layout_for(tokenizer.vocab).token, int(lengths.sum()))
        starts = np.cumsum(lengths) - lengths
        try:
            self._audit(tokens)
        except AccountingError as error:
            raise self._named(documents, np.split(tokens, starts[1:])) from error
        each = self.token_bytes.of(np.concatenate(([tokenizer.bos], tokens[:-1])), tokens)
        accounted = np.add.reduceat(each, starts)
        unknown = np.add.reduceat((tokens == tokenizer.unknown).astype(np.int64), starts)
        normalized = np.array(tokenizer.normalized_bytes(texts))
        if (wrong := np.flatnonzero((unknown == 0) & (accounted != normalized))).size:
            first = int(wrong[0])
            raise AccountingError(
                f"{documents[first].path}: document {documents[first].number}: its tokens stand "
                f"for {accounted[first]:,} bytes, its text as {tokenizer.path} normalises it has "
                f"{normalized[first]:,}; this tokenizer loses text, or adds some"
            )
        stops = [*starts[1:].tolist(), len(tokens)]
        digests = [digest(tokens[a:b]) for a, b in zip(starts.tolist(), stops, strict=True)]
        return Encoded(
            tokens,
            lengths,
            unknown,
            np.array([len(text.encode()) for text in texts]),
            normalized,
            accounted,
            tuple(each if n > 1 else b"" for each, n in zip(digests, lengths, strict=True)),
        )

    def _audit(self, tokens: Tokens) -> None:
        if isinstance(self.tokenizer, BytePairs):
            audit_pieces(self.tokenizer.vocabulary, tokens)
        else:
            audit(self.token_bytes, self.tokenizer, tokens)

    def _named(self, documents: list[Document], tokens: list[Tokens]) -> AccountingError:
        """The error of the first document that fails its audit."""
        for document, part in zip(documents, tokens, strict=True):
            try:
                self._audit(part)
            except AccountingError as error:
                return AccountingError(f"{document.path}: document {document.number}: {error}")
        raise AssertionError("documents fail together, but none fails alone")


Encode = Callable[[Iterable[list[Document]]], Iterator[tuple[list[Document], Encoded]]]


@contextmanager
def encoder(tokenizer: Tokenizer | BytePairs, workers: int) -> Iterator[Encode]:
    """A function that encodes chunks in their order and holds two of them per worker."""
    workers = workers or usable_cores()
    pool = _pool(tokenizer, workers)
    if pool is None:
        worker = _Worker(tokenizer)
        yield lambda chunks: ((chunk, worker.encode(chunk)) for chunk in chunks)
        return
    try:
        yield lambda chunks: _ordered(pool, chunks, 2 * workers)
    except BrokenProcessPool as error:
        raise DataError(
            "a tokenizing process died, perhaps for lack of memory; use fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(tokenizer: Tokenizer | BytePairs, workers: int) -> Executor | None:
    """Processes that encode; None where one is enough, or the system has no semaphores."""
    if workers == 1:
        return None
    context = multiprocessing.get_context("spawn")
    try:
        return ProcessPoolExecutor(workers, context, _Worker.start, (tokenizer.path,))
    except (ImportError, NotImplementedError, OSError):  # a container without /dev/shm, say
        return None


def _ordered(
    pool: Executor, chunks: Iterable[list[Document]], window: int
) -> Iterator[tuple[list[Document], Encoded]]:
    pending: deque[tuple[list[Document], Future[Encoded]]] = deque()
    for chunk in chunks:
        pending.append((chunk, pool.submit(_Worker.encode_here, chunk)))
        if len(pending) >= window:
            done, future = pending.popleft()
            yield done, future.result()
    while pending:
        done, future = pending.popleft()
        yield done, future.result()
