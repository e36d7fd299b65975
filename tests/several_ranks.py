"""What each rank of tests/test_ranks.py runs under torchrun: FOLDER."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from worlds import aware, foresight, shards, text, tiny

from gptpack.progress import silent
from gptpack.ranks import Ranks, ranks
from gptpack.training import adam
from gptpack.training.loop import Run, train
from gptpack.training.stepper import Stepper

# so that the token embedding of the tiny model goes by its rows
adam.SHARED_NUMBERS = 600

SIDES = [
    # Adam divides gradients by their own size, also those that are mostly rounding
    "optimizer.adam_eps=1e-3",
    # 66 tokens are even rows on two and on three ranks; the bigram table's 67 are on neither
    "model.vocab=66",
    "model.bigram_rows=67",
    "model.bigram_width=10",
    "model.value_embedding_layers=[1]",
    "model.value_embedding_width=6",
]
RECIPES = {
    # 6, 6, 3 and 3 matrices of a shape
    "plain": ["model.layers=3"],
    # 4, 4, 2 and 2
    "clipped": [
        *SIDES,
        "optimizer.grad_clip=0.1",
        "optimizer.ema_decay=0.7",
        "training.micro_batch_tokens=16",
    ],
    # 8, 8, 4 and 4
    "all": [
        *SIDES,
        "model.layers=4",
        "model.tied_embedding=false",
        "optimizer.grad_clip=0.1",
        "optimizer.swa_every=2",
        "optimizer.swa_start=0.5",
        "optimizer.matrix_weight_decay=0.2",
        "optimizer.adam_weight_decay=0.1",
        "optimizer.cautious_weight_decay=true",
        "optimizer.muon_method=polar-express",
        "optimizer.muon_row_norm=true",
        "optimizer.muon_variance_beta2=0.9",
    ],
    # 12, 3 and 3; with a window of 1, gradients of queries are rounding, which Muon makes large
    "speedrun": [
        "optimizer.adam_eps=1e-3",
        "model.architecture=speedrun",
        "model.vocab=66",
        "model.layers=4",
        "model.kv_heads=2",
        "model.tied_embedding=false",
        "model.document_mask=true",
        "model.value_tables=1",
        "model.attention_free_layers=[1]",
        "model.mlp_free_layers=[0]",
        "model.windows=[3,9]",
        "model.short_windows=[2,5]",
        "model.long_window_layers=[0]",
        "training.window_stages=2",
        "data.loader=bos",
    ],
}
HALF = 5
"""Steps after which a run is taken up by another number of ranks."""
CLOCK = [
    "training.seconds=0.7",
    "training.steps=100000",
    "training.checkpoint_seconds=0.2",
    "training.warmdown_steps=50",
]


def new_run(overrides: list[str], output: Path, here: Ranks) -> Run:
    output.mkdir(parents=True, exist_ok=True)
    return Run(Stepper(tiny(*overrides), shards(), here), output)


def save_half(name: str, output: Path, here: Ranks) -> None:
    """Leave the checkpoint of a run that was ended after `HALF` steps."""
    run = new_run(RECIPES[name], output, here)
    for _ in range(HALF):
        run.stepper.update(0.0)
    run.save(0.0)
    run.stepper.batches.close()


def finish(run: Run, kept: Path) -> int:
    """Train to the end, keep this rank's own weights and average; returns the steps."""
    result, stepper = run.until_done(silent), run.stepper
    stepper.batches.close()
    torch.save({"weights": stepper.model.state_dict(), "average": stepper.average.mean}, kept)
    return result.steps


def main(folder: Path) -> None:
    """`folder` has the checkpoints of one rank, to be taken up, in ``resumed-*``."""
    with ranks("cpu") as here:
        seen: dict[str, Any] = {"first": here.first(2.5 + here.rank), "tables": {}}
        for name, overrides in RECIPES.items():
            run = new_run(overrides, folder / name, here)
            seen["tables"][name] = sorted(run.stepper.optimizers.adam.tables)
            finish(run, folder / f"{name}-{here.rank}.pt")
            save_half(name, folder / f"half-{name}", here)
            train(tiny(*overrides), shards(), folder / f"resumed-{name}", here, resume=True)
        run = new_run(CLOCK, folder / "clock", here)
        seen["steps"] = finish(run, folder / f"clock-{here.rank}.pt")
        recipe = aware("optimizer.ema_decay=0.9")
        (folder / "pressed").mkdir(exist_ok=True)
        stepper = Stepper(recipe, text(), here, foresight=foresight(recipe, here=here))
        finish(Run(stepper, folder / "pressed"), folder / f"pressed-{here.rank}.pt")
    seen["threads"] = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    (folder / f"seen-{here.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
