"""One stream of range-coded words: numbers, integers, values by table, and the tables themselves.

`Writer` and `Reader` mirror each other method by method; coder.py has their loops.
"""

import struct
from dataclasses import replace
from functools import cache, cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from gptpack.codec.coder import (
    BEYOND,
    ENDED,
    LENGTHS,
    MOST_WORDS,
    Classes,
    Ints,
    Tables,
    carry,
    read_bits,
    read_folded,
    read_rows,
    tables_of,
    write_bits,
    write_folded,
    write_rows,
)
from gptpack.codec.stepper import Codes, Parity
from gptpack.codec.tables import (
    CENTRE_MAX,
    CURVATURE_MAX,
    OCTAVE,
    REACH_MAX,
    SHAPES,
    TOP,
    FrequencyTable,
    Span,
    best_parametric,
    frequencies,
    parametric,
)
from gptpack.errors import ArtifactError, QuantError

Symbols = npt.NDArray[np.int32]

HEADER: Final = struct.Struct("<BI")
"""Kind of the payload; number of 32-bit little-endian words that follow."""
LIMIT: Final = 1 << 20
"""Bound of the magnitude of coded values, which stay below it."""
_SHAPE_BITS = SHAPES.bit_length() - 1
NOTHING = np.zeros(0, np.int32)


class Book:
    """Frequency tables, by their numbers."""

    def __init__(self, tables: list[FrequencyTable]) -> None:
        self.tables = tables

    @cached_property
    def joined(self) -> Tables:
        """The tables as the loops read them."""
        found = self.tables
        return tables_of([table.low for table in found], [table.frequencies for table in found])


@cache
def _one_table() -> npt.NDArray[np.int32]:
    return np.zeros(1, np.int32)


def _by_one_table(count: int) -> Classes:
    columns = np.zeros(count, np.int32)
    return Classes(np.zeros((1, 1), np.int32), np.array([count]), columns, _one_table())


@cache
def _length_starts() -> npt.NDArray[np.uint64]:
    """Where the frequency of each length of a folded number begins: length n has probability
    2^-(n + 1)."""
    logs = TOP - OCTAVE * np.minimum(np.arange(1, LENGTHS + 1), 19)
    return np.concatenate(([0], np.cumsum(frequencies(logs)))).astype(np.uint64)


@cache
def _parametric_book(shape: int) -> Book:
    return Book([parametric(shape)])


class Writer:
    """A growing stream, and what can be coded into it."""

    def __init__(self) -> None:
        self._words = np.zeros(64, np.uint32)
        # the coder's range, the lower end of its interval, and the number of words
        self._state = np.array([2**64 - 1, 0, 0], np.uint64)

    def payload(self, kind: int) -> bytes:
        """The stream so far with its header."""
        words, (wide, lower, count) = self._words.copy(), self._state.tolist()
        last = lower + 2**32 - 1
        if last >> 64:
            carry(words, count)
        ending = [last >> 32 & 0xFFFFFFFF]
        # a word that the other end of the interval has too would not tell where the stream ends
        if ending[0] == lower + wide >> 32 & 0xFFFFFFFF:
            ending.append(0)
        found = np.concatenate((words[:count], np.array(ending, np.uint32)))
        return HEADER.pack(kind, found.size) + found.astype("<u4").tobytes()

    def _room(self, values: int) -> npt.NDArray[np.uint32]:
        """The words, with room for so many values more."""
        needed = int(self._state[2]) + MOST_WORDS * values
        if needed > self._words.size:
            grown = np.zeros(max(needed, 2 * self._words.size), np.uint32)
            grown[: self._words.size] = self._words
            self._words = grown
        return self._words

    def number(self, value: int) -> None:
        """Code one signed number of magnitude below 2^22 in some 6 to 50 bits."""
        folded = np.array([2 * value if value >= 0 else -2 * value - 1])
        write_folded(self._room(1), self._state, _length_starts(), folded)

    def integers(self, values: Codes) -> None:
        """Code integers that lie about one centre, by the best table of the fixed family."""
        centre, shape = best_parametric(values)
        self.number(centre)
        write_bits(self._room(1), self._state, shape, _SHAPE_BITS)
        self.values((values - centre).astype(np.int32), _parametric_book(shape))

    def values(self, values: Symbols, book: Book) -> None:
        """Code `values` by the only table of `book`."""
        if values.size:
            parity = np.zeros((1, values.size), np.uint8)
            self.rows(values[None], parity, book, _by_one_table(values.size), 1)

    def rows(
        self, values_BC: Codes, parity_BC: Parity, book: Book, classes: Classes, height: int
    ) -> None:
        """Code rows of values in turns of `height` rows, within a turn table by table.

        A value's table is that of its class, or the one after it where its parity is 1.
        """
        write_rows(
            self._room(values_BC.size),
            self._state,
            _length_starts(),
            book.joined,
            classes,
            np.ascontiguousarray(parity_BC),
            height,
            np.ascontiguousarray(values_BC, np.int32),
        )

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
        self._words = np.frombuffer(data, dtype="<u4", offset=HEADER.size).astype(np.uint32)
        first, second = [*self._words[:2].tolist(), 0, 0][:2]
        # the coder's range, how far into it the stream points, and the next word
        self._state = np.array([2**64 - 1, first << 32 | second, 2], np.uint64)

    def finish(self) -> None:
        """Check that the stream ends here."""
        if self._state[2] < self._words.size or self._state[1] >= 2**33 - 1:
            raise ArtifactError("codes: the stream goes on after its last code")

    def _check(self, wrong: int) -> None:
        if wrong == ENDED or self._state[2] > self._words.size + 1:
            raise ArtifactError("codes: the stream ends before its last code")
        if wrong == BEYOND:
            raise ArtifactError("codes: the stream is damaged")

    def number(self) -> int:
        folded = np.zeros(1, np.int64)
        self._check(read_folded(self._words, self._state, _length_starts(), folded))
        value = int(folded[0])
        return -(value + 1) // 2 if value % 2 else value // 2

    def integers(self, count: int) -> Ints:
        centre = self.number()
        shape = read_bits(self._words, self._state, _SHAPE_BITS)
        self._check(BEYOND if shape < 0 else 0)
        values = self.values(count, _parametric_book(shape)).astype(np.int64)
        values += centre
        return values

    def values(self, count: int, book: Book) -> Symbols:
        if not count:
            return np.zeros(0, np.int32)
        return self.rows(book, _by_one_table(count), 1)[0]

    def rows(
        self,
        book: Book,
        classes: Classes,
        height: int,
        machine_C: npt.NDArray[np.int32] = NOTHING,
        doubled: npt.NDArray[np.int32] = NOTHING,
    ) -> Symbols:
        """Rows of values; `machine_C` and `doubled` lead from them to parities (see `joined`).

        The machine's columns are led on, so that the next call goes on where this one ends.
        """
        value_BC = np.empty((len(classes.rows), classes.columns.size), np.int32)
        wrong = read_rows(
            self._words,
            self._state,
            _length_starts(),
            book.joined,
            classes,
            machine_C,
            doubled,
            height,
            value_BC,
        )
        self._check(wrong)
        return value_BC

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
