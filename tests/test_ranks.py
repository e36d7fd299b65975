"""Runs on two and three ranks, over gloo, against the same runs on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from several_ranks import HALF, RECIPES, save_half
from worlds import CPU, TARGET, shards, tiny

from gptpack.training.checkpoint import Checkpoint, load_checkpoint
from gptpack.training.loop import train

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict[str, Checkpoint]:
    """What one rank makes of each recipe."""
    folder = tmp_path_factory.mktemp("one")
    return {
        name: load_checkpoint(train(tiny(*overrides), shards(), folder / name, CPU).checkpoint)
        for name, overrides in RECIPES.items()
    }


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def several(request, tmp_path_factory) -> tuple[int, Path]:
    """The number of ranks, and the folder of all they did."""
    folder = tmp_path_factory.mktemp("several")
    for name in RECIPES:
        save_half(name, folder / f"resumed-{name}", CPU)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={request.param}", str(HERE / "several_ranks.py"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return request.param, folder


def compare(found: Checkpoint, wanted: Checkpoint) -> None:
    """Weights, averages and optimizer state agree as float32 sums in another order do.

    Adam divides small gradients by their own size, with what rounding did to them: tensors are
    compared by the norm of their difference.
    """
    assert (found.step, found.training["averaged"]) == (wanted.step, wanted.training["averaged"])
    pairs = [(found.weights, wanted.weights, 2e-5, 1e-6)]
    if wanted.training["raw"]:
        pairs.append((found.training["raw"], wanted.training["raw"], 2e-5, 1e-6))
    states = found.training["optimizers"], wanted.training["optimizers"]
    assert states[0].keys() == states[1].keys() == found.weights.keys()
    pairs += [(states[0][name], states[1][name], 2e-4, 1e-9) for name in states[0]]
    for a, b, relative, absolute in pairs:
        assert a.keys() == b.keys()
        for name in a:
            assert (a[name] - b[name]).norm() <= relative * b[name].norm() + absolute, name


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_any_number_of_ranks_learns_the_same(several, one, name):
    compare(load_checkpoint(several[1] / name / "checkpoint.pt"), one[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_one_rank_goes_on_where_several_ended(several, one, name):
    folder = several[1] / f"half-{name}"
    assert load_checkpoint(folder / "checkpoint.pt").step == HALF
    train(tiny(*RECIPES[name]), shards(), folder, CPU, resume=True)
    compare(load_checkpoint(folder / "checkpoint.pt"), one[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_several_ranks_go_on_where_one_ended(several, one, name):
    compare(load_checkpoint(several[1] / f"resumed-{name}" / "checkpoint.pt"), one[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RECIPES, "clock", "pressed"])
def test_all_ranks_hold_the_same_bits(several, name):
    world, folder = several
    held = [torch.load(folder / f"{name}-{rank}.pt") for rank in range(world)]
    for other in held[1:]:
        for kind, tensors in other.items():
            assert all(torch.equal(tensors[n], held[0][kind][n]) for n in held[0][kind])


@pytest.mark.slow
def test_pressure_on_several_ranks_meets_its_target(several):
    lines = (several[1] / "pressed/metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["predicted_bytes"] == pytest.approx(TARGET, rel=0.005)
    assert last["bit_price_nats"] > 0


@pytest.mark.slow
def test_ranks_share_large_tables_that_divide_and_follow_one_clock(several):
    world, folder = several
    seen = [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(world)]
    assert [entry["first"] for entry in seen] == [2.5] * world
    assert seen[0]["tables"] == {
        "plain": ["tok_emb.weight"] if world == 2 else [],
        "clipped": ["tok_emb.weight"],
        "all": ["lm_head.weight", "tok_emb.weight"],
        "speedrun": ["lm_head.weight", "tok_emb.weight", "value_tables.0.weight"],
    }
    assert len({entry["steps"] for entry in seen}) == 1
    assert load_checkpoint(folder / "clock/checkpoint.pt").step == seen[0]["steps"] > 1
    # a process that exits while gloo's threads still run may be aborted
    assert not any("gloo" in thread for entry in seen for thread in entry["threads"])
