"""No input is a pipe, a device, a folder, or larger than it has reason to be; one line says so."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from worlds import corpus, invoke, tiny

from gptpack import inputs
from gptpack.families.golf.gpt import GPT
from gptpack.jobs.request import PackRequest
from gptpack.training.checkpoint import Checkpoint, save_checkpoint

GOLDEN = Path(__file__).parent / "golden" / "tiny-v1.artifact"

# each command, and which of its words is the input that is no file
COMMANDS = {
    "inspect": "inspect INPUT",
    "inspect decoded": "inspect INPUT --decode",
    "verify": "verify INPUT",
    "verify with a checkpoint": "verify GOLDEN --checkpoint INPUT",
    "diff": "diff GOLDEN INPUT",
    "sample": "sample INPUT --prompt x --tokenizer TOKENIZER",
    "eval": "eval INPUT --data DATA",
    "eval's tokenizer": "eval CHECKPOINT --data DATA --tokenizer INPUT",
    "pack": "pack INPUT --budget 1MB --data DATA",
    "check's settings": "check --config INPUT",
    "check's baseline": "check GOLDEN --baseline INPUT",
    "train's recipe": "train --recipe INPUT --data DATA --output OUT",
    "log": "log INPUT",
    "stats": "stats INPUT",
    "report": "report INPUT --output OUT",
    "text": "data tokenize --val INPUT.txt --tokenizer TOKENIZER --output OUT",
    "text's tokenizer": "data tokenize --val TEXT --tokenizer INPUT --output OUT",
    "a tokenizer's text": "data tokenizer INPUT.txt --vocab 300 --output OUT",
    "a shard": "data info SHARDS",
    "a manifest": "data info MANIFEST",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 280 pieces that has learned nothing."""
    config = tiny("model.vocab=280").model
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt"
    weights = GPT(config, seed=0).state_dict()
    save_checkpoint(path, Checkpoint(model=config, weights=weights))
    return path


@pytest.fixture
def soon() -> Iterator[None]:
    """Fail rather than wait for ever."""

    def fail(*_: object) -> None:
        raise AssertionError("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("make", [pipe, device, folder])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_file_is_one_line_and_status_2(name, make, checkpoint, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat\n")
    make(tmp_path / "input")
    make(tmp_path / "input.txt")
    for place in ("shards", "manifest"):
        shutil.copytree(corpus().data, tmp_path / place)
    (tmp_path / "shards" / "x_val_000001.bin").unlink()
    make(tmp_path / "shards" / "x_val_000001.bin")
    make(tmp_path / "manifest" / "manifest.json")
    words = {
        "INPUT": tmp_path / "input",
        "INPUT.txt": tmp_path / "input.txt",
        "GOLDEN": GOLDEN,
        "CHECKPOINT": checkpoint,
        "DATA": corpus().data,
        "TOKENIZER": corpus().tokenizer.path,
        "TEXT": text,
        "OUT": tmp_path / "out",
        "SHARDS": tmp_path / "shards",
        "MANIFEST": tmp_path / "manifest",
    }
    status = invoke(*(str(words.get(word, word)) for word in COMMANDS[name].split()))
    said = capsys.readouterr().err.splitlines()
    assert status == 2, said
    assert said[-1].startswith("gptpack: "), said
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("soon")
def test_a_file_that_is_large_for_its_kind_is_not_read_whole(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inputs.read_input, "__defaults__", (1000,))
    log = tmp_path / "x.log"
    log.touch()
    os.truncate(log, 40_000_000_000)  # none of it is on the disk
    assert invoke("log", str(log)) == 2
    assert f"{log}: cannot read: more than 1,000 bytes" in capsys.readouterr().err


def test_a_file_without_a_name_is_one_line(capsys):
    assert invoke("inspect", "a\0b") == 2
    assert "not the name of a file" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["/**/x", "/proc/**", "/dev/z*", f"{'../' * 40}**/x"])
def test_a_pattern_does_not_walk_where_no_files_are(pattern, tmp_path, monkeypatch, capsys):
    (tmp_path / "gptpack.toml").write_text(f"[check]\n[[check.artifact]]\npath = '{pattern}'\n")
    monkeypatch.chdir(tmp_path)
    assert invoke("check") == 2
    assert "would walk through /" in capsys.readouterr().err


def test_a_pattern_finds_each_file_once_and_follows_no_links(tmp_path, monkeypatch, capsys):
    inner = tmp_path / "inner"
    inner.mkdir()
    for name in ("a.gptpack", ".hidden.gptpack"):
        shutil.copy(GOLDEN, inner / name)
    (inner / "loop").symlink_to(tmp_path)
    (tmp_path / "gptpack.toml").write_text("[check]\n[[check.artifact]]\npath = '**/*.gptpack'\n")
    monkeypatch.chdir(tmp_path)
    assert invoke("check", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert found["path"] == "inner/a.gptpack"


def test_code_counts_once_by_whatever_patterns(tmp_path, monkeypatch, capsys):
    shutil.copy(GOLDEN, tmp_path / "a.gptpack")
    (tmp_path / "code.py").write_bytes(b"x" * 100)
    (tmp_path / "link.py").symlink_to("code.py")
    monkeypatch.chdir(tmp_path)
    patterns = ["code.py", "*.py", "./code.py", "*"]
    words = [word for pattern in patterns for word in ("--code", pattern)]
    assert invoke("check", "a.gptpack", *words, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert found["code_bytes"] == 100
    assert PackRequest(budget=1000, code=("code.py", "link.py", "./code.py")).code_bytes() == 100
