"""An interrupt during a run -> a flag that the run looks at between steps, so that it can save."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

Handler = Callable[[int, Any], object]


@dataclass(slots=True)
class Stop:
    """Whether somebody asked the run to end, and how."""

    asked: int = 0
    """Number of the signal; 0 while there was none."""
    handlers: dict[int, Handler] = field(default_factory=dict)
    """What handles each signal outside the run."""

    def give_back(self) -> None:
        """Let signals end the process as they do outside the run."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def end(self) -> NoReturn:
        """Raise what the signal would have raised outside the run."""
        self.give_back()
        if self.asked:
            self.handlers[self.asked](self.asked, None)
        raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Hold back the first Ctrl-C, or SIGTERM where that raises; a second one ends all at once.

    Only the main thread gets signals: in another one nothing is held back.
    """
    stop = Stop()

    def ask(number: int, _: Any) -> None:
        stop.asked = number
        stop.give_back()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                stop.handlers[number] = handler
                signal.signal(number, ask)
    try:
        yield stop
    finally:
        stop.give_back()
