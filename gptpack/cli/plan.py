"""`gptpack plan`: a model's shape for a budget of bytes and seconds, by a law through runs."""

import statistics
from pathlib import Path
from typing import Any

import click

from gptpack.cli.console import note, print_json, print_table
from gptpack.cli.options import Finite


@click.command()
@click.option("--budget", required=True, metavar="SIZE", help="Most bytes, such as 16MB.")
@click.option("--seconds", type=Finite(min=0, min_open=True, max=10**9), required=True)
@click.option("--gpus", type=click.IntRange(min=1, max=10**6), default=1, show_default=True)
@click.option("--recipe", default="golf-best", show_default=True, help="Whose proportions to keep.")
@click.option(
    "--runs",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="CSV of more runs of the same kind of GPU and text; repeatable.",
)
@click.option("--own/--no-own", default=True, help="Take the project's own runs of that recipe.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    budget: str,
    seconds: float,
    gpus: int,
    recipe: str,
    files: tuple[Path, ...],
    own: bool,
    top: int,
    as_json: bool,
) -> None:
    """Propose depth, width, vocabulary and bits a weight for a budget of bytes and seconds.

    A law is fitted to runs: bits per byte by parameters and tokens, the penalty of packing by these
    and bits a weight, speed by parameters. It proposes nothing beyond half or twice of what the
    runs have, says how far it was off for each run that it had not seen (no interval is narrower
    than the median of that), and refuses where runs are too few. It tells width from depth by
    parameters alone, so proposals keep the recipe's proportions. The project's own runs of
    golf-best are few: its notes say what of the law they do not bear out.

    \b
    A CSV of runs has a line for each packed file (or trained model, the last two left empty):
      recipe,set,tokens,seconds,gpus,bpb_before,bytes,bpb_after
      golf-best,model.layers=7 model.xsa_layers=7,60030976,50.1,1,1.25669,9230411,1.2598

    \b
    Examples:
      gptpack plan --budget 16MB --seconds 300
      gptpack plan --budget 16MB --seconds 600 --gpus 8 --no-own --runs runs.csv
      gptpack plan --budget 8MB --seconds 300 --recipe seq4096 --runs a.csv --runs b.csv --json
    """
    from gptpack.cli.plan_shapes import proposals, read_runs
    from gptpack.config import load_recipe, parse_size
    from gptpack.recipe_files import RUNS, find_recipe
    from gptpack.report.law import CONFIDENCE, Law

    budget_bytes = parse_size(budget)
    base = load_recipe(find_recipe(recipe)).model
    runs = [run for path in files for run in read_runs(path)]
    if own:
        runs += read_runs(RUNS, recipe)
    law = Law(runs)
    found = proposals(law, base, budget_bytes=budget_bytes, gpu_seconds=seconds * gpus)
    misses = law.misses()
    off = sorted(abs(miss) for miss in misses.values())
    median = statistics.median(off) if off else None
    for proposal in found:
        # scatter about lines that do not hold says nothing of what lies beside them
        proposal["error_bpb"] = max(proposal["error_bpb"], median or 0.0)
    result: dict[str, Any] = {
        "runs": len(runs),
        "proposals": found[:top],
        "misses_bpb": misses,
        "median_miss_bpb": median,
        "largest_miss_bpb": off[-1] if off else None,
        "implausible": law.implausible(),
    }
    if as_json:
        print_json(result)
        return
    head = ["layers", "width", "vocab", "parameters", "bits", "tokens", "before", "penalty", "bpb"]
    print_table(
        [*head, f"+- ({100 * CONFIDENCE:.0f} %)"],
        [
            [
                f"{p['layers']}",
                f"{p['width']}",
                f"{p['vocab']}",
                f"{p['parameters']:,}",
                f"{p['bits']:.2f}",
                f"{p['tokens']:,}",
                f"{p['bpb_before']:.4f}",
                f"{p['penalty_bpb']:+.4f}",
                f"{p['bpb_after']:.4f}",
                f"{p['error_bpb']:.4f}",
            ]
            for p in found[:top]
        ],
    )
    if off:
        worst = max(misses, key=lambda name: abs(misses[name]))
        note(
            f"each run left out in turn, {len(off)} files: the law was off by "
            f"{result['median_miss_bpb']:.4f} bpb (median), {off[-1]:.4f} at most ({worst})"
        )
    else:
        note("no run can be left out and a law remain: how far it is off is not known")
    for flaw in result["implausible"]:
        note(f"careful: {flaw}")
