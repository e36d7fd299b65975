"""Sizes at one delta after another -> the finest delta whose size is within a target."""

from collections.abc import Callable

import numpy as np


def solve_delta(
    size_at: Callable[[float], int],
    target_bytes: int,
    *,
    start: float,
    octave_bits: float,
    finest: float,
    coarsest: float | None = None,
    tolerance: float = 1e-3,
    most: int = 12,
) -> float | None:
    """The finest delta found whose size is at most `target_bytes`; None if the coarsest is over.

    Positions are log2 delta. The first move is by `octave_bits`. Later ones follow the sizes seen:
    beyond them until two enclose the target, then between those two. The search ends within
    `tolerance` of the target, where the two are so close that no more than `tolerance` should lie
    between them (sizes of small files scatter by as much), at `finest`, or after `most` sizes. It
    is deterministic if `size_at` is.

    Args:
        start: delta to begin with, between `finest` and `coarsest`.
        octave_bits: bits that halving `start` should cost; one for each weight at high rates.
        coarsest: delta that decides whether there is a solution; None takes 4096 times `start`.
    """
    lowest = float(np.log2(finest))
    position = float(np.log2(max(start, finest)))
    highest = position + 12 if coarsest is None else float(np.log2(coarsest))
    position = min(position, highest)
    # aim a little under the target: over it a size is of no use
    aim = max(1.0, (1 - tolerance / 3) * target_bytes)
    close = tolerance * target_bytes * 8 / octave_bits
    over: tuple[float, int] | None = None
    best: tuple[float, int] | None = None
    last: tuple[float, int] | None = None
    run = 0
    for _ in range(most):
        size = size_at(2.0**position)
        fits = size <= target_bytes
        run = run + 1 if last is not None and fits == (last[1] <= target_bytes) else 1
        if fits:
            if best is None or position < best[0]:
                best = (position, size)
            if size >= (1 - tolerance) * target_bytes or position <= lowest:
                break
        else:
            if position >= highest:
                break
            if over is None or position > over[0]:
                over = (position, size)
        here = (position, size)
        if over is not None and best is not None:
            cliff = over[1] > (1 + 8 * tolerance) * target_bytes
            if abs(best[0] - over[0]) <= close and not cliff:
                break
            position = _between(over, best, aim, run=run if fits else -run)
        else:
            move = (size - aim) * 8 / octave_bits if last is None else _beyond(last, here, aim)
            position = highest if run >= most // 2 else min(max(position + move, lowest), highest)
        last = here
    return None if best is None else float(2.0 ** best[0])


def _beyond(last: tuple[float, int], here: tuple[float, int], aim: float) -> float:
    """How far to move on past `here`: a fifth further than a line through log sizes says."""
    moved = here[0] - last[0]
    fell = float(np.log(last[1] / here[1]))
    if fell * moved <= 0:
        return 2 * moved
    return 1.2 * moved * float(np.log(here[1] / aim)) / fell


def _between(over: tuple[float, int], best: tuple[float, int], aim: float, *, run: int) -> float:
    """The position at which a line through log sizes, `over` to `best`, meets `aim`; or the middle.

    `run` counts how often `best` (if negative, `over`) moved in a row. After two the other end
    counts half (the Illinois rule). After three, or where `over` stands for a refusal, it is the
    middle.
    """
    (low, above), (high, below) = over, best
    if abs(run) > 2 or above > 8 * below or not below < aim:
        return (low + high) / 2
    up, down = float(np.log(above / aim)), float(np.log(aim / below))
    if run == 2:
        up /= 2
    if run == -2:
        down /= 2
    return low + min(max(up / (up + down), 0.02), 0.98) * (high - low)
