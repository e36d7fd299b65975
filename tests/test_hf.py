"""A folder around the packed bytes: read by transformers with `gptpack.hf`, refused without.

`make test-transformers` runs this file under each release of transformers.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hugging import SAID, make_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

import gptpack
import gptpack.hf

FAMILIES = ("llama", "gpt2", "qwen3", "gemma3_text", "gpt_neox")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A function that gives a family's packed file, and the folder around its bytes."""
    root = tmp_path_factory.mktemp("hf")

    def make(family: str) -> tuple[Path, Path]:
        file, folder = root / f"{family}.gptpack", root / f"{family}-packed"
        if not folder.exists():
            source = make_folder(root / family, family)
            asked = {"calibration": "random", "calibration_tokens": 256, "states": 8}
            gptpack.pack(source, delta=1e-3, output=file, **asked)
            gptpack.unpack(file, folder, to="transformers", keep_packed=True)
        return file, folder

    return make


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40)[None]).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_folder_loads_with_identical_logits(unpacked, family):
    file, folder = unpacked(family)
    loaded = gptpack.load(file)
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(model) is type(loaded.model)
    assert not model.training
    assert torch.equal(logits(model), logits(loaded.model))
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(SAID).input_ids == loaded.tokenizer.tokenizer(SAID).input_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_what_it_saves_is_an_ordinary_folder_that_loads_again(unpacked, tmp_path, family):
    file, folder = unpacked(family)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[3] += 1  # what is saved is the model as it is by then
    model.save_pretrained(tmp_path)
    assert "gptpack" not in (tmp_path / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert not torch.equal(logits(again), logits(gptpack.load(file).model))


def test_a_type_that_is_asked_for_is_had(unpacked):
    file, folder = unpacked("llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    state = gptpack.load(file).model.state_dict()
    assert all(torch.equal(state[n].bfloat16(), v) for n, v in model.state_dict().items())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_it_can_be_trained_on(unpacked):
    model = AutoModelForCausalLM.from_pretrained(unpacked("llama")[1])
    tokens = torch.arange(20)[None]
    model(tokens, labels=tokens).loss.backward()
    assert all(value.grad is not None for value in model.parameters())


def test_corrupt_bytes_are_refused(unpacked, tmp_path):
    data = bytearray((unpacked("llama")[1] / "model.safetensors").read_bytes())
    data[-100] ^= 1
    for file in unpacked("llama")[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(gptpack.GptpackError, match="SHA-256"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


ATTEMPTS = """
import sys, transformers
for kind in (transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM):
    for asked in ({}, {"dtype": "auto"}, {"dtype": "float32"}, {"dtype": "bfloat16"}):
        try:
            kind.from_pretrained(sys.argv[1], **asked)
        except (ValueError, RuntimeError) as error:
            print("refused:", error)
        else:
            print("loaded:", kind, asked)
"""


def test_without_the_quantizer_it_is_an_error_and_never_random_weights(unpacked):
    command = [sys.executable, "-c", ATTEMPTS, str(unpacked("llama")[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert [line.split(":")[0] for line in said] == ["refused"] * 8
    assert "gptpack" in done.stderr  # transformers warns that it does not know this quantizer
