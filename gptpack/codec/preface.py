"""Codes -> the classes and tables that suit them, which stand in a stream before them.

Shape legend: R = rows, C = columns, M = matrices, N = rows or columns of all of them, B = rows of a
turn, K = classes, P = parities, T = tables, V = places of a histogram.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import repeat
from threading import Lock

import numpy as np
import numpy.typing as npt

from gptpack.codec.coder import Classes, Ints
from gptpack.codec.contexts import (
    CLASSES_MAX,
    Scales,
    class_range,
    count_values,
    fit_scales,
    merge_classes,
)
from gptpack.codec.stepper import Codes, Parity
from gptpack.codec.stream import Book, Reader, Symbols, Writer, check_limit, escape_bits
from gptpack.codec.tables import PLACES, REACH_MAX, Span, fit_span
from gptpack.cores import usable_cores
from gptpack.errors import ArtifactError, QuantError

Shape = tuple[int, int]


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
            firsts(each.size for each in rows),
            np.concatenate(columns, dtype=np.int32),
            firsts(each.size for each in columns),
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


def firsts(sizes: Iterable[int]) -> Ints:
    """Where each of parts of these sizes begins when they stand one after the other."""
    return np.cumsum([0, *sizes][:-1], dtype=np.int64)


def fit_preface(codes: Sequence[Codes], parities: Sequence[Parity] | None) -> Preface:
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


def bits_by_matrix(
    preface: Preface, codes: Sequence[Codes], parities: Sequence[Parity] | None
) -> list[float]:
    """Bits that each matrix' codes take by the tables of `preface`."""
    bits_TV = _place_bits(preface.spans)

    def bits(matrix: int, codes_RC: Codes, parity_RC: Parity | None) -> float:
        counts_KPV = count_values(
            codes_RC, parity_RC, preface.scales[matrix], preface.lowest, preface.groups.size
        )
        found = float((_by_table(counts_KPV, preface.groups) * bits_TV).sum())
        return found + _beyond_bits(preface, matrix, codes_RC, parity_RC)

    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(bits, range(len(codes)), codes, parities or repeat(None)))


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
    codes, scales = codes[rows], preface.scales[matrix]
    class_RC = scales.rows[rows, None] + (scales.columns - preface.lowest)
    book_RC = preface.lanes * preface.groups.take(class_RC, mode="clip")
    if parity is not None:
        book_RC += parity[rows]
    beyond_RC = np.abs(codes.astype(np.int64)) > REACH_MAX
    values, books = codes[beyond_RC].astype(np.int64), book_RC[beyond_RC]
    below = preface.book.joined.lows[books] - 1 - values
    above = values - preface.book.joined.lows[books] - preface.book.joined.sizes[books]
    return float(escape_bits(np.where(below >= 0, 2 * below + 1, 2 * above)).sum())
