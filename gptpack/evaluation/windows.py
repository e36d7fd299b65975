"""Which windows score which targets: the whole policy of plain and sliding evaluation.

Target t is token t + 1, predicted from tokens before it. Window k reads from token ``k * stride``;
window 0 scores all its targets, each later one only its last `stride`, so every target is scored
exactly once and sees at least ``context - stride + 1`` tokens (or all there are). The last window
may be short: it is never moved back, so that what a target sees depends on its position alone and
not on how much text follows it. Plain evaluation is ``stride = context``.

The reference (openai/parameter-golf) leaves the targets after the last whole context unscored:
that is ``tail="drop"``, for any stride. With the same tail, every stride scores the same targets.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from gptpack.errors import ConfigError

Tail = Literal["score", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Targets ``start .. start + length - 1``, of which the last `scored` are scored."""

    start: int
    length: int
    scored: int

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def first_scored(self) -> int:
        return self.stop - self.scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The windows over `targets` targets, computed when asked for: there may be a million."""

    targets: int
    context: int
    stride: int

    def __post_init__(self) -> None:
        if self.targets < 1:
            raise ConfigError(f"targets={self.targets} must be at least 1")
        if self.context < 1:
            raise ConfigError(f"context={self.context} must be at least 1")
        if not 1 <= self.stride <= self.context:
            raise ConfigError(f"stride={self.stride} must be 1 to context={self.context}")

    def __len__(self) -> int:
        return 1 + max(0, -(-(self.targets - self.context) // self.stride))

    def window(self, index: int) -> Window:
        """Window `index`, 0 to ``len(self) - 1``."""
        start = index * self.stride
        length = min(self.context, self.targets - start)
        scored_before = 0 if index == 0 else start - self.stride + self.context
        return Window(start=start, length=length, scored=start + length - scored_before)

    def __iter__(self) -> Iterator[Window]:
        return (self.window(index) for index in range(len(self)))


def default_tail(context: int, stride: int | None) -> Tail:
    """Plain evaluation drops the tail as the reference does; a sliding window scores it."""
    return "drop" if stride is None or stride == context else "score"


def plan_windows(
    tokens: int,
    *,
    context: int,
    stride: int | None = None,
    tail: Tail | None = None,
    limit_tokens: int = 0,
) -> Plan:
    """The windows over a text of `tokens` tokens.

    Args:
        stride: None is `context`, plain evaluation.
        tail: ``"drop"`` scores whole contexts only, ``(tokens - 1) // context * context`` targets,
            whatever the stride; ``"score"`` scores all ``tokens - 1``. None: `default_tail`.
        limit_tokens: plan for the first so many targets only; 0 plans for all.

    Raises:
        ConfigError: a stride outside 1..context, a negative limit, or nothing to score.
    """
    if context < 1:
        raise ConfigError(f"context={context} must be at least 1")
    if limit_tokens < 0:
        raise ConfigError(f"limit_tokens={limit_tokens} must not be negative")
    targets = max(0, tokens - 1)
    targets = min(targets, limit_tokens) if limit_tokens else targets
    if (tail or default_tail(context, stride)) == "drop":
        whole = targets // context * context
        if targets and not whole:
            raise ConfigError(
                f"{targets:,} targets do not fill one context of {context:,}; "
                "take a smaller context, or score the tail"
            )
        targets = whole
    if not targets:
        raise ConfigError(f"{tokens:,} tokens have no target to score; at least 2 are needed")
    return Plan(targets=targets, context=context, stride=context if stride is None else stride)


def split(count: int, rank: int, ranks: int) -> range:
    """The contiguous share of `count` windows that `rank` of `ranks` scores."""
    return range(count * rank // ranks, count * (rank + 1) // ranks)


def batches(plan: Plan, windows: range, rows: int) -> Iterator[range]:
    """Cut `windows` into runs of at most `rows` that agree in length and in what they score."""
    start = windows.start
    while start < windows.stop:
        first = plan.window(start)

        def alike(index: int, first: Window = first) -> bool:
            window = plan.window(index)
            return (window.length, window.scored) == (first.length, first.scored)

        stop = start + sum(
            1 for _ in takewhile(alike, range(start, min(start + rows, windows.stop)))
        )
        yield range(start, stop)
        start = stop
