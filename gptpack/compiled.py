"""A function of loops over arrays -> the same, compiled by numba without the interpreter's lock."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from numba import config, njit

from gptpack.errors import MissingDependencyError

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[Function], Function]:
    """A decorator; what it compiles is kept on the disk, where a folder takes it.

    Neither the package's folder nor the user's need be writable, nor have room, and the code need
    not be in a file: each process compiles anew then.

    Raises:
        MissingDependencyError: numba is told not to compile.
    """
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        raise MissingDependencyError(
            "NUMBA_DISABLE_JIT is set, and codes would take hours without compilation; unset it"
        )
    settings = {"nogil": True, "error_model": "numpy", **options}

    def wrap(function: Function) -> Function:
        try:
            made: Any = njit(cache=True, **settings)(function)
        except RuntimeError:  # numba finds no place for its cache
            plain: Function = njit(**settings)(function)
            return plain
        save = made._cache.save_overload

        def save_if_possible(*arguments: Any) -> None:
            with suppress(OSError):
                save(*arguments)

        made._cache.save_overload = save_if_possible
        kept: Function = made
        return kept

    return wrap
