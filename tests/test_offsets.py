"""Offsets of columns: where they are taken off, and that every reader adds them again."""

import copy
from functools import partial

import numpy as np
import pytest
import test_decoder
import test_web_decode
import torch
from hugging import CONTEXT, SAID, make_folder, train_folder
from node import needs_node
from safetensors.torch import load_file, save_file
from test_allocation import loss_by_hand

import gptpack
from gptpack.artifact.front import decode_header
from gptpack.artifact.reader import decode_artifact
from gptpack.artifact.writer import encode_sections
from gptpack.jobs import prepare
from gptpack.packing.progressive import ProgressiveConfig
from gptpack.packing.tuning import TuneConfig, freeze, gains, tune
from gptpack.quant import allocation
from gptpack.quant.allocation import Matrix, Sensitivity, prepare_matrix, quantize_matrices
from gptpack.quant.offsets import worthwhile_offsets
from gptpack.quant.types import column_offsets, dequantize, from_bfloat16, grid_values
from gptpack.ranks import Ranks

TABLE = "model.embed_tokens.weight"
CPU = Ranks(0, 1, torch.device("cpu"))
page = test_decoder.page


def table(rows: int = 600, columns: int = 40, mean: float = 2.0) -> np.ndarray:
    draw = np.random.default_rng(0)
    means = mean * draw.choice([-1.0, 1.0], columns)
    return (draw.normal(0, 1, (rows, columns)) + means).astype(np.float32)


def matrix(weight: np.ndarray, dead: tuple[int, ...] = ()) -> Matrix:
    draw = np.random.default_rng(1)
    inputs = draw.normal(0, 1, (4 * weight.shape[1], weight.shape[1]))
    inputs[:, list(dead)] = 0
    hessian = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    row_weight = np.exp(draw.normal(0, 1, len(weight)))
    return prepare_matrix("w", weight, Sensitivity(hessian=hessian, row_weight=row_weight))


# the rule


@pytest.mark.parametrize("shape", [(64, 64), (8, 512), (4096, 1), (1, 4096), (50_000, 16)])
@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e6])
def test_random_numbers_have_no_offsets(shape, spread):
    weight = np.random.default_rng(0).normal(0, spread, shape).astype(np.float32)
    assert worthwhile_offsets(weight, np.ones(shape[1], bool)) is None


def test_offsets_pay_from_a_tenth_of_a_bit_a_weight():
    live = np.ones(64, bool)
    paid = [
        worthwhile_offsets(table(4000, 64, mean), live) is not None for mean in (0.3, 0.36, 0.42)
    ]
    assert paid[::2] == [False, True]  # log2(1 + mean^2) / 2 is 0.06 and 0.12
    assert worthwhile_offsets(np.zeros((500, 64), np.float32), live) is None
    # as much a weight, but of too few weights for a number each
    assert worthwhile_offsets(table(20, 64, 0.8), live) is None


def test_offsets_are_the_means_of_the_columns_that_are_used():
    weight = table()
    offsets = from_bfloat16(matrix(weight, dead=(3, 5)).offsets)
    means = weight.mean(0)
    means[[3, 5]] = 0
    np.testing.assert_allclose(offsets, means, rtol=2**-8)


# codes


@pytest.mark.parametrize("states", [1, 8])
@pytest.mark.parametrize("rescale", [True, False])
def test_a_table_with_means_takes_fewer_bytes_for_no_more_loss(states, rescale, monkeypatch):
    with_means = matrix(table())
    quantize = partial(quantize_matrices, delta=0.5, states=states, rescale=rescale)
    (less,) = quantize([with_means])
    assert less.tensor.method == ("trellis-offsets" if states > 1 else "uniform-offsets")
    assert less.loss_nats == pytest.approx(loss_by_hand(with_means, less.tensor), rel=1e-4)
    offset_C = column_offsets(less.tensor)
    assert np.array_equal(dequantize(less.tensor), grid_values(less.tensor) + offset_C)
    monkeypatch.setattr(allocation, "worthwhile_offsets", lambda *_: None)
    (plain,) = quantize([matrix(table())])
    assert plain.tensor.method in ("trellis", "uniform")
    sizes = [encode_sections([found.tensor]).stored_bytes for found in (less, plain)]
    assert sizes[0] < 0.85 * sizes[1]
    assert less.loss_nats < 1.02 * plain.loss_nats


# models


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A trained model whose vocabulary's table has means, its folder, and its packed file."""
    root = tmp_path_factory.mktemp("offsets")
    text = root / "text.txt"
    text.write_text(SAID * 30, encoding="utf-8")
    folder = train_folder(make_folder(root / "llama", "llama"))
    weights = load_file(folder / "model.safetensors")
    kept = weights[TABLE].std()
    generator = torch.Generator().manual_seed(0)
    weights[TABLE] = weights[TABLE] + 2 * kept * torch.randn(64, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ask = partial(gptpack.pack, text=(text,), calibration_tokens=8 * CONTEXT, device="cpu")
    return folder, ask, ask(folder, delta=1e-3, output=root / "m.gptpack")


def test_a_models_table_is_read_as_it_was_packed(world):
    folder, _, done = world
    methods = {tensor.name: tensor.method for tensor in decode_header(done.data).tensors}
    assert [name for name, method in methods.items() if method == "trellis-offsets"] == [TABLE]
    original = load_file(folder / "model.safetensors")[TABLE]
    found = gptpack.load(done.path).model.state_dict()[TABLE]
    assert (found - original).square().mean() < 0.02 * original.var(0).mean()
    (coded,) = (t for t in decode_artifact(done.data).tensors if t.name == TABLE)
    assert np.array_equal(found.numpy(), dequantize(coded))
    rows = {row.name: row for row in gptpack.inspect(done.path).sections}
    assert rows["trellis-offsets.column_offsets"].raw_bytes == 2 * 64


def test_the_page_to_port_from_reads_it(world, page):
    test_decoder.agrees(page, world[2].data)


@needs_node
def test_the_browser_reads_it(world, tmp_path):
    (answer,) = test_web_decode.answers(tmp_path, [world[2].data])
    test_web_decode.agrees(answer, world[2].data)


def test_unpacked_and_packed_again_it_keeps_its_codes(world, tmp_path):
    _, ask, done = world
    gptpack.unpack(done.path, tmp_path / "out", to="transformers")
    budget = len(done.data) + 1000
    again = ask(tmp_path / "out", budget=budget)
    before, after = (decode_header(each.data) for each in (done, again))
    assert before.weights_sha256 == after.weights_sha256
    (table,) = (tensor for tensor in after.tensors if tensor.name == TABLE)
    assert table.method == "trellis-offsets"


@pytest.mark.parametrize("tune", ["floats", "deep"])
def test_gains_that_tuning_learns_leave_offsets_alone(world, tune, monkeypatch):
    folder, ask, done = world
    few = partial(ProgressiveConfig, group_steps=2, final_steps=6, tokens=512, scale_lr=0.05)
    monkeypatch.setattr(prepare, "ProgressiveConfig", few)
    tuned = ask(folder, delta=1e-3, tune=tune)
    tables = [
        next(tensor for tensor in decode_artifact(data).tensors if tensor.name == TABLE)
        for data in (done.data, tuned.data)
    ]
    assert [each.method for each in tables] == ["trellis-offsets"] * 2
    offsets = [each.arrays["column_offsets"] for each in tables]
    if tune == "floats":
        assert np.array_equal(*offsets)
        assert not np.array_equal(*(each.arrays["row_scales"] for each in tables))


def test_a_student_computes_with_its_values_and_scales_all_but_the_offsets(world):
    teacher = gptpack.load(world[0], device="cpu").runnable()
    student = copy.deepcopy(teacher)
    (coded,) = (t for t in decode_artifact(world[2].data).tensors if t.name == TABLE)
    values = torch.from_numpy(dequantize(coded).copy())
    offset = torch.from_numpy(column_offsets(coded))
    freeze(student, {TABLE: values}, {TABLE: offset})
    module = student.get_submodule(TABLE.removesuffix(".weight"))
    torch.testing.assert_close(module.weight.detach(), values)
    tokens = torch.arange(8 * 16).mul(7).remainder(320).view(8, 16)
    tune(student, teacher, tokens, TuneConfig(steps=5, tokens=128), CPU)
    gain = gains(student)[TABLE][:, None]
    assert (gain != 1).any()
    torch.testing.assert_close(module.weight.detach(), gain * (values - offset) + offset)
