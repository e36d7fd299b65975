"""The context coder: matrices of signed integers <-> one range-coded stream.

The stream holds the classes of rows and columns, the frequency tables, and the codes. Codes go in
turns: a turn is a block of one matrix, or, where a trellis gives each code's parity, row r of all
matrices at once, since the parities of row r + 1 follow from the codes of row r. Within a turn they
go table by table.

Decoding adds, compares and divides integers: it gives the same codes on every machine.

Shape legend: R = rows, C = columns.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import repeat
from threading import Lock

import numpy as np
import numpy.typing as npt

from gptpack.codec.coder import Classes, Ints, spread
from gptpack.codec.contexts import (
    CLASSES_MAX,
    Scales,
    class_range,
    count_values,
    fit_scales,
    merge_classes,
)
from gptpack.codec.stepper import Codes, Parity, TableStepper, joined
from gptpack.codec.stream import (
    LIMIT,
    NOTHING,
    Book,
    Reader,
    Symbols,
    Writer,
    check_limit,
    escape_bits,
)
from gptpack.codec.tables import PLACES, REACH_MAX, Span, fit_span, histogram
from gptpack.cores import usable_cores
from gptpack.errors import ArtifactError, QuantError

Shape = tuple[int, int]

PLAIN, TRELLIS, SMALL = 1, 2, 3
"""Kinds of payload."""
_CODER_BITS = 2.0**-9 / 32 / math.log(2) ** 2
"""Bits that a symbol takes beyond its table's share: the coder cuts its range of 2^32 .. 2^64 to a
multiple of 2^24 and loses half of that on average, over ranges spread evenly over the octaves."""
_BLOCK = 1 << 18
"""Codes of a turn without a trellis."""
_CALL = 1 << 21
"""Codes that one call of the loops takes with a trellis, whose turns are single rows."""


def encode_codes(codes: Sequence[Codes], *, parities: Sequence[Parity] | None = None) -> bytes:
    """Code matrices ``[R, C]`` together; `decode_codes` gives them back.

    Args:
        codes: integers of magnitude below 2^20; tables are shared by all matrices.
        parities: for codes of a trellis, the parity of each code as `TableStepper.trace` gives it.

    Raises:
        QuantError: a code is too large, or the parities are not of the codes' shapes.
    """
    preface = _preface(codes, parities)
    writer = Writer()
    preface.write(writer)
    shapes = [_shape(matrix) for matrix in codes]
    for members, rows, height in _bands(shapes, trellis=parities is not None):
        block_BC = np.hstack([codes[m][rows] for m in members])
        parity_BC: Parity = np.zeros(block_BC.shape, np.uint8)
        if parities is not None:
            parity_BC = np.hstack([parities[m][rows] for m in members])
        writer.rows(block_BC, parity_BC, preface.book, preface.classes(members, rows), height)
    return writer.payload(PLAIN if parities is None else TRELLIS)


def decode_codes(
    data: bytes,
    shapes: Sequence[Shape],
    *,
    steppers: Sequence[TableStepper] | None = None,
    dtype: npt.DTypeLike = np.int32,
) -> list[Codes]:
    """The matrices that `encode_codes` was given.

    Memory and time are bounded by `shapes`: the codes', and some 30 bytes per code of a turn.

    Args:
        steppers: one per matrix if the codes are of a trellis, else None.
        dtype: type of the matrices; a code beyond it is an error.

    Raises:
        ArtifactError: `data` is not a payload for these shapes.
    """
    reader = Reader(data, PLAIN if steppers is None else TRELLIS)
    preface = Preface.read(reader, shapes, lanes=1 if steppers is None else 2)
    code_N, first_M = np.empty(sum(map(math.prod, shapes)), dtype), _firsts(map(math.prod, shapes))
    machine_C, doubled, present = NOTHING, NOTHING, np.arange(len(shapes))
    width_M = np.array([columns for _, columns in shapes], np.int64)
    if steppers is not None:
        doubled, machine_C = joined(steppers, width_M.tolist())
    for members, rows, height in _bands(shapes, trellis=steppers is not None):
        if steppers is not None and members.size != present.size:
            machine_C = machine_C[np.repeat(np.isin(present, members), width_M[present])]
            present = members
        classes = preface.classes(members, rows)
        block_BC = _narrow(reader.rows(preface.book, classes, height, machine_C, doubled), dtype)
        spread(block_BC, first_M[members] + rows.start * width_M[members], width_M[members], code_N)
    reader.finish()
    starts = zip(first_M.tolist(), shapes, strict=True)
    return [code_N[n : n + math.prod(shape)].reshape(shape) for n, shape in starts]


def estimate_bits(codes: Sequence[Codes], *, parities: Sequence[Parity] | None = None) -> float:
    """Bits that `encode_codes` of the same arguments takes, without coding: within 128.

    Below half a bit a code the estimate may be high, at a twentieth of a bit by 0.1 % of it.
    """
    preface = _preface(codes, parities)
    writer = Writer()
    preface.write(writer)
    count = sum(matrix.size for matrix in codes)
    return 8.0 * len(writer.payload(PLAIN)) + preface.symbol_bits + _CODER_BITS * count


def matrix_bits(
    data: bytes, codes: Sequence[Codes], *, parities: Sequence[Parity] | None = None
) -> list[float]:
    """Bits of each matrix' codes in the payload `data`, which `encode_codes` made of them.

    Tables and classes, which all matrices share, are not counted. The codes' bits add up to the
    rest of the payload within some hundredths of a percent.

    Raises:
        ArtifactError: `data` is not a payload for matrices of these shapes.
    """
    kind, lanes = (PLAIN, 1) if parities is None else (TRELLIS, 2)
    preface = Preface.read(Reader(data, kind), [_shape(matrix) for matrix in codes], lanes)
    bits_TV = _place_bits(preface.spans)

    def bits(index: int) -> float:
        parity_RC = None if parities is None else parities[index]
        counts_KPV = count_values(
            codes[index], parity_RC, preface.scales[index], preface.lowest, preface.groups.size
        )
        found = float((_by_table(counts_KPV, preface.groups) * bits_TV).sum())
        return found + _beyond_bits(preface, index, codes[index], parity_RC)

    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(bits, range(len(codes))))


def encode_small(array: npt.NDArray[np.integer]) -> bytes:
    """Code a small integer array, such as indexes of scales, in the order of its elements.

    Coded are the values or the differences of neighbours, by a table of the fixed family or by one
    of their own, whichever is smallest.

    Raises:
        QuantError: a value is too large.
    """
    check_limit(array, "integers")
    values = array.astype(np.int64).ravel()
    payloads = []
    for mode in range(4):
        coded = np.diff(values, prepend=0) if mode & 1 else values
        writer = Writer()
        writer.number(mode)
        if mode & 2:
            centre = int(np.sort(coded)[coded.size // 2]) if coded.size else 0
            span = fit_span(histogram(coded - centre))
            writer.number(centre)
            writer.spans([span], 1)
            writer.values((coded - centre).astype(np.int32), Book([span.table()]))
        else:
            writer.integers(coded)
        payloads.append(writer.payload(SMALL))
    return min(payloads, key=len)


def decode_small(data: bytes, size: int, dtype: npt.DTypeLike = np.int32) -> Codes:
    """The `size` values that `encode_small` was given; one beyond `dtype` is an error.

    Raises:
        ArtifactError: `data` is not a payload of so many values.
    """
    reader = Reader(data, SMALL)
    mode = reader.number()
    if not 0 <= mode < 4:
        raise ArtifactError(f"small integers: mode {mode} is unknown")
    if mode & 2:
        centre = reader.number()
        book = Book([span.table() for span in reader.spans(1, 1)])
        values = reader.values(size, book).astype(np.int64) + centre
    else:
        values = reader.integers(size)
    reader.finish()
    if mode & 1:
        values = np.cumsum(values)
    if values.size and int(np.abs(values).max()) >= LIMIT:
        raise ArtifactError(f"small integers: a value is not below {LIMIT:,} in magnitude")
    return _narrow(values, dtype).astype(dtype)


@dataclass(frozen=True)
class Preface:
    """The classes and tables that stand in a stream before the codes."""

    scales: list[Scales]
    lowest: int
    """The class that `groups` begins with; lower ones count as this, higher ones as the last."""
    groups: Ints
    """The group of each class, a number that begins at 0 and rises by 0 or 1."""
    spans: list[Span]
    """Tables, `lanes` of each group."""
    lanes: int
    """Tables of a group: one, or one for each parity."""
    symbol_bits: float = 0.0
    """Bits of the codes, as the encoder estimates them."""

    @cached_property
    def book(self) -> Book:
        return Book([span.table() for span in self.spans])

    @cached_property
    def _first(self) -> npt.NDArray[np.int32]:
        return (self.groups * self.lanes).astype(np.int32)

    @cached_property
    def _joined(self) -> tuple[Symbols, Ints, Symbols, Ints, Ints]:
        """The classes of all rows, where each matrix' begin, those of columns, and their sizes."""
        rows = [each.rows for each in self.scales]
        columns = [each.columns for each in self.scales]
        return (
            np.concatenate(rows, dtype=np.int32) - np.int32(self.lowest),
            _firsts(each.size for each in rows),
            np.concatenate(columns, dtype=np.int32),
            _firsts(each.size for each in columns),
            np.array([each.size for each in columns]),
        )

    def classes(self, matrices: Ints, rows: slice) -> Classes:
        """The classes of these rows of matrices side by side."""
        row_N, row_M, column_N, column_M, width_M = self._joined
        ends = np.cumsum(width_M[matrices])
        first, last = matrices[[0, -1]]
        if last - first < matrices.size:
            columns = column_N[column_M[first] : column_M[last] + width_M[last]]
        else:
            shift_C = np.repeat(column_M[matrices] + width_M[matrices] - ends, width_M[matrices])
            columns = column_N[shift_C + np.arange(ends[-1])]
        return Classes(
            rows=row_N[np.arange(rows.start, rows.stop)[:, None] + row_M[matrices]],
            ends=ends,
            columns=columns,
            groups=self._first,
        )

    def books(self, matrix: int, rows: slice | Ints) -> npt.NDArray[np.int32]:
        """The table of each code in these rows of a matrix, parities left out."""
        scales = self.scales[matrix]
        class_BC = scales.rows[rows, None] + (scales.columns - self.lowest)
        books: npt.NDArray[np.int32] = self._first.take(class_BC, mode="clip")
        return books

    def write(self, writer: Writer) -> None:
        writer.number(self.lowest)
        writer.number(self.groups.size)
        writer.integers(np.diff(self.groups))
        for scales in self.scales:
            writer.integers(scales.rows)
            writer.integers(scales.columns)
        writer.spans(self.spans, self.lanes)

    @classmethod
    def read(cls, reader: Reader, shapes: Sequence[Shape], lanes: int) -> "Preface":
        lowest = reader.number()
        classes = reader.number()
        if not 1 <= classes <= CLASSES_MAX:
            raise ArtifactError(f"codes: {classes} classes, but 1 to {CLASSES_MAX} are possible")
        rises = reader.integers(classes - 1)
        if not np.isin(rises, (0, 1)).all():
            raise ArtifactError("codes: groups of classes do not rise by 0 or 1")
        group_K = np.concatenate(([0], np.cumsum(rises)))
        scales = []
        for rows, columns in shapes:
            inhabited = rows * columns > 0
            row_R = reader.integers(rows if inhabited else 0).astype(np.int32)
            column_C = reader.integers(columns if inhabited else 0).astype(np.int32)
            scales.append(Scales(row_R, column_C))
        spans = reader.spans((int(group_K[-1]) + 1) * lanes, lanes)
        return cls(scales, lowest, group_K, spans, lanes)


def _narrow(codes: Codes, dtype: npt.DTypeLike) -> Codes:
    """The codes, all of which `dtype` can hold."""
    info = np.iinfo(np.dtype(dtype))
    if codes.size and not (info.min <= codes.min() and codes.max() <= info.max):
        raise ArtifactError(f"a decoded code is beyond {info.dtype.name}")
    return codes


def _preface(codes: Sequence[Codes], parities: Sequence[Parity] | None) -> Preface:
    """Classes and tables that suit `codes`, which are checked."""
    lanes = 1 if parities is None else 2
    parity_M: Iterable[Parity | None] = parities or repeat(None)
    adding = Lock()

    def count(codes_RC: Codes, parity_RC: Parity | None, own: Scales) -> None:
        found_KPV = count_values(codes_RC, parity_RC, own, lowest, classes)
        with adding:
            np.add(counts_KPV, found_KPV, out=counts_KPV)

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(_check, range(len(codes)), codes, parity_M))
        scales = list(pool.map(fit_scales, codes))
        lowest, classes = class_range(scales)
        counts_KPV = np.zeros((classes, lanes, PLACES), np.int64)
        list(pool.map(count, codes, parity_M, scales))
        group_K = merge_classes(counts_KPV)
        counts_TV = _by_table(counts_KPV, group_K)
        spans = [fit_span(counts_V) for counts_V in counts_TV]
        preface = Preface(scales, lowest, group_K, spans, lanes)
        beyond = pool.map(partial(_beyond_bits, preface), range(len(codes)), codes, parity_M)
        bits = float((counts_TV * _place_bits(spans)).sum()) + sum(beyond)
    return replace(preface, symbol_bits=bits)


def _check(index: int, codes: Codes, parity: Parity | None) -> None:
    """Raise the `QuantError` of a matrix that cannot be coded."""
    if codes.ndim != 2:
        raise QuantError(f"codes {index} have shape {codes.shape}; the coder takes matrices")
    check_limit(codes, f"codes {index}")
    if parity is None:
        return
    if parity.shape != codes.shape:
        raise QuantError(f"parities {index} have shape {parity.shape}, but the codes {codes.shape}")
    if parity.size and not 0 <= parity.min() <= parity.max() <= 1:
        raise QuantError(f"parities {index} are not all 0 or 1")


def _by_table(counts_KPV: Ints, group_K: Ints) -> Ints:
    """Counts by class and parity -> those by table, ``[T, PLACES]``."""
    starts = np.flatnonzero(np.diff(group_K, prepend=-1))
    found: Ints = np.add.reduceat(counts_KPV, starts, axis=0).reshape(-1, PLACES)
    return found


def _place_bits(spans: Sequence[Span]) -> npt.NDArray[np.float64]:
    """Bits of the value at each place of a histogram by each table, ``[T, PLACES]``; the lengths of
    values beyond `REACH_MAX` do not count."""
    bits_TV, place_V = np.empty((len(spans), PLACES)), np.arange(PLACES)
    for bits_V, span in zip(bits_TV, spans, strict=True):
        first, table = span.low + REACH_MAX + 1, span.table()
        below_V, above_V = first - 1 - place_V, place_V - first - span.size
        escaped_V = np.where(below_V >= 0, 2 * below_V + 1, 2 * np.maximum(above_V, 0))
        bits_V[:] = table.bits[-1] + escape_bits(escaped_V)
        bits_V[[0, -1]] = table.bits[-1]
        bits_V[first : first + span.size] = table.bits[:-1]
    return bits_TV


def _beyond_bits(preface: Preface, matrix: int, codes: Codes, parity: Parity | None) -> float:
    """Bits of the lengths of the codes beyond `REACH_MAX`."""
    if not codes.size or max(-int(codes.min()), int(codes.max())) <= REACH_MAX:
        return 0.0
    rows = np.flatnonzero(((codes > REACH_MAX) | (codes < -REACH_MAX)).any(1))
    codes, book_RC = codes[rows], preface.books(matrix, rows)
    if parity is not None:
        book_RC += parity[rows]
    beyond_RC = np.abs(codes.astype(np.int64)) > REACH_MAX
    values, books = codes[beyond_RC].astype(np.int64), book_RC[beyond_RC]
    below = preface.book.joined.lows[books] - 1 - values
    above = values - preface.book.joined.lows[books] - preface.book.joined.sizes[books]
    return float(escape_bits(np.where(below >= 0, 2 * below + 1, 2 * above)).sum())


def _shape(matrix: Codes) -> Shape:
    rows, columns = matrix.shape
    return rows, columns


def _firsts(sizes: Iterable[int]) -> Ints:
    """Where each of parts of these sizes begins when they stand one after the other."""
    return np.cumsum([0, *sizes][:-1], dtype=np.int64)


def _bands(shapes: Sequence[Shape], *, trellis: bool) -> Iterator[tuple[Ints, slice, int]]:
    """The matrices and rows of each call, and how many rows a turn has: without a trellis a block
    of one matrix, with one a row of all matrices that have it."""
    heights = [rows if columns else 0 for rows, columns in shapes]
    if not trellis:
        for m, (_, columns) in enumerate(shapes):
            height = max(1, _BLOCK // max(columns, 1))
            for row in range(0, heights[m], height):
                yield np.array([m]), slice(row, min(row + height, heights[m])), height
        return
    height_M, width_M = np.array(heights), np.array([columns for _, columns in shapes])
    row = 0
    while (members := np.flatnonzero(height_M > row)).size:
        band = max(1, _CALL // int(width_M[members].sum()))
        stop = min(int(height_M[members].min()), row + band)
        yield members, slice(row, stop), 1
        row = stop
