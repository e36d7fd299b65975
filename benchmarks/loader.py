"""Document lengths -> tokens that aligned windows leave out, by policy; and waits for data.

    python benchmarks/loader.py --data shards
    python benchmarks/loader.py --data shards --hidden [--device cuda]

Two corpora: the train shards of a folder, and a model of FineWeb: lengths (BOS included) are
log-normal with a median of 403 and a mean of 690 tokens, at least 32, drawn anew for each shard.
Two policies: ours (`BosAligned`, whatever the ranks), and modded-nanogpt's of 2025-07-12, which
plans a batch of a window for each rank at a time and drops the rest of a shard that is shorter than
two batches.

With `--hidden`, a pause takes the place of the step: a device that computes leaves the cores free.
"""

import argparse
import math
import time
from collections.abc import Sequence

import numpy as np
import torch

from gptpack.data.batches import Batches, Prefetcher
from gptpack.data.orders import BosAligned
from gptpack.data.shards import Shard, Tokens, find_shards

MEDIAN, MEAN, LEAST = 403, 690, 32
"""Tokens of FineWeb's documents, as speedruns' notes have them (record of 2026-03-22)."""
CONTEXTS = (1024, 2048, 48 * 1024)


def fineweb(shards: int, tokens: int, bos: int, seed: int = 0) -> list[Tokens]:
    """Shards with a BOS at the start of each document of the model, and 0 elsewhere."""
    rng = np.random.default_rng(seed)
    made: list[Tokens] = []
    for _ in range(shards):
        sigma = math.sqrt(2 * math.log(MEAN / MEDIAN))
        drawn = rng.lognormal(math.log(MEDIAN), sigma, 2 * tokens // MEDIAN)
        lengths = np.maximum(LEAST, np.rint(drawn)).astype(np.int64)
        starts = np.concatenate(([0], np.cumsum(lengths)))
        shard = np.zeros(tokens, np.uint16)
        shard[starts[starts < tokens]] = bos
        made.append(shard)
    return made


def reference(shard: Tokens, *, context: int, ranks: int, bos: int) -> list[int] | None:
    """Where modded-nanogpt's loader of 2025-07-12 begins windows in a shard; None where it fails.

    It fails where two batches of tokens hold no batch of windows.
    """
    documents = np.flatnonzero(np.asarray(shard) == bos)
    batch, position, windows = ranks * context, 0, list[int]()
    while position + 2 * batch + 1 < len(shard):
        span = documents[np.searchsorted(documents, position) :]
        span = span[: np.searchsorted(span, position + 2 * batch)].tolist()
        begun: list[int] = []
        start = span[0] if span else 0
        for following in span[1:]:
            if following - start >= context:
                begun.append(start)
                start = following
                if len(begun) == ranks:
                    break
        if len(begun) < ranks:
            return None
        windows += begun
        position = start
    return windows


def left_out(shards: Sequence[Tokens], *, context: int, bos: int) -> None:
    """Print a row for each policy."""
    one = dict(context=context, sequences=8, bos=bos)
    rows = {"ours, any ranks": [BosAligned([shard], **one).windows for shard in shards]}
    for ranks in (1, 8):
        found = [reference(shard, context=context, ranks=ranks, bos=bos) for shard in shards]
        name = f"reference, {ranks} rank{'s' * (ranks > 1)}"
        if None in found:
            print(f"{context:7,}  {name:18}  fails")
        else:
            rows[name] = list(map(np.array, found))
    total = sum(map(len, shards))
    for name, windows in rows.items():
        used = sum(map(len, windows)) * context
        # behind a shard's last window nothing is an input
        pairs = zip(shards, windows, strict=True)
        behind = sum(len(shard) - int(each[-1]) - context for shard, each in pairs)
        parts = (used, total - used - behind, behind)
        print(f"{context:7,}  {name:18}" + "".join(f"{100 * p / total:10.2f}" for p in parts))


def hidden(
    shards: Sequence[Tokens], *, sequences: int, bos: int, device: torch.device, step_ms: float
) -> None:
    """Print what part of a step is waiting for its batch, read before it and read ahead."""
    context = 48 * 1024
    order = BosAligned(shards, context=context, sequences=sequences, bos=bos)
    batches = Batches(shards, order, context=context)
    share, pinned = range(sequences), device.type == "cuda"
    prefetcher = Prefetcher(batches, share, device)
    waits: dict[str, list[float]] = {"before it": [], "ahead": []}
    for step in range(60):
        for name, each in waits.items():  # in turn, so that both see the same machine
            start = time.perf_counter()
            if name == "ahead":
                prefetcher.get(step)
            else:
                for tensor in batches.batch(step, share, pinned=pinned):
                    tensor.to(device, non_blocking=True)
            each.append(1000 * (time.perf_counter() - start))
            time.sleep(step_ms / 1000)
    prefetcher.close()
    for name, each in waits.items():
        middle, high = np.quantile(each[3:], [0.5, 0.9])  # the first ones were not read ahead
        shares = [100 * wait / (wait + step_ms) for wait in (middle, high)]
        print(f"{sequences:7}  {name:12}{shares[0]:10.3f}{shares[1]:10.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of train shards, which are measured as well")
    parser.add_argument("--bos", type=int, default=50256)
    parser.add_argument("--shards", type=int, default=3, help="of the model of FineWeb")
    parser.add_argument("--tokens", type=int, default=100_000_000, help="of each of them")
    parser.add_argument("--hidden", action="store_true", help="measure waits instead")
    parser.add_argument("--step-ms", type=float, default=100.0, help="that a step computes")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    corpora = {"FineWeb's lengths": fineweb(options.shards, options.tokens, options.bos)}
    if options.data:
        paths = find_shards(options.data, "train")
        corpora[options.data] = [Shard.open(path).tokens for path in paths]
    for name, shards in corpora.items():
        starts = [np.flatnonzero(np.asarray(shard) == options.bos) for shard in shards]
        lengths = np.concatenate(list(map(np.diff, starts)))
        print(
            f"\n{name}: {sum(map(len, shards)):,} tokens, documents of {np.median(lengths):,.0f} "
            f"(median) and {lengths.mean():,.0f} (mean)"
        )
        if not options.hidden:
            print("context  policy                used %  between %  behind %")
            for context in CONTEXTS:
                left_out(shards, context=context, bos=options.bos)
            continue
        print("windows  batch read  waiting, % of a step: median, 90th percentile")
        for sequences in (1, 8):
            device = torch.device(options.device)
            how = {"bos": options.bos, "device": device, "step_ms": options.step_ms}
            hidden(shards, sequences=sequences, **how)


if __name__ == "__main__":
    main()
