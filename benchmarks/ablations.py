"""What each part of a recipe is worth: one run without it, beside runs with everything.

    python benchmarks/ablations.py --recipe golf-best --data shards --steps 600 \
        --set model.loop_start=0 model.loop_layers=0 model.loops=0 --output ablations
    python benchmarks/ablations.py --recipe tiny --data shards --steps 200 --arms plain \
        no-row-norm adam-decay-0 --seeds 1337 1338 --output tiny

All runs make --steps steps, whatever the recipe's clock says, on the same text in the same order
for a seed, so differences are those at equal steps. What a part costs in time stands beside: the
tenth percentile of the milliseconds of a step. `plain` runs for every seed, other arms for the
first of --seeds alone unless --again names them; its spread over seeds is what a difference has to
be held against. Several GPUs take a run each; --at-once puts more on one, where a step of two then
takes longer than two steps (docs/log.md, 2026-11-28). Writes OUTPUT/ablations.csv as runs end and
keeps what is there already; prints the table last.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from many_runs import Table, gptpack, overrides, parse, spread

from gptpack.training.loop import METRICS

ARMS: dict[str, list[str]] = {
    "plain": [],
    "no-xsa": ["model.xsa_layers=0"],
    "no-smear-gate": ["model.smear_gate=false"],
    "no-skip-gates": ["model.skip_gates=false"],
    "no-ln-scale": ["model.ln_scale=false"],
    "qk-gain-1.5": ["model.qk_gain=1.5"],
    "rope-all": ["model.rope_dims=0"],
    "heads-8": ["model.heads=8", "model.kv_heads=4", "model.rope_dims=16"],
    "relu2": ['model.activation="relu2"'],
    "no-orthogonal": ["model.orthogonal_init=false"],
    "simpler": [
        "model.ln_scale=false",
        "model.qk_gain=1.5",
        "model.rope_dims=0",
        "model.orthogonal_init=false",
    ],
    "no-dropout": ["training.dropout=0"],
    "newton-schulz": ['optimizer.muon_method="newton-schulz"'],
    "no-row-norm": ["optimizer.muon_row_norm=false"],
    "no-clip": ["optimizer.grad_clip=0"],
    "ema-0.997": ["optimizer.ema_decay=0.997"],
    "no-ema": ["optimizer.ema_decay=0"],
    "warmdown-0.5": ["training.warmdown_fraction=0.5"],
    "decay-0.06": ["optimizer.matrix_weight_decay=0.06"],
    "decay-0.15": ["optimizer.matrix_weight_decay=0.15"],
    "decay-0": ["optimizer.matrix_weight_decay=0"],
    "adam-decay-0": ["optimizer.adam_weight_decay=0"],
    "cautious": ["optimizer.cautious_weight_decay=true"],
    "coprime": ['data.loader="coprime"'],
    "normuon": ["optimizer.muon_variance_beta2=0.95"],
    "momentum-0.97": ["optimizer.muon_momentum=0.97"],
    "matrix-lr-0.022": ["optimizer.matrix_lr=0.022"],
    "matrix-lr-0.04": ["optimizer.matrix_lr=0.04"],
    "embed-lr-0.07": ["optimizer.embed_lr=0.07"],
    "bigram": ["model.bigram_rows=2816", "model.bigram_width=112"],
    "value-embedding": ["model.value_embedding_layers=[9,10]", "model.value_embedding_width=128"],
    "attention-gate": ["model.attention_gate_inputs=12"],
    "parallel": ["model.parallel_layers=4"],
    "lanes": ["model.parallel_layers=4", "model.parallel_lanes=2"],
}
"""What each arm sets besides --set: golf-best's own parts taken away, then what it could have."""
FIELDS = ("arm", "seed", "steps", "parameters", "bpb", "loss_nats", "milliseconds")


def run(
    options: argparse.Namespace, arm: str, seed: int, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Train an arm and score it: a row of the table."""
    folder = options.output / f"{arm}-{seed}"
    settings = [
        f"training.seed={seed}",
        f"training.steps={options.steps}",
        "training.seconds=0",
        "training.checkpoint_seconds=0",
        *options.set,
        *ARMS[arm],
    ]
    words = ["train", "--recipe", options.recipe, "--data", str(options.data)]
    words += ["--output", str(folder), "--eval-tokens", str(options.eval_tokens)]
    words += ["--attention", options.attention, *overrides(settings)]
    result = gptpack(*words, environment=environment)
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    ends = [float(json.loads(line)["seconds"]) for line in lines]
    (folder / "checkpoint.pt").unlink()
    return {
        "arm": arm,
        "seed": seed,
        "steps": result["steps"],
        "parameters": result["parameters"],
        "bpb": round(result["validation"]["plain"]["bpb"], 6),
        "loss_nats": round(result["loss_nats"], 4),
        "milliseconds": round(1000 * float(np.quantile(np.diff(ends), 0.1)), 2),
    }


def compared(rows: list[dict[str, Any]]) -> list[str]:
    """Differences to the plain run of the same seed, best first, and plain's own spread."""
    plain = {str(row["seed"]): float(row["bpb"]) for row in rows if row["arm"] == "plain"}
    if not plain:
        return ["there is no plain run to compare with"]
    spread = statistics.stdev(plain.values()) if len(plain) > 1 else float("nan")
    mean = statistics.mean(plain.values())
    lines = [f"plain: {mean:.5f} bpb, {spread:.5f} between {len(plain)} seeds"]
    gaps: dict[str, list[float]] = {}
    step_ms: dict[str, float] = {}
    for row in rows:
        step_ms[row["arm"]] = min(step_ms.get(row["arm"], float("inf")), float(row["milliseconds"]))
        if row["arm"] != "plain" and str(row["seed"]) in plain:
            gaps.setdefault(row["arm"], []).append(float(row["bpb"]) - plain[str(row["seed"])])
    lines.append(f"{'arm':18} {'bpb against plain':>18} {'seeds':>6} {'ms a step, ratio':>17}")
    for arm, found in sorted(gaps.items(), key=lambda pair: statistics.mean(pair[1])):
        ratio = step_ms[arm] / step_ms["plain"]
        lines.append(f"{arm:18} {statistics.mean(found):+18.5f} {len(found):6} {ratio:17.3f}")
    return lines


def asked(options: argparse.Namespace, known: set[tuple[str, str]]) -> Iterator[tuple[str, int]]:
    """The runs that are not known yet, in order."""
    for arm in options.arms:
        many = arm == "plain" or arm in options.again
        for seed in options.seeds if many else options.seeds[:1]:
            if (arm, str(seed)) not in known:
                yield arm, seed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="golf-best" if torch.cuda.is_available() else "tiny")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--set", nargs="*", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1337, 1338])
    parser.add_argument("--again", nargs="*", choices=ARMS, default=[], help="for all seeds")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--eval-tokens", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("ablations"))
    options = parse(parser)
    table = Table(options.output / "ablations.csv", FIELDS)
    known = {(row["arm"], str(row["seed"])) for row in table.rows}

    def work(job: tuple[str, int], environment: dict[str, str]) -> None:
        table.add(run(options, *job, environment))

    failures = spread(asked(options, known), work, options)
    print("\n".join([*compared(table.rows), *failures]))


if __name__ == "__main__":
    main()
