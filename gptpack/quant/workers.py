"""Independent items -> a function's results: a thread each, in which torch has no others."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    cost: Callable[[Item], float],
    threads: int | None = None,
) -> list[Result]:
    """`function` of each of `items`, in their order; the costliest are begun first.

    Torch computes with one thread meanwhile: products of one matrix are small, and many threads
    that wait for each other took up to ten times as long on a busy machine (docs/log.md,
    2026-11-25).

    Args:
        function: releases Python's lock while it computes, and shares nothing between items.
        cost: of an item, in any unit.
        threads: None takes one per available core. The results do not depend on it.

    Raises:
        Exception: that of the first item whose function raises one.
    """
    workers = threads or len(os.sched_getaffinity(0))
    costliest_first = sorted(range(len(items)), key=lambda i: -cost(items[i]))
    with _one_thread_each(), ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        futures = {i: pool.submit(function, items[i]) for i in costliest_first}
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
