"""The trainer: schedules, optimizers, batches, and runs that are killed, resumed or broken."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from gptpack.checkpoint import load_checkpoint
from gptpack.config import Loader, OptimizerConfig, Recipe, load_recipe
from gptpack.errors import CheckpointError, ConfigError, TrainingError
from gptpack.model.gpt import GPT
from gptpack.training.distributed import Ranks, ranks
from gptpack.training.loop import Run, train
from gptpack.training.muon import Muon, orthogonalize
from gptpack.training.optimizers import Optimizers

TINY = [
    "model.layers=2",
    "model.width=16",
    "model.heads=2",
    "model.kv_heads=1",
    "model.mlp_hidden=32",
    "model.vocab=64",
    "model.context=16",
    "training.batch_tokens=96",
    "training.steps=12",
    "training.seconds=0",
    "training.warmdown_steps=5",
]
CPU = Ranks(0, 1, torch.device("cpu"))


def tiny(*overrides: str) -> Recipe:
    return load_recipe(None, [*TINY, *overrides])


def shards(tokens: int = 3000) -> list[np.ndarray]:
    steps = np.random.default_rng(0).integers(0, 3, tokens)
    return [np.cumsum(steps).astype(np.uint16) % 64]


# optimizers


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 16), (1, 16, 4), (1, 1, 5)])
def test_newton_schulz_pushes_singular_values_towards_one(shape):
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(shape, generator=generator)
    result = orthogonalize(gradients, 5, torch.float32)
    values = torch.linalg.svdvals(result)
    assert (values > 0.3).all()
    assert (values < 1.3).all()
    # the singular vectors stay: U^T X V is diagonal
    u, _, vh = torch.linalg.svd(gradients, full_matrices=False)
    inner = u.mT @ result @ vh.mT
    off_diagonal = inner - torch.diag_embed(torch.diagonal(inner, dim1=1, dim2=2))
    assert off_diagonal.abs().max() < 1e-3


def test_muon_equals_its_formula_one_matrix_at_a_time():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((6, 4), (6, 4), (4, 6))]
    matrices = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    muon = Muon(matrices, lr=0.1, momentum=0.9, weight_decay=0.5)
    buffers = [torch.zeros_like(matrix) for matrix in start]
    wanted = [matrix.clone() for matrix in start]
    for _ in range(3):
        for index, matrix in enumerate(matrices):
            matrix.grad = torch.randn(matrix.shape, generator=generator)
            buffers[index] = 0.9 * buffers[index] + matrix.grad
            update = matrix.grad + 0.9 * buffers[index]
            update = orthogonalize(update.unsqueeze(0), 5, torch.float32)[0]
            scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            wanted[index] = wanted[index] * (1 - 0.1 * 0.5) - 0.1 * scale * update
        muon.step()
    for matrix, target in zip(matrices, wanted, strict=True):
        torch.testing.assert_close(matrix.detach(), target, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_exactly_one_optimizer(tied):
    model_config = dataclasses.replace(
        tiny().model,
        tied_embedding=tied,
        bigram_rows=9,
        bigram_width=4,
        smear_gate=True,
        value_embedding_layers=(1,),
        value_embedding_width=4,
    )
    model = GPT(model_config)
    optimizers = Optimizers(model, OptimizerConfig(), compiled=False)
    owned = [
        parameter
        for optimizer in (optimizers.muon, optimizers.adam)
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert sorted(map(id, owned)) == sorted(map(id, model.parameters()))
    muon = {id(p) for group in optimizers.muon.param_groups for p in group["params"]}
    named = {name for name, p in model.named_parameters() if id(p) in muon}
    assert named == {
        f"blocks.{layer}.{role}.weight"
        for layer in range(2)
        for role in ("attn.c_q", "attn.c_k", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj")
    }


# runs


def test_training_learns_and_writes_one_line_per_step(tmp_path):
    result = train(tiny("training.steps=60"), shards(), tmp_path / "run", CPU)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss_nats"] for line in lines]
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 61))
    assert losses[0] == pytest.approx(np.log(64), abs=0.05)
    assert losses[-1] < losses[0] - 1
    assert result.loss_nats == losses[-1]
    assert result.tokens == 60 * 96


def test_micro_batches_do_not_change_what_is_learned(tmp_path):
    whole = train(tiny(), shards(), tmp_path / "a", CPU)
    split = train(tiny("training.micro_batch_tokens=32"), shards(), tmp_path / "b", CPU)
    a, b = (load_checkpoint(result.checkpoint).weights for result in (whole, split))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


def test_a_limit_in_seconds_ends_the_run_with_a_rate_near_zero(tmp_path):
    recipe = tiny("training.seconds=1.5", "training.steps=100000", "training.warmdown_steps=50")
    result = train(recipe, shards(), tmp_path / "run", CPU)
    assert 1.5 <= result.seconds < 10
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["lr_multiplier"] == 1
    assert json.loads(lines[-1])["lr_multiplier"] < 0.5


def test_training_leaves_the_seconds_that_packing_needs(tmp_path):
    recipe = tiny(
        "training.seconds=600",
        "training.reserve_seconds=599.2",
        "training.steps=100000",
        "training.warmdown_steps=0",
        "training.warmdown_fraction=0.5",
        "training.lr_floor=0.1",
    )
    result = train(recipe, shards(), tmp_path / "run", CPU)
    assert 0.8 <= result.seconds < 10
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["lr_multiplier"] for line in lines]
    assert rates[0] == 1
    assert rates == sorted(rates, reverse=True)
    assert 0.1 <= rates[-1] < 0.4


def test_weight_decay_follows_its_taper(tmp_path):
    recipe = tiny(
        "optimizer.matrix_weight_decay=0.5",
        "optimizer.adam_weight_decay=0.25",
        "optimizer.weight_decay_taper_start=0.5",
    )
    run = Run(recipe, shards(), tmp_path, CPU, None, "auto", None)
    seen = []
    for _ in range(12):
        run.update(0.0)
        decays = [group["weight_decay"] for group in run.optimizers.muon.param_groups]
        decays += [group["weight_decay"] for group in run.optimizers.adam.param_groups]
        assert decays == [decays[0], *[decays[0] / 2] * (len(decays) - 1)]
        seen.append(decays[0])
    run.batches.close()
    assert seen == pytest.approx([0.5] * 7 + [0.5 - step / 24 for step in range(1, 6)])


def test_the_checkpoint_holds_the_average_where_one_is_kept(tmp_path):
    plain = train(tiny(), shards(), tmp_path / "a", CPU)
    averaged = train(tiny("optimizer.ema_decay=0.5"), shards(), tmp_path / "b", CPU)
    a, b = load_checkpoint(plain.checkpoint), load_checkpoint(averaged.checkpoint)
    raw = b.training["raw"]
    assert all(torch.equal(a.weights[name], raw[name]) for name in raw)
    assert not torch.equal(a.weights["tok_emb.weight"], b.weights["tok_emb.weight"])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    recipe = tiny("optimizer.scalar_lr=inf", "training.checkpoint_seconds=0")
    with pytest.raises(TrainingError, match=r"loss of step 2 is nan .* no checkpoint had been"):
        train(recipe, shards(), tmp_path / "run", CPU)
    assert not (tmp_path / "run/checkpoint.pt").exists()


def test_a_finished_run_is_not_overwritten(tmp_path):
    train(tiny(), shards(), tmp_path / "run", CPU)
    with pytest.raises(ConfigError, match=r"exists; continue it with --resume"):
        train(tiny(), shards(), tmp_path / "run", CPU)


def test_resuming_needs_the_same_recipe(tmp_path):
    train(tiny(), shards(), tmp_path / "run", CPU)
    other = tiny("model.layers=1", "optimizer.matrix_lr=0.1")
    with pytest.raises(CheckpointError, match=r"differs in model.layers, optimizer.matrix_lr"):
        train(other, shards(), tmp_path / "run", CPU, resume=True)


def test_a_batch_that_is_not_whole_windows_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"batch_tokens=100 must be a multiple of context=16"):
        train(tiny("training.batch_tokens=100"), shards(), tmp_path / "run", CPU)


@pytest.mark.parametrize("loader", get_args(Loader))
def test_a_resumed_run_goes_on_with_the_windows_it_would_have_had(tmp_path, loader):
    recipe = tiny(f"data.loader={loader}", "model.bos=0")
    data = np.array_split(shards()[0], 5)
    going, resumed = (Run(recipe, data, tmp_path, CPU, None, "auto", None) for _ in range(2))
    for _ in range(5):
        going.update(0.0)
    going.save(0.0)
    resumed.restore()
    for run in (going, resumed):
        for _ in range(3):
            run.update(0.0)
        run.batches.close()
    weights = (run.model.state_dict() for run in (going, resumed))
    for a, b in zip(*(state.values() for state in weights), strict=True):
        assert torch.equal(a, b)


RUN = """
import sys, numpy as np
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_training import CPU, shards, tiny
from gptpack.training.loop import train
resume, output = sys.argv[2] == "resume", Path(sys.argv[3])
train(tiny(*sys.argv[4:]), shards(), output, CPU, resume=resume)
"""


def run_process(mode: str, output: Path, *overrides: str) -> subprocess.Popen:
    here = str(Path(__file__).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, here, mode, str(output), *overrides]
    return subprocess.Popen(command, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("ema", ["0.0", "0.9"])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, ema):
    overrides = [
        "training.steps=400",
        "training.checkpoint_seconds=0.05",
        f"optimizer.ema_decay={ema}",
    ]
    whole = run_process("new", tmp_path / "whole", *overrides)
    killed = run_process("new", tmp_path / "killed", *overrides)
    metrics = tmp_path / "killed/metrics.jsonl"
    checkpoint = tmp_path / "killed/checkpoint.pt"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if checkpoint.exists() and metrics.read_text().count("\n") > 100:
            break
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 0 < load_checkpoint(checkpoint).step < 400
    assert run_process("resume", tmp_path / "killed", *overrides).wait() == 0
    assert whole.wait() == 0
    a, b = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert a.step == b.step == 400
    assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 401))


DISTRIBUTED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_training import shards, tiny
from gptpack.training.distributed import ranks
from gptpack.training.loop import train
with ranks("cpu") as here:
    train(tiny(), shards(), Path(sys.argv[2]), here)
"""


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_ranks_learns_the_same(tmp_path, world):
    script = tmp_path / "script.py"
    script.write_text(DISTRIBUTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={world}", str(script), str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "many")], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    single = train(tiny(), shards(), tmp_path / "one", CPU)
    a = load_checkpoint(single.checkpoint).weights
    b = load_checkpoint(tmp_path / "many/checkpoint.pt").weights
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


def test_without_torchrun_there_is_one_rank():
    with ranks("cpu") as here:
        assert (here.rank, here.world, here.main) == (0, 1, True)
        assert here.first(2.5) == 2.5


def test_the_recurrence_begins_where_the_recipe_says(tmp_path):
    overrides = ("model.layers=3", "model.loop_start=1", "model.loop_layers=1", "model.loops=1")
    late = ("training.steps=6", "training.recurrence_start=0.5")
    run = Run(tiny(*overrides, *late), shards(4000), tmp_path, CPU, None, "auto", False)
    seen = []
    for _ in range(6):
        run.update(0.0)
        seen.append(run.model.looped)
    run.batches.close()
    assert seen == [False, False, False, True, True, True]
