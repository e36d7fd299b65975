"""Symbols of a trellis -> points: the codes and their decoder, in integers and numpy only.

gptpack/quant/trellis.py encodes.

Shape legend: R = rows (outputs), C = columns (inputs). A path runs down a column, so that all
columns go on together and a row's parities are known before its symbols are decoded.

A column starts in state 0. A state's lowest bit, the parity, says whether the next point is even or
odd; the coded symbol k picks the point ``2 k + parity``, and the symbol's own lowest bit drives the
state on. The four subsets of Ungerboeck's amplitude codes are the points' residues modulo 4, and
``h0(D) parity + h1(D) (k mod 2) = 0`` (modulo 2) is the code's parity check, realized as a shift
register with feedback: Ungerboeck 1982, "Channel coding with multilevel/phase signals", table I;
as a quantizer, Marcellin and Fischer 1990, "Trellis coded quantization".
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.codec.polynomials import polynomials
from gptpack.codec.stepper import Codes, Parity, TableStepper
from gptpack.errors import QuantError


def next_states(
    state: npt.NDArray[np.int32], symbols: npt.NDArray[np.int32], states: int
) -> npt.NDArray[np.int32]:
    """The states after a row of symbols, ``[C]``. The row's parities are ``state & 1``."""
    h0, h1 = polynomials(states)
    odd = state & 1
    return (state >> 1) ^ (odd * np.int32(h0 >> 1)) ^ ((symbols & 1) * np.int32(h1 >> 1))


def decode_trellis(symbols: npt.NDArray[Any], states: int) -> npt.NDArray[np.int32]:
    """The points of coded symbols; a value is ``point * row scale * column scale / 2``.

    Args:
        symbols: integers of any width, ``[R, C]``, within ``[-2^30, 2^30)``.
        states: a key of `POLYNOMIALS`, or 1 for no trellis (the points are the symbols).

    Raises:
        QuantError: the array is another, or no code has so many states.
    """
    if symbols.ndim != 2 or symbols.dtype.kind not in "iu":
        raise QuantError(f"symbols are {symbols.dtype} {symbols.shape}; need integers [R, C]")
    limit = 2**30
    if symbols.size and not (-limit <= symbols.min() and symbols.max() < limit):
        raise QuantError("a trellis symbol is beyond 30 bits")
    symbols_RC = symbols.astype(np.int32)
    if states == 1:
        return symbols_RC
    symbols_RC *= 2
    symbols_RC += stepper(states).trace(symbols)
    return symbols_RC


def state_table(states: int) -> npt.NDArray[np.int32]:
    """The state after each state and lowest bit of a symbol, ``[S, 2]``."""
    state_S = np.arange(states, dtype=np.int32)
    return np.stack([next_states(state_S, np.full_like(state_S, bit), states) for bit in (0, 1)], 1)


def parities_of(codes: Sequence[Codes], states: Sequence[int]) -> list[Parity] | None:
    """The parity of each code, for matrices of so many `states` each; None without a trellis."""
    pairs = zip(codes, states, strict=True) if states else ()
    return [stepper(count).trace(matrix) for matrix, count in pairs] or None


@cache
def stepper(states: int) -> TableStepper:
    """The machine of the code with `states` states: one, however many matrices it codes."""
    return TableStepper(state_table(states))
