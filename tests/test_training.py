"""The trainer: runs that follow their schedules, and that are killed, resumed or broken."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from worlds import CPU, TINY, corpus, invoke, shards, tiny

from gptpack.data.orders import Loader
from gptpack.data.shards import write_shard
from gptpack.data.splits import split_tokens
from gptpack.errors import CheckpointError, ConfigError, GptpackError, TrainingError
from gptpack.families.golf.gpt import GPT, build
from gptpack.jobs import train as jobs
from gptpack.ranks import ranks
from gptpack.training import loop
from gptpack.training.checkpoint import load_checkpoint
from gptpack.training.loop import Run, train
from gptpack.training.stepper import Stepper
from gptpack.values import TokenizerIdentity

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


def test_a_vocabulary_above_16_bits_trains_from_its_shards(tmp_path):
    vocab, ids = 70_000, [1, 65_537, 69_999, 2]
    write_shard(tmp_path / "x_train_000000.bin", np.resize(ids, 400), vocab=vocab)
    held = split_tokens(tmp_path, "train", vocab)
    assert held[0].dtype == np.uint32
    recipe = tiny(f"model.vocab={vocab}")
    checkpoint = load_checkpoint(train(recipe, held, tmp_path / "run", CPU).checkpoint)
    model = build(recipe.model, checkpoint.weights, torch.device("cpu"))
    logits = model.logits(model.hidden(torch.tensor([ids])))[0]
    assert set(logits.mean(0).topk(4).indices.tolist()) == set(ids)


def test_micro_batches_do_not_change_what_is_learned(tmp_path):
    whole = train(tiny(), shards(), tmp_path / "a", CPU)
    split = train(tiny("training.micro_batch_tokens=32"), shards(), tmp_path / "b", CPU)
    a, b = (load_checkpoint(result.checkpoint).weights for result in (whole, split))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


@pytest.fixture
def ticking(monkeypatch):
    """A clock that moves by a tenth of a second with each look, of which a step takes one."""
    looks = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: next(looks) / 10)
    monkeypatch.setattr(loop, "time", clock)


@pytest.mark.usefixtures("ticking")
def test_a_limit_in_seconds_ends_the_run_with_a_rate_near_zero(tmp_path):
    recipe = tiny("training.seconds=1.5", "training.steps=100000", "training.warmdown_steps=5")
    result = train(recipe, shards(), tmp_path / "run", CPU)
    assert result.steps == 14
    assert result.seconds == pytest.approx(1.6)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["lr_multiplier"] for line in lines]
    assert rates[:9] == [1] * 9
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.3


@pytest.mark.usefixtures("ticking")
def test_training_leaves_the_seconds_that_packing_needs(tmp_path):
    recipe = tiny(
        "training.seconds=600",
        "training.reserve_seconds=598.5",
        "training.steps=100000",
        "training.warmdown_steps=0",
        "training.warmdown_fraction=0.5",
        "training.lr_floor=0.1",
    )
    result = train(recipe, shards(), tmp_path / "run", CPU)
    assert result.steps == 14
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["lr_multiplier"] for line in lines]
    assert rates[0] == 1
    assert rates == sorted(rates, reverse=True)
    assert 0.1 <= rates[-1] < 0.4


def test_weight_decay_follows_its_taper(monkeypatch):
    recipe = tiny(
        "optimizer.matrix_weight_decay=0.5",
        "optimizer.adam_weight_decay=0.25",
        "optimizer.weight_decay_taper_start=0.5",
    )
    stepper = Stepper(recipe, shards(), CPU)
    seen, step = [], stepper.optimizers.muon.step

    def noted(**now):
        seen.append(now["weight_decay"])
        step(**now)

    monkeypatch.setattr(stepper.optimizers.muon, "step", noted)
    for _ in range(12):
        stepper.update(0.0)
        groups = stepper.optimizers.adam.adamw.param_groups
        assert [group["weight_decay"] for group in groups] == [seen[-1] / 2] * len(groups)
    stepper.batches.close()
    assert seen == pytest.approx([0.5] * 7 + [0.5 - step / 24 for step in range(1, 6)])


@pytest.mark.parametrize("average", ["ema_decay=0.9", "swa_every=1"])
def test_warming_up_leaves_no_trace(monkeypatch, average):
    recipe = tiny(f"optimizer.{average}", "optimizer.swa_start=0.0")
    stepper = Stepper(recipe, shards(), CPU)
    for _ in range(2):
        stepper.update(0.0)
    changing = [*stepper.model.state_dict().values(), *stepper.optimizers.tensors()]
    changing += stepper.average.mean.values()
    before, samples = [tensor.clone() for tensor in changing], stepper.average.samples
    seen, step = [], stepper.optimizers.step

    def noted(**now):
        seen.append(now["momentum"])
        step(**now)

    monkeypatch.setattr(stepper.optimizers, "step", noted)
    # the steps that compiling takes, without the compiler
    stepper.compiled = True
    assert stepper.warm_up() > 0
    stepper.batches.close()
    assert len(seen) == recipe.training.compile_warmup_steps
    assert (stepper.step, stepper.average.samples) == (2, samples)
    for tensor, value in zip(changing, before, strict=True):
        assert torch.equal(tensor, value)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    recipe = tiny("optimizer.scalar_lr=1e30", "training.checkpoint_seconds=0")
    with pytest.raises(TrainingError, match=r"loss of step 2 is nan .* no checkpoint had been"):
        train(recipe, shards(), tmp_path / "run", CPU)
    assert not (tmp_path / "run/checkpoint.pt").exists()


@pytest.mark.parametrize("every", [0, 1e-9])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch, every):
    recipe = tiny(f"training.checkpoint_seconds={every}")
    update = Stepper.update

    def spoilt(self, elapsed):
        found = update(self, elapsed)
        if self.step == recipe.training.steps:
            self.model.tok_emb.weight.data[0] = torch.nan
        return found

    monkeypatch.setattr(Stepper, "update", spoilt)
    kept = "the last good checkpoint is" if every else "no checkpoint had been"
    last = recipe.training.steps
    with pytest.raises(TrainingError, match=rf"after step {last} tok_emb.* is not finite; {kept}"):
        train(recipe, shards(), tmp_path / "run", CPU)
    path = tmp_path / "run/checkpoint.pt"
    assert load_checkpoint(path).step < last if every else not path.exists()


def test_a_finished_run_is_not_overwritten(tmp_path):
    train(tiny(), shards(), tmp_path / "run", CPU)
    with pytest.raises(ConfigError, match=r"exists; continue it with resume=True"):
        train(tiny(), shards(), tmp_path / "run", CPU)


def test_resuming_needs_the_same_recipe(tmp_path):
    train(tiny(), shards(), tmp_path / "run", CPU)
    other = tiny("model.layers=1", "optimizer.matrix_lr=0.1")
    with pytest.raises(CheckpointError, match=r"differs in model.layers, optimizer.matrix_lr"):
        train(other, shards(), tmp_path / "run", CPU, resume=True)


def test_resuming_needs_the_same_tokenizer(tmp_path):
    one, other = (TokenizerIdentity(sha256=2 * x * 16, vocab=64, bos=1) for x in ("ab", "cd"))
    train(tiny(), shards(), tmp_path / "run", CPU, tokenizer=one)
    with pytest.raises(CheckpointError, match="tokens of another tokenizer"):
        train(tiny(), shards(), tmp_path / "run", CPU, tokenizer=other, resume=True)


def test_a_finished_run_that_is_resumed_has_no_loss_of_its_own(tmp_path):
    train(tiny(), shards(), tmp_path / "run", CPU)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"half": 1}\n{"step"')
    result = train(tiny(), shards(), tmp_path / "run", CPU, resume=True)
    assert result.loss_nats is None
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


# the job and its command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with shards of both splits and their tokenizer."""
    return Path(shutil.copytree(corpus().data, tmp_path / "data"))


@pytest.fixture
def command(data: Path, tmp_path: Path) -> list[str]:
    """`gptpack train` of two steps."""
    sets = [*TINY, f"model.vocab={corpus().tokenizer.vocab}", "training.steps=2"]
    words = ["train", "--recipe", "tiny", "--data", str(data), "--output", str(tmp_path / "run")]
    return [*words, "--device", "cpu", "--json", *(w for item in sets for w in ("--set", item))]


@pytest.mark.parametrize(
    ("absent", "options", "said"),
    [
        ("", ["--eval-tokens", "10"], "10 targets do not fill one context of 16"),
        ("tokenizer.model", [], "no tokenizer beside the shards"),
        ("*_val_*", [], "no shards named *_val_*.bin"),
    ],
)
def test_what_cannot_be_scored_is_said_before_it_is_trained(
    command, data, tmp_path, capsys, absent, options, said
):
    for path in data.glob(absent or "nothing"):
        path.unlink()
    assert invoke(*command, *options) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "or pass --no-eval" in captured.err
    assert not (tmp_path / "run").exists()


def test_a_result_is_printed_even_where_its_scoring_fails(command, tmp_path, capsys, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise GptpackError("evaluation in a fresh process ended with status 2")

    monkeypatch.setattr(jobs, "evaluate_in_fresh_process", fail)
    assert invoke(*command) == 2
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert printed["steps"] == 2
    assert printed["validation"] is None
    assert "ended with status 2" in captured.err
    assert Path(printed["checkpoint"]).exists()


def test_later_ranks_print_nothing(command, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert invoke(*command, "--no-eval") == 0
    assert capsys.readouterr().out == ""


def test_where_nothing_can_be_written_nothing_is_trained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is not a directory"):
        train(tiny(), shards(), tmp_path / "file", CPU)
    with pytest.raises(CheckpointError, match="is not a directory"):
        train(tiny(), shards(), tmp_path / "file" / "run", CPU)


def test_a_batch_that_is_not_whole_windows_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"batch_tokens=100 must be a multiple of context=16"):
        train(tiny("training.batch_tokens=100"), shards(), tmp_path / "run", CPU)


@pytest.mark.parametrize(
    "override", [*(f"data.loader={loader}" for loader in get_args(Loader)), "training.dropout=0.2"]
)
def test_a_resumed_run_goes_on_with_the_windows_and_draws_it_would_have_had(tmp_path, override):
    recipe = tiny(override, "model.bos=0")
    data = np.array_split(shards()[0], 5)
    going, resumed = (Run(Stepper(recipe, data, CPU), tmp_path) for _ in range(2))
    for _ in range(5):
        going.stepper.update(0.0)
    going.save(0.0)
    resumed.restore()
    for stepper in (going.stepper, resumed.stepper):
        for _ in range(3):
            stepper.update(0.0)
        stepper.batches.close()
    weights = (run.stepper.model.state_dict() for run in (going, resumed))
    for a, b in zip(*(state.values() for state in weights), strict=True):
        assert torch.equal(a, b)


def test_dropout_is_in_training_and_not_in_what_is_kept(tmp_path):
    inputs = torch.from_numpy(shards()[0][: 4 * 16].astype(np.int64)).view(4, 16)
    stepper = Stepper(tiny("training.dropout=0.3"), shards(), CPU)
    for _ in range(3):
        stepper.update(0.0)
    Run(stepper, tmp_path).save(0.0)
    stepper.batches.close()
    checkpoint = load_checkpoint(tmp_path / "checkpoint.pt")
    kept = GPT(checkpoint.model)
    kept.load_state_dict(checkpoint.weights)
    with torch.no_grad():
        with_draw = stepper.model(inputs, inputs)
        stepper.dropout.draw(99)
        assert stepper.model(inputs, inputs) != with_draw
        assert kept(inputs, inputs) == kept(inputs, inputs)


RUN = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from worlds import CPU, shards, tiny
from gptpack.training.loop import train
from gptpack.training.stepper import Stepper
mode, output = sys.argv[2], Path(sys.argv[3])
update = Stepper.update
def killed(stepper, elapsed):
    if stepper.step > 60 and (output / "checkpoint.pt").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return update(stepper, elapsed)
if mode == "killed":
    Stepper.update = killed
train(tiny(*sys.argv[4:]), shards(), output, CPU, resume=mode == "resume")
"""


def run_process(mode: str, output: Path, *overrides: str) -> subprocess.Popen:
    here = str(Path(__file__).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, here, mode, str(output), *overrides]
    return subprocess.Popen(command, env=environment)


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    overrides = [
        "training.steps=150",
        "training.checkpoint_seconds=0.05",
        "optimizer.ema_decay=0.9",
    ]
    killed = run_process("killed", tmp_path / "killed", *overrides)
    metrics = tmp_path / "killed/metrics.jsonl"
    checkpoint = tmp_path / "killed/checkpoint.pt"
    assert killed.wait() == -signal.SIGKILL
    assert 0 < load_checkpoint(checkpoint).step < 150
    resumed = run_process("resume", tmp_path / "killed", *overrides)
    whole = train(tiny(*overrides), shards(), tmp_path / "whole", CPU)
    assert resumed.wait() == 0
    a, b = (load_checkpoint(path) for path in (whole.checkpoint, checkpoint))
    assert a.step == b.step == 150
    assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
    assert all(torch.equal(a.training["raw"][n], b.training["raw"][n]) for n in a.weights)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 151))


def test_resuming_removes_what_killed_saves_left_and_nothing_else(tmp_path):
    checkpoint = train(tiny("training.steps=2"), shards(), tmp_path, CPU).checkpoint
    cut, other = tmp_path / ".gptpack-0a.tmp", tmp_path / ".gptpack-0b.tmp"
    cut.write_bytes(checkpoint.read_bytes()[:1000])
    other.write_bytes(b"a packed file that somebody writes")
    train(tiny("training.steps=2"), shards(), tmp_path, CPU, resume=True)
    assert not cut.exists()
    assert other.exists()
    assert checkpoint.exists()


def test_without_torchrun_there_is_one_rank():
    with ranks("cpu") as here:
        assert (here.rank, here.world, here.main) == (0, 1, True)
        assert here.first(2.5) == 2.5


def test_the_recurrence_begins_where_the_recipe_says():
    overrides = ("model.layers=3", "model.loop_start=1", "model.loop_layers=1", "model.loops=1")
    late = ("training.steps=6", "training.recurrence_start=0.5")
    stepper = Stepper(tiny(*overrides, *late), shards(4000), CPU, compiled=False)
    seen = []
    for _ in range(6):
        stepper.update(0.0)
        seen.append(stepper.model.looped)
    stepper.batches.close()
    assert seen == [False, False, False, True, True, True]


def test_the_context_of_attention_doubles_until_the_recipe_says():
    late = ("training.steps=8", "training.context_halvings=2", "training.full_context_start=0.5")
    stepper = Stepper(tiny("model.context=32", *late), shards(4000), CPU, compiled=False)
    seen = []
    for _ in range(8):
        stepper.update(0.0)
        seen.append({block.attn.halvings for block in stepper.model.blocks})
    stepper.batches.close()
    assert seen == [{2}, {2}, {1}, {1}, {0}, {0}, {0}, {0}]


def test_resuming_a_run_that_was_killed_before_its_first_checkpoint_begins_it(tmp_path):
    whole = train(tiny(), shards(), tmp_path / "whole", CPU)
    with pytest.raises(CheckpointError, match="no run to resume; begin it without resume=True"):
        train(tiny(), shards(), tmp_path / "run", CPU, resume=True)
    begun = tmp_path / "run"
    begun.mkdir()
    (begun / "metrics.jsonl").write_text('{"step": 1, "loss_nats": 4.1}\n{"step": 2, "lo')
    result = train(tiny(), shards(), begun, CPU, resume=True)
    assert (result.steps, result.loss_nats) == (whole.steps, whole.loss_nats)
    lines = (begun / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, 13)]


def test_progress_counts_the_steps_of_a_run(tmp_path):
    said = []
    recipe = tiny("training.steps=5", "training.warmdown_steps=2")
    train(recipe, shards(), tmp_path, CPU, progress=lambda *one: said.append(one))
    steps = [(done, total) for phase, done, total in said if phase == "train (steps)"]
    assert steps == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5), (5, 5)]


def test_the_total_of_a_run_by_the_clock_follows_its_pace(tmp_path, monkeypatch):
    ticks = itertools.count(0.0, 1.0)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(ticks))
    said = []
    train(
        tiny("training.steps=1000", "training.seconds=8.0"),
        shards(),
        tmp_path,
        CPU,
        progress=lambda *one: said.append(one),
    )
    steps = [(done, total) for phase, done, total in said if phase == "train (steps)"]
    assert steps[-1][0] == steps[-1][1] < 10
    assert all(done <= total <= 1000 for done, total in steps)


@pytest.mark.parametrize("more", [["--data", "d", "--output", "r"], ["--plan"]])
def test_training_without_a_recipe_names_those_that_there_are(capsys, more):
    assert invoke("train", *more) == 2
    said = capsys.readouterr().err
    assert "training needs --recipe: baseline, demo, golf-1060" in said


def interrupts(step: int, *signals: signal.Signals):
    """A progress callback that sends signals once a run has made so many steps."""

    def progress(phase, done, total):
        if phase == "train (steps)" and done == step:
            for each in signals:
                signal.raise_signal(each)

    return progress


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(folder / "checkpoint.pt").weights)


def test_an_interrupted_run_is_saved_and_resumes_bit_for_bit(tmp_path):
    recipe = tiny("training.checkpoint_seconds=0")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, shards(), tmp_path / "a", CPU, progress=interrupts(5, signal.SIGINT))
    assert load_checkpoint(tmp_path / "a/checkpoint.pt").step == 5
    assert len((tmp_path / "a/metrics.jsonl").read_text().splitlines()) == 5
    assert train(recipe, shards(), tmp_path / "a", CPU, resume=True).steps == 12
    train(recipe, shards(), tmp_path / "b", CPU)
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_signals_are_held_back_once_and_handled_as_before_afterwards(tmp_path):
    class EndedError(Exception):
        """What SIGTERM raises here."""

    def end(*_):
        raise EndedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(EndedError):
            train(tiny(), shards(), tmp_path / "a", CPU, progress=interrupts(3, signal.SIGTERM))
        assert load_checkpoint(tmp_path / "a/checkpoint.pt").step == 3
        assert signal.getsignal(signal.SIGTERM) is end
        twice = interrupts(3, signal.SIGTERM, signal.SIGTERM)
        with pytest.raises(EndedError):
            train(tiny(), shards(), tmp_path / "b", CPU, progress=twice)
        assert not (tmp_path / "b/checkpoint.pt").exists()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_resumed_run_may_have_more_steps_and_seconds_and_no_fewer(tmp_path):
    first = tiny("training.seconds=100")
    train(first, shards(), tmp_path, CPU)
    longer = tiny("training.seconds=200", "training.steps=15")
    assert train(longer, shards(), tmp_path, CPU, resume=True).steps == 15
    for fewer in ("training.seconds=100", "training.seconds=0", "training.warmdown_steps=4"):
        other = tiny("training.seconds=200", "training.steps=15", fewer)
        with pytest.raises(CheckpointError, match=fewer.partition("=")[0]):
            train(other, shards(), tmp_path, CPU, resume=True)
