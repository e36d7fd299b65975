"""Runs for `gptpack plan`: a few shapes, each for a few lengths, each packed to a few rates.

    python benchmarks/plan_runs.py --recipe golf-best --data shards --output runs.csv \
        --runs "model.layers=7 model.xsa_layers=7 training.seconds="{240,120,60} \
               "model.layers=11 training.seconds="{240,120,60} \
               "model.layers=15 model.xsa_layers=15 training.seconds="{240,120,60} \
        --set training.reserve_seconds=0 --bits 3.5 3 2.5
    gptpack plan --budget 16MB --seconds 600 --no-own --runs runs.csv
    python benchmarks/plan_runs.py --recipe tiny --data shards --output tiny.csv \
        --runs model.layers={1,2,4}" training.steps=150 training.warmdown_steps=50" \
               model.layers={1,2,4}" training.steps=300 training.warmdown_steps=100" \
               model.layers={1,2,4}" training.steps=600 training.warmdown_steps=200" \
        --set training.seconds=0 --bits 2.5 2 1.5

A run is the settings that make it, with --set besides; each is packed to about every one of --bits
(`gptpack pack --curve`), in the order that is given. OUTPUT gets a line for each file, in the
columns that the command reads. Runs that it has already are not made again. Several GPUs take a run
each. The first call trains for 21 minutes of one and packs 27 files.
"""

import argparse
import tempfile
from pathlib import Path

from side_by_side import Table, gptpack, overrides, parse, spread

COLUMNS = ("recipe", "set", "tokens", "seconds", "gpus", "bpb_before", "bytes", "bpb_after")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--runs", nargs="+", default=[], metavar="'KEY=VALUE ...'")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--bits", nargs="+", type=float, default=[3.5, 3.0, 2.5])
    parser.add_argument("--eval-tokens", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs.csv"))
    options = parse(parser)
    table = Table(options.output, COLUMNS)
    known = {row["set"] for row in table.rows}

    def work(settings: list[str], environment: dict[str, str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            words = ["--recipe", options.recipe, "--data", str(options.data), "--no-eval"]
            words += ["--output", folder, *overrides(settings)]
            run = gptpack("train", *words, environment=environment)
            words = [f"{folder}/checkpoint.pt", "--curve", f"{folder}/curve.csv"]
            words += ["--curve-bits", ",".join(f"{bits:g}" for bits in options.bits)]
            words += ["--data", str(options.data), "--eval-tokens", str(options.eval_tokens)]
            curve = gptpack("pack", *words, environment=environment)["curve"]
        for point in curve:
            table.add(
                {
                    "recipe": options.recipe,
                    "set": " ".join(settings),
                    "tokens": run["tokens"],
                    "seconds": round(run["seconds"], 2),
                    "gpus": 1,
                    "bpb_before": round(point["bpb_before"], 6),
                    "bytes": point["bytes"],
                    "bpb_after": round(point["bpb_measured"], 6),
                }
            )

    jobs = [[*options.set, *run.split()] for run in options.runs]
    jobs = [job for job in jobs if " ".join(job) not in known]
    for failure in spread(jobs, work, options):
        print(failure)


if __name__ == "__main__":
    main()
