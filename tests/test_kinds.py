"""What is given in the place of something else is named for what it is, with the way on."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from strategies import MODEL, TOKENIZER, example_tensors, write_artifact

from gptpack.cli.main import run
from gptpack.data.shards import write_shard
from gptpack.inputs import kind_of

FORMS = {
    "c.pt": "a torch checkpoint",
    "m.safetensors": "a safetensors file",
    "m.gguf": "a GGUF file",
    "model": "a Hugging Face folder",
    "shards": "a folder of shards",
    "empty": "a folder",
    "t.txt": "a text file",
    "m.gptpack": "a packed file",
    "b.bin": "",
    "nothing": "",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """One of each, in the folder where the test runs."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(2)}, "c.pt")
    save_file({"a": np.zeros(2, np.float32)}, "m.safetensors")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(60))
    for folder in ("model", "shards", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    write_shard(tmp_path / "shards" / "x_train_000000.bin", np.arange(9))
    (tmp_path / "t.txt").write_text("\u00e9" * 1000)
    (tmp_path / "b.bin").write_bytes(bytes(range(256)))
    made = {"model": MODEL, "tokenizer": TOKENIZER, "tensors": example_tensors(), "pack": {}}
    write_artifact(tmp_path / "m.gptpack", **made, codecs="zlib")
    return tmp_path


def said(capsys, *words: str) -> tuple[int, str]:
    """Status and last line of a command."""
    with pytest.raises(SystemExit) as stopped:
        run(list(words))
    return int(stopped.value.code or 0), capsys.readouterr().err.splitlines()[-1]


def test_a_file_or_folder_is_known_by_its_content(place):
    assert {name: kind_of(place / name) for name in FORMS} == FORMS


@pytest.mark.parametrize("name", ["c.pt", "m.safetensors", "m.gguf", "model"])
@pytest.mark.parametrize("verb", ["inspect", "verify", "web", "unpack", "report", "diff"])
def test_a_model_that_is_not_packed_is_said_to_be_one(place, capsys, verb, name):
    if (verb, name) == ("report", "model"):
        return  # a folder is a run's, which may hold anything
    more = ["m.gptpack"] if verb == "diff" else []
    more += ["--output", "page"] if verb in ("web", "unpack", "report") else []
    more += ["--to", "safetensors"] if verb == "unpack" else []
    status, line = said(capsys, verb, name, *more)
    assert status == 2
    assert line == (
        f"gptpack: {name}: {FORMS[name]}; pack it first: gptpack pack {name} --budget 16MB, or "
        "another budget"
    )


@pytest.mark.parametrize("name", ["c.pt", "m.gguf"])
def test_a_check_says_the_same_of_it_and_goes_on(place, capsys, name):
    with pytest.raises(SystemExit) as stopped:
        run(["check", name, "m.gptpack", "--budget", "1MB", "--json"])
    first, second = json.loads(capsys.readouterr().out)["artifacts"]
    (failed,) = [row for row in first["outcomes"] if row["state"] == "fail"]
    assert stopped.value.code == failed["exit_status"] == 2
    assert failed["text"].startswith(f"{name}: {FORMS[name]}; pack it first: gptpack pack {name}")
    assert second["passed"]


def test_a_folder_is_no_packed_file(place, capsys):
    assert said(capsys, "inspect", "shards") == (
        2,
        "gptpack: shards: a folder of shards, not a packed file; name the file itself",
    )


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("t.txt", "a text file;"),
        ("m.gptpack", "a packed file;"),
        ("b.bin", "a file;"),
        ("model", "a Hugging Face folder, no shards named *_train_*.bin in it;"),
        ("empty", "a folder, no shards named *_train_*.bin in it;"),
    ],
)
def test_what_is_given_for_shards_is_named(place, capsys, name, what):
    words = ["--recipe", "tiny", "--data", name, "--output", "r", "--no-eval"]
    status, line = said(capsys, "train", *words)
    assert status == 2
    assert line.startswith(f"gptpack: {name}: {what} needed the folder of shards that")


@pytest.mark.parametrize(("name", "what"), [("t.txt", "a text file, "), ("empty", "a folder, ")])
def test_what_is_given_for_a_model_is_named(place, capsys, name, what):
    status, line = said(capsys, "eval", name, "--data", "shards")
    assert status == 2
    assert what in line


def test_what_is_given_for_text_is_named(place, capsys):
    status, line = said(capsys, "data", "tokenizer", "m.gptpack", "-o", "t.model")
    assert (status, line) == (2, "gptpack: m.gptpack: a packed file; needed a file of text")
