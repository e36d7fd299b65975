"""The codec `range` and the methods `uniform` and `trellis`, written from docs/format.md alone.

Python integers and fractions, nothing from gptpack. A broken MUST raises `RejectedError`.
"""

import math
import struct
from collections.abc import Sequence
from fractions import Fraction


class RejectedError(Exception):
    """The payload breaks a MUST of docs/format.md."""


def root(base: int, power: int) -> int:
    """``base ** (1 / 2^power)``, rounded down."""
    for _ in range(power):
        base = math.isqrt(base)
    return base


ROOTS = [root(2 ** (15 * 16 + j), 4) for j in range(16)]
SIGNIFICANDS = [(root(2 ** (24 * 64 + j), 6) + 1) // 2 for j in range(64)]
POLYNOMIALS = {
    4: (0o5, 0o2),
    8: (0o13, 0o4),
    16: (0o23, 0o4),
    32: (0o45, 0o10),
    64: (0o103, 0o24),
    128: (0o235, 0o126),
    256: (0o515, 0o362),
}


def must(condition: bool) -> None:
    if not condition:
        raise RejectedError


# Range coder.


class Stream:
    """The decoder's three numbers, and one method per kind of thing that a stream holds."""

    def __init__(self, payload: bytes, kind: int) -> None:
        must(len(payload) >= 5)
        found, count = struct.unpack_from("<BI", payload)
        must(found == kind)
        must(len(payload) == 5 + 4 * count)
        self.words = list(struct.unpack_from(f"<{count}I", payload, 5))
        self.missing = 0
        self.lower, self.range = 0, 2**64 - 1
        self.point = self.next_word() * 2**32 + self.next_word()

    def next_word(self) -> int:
        if self.words:
            return self.words.pop(0)
        self.missing += 1
        must(self.missing < 2)
        return 0

    def symbol(self, frequencies: Sequence[int]) -> int:
        scale = self.range >> 24
        quantile = (self.point - self.lower) % 2**64 // scale
        must(quantile < 2**24)
        k = start = 0
        if isinstance(frequencies, Equal):
            k = quantile // frequencies[0]
            start = k * frequencies[0]
        while quantile >= start + frequencies[k]:
            start += frequencies[k]
            k += 1
        self.lower = (self.lower + scale * start) % 2**64
        self.range = scale * frequencies[k]
        if self.range < 2**32:
            self.lower = self.lower * 2**32 % 2**64
            self.range *= 2**32
            self.point = self.point * 2**32 % 2**64 + self.next_word()
        return k

    def end(self) -> None:
        must(not self.words)
        must((self.point - self.lower) % 2**64 < 2**33 - 1)

    def bits(self, n: int) -> int:
        return self.symbol(Equal(n))

    def folded(self, count: int) -> list[int]:
        lengths = [self.symbol(LENGTHS) for _ in range(count)]
        values = [0] * count
        for n in range(1, 24):
            for i in range(count):
                if lengths[i] == n:
                    values[i] = 2**n - 1 + self.bits(n)
        return values

    def number(self) -> int:
        (u,) = self.folded(1)
        return -(u + 1) // 2 if u % 2 else u // 2

    def values(self, tables: Sequence["Table"], indexes: Sequence[int]) -> list[int]:
        places: dict[int, int] = {}
        for index, table in enumerate(tables):
            for i, wanted in enumerate(indexes):
                if wanted == index:
                    places[i] = self.symbol(table.frequencies)
        escaped = [i for i, place in places.items() if place == tables[indexes[i]].size]
        beyond = dict(zip(escaped, self.folded(len(escaped)), strict=True))
        found = []
        for i, index in enumerate(indexes):
            low, size = tables[index].low, tables[index].size
            if i not in beyond:
                found.append(low + places[i])
            elif beyond[i] % 2:
                found.append(low - (beyond[i] + 1) // 2)
            else:
                found.append(low + size + beyond[i] // 2)
        return found

    def integers(self, count: int) -> list[int]:
        centre = self.number()
        s = self.bits(7)
        slope, e = (4 + (s >> 1) % 4) * 2 ** (s >> 3), 1 + s % 2
        logs = [320 - ((slope * abs(k) ** e) >> 8) for k in range(-127, 128)]
        table = Table(-127, [*logs, 160])
        return [value + centre for value in self.values([table], [0] * count)]

    def tables(self, count: int, lanes: int) -> list["Table"]:
        fields = []
        for _ in ("low", "size", "escape", "peak", "centre", "curvature"):
            field = self.integers(count)
            for i in range(lanes, count):
                field[i] += field[i - lanes]
            fields.append(field)
        rows = list(zip(*fields, strict=True))
        for low, size, _, _, centre, curvature in rows:
            must(size >= 1 and low >= -255 and low + size - 1 <= 255)
            must(-4080 <= centre <= 4080 and 0 <= curvature <= 320)
        residuals = self.integers(sum(row[1] for row in rows))
        found = []
        for low, size, escape, peak, centre, curvature in rows:
            r, residuals = residuals[:size], residuals[size:]
            a = ROOTS[curvature % 16] * 2 ** (curvature >> 4)
            m = min(max(((centre + 8) >> 4) - low, 0), size - 1)
            logs = []
            for p in range(size):
                d = 16 * (low + p) - centre
                bend = sum((p - i + 1) * r[i] for i in range(m + 1, p + 1))
                bend += sum((i - p + 1) * r[i] for i in range(p, m))
                logs.append(peak - ((d * d * a) >> 34) + r[m] + bend)
            found.append(Table(low, [*logs, escape]))
        return found


class Equal(Sequence[int]):
    """``2^n`` equal frequencies."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return 2**self.n

    def __getitem__(self, index):
        return 2 ** (24 - self.n)


def frequencies(logs: Sequence[int]) -> list[int]:
    clipped = [min(max(log, 0), 320) for log in logs]
    weights = [ROOTS[c % 16] * 2 ** (c >> 4) for c in clipped]
    found = [w * (2**24 - len(weights)) // sum(weights) + 1 for w in weights]
    found[weights.index(max(weights))] += 2**24 - sum(found)
    return found


LENGTHS = frequencies([320 - 16 * min(n + 1, 19) for n in range(24)])


class Table:
    """A table of values."""

    def __init__(self, low: int, logs: Sequence[int]) -> None:
        self.low, self.size = low, len(logs) - 1
        self.frequencies = frequencies(logs)


# Payloads.


def decode_vector(payload: bytes, size: int) -> list[int]:
    """A payload of kind 3."""
    stream = Stream(payload, 3)
    mode = stream.number()
    must(0 <= mode <= 3)
    if mode < 2:
        found = stream.integers(size)
    else:
        centre = stream.number()
        tables = stream.tables(1, 1)
        found = [value + centre for value in stream.values(tables, [0] * size)]
    if mode % 2:
        for i in range(1, size):
            found[i] += found[i - 1]
    stream.end()
    return found


def decode_matrices(
    payload: bytes, shapes: Sequence[tuple[int, int]], states: Sequence[int] | None = None
) -> list[list[list[int]]]:
    """A payload of kind 1, or of kind 2 with the states of each matrix' trellis."""
    lanes = 1 if states is None else 2
    stream = Stream(payload, lanes)
    lowest = stream.number()
    classes = stream.number()
    must(1 <= classes <= 255)
    group = [0]
    for rise in stream.integers(classes - 1):
        must(rise in (0, 1))
        group.append(group[-1] + rise)
    indexes = [(stream.integers(rows), stream.integers(columns)) for rows, columns in shapes]
    tables = stream.tables(lanes * (group[-1] + 1), lanes)
    matrices: list[list[list[int]]] = [
        [[0] * columns for _ in range(rows)] for rows, columns in shapes
    ]
    machines = [[0] * columns for _, columns in shapes]
    for step in steps(shapes, by_rows=states is not None):
        wanted = []
        for m, r, c in step:
            found = indexes[m][0][r] + indexes[m][1][c] - lowest
            parity = machines[m][c] & 1
            wanted.append(lanes * group[min(max(found, 0), classes - 1)] + parity)
        values = stream.values(tables, wanted)
        for (m, r, c), value in zip(step, values, strict=True):
            matrices[m][r][c] = value
            if states is not None:
                machines[m][c] = next_state(machines[m][c], value, states[m])
    stream.end()
    return matrices


def steps(shapes, *, by_rows):
    """Each step as places (matrix, row, column) in the order of coding."""
    if by_rows:
        for r in range(max(rows for rows, _ in shapes)):
            yield [
                (m, r, c)
                for m, (rows, columns) in enumerate(shapes)
                if r < rows
                for c in range(columns)
            ]
        return
    for m, (rows, columns) in enumerate(shapes):
        height = max(1, 2**18 // columns)
        for top in range(0, rows, height):
            block = range(top, min(top + height, rows))
            yield [(m, r, c) for r in block for c in range(columns)]


# Values.


def next_state(state: int, code: int, states: int) -> int:
    h0, h1 = POLYNOMIALS[states]
    return (state >> 1) ^ ((state & 1) * (h0 >> 1)) ^ ((code & 1) * (h1 >> 1))


def points(codes: Sequence[Sequence[int]], states: int) -> list[list[int]]:
    found = [list(row) for row in codes]
    for c in range(len(codes[0])):
        state = 0
        for r, row in enumerate(codes):
            found[r][c] = 2 * row[c] + (state & 1)
            state = next_state(state, row[c], states)
    return found


def scale(index: int, per_octave: int) -> Fraction:
    must(-100 * per_octave <= index <= 101 * per_octave - 1)
    octave, place = divmod(index, per_octave)
    return SIGNIFICANDS[place * 64 // per_octave] * Fraction(2) ** (octave - 23)


def to_float32(value: Fraction) -> Fraction:
    """`value` to 24 bits, or to a multiple of 2^-149, to nearest even; no infinity."""
    if not value:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - 23, -149)
    rounded = round(value / unit) * unit
    must(abs(rounded) < 2**128)
    return rounded


def grid_values(
    codes: Sequence[Sequence[int]],
    row_scales: Sequence[int],
    column_scales: Sequence[int],
    states: int | None,
    offsets: Sequence[int] | None = None,
) -> list[list[Fraction]]:
    """The values of a tensor of `uniform`, or `trellis` with `states`, with or without offsets."""
    half = Fraction(1, 2) if states else Fraction(1)
    rows = [scale(index, 64) * half for index in row_scales]
    columns = [scale(index, 4) for index in column_scales]
    integers = points(codes, states) if states else codes
    values = [
        [to_float32(to_float32(k * row) * column) for k, column in zip(line, columns, strict=True)]
        for line, row in zip(integers, rows, strict=True)
    ]
    if offsets is None:
        return values
    added = [brain_float(bits) for bits in offsets]
    return [[to_float32(v + o) for v, o in zip(line, added, strict=True)] for line in values]


def brain_float(bits: int) -> Fraction:
    """The number that 16 bits of bfloat16 are."""
    exponent, fraction = bits >> 7 & 0xFF, bits & 0x7F
    must(exponent < 255)
    value = Fraction(fraction + 128 * (exponent > 0)) * Fraction(2) ** (max(exponent, 1) - 134)
    return -value if bits >> 15 else value
