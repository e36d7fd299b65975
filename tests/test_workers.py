"""Matrices side by side: order, errors, and torch's threads."""

import threading
import time

import pytest
import torch

from gptpack.quant import workers
from gptpack.quant.workers import side_by_side


@pytest.mark.parametrize("threads", [1, 2, 7, None])
def test_results_come_in_the_order_of_the_items_whatever_is_begun_first(threads):
    begun = []

    def square(item):
        begun.append(item)
        return item**2

    found = side_by_side(square, range(6), cost=lambda item: item % 3, threads=threads)
    assert found == [0, 1, 4, 9, 16, 25]
    assert sorted(begun) == list(range(6))
    if threads == 1:
        assert begun == [2, 5, 1, 4, 0, 3]


def test_nothing_is_done_with_nothing():
    assert side_by_side(lambda item: item, [], cost=lambda item: 1.0) == []


def test_the_error_of_the_first_item_is_the_one_that_is_raised():
    def fail(item):
        time.sleep(0.01 * (3 - item))
        raise ValueError(item)

    with pytest.raises(ValueError, match=r"^0$"):
        side_by_side(fail, range(3), cost=lambda item: item, threads=3)


def test_torch_computes_alone_in_each_thread_and_as_before_afterwards():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = threading.Barrier(3, timeout=300)

        def counted(_):
            together.wait()
            return torch.get_num_threads()

        assert side_by_side(counted, range(3), cost=lambda item: 1.0, threads=3) == [1, 1, 1]
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            side_by_side(lambda item: 1 / item, [0], cost=lambda item: 1.0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_items_that_need_more_than_there_is_room_for_wait_for_each_other(monkeypatch):
    monkeypatch.setattr(workers, "LEAST_ROOM", 10)
    lock, inside, most = threading.Lock(), [], []

    def enter(item):
        with lock:
            inside.append(item)
            most.append(sum(inside))
        time.sleep(0.005)
        with lock:
            inside.remove(item)
        return item

    # one alone may need more than there is
    sizes = [4, 3, 25, 7, 2, 6, 5, 1]
    found = workers.side_by_side(
        enter, sizes, cost=lambda item: item, threads=8, takes=lambda item: item
    )
    assert found == sizes
    assert sorted(total for total in most if total > 10) == [25]
