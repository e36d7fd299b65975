"""One stream of range-coded words: numbers, integers, symbols by table, and the tables themselves.

`Writer` and `Reader` mirror each other method by method. Every symbol is coded by constriction
under frequencies that are integers (tables.py), raw bits under `Uniform(2^n)`, which is exact.
"""

import struct
from dataclasses import replace
from typing import Any, Final

import constriction
import numpy as np
import numpy.typing as npt

from gptpack.codec.stepper import Codes
from gptpack.codec.tables import (
    CENTRE_MAX,
    CURVATURE_MAX,
    OCTAVE,
    REACH_MAX,
    SHAPES,
    TOP,
    FrequencyTable,
    Ints,
    Span,
    best_parametric,
    parametric,
)
from gptpack.errors import ArtifactError, QuantError

Symbols = npt.NDArray[np.int32]
Books = npt.NDArray[np.uint16]

HEADER: Final = struct.Struct("<BI")
"""Kind of the payload; number of 32-bit little-endian words that follow."""
LIMIT: Final = 1 << 20
"""Bound of the magnitude of coded values, which stay below it."""
_LENGTHS = 24
"""Bits of an escape or a number after folding the sign, at most; they stay below 2^24 - 1."""


class Book:
    """Frequency tables, with the model, the lowest value and the size of each."""

    def __init__(self, tables: list[FrequencyTable]) -> None:
        self.tables = tables
        self.models = [table.model for table in tables]
        self.lows = np.array([table.low for table in tables], dtype=np.int32)
        self.sizes = np.array([table.size for table in tables], dtype=np.int32)


class Writer:
    """A growing stream, and what can be coded into it."""

    def __init__(self) -> None:
        self._coder: Any = constriction.stream.queue.RangeEncoder()
        self._uniform: Any = constriction.stream.model.Uniform
        self._lengths = _length_table().model

    def payload(self, kind: int) -> bytes:
        """The stream so far with its header."""
        words = self._coder.get_compressed().astype("<u4")
        return HEADER.pack(kind, words.size) + words.tobytes()

    def number(self, value: int) -> None:
        """Code one signed number of magnitude below 2^22 in some 6 to 50 bits."""
        self._folded(np.array([2 * value if value >= 0 else -2 * value - 1]))

    def integers(self, values: Ints) -> None:
        """Code integers that lie about one centre, by the best table of the fixed family."""
        centre, shape = best_parametric(values)
        self.number(centre)
        self._coder.encode(shape, self._uniform(SHAPES))
        books = np.zeros(values.size, dtype=np.uint16)
        self.symbols((values - centre).astype(np.int32), books, Book([parametric(shape)]))

    def symbols(self, values: Codes, books: Books, book: Book) -> None:
        """Code `values`, each by table ``books[i]`` of `book`: table by table, in stable order."""
        self.rows(values[None], books[None], book)

    def rows(self, values_BN: Codes, books_BN: Books, book: Book) -> None:
        """Code as `symbols` does, one row after the other."""
        order_BN = np.argsort(books_BN, axis=1, kind="stable")
        height, tables = len(books_BN), len(book.models)
        line_BN = books_BN + tables * np.arange(height)[:, None]
        counts = np.bincount(line_BN.ravel(), minlength=height * tables)
        sizes = np.repeat(np.tile(book.sizes, height), counts)
        offsets = np.take_along_axis(values_BN, order_BN, 1).ravel().astype(np.int32)
        offsets -= np.repeat(np.tile(book.lows, height), counts)
        # Negative offsets are large as unsigned numbers.
        inside = offsets.view(np.uint32) < sizes.view(np.uint32)
        places = np.where(inside, offsets, sizes)
        width = books_BN.shape[1]
        inside_B: npt.NDArray[np.bool_] = np.all(inside.reshape(height, width), axis=1)
        stop = 0
        for row, counts_P in enumerate(counts.reshape(height, tables)):
            for index in np.flatnonzero(counts_P).tolist():
                start, stop = stop, stop + int(counts_P[index])
                self._coder.encode(places[start:stop], book.models[index])
            if not inside_B[row]:
                outside = slice(row * width, stop)
                self._escapes(offsets[outside], sizes[outside], ~inside[outside])

    def _escapes(self, offsets: Symbols, sizes: Symbols, outside: npt.NDArray[np.bool_]) -> None:
        """Code how far beyond their tables those values lie that are `outside`."""
        distances = offsets[outside].astype(np.int64)
        beyond = distances - sizes[outside]
        self._folded(np.where(distances < 0, -2 * distances - 1, 2 * beyond))

    def _folded(self, values: Ints) -> None:
        """Code non-negative integers: the lengths of value + 1, then their lower bits."""
        lengths = _bit_lengths(values + 1)
        self._coder.encode(lengths, self._lengths)
        for length in range(1, _LENGTHS):
            members = (values + 1)[lengths == length] - (1 << length)
            if members.size:
                self._coder.encode(members.astype(np.int32), self._uniform(1 << length))

    def spans(self, spans: list[Span], lanes: int) -> None:
        """Code tables: each field by its difference from that of the table `lanes` before."""
        for name in _SPAN_FIELDS:
            field = np.array([getattr(span, name) for span in spans], dtype=np.int64)
            self.integers(np.diff(field.reshape(-1, lanes), axis=0, prepend=0).ravel())
        self.integers(np.array([r for span in spans for r in span.residuals], dtype=np.int64))


_SPAN_FIELDS = ("low", "size", "escape", "peak", "centre", "curvature")


class Reader:
    """Decodes what `Writer` wrote.

    Raises:
        ArtifactError: here and in every method, for bytes that no `Writer` made.
    """

    def __init__(self, data: bytes, kind: int) -> None:
        if len(data) < HEADER.size:
            raise ArtifactError(f"codes: {len(data)} bytes, but a header has {HEADER.size}")
        found, words = HEADER.unpack_from(data)
        if found != kind:
            raise ArtifactError(f"codes: payload of kind {found}, but kind {kind} was expected")
        if len(data) != HEADER.size + 4 * words:
            needed = HEADER.size + 4 * words
            raise ArtifactError(f"codes: {len(data)} bytes, but {words} words need {needed}")
        stream = np.frombuffer(data, dtype="<u4", offset=HEADER.size).astype(np.uint32)
        self._decoder: Any = constriction.stream.queue.RangeDecoder(stream)
        self._uniform: Any = constriction.stream.model.Uniform
        self._lengths = _length_table().model

    def finish(self) -> None:
        """Check that the stream ends here."""
        if not self._decoder.maybe_exhausted():
            raise ArtifactError("codes: the stream goes on after its last code")

    def number(self) -> int:
        value = int(self._folded(1)[0])
        return -(value + 1) // 2 if value % 2 else value // 2

    def integers(self, count: int) -> Ints:
        centre = self.number()
        shape = int(self._decode(self._uniform(SHAPES), 1)[0])
        books = np.zeros(count, dtype=np.uint16)
        return self.symbols(books, Book([parametric(shape)])).astype(np.int64) + centre

    def symbols(self, books: Books, book: Book) -> Symbols:
        order = np.argsort(books, kind="stable")
        counts = np.bincount(books, minlength=len(book.models))
        sizes = np.repeat(book.sizes, counts)
        places = np.empty(books.size, dtype=np.int32)
        stop = 0
        for index in np.flatnonzero(counts).tolist():
            start, stop = stop, stop + int(counts[index])
            places[start:stop] = self._decode(book.models[index], stop - start)
        escaped = np.flatnonzero(places == sizes)
        if escaped.size:
            folded = self._folded(escaped.size)
            beyond = sizes[escaped] + folded // 2
            places[escaped] = np.where(folded % 2, -(folded + 1) // 2, beyond)
        places += np.repeat(book.lows, counts)
        values = np.empty_like(places)
        values[order] = places
        return values

    def _folded(self, count: int) -> Ints:
        lengths = self._decode(self._lengths, count)
        values = np.zeros(count, dtype=np.int64)
        for length in range(1, _LENGTHS):
            members = np.flatnonzero(lengths == length)
            if members.size:
                low_bits = self._decode(self._uniform(1 << length), members.size)
                values[members] = (1 << length) - 1 + low_bits.astype(np.int64)
        return values

    def spans(self, count: int, lanes: int) -> list[Span]:
        """`count` tables, a multiple of `lanes`."""
        fields = {}
        for name in _SPAN_FIELDS:
            differences = self.integers(count).reshape(-1, lanes)
            fields[name] = np.cumsum(differences, axis=0).ravel().tolist()
        spans = []
        for index in range(count):
            settings = {name: int(fields[name][index]) for name in _SPAN_FIELDS}
            spans.append(_checked(Span(**settings, residuals=())))
        residuals = self.integers(sum(span.size for span in spans)).tolist()
        stop = 0
        for index, span in enumerate(spans):
            start, stop = stop, stop + span.size
            spans[index] = replace(span, residuals=tuple(residuals[start:stop]))
        return spans

    def _decode(self, model: Any, count: int) -> Symbols:
        try:
            symbols: Symbols = self._decoder.decode(model, count)
        except AssertionError as error:  # constriction's words for a point outside every interval
            raise ArtifactError("codes: the stream is damaged") from error
        return symbols


def _checked(span: Span) -> Span:
    if span.size < 1 or span.low < -REACH_MAX or span.low + span.size - 1 > REACH_MAX:
        raise ArtifactError(f"codes: a table of {span.size} values from {span.low}")
    if abs(span.centre) > CENTRE_MAX or not 0 <= span.curvature <= CURVATURE_MAX:
        raise ArtifactError(
            f"codes: a table with centre {span.centre} and curvature {span.curvature}"
        )
    return span


def check_limit(values: npt.NDArray[np.integer], what: str) -> None:
    """Raise QuantError unless every value is below `LIMIT` in magnitude."""
    if values.size:
        largest = max(-int(values.min()), int(values.max()))
        if largest >= LIMIT:
            raise QuantError(
                f"{what} reach {largest:,}; the coder takes magnitudes below {LIMIT:,}"
            )


def escape_bits(values: Ints) -> npt.NDArray[np.float64]:
    """Bits of folded values after the escape symbol, to 0.1 bit."""
    bits: npt.NDArray[np.float64] = 2.0 * _bit_lengths(values + 1).astype(np.float64) + 1.0
    return bits


def _bit_lengths(values: Ints) -> Symbols:
    """``floor(log2(values))``: exact for integers below 2^53."""
    return (np.frexp(values.astype(np.float64))[1] - 1).astype(np.int32)


def _length_table() -> FrequencyTable:
    """The table of lengths, in which each further bit halves the probability."""
    return FrequencyTable(0, TOP - OCTAVE * (1 + np.arange(_LENGTHS, dtype=np.int64)).clip(max=19))
