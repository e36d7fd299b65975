"""What `train --plan` says, against counted parameters, torch's own counters and a real pack."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_packing import case
from torch.utils.flop_counter import FlopCounterMode
from worlds import CPU, invoke, shards, tiny

from gptpack.data.shards import write_shard
from gptpack.errors import BudgetError, ConfigError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.jobs.train_plan import plan
from gptpack.training import plan as planning
from gptpack.training.plan import (
    HEADER_BYTES,
    LENGTHS,
    MOST_BITS,
    Polynomial,
    artifact_bytes,
    bits_allowed,
    expected_steps,
    flops_per_token,
    memory,
    saved_bytes,
    training_flops,
)
from gptpack.training.recipe import Recipe, load_recipe
from gptpack.training.stepper import Stepper

SHAPES = {
    "tied": ModelConfig(vocab=64, layers=3, width=32, heads=4, kv_heads=2, mlp_hidden=48),
    "separate head": ModelConfig(
        vocab=80, layers=2, width=16, heads=2, kv_heads=2, mlp_hidden=64, tied_embedding=False
    ),
    "side tables": ModelConfig(
        vocab=64,
        layers=2,
        width=16,
        heads=2,
        kv_heads=1,
        mlp_hidden=32,
        xsa_layers=2,
        smear_gate=True,
        bigram_rows=50,
        bigram_width=8,
        value_embedding_layers=(1,),
        value_embedding_width=4,
    ),
}


def stepper_of(recipe: Recipe) -> Stepper:
    return Stepper(recipe, shards(), CPU)


@given(*[st.integers(0, 10**12)] * 3)
def test_three_lengths_determine_a_cost(constant, linear, quadratic):
    wanted = Polynomial(constant=constant, linear=linear, quadratic=quadratic)
    costs = [constant + linear * length + quadratic * length**2 for length in LENGTHS]
    assert Polynomial.through(costs) == wanted


@pytest.mark.parametrize("name", SHAPES)
def test_operations_are_those_of_torchs_counter_on_a_real_pass(name):
    config = SHAPES[name]
    model = GPT(config)
    model.use_attention("math")
    tokens = torch.randint(0, config.vocab, (3, 37))
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens).backward()
    flops = training_flops(config)
    assert counter.get_total_flops() == 3 * (37 * flops.linear + 37**2 * flops.quadratic)


@pytest.mark.parametrize("name", SHAPES)
def test_operations_are_six_a_weight_and_those_of_attention(name):
    config = SHAPES[name]
    tables = {"bigram.embed.weight", "ve_shared.embed.weight"}
    if not config.tied_embedding:
        tables.add("tok_emb.weight")
    matrices = sum(
        parameter.numel()
        for key, parameter in GPT(config).named_parameters()
        if key.endswith(".weight") and key not in tables
    )
    flops = training_flops(config)
    assert flops.linear == 6 * matrices
    assert flops.quadratic == 12 * config.layers * config.width
    causal = 6 * config.layers * config.width * config.context
    assert flops_per_token(config) == 6 * matrices + causal


def test_a_speedruns_attention_reaches_no_further_than_its_windows():
    config = load_recipe("speedrun-2025-07").model
    flops = training_flops(config)
    tables = (config.value_tables + 1) * config.vocab * config.width
    assert flops.linear == 6 * (275_742_720 - tables)
    # 11 layers attend, 3 of them far
    assert flops.quadratic == 12 * 11 * 768
    assert flops_per_token(config) == flops.linear + 12 * 768 * (3 * 1792 + 8 * 896)
    assert flops_per_token(replace(config, context=1024)) == flops.linear + flops.quadratic * 512


@pytest.mark.parametrize("name", SHAPES)
def test_activations_are_what_a_pass_over_a_batch_keeps(name):
    config = SHAPES[name]
    model = GPT(config)
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    tokens = torch.randint(0, config.vocab, (5, 96))
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tokens, tokens)
    saved = saved_bytes(model)
    expected = saved.constant + 5 * (96 * saved.linear + 96**2 * saved.quadratic)
    assert sum(storage.nbytes() for storage in kept.values()) == pytest.approx(expected, rel=0.02)
    assert loss.isfinite()


OPTIMIZERS = {
    "plain": [],
    "average": ["optimizer.ema_decay=0.9"],
    "samples": ["optimizer.swa_every=2"],
    "small momentum": ["optimizer.muon_momentum_dtype=bfloat16"],
    "variance": ["optimizer.muon_variance_beta2=0.9"],
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_memory_is_that_of_the_tensors_of_a_run(name):
    stepper = stepper_of(tiny(*OPTIMIZERS[name]))
    expected = memory(stepper)
    for _ in range(2):
        stepper.update(0.0)
    stepper.batches.close()
    parameters = list(stepper.model.parameters())
    state = [tensor for kinds in stepper.optimizers.state().values() for tensor in kinds.values()]
    averaged = name in ("average", "samples")
    assert expected.weights_bytes == sum(parameter.nbytes for parameter in parameters)
    assert expected.gradients_bytes == expected.weights_bytes
    assert expected.optimizer_bytes == sum(tensor.nbytes for tensor in state)
    assert expected.average_bytes == (expected.weights_bytes if averaged else 0)
    assert expected.total_bytes > expected.activations_bytes > 0


def test_memory_follows_the_micro_batch():
    steppers = [
        stepper_of(tiny(f"training.micro_batch_tokens={tokens}")) for tokens in (16, 32, 96)
    ]
    one, two, six = (memory(stepper).activations_bytes for stepper in steppers)
    assert six - one == 5 * (two - one)
    for stepper in steppers:
        stepper.batches.close()


# seconds


def test_a_stated_rate_is_arithmetic():
    recipe = tiny()
    figures = plan(recipe, shards(), CPU, flops=1e9)
    flops = flops_per_token(recipe.model) * 96
    assert figures["seconds_per_step"] == pytest.approx(flops / 1e9)
    assert "TFLOP/s, as stated" in figures["seconds_source"]


def test_ranks_share_a_steps_arithmetic():
    stepper = stepper_of(tiny())
    whole = planning.time_from_rate(stepper, 1e9, "").seconds
    stepper.share = range(1, 3)
    assert planning.time_from_rate(stepper, 1e9, "").seconds == pytest.approx(whole / 3)
    stepper.batches.close()


def test_short_steps_are_timed_and_long_ones_are_not(monkeypatch):
    monkeypatch.setattr(planning, "TIMING_SECONDS", 1e9)
    timed = plan(tiny(), shards(), CPU)
    assert timed["seconds_source"] == "3 steps timed, uncompiled"
    assert timed["seconds_per_step"] > 0
    monkeypatch.setattr(planning, "TIMING_SECONDS", 0.0)
    monkeypatch.setattr(Stepper, "update", None)
    probed = plan(tiny(), shards(), CPU)
    assert probed["seconds_source"].endswith("measured on 16 tokens")
    assert probed["seconds_per_step"] > 0


LATE = [f"model.{part}" for part in ("loop_start=1", "loop_layers=1", "loops=3")]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        # by the clock: 4 s of steps of 1 s, then 12 s of steps of 3 s
        (["training.seconds=16", "training.steps=1000"], 16 / (4 + 4)),
        (["training.seconds=0", "training.steps=8"], (2 * 1 + 6 * 3) / 8),
        (["training.seconds=1000", "training.steps=8"], (2 * 1 + 6 * 3) / 8),
    ],
)
def test_late_recurrence_counts_for_its_part_of_the_run(limits, expected):
    recipe = tiny("model.layers=2", *LATE, *limits, "training.recurrence_start=0.25")
    assert planning.mean_seconds(recipe, [1.0, 3.0]) == pytest.approx(expected)


def test_steps_are_timed_without_recurrence_and_with_it(monkeypatch):
    recipe = tiny("model.layers=2", *LATE, "training.recurrence_start=0.5", "training.seconds=0")
    looped, update = [], Stepper.update

    def watched(self, elapsed, **how):
        found = update(self, elapsed, **how)
        looped.append(self.model.looped)
        return found

    monkeypatch.setattr(Stepper, "update", watched)
    timed = plan(recipe, shards(), CPU)
    assert "of each of the run's 2 phases" in timed["seconds_source"]
    assert looped.count(True) == looped.count(False) == 1 + planning.TIMED_STEPS
    stated = plan(recipe, shards(), CPU, flops=1e9)["seconds_per_step"]
    once, always = (
        plan(tiny("model.layers=2", *settings), shards(), CPU, flops=1e9)["seconds_per_step"]
        for settings in ([], LATE)
    )
    assert stated == pytest.approx((once + always) / 2)


def test_a_target_of_the_recipe_is_the_budget_of_its_plan():
    recipe = tiny("compression.target_bytes=40000")
    figures = plan(recipe, shards(), CPU, flops=1e9)
    assert figures["budget_bytes"] == 40000
    assert figures["looks"] == recipe.compression.looks
    assert plan(recipe, shards(), CPU, flops=1e9, bits=2.0)["bits_per_weight"] == 2.0


def test_looks_at_the_packer_take_from_the_clock():
    stepper = stepper_of(tiny("training.seconds=10", "training.steps=700"))
    assert expected_steps(stepper, 0.5, lost_seconds=4) == 12
    assert expected_steps(stepper, 0.5, lost_seconds=40) == 0
    assert planning.time_look(stepper) == 0
    stepper.batches.close()


def test_a_look_is_timed_where_steps_are(tmp_path, capsys):
    write_shard(tmp_path / "data_train_000000.bin", np.arange(30_000) % 60)
    command = ["train", "--recipe", "tiny", "--plan", "--data", str(tmp_path), "--json"]
    command += ["--device", "cpu", "--set", "training.batch_tokens=1024"]
    command += ["--target-bytes", "50KB", "--set", "compression.looks=3"]
    assert invoke(*command) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["looks"], figures["budget_bytes"]) == (3, 50_000)
    assert figures["seconds_per_look"] > 0
    assert invoke(*command, "--flops", "1e9") == 0
    assert json.loads(capsys.readouterr().out)["seconds_per_look"] is None


def test_a_step_that_does_not_fit_says_what_to_lower(tmp_path, monkeypatch):
    def full(*_args, **_how):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Stepper, "update", full)
    with pytest.raises(ConfigError, match=r"cpu does not hold .* lower training.micro_batch"):
        plan(tiny(), shards(), CPU)


@pytest.mark.parametrize(
    ("settings", "seconds", "steps"),
    [
        (["training.seconds=0", "training.steps=7"], 100.0, 7),
        (["training.seconds=10", "training.steps=7"], 100.0, 1),
        (["training.seconds=10", "training.steps=700"], 0.5, 20),
        (["training.seconds=10", "training.reserve_seconds=4", "training.steps=700"], 0.5, 12),
    ],
)
def test_steps_are_as_many_as_both_limits_allow(settings, seconds, steps):
    stepper = stepper_of(tiny(*settings))
    assert expected_steps(stepper, seconds) == steps
    stepper.batches.close()


# bytes


@given(coded=st.integers(1000, 10**8), kept=st.integers(0, 10**6), budget=st.integers(10**4, 10**8))
def test_the_bits_of_a_budget_fill_it(coded, kept, budget):
    if budget <= HEADER_BYTES + 2 * kept:
        with pytest.raises(BudgetError, match="nothing is left"):
            bits_allowed(coded, kept, budget)
        return
    bits = bits_allowed(coded, kept, budget)
    size = artifact_bytes(coded, kept, bits)
    assert size == budget or (bits == MOST_BITS and size < budget)


def test_expected_bytes_are_those_of_a_real_pack():
    chosen = case(width=96)
    packer = chosen.packer()
    packed = chosen.pack(delta=0.005)
    kept = sum(int(np.prod(tensor.shape)) for tensor in packer.fixed.values())
    # codes' bits in the real file, with their scales and tables
    entries = packed.encoded.sections
    codes = sum(entry.stored_bytes for entry in entries if not entry.name.startswith("float16"))
    size = len(packed.assemble())
    expected = artifact_bytes(packer.weights, kept, 8 * codes / packer.weights)
    assert 0 <= expected - size < 1500


# the command


def test_a_plan_writes_nothing_and_needs_no_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke("train", "--recipe", "tiny", "--plan", "--json", "--device", "cpu") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["parameters"] == 123_464
    assert figures["coded_parameters"] == 114_688
    assert figures["bits_per_weight"] == 3.0
    assert figures["epochs"] is None
    assert figures["tokens"] == figures["steps"] * 1024
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("loader", ["sequential", "coprime", "shuffled", "bos"])
def test_a_plan_with_data_counts_epochs(loader, tmp_path, capsys):
    tokens = np.arange(30_000) % 500 + 5
    tokens[::100] = 1
    write_shard(tmp_path / "x_train_000000.bin", tokens)
    command = ["train", "--recipe", "tiny", "--plan", "--data", str(tmp_path), "--flops", "1e9"]
    command += ["--set", f"data.loader={loader}", "--budget", "60KB", "--device", "cpu"]
    assert invoke(*command, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    used = {"sequential": 30_000, "bos": 300 * 64}.get(loader, 29_999 // 64 * 64)
    assert figures["epochs"] == figures["tokens"] / used
    assert figures["artifact_bytes"] == figures["budget_bytes"] == 60_000
    assert invoke(*command) == 0
    out = capsys.readouterr().out
    for row in ("parameters", "memory, GB: total", "milliseconds a step", f"data, {loader}"):
        assert row in out


def test_a_plan_of_more_seconds_than_floats_have_is_limited_by_its_steps(capsys):
    command = ["train", "--recipe", "tiny", "--plan", "--flops", "1e21", "--device", "cpu"]
    assert invoke(*command, "--set", "training.seconds=3e38", "--json") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == load_recipe("tiny").training.steps


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--plan", "--bits", "3", "--budget", "1MB"], 2, "exclude each other"),
        (["--plan", "--target-bytes", "1MB", "--budget", "1MB"], 2, "leave out the other"),
        (["--target-bytes", "0", "--data", "x", "--output", "y"], 2, "--target-bytes 0: leave it"),
        (["--plan", "--bits", "0"], 2, "0.0 is not in the range 0<x<=16"),
        (["--plan", "--bits", "1e308"], 2, "1e+308 is not in the range 0<x<=16"),
        (["--plan", "--flops", "-1"], 2, "is not in the range 0<x<=1e+21"),
        (["--plan", "--flops", "1e308"], 2, "is not in the range 0<x<=1e+21"),
        (["--plan", "--bits", "nan"], 2, "is not a finite number"),
        (["--plan", "--budget", "3KB", "--flops", "1e9"], 1, "nothing is left"),
        (["--bits", "3", "--data", "x", "--output", "y"], 2, "does nothing without --plan"),
        (["--output", "y"], 2, "needs --data and --output"),
    ],
)
def test_options_that_make_no_sense_have_their_status(options, status, message, capsys):
    assert invoke("train", "--recipe", "tiny", "--device", "cpu", *options) == status
    assert message in capsys.readouterr().err
