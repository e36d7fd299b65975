"""This machine -> the memory that decoding may take, and one error where it does not suffice."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gptpack.errors import MissingDependencyError, out_of_memory

_SAID = (
    ("/proc/meminfo", r"^MemAvailable:\s+(\d+) kB", 1024),
    ("/sys/fs/cgroup/memory.max", r"^(\d+)$", 1),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", r"^(\d+)$", 1),
)
"""Where Linux says what is free, and the most that a container may have; the unit in bytes."""


def check_room(needed: int, limit_bytes: int | None) -> None:
    """Refuse to decode what takes more memory than `limit_bytes`; None takes what is free here.

    Raises:
        MissingDependencyError: it takes more.
    """
    most = available_bytes() if limit_bytes is None else limit_bytes
    if most is not None and needed > most:
        where = "this machine has free" if limit_bytes is None else "limit_bytes allows"
        raise MissingDependencyError(
            f"decoding takes {needed:,} bytes of memory, {where} {most:,}; use a machine with more"
        )


@contextmanager
def memory_here() -> Iterator[None]:
    """Turn a failed allocation inside into the error of a machine that lacks the memory."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise MissingDependencyError(
            "too little memory here to decode it; close other programs, or use a larger machine"
        ) from error


def physical_bytes() -> int | None:
    """Memory of the machine; None where the system does not say it."""
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def available_bytes() -> int | None:
    """Memory that this process can still have; None where the system does not say it."""
    physical = physical_bytes()
    found = [] if physical is None else [physical]
    for path, said, unit in _SAID:
        with suppress(OSError):
            if number := re.search(said, Path(path).read_text(), re.MULTILINE):
                found.append(unit * int(number[1]))
    with suppress(ImportError, OSError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            found.append(max(0, most - pages * resource.getpagesize()))
    return min(found, default=None)
