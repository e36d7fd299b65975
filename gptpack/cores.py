"""Nothing -> the number of cores that this process may use."""

import os


def usable_cores() -> int:
    """Cores that the system leaves to this process, where it says so; else all there are."""
    # macOS and Windows do not say
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
