"""Values of matrices <-> 32-bit words of one range-coded stream: the compiled loops.

The range coder of docs/format.md: 64 bits of state, frequencies that sum to 2^24. Values go in
turns, and within a turn table by table; a value's table follows from the class of its row, the
class of its column and, with a trellis, the parity that the values above it lead to.

Shape legend: M = matrices side by side, B = their rows, C = all their columns, K = classes,
T = tables, N = values of a turn, W = words.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gptpack.compiled import compiled

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

PRECISION: Final = 24
"""Bits of the sum of frequencies, 2^24."""
LENGTHS: Final = 24
"""Bits of an escape or a number after folding the sign, at most; they stay below 2^24 - 1."""
ENDED, BEYOND = 1, 2
"""What is wrong with a stream: its words have run out, or it points beyond every symbol."""
MOST_WORDS: Final = 3
"""Words that a value takes at most, its escape included."""

_WORD = np.uint64(32)
_LOW_WORD = np.uint64(2**32 - 1)
_SUM = np.uint64(PRECISION)
_LEAST = np.uint64(2**32)
_BUCKET = np.uint64(PRECISION - 8)


class Tables(NamedTuple):
    """Frequency tables side by side, as the loops read them."""

    lows: npt.NDArray[np.int32]
    """The lowest value of each table, ``[T]``."""
    sizes: npt.NDArray[np.int32]
    """Values of each table, ``[T]``; the place after them is the escape."""
    first: Ints
    """Where each table's places begin in `starts`, ``[T]``."""
    starts: npt.NDArray[np.uint64]
    """The sum of the frequencies before each place of each table, and 2^24 at the table's end."""
    buckets: npt.NDArray[np.int32]
    """The place at the start of each 256th part of 2^24, ``[T, 256]``."""


class Classes(NamedTuple):
    """Which table each value of some rows of matrices side by side has."""

    rows: npt.NDArray[np.int32]
    """Class of each row in each matrix, ``[B, M]``."""
    ends: Ints
    """Where each matrix' columns end, ``[M]``."""
    columns: npt.NDArray[np.int32]
    """Class of each column, ``[C]``; a value's class is the sum, or the nearest that exists."""
    groups: npt.NDArray[np.int32]
    """Number of the table of each class, ``[K]``."""


def tables_of(lows: list[int], frequencies: list[Ints]) -> Tables:
    """Tables with these lowest values and these frequencies, the last one the escape's."""
    sums = [np.concatenate(([0], np.cumsum(each))) for each in frequencies]
    edges = np.arange(256) << int(_BUCKET)
    places = [np.searchsorted(each, edges, side="right") - 1 for each in sums]
    return Tables(
        lows=np.array(lows, np.int32),
        sizes=np.array([each.size - 1 for each in frequencies], np.int32),
        first=np.cumsum([0, *(each.size for each in sums[:-1])], dtype=np.int64),
        starts=np.concatenate(sums).astype(np.uint64),
        buckets=np.array(places, np.int32).reshape(-1, 256),
    )


@compiled()
def _sort(
    classes: Classes,
    parity_BC: Array,
    top: int,
    bottom: int,
    book_N: Array,
    order_N: Array,
    end_T: Array,
) -> Any:  # pragma: no cover
    """The table of each value of the rows `top` to `bottom`, and the values table by table.

    Fills `book_N`, `order_N` and the ends of the tables' runs in `end_T`; returns the lowest and
    the highest table that occur.
    """
    row_BM, end_M, column_C, group_K = classes
    least, most = end_T.size, -1
    n = 0
    for b in range(top, bottom):
        c = 0
        for m in range(end_M.size):
            level = row_BM[b, m]
            while c < end_M[m]:
                place = min(max(level + column_C[c], 0), group_K.size - 1)
                t = group_K[place] + parity_BC[b, c]
                book_N[n] = t
                least, most = min(least, t), max(most, t)
                n += 1
                c += 1
    for t in range(least, most + 1):
        end_T[t] = 0
    for i in range(n):
        end_T[book_N[i]] += 1
    start = 0
    for t in range(least, most + 1):
        start, end_T[t] = start + end_T[t], start
    for i in range(n):
        t = book_N[i]
        order_N[end_T[t]] = i
        end_T[t] += 1
    return least, most


@compiled()
def _read(
    words_W: Array, state: Array, low: Any, frequency: Any, scale: Any
) -> None:  # pragma: no cover
    """Go on to the interval of a symbol, `low` parts up and `frequency` wide."""
    state[1] -= scale * low
    state[0] = scale * frequency
    if state[0] < _LEAST:
        word = np.uint64(0)
        if state[2] < np.uint64(words_W.size):
            word = np.uint64(words_W[np.int64(state[2])])
        state[0] <<= _WORD
        state[1] = state[1] << _WORD | word
        state[2] += np.uint64(1)


@compiled()
def read_bits(words_W: Array, state: Array, bits: int) -> Any:  # pragma: no cover
    """A number of so many bits; -1 where the stream points beyond 2^24."""
    scale = state[0] >> _SUM
    quantile = state[1] // scale
    if quantile >> _SUM != 0:
        return -1
    shift = np.uint64(PRECISION - bits)
    found = quantile >> shift
    _read(words_W, state, found << shift, np.uint64(1) << shift, scale)
    return np.int64(found)


@compiled()
def read_folded(
    words_W: Array, state: Array, start_L: Array, folded_N: Array
) -> int:  # pragma: no cover
    """Fill `folded_N`: the lengths of all numbers, then the bits of each length's numbers."""
    length_N = np.empty(folded_N.size, np.int64)
    longest = 0
    for i in range(folded_N.size):
        scale = state[0] >> _SUM
        quantile = state[1] // scale
        if quantile >> _SUM != 0:
            return BEYOND
        n = 0
        while start_L[n + 1] <= quantile:
            n += 1
        _read(words_W, state, start_L[n], start_L[n + 1] - start_L[n], scale)
        if state[2] > np.uint64(words_W.size + 1):
            return ENDED
        length_N[i], folded_N[i] = n, 0
        longest = max(longest, n)
    for n in range(1, longest + 1):
        for i in range(folded_N.size):
            if length_N[i] == n:
                low = read_bits(words_W, state, n)
                if low < 0:
                    return BEYOND
                folded_N[i] = (1 << n) - 1 + low
        if state[2] > np.uint64(words_W.size + 1):
            return ENDED
    return 0


@compiled()
def _read_turn(
    words_W: Array,
    state: Array,
    tables: Tables,
    present: Any,
    order_N: Array,
    end_T: Array,
    value_N: Array,
) -> Any:  # pragma: no cover
    """Fill `value_N` by the `tables` from the lowest to the highest `present`; escapes stay.

    Returns what is wrong with the stream, or 0, and the number of escapes, whose values' indexes
    are then the first of `order_N`.
    """
    low_T, size_T, first_T, starts, bucket_T = tables
    wide, point, word = state[0], state[1], np.int64(state[2])
    stop = escapes = 0
    for t in range(present[0], present[1] + 1):
        start, stop = stop, end_T[t]
        first, size, low = first_T[t], size_T[t], low_T[t]
        for i in range(start, stop):
            scale = wide >> _SUM
            quantile = point // scale
            if quantile >> _SUM != 0:
                return BEYOND, 0
            k = np.int64(bucket_T[t, quantile >> _BUCKET])
            while starts[first + k + 1] <= quantile:
                k += 1
            below = starts[first + k]
            point -= scale * below
            wide = scale * (starts[first + k + 1] - below)
            if wide < _LEAST:
                wide <<= _WORD
                point <<= _WORD
                if word < words_W.size:
                    point |= np.uint64(words_W[word])
                elif word > words_W.size:
                    return ENDED, 0
                word += 1
            value_N[order_N[i]] = low + k
            if k == size:
                order_N[escapes] = order_N[i]
                escapes += 1
    state[0], state[1], state[2] = wide, point, np.uint64(word)
    return 0, escapes


@compiled()
def read_rows(
    words_W: Array,
    state: Array,
    start_L: Array,
    tables: Tables,
    classes: Classes,
    machine_C: Array,
    doubled: Array,
    height: int,
    value_BC: Array,
) -> int:  # pragma: no cover
    """Fill `value_BC`, in turns of `height` rows; returns what is wrong with the stream, or 0.

    `state` is (range, point, index of the next word). With a trellis, `machine_C` has twice the
    state of each column and is led on by `doubled`; without one, both are empty.
    """
    rows, width = value_BC.shape
    parity_BC = np.zeros((rows, width), np.uint8)
    height = min(height, rows)
    book_N = np.empty(height * width, np.int32)
    order_N = np.empty(height * width, np.int32)
    end_T = np.empty(tables.lows.size, np.int64)
    for top in range(0, rows, height):
        bottom = min(top + height, rows)
        for c in range(machine_C.size):
            parity_BC[top, c] = machine_C[c] >> 1 & 1
        value_N = value_BC[top:bottom].reshape(-1)
        present = _sort(classes, parity_BC, top, bottom, book_N, order_N, end_T)
        wrong, escapes = _read_turn(words_W, state, tables, present, order_N, end_T, value_N)
        if escapes:
            folded_N = np.empty(escapes, np.int64)
            wrong = read_folded(words_W, state, start_L, folded_N)
            for i in range(escapes):
                n = order_N[i]
                t, folded = book_N[n], folded_N[i]
                if folded & 1:
                    value_N[n] = tables.lows[t] - (folded + 1) // 2
                else:
                    value_N[n] = tables.lows[t] + tables.sizes[t] + folded // 2
        if wrong:
            return wrong
        for c in range(machine_C.size):
            machine_C[c] = doubled[machine_C[c] + (value_N[c] & 1)]
    return 0


@compiled()
def spread(
    value_BC: Array, first_M: Array, width_M: Array, code_N: Array
) -> None:  # pragma: no cover
    """Put rows of matrices side by side where each matrix has them: from `first_M` of `code_N`."""
    for b in range(value_BC.shape[0]):
        c = 0
        for m in range(width_M.size):
            start = first_M[m] + b * width_M[m]
            for n in range(start, start + width_M[m]):
                code_N[n] = value_BC[b, c]
                c += 1


@compiled()
def count(
    code_RC: Any,
    parity_RC: Any,
    row_R: Any,
    column_C: Any,
    bound: Any,
    count_KPV: Any,
) -> None:  # pragma: no cover
    """Add 1 to the count of each code's class, parity and value.

    The class is the sum of its row's and its column's, or the nearest that exists; values beyond
    `bound` count as that.
    """
    last = count_KPV.shape[0] - 1
    for r in range(code_RC.shape[0]):
        for c in range(code_RC.shape[1]):
            k = min(max(row_R[r] + column_C[c], 0), last)
            v = min(max(np.int64(code_RC[r, c]), -bound), bound)
            count_KPV[k, parity_RC[r, c], v + bound] += 1


@compiled()
def _write(words_W: Array, state: Array, low: Any, frequency: Any) -> None:  # pragma: no cover
    """Narrow the interval to a symbol, `low` parts up and `frequency` wide."""
    scale = state[0] >> _SUM
    before = state[1]
    state[1] += scale * low
    if state[1] < before:
        carry(words_W, np.int64(state[2]))
    state[0] = scale * frequency
    if state[0] < _LEAST:
        words_W[np.int64(state[2])] = state[1] >> _WORD
        state[2] += np.uint64(1)
        state[1] <<= _WORD
        state[0] <<= _WORD


@compiled()
def carry(words_W: Array, count: Any) -> None:  # pragma: no cover
    """Add 1 to the number that the first `count` words are."""
    i = count - 1
    while words_W[i] == _LOW_WORD:
        words_W[i] = 0
        i -= 1
    words_W[i] += np.uint32(1)


@compiled()
def write_bits(words_W: Array, state: Array, value: int, bits: int) -> None:  # pragma: no cover
    """Append a number of so many bits."""
    shift = np.uint64(PRECISION - bits)
    _write(words_W, state, np.uint64(value) << shift, np.uint64(1) << shift)


@compiled()
def write_folded(
    words_W: Array, state: Array, start_L: Array, folded_N: Array
) -> None:  # pragma: no cover
    """Append the lengths of all numbers, then the bits of each length's numbers."""
    length_N = np.empty(folded_N.size, np.int64)
    longest = 0
    for i in range(folded_N.size):
        n = 0
        while folded_N[i] + 1 >> n + 1:
            n += 1
        length_N[i] = n
        longest = max(longest, n)
        _write(words_W, state, start_L[n], start_L[n + 1] - start_L[n])
    for n in range(1, longest + 1):
        for i in range(folded_N.size):
            if length_N[i] == n:
                write_bits(words_W, state, folded_N[i] + 1 - (1 << n), n)


@compiled()
def write_rows(
    words_W: Array,
    state: Array,
    start_L: Array,
    tables: Tables,
    classes: Classes,
    parity_BC: Array,
    height: int,
    value_BC: Array,
) -> None:  # pragma: no cover
    """Append `value_BC`, in turns of `height` rows.

    `state` is (range, lower end, number of words); `words_W` has room for `MOST_WORDS` a value.
    """
    rows, width = value_BC.shape
    book_N = np.empty(height * width, np.int32)
    order_N = np.empty(height * width, np.int32)
    end_T = np.empty(tables.lows.size, np.int64)
    folded_N = np.empty(height * width, np.int64)
    for top in range(0, rows, height):
        bottom = min(top + height, rows)
        flat_N = value_BC[top:bottom].reshape(-1)
        present = _sort(classes, parity_BC, top, bottom, book_N, order_N, end_T)
        stop = escapes = 0
        for t in range(present[0], present[1] + 1):
            start, stop = stop, end_T[t]
            first, size, low = tables.first[t], tables.sizes[t], tables.lows[t]
            for i in range(start, stop):
                k = np.int64(flat_N[order_N[i]]) - low
                if k < 0 or k >= size:
                    folded_N[escapes] = -2 * k - 1 if k < 0 else 2 * (k - size)
                    escapes += 1
                    k = np.int64(size)
                below = tables.starts[first + k]
                _write(words_W, state, below, tables.starts[first + k + 1] - below)
        if escapes:
            write_folded(words_W, state, start_L, folded_N[:escapes])
