"""The budget is a contract: sweeps, floors, code bytes, and what a failed pack leaves behind."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from gptpack.artifact.reader import decode_artifact
from gptpack.calibration import collect
from gptpack.checkpoint import Checkpoint, save_checkpoint
from gptpack.config import ModelConfig, TokenizerIdentity
from gptpack.data.shards import write_shard
from gptpack.data.tokenizer import TokenizerConfig, train_tokenizer
from gptpack.errors import BudgetError, CheckpointError, QuantError
from gptpack.model.gpt import GPT
from gptpack.packing import PackConfig, pack_int8, pack_to_budget, take_apart
from gptpack.quant.types import dequantize
from gptpack.training.distributed import Ranks

CONFIG = ModelConfig(vocab=300, layers=2, width=96, heads=4, kv_heads=2, mlp_hidden=256, context=32)
IDENTITY = TokenizerIdentity(sha256="ab" * 32, vocab=300, bos=1)
QUALITY = {"bpb_before": 3.141592, "bpb_after": 3.271828, "context": 32, "tokens": 123456}


def checkpoint() -> Checkpoint:
    model = GPT(CONFIG, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return Checkpoint(model=CONFIG, weights=dict(model.state_dict()))


@pytest.fixture(scope="module")
def sensitivities():
    model = GPT(CONFIG)
    model.load_state_dict(checkpoint().weights)
    windows = torch.randint(2, 300, (32, 32), generator=torch.Generator().manual_seed(3))
    cpu = Ranks(0, 1, torch.device("cpu"))
    return collect(model, windows, cpu, fisher_windows=16, batch=8, seed=0).sensitivities


def pack(sensitivities, budget: int, code: int = 0, **config):
    packer = take_apart(
        checkpoint(),
        IDENTITY,
        PackConfig(states=8, **config),
        sensitivities,
        budget_bytes=budget,
        code_bytes=code,
    )
    return pack_to_budget(packer)


def test_no_budget_of_a_sweep_is_passed_and_more_bytes_never_predict_a_worse_loss(sensitivities):
    losses = []
    refused: list[tuple[int, str]] = []
    worked = []
    for budget in np.geomspace(4_000, 600_000, 22).astype(int).tolist():
        try:
            packed = pack(sensitivities, budget, code=100)
        except BudgetError as error:
            refused.append((budget, str(error)))
            continue
        worked.append(budget)
        for quality in (None, QUALITY):
            data = packed.file(quality)
            assert len(data) + 100 <= budget
            assert decode_artifact(data, verify_weights=True).header.pack["budget_bytes"] == budget
        losses.append(packed.predicted_nats)
        if 40_000 < budget < 200_000:
            assert len(packed.file(QUALITY)) + 100 > 0.996 * budget
    assert len(worked) > 12
    assert refused
    assert all(budget < worked[0] for budget, _ in refused)
    assert all(f"over the budget of {budget:,}" in message for budget, message in refused)
    assert losses == sorted(losses, reverse=True)


def test_the_budget_that_a_refusal_names_works(sensitivities):
    with pytest.raises(BudgetError) as caught:
        pack(sensitivities, 3_000)
    named = int(re.search(r"budget that works is ([\d,]+)", str(caught.value))[1].replace(",", ""))
    assert len(pack(sensitivities, named).file(QUALITY)) <= named
    with pytest.raises(BudgetError) as caught:
        pack_int8(checkpoint(), IDENTITY, budget_bytes=3_000)
    named = int(re.search(r"budget that works is ([\d,]+)", str(caught.value))[1].replace(",", ""))
    assert len(pack_int8(checkpoint(), IDENTITY, budget_bytes=named).file(QUALITY)) <= named


def test_two_packs_give_the_same_bytes(sensitivities):
    assert pack(sensitivities, 90_000).file(QUALITY) == pack(sensitivities, 90_000).file(QUALITY)


def test_every_method_decodes_close_to_the_weights(sensitivities):
    weights = checkpoint().weights
    for method in ("gptq-trellis", "gptq-uniform", "gptq-int8", "gptq-int6", "float16", "int8"):
        packed = pack(sensitivities, 10**9, methods=(("*", method),))
        for tensor in decode_artifact(packed.file()).tensors:
            values = dequantize(tensor)
            error = np.abs(values - weights[tensor.name].numpy()).max()
            assert error < 0.12, (method, tensor.name, error)
            if method.startswith("gptq") and tensor.name.endswith("mlp.fc.weight"):
                assert tensor.method == {"gptq-trellis": "trellis", "gptq-uniform": "uniform"}.get(
                    method, "int8"
                )


def test_a_fallback_is_written_down_and_strict_refuses_it(sensitivities):
    name = "blocks.0.mlp.fc.weight"
    without = {key: value for key, value in sensitivities.items() if key != name}
    packed = pack(without, 200_000)
    entry = next(entry for entry in packed.encoded.tensors if entry.name == name)
    assert (entry.method, entry.record["fallback"]) == ("int8", "gptq-trellis")
    assert any(name in note for note in packed.notes)
    with pytest.raises(QuantError, match=name):
        pack(without, 200_000, strict=True)


def test_broken_weights_are_named(sensitivities):
    broken = checkpoint()
    weights = {**broken.weights, "skip_weights": torch.full((1, 96), torch.inf)}
    with pytest.raises(CheckpointError, match="not finite: skip_weights"):
        pack_int8(Checkpoint(model=CONFIG, weights=weights), IDENTITY, budget_bytes=10**9)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, a tokenizer and shards as a user has them."""
    folder = tmp_path_factory.mktemp("place")
    words = ["the cat sat on the mat", "a dog ran over the hill", "two birds flew by the sea"]
    text = [" ".join(words[(i * 7 + j) % 3] for j in range(30)) + f" {i}" for i in range(200)]
    config = TokenizerConfig(vocab=290)
    tokenizer = train_tokenizer(text, folder / "tokenizer.model", config)
    tokens = [token for line in text for token in (tokenizer.bos, *tokenizer.encode(line))]
    half = len(tokens) // 2
    half += next(i for i, token in enumerate(tokens[half:]) if token == tokenizer.bos)
    write_shard(folder / "x_train_000000.bin", np.array(tokens[:half]))
    write_shard(folder / "x_val_000000.bin", np.array(tokens[half:]))
    saved = checkpoint()
    save_checkpoint(
        folder / "c.pt",
        Checkpoint(model=CONFIG, weights=saved.weights, tokenizer=tokenizer.identity),
    )
    return folder


def command(place, *words: str) -> list[str]:
    return [sys.executable, "-m", "gptpack", "pack", str(place / "c.pt"), *words]


def gptpack(place, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(place, *words), capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_proves_in_a_fresh_process_what_it_reports(place, tmp_path):
    output = tmp_path / "m.gptpack"
    code = tmp_path / "code.py"
    code.write_bytes(b"#" * 1234)
    words = ["--budget", "100KB", "--data", str(place), "-o", str(output), "--stride", "16"]
    options = [*words, "--states", "8", "--calibration-tokens", "1024", "--code", str(code)]
    done = gptpack(place, *options, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    size = output.stat().st_size
    assert report["bytes"] == size <= 100_000 - 1234
    assert report["headroom_bytes"] == 100_000 - 1234 - size
    sections = sum(section["bytes"] for section in report["sections"].values())
    assert report["header_bytes"] + sections == size
    check = [sys.executable, "-m", "gptpack", "eval", str(output), "--data", str(place), "--json"]
    found = json.loads(subprocess.run(check, capture_output=True, check=True).stdout)
    assert found["plain"]["bpb"] == report["after"]["plain"]["bpb"]
    assert found["recorded"]["bpb"] == pytest.approx(found["plain"]["bpb"], abs=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code.py", "m.gptpack"]


@pytest.mark.slow
def test_a_pack_that_fails_leaves_nothing_and_what_stood_there_stays(place, tmp_path):
    output = tmp_path / "m.gptpack"
    done = gptpack(place, "--budget", "2KB", "--method", "int8", "--data", str(place), "-o", output)
    assert done.returncode == 1
    assert "the smallest budget that works is" in done.stderr
    assert list(tmp_path.iterdir()) == []
    output.write_bytes(b"old")
    done = gptpack(place, "--budget", "2KB", "--method", "int8", "--data", str(place), "-o", output)
    assert done.returncode == 1
    assert output.read_bytes() == b"old"
    done = gptpack(place, "--data", str(place))
    assert done.returncode == 2
    assert "give either --budget" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3.0, 8.0])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_whoever_kills_a_pack_finds_no_file_under_its_name(place, tmp_path, seconds, how):
    output = tmp_path / "m.gptpack"
    options = ["--budget", "400KB", "--method", "int8", "--data", str(place), "-o", str(output)]
    process = subprocess.Popen(
        command(place, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(seconds)
    alive = process.poll() is None
    process.send_signal(how)
    process.wait()
    if alive and process.returncode != 0:
        assert not output.exists()
    else:
        assert decode_artifact(output.read_bytes(), verify_weights=True)
