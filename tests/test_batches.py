"""Loaders: shards hold 0, 1, 2, ..., so a window's first token says which window it is."""

import dataclasses
import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptpack.data.batches import AHEAD_STEPS, Batches, Prefetcher, open_batches
from gptpack.data.coprime import SNAPSHOT_STEPS, Coprime, walk
from gptpack.data.cut import CutDocuments
from gptpack.data.orders import (
    DataConfig,
    Loader,
    Shuffled,
    coprime_shards,
    coprime_stride,
    generator,
)
from gptpack.data.shards import Shard, find_shards, write_shard
from gptpack.errors import DataError
from gptpack.ranks import Ranks

CPU = torch.device("cpu")
LOADERS = get_args(Loader)
BOS = 1
MIX = DataConfig(loader="coprime", mix_shards_start=1, mix_shards_end=4, mix_steps=9)
lengths = st.lists(st.integers(1, 60), min_size=1, max_size=6)
contexts = st.integers(1, 12)
seeds = st.integers(-(2**31), 2**63 - 1)


def counting(sizes: list[int]) -> list[np.ndarray]:
    """Shards of these sizes that hold 0, 1, 2, ... together."""
    return np.split(np.arange(sum(sizes), dtype=np.uint16), np.cumsum(sizes)[:-1])


def documents(sizes: list[int], starts: set[int]) -> list[np.ndarray]:
    """Shards of zeros with `BOS` at `starts` of their stream."""
    stream = np.zeros(sum(sizes), np.uint16)
    stream[[start for start in starts if start < len(stream)]] = BOS
    return np.split(stream, np.cumsum(sizes)[:-1])


def example(loader: str, sizes: list[int]) -> list[np.ndarray]:
    """Shards that the loader finds windows in: `counting`, with documents of 3 where it needs."""
    return documents(sizes, set(range(0, sum(sizes), 3))) if loader == "bos" else counting(sizes)


def opened(
    loader: str, shards: list[np.ndarray], context: int, sequences: int, seed: int = 0
) -> Batches:
    config = dataclasses.replace(MIX, loader=loader)
    sizes = {"context": context, "sequences": sequences}
    return open_batches(shards, config, seed=seed, bos=BOS, **sizes)


def whole(batches: Batches, step: int, sequences: int) -> torch.Tensor:
    """Inputs of a step, over all ranks."""
    return batches.batch(step, range(sequences))[0]


# what every loader promises


@settings(deadline=None, max_examples=120)
@given(
    loader=st.sampled_from(LOADERS),
    sizes=lengths,
    context=contexts,
    sequences=st.integers(1, 7),
    world=st.integers(1, 5),
    steps=st.lists(st.integers(0, 300), min_size=1, max_size=4),
    seed=seeds,
)
def test_ranks_and_resuming_do_not_change_the_stream(
    loader, sizes, context, sequences, world, steps, seed
):
    shards = example(loader, sizes)
    try:
        going = opened(loader, shards, context, sequences, seed)
    except DataError:
        return
    for step in sorted(set(steps)):
        inputs, targets = going.batch(step, range(sequences))
        assert torch.equal(targets[:, :-1], inputs[:, 1:])
        resumed = opened(loader, shards, context, sequences, seed)
        pieces = [
            resumed.batch(step, Ranks(rank, world, CPU).share(sequences)) for rank in range(world)
        ]
        assert torch.equal(torch.cat([piece[0] for piece in pieces]), inputs)
        assert torch.equal(torch.cat([piece[1] for piece in pieces]), targets)
    for step in steps:
        assert torch.equal(
            whole(going, step, sequences),
            whole(opened(loader, shards, context, sequences, seed), step, sequences),
        )


@pytest.mark.parametrize("loader", ["coprime", "coprime-shards", "shuffled"])
def test_another_seed_gives_another_stream(loader):
    shards = counting([20] * 101)
    streams = {
        tuple(whole(opened(loader, shards, 4, 50, seed), 0, 50)[:, 0].tolist()) for seed in range(6)
    }
    assert len(streams) == 6


@pytest.mark.parametrize("loader", LOADERS)
def test_the_names_of_the_shards_do_not_matter(loader, tmp_path):
    sizes = [90, 120, 77]
    for folder, name in (("a", "corpus"), ("elsewhere", "x")):
        (tmp_path / folder).mkdir()
        for index, tokens in enumerate(counting(sizes)):
            write_shard(tmp_path / folder / f"{name}_train_{index:06d}.bin", tokens)
    streams = []
    for folder in ("a", "elsewhere"):
        paths = find_shards(tmp_path / folder, "train")
        shards = [Shard.open(path).tokens for path in paths]
        batches = opened(loader, shards, 8, 6)
        streams.append(torch.cat([whole(batches, step, 6) for step in range(9)]))
    assert torch.equal(*streams)


@pytest.mark.parametrize("loader", LOADERS)
def test_32_bit_tokens_give_the_windows_that_the_same_tokens_in_16_bits_give(loader):
    narrow = example(loader, [90, 120, 77])
    wide = [np.where(shard == BOS, BOS, shard + np.uint32(70_000)) for shard in narrow]
    for step in range(9):
        inputs = whole(opened(loader, wide, 8, 6), step, 6)
        expected = whole(opened(loader, narrow, 8, 6), step, 6)
        assert torch.equal(inputs, torch.where(expected == BOS, BOS, expected + 70_000))


@pytest.mark.parametrize("loader", LOADERS)
def test_shards_without_a_window_are_refused_with_a_way_out(loader):
    with pytest.raises(DataError, match=r"shorten model.context"):
        opened(loader, [np.ones(3, np.uint16)], 4, 1)


# sequential


@given(sizes=lengths, context=contexts, sequences=st.integers(1, 7), step=st.integers(0, 50))
def test_the_sequential_loader_goes_round_and_round(sizes, context, sequences, step):
    total = sum(sizes)
    if total <= context:
        return
    inputs = whole(opened("sequential", counting(sizes), context, sequences), step, sequences)
    first = step * sequences * context
    assert torch.equal(inputs.flatten(), (first + torch.arange(inputs.numel())) % total)


@given(count=st.integers(1, 60), seed=seeds)
def test_shards_in_strides_are_all_of_the_shards(count, seed):
    order = coprime_shards(count, seed=seed)
    assert sorted(order) == list(range(count))
    steps = {(b - a) % count for a, b in itertools.pairwise(order)}
    assert len(steps) <= 1


def test_shards_in_strides_are_read_one_after_another():
    sizes = [40, 30, 20, 50, 10]
    order = coprime_shards(5, seed=3)
    stream = np.concatenate([counting(sizes)[index] for index in order])
    batches = opened("coprime-shards", counting(sizes), 10, 5, seed=3)
    inputs = torch.cat([whole(batches, step, 5) for step in range(3)])
    assert inputs.flatten().tolist() == stream.tolist()


# blocks


def crosses(start: int, context: int, sizes: list[int]) -> bool:
    """Whether a window's inputs and last target are of more than one shard."""
    ends = np.cumsum(sizes)
    return np.searchsorted(ends, start, "right") != np.searchsorted(ends, start + context, "right")


@settings(deadline=None)
@given(
    loader=st.sampled_from(["coprime", "shuffled", "bos"]),
    sizes=lengths,
    context=contexts,
    sequences=st.integers(1, 7),
    seed=seeds,
)
def test_blocks_never_cross_from_one_shard_into_another(loader, sizes, context, sequences, seed):
    if max(sizes) <= context:
        return
    shards = example(loader, sizes)
    try:
        batches = opened(loader, shards, context, sequences, seed)
    except DataError:
        assert loader == "bos"
        return
    for step in range(20):
        for start in batches.order.positions(step):
            assert 0 <= start <= sum(sizes) - context - 1
            assert not crosses(int(start), context, sizes)


@given(
    size=st.integers(0, 60),
    starts=st.sets(st.integers(0, 59)),
    most=st.integers(1, 30),
    place=st.tuples(st.integers(0, 70), st.integers(0, 70)),
)
def test_a_view_of_cut_documents_is_read_like_the_documents_cut(size, starts, most, place):
    shard = counting([size])[0]
    shard[[start for start in starts if start < size]] = BOS
    wanted = [
        token
        for document in np.split(shard, np.flatnonzero(shard == BOS))
        for token in document[:most].tolist()
    ]
    view = CutDocuments(shard, bos=BOS, most=most)
    assert len(view) == len(wanted)
    assert np.asarray(view).tolist() == wanted
    found = view[min(place) : max(place)]
    assert found.tolist() == wanted[min(place) : max(place)]
    assert found.dtype == shard.dtype


@pytest.mark.parametrize("loader", ["bos", "sequential"])
def test_batches_of_cut_documents_hold_no_more_of_each(loader):
    shards = documents([90, 60], {*range(0, 90, 9), *range(90, 150, 4)})
    config = DataConfig(loader=loader, document_tokens=5)
    batches = open_batches(shards, config, context=10, sequences=2, seed=0, bos=BOS)
    assert batches.total == 10 * 5 + 60
    inputs = whole(batches, 0, 2)
    assert (inputs == torch.tensor([BOS, 0, 0, 0, 0] * 2)).all()


@given(blocks=st.integers(1, 500), seed=seeds)
def test_a_coprime_stride_visits_every_block_once(blocks, seed):
    stride = coprime_stride(blocks, generator(seed))
    assert sorted(index * stride % blocks for index in range(blocks)) == list(range(blocks))


@settings(deadline=None)
@given(sizes=lengths, context=contexts, sequences=st.integers(1, 9), seed=seeds)
def test_the_coprime_walk_sees_every_block_of_a_shard_once_before_any_twice(
    sizes, context, sequences, seed
):
    if max(sizes) <= context:
        return
    order = Coprime(sizes, MIX, context=context, sequences=sequences, seed=seed)
    starts = np.cumsum([0, *sizes])
    seen = {shard: [] for shard, size in enumerate(sizes) if size > context}
    for step in range(40):
        for position in order.positions(step):
            shard = int(np.searchsorted(starts, position, "right")) - 1
            seen[shard].append(int(position - starts[shard]))
    for shard, offsets in seen.items():
        number, done = 0, 0
        while done < len(offsets):
            path = walk(seed, shard, number, sizes[shard], context)
            taken = offsets[done : done + path.blocks]
            wanted = [path.phase + block * context for block in range(path.blocks)]
            assert len(set(taken)) == len(taken)
            assert set(taken) <= set(wanted)
            number, done = number + 1, done + path.blocks


def test_a_step_mixes_few_shards_at_first_and_more_later():
    config = DataConfig(loader="coprime")
    order = Coprime([5000] * 100, config, context=4, sequences=384, seed=1)
    mixed = {step: len(set(order.positions(step) // 5000)) for step in (0, 900, 1800, 4000)}
    assert mixed == {0: 8, 900: 36, 1800: 64, 4000: 64}


def test_shards_are_drawn_by_what_they_have_left():
    sizes = [200_000] * 4 + [2_000] * 36
    config = DataConfig(loader="coprime", mix_shards_start=4, mix_shards_end=4)
    order = Coprime(sizes, config, context=4, sequences=64, seed=1)
    taken = np.concatenate([order.positions(step) for step in range(100)])
    assert 0.75 < np.mean(taken < 800_000) < 1


def test_the_coprime_loader_is_nearly_through_all_blocks_before_it_repeats_one():
    sizes = [997, 3001, 150, 2203, 2203, 1800]
    order = Coprime(sizes, MIX, context=4, sequences=16, seed=5)
    blocks = sum((size - 1) // 4 for size in sizes)
    taken = np.concatenate([order.positions(step) for step in range(blocks // 16)])
    assert len(set(taken.tolist())) > 0.93 * len(taken)


def test_windows_of_one_shard_take_turns_with_those_of_others():
    order = Coprime([5000] * 4, MIX, context=4, sequences=32, seed=2)
    shards = order.positions(20) // 5000
    assert set(shards[:4]) == {0, 1, 2, 3}


@pytest.mark.parametrize("step", [0, 1, SNAPSHOT_STEPS - 1, SNAPSHOT_STEPS, 5 * SNAPSHOT_STEPS + 3])
def test_a_coprime_order_goes_back_and_forth(step):
    sizes = [60, 31, 200]
    fresh = Coprime(sizes, MIX, context=5, sequences=6, seed=0).positions(step)
    used = Coprime(sizes, MIX, context=5, sequences=6, seed=0)
    for other in (400, step, 0, 130, step, step + 1, step):
        found = used.positions(other)
        assert other != step or np.array_equal(found, fresh)


@settings(deadline=None)
@given(sizes=lengths, context=contexts, sequences=st.integers(1, 9), seed=seeds)
def test_the_shuffled_loader_gives_every_block_once_per_epoch(sizes, context, sequences, seed):
    if max(sizes) <= context:
        return
    order = Shuffled(sizes, context=context, sequences=sequences, seed=seed)
    stream = np.concatenate([order.positions(step) for step in range(120 // sequences + 1)])
    edges = np.cumsum([0, *sizes])
    for first, end in itertools.pairwise(order.first):
        taken = stream[first:end]
        assert len(set(taken.tolist())) == len(taken)
        if end > len(stream):
            break
        for shard, size in enumerate(sizes):
            mine = np.sort(taken[(taken >= edges[shard]) & (taken < edges[shard + 1])])
            if size <= context:
                assert not len(mine)
                continue
            # blocks lie side by side from the phase to the end of the shard
            assert set(np.diff(mine)) <= {context}
            assert mine[0] - edges[shard] < context
            assert edges[shard + 1] - 1 - (mine[-1] + context) < context


# documents


def fewest_skipped(starts: list[int], size: int, context: int) -> int:
    """The most windows that any choice of starts gives, by dynamic programming."""
    best = [0] * (size + 1)
    for position in reversed(range(size)):
        best[position] = best[position + 1]
        if position in starts and position + context < size:
            best[position] = max(best[position], 1 + best[min(position + context, size)])
    return best[0]


@settings(deadline=None)
@given(
    sizes=lengths,
    starts=st.sets(st.integers(0, 359), min_size=1),
    context=contexts,
    sequences=st.integers(1, 7),
)
def test_aligned_windows_begin_at_documents_in_order_and_skip_the_fewest_tokens(
    sizes, starts, context, sequences
):
    shards = documents(sizes, starts)
    edges = np.cumsum([0, *sizes])
    best = [
        fewest_skipped(np.flatnonzero(shard == BOS).tolist(), len(shard), context)
        for shard in shards
    ]
    if not sum(best):
        with pytest.raises(DataError, match="no document's first token"):
            opened("bos", shards, context, sequences)
        return
    batches = opened("bos", shards, context, sequences)
    windows = batches.order.windows
    assert len(windows) == sum(best)
    assert batches.order.epoch_tokens == len(windows) * context
    assert (np.diff(windows) >= context).all()
    assert set(windows.tolist()) <= starts
    counts = np.diff(np.searchsorted(windows, edges))
    assert counts.tolist() == best
    # every window once per epoch, wherever steps begin and end
    stream = np.concatenate([batches.order.positions(step) for step in range(60 // sequences + 1)])
    assert np.array_equal(stream, np.resize(windows, len(stream)))
    assert (whole(batches, 3, sequences)[:, 0] == BOS).all()


# prefetching


@pytest.mark.parametrize("loader", LOADERS)
def test_the_prefetcher_gives_any_step_that_is_asked_for(loader):
    shards = example(loader, [100])
    batches = opened(loader, shards, 4, 2)
    prefetcher = Prefetcher(batches, range(2), CPU)
    for step in (0, 1, 2, 7, 8, 3, 3):
        inputs, targets = prefetcher.get(step)
        fresh = opened(loader, shards, 4, 2).batch(step, range(2))
        assert torch.equal(inputs, fresh[0])
        assert torch.equal(targets, fresh[1])
    prefetcher.close()


@pytest.mark.gpu
def test_batches_reach_a_gpu_from_pinned_memory():
    batches = opened("coprime", counting([300, 200]), 8, 4)
    assert batches.batch(0, range(4), pinned=True)[0].is_pinned()
    prefetcher = Prefetcher(batches, range(4), torch.device("cuda"))
    for step in range(5):
        inputs, targets = prefetcher.get(step)
        wanted = opened("coprime", counting([300, 200]), 8, 4).batch(step, range(4))
        assert inputs.is_cuda
        assert torch.equal(inputs.cpu(), wanted[0])
        assert torch.equal(targets.cpu(), wanted[1])
    prefetcher.close()


def test_later_steps_are_prepared_before_they_are_asked_for():
    prefetcher = Prefetcher(opened("sequential", counting([100]), 4, 2), range(2), CPU)
    prefetcher.get(5)
    assert [step for step, _ in prefetcher.ready] == [6 + step for step in range(AHEAD_STEPS)]
    prefetcher.close()


def test_what_fails_while_reading_ahead_is_raised_where_the_batch_is_needed():
    batches = opened("sequential", counting([100]), 4, 2)
    prefetcher = Prefetcher(batches, range(2), CPU)
    batches.shards = []
    with pytest.raises(IndexError):
        prefetcher.get(0)
    prefetcher.close()
