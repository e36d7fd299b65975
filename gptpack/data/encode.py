"""Documents -> audited tokens in the same order, in this process or spread over others."""

import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptpack.data.accounting import PieceBytes, audit, unknown_tokens
from gptpack.data.shards import Tokens, layout_for
from gptpack.data.tokenizer import Tokenizer
from gptpack.errors import AccountingError, DataError

Document = tuple[str, bytes]
"""A document's text and its 128-bit hash."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens of a chunk of documents, each after a BOS, and the chunk's totals."""

    tokens: Tokens
    unknown_tokens: int
    text_bytes: int
    normalized_bytes: int
    accounted_bytes: int


class _Worker:
    """A tokenizer and its table of bytes, made once per process."""

    current: "_Worker"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.token_bytes = PieceBytes.from_tokenizer(tokenizer)

    @classmethod
    def start(cls, path: Path) -> None:
        cls.current = cls(Tokenizer.load(path))

    @classmethod
    def encode_here(cls, texts: list[str]) -> Encoded:
        return cls.current.encode(texts)

    def encode(self, texts: list[str]) -> Encoded:
        tokenizer = self.tokenizer
        ids = tokenizer.encode_batch(texts)
        stream = itertools.chain.from_iterable((tokenizer.bos, *document) for document in ids)
        tokens = np.fromiter(
            stream, layout_for(tokenizer.vocab).token, sum(map(len, ids)) + len(ids)
        )
        accounted = audit(self.token_bytes, tokenizer, tokens)
        unknown = unknown_tokens(tokenizer, tokens)
        normalized = sum(tokenizer.normalized_bytes(texts))
        if not unknown and accounted != normalized:
            raise AccountingError(
                f"{tokenizer.path}: the tokens stand for {accounted} bytes, the normalised text "
                f"has {normalized}; this tokenizer loses text"
            )
        raw = sum(len(text.encode()) for text in texts)
        return Encoded(tokens, unknown, raw, normalized, accounted)


Encode = Callable[[Iterable[list[Document]]], Iterator[tuple[list[Document], Encoded]]]


@contextmanager
def encoder(tokenizer: Tokenizer, workers: int) -> Iterator[Encode]:
    """A function that encodes chunks in their order and holds two of them per worker."""
    workers = workers or _usable_cores()
    if workers == 1:
        worker = _Worker(tokenizer)
        yield lambda chunks: (
            (chunk, worker.encode([text for text, _ in chunk])) for chunk in chunks
        )
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _Worker.start, (tokenizer.path,))
    try:
        yield lambda chunks: _ordered(pool, chunks, 2 * workers)
    except BrokenProcessPool as error:
        raise DataError(
            "a tokenizing process died, perhaps for lack of memory; use fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _usable_cores() -> int:
    # macOS and Windows do not have it
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ordered(
    pool: Executor, chunks: Iterable[list[Document]], window: int
) -> Iterator[tuple[list[Document], Encoded]]:
    pending: deque[tuple[list[Document], Future[Encoded]]] = deque()
    for chunk in chunks:
        pending.append((chunk, pool.submit(_Worker.encode_here, [text for text, _ in chunk])))
        if len(pending) >= window:
            done, future = pending.popleft()
            yield done, future.result()
    while pending:
        done, future = pending.popleft()
        yield done, future.result()
