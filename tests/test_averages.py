"""EMA and SWA: what the checkpoint and the packed file hold is the average, worked out by hand."""

from pathlib import Path

import pytest
import torch
from worlds import CPU, invoke, shards, tiny

from gptpack.families.golf.gpt import GPT
from gptpack.jobs.load import load
from gptpack.training.averages import Average
from gptpack.training.checkpoint import load_checkpoint
from gptpack.training.loop import Run, RunResult, train
from gptpack.training.stepper import Stepper
from gptpack.values import TokenizerIdentity

IDENTITY = TokenizerIdentity(sha256="ab" * 32, vocab=64, bos=1)
Weights = dict[str, torch.Tensor]
KINDS = {
    "ema": ["optimizer.ema_decay=0.8"],
    "swa": ["optimizer.swa_every=3", "optimizer.swa_start=0.4"],
}


def followed(output: Path, monkeypatch, *overrides: str) -> tuple[RunResult, list[Weights]]:
    """A run, and its weights before the first step and after each."""
    seen: list[Weights] = []

    def copy(stepper: Stepper) -> Weights:
        return {name: value.double() for name, value in stepper.model.state_dict().items()}

    update = Stepper.update

    def noted(stepper: Stepper, elapsed: float):
        if not seen:
            seen.append(copy(stepper))
        result = update(stepper, elapsed)
        seen.append(copy(stepper))
        return result

    monkeypatch.setattr(Stepper, "update", noted)
    result = train(tiny(*overrides), shards(), output, CPU, tokenizer=IDENTITY)
    monkeypatch.setattr(Stepper, "update", update)
    return result, seen


def by_hand(kind: str, seen: list[Weights]) -> Weights:
    if kind == "ema":
        mean = seen[0]
        for weights in seen[1:]:
            mean = {name: 0.8 * mean[name] + 0.2 * weights[name] for name in mean}
        return mean
    # of 12 steps, the share 0.4 is done before the 6th: steps 6, 9, 12 are every third from there
    return {name: (seen[6][name] + seen[9][name] + seen[12][name]) / 3 for name in seen[0]}


@pytest.mark.parametrize("kind", KINDS)
def test_what_gets_packed_is_the_average_of_the_steps_weights(tmp_path, monkeypatch, kind):
    result, seen = followed(tmp_path / "run", monkeypatch, *KINDS[kind])
    assert len(seen) == 13
    mean, last = by_hand(kind, seen), seen[-1]
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.weights.keys() == mean.keys()
    for name, value in checkpoint.weights.items():
        torch.testing.assert_close(value.double(), mean[name], rtol=1e-6, atol=1e-7)
        assert torch.equal(checkpoint.training["raw"][name].double(), last[name])
    packed = tmp_path / "model.gptpack"
    command = ["pack", str(result.checkpoint), "--budget", "1MB", "--method", "float16"]
    assert invoke(*command, "--output", str(packed), "--device", "cpu") == 0
    state = load(packed).model.state_dict()
    assert state.keys() == mean.keys()
    for name, value in state.items():
        # float16 on the way
        torch.testing.assert_close(value.double(), mean[name], rtol=1e-3, atol=1e-6)
    moved = [name for name in state if not torch.allclose(state[name].double(), last[name], 1e-2)]
    assert len(moved) > len(state) / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [2, 7])
def test_a_resumed_run_ends_with_the_average_it_would_have_had(tmp_path, kind, step):
    recipe = tiny(*KINDS[kind])
    whole = train(recipe, shards(), tmp_path / "whole", CPU)
    (tmp_path / "halved").mkdir()
    run = Run(Stepper(recipe, shards(), CPU), tmp_path / "halved")
    for _ in range(step):
        run.stepper.update(0.0)
    run.save(0.0)
    run.stepper.batches.close()
    resumed = train(recipe, shards(), tmp_path / "halved", CPU, resume=True)
    a, b = (load_checkpoint(result.checkpoint) for result in (whole, resumed))
    assert a.training["averaged"] == b.training["averaged"]
    assert resumed.weights == whole.weights
    for name in a.weights:
        assert torch.equal(a.weights[name], b.weights[name])
        assert torch.equal(a.training["raw"][name], b.training["raw"][name])


def test_a_run_without_an_average_packs_the_last_weights(tmp_path, monkeypatch):
    result, seen = followed(tmp_path / "run", monkeypatch)
    checkpoint = load_checkpoint(result.checkpoint)
    assert result.weights == "those of the last step"
    assert checkpoint.training["raw"] is None
    assert all(torch.equal(checkpoint.weights[n].double(), seen[-1][n]) for n in seen[0])


def test_an_average_that_took_no_step_says_so(tmp_path):
    result = train(tiny("optimizer.swa_every=20"), shards(), tmp_path / "run", CPU)
    assert result.weights == "those of the last step, SWA had no step to take"
    assert load_checkpoint(result.checkpoint).training["raw"] is None


@pytest.mark.parametrize(("setting", "name"), [("ema_decay=0.5", "EMA"), ("swa_every=1", "SWA")])
def test_a_run_of_no_step_names_the_average_that_it_was_to_keep(setting, name):
    average = Average(GPT(tiny().model, seed=0), tiny(f"optimizer.{setting}").optimizer)
    assert average.told == f"those of the last step, {name} had no step to take"


def test_which_weights_are_kept_is_told_in_words(tmp_path):
    ema, swa = (train(tiny(*KINDS[kind]), shards(), tmp_path / kind, CPU) for kind in KINDS)
    assert ema.weights == "exponential average, decay 0.8"
    assert swa.weights == "mean of the weights after 3 steps (SWA)"


def test_swa_begins_where_the_schedules_say():
    model = torch.nn.Linear(1, 1)
    config = tiny("optimizer.swa_every=2", "optimizer.swa_start=0.5").optimizer
    average = Average(model, config)
    taken = []
    for step in range(1, 11):
        average.update(step, (step - 1) / 10)
        taken.append(average.samples)
    # the 6th step is the first that is made with half of the run done
    assert taken == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3]
