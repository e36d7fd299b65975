"""Memory that a library has freed -> the system, where the C library keeps it for later."""

import ctypes
import gc
from contextlib import suppress


def give_back() -> None:
    """Return freed memory to the system at once, by glibc's `malloc_trim`; elsewhere do nothing.

    glibc keeps blocks below 32 MB that were freed among others. After a pass back through a model
    of 135 M parameters those were 2.6 GB.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
