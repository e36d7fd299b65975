"""Independent items -> a function's results: a thread each, in which torch has no others."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from gptpack.cores import usable_cores

LEAST_ROOM = 1 << 30
"""Bytes that items in work may need together, however small the model is."""
ROOM = 5
"""Bytes that they may need for each weight of the model, which is four in float32."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    cost: Callable[[Item], float],
    threads: int | None = None,
    takes: Callable[[Item], float] = lambda _item: 0.0,
    weights: int = 0,
) -> list[Result]:
    """`function` of each of `items`, in their order; the costliest are begun first.

    Torch computes with one thread meanwhile: products of one matrix are small, and many threads
    that wait for each other took up to ten times as long on a busy machine (docs/log.md,
    2026-11-25).

    Args:
        function: releases Python's lock while it computes, and shares nothing between items.
        cost: of an item, in any unit.
        threads: None takes one per available core. The results do not depend on it.
        takes: bytes of memory that `function` needs for an item. However many threads there are,
            items that are in work together need no more than `LEAST_ROOM`, or than `ROOM` bytes for
            each of `weights`, but for one that alone needs more.

    Raises:
        Exception: that of the first item whose function raises one.
    """
    workers = threads or usable_cores()
    costliest_first = sorted(range(len(items)), key=lambda i: -cost(items[i]))
    room, taken, changed = max(LEAST_ROOM, ROOM * weights), 0, threading.Condition()

    def made(item: Item) -> Result:
        nonlocal taken
        size = int(takes(item))
        with changed:
            changed.wait_for(lambda: not taken or taken + size <= room)
            taken += size
        try:
            return function(item)
        finally:
            with changed:
                taken -= size
                changed.notify_all()

    with _one_thread_each(), ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        futures = {i: pool.submit(made, items[i]) for i in costliest_first}
    return [futures[i].result() for i in range(len(items))]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Torch computes with one thread in threads that are made inside; the setting is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
