"""Training for the packed size: the estimate, its price, whole runs."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from worlds import (
    AWARE,
    CPU,
    IDENTITY,
    TARGET,
    aware,
    folder,
    foresight,
    invoke,
    shards,
    text,
    tiny,
)

from gptpack.artifact.record import PackRecord, Quality
from gptpack.calibration.collect import collect
from gptpack.calibration.text import shard_windows
from gptpack.cli.main import group
from gptpack.codec.range import estimate_bits
from gptpack.data.shards import write_shard
from gptpack.errors import BudgetError, ConfigError, QuantError
from gptpack.families.golf.gpt import GPT, build
from gptpack.inputs import file_sha256
from gptpack.packing.apart import take_apart
from gptpack.packing.config import PackConfig
from gptpack.packing.foresight import PackerForesight
from gptpack.packing.search import pack_to_budget
from gptpack.quant.allocation import Sensitivity
from gptpack.quant.grids import scale_values
from gptpack.quant.steps import Outlook, Steps
from gptpack.training.checkpoint import Checkpoint, load_checkpoint
from gptpack.training.loop import Run, RunResult, train
from gptpack.training.pressure import Pressure
from gptpack.training.rate import Rate
from gptpack.training.recipe import CompressionConfig, Recipe
from gptpack.training.stepper import Stepper


def stepper_of(recipe: Recipe, **more) -> Stepper:
    return Stepper(recipe, text(), CPU, foresight=foresight(recipe), **more)


def outlook_of(names: dict[str, torch.Tensor], seed: int = 0) -> Outlook:
    rng = np.random.default_rng(seed)
    steps = {}
    for name, weight in names.items():
        rows, columns = weight.shape
        row = scale_values(rng.integers(-200, -100, rows).astype(np.int16), per_octave=64)
        column = scale_values(rng.integers(-4, 4, columns).astype(np.int16), per_octave=4)
        noise = rng.random(columns, np.float32)
        steps[name] = Steps(row=row, column=column, noise=noise / 10)
    return Outlook(delta=0.25, steps=steps, coded_bits=0.0, other_bytes=0, noise=1 / 12)


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (24, 40), "b": (24, 40), "c": (40, 8)}
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))
        for name, shape in shapes.items()
    }


# the estimate


@pytest.mark.parametrize("spread", [0.6, 1.0, 4.0, 30.0])
def test_the_estimate_is_what_the_coder_takes(spread):
    rng = np.random.default_rng(3)
    rows, columns = np.exp(rng.normal(size=(512, 1)) / 2), np.exp(rng.normal(size=256) / 3)
    weight = (rng.normal(size=(512, 256)) * rows * columns * spread).astype(np.float32)
    parameter = {"w": torch.nn.Parameter(torch.from_numpy(weight))}
    ones = Steps(
        row=np.ones(512, np.float32),
        column=np.ones(256, np.float32),
        noise=np.zeros(256, np.float32),
    )
    rate = Rate(parameter, compiled=False)
    rate.take(Outlook(delta=1.0, steps={"w": ones}, coded_bits=0, other_bytes=0, noise=1 / 12))
    for _ in range(4):
        found = float(rate.bits(torch.tensor(1.0)).detach())
    assert found == pytest.approx(estimate_bits([np.rint(weight).astype(np.int32)]), rel=0.02)


def test_the_gradient_is_that_of_the_estimate_with_its_fit():
    weights = parameters(torch.float64)
    rate = Rate(weights, compiled=False)
    rate.take(outlook_of(weights))
    delta = torch.tensor(0.25, dtype=torch.float64)

    def bits() -> torch.Tensor:
        for _ in range(60):
            found = rate.bits(delta)
        return found

    bits().backward()
    for weight, place in ((weights["a"], (3, 5)), (weights["c"], (7, 2))):
        here, small = float(weight.detach()[place]), 1e-4
        ends = []
        for shift in (small, -small):
            with torch.no_grad():
                weight[place] = here + shift
                ends.append(float(bits()))
                weight[place] = here
        assert float(weight.grad[place]) == pytest.approx((ends[0] - ends[1]) / 2 / small, rel=1e-4)


def test_coarser_steps_take_a_bit_less_for_each_octave():
    weights = parameters()
    rate = Rate(weights, compiled=False)
    rate.take(outlook_of(weights))
    found = []
    for delta in (2e-4, 1e-4):
        for _ in range(20):
            bits = rate.bits(torch.tensor(delta))
        found.append(float(bits.detach()))
    assert found[1] - found[0] == pytest.approx(rate.weights, rel=1e-3)


def test_compiled_or_not_the_estimate_is_one_graph_with_the_same_value(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    found = []
    for compiled in (False, True):
        weights = parameters()
        rate = Rate(weights, compiled=compiled)
        rate.take(outlook_of(weights))
        bits = rate.bits(torch.tensor(0.25))
        bits.backward()
        found.append((bits.detach(), *(weight.grad for weight in weights.values())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Any]:
    """What `gptpack train --target-bytes` says of the recipe `aware`, with an average."""
    data = tmp_path_factory.mktemp("data")
    write_shard(data / "data_train_000000.bin", text()[0])
    command = ["train", "--recipe", "baseline", "--data", str(data), "--output", str(data / "run")]
    command += ["--no-eval", "--json"]
    settings = [*AWARE, "compression.looks=2", "optimizer.ema_decay=0.9"]
    command += [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(group, [*command, "--device", "cpu", "--target-bytes", "23KB"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@functools.cache
def priced(price: float) -> RunResult:
    """A run that pays so much for a bit, most of its time."""
    recipe = aware(f"compression.pressure={price}", "compression.start=0.2", "compression.looks=1")
    return train(recipe, text(), folder(f"priced-{price}"), CPU, foresight=foresight(recipe))


# runs


def test_without_a_target_training_is_what_it_was(tmp_path):
    recipe = tiny(*AWARE)
    plain = train(recipe, text(), tmp_path / "plain", CPU)
    other = train(recipe, text(), tmp_path / "other", CPU, foresight=foresight(recipe))
    a, b = (load_checkpoint(result.checkpoint).weights for result in (plain, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert plain.predicted_bytes is plain.packing_delta is None
    line = json.loads((tmp_path / "plain/metrics.jsonl").read_text().splitlines()[-1])
    assert line.keys() == {"step", "loss_nats", "lr_multiplier", "momentum", "seconds"}


def test_a_price_of_nothing_only_predicts(tmp_path):
    free, plain = priced(0), train(tiny(*AWARE), text(), tmp_path / "plain", CPU)
    a, b = (load_checkpoint(result.checkpoint).weights for result in (free, plain))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert free.predicted_bytes is not None


def test_pressure_makes_the_same_step_cheaper():
    assert priced(30).packing_delta < 0.9 * priced(0).packing_delta


def test_the_file_has_the_bytes_that_training_predicted(trained):
    checkpoint_path = Path(trained["checkpoint"])
    metrics = checkpoint_path.with_name("metrics.jsonl").read_text()
    lines = [json.loads(line) for line in metrics.splitlines()]
    assert ["predicted_bytes" in line for line in lines] == [False] * 20 + [True] * 20
    assert lines[-1]["predicted_bytes"] == pytest.approx(TARGET, rel=0.005)
    # by another calibration, on other text, and by the trellis that the packer has
    checkpoint = load_checkpoint(checkpoint_path)
    packer = take_apart(
        build(checkpoint.model, checkpoint.weights, torch.device("cpu")),
        IDENTITY,
        PackConfig(),
        sensitivities(checkpoint),
        record=PackRecord(
            checkpoint_sha256=file_sha256(checkpoint_path),
            step=checkpoint.step,
            calibration="shards",
            calibration_tokens=4096,
        ),
    )
    quality = Quality(bpb_before=1.234567, bpb_after=1.345678, context=16, tokens=123456)
    real = len(pack_to_budget(packer, delta=trained["packing_delta"]).assemble(quality))
    assert trained["predicted_bytes"] == pytest.approx(real, rel=0.01)
    assert trained["predicted_bytes"] == pytest.approx(TARGET, rel=0.01)
    packer.budget_bytes = TARGET
    fitted = pack_to_budget(packer)
    assert abs(math.log2(fitted.record.delta / trained["packing_delta"])) < 0.1


def sensitivities(checkpoint: Checkpoint) -> dict[str, Sensitivity]:
    model = GPT(checkpoint.model)
    model.load_state_dict(dict(checkpoint.weights))
    windows = shard_windows(text(), windows=256, context=16, seed=9)
    return collect(model, windows, CPU, fisher_windows=64, batch=64, seed=1).sensitivities


def test_the_price_of_a_bit_is_what_the_packer_would_give():
    recipe = aware("compression.start=0", "training.steps=3")
    stepper = stepper_of(recipe)
    for _ in range(3):
        stepper.update(0.0)
    stepper.batches.close()
    delta, price = (float(stepper.figures()[k]) for k in ("packing_delta", "bit_price_nats"))
    # one weight: 1/2 v delta^2 nats at this step, and a quarter of it with one bit more
    variance = 10 ** (-1.33 / 10) / 12
    small = 1e-4
    rise = 0.5 * variance * delta**2 * (1 - 2 ** (-2 * small))
    assert price == pytest.approx(rise / small, rel=1e-3)


def test_resuming_goes_on_bit_for_bit(tmp_path):
    recipe = aware("training.steps=12", "training.checkpoint_seconds=0")
    going, resumed = (Run(stepper_of(recipe), tmp_path) for _ in range(2))
    for _ in range(9):
        going.stepper.update(0.0)
    going.save(0.0)
    resumed.restore()
    seen = []
    for stepper in (going.stepper, resumed.stepper):
        for _ in range(3):
            stepper.update(0.0)
            seen.append({name: float(value) for name, value in stepper.figures().items()})
        stepper.batches.close()
    assert seen[:3] == seen[3:]
    states = (run.stepper.model.state_dict() for run in (going, resumed))
    for a, b in zip(*(state.values() for state in states), strict=True):
        assert torch.equal(a, b)


def test_compiling_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    recipe = aware("training.steps=12", "training.compile_warmup_steps=1")
    stepper = stepper_of(recipe, compiled=True)
    for _ in range(8):
        stepper.update(0.0)
    tensors = [*stepper.model.state_dict().values(), *stepper.optimizers.tensors()]
    before, state = [t.clone() for t in tensors], stepper.pressure.state()
    stepper.warm_up()
    stepper.batches.close()
    after = stepper.pressure.state()
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    for key in ("log2_delta", "unseen_bits", "looked"):
        assert after[key] == state[key]
    assert all(
        torch.equal(a, b)
        for a, b in zip(after["column_scales"], state["column_scales"], strict=True)
    )
    assert all(parameter.grad is None for parameter in stepper.model.parameters())


def test_the_command_trains_for_a_size_and_says_at_which_step_to_pack(trained, capsys):
    assert trained["predicted_bytes"] == pytest.approx(TARGET, rel=0.01)
    assert trained["look_seconds"] > 0
    checkpoint = load_checkpoint(Path(trained["checkpoint"]))
    assert checkpoint.recipe.compression.target_bytes == TARGET
    where = ("--data", "x", "--output", "y")
    assert invoke("train", "--recipe", "tiny", *where, "--target-bytes", "many") == 2
    assert "size 'many'" in capsys.readouterr().err


def test_a_target_that_no_step_meets_ends_the_run_and_names_one_that_works(tmp_path, monkeypatch):
    recipe = aware(target=9000)
    with pytest.raises(BudgetError, match=r"target_bytes=9,000: .* numbers that stay in floats"):
        train(recipe, text(), tmp_path / "run", CPU, foresight=foresight(recipe))
    assert not list(tmp_path.rglob("metrics.jsonl"))
    monkeypatch.setattr(Pressure, "_check_target", lambda *_: None)
    with pytest.raises(BudgetError, match=r"target_bytes=9,000: what stays in floats.* it takes"):
        train(recipe, text(), tmp_path / "run", CPU, foresight=foresight(recipe))


def test_a_target_larger_than_codes_can_fill_ends_at_the_finest_steps(tmp_path):
    recipe = aware("training.steps=8", "optimizer.embed_lr=1.0", target=10**6)
    result = train(recipe, text(), tmp_path / "run", CPU, foresight=foresight(recipe))
    assert 30_000 < result.predicted_bytes < 10**6
    assert math.isfinite(result.loss_nats)


def test_a_model_without_matrices_on_a_grid_has_no_use_for_a_target(tmp_path):
    recipe = tiny("compression.target_bytes=9000")
    teller = PackerForesight(
        build=functools.partial(build, recipe.model, device=torch.device("cpu")),
        windows=shard_windows(shards(), windows=16, context=16, seed=0),
        ranks=CPU,
    )
    with pytest.raises(QuantError, match="no matrix of this model is coded on a grid"):
        train(recipe, shards(), tmp_path / "run", CPU, foresight=teller)


def test_a_target_needs_a_foresight(tmp_path):
    with pytest.raises(ConfigError, match="needs a foresight of what the packer would do"):
        train(aware(), text(), tmp_path / "run", CPU)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_bytes", -1),
        ("start", 1.5),
        ("pressure", -1.0),
        ("pressure", math.inf),
        ("looks", 0),
    ],
)
def test_settings_are_checked(field, value):
    with pytest.raises(ConfigError, match=field):
        CompressionConfig(**{field: value})


def test_a_target_needs_no_more_text_than_there_is():
    from gptpack.jobs.train import packer_foresight

    few = [text()[0][:1000]]
    found = packer_foresight(aware(), few, IDENTITY, CPU)
    assert found is not None
    assert found.windows.shape == (1000 // 16, 16)
