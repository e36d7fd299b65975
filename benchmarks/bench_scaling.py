"""Training on 1, 2 and 4 GPUs: tokens per second, and whether the loss curves are one curve.

    python benchmarks/bench_scaling.py --data DIR
    python benchmarks/bench_scaling.py --ranks 1 2 --recipe baseline --steps 300 --data DIR

Starts the same run under torchrun once for each number of ranks: a fixed number of steps of the
recipe, the same batches and seed. Without --data the tokens are drawn, by a rule that can be
learned in part. Milliseconds are those of the training loop itself (its metrics.jsonl), after the
first --skip steps; an optimizer step is timed by itself afterwards, the device idle before and
after it. Without CUDA it is the recipe `tiny` on 1 and 2 ranks over gloo.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptpack.data.shards import Shard, find_shards
from gptpack.progress import silent
from gptpack.ranks import Ranks, ranks
from gptpack.training.loop import METRICS, Run
from gptpack.training.recipe import Recipe, load_recipe
from gptpack.training.schedules import scheduled
from gptpack.training.stepper import Stepper

LAST_STEPS = 10
"""The loss that a run ends with is the mean over so many steps."""
TIMED_STEPS = 5


def drawn_tokens(vocab: int, count: int = 8_000_000) -> np.ndarray:
    """Steps of 0 to 3 from the token before, and a fifth of tokens that follow from nothing."""
    rng = np.random.default_rng(0)
    tokens = np.cumsum(rng.integers(0, 4, count)) % vocab
    free = rng.random(count) < 0.2
    tokens[free] = rng.integers(0, vocab, int(free.sum()))
    return tokens.astype(np.uint16)


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe for the fixed number of steps, its last third a warmdown unless told otherwise."""
    fixed = [
        f"training.steps={options.steps}",
        "training.seconds=0",
        "training.checkpoint_seconds=0",
        "training.warmdown_fraction=0",
        f"training.warmdown_steps={options.steps // 3}",
    ]
    return load_recipe(options.recipe, [*fixed, *options.set])


def optimizer_seconds(stepper: Stepper, here: Ranks) -> float:
    """Mean seconds of an optimizer step with nothing else on the device."""
    spent = 0.0
    now = scheduled(stepper.step, 0.0, stepper.recipe.training, stepper.recipe.optimizer)
    for _ in range(TIMED_STEPS):
        stepper.gradients(now)
        stepper.synchronize()
        here.barrier()
        start = time.perf_counter()
        stepper.optimizers.step(lr_multiplier=0.0, momentum=now.momentum)
        stepper.synchronize()
        spent += time.perf_counter() - start
    return spent / TIMED_STEPS


def measure(options: argparse.Namespace) -> None:
    """What each rank does; rank 0 leaves its figures in the file `options.worker`."""
    recipe = recipe_of(options)
    vocab = recipe.model.vocab
    shards = [drawn_tokens(vocab)]
    if options.data is not None:
        shards = [Shard.open(path, vocab).tokens for path in find_shards(options.data, "train")]
    with ranks(options.device) as here, tempfile.TemporaryDirectory() as folder:
        stepper = Stepper(recipe, shards, here, attention=options.attention)
        result = Run(stepper, Path(folder)).until_done(silent)
        optimizer = optimizer_seconds(stepper, here)
        stepper.batches.close()
        if not here.main:
            return
        lines = (Path(folder) / METRICS).read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line) for line in lines]
        timed = steps[min(options.skip, len(steps) - 2) :]
        figures = {
            "device": torch.cuda.get_device_name() if here.device.type == "cuda" else "cpu",
            "seconds_per_step": (timed[-1]["seconds"] - timed[0]["seconds"]) / (len(timed) - 1),
            "optimizer_seconds": optimizer,
            "compile_seconds": result.compile_seconds,
            "peak_memory_bytes": result.peak_memory_bytes,
            "attention": result.attention,
            "losses_nats": [step["loss_nats"] for step in steps],
        }
        options.worker.write_text(json.dumps(figures), encoding="utf-8")


def launch(world: int, arguments: list[str]) -> dict[str, Any]:
    """The figures of a run on `world` ranks."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={world}", __file__, *arguments, "--worker", str(file)]
        subprocess.run(command, check=True)
        figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpus = torch.cuda.device_count()
    parser.add_argument("--ranks", nargs="+", type=int, help="[default: 1 2 4, what there is]")
    parser.add_argument("--recipe", default="golf-1060" if gpus else "tiny")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--steps", type=int, default=200 if gpus else 60)
    parser.add_argument("--skip", type=int, default=20, help="steps before the clock counts")
    parser.add_argument("--data", type=Path, help="folder of shards")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        measure(options)
        return
    worlds = options.ranks or [world for world in (1, 2, 4) if world <= max(gpus, 2)]
    recipe = recipe_of(options)
    tokens = recipe.training.batch_tokens
    print(f"{options.recipe}, {options.steps} steps of {tokens:,} tokens, {' '.join(options.set)}")
    print(
        "ranks  ms/step     tokens/s  speed-up  of ideal  optimizer ms  peak GB  compile s"
        "     loss  largest, mean difference of the losses"
    )
    first: dict[str, Any] = {}
    for world in worlds:
        found = launch(world, sys.argv[1:])
        first = first or found
        seconds, losses = found["seconds_per_step"], np.array(found["losses_nats"])
        faster = first["seconds_per_step"] / seconds
        apart = np.abs(losses - np.array(first["losses_nats"]))
        print(
            f"{world:5}  {1000 * seconds:7.1f}  {tokens / seconds:11,.0f}  {faster:8.2f}  "
            f"{faster * worlds[0] / world:8.1%}  {1000 * found['optimizer_seconds']:12.2f}  "
            f"{found['peak_memory_bytes'] / 1e9:7.2f}  {found['compile_seconds']:9.1f}  "
            f"{losses[-LAST_STEPS:].mean():7.4f}  {apart.max():.5f}, {apart.mean():.5f}",
            flush=True,
        )
    print(f"{first['device']}, torch {torch.__version__}, attention {first['attention']}")


if __name__ == "__main__":
    main()
