"""Codes of a trellis -> their parities, row by row or of a whole matrix at once.

A row's parities follow from the lowest bits of the codes of the rows above it, so a whole matrix
goes eight rows at a time, by one look into a table of their bits: the parities of 27 M codes take
0.04 s where single rows take 0.24 (docs/log.md, 2026-11-25).

Shape legend: R = rows, C = columns, S = states, N = S * 256.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.integer]
Parity = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.integer]
States = npt.NDArray[np.intp]


class TableStepper:
    """A state machine driven by the symbols' lowest bits; a state's lowest bit is the parity."""

    def __init__(self, next_states: Bits) -> None:
        """`next_states` holds the state after each state and bit, ``[S, 2]``; 0 is the first."""
        self.next_states = next_states
        self._doubled = 2 * next_states.astype(np.intp).ravel()

    def trace(self, codes: Codes) -> Parity:
        """The parity of each code of a matrix that starts in state 0: ``[R, C]``."""
        next_N, parities_N = _eight_rows(self._doubled.tobytes())
        rows, columns = codes.shape
        bit_RC = np.zeros((rows + -rows % 8, columns), dtype=np.uint8)
        np.bitwise_and(codes, 1, out=bit_RC[:rows], casting="unsafe")
        # numpy's packbits and unpackbits take nine times as long down columns
        bits = np.zeros((len(bit_RC) // 8, columns), dtype=np.uint8)
        for row in range(min(8, rows)):
            bits |= bit_RC[row::8] << row
        place_C: States = np.zeros(columns, dtype=np.intp)
        for index, bits_C in enumerate(bits):
            place_C += bits_C
            bits[index] = parities_N.take(place_C)
            place_C = next_N.take(place_C)
        for row in range(min(8, rows)):
            np.bitwise_and(bits >> row, 1, out=bit_RC[row::8])
        return bit_RC[:rows]


@lru_cache(maxsize=8)
def _eight_rows(doubled: bytes) -> tuple[States, npt.NDArray[np.uint8]]:
    """Tables by state and eight bits, ``[N]``: 256 times the next state, and the bits' parities."""
    doubled_S2 = np.frombuffer(doubled, dtype=np.intp)
    state_N, bits_N = np.divmod(np.arange(128 * doubled_S2.size), 256)
    parities_N = np.zeros(state_N.size, dtype=np.uint8)
    for row in range(8):
        parities_N |= ((state_N & 1) << row).astype(np.uint8)
        state_N = doubled_S2.take(2 * state_N + (bits_N >> row & 1)) // 2
    return 256 * state_N, parities_N


def joined(
    steppers: Sequence[TableStepper], columns: Sequence[int]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """One machine for matrices of so many columns next to each other, which share equal tables.

    Returns:
        Twice the state that follows each state and bit, ``[2 S]``, and twice the state that each
        column begins in, ``[C]``.
    """
    offsets: dict[bytes, int] = {}
    tables: list[Bits] = [np.zeros((0, 2), np.intp)]
    size = 0
    first = []
    for stepper in steppers:
        table = stepper.next_states.astype(np.intp)
        if (key := table.tobytes()) not in offsets:
            offsets[key] = size
            # a joint state's lowest bit is the parity only if tables begin at even states
            tables.append(np.pad(table + size, ((0, len(table) % 2), (0, 0))))
            size += len(tables[-1])
        first.append(offsets[key])
    doubled = 2 * np.concatenate(tables).ravel()
    return doubled.astype(np.int32), 2 * np.repeat(np.array(first, np.int32), columns)
