"""Phases of an evaluation -> the seconds of each, from the start of the process to its result.

A contest's ten minutes contain everything: imports, loading, decoding, compilation, scoring and
adaptation. Phases exclude one another (compiling inside scoring does not count as scoring), so that
they and the rest add up to the whole.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def process_age() -> float:
    """Seconds since this process began, where the system tells (Linux); else 0."""
    try:
        # The 22nd field, in clock ticks since boot; the second may hold spaces and brackets.
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


class Clock:
    """A ledger of phases, and a limit that counts from the start of the process.

    Args:
        limit_seconds: after so many the clock is `expired`; 0 has no limit.
        age: seconds that have passed already; they are the phase ``start``.
    """

    def __init__(
        self,
        limit_seconds: float = 0.0,
        *,
        age: float = 0.0,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.limit_seconds = limit_seconds
        self._now = now
        self._began = now() - age
        self._seconds: dict[str, float] = {"start": age} if age else {}
        self._running: list[str] = []
        self._since = now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book the time that is spent inside, without the phases within it, on `name`."""
        self._charge()
        self._running.append(name)
        self._seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        """Book the time since the last change of phase on the phase that was running."""
        now = self._now()
        if self._running:
            self._seconds[self._running[-1]] += now - self._since
        self._since = now

    def add(self, name: str, seconds: float) -> None:
        """Book time that was measured elsewhere and lies within no phase."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def seconds(self, name: str) -> float:
        """Seconds booked on `name` so far; a running phase counts up to its last change."""
        return self._seconds.get(name, 0.0)

    @property
    def total(self) -> float:
        """Seconds since the clock's start, `age` included."""
        return self._now() - self._began

    @property
    def expired(self) -> bool:
        """Whether the limit has come."""
        return bool(self.limit_seconds) and self.total >= self.limit_seconds

    def ledger(self) -> dict[str, float]:
        """Seconds of each phase, ``other`` and ``total``."""
        total = self.total
        known = sum(self._seconds.values())
        return {**self._seconds, "other": max(0.0, total - known), "total": total}
