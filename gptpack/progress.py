"""How long-running functions say where they are: one callback, given by whoever shows it."""

from collections.abc import Callable

Progress = Callable[[str, float, float], None]
"""Called with (phase, done, total); `total` is in the phase's own unit and may be 0 if unknown."""


def silent(phase: str, done: float, total: float) -> None:
    """The progress of a caller that shows none."""
