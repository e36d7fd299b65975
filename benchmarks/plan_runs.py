"""Runs for `gptpack plan`: a few shapes, each for a few lengths, each packed to a few rates.

    python benchmarks/plan_runs.py --recipe baseline --data shards --output runs.csv \
        --shapes "model.layers=7 model.width=384 model.heads=6 model.kv_heads=3 \
                  model.mlp_hidden=768" \
                 model.layers=9 \
                 "model.layers=11 model.width=640 model.heads=10 model.kv_heads=5 \
                  model.mlp_hidden=1280" \
        --lengths training.seconds=75 training.seconds=150 training.seconds=300 --bits 2 2.5 3
    gptpack plan --budget 16MB --seconds 600 --no-own --runs runs.csv
    python benchmarks/plan_runs.py --recipe tiny --data shards --output tiny.csv \
        --shapes model.layers=1 model.layers=2 model.layers=4 --set training.seconds=0 \
        --lengths "training.steps=150 training.warmdown_steps=50" \
                  "training.steps=300 training.warmdown_steps=100" \
                  "training.steps=600 training.warmdown_steps=200" --bits 1.5 2 2.5

Every shape is trained for every length, with --set besides, and packed to every one of --bits;
OUTPUT gets a line for each file, in the columns that the command reads. Lines that are there
already are not measured again. Several GPUs take a run each. The first call trains for 26 minutes
of one and packs 27 files.
"""

import argparse
import itertools
import tempfile
from collections import Counter
from pathlib import Path

from side_by_side import Table, gptpack, overrides, parse, spread

COLUMNS = ("recipe", "set", "tokens", "seconds", "gpus", "bpb_before", "bytes", "bpb_after")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--shapes", nargs="+", default=[], metavar="'KEY=VALUE ...'")
    parser.add_argument("--lengths", nargs="+", default=[], metavar="'KEY=VALUE ...'")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--bits", nargs="+", type=float, default=[2.0, 2.5, 3.0])
    parser.add_argument("--eval-tokens", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs.csv"))
    options = parse(parser)
    table = Table(options.output, COLUMNS)
    known = Counter(row["set"] for row in table.rows)

    def work(settings: list[str], environment: dict[str, str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            words = ["--recipe", options.recipe, "--data", str(options.data), "--no-eval"]
            words += overrides(settings)
            run = gptpack("train", *words, "--output", folder, environment=environment)
            for bits in options.bits:
                words = [f"{folder}/checkpoint.pt", "--bits", f"{bits:g}"]
                words += ["--data", str(options.data), "--eval-tokens", str(options.eval_tokens)]
                packed = gptpack("pack", *words, environment=environment)
                table.add(
                    {
                        "recipe": options.recipe,
                        "set": " ".join(settings),
                        "tokens": run["tokens"],
                        "seconds": round(run["seconds"], 2),
                        "gpus": 1,
                        "bpb_before": round(packed["before"]["plain"]["bpb"], 6),
                        "bytes": packed["bytes"],
                        "bpb_after": round(packed["after"]["plain"]["bpb"], 6),
                    }
                )

    pairs = itertools.product(options.shapes, options.lengths)
    jobs = [[*options.set, *shape.split(), *length.split()] for shape, length in pairs]
    jobs = [job for job in jobs if known[" ".join(job)] < len(options.bits)]
    for failure in spread(jobs, work, options):
        print(failure)


if __name__ == "__main__":
    main()
