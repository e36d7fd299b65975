"""A recipe and shards -> a table of paired runs: Polar Express and unaligned batches against it.

    python benchmarks/speedrun.py --data shards --seconds 120 --output speedrun
    python benchmarks/speedrun.py --data shards --arms base unaligned --seeds 1337 \
        --set training.batch_tokens=98304 optimizer.muon_momentum_warmup_steps=100

All arms train for the same seconds of the clock (compilation is before it), on the same shards with
the same seeds: `base` is the recipe, by default that of July with Newton-Schulz and batches that
begin at documents; `polar-express` and `unaligned` change one thing each. A run's rate, momentum
and windows go by its clock. Every checkpoint is then scored on the same first --eval-tokens of the
val shards, in windows of the model's context, all of whose positions count.

One GPU makes few of eight GPUs' steps in two minutes: --set training.batch_tokens=98304
optimizer.muon_momentum_warmup_steps=100 makes them smaller and more. Runs are calls of the trainer
in one process, one after another, so that later ones find the compiler's caches warm. Writes
OUTPUT/speedrun.csv as runs end and keeps what is there already; a run of which that has a row is
not made again.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from many_runs import Table

import gptpack
from gptpack.training.loop import METRICS
from gptpack.training.recipe import load_recipe

ARMS: dict[str, list[str]] = {
    "base": [],
    "polar-express": ['optimizer.muon_method="polar-express"'],
    "unaligned": ['data.loader="sequential"'],
}
FIELDS = (
    *("arm", "seed", "steps", "step_ms", "tokens_s", "peak_gb", "compile_s"),
    *("train_nats", "val_nats", "val_bpb", "attention"),
)


def settings_of(options: argparse.Namespace, arm: str, seed: int) -> list[str]:
    """What the run of an arm sets beside the recipe."""
    return [
        f"training.seed={seed}",
        f"training.seconds={options.seconds}",
        f"training.steps={options.steps or 10_000_000}",
        "training.compile_warmup_steps=1",
        "training.checkpoint_seconds=0",
        *options.set,
        *ARMS[arm],
    ]


def run(options: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    """Train an arm and score it: a row of the table."""
    folder = options.output / f"{arm}-{seed}"
    # an earlier call may have been stopped within this run
    shutil.rmtree(folder, ignore_errors=True)
    result = gptpack.train(
        options.recipe,
        options.data,
        folder,
        overrides=settings_of(options, arm, seed),
        device=options.device,
        attention=options.attention,
        kernels=options.kernels,
        validate=False,
    )
    torch.compiler.reset()
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    ends = [float(json.loads(line)["seconds"]) for line in lines]
    losses = [float(json.loads(line)["loss_nats"]) for line in lines]
    context = load_recipe(options.recipe, options.set).model.context
    found = gptpack.evaluate(
        result.checkpoint,
        options.data,
        eval_tokens=options.eval_tokens,
        batch_tokens=context,
        device=options.device,
        compiled="off",
    ).plain
    if not options.keep:
        result.checkpoint.unlink()
    return {
        "arm": arm,
        "seed": seed,
        "steps": result.steps,
        "step_ms": round(1000 * float(np.median(np.diff(ends))), 2) if len(ends) > 1 else "",
        "tokens_s": round(result.tokens / result.seconds),
        "peak_gb": round(result.peak_memory_bytes / 1e9, 2),
        "compile_s": round(result.compile_seconds, 1),
        "train_nats": round(statistics.mean(losses[-20:]), 4),
        "val_nats": round(found.nats_per_token, 5),
        "val_bpb": round(found.bpb, 5),
        "attention": result.attention.split(",")[0],
    }


def compared(rows: list[dict[str, Any]]) -> list[str]:
    """Differences to the base run of the same seed, and how far the seeds of base lie apart."""
    nats = {(row["arm"], str(row["seed"])): float(row["val_nats"]) for row in rows}
    base = {seed: value for (arm, seed), value in nats.items() if arm == "base"}
    lines = []
    if len(base) > 1:
        spread = max(base.values()) - min(base.values())
        lines.append(f"base: {spread:.5f} nats between its {len(base)} seeds")
    for arm in ARMS:
        pairs = [v - base[s] for (a, s), v in nats.items() if a == arm != "base" and s in base]
        if pairs:
            each = ", ".join(f"{pair:+.5f}" for pair in pairs)
            lines.append(f"{arm}: {statistics.mean(pairs):+.5f} nats against base ({each})")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="speedrun-2025-07")
    parser.add_argument("--data", type=Path, help="folder of shards and their tokenizer")
    parser.add_argument("--output", type=Path, default=Path("speedrun"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1337, 1338])
    parser.add_argument("--seconds", type=float, default=120.0, help="of training, for each run")
    parser.add_argument("--steps", type=int, default=0, help="at most; 0: as the seconds allow")
    parser.add_argument("--eval-tokens", type=int, default=1_048_576)
    parser.add_argument("--set", nargs="*", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep", action="store_true", help="keep checkpoints")
    options = parser.parse_args()
    if options.data is None:
        parser.exit(0, f"{parser.prog}: give --data; see --help\n")
    table = Table(options.output / "speedrun.csv", FIELDS)
    known = {(row["arm"], str(row["seed"])) for row in table.rows}
    print("  ".join(f"{name:>10}" for name in FIELDS))
    for seed in options.seeds:
        for arm in options.arms:
            if (arm, str(seed)) not in known:
                table.add(run(options, arm, seed))
    print("\n".join(compared(table.rows)))


if __name__ == "__main__":
    main()
