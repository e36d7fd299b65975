"""A way to hold a tensor -> the arrays that it consists of. No numpy, so that headers can be read.

A method names the integer or float arrays that are coded. `METHODS` lists all methods, and
docs/format.md specifies each; types.py computes their values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gptpack.codec.polynomials import POLYNOMIALS

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """One coded array of a method: its name, little-endian dtype, and shape."""

    name: str
    dtype: str
    shape: Callable[[Shape], Shape]

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return int(self.dtype[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to hold a tensor, and its arrays."""

    arrays: tuple[ArraySpec, ...]
    ranks: tuple[int, ...] | None
    """Ranks of the tensors that the method can hold; None takes any."""
    states: tuple[int, ...] = ()
    """Values of the parameter ``states``; a method without a trellis has none of them."""

    def problem(self, parameters: Mapping[str, int | float]) -> str | None:
        """The error in a tensor's `parameters`, in words; None if there is none."""
        if not self.states:
            return "parameter states without a trellis" if "states" in parameters else None
        found = parameters.get("states")
        if type(found) is int and found in self.states:
            return None
        known = ", ".join(map(str, self.states))
        return f"{found!a:.60} trellis states, must be one of {known}"


def _same(shape: Shape) -> Shape:
    return shape


def _rows(shape: Shape) -> Shape:
    return shape[:1]


def _columns(shape: Shape) -> Shape:
    return shape[1:]


def _scalar(shape: Shape) -> Shape:
    return ()


_GRID_ARRAYS = (
    ArraySpec(name="codes", dtype="<i2", shape=_same),
    ArraySpec(name="row_scales", dtype="<i2", shape=_rows),
    ArraySpec(name="column_scales", dtype="<i2", shape=_columns),
)

_OFFSET_ARRAYS = (
    *_GRID_ARRAYS,
    ArraySpec(name="column_offsets", dtype="<u2", shape=_columns),
)

METHODS: dict[str, Method] = {
    "float32": Method(arrays=(ArraySpec(name="values", dtype="<f4", shape=_same),), ranks=None),
    "float16": Method(arrays=(ArraySpec(name="values", dtype="<f2", shape=_same),), ranks=None),
    "bfloat16": Method(arrays=(ArraySpec(name="values", dtype="<u2", shape=_same),), ranks=None),
    "int8": Method(
        arrays=(
            ArraySpec(name="codes", dtype="|i1", shape=_same),
            ArraySpec(name="scales", dtype="<f2", shape=_rows),
        ),
        ranks=(2,),
    ),
    "int8-tensor": Method(
        arrays=(
            ArraySpec(name="codes", dtype="|i1", shape=_same),
            ArraySpec(name="scales", dtype="<f4", shape=_scalar),
        ),
        ranks=None,
    ),
    "uniform": Method(arrays=_GRID_ARRAYS, ranks=(2,)),
    "trellis": Method(arrays=_GRID_ARRAYS, ranks=(2,), states=tuple(POLYNOMIALS)),
    "uniform-offsets": Method(arrays=_OFFSET_ARRAYS, ranks=(2,)),
    "trellis-offsets": Method(arrays=_OFFSET_ARRAYS, ranks=(2,), states=tuple(POLYNOMIALS)),
}
GRID_METHODS = ("trellis", "uniform", "trellis-offsets", "uniform-offsets")
"""Methods whose tensors are on a grid."""
