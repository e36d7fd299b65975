"""`gptpack diff` and `gptpack verify`: what differs, and whether a file is what it says."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import (
    MODEL,
    TOKENIZER,
    encode_artifact,
    example_tensors,
    grid_tensors,
    tensor_lists,
    write_artifact,
)
from test_cli_eval import World, world  # noqa: F401

from gptpack.artifact.front import decode_header
from gptpack.artifact.reader import decode_artifact
from gptpack.cli import main
from gptpack.codec.range import encode_codes, matrix_bits
from gptpack.errors import GptpackError
from gptpack.inputs import file_sha256
from gptpack.inspection.compare import Weights, read_weights, weight_errors
from gptpack.inspection.inspect import inspect
from gptpack.inspection.shares import measured_bytes
from gptpack.inspection.verdict import verdict
from gptpack.jobs.diff import diff
from gptpack.jobs.verify import verify
from gptpack.quant.int8 import keep_float, quantize_int8_rows
from gptpack.quant.types import dequantize
from gptpack.training.checkpoint import Checkpoint, save_checkpoint

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "tiny-v1.artifact"


@pytest.fixture
def run(capsys):
    """Runs a command here: status, stdout, stderr."""

    def invoke(*arguments: object) -> tuple[int, str, str]:
        status = 0
        try:
            main.run([str(argument) for argument in arguments])
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return invoke


def written(path: Path, tensors: list[Any], **pack: Any) -> Path:
    write_artifact(
        path, model=MODEL, tokenizer=TOKENIZER, tensors=tensors, pack=pack, codecs=["raw"]
    )
    return path


def test_a_file_differs_from_itself_in_nothing(run):
    status, out, _ = run("diff", GOLDEN, GOLDEN)
    assert status == 0
    assert "B has the same weights as A, bit for bit, and is as large." in out
    report = diff(GOLDEN, GOLDEN)
    assert (report.change_bytes, report.same_weights, report.settings) == (0, True, ())
    assert {group.change_bytes for group in report.groups} == {0}


def test_groups_methods_and_settings_that_differ_are_named(run, tmp_path):
    first = written(tmp_path / "a", example_tensors(), method="int8", gone=1)
    second = written(
        tmp_path / "b",
        [
            keep_float(t.name, dequantize(t), "float32") if t.name.endswith("fc.weight") else t
            for t in example_tensors()
            if t.name != "skip"
        ],
        method="float",
        new={"deep": 2},
    )
    report = diff(first, second)
    groups = {group.name: group for group in report.groups}
    assert groups["blocks.*.fc.weight"].change_bytes == 2 * (16 * 24 * 3 - 2 * 16)
    assert groups["blocks.*.fc.weight"].before.methods == ("int8",)
    assert groups["blocks.*.fc.weight"].after.methods == ("float32",)
    assert groups["skip"].after.tensors == 0
    assert sum(group.change_bytes for group in report.groups) == report.change_bytes
    found = {s.name: (s.before, s.after) for s in report.settings}
    assert found["pack.method"] == ("int8", "float")
    assert found["pack.gone"] == (1, None)
    assert found["pack.new.deep"] == (None, 2)
    assert found["codec.int8.codes"] == ("raw", None)
    _, out, _ = run("diff", first, second)
    assert "int8 -> float32" in out
    assert "float16 -> none" in out
    assert "other weights" in out
    values = json.loads(run("diff", first, second, "--json")[1])
    assert values["change_bytes"] == second.stat().st_size - first.stat().st_size
    assert values["same_weights"] is False


@pytest.mark.parametrize(("tokens", "change"), [(96, 0.25), (97, None)])
def test_recorded_scores_are_compared_where_they_are_of_one_text(tmp_path, tokens, change):
    def quality(bpb: float, tokens: int) -> dict[str, Any]:
        return {"quality": {"bpb_after": bpb, "tokens": tokens, "context": 32}}

    first = written(tmp_path / "a", example_tensors(), **quality(1.5, 96))
    second = written(tmp_path / "b", example_tensors(), **quality(1.75, tokens))
    assert diff(first, second).change_bpb == change


def test_weights_that_differ_are_measured(run, tmp_path):
    first = written(tmp_path / "a", example_tensors())
    changed = [
        keep_float(t.name, dequantize(t) * np.float32(1.5), "float32")
        if t.name == "blocks.1.gain"
        else t
        for t in example_tensors()
    ]
    second = written(tmp_path / "b", changed)
    values = json.loads(run("diff", first, second, "--weights", "--json")[1])["weights"]
    found = {row["name"]: row["relative"] for row in values["tensors"]}
    assert found.pop("blocks.1.gain") == pytest.approx(0.5)
    assert set(found.values()) == {0.0}
    power = {t.name: float((dequantize(t).astype(float) ** 2).sum()) for t in example_tensors()}
    expected = math.sqrt(0.25 * power["blocks.1.gain"] / sum(power.values()))
    assert values["relative"] == pytest.approx(expected)


def test_errors_are_of_the_same_tensors_and_shapes():
    header = read_weights(GOLDEN).header

    def compared(reference, values):
        return weight_errors(Weights(path="x", header=header, values=values), reference, "y")

    one, two = np.ones((2, 3), np.float32), np.ones((3, 2), np.float32)
    with pytest.raises(GptpackError, match=r"x and y: .* only one has b"):
        compared({"a": one, "b": one}, {"a": one})
    with pytest.raises(GptpackError, match=r"a has the shapes \(2, 3\) and \(3, 2\)"):
        compared({"a": one}, {"a": two})
    zero = np.zeros((2, 3), np.float32)
    found = compared({"a": zero}, {"a": one})
    assert (found.relative, found.tensors[0].relative, found.tensors[0].largest) == (None, None, 1)
    assert compared({"a": zero}, {"a": zero}).tensors[0].relative == 0.0


def test_both_files_are_measured_with_bpb(run, tmp_path, world: World):  # noqa: F811
    values = json.loads(
        run("diff", world.artifact, world.artifact, "--bpb", "--data", world.data, "--json")[1]
    )["measured"]
    assert values["before"]["bpb"] == values["after"]["bpb"] > 0
    status, _, err = run("diff", GOLDEN, GOLDEN, "--bpb")
    assert status == 2
    assert "--data" in err
    assert run("diff", GOLDEN, GOLDEN, "--data", world.data)[0] == 2


@pytest.mark.parametrize("command", [["diff", str(GOLDEN)], ["verify"]])
def test_headers_and_checksums_need_no_torch(command):
    code = (
        "import sys\nfrom gptpack.cli.main import run\n"
        f"run([*{command!r}, {str(GOLDEN)!r}])\n"
        "print('torch' in sys.modules, 'numba' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("False False\n")


def test_verify_names_the_hash_of_every_tensor(run):
    values = json.loads(run("verify", GOLDEN, "--json")[1])
    tensors = {tensor.name: tensor for tensor in decode_artifact(GOLDEN.read_bytes()).tensors}
    assert [row["name"] for row in values["tensors"]] == list(tensors)
    for row in values["tensors"]:
        data = dequantize(tensors[row["name"]]).astype("<f4").tobytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
    status, out, _ = run("verify", GOLDEN, "--all")
    assert status == 0
    assert "7 sections and 7 tensors (794 parameters) verified" in out
    assert values["tensors"][0]["sha256"] in out


def test_verify_finds_any_damage(run, tmp_path):
    data = GOLDEN.read_bytes()
    for place in range(0, len(data), 61):
        damaged = bytearray(data)
        damaged[place] ^= 1
        path = tmp_path / "bad"
        path.write_bytes(damaged)
        status, out, err = run("verify", path)
        assert (status, out) == (3, ""), place
        assert err.splitlines()[-1].startswith(f"gptpack: {path}: ")
    assert run("verify", tmp_path / "gone")[0] == 2


def packed(folder: Path, world: World) -> Path:  # noqa: F811
    """A file of int8 rows, made of the checkpoint beside it."""
    state = world.model.state_dict()
    save_checkpoint(folder / "c.pt", Checkpoint(model=world.config, weights=state))
    write_artifact(
        folder / "m.gptpack",
        model=world.config,
        tokenizer=world.tokenizer.identity,
        tensors=[
            quantize_int8_rows(n, t.numpy()) if t.ndim == 2 else keep_float(n, t.numpy(), "float32")
            for n, t in state.items()
        ],
        pack={"checkpoint_sha256": file_sha256(folder / "c.pt")},
        codecs="zlib",
    )
    return folder / "m.gptpack"


def test_verify_shows_each_tensors_error_against_its_checkpoint(
    run,
    tmp_path,
    world: World,  # noqa: F811
):
    path = packed(tmp_path, world)
    status, out, err = run("verify", path, "--checkpoint", tmp_path / "c.pt", "--json")
    assert (status, err) == (0, "")
    values = json.loads(out)
    decoded = {t.name: dequantize(t) for t in decode_artifact(path.read_bytes()).tensors}
    for row in values["errors"]:
        weight = world.model.state_dict()[row["name"]].numpy().astype(float)
        expected = np.linalg.norm(decoded[row["name"]] - weight) / np.linalg.norm(weight)
        assert row["relative"] == pytest.approx(expected, abs=1e-12)
        assert (row["relative"] > 0) == (decoded[row["name"]].ndim == 2)
    assert 0 < values["relative_error"] < 0.05
    report = verify(path, tmp_path / "c.pt").to_dict()
    assert json.loads(json.dumps(report)) == {**values, "seconds": report["seconds"]}
    status, out, err = run("verify", path, "--checkpoint", world.checkpoint)
    assert "relative error of all weights" in out
    assert "at few bits it may pass 1" in out
    assert "and " in out
    assert "see --all" in out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_that_is_not_finite_is_nothing_to_compare_with(
    run,
    tmp_path,
    value,
    world: World,  # noqa: F811
):
    path = packed(tmp_path, world)
    broken = {name: tensor.clone() for name, tensor in world.model.state_dict().items()}
    broken["blocks.0.attn_scale"][0] = value
    save_checkpoint(tmp_path / "n.pt", Checkpoint(model=world.config, weights=broken))
    for words in (("verify", path), ("diff", path, path)):
        status, out, err = run(*words, "--checkpoint", tmp_path / "n.pt", "--json")
        assert (status, out) == (2, "")
        assert "not finite: blocks.0.attn_scale" in err


def test_another_checkpoint_is_said_to_be_one(run, tmp_path, world: World):  # noqa: F811
    path = packed(tmp_path, world)
    other = {name: tensor + 1 for name, tensor in world.model.state_dict().items()}
    save_checkpoint(tmp_path / "o.pt", Checkpoint(model=world.config, weights=other))
    status, _, err = run("verify", path, "--checkpoint", tmp_path / "o.pt")
    assert status == 0
    assert "made of another checkpoint than" in err
    options = ("--checkpoint", tmp_path / "c.pt", "--json")
    errors = json.loads(run("diff", path, world.artifact, *options)[1])["errors"]
    assert errors["after"] == 0.0 < errors["before"] < 0.05


@settings(max_examples=30)
@given(tensors=tensor_lists)
def test_measured_bytes_add_up_to_the_file(tensors):
    data = encode_artifact(
        model=MODEL, tokenizer=TOKENIZER, tensors=tensors, pack={}, codecs=["zlib", "range"]
    )
    shares = measured_bytes(data)
    assert decode_header(data).header_bytes + sum(shares) == len(data)
    assert min(shares) >= 0


def test_a_tensor_is_charged_what_its_codes_cost(tmp_path):
    # Two matrices of one shape in one section: one has little to say.
    draw = np.random.default_rng(0)
    tensors = [
        quantize_int8_rows(name, draw.normal(size=(64, 64)).astype(np.float32) * scale)
        for name, scale in (("wide", 1.0), ("narrow", 1.0))
    ]
    narrow = tensors[1].arrays["codes"]
    narrow[:] = narrow > 60
    path = tmp_path / "m"
    write_artifact(
        path, model=MODEL, tokenizer=TOKENIZER, tensors=tensors, pack={}, codecs=["range"]
    )
    wide, small = (tensor.stored_bytes for tensor in inspect(path, decode=True).tensors)
    assert wide > 5 * small


@pytest.mark.parametrize("trellis", [False, True])
def test_bits_of_matrices_are_those_of_their_payload(trellis):
    from gptpack.codec.stepper import TableStepper
    from gptpack.codec.trellis import state_table

    draw = np.random.default_rng(1)
    codes = [np.rint(draw.normal(size=(200, 150)) * scale).astype(np.int32) for scale in (0.7, 3.0)]
    codes[1][0, 0] = 5000
    parities = [TableStepper(state_table(8)).trace(c) for c in codes] if trellis else None
    data = encode_codes(codes, parities=parities)
    bits = matrix_bits(data, codes, parities=parities)
    assert bits[0] < bits[1]
    # What is missing is the tables and the classes of rows and columns.
    assert 0.94 < sum(bits) / (8 * len(data)) < 1.0
    for matrix, found in zip(codes, bits, strict=True):
        _, counts = np.unique(matrix, return_counts=True)
        entropy = -(counts * np.log2(counts / counts.sum())).sum()
        assert found == pytest.approx(entropy, rel=0.02)


def test_grid_tensors_of_both_kinds_have_measured_bytes():
    data = encode_artifact(
        model=MODEL, tokenizer=TOKENIZER, tensors=grid_tensors(), pack={}, codecs=["range"]
    )
    assert sum(measured_bytes(data)) + decode_header(data).header_bytes == len(data)


@pytest.mark.parametrize(
    ("change", "before", "after", "said"),
    [
        (-200, 1.5, 1.4, "200 bytes (20.00 %) smaller and 0.100000 better"),
        (-200, 1.5, 1.4, "recorded): B is the better file."),
        (200, 1.5, 1.6, "recorded): A is the better file."),
        (-200, 1.5, 1.6, "recorded): 0.005000 bits per byte for each percent of A's bytes."),
        (0, 1.5, 1.6, "B is as large and 0.100000 worse (1.500000 and 1.600000 bits per byte"),
        (10, 1.5, 1.5, "larger and as good as A (1.500000"),
        (10, None, 1.5, "which is better is not known"),
    ],
)
def test_a_verdict_is_one_sentence(change, before, after, said):
    def side(size, bpb):
        quality = SimpleNamespace(bpb_after=bpb)
        return SimpleNamespace(file_bytes=size, record=SimpleNamespace(quality=quality))

    report = SimpleNamespace(
        before=side(1000, before),
        after=side(1000 + change, after),
        change_bytes=change,
        change_bpb=None if before is None else after - before,
        same_weights=False,
        measured=None,
    )
    found = verdict(report)
    assert said in found
    assert found.endswith(".")
    assert found.count(". ") == 0
