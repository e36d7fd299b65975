"""Channels that give less than their bytes are worth: left out, and nothing else is."""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from test_packing import case
from worlds import CPU

from gptpack.artifact.reader import decode_artifact
from gptpack.calibration.collect import collect
from gptpack.calibration.text import random_tokens
from gptpack.cli.pack_report import print_report
from gptpack.families.golf.gpt import GPT
from gptpack.jobs.pack import Packed
from gptpack.packing.apart import take_apart
from gptpack.packing.config import PackConfig
from gptpack.packing.packer import CodedFile, Packer, grid_bytes
from gptpack.packing.progressive import ProgressiveConfig, pack_progressively
from gptpack.packing.search import pack_to_budget
from gptpack.quant.types import dequantize

IDLE = [3, 17, 18, 63]
"""Channels of the first layer whose outputs are hardly used."""
DELTA = 0.003
FEEDS = {f"blocks.{i}.mlp.fc.weight": f"blocks.{i}.mlp.proj.weight" for i in range(2)}
FIRST, SECOND = next(iter(FEEDS.items()))


@functools.cache
def model() -> GPT:
    """A model all of whose channels matter but those."""
    found = copy.deepcopy(case().model)
    with torch.no_grad():
        found.get_parameter(SECOND)[:, IDLE] *= 1e-2
    return found.eval()


@functools.cache
def sensitivities():
    windows = random_tokens(64, windows=32, context=32, seed=0)
    return collect(model(), windows, CPU, fisher_windows=8, batch=16, seed=0).sensitivities


def packer_of(**settings) -> Packer:
    config = PackConfig(**{"states": 8, "codecs": ("raw", "range"), **settings})
    return take_apart(model(), case().tokenizer, config, sensitivities())


def decoded(packed: CodedFile) -> dict[str, np.ndarray]:
    return {t.name: dequantize(t) for t in decode_artifact(packed.assemble()).tensors}


def logits_of(values: dict[str, np.ndarray]) -> torch.Tensor:
    student = copy.deepcopy(model())
    student.load_state_dict({name: torch.from_numpy(v.copy()) for name, v in values.items()})
    with torch.no_grad():
        return student.predictions(random_tokens(64, windows=8, context=32, seed=5))


@pytest.mark.parametrize("method", ["gptq-trellis", "gptq-uniform"])
def test_idle_channels_are_left_out_and_the_model_says_what_it_said(method):
    packer = packer_of(methods=(("*", method),))
    assert packer.feeds == FEEDS
    without, with_all = (
        pack_to_budget(each, delta=DELTA)
        for each in (packer, dataclasses.replace(packer, feeds={}))
    )
    records = {tensor.name: tensor.record for tensor in without.encoded.tensors}
    assert {name: r["unread_rows"] for name, r in records.items() if "unread_rows" in r} == {
        FIRST: len(IDLE)
    }
    tensors = {tensor.name: tensor for tensor in decode_artifact(without.assemble()).tensors}
    assert np.flatnonzero(~tensors[FIRST].arrays["codes"].any(1)).tolist() == IDLE
    values = decoded(without)
    assert np.flatnonzero(~values[SECOND].any(0)).tolist() == IDLE
    assert grid_bytes(without.encoded) < grid_bytes(with_all.encoded) - 8 * len(IDLE)
    true = logits_of({name: value.numpy() for name, value in model().weights().items()})
    lost, lost_with_all = (
        float((logits_of(each) - true).square().mean()) for each in (values, decoded(with_all))
    )
    assert lost < 1.05 * lost_with_all
    assert without.predicted_nats < 1.05 * with_all.predicted_nats


def test_the_report_says_how_many(capsys):
    for idle, packer in ((len(IDLE), packer_of()), (0, dataclasses.replace(packer_of(), feeds={}))):
        coded = pack_to_budget(packer, delta=DELTA)
        packed = Packed(data=coded.assemble(), coded=coded, path=None)
        assert packed.to_dict()["idle_channels"] == idle
        print_report(packed)
        lines = [line for line in capsys.readouterr().out.splitlines() if "channels" in line]
        assert [line.split() for line in lines] == [["idle", "channels", "left", "out", "4"]][:idle]


@pytest.mark.parametrize("by_layer", [False, True])
def test_channels_are_left_out_where_floats_are_tuned(by_layer):
    windows = random_tokens(64, windows=32, context=32, seed=0)
    config = ProgressiveConfig(
        by_layer=by_layer, group_steps=2, final_steps=2, tokens=256, calibration_windows=8
    )
    tuned = pack_progressively(
        packer_of(), model(), windows, CPU, sensitivities(), config, delta=DELTA
    )
    assert tuned.record.tuned_steps == (6 if by_layer else 2)
    assert set(IDLE) <= set(np.flatnonzero(~decoded(tuned)[SECOND].any(0)))


def test_what_the_rows_of_left_out_channels_hold_does_not_matter():
    values = decoded(pack_to_budget(packer_of(), delta=DELTA))
    before = logits_of(values)
    values[FIRST][IDLE] = 100.0
    assert torch.equal(logits_of(values), before)


def test_a_finer_delta_keeps_every_channel():
    coded, _ = packer_of().quantize(DELTA / 20)
    assert not any("unread_rows" in tensor.record for tensor in coded.values())


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_a_channel_stays_where_one_of_its_matrices_is_on_no_grid(name):
    coded, _ = packer_of(methods=(("*", "gptq-trellis"), (name, "int8"))).quantize(DELTA)
    assert not any("unread_rows" in tensor.record for tensor in coded.values())


def test_the_predicted_loss_counts_what_leaving_out_costs():
    packer = packer_of()
    coded, predicted = packer.quantize(5 * DELTA)
    left_out = {name: t.record.get("unread_rows", 0) for name, t in coded.items()}
    assert left_out[FIRST] >= len(IDLE)
    loss = 0.0
    for matrix in packer.matrices:
        error_RC = dequantize(coded[matrix.name]).astype(np.float64) - np.asarray(matrix.weight)
        row_R = np.einsum("rc,cd,rd->r", error_RC, np.asarray(matrix.hessian), error_RC)
        read_R = coded[matrix.name].arrays["codes"].any(1) | (left_out[matrix.name] == 0)
        loss += matrix.row_weight[read_R] @ row_R[read_R] / 2
    assert predicted == pytest.approx(loss, rel=1e-3)
