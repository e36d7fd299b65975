"""The context coder as a codec of sections: integer codes, and the small arrays beside them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.codec.polynomials import POLYNOMIALS
from gptpack.codec.trellis import parities_of, stepper
from gptpack.errors import ArtifactError, MissingDependencyError

Array = npt.NDArray[Any]

DRAFT_SPARE = 24
"""Bytes added to an estimate, so that it is at least what `encode` makes."""


class OfCodes:
    """The codec ``range``: matrices share classes and tables, vectors are concatenated.

    Matrices whose slots have the parameter ``states`` are coded with their trellis' parities.
    """

    name = "range"

    def layouts(self, slots: "Sequence[Any]") -> tuple[str, ...]:
        # All 16-bit integers lie below the coder's limit, so that encoding never refuses a value.
        integers = all(slot.dtype.kind == "i" and slot.dtype.itemsize <= 2 for slot in slots)
        ranks = {len(slot.shape) for slot in slots}
        found = {slot.parameters.get("states") for slot in slots}
        states = found == {None} or all(type(n) is int and n in POLYNOMIALS for n in found)
        return ("row",) if integers and ranks in ({1}, {2}) and states else ()

    def encode(self, slots: "Sequence[Any]", arrays: Sequence[Array], layout: str) -> bytes:
        _need_numba()
        from gptpack.codec.range import encode_codes, encode_small

        del layout
        if arrays[0].ndim == 1:
            return encode_small(np.concatenate(arrays))
        return encode_codes(arrays, parities=parities_of(arrays, _states(slots)))

    def draft(self, slots: "Sequence[Any]", arrays: Sequence[Array], layout: str) -> bytes:
        """Zeros, as many as `encode` makes bytes of matrices or up to `DRAFT_SPARE` more, in a
        third of the time."""
        _need_numba()
        from gptpack.codec.range import estimate_bits

        del layout
        bits = estimate_bits(arrays, parities=parities_of(arrays, _states(slots)))
        return bytes(math.ceil(bits / 8) + DRAFT_SPARE)

    def decode(self, stored: bytes, slots: "Sequence[Any]", layout: str) -> list[Array]:
        _need_numba()
        from gptpack.codec.range import decode_codes, decode_small

        if layout != "row":
            raise ArtifactError(f"codec range has no layout {layout}")
        if not self.layouts(slots):
            raise ArtifactError(
                "codec range holds vectors or matrices of at most 16 bits, all with a trellis of "
                f"{', '.join(map(str, POLYNOMIALS))} states or all without one"
            )
        dtype = slots[0].dtype
        if len(slots[0].shape) == 1:
            sizes = [slot.shape[0] for slot in slots]
            return np.split(decode_small(stored, sum(sizes), dtype), np.cumsum(sizes)[:-1])
        steppers = [stepper(count) for count in _states(slots)]
        shapes = [(slot.shape[0], slot.shape[1]) for slot in slots]
        return decode_codes(stored, shapes, steppers=steppers or None, dtype=dtype)


def _need_numba() -> None:
    try:
        import numba  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "codec range needs a package that is not installed; pip install numba"
        ) from error


def _states(slots: "Sequence[Any]") -> list[int]:
    """Trellis states of each matrix; none if there is no trellis."""
    return [slot.parameters["states"] for slot in slots if "states" in slot.parameters]
