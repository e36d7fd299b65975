"""The length of a text -> which windows score which targets, in plain and sliding evaluation.

Target t is token t + 1, predicted from tokens before it. Window k ends `stride` targets after
window k - 1 and scores those; window 0 scores the first `head`. A window reads at most `context`
tokens, so with the usual head, `context`, window k reads from token ``k * stride``, and every
target is scored exactly once and sees at least ``context - stride + 1`` tokens (or all there are).
The last window may be short: it is never moved back, so that what a target sees depends on its
position alone and not on how much text follows it. Plain evaluation is ``stride = context``.

A plan may have several spans that see nothing of each other, such as documents. Each has its own
windows, counted from its start.

The reference (openai/parameter-golf) leaves the targets after the last whole context unscored:
that is ``tail="drop"``, for any stride. With the same tail, every stride scores the same targets.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from gptpack.errors import ConfigError

Tail = Literal["score", "drop"]
Indices = npt.NDArray[np.int64]

BUCKET = 64
"""Unit of the length in which a text shorter than a window is run."""


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Several windows as arrays ``[N]``.

    A window that the text's end cuts has the `size` and `asked` of a whole one. Only its targets
    before `stop` exist; scored ones are in the same places as in a whole window.
    """

    start: Indices
    """First target of each window."""
    stop: Indices
    """One after the last target of each window."""
    size: Indices
    """Number of targets of the whole window."""
    asked: Indices
    """Number of those, the last ones, that the whole window scores."""

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, chosen: slice | Indices) -> "Windows":
        return Windows(self.start[chosen], self.stop[chosen], self.size[chosen], self.asked[chosen])

    @property
    def first_scored(self) -> Indices:
        """First scored target of each window."""
        return self.start + self.size - self.asked

    @property
    def scored(self) -> Indices:
        """Number of scored targets of each window."""
        return self.stop - self.first_scored


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The windows over `targets` targets, computed when asked for: there may be a million."""

    targets: int
    context: int
    stride: int
    head: int = 0
    """Targets that a span's first window scores; 0 is `context`."""
    spans: tuple[int, ...] = (0,)
    """First targets of the spans."""
    _bounds: Indices = field(init=False, repr=False, compare=False)
    _firsts: Indices = field(init=False, repr=False, compare=False)
    """First window of each span, and the number of windows."""

    def __post_init__(self) -> None:
        if self.targets < 1:
            raise ConfigError(f"targets={self.targets} must be at least 1")
        if self.context < 1:
            raise ConfigError(f"context={self.context} must be at least 1")
        if not 1 <= self.stride <= self.context:
            raise ConfigError(f"stride={self.stride} must be 1 to context={self.context}")
        if not 0 <= self.head <= self.context:
            raise ConfigError(f"head={self.head} must be 0 to context={self.context}")
        bounds = np.array([*self.spans, self.targets], np.int64)
        if bounds[0] != 0 or (np.diff(bounds) < 1).any():
            raise ConfigError("spans must begin with target 0, rise, and end before the text does")
        counts = 1 + np.maximum(
            0, -(-(np.diff(bounds) - (self.head or self.context)) // self.stride)
        )
        object.__setattr__(self, "_bounds", bounds)
        object.__setattr__(self, "_firsts", np.concatenate(([0], np.cumsum(counts))))

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def windows_of(self, span: int) -> range:
        """The windows of a span."""
        return range(int(self._firsts[span]), int(self._firsts[span + 1]))

    def select(self, indices: Indices) -> Windows:
        """The windows `indices`, each 0 to ``len(self) - 1``."""
        span = np.searchsorted(self._firsts, indices, side="right") - 1
        nth = indices - self._firsts[span]
        whole_stop = (self.head or self.context) + nth * self.stride
        start = np.maximum(0, whole_stop - self.context)
        length = self._bounds[span + 1] - self._bounds[span]
        return Windows(
            start=self._bounds[span] + start,
            stop=self._bounds[span] + np.minimum(whole_stop, length),
            size=whole_stop - start,
            asked=np.where(nth == 0, self.head or self.context, self.stride),
        )


def default_tail(context: int, stride: int | None) -> Tail:
    """``drop`` for plain evaluation, as the reference does; ``score`` for a sliding window."""
    return "drop" if stride is None or stride == context else "score"


def plan_windows(
    tokens: int,
    *,
    context: int,
    stride: int | None = None,
    tail: Tail | None = None,
    limit_tokens: int = 0,
    head: int = 0,
    documents: Indices | None = None,
) -> Plan:
    """The windows over a text of `tokens` tokens.

    Args:
        stride: None is `context`, plain evaluation.
        tail: ``"drop"`` scores whole contexts only, ``(tokens - 1) // context * context`` targets,
            whatever the stride; ``"score"`` scores all ``tokens - 1``. None: `default_tail`.
        limit_tokens: plan for the first so many targets only; 0 plans for all.
        head: targets that the first window scores; 0 is `context`.
        documents: where documents begin; each is then a span of its own, and the tail is scored.

    Raises:
        ConfigError: the stride lies outside 1..context, the limit is negative, or there is nothing
            to score.
    """
    if context < 1:
        raise ConfigError(f"context={context} must be at least 1")
    if limit_tokens < 0:
        raise ConfigError(f"limit_tokens={limit_tokens} must not be negative")
    targets = max(0, tokens - 1)
    targets = min(targets, limit_tokens) if limit_tokens else targets
    if documents is None and (tail or default_tail(context, stride)) == "drop":
        whole = targets // context * context
        if targets and not whole:
            raise ConfigError(
                f"{targets:,} targets do not fill one context of {context:,}; "
                "take a smaller context, or score the tail"
            )
        targets = whole
    if documents is not None and tail == "drop":
        raise ConfigError("masked documents have no common tail to drop; score it")
    if not targets:
        raise ConfigError(f"{tokens:,} tokens have no target to score; at least 2 are needed")
    spans = (0,)
    if documents is not None:
        spans = tuple(np.union1d([0], documents[documents < targets]).tolist())
    return Plan(
        targets=targets,
        context=context,
        stride=context if stride is None else stride,
        head=head,
        spans=spans,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Windows that go through the model together, each padded to `size` targets."""

    windows: Windows
    size: int
    asked: int
    """Number of the last positions that are asked for their targets."""


def batches(windows: Windows, batch_tokens: int, *, shorten: bool = False) -> Iterator[Batch]:
    """Batches of at most `batch_tokens` tokens (or one window) that agree in shape.

    Shapes come in the order of their first window, and windows of a shape in their own.

    Args:
        shorten: run windows that ask for all their targets in less than their size where they are
            cut, so that many short documents do not cost whole windows. The model's positions must
            not depend on the length of its input.
    """
    size, asked = windows.size, windows.asked
    if shorten:
        short = -(-(windows.stop - windows.start) // BUCKET) * BUCKET
        size = np.where(asked == size, np.minimum(size, short), size)
        asked = np.minimum(asked, size)
    _, first, shape = np.unique(size << 32 | asked, return_index=True, return_inverse=True)
    for group in np.argsort(first):
        run = np.flatnonzero(shape == group)
        one = int(run[0])
        rows = max(1, batch_tokens // int(size[one]))
        for start in range(0, len(run), rows):
            chosen = windows[run[start : start + rows]]
            yield Batch(chosen, int(size[one]), int(asked[one]))
