"""A loop over arrays -> the same loop as machine code, kept on disk where that is possible."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[F], F]:
    """A decorator: numba compiles the function, which holds no interpreter lock while it runs.

    Nothing is kept, and each process compiles anew, where neither the package's folder nor the
    user's cache can be written, and for code that has no file.

    Args:
        options: further ones of `numba.njit`.
    """

    def decorated(function: F) -> F:
        settings = {"nogil": True, "error_model": "numpy", **options}
        try:
            made: F = njit(cache=True, **settings)(function)
        except RuntimeError:  # numba's word for no place to keep it
            made = njit(**settings)(function)
        return made

    return decorated
