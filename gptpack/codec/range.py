"""The context coder: matrices of signed integers <-> one range-coded stream.

The stream holds the classes of rows and columns, the frequency tables, and the codes. Codes go in
turns: a turn is a block of one matrix, or, where a trellis gives each code's parity, row r of all
matrices at once, since the parities of row r + 1 follow from the codes of row r. Within a turn they
go table by table.

Decoding adds, compares and divides integers: it gives the same codes on every machine.

Shape legend: R = rows, C = columns.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from gptpack.codec.coder import Ints, spread
from gptpack.codec.preface import Preface, Shape, bits_by_matrix, firsts, fit_preface
from gptpack.codec.stepper import Codes, Parity, TableStepper, joined
from gptpack.codec.stream import LIMIT, NOTHING, Book, Reader, Writer, check_limit
from gptpack.codec.tables import fit_span, histogram
from gptpack.errors import ArtifactError

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
    preface = fit_preface(codes, parities)
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
    code_N, first_M = np.empty(sum(map(math.prod, shapes)), dtype), firsts(map(math.prod, shapes))
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
    preface = fit_preface(codes, parities)
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
    return bits_by_matrix(preface, codes, parities)


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


def _narrow(codes: Codes, dtype: npt.DTypeLike) -> Codes:
    """The codes, all of which `dtype` can hold."""
    info = np.iinfo(np.dtype(dtype))
    if codes.size and not (info.min <= codes.min() and codes.max() <= info.max):
        raise ArtifactError(f"a decoded code is beyond {info.dtype.name}")
    return codes


def _shape(matrix: Codes) -> Shape:
    rows, columns = matrix.shape
    return rows, columns


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
