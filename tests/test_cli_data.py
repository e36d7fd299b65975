"""`gptpack data`: each subcommand, its tables, its JSON, and what it refuses."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
from worlds import invoke

from gptpack.data.documents import SEPARATOR

TEXTS = [f"the cat number {i} sat on the mat" for i in range(30)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(SEPARATOR.join(TEXTS))
    return path


def gptpack(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = invoke("data", *map(str, arguments))
    out, err = capsys.readouterr()
    return status, out, err


def test_a_corpus_becomes_a_tokenizer_and_shards_that_info_confirms(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "tok.model", tmp_path / "shards"
    words = ("tokenizer", corpus, "--vocab", 290, "-o", model, "--json", "--quiet")
    status, text, _ = gptpack(capsys, *words)
    assert status == 0
    assert json.loads(text)["vocab"] == 290
    words = ("tokenize", "--train", corpus, "--val-documents", 5, "--tokenizer", model, "-o", out)
    status, text, _ = gptpack(capsys, *words, "--workers", 1, "--json", "--quiet")
    assert status == 0
    made = json.loads(text)
    assert (made["train"]["documents"], made["val"]["documents"]) == (25, 5)
    status, text, _ = gptpack(capsys, "info", out, "--json")
    assert status == 0
    assert json.loads(text) == made
    status, text, err = gptpack(capsys, "info", out)
    assert status == 0
    assert "the last 5 documents are val" in text
    assert f"{made['val']['accounted_bytes']:,}" in text
    assert "unknown" not in err


def test_a_separator_may_be_written_with_escapes(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "tok.model"
    gptpack(capsys, "tokenizer", corpus, "--vocab", 290, "-o", model)
    corpus.write_text("the cat\x1dthe mat")
    words = ("tokenize", "--train", corpus, "--tokenizer", model, "-o", tmp_path / "out")
    status, text, _ = gptpack(capsys, *words, "--workers", 1, "--json", "--separator", r"\x1d")
    assert status == 0
    assert json.loads(text)["train"]["documents"] == 2


def test_a_separator_that_is_no_text_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--vocab", 290, "-o", tmp_path / "tok.model", "--separator", r"\ud800")
    status, out, err = gptpack(capsys, "tokenizer", corpus, *options)
    assert (status, out) == (2, "")
    assert err == "gptpack: --separator \\ud800: surrogates not allowed\n"


def test_an_existing_tokenizer_needs_force(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "tok.model"
    model.write_text("mine")
    assert gptpack(capsys, "tokenizer", corpus, "--vocab", 290, "-o", model) == (
        2,
        "",
        f"gptpack: {model} exists; choose another name or give --force\n",
    )
    status, text, err = gptpack(
        capsys, "tokenizer", corpus, "--vocab", 5000, "-o", model, "--force"
    )
    assert status == 0
    assert "pieces only, not 5,000" in err
    assert str(model) in text


def test_a_damaged_shard_is_one_line_and_status_2(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "tok.model"
    gptpack(capsys, "tokenizer", corpus, "--vocab", 290, "-o", model)
    words = ("tokenize", "--val", corpus, "--tokenizer", model, "-o", tmp_path / "out")
    gptpack(capsys, *words, "--workers", 1)
    shard = tmp_path / "out" / "data_val_000000.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    for manifest in (True, False):
        if not manifest:
            (tmp_path / "out" / "manifest.json").unlink()
        status, text, err = gptpack(capsys, "info", tmp_path / "out", "--quiet")
        assert (status, text) == (2, "")
        assert err.count("\n") == 1
        assert "write it again" in err
    shard.write_bytes(whole)
    status, text, _ = gptpack(capsys, "info", tmp_path / "out", "--json")
    assert status == 0
    assert json.loads(text)["shards"] == [
        {
            "file": shard.name,
            "tokens": (len(whole) - 1024) // 2,
            "sha256": hashlib.sha256(whole).hexdigest(),
        }
    ]
    status, text, _ = gptpack(capsys, "info", tmp_path / "out")
    assert status == 0
    assert shard.name in text


def test_info_of_a_directory_without_shards_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = gptpack(capsys, "info", tmp_path)
    assert status == 2
    assert "no shards named *_val_*.bin" in err


def test_a_download_without_the_extra_ends_with_status_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    status, _, err = gptpack(capsys, "download", "fineweb", "-o", tmp_path)
    assert status == 4
    assert "gptpack[hub]" in err


def test_a_text_of_one_document_is_said_to_be_one(corpus, tmp_path, capsys) -> None:
    model = tmp_path / "tok.model"
    gptpack(capsys, "tokenizer", corpus, "--vocab", 290, "-o", model)
    words = ["tokenize", "--train", corpus, "--tokenizer", model, "--workers", 1]
    assert "one document" not in gptpack(capsys, *words, "-o", tmp_path / "a")[2]
    corpus.write_text("\n\n".join(TEXTS))
    status, _, err = gptpack(capsys, *words, "-o", tmp_path / "b")
    assert status == 0
    assert "train is one document: if the text has more" in err
    assert r"--separator, such as '\n\n'" in err
    more = ["--separator", r"\n\n", "-o", tmp_path / "c"]
    assert "one document" not in gptpack(capsys, *words, *more)[2]


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.jsonl"])
def test_a_fraction_that_leaves_no_document_or_one_says_so(tmp_path, capsys, corpus, name) -> None:
    model, source = tmp_path / "tok.model", tmp_path / name
    gptpack(capsys, "tokenizer", corpus, "--vocab", 290, "-o", model)
    jsonl = name.endswith("jsonl")
    words = ["tokenize", "--train", source, "--tokenizer", model, "--workers", 1]
    for count, fraction, expected in [
        (1, 0.5, "whole documents, and there are 1; name what stands between documents with"),
        (30, 0.05, "val is one document: if the text has more"),
    ]:
        texts = TEXTS[:count]
        lines = [json.dumps({"text": text}) for text in texts]
        source.write_text("\n".join(lines) if jsonl else SEPARATOR.join(texts))
        more = ["--val-fraction", fraction, "-o", tmp_path / "out"]
        status, _, err = gptpack(capsys, *words, *more)
        assert status == (2 if count == 1 else 0)
        assert expected in err
