"""A payload of the context coder -> the bits of each of its matrices, for reports."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gptpack.codec.range import PLAIN, TRELLIS, Preface
from gptpack.codec.stepper import Codes, Parity
from gptpack.codec.stream import Reader, escape_bits

_BLOCK = 1 << 20
"""Codes whose bits are looked up at once, which takes some 50 bytes each."""


def matrix_bits(
    data: bytes, codes: Sequence[Codes], *, parities: Sequence[Parity] | None = None
) -> list[float]:
    """Bits of each matrix' codes in the payload `data`, which `encode_codes` made of them.

    Tables and classes, which all matrices share, are not counted. The codes' bits add up to the
    rest of the payload within some hundredths of a percent.

    Raises:
        ArtifactError: `data` is not a payload for matrices of these shapes.
    """
    shapes = [(matrix.shape[0], matrix.shape[1]) for matrix in codes]
    kind, lanes = (PLAIN, 1) if parities is None else (TRELLIS, 2)
    preface = Preface.read(Reader(data, kind), shapes, lanes)
    width = 1 + max(table.size for table in preface.book.tables)
    bits_BP = np.zeros((len(preface.book.tables), width))
    for index, table in enumerate(preface.book.tables):
        bits_BP[index, : table.size + 1] = table.bits
    found = []
    for index, matrix in enumerate(codes):
        height, total = max(1, _BLOCK // max(1, matrix.shape[1])), 0.0
        for start in range(0, len(matrix), height):
            rows = slice(start, start + height)
            books_BC = preface.books(index, rows)
            if parities is not None:
                books_BC += parities[index][rows]
            total += _bits(matrix[rows], books_BC, preface, bits_BP)
        found.append(total)
    return found


def _bits(
    codes_BC: Codes,
    books_BC: npt.NDArray[np.int32],
    preface: Preface,
    bits_BP: npt.NDArray[np.float64],
) -> float:
    values, books = codes_BC.astype(np.int64).ravel(), books_BC.ravel()
    tables = preface.book.joined
    offsets, sizes = values - tables.lows[books], tables.sizes[books].astype(np.int64)
    inside = (offsets >= 0) & (offsets < sizes)
    total = float(bits_BP[books, np.where(inside, offsets, sizes)].sum())
    if not inside.all():
        beyond = offsets[~inside]
        folded = np.where(beyond < 0, -2 * beyond - 1, 2 * (beyond - sizes[~inside]))
        total += float(escape_bits(folded).sum())
    return total
