"""What training for the packed size is worth: paired runs, packed to the same bytes.

    python benchmarks/aware_training.py --recipe golf-1060 --data shards --budget 10MB 16MB \
        --bits 3 --seeds 1337 1338 --set training.seconds=300 training.reserve_seconds=0 \
        training.batch_tokens=196608 training.warmdown_steps=0 training.warmdown_fraction=0.5 \
        optimizer.muon_momentum_warmup_steps=300 --output aware
    python benchmarks/aware_training.py --recipe tiny --data shards --budget 50KB --bits 3 \
        --seeds 1337 1338 --set training.steps=600 training.seconds=0 --output aware

Every arm of `ARMS` (or `--arms`) trains once for each seed and is packed to each of --budget and
--bits, by `gptpack train` and `gptpack pack` as anybody would call them; the target of training is
the first budget. Arms of a seed see the same text in the same order, so differences are paired;
with a clock (training.seconds) what an arm costs in steps is in its figure. Prints a table, and the
mean difference of each arm to `plain` with its standard error over seeds; writes OUTPUT/aware.csv
row by row. What the file holds already is kept and not measured again. Of the first call every arm
and seed trains for 300 seconds and is packed three times; choose a few by --arms.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from many_runs import Table, gptpack, overrides, parse, spread

TARGET = "TARGET"
ARMS: dict[str, list[str]] = {
    "plain": [],
    "pressure": [TARGET],
    "pressure-x0.3": [TARGET, "compression.pressure=0.3"],
    "pressure-x3": [TARGET, "compression.pressure=3"],
    "pressure-late": [TARGET, "compression.start=0.8"],
    "decay-0.04": ["optimizer.matrix_weight_decay=0.04", "optimizer.adam_weight_decay=0.04"],
    "decay-0.15": ["optimizer.matrix_weight_decay=0.15"],
    "ema-0.99": ["optimizer.ema_decay=0.99"],
    "ema-0.997": ["optimizer.ema_decay=0.997"],
    "warmdown-0.5": ["training.warmdown_steps=0", "training.warmdown_fraction=0.5"],
    "warmdown-0.7": ["training.warmdown_steps=0", "training.warmdown_fraction=0.7"],
}
"""What each arm sets besides --set; with TARGET it trains for the first budget."""
FIELDS = (
    "arm",
    "seed",
    "ask",
    "bytes",
    "bits",
    "delta",
    "bpb_before",
    "bpb_after",
    "penalty_bpb",
    "sliding_bpb",
    "predicted_bytes",
    "steps",
    "train_seconds",
    "look_seconds",
)


def trained(
    options: argparse.Namespace, arm: str, seed: int, environment: Mapping[str, str]
) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of an arm, and what training reported of it; made if it is not there."""
    folder = options.output / f"{arm}-{seed}"
    report = folder / "train.json"
    if not report.exists():
        settings = [f"training.seed={seed}", *options.set, *(s for s in ARMS[arm] if s != TARGET)]
        command = ["train", "--recipe", options.recipe, "--data", str(options.data), "--no-eval"]
        command += ["--output", str(folder), *overrides(settings)]
        if TARGET in ARMS[arm]:
            command += ["--target-bytes", options.budget[0]]
        said = gptpack(*command, environment=environment)
        report.write_text(json.dumps(said), encoding="utf-8")
    return folder / "checkpoint.pt", json.loads(report.read_text(encoding="utf-8"))


def measure(
    options: argparse.Namespace, table: Table, arm: str, seed: int, environment: Mapping[str, str]
) -> None:
    """Add a row for each size of an arm and seed that is not known yet."""
    known = {(r["arm"], str(r["seed"]), r["ask"]) for r in table.rows}
    asks = [("--budget", size) for size in options.budget]
    asks += [("--bits", f"{bits:g}") for bits in options.bits]
    for option, size in asks:
        if (arm, str(seed), f"{option} {size}") in known:
            continue
        checkpoint, run = trained(options, arm, seed, environment)
        command = ["pack", str(checkpoint), option, size, "--data", str(options.data)]
        command += ["-o", str(checkpoint.with_name(f"{size}.gptpack"))]
        command += ["--eval-tokens", str(options.eval_tokens), "--tune", options.tune]
        if options.stride and option == "--budget":
            command += ["--stride", str(options.stride)]
        packed = gptpack(*command, environment=environment)
        before, after = (packed[when]["plain"]["bpb"] for when in ("before", "after"))
        sliding = packed["after"]["sliding"]
        table.add(
            {
                "arm": arm,
                "seed": seed,
                "ask": f"{option} {size}",
                "bytes": packed["bytes"],
                "bits": round(packed["bits"], 4),
                "delta": packed["delta"],
                "bpb_before": round(before, 6),
                "bpb_after": round(after, 6),
                "penalty_bpb": round(after - before, 6),
                "sliding_bpb": round(sliding["bpb"], 6) if sliding else "",
                "predicted_bytes": run["predicted_bytes"],
                "steps": run["steps"],
                "train_seconds": round(run["seconds"], 1),
                "look_seconds": round(run["look_seconds"], 1),
            }
        )


def compare(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Mean differences to the plain arm of the same seed and size, lines of a table."""
    plain = {(str(r["seed"]), r["ask"]): r for r in rows if r["arm"] == "plain"}
    pairs = sorted({(r["ask"], r["arm"]) for r in rows if r["arm"] != "plain"})
    yield f"{'size':16} {'arm':16} {'bpb after':>18} {'penalty':>18} seeds"
    for ask, arm in pairs:
        mine = [r for r in rows if (r["ask"], r["arm"]) == (ask, arm)]
        mine = [r for r in mine if (str(r["seed"]), ask) in plain]
        if not mine:
            continue
        cells = []
        for key in ("bpb_after", "penalty_bpb"):
            gaps = [float(r[key]) - float(plain[str(r["seed"]), ask][key]) for r in mine]
            error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
            cells.append(f"{statistics.mean(gaps):+.5f} +-{error:.5f}")
        yield f"{ask:16} {arm:16} {cells[0]:>18} {cells[1]:>18} {len(mine):5}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--budget", nargs="+", default=["16MB"])
    parser.add_argument("--bits", nargs="*", type=float, default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1337, 1338])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--set", nargs="*", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--tune", choices=["none", "floats", "deep"], default="none")
    parser.add_argument("--eval-tokens", type=int, default=0)
    parser.add_argument(
        "--stride", type=int, default=0, help="also a sliding window, of files packed to a budget"
    )
    parser.add_argument("--output", type=Path, default=Path("aware"))
    options = parse(parser)
    table = Table(options.output / "aware.csv", FIELDS)

    def work(job: tuple[str, int], environment: dict[str, str]) -> None:
        measure(options, table, *job, environment)

    jobs = [(arm, seed) for seed in options.seeds for arm in options.arms]
    failures = spread(jobs, work, options)
    print("\n".join([*compare(table.rows), *failures]))


if __name__ == "__main__":
    main()
