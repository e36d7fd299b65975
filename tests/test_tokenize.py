import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from gptpack.data import tokenize
from gptpack.data.accounting import PieceBytes, audit
from gptpack.data.documents import SEPARATOR
from gptpack.data.manifest import Manifest, load_manifest
from gptpack.data.shards import write_shard
from gptpack.data.splits import load_tokens
from gptpack.data.tokenize import TokenizeConfig, belongs_to_val, tokenize_files
from gptpack.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from gptpack.errors import AccountingError, ConfigError, DataError
from gptpack.jobs.data import describe

TRAIN = [f"the cat number {i} sat on the mat\nand saw  näïve dögs" for i in range(40)]
VAL = ["the dog", "", "日本 the  mat"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenize") / "small.model"
    return train_tokenizer(TRAIN, path, TokenizerConfig(vocab=320, normalization="nmt_nfkc"))


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "train.txt"
    path.write_text(SEPARATOR.join(TRAIN))
    return path


@pytest.fixture
def val(tmp_path: Path) -> Path:
    path = tmp_path / "val.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in VAL))
    return path


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def documents(tokenizer: Tokenizer, directory: Path, split: str) -> list[str]:
    tokens = load_tokens(directory, split, tokenizer.vocab)  # type: ignore[arg-type]
    starts = np.flatnonzero(tokens == tokenizer.bos)
    assert starts[0] == 0
    return [tokenizer.decode(part[1:].tolist()) for part in np.split(tokens, starts[1:])]


def test_shards_hold_every_document_behind_a_bos(
    tokenizer: Tokenizer, train: Path, val: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    config = TokenizeConfig(name="mix", shard_tokens=100, workers=1)
    manifest = tokenize_files([train], [val], tokenizer, out, config)
    assert documents(tokenizer, out, "val") == ["the dog", "", "日本 the mat"]
    assert documents(tokenizer, out, "train") == [" ".join(text.split()) for text in TRAIN]
    names = [
        "manifest.json",
        *(f"mix_train_{i:06d}.bin" for i in range(len(manifest.train.shards))),
    ]
    assert sorted(files(out)) == sorted([*names, "mix_val_000000.bin", "tokenizer.model"])
    assert len(manifest.train.shards) > 2


def test_the_manifest_states_sources_counts_bytes_and_hashes(
    tokenizer: Tokenizer, train: Path, val: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = tokenize_files([train], [val], tokenizer, out, TokenizeConfig(workers=1))
    manifest = load_manifest(out)
    assert manifest == made
    describe(out)
    split = manifest.val
    tokens = load_tokens(out, "val", tokenizer.vocab)
    assert split.documents == 3
    assert split.tokens == len(tokens)
    assert split.unknown_tokens == 0
    assert split.text_bytes == sum(len(text.encode()) for text in VAL)
    assert split.accounted_bytes == audit(PieceBytes.from_tokenizer(tokenizer), tokenizer, tokens)
    assert split.accounted_bytes == split.normalized_bytes == split.text_bytes - 1
    assert split.sources[0].name == "val.jsonl"
    assert split.sources[0].size_bytes == val.stat().st_size
    assert split.sources[0].sha256 == hashlib.sha256(val.read_bytes()).hexdigest()
    assert manifest.tokenizer.sha256 == tokenizer.sha256
    assert Tokenizer.load(out / manifest.tokenizer.file).sha256 == tokenizer.sha256


def test_the_output_does_not_depend_on_the_number_of_workers(
    tokenizer: Tokenizer, train: Path, val: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize, "CHUNK_CHARACTERS", 200)
    for workers in (1, 2):
        config = TokenizeConfig(shard_tokens=77, workers=workers)
        tokenize_files([train], [val], tokenizer, tmp_path / f"out{workers}", config)
    assert files(tmp_path / "out1") == files(tmp_path / "out2")


def test_an_error_in_a_worker_process_is_one_of_ours(
    train: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    config = TokenizerConfig(vocab=320, normalization="identity", keep_whitespace=True)
    keeping = train_tokenizer(TRAIN, tmp_path / "keeping.model", config)
    train.write_text(" the text begins with a space")
    for workers in (1, 2):
        with pytest.raises(
            AccountingError, match=r"train\.txt: document 1: .*at the start of a doc"
        ):
            tokenize_files([train], [], keeping, tmp_path / "out", TokenizeConfig(workers=workers))
    assert not (tmp_path / "out").exists()


def test_one_source_is_split_by_its_last_documents(
    tokenizer: Tokenizer, train: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    manifest = tokenize_files(
        [train], [], tokenizer, out, TokenizeConfig(val_documents=7, workers=1)
    )
    assert (manifest.train.documents, manifest.val.documents) == (33, 7)
    assert documents(tokenizer, out, "val") == [" ".join(text.split()) for text in TRAIN[33:]]
    assert manifest.split_rule == "the last 7 documents are val"
    with pytest.raises(DataError, match="the sources hold 40 documents"):
        tokenize_files([train], [], tokenizer, tmp_path / "o", TokenizeConfig(val_documents=40))


def test_one_source_is_split_by_hash_and_duplicates_stay_together(
    tokenizer: Tokenizer, train: Path, tmp_path: Path
) -> None:
    train.write_text(SEPARATOR.join(TRAIN + TRAIN))
    out = tmp_path / "out"
    config = TokenizeConfig(val_fraction=0.25, workers=1)
    manifest = tokenize_files([train], [], tokenizer, out, config)
    expected = [" ".join(text.split()) for text in TRAIN if belongs_to_val(text, 0.25)]
    assert 0 < len(expected) < 40
    assert documents(tokenizer, out, "val") == expected * 2
    assert manifest.train.documents == 80 - 2 * len(expected)


def test_a_document_in_both_splits_is_refused(
    tokenizer: Tokenizer, train: Path, val: Path, tmp_path: Path
) -> None:
    lines = [{"text": TRAIN[3]}, {"text": ""}, {"text": TRAIN[5]}]
    val.write_text("\n".join(map(json.dumps, lines)))
    train.write_text(SEPARATOR.join(["", *TRAIN]))
    expected = r"2 documents of train are also in val.*: document 5 of .*\('the cat number 3"
    with pytest.raises(DataError, match=expected):
        tokenize_files([train], [val], tokenizer, tmp_path / "out", TokenizeConfig(workers=1))
    assert sorted(files(tmp_path)) == ["train.txt", "val.jsonl"]


def test_an_existing_directory_is_replaced_by_force_only(
    tokenizer: Tokenizer, train: Path, val: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    tokenize_files([train], [], tokenizer, out, TokenizeConfig(shard_tokens=100, workers=1))
    (out / "notes").write_text("mine")
    before = files(out)
    with pytest.raises(DataError, match="exists and is not empty"):
        tokenize_files([val], [], tokenizer, out, TokenizeConfig(workers=1))
    assert files(out) == before
    tokenize_files([val], [], tokenizer, out, TokenizeConfig(workers=1, name="b", force=True))
    assert sorted(files(out)) == ["b_train_000000.bin", "manifest.json", "notes", "tokenizer.model"]
    describe(out)


def test_an_interrupted_run_leaves_nothing(
    tokenizer: Tokenizer, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize, "CHUNK_CHARACTERS", 1)
    calls = 0

    def interrupt(phase: str, done: float, total: float) -> None:
        nonlocal calls
        calls += 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize_files(
            [train], [], tokenizer, tmp_path / "out", TokenizeConfig(workers=1), interrupt
        )
    assert calls == 1
    assert os.listdir(tmp_path) == ["train.txt"]


def test_a_run_that_fails_while_writing_leaves_the_old_output(
    tokenizer: Tokenizer, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    tokenize_files([train], [], tokenizer, out, TokenizeConfig(workers=1))
    before = files(out)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="out: cannot write: No space left"):
        tokenize_files([train], [], tokenizer, out, TokenizeConfig(workers=1, force=True))
    assert files(out) == before
    assert sorted(os.listdir(tmp_path)) == ["out", "train.txt"]


def test_sources_that_make_no_sense_are_refused(
    tokenizer: Tokenizer, train: Path, val: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    out = tmp_path / "out"
    for trains, vals, config, reason in [
        ([], [], TokenizeConfig(), "no sources"),
        ([tmp_path / "no.txt"], [], TokenizeConfig(), r"no\.txt: cannot read: No such file"),
        ([train], [val], TokenizeConfig(val_documents=1), "give no val sources"),
        ([], [val], TokenizeConfig(val_fraction=0.5), "give no val sources"),
        ([train], [empty], TokenizeConfig(workers=1), "val: no documents in"),
    ]:
        with pytest.raises(DataError, match=reason):
            tokenize_files(trains, vals, tokenizer, out, config)
    assert not out.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a/b"},
        {"name": ""},
        {"name": "a_val_b"},
        {"shard_tokens": 0},
        {"workers": -1},
        {"val_fraction": 1.0},
        {"val_fraction": 0.1, "val_documents": 1},
    ],
)
def test_a_senseless_configuration_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        TokenizeConfig(**wrong)  # type: ignore[arg-type]


def replace(values: dict, path: str, new: object) -> None:
    *parents, last = path.split(".")
    for key in parents:
        values = values[int(key)] if key.isdigit() else values[key]
    if new is None:
        del values[last]
    else:
        values[last] = new


@pytest.fixture
def made(tokenizer: Tokenizer, val: Path, tmp_path: Path) -> tuple[Path, Manifest]:
    out = tmp_path / "out"
    return out, tokenize_files([], [val], tokenizer, out, TokenizeConfig(workers=1))


@pytest.mark.parametrize(
    ("path", "new", "reason"),
    [
        ("format", 2, "format 2"),
        ("format", None, "incomplete manifest"),
        ("val.tokens", "7", r"val\.tokens='7' must be int"),
        ("val.tokens", 7, "state"),
        ("val.documents", -1, "must not be negative"),
        ("val.documents", True, "must be int"),
        ("val.shards.0.file", "../x.bin", "plain file name"),
        ("val.shards.0.sha256", "abc", "64 hexadecimal"),
        ("val.shards", 3, "must be"),
        ("tokenizer.vocab", 0, "vocab=0"),
        ("tokenizer", [], "must be"),
        ("extra", 1, "unknown setting 'extra'"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(
    made: tuple[Path, Manifest], path: str, new: object, reason: str
) -> None:
    out, _ = made
    values = json.loads((out / "manifest.json").read_text())
    replace(values, path, new)
    (out / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"manifest\.json: .*{reason}"):
        load_manifest(out)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="cannot read the manifest"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"manifest\.json: "):
        load_manifest(tmp_path)


def test_files_that_differ_from_the_manifest_are_found(
    made: tuple[Path, Manifest], tmp_path: Path
) -> None:
    out, manifest = made
    shard = out / manifest.val.shards[0].file
    tokens = load_tokens(out, "val", 320).copy()
    write_shard(shard, tokens[:-1])
    with pytest.raises(DataError, match=r"but manifest\.json states"):
        describe(out)
    tokens[-1] = 5
    write_shard(shard, tokens)
    with pytest.raises(DataError, match=r"sha256 .* but manifest\.json states"):
        describe(out)
    shard.unlink()
    other = train_tokenizer(TRAIN, tmp_path / "other.model", TokenizerConfig(vocab=300))
    with pytest.raises(DataError, match="no shards"):
        describe(out)
    (out / "tokenizer.model").write_bytes(other.path.read_bytes())
    with pytest.raises(DataError, match=r"tokenizer\.model: .* manifest\.json states that"):
        describe(out)
    (out / "tokenizer.model").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.model: cannot read"):
        describe(out)
