"""What each loader costs: opening it, going straight to a step, and a batch after that.

    python benchmarks/bench_loaders.py --shards 103 --tokens 100000000 --step 7000

All shards are one array of random tokens with documents of 700 on average, in memory: what a disk
adds is not in these figures. A batch is that of one rank that takes all of a step's windows.
"""

import argparse
import time
from typing import get_args

import numpy as np

from gptpack.data.batches import open_batches
from gptpack.data.orders import DataConfig, Loader

BOS = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=4_000_000, help="of a shard")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--step", type=int, default=1000)
    parser.add_argument("--batches", type=int, default=50)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 1024, options.tokens, dtype=np.uint16)
    tokens[rng.random(options.tokens, dtype=np.float32) < 1 / 700] = BOS
    print("loader          open s  go to step s  plan ms  batch ms")
    for loader in get_args(Loader):
        start = time.perf_counter()
        batches = open_batches(
            [tokens] * options.shards,
            DataConfig(loader=loader),
            context=options.context,
            sequences=options.sequences,
            seed=1337,
            bos=BOS,
        )
        opened = time.perf_counter()
        batches.order.positions(options.step)
        there = time.perf_counter()
        steps = range(options.step + 1, options.step + 1 + options.batches)
        for step in steps:
            batches.order.positions(step)
        planned = time.perf_counter()
        for step in steps:
            batches.batch(step, range(options.sequences))
        ended = time.perf_counter()
        plan, batch = (
            1000 * seconds / options.batches for seconds in (planned - there, ended - planned)
        )
        print(
            f"{loader:14}  {opened - start:6.2f}  {there - opened:12.2f}  {plan:7.2f}  {batch:8.2f}"
        )


if __name__ == "__main__":
    main()
