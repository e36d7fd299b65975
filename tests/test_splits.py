"""Shards are held to their manifest, to their numbers and to each other by whoever reads them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import CPU, TINY, corpus, invoke, tiny

from gptpack.data import overlap as overlaps
from gptpack.data import splits
from gptpack.data.documents import SEPARATOR
from gptpack.data.overlap import MOST_SHARED, Overlap, digest, overlap
from gptpack.data.shards import Shard, find_shards, write_shard
from gptpack.data.splits import entries, load_tokens, open_split
from gptpack.data.tokenize import TokenizeConfig, tokenize_files
from gptpack.errors import CheckpointError, DataError, ShardError
from gptpack.evaluation.text import Text
from gptpack.jobs.data import describe
from gptpack.training.checkpoint import load_checkpoint
from gptpack.training.loop import train

BOS = 1
TRAIN_SHARD = "data_train_000000.bin"
TEXTS = [f"the cat number {i} sat on the mat at noon and ate {i} dogs" for i in range(60)]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with a manifest, three val shards and two train shards."""
    for split, texts in (("val", TEXTS[:20]), ("train", TEXTS[20:])):
        (tmp_path / f"{split}.txt").write_text(SEPARATOR.join(texts))
    config = TokenizeConfig(shard_tokens=400, workers=1)
    out = tmp_path / "out"
    tokenizer = corpus().tokenizer
    tokenize_files([tmp_path / "train.txt"], [tmp_path / "val.txt"], tokenizer, out, config)
    assert len(find_shards(out, "val")) == 3
    return out


def flip(folder: Path) -> None:
    path = folder / "data_val_000001.bin"
    content = bytearray(path.read_bytes())
    content[1024 + 200] ^= 1
    path.write_bytes(content)


def shorten(folder: Path) -> None:
    write_shard(folder / "data_val_000002.bin", load_tokens(folder, "val", 280)[800:-1])


def without_manifest(change: Callable[[Path], object]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        (folder / "manifest.json").unlink()
        change(folder)

    return changed


def copy(folder: Path, source: str, target: str) -> None:
    shutil.copy(folder / source, folder / target)


def number_as_text(folder: Path) -> None:
    for index, path in enumerate(find_shards(folder, "val")):
        path.rename(folder / f"data_val_{index + 8}.bin")


WRONG = {
    "changed": (flip, r"data_val_000001\.bin: sha256 .* but manifest\.json states"),
    "shorter": (shorten, r"data_val_000002\.bin: \d+ tokens, but manifest\.json states"),
    "the last is missing": (
        lambda folder: (folder / "data_val_000002.bin").unlink(),
        r"data_val_000002\.bin: no such file, but manifest\.json states it \(1 of 3",
    ),
    "one in the middle is missing": (
        lambda folder: (folder / "data_val_000001.bin").unlink(),
        r"data_val_000002\.bin: no shard 1 before it",
    ),
    "one too many": (
        lambda folder: write_shard(folder / "data_val_000003.bin", np.array([BOS, 5])),
        r"data_val_000003\.bin: manifest\.json does not state this shard",
    ),
    "a manifest that says nothing": (
        lambda folder: (folder / "manifest.json").write_text("{}"),
        r"manifest\.json: incomplete manifest",
    ),
    "another tokenizer": (
        lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace(corpus().tokenizer.sha256, "ab" * 32)
        ),
        r"tokenizer\.model: sha256 .* but manifest\.json states that abab",
    ),
    "a copy": (
        without_manifest(lambda folder: copy(folder, "data_val_000001.bin", "data_val_000003.bin")),
        r"data_val_000003\.bin: the same bytes as data_val_000001\.bin",
    ),
    "the first is missing": (
        without_manifest(
            lambda folder: (
                [(folder / f"data_val_00000{i}.bin").unlink() for i in (0, 1)]
                and copy(folder, "data_val_000002.bin", "data_val_000003.bin")
            )
        ),
        r"data_val_000002\.bin: no shard 1 before it",
    ),
    "numbers in the order of text": (
        without_manifest(number_as_text),
        r"data_val_8\.bin: number 8 comes behind 10 by its name",
    ),
    "one number twice": (
        without_manifest(lambda folder: copy(folder, "data_val_000000.bin", "data_val_0.bin")),
        r"data_val_000000\.bin: number 0 comes behind 0",
    ),
    "no number": (
        without_manifest(lambda folder: copy(folder, "data_val_000000.bin", "data_val_last.bin")),
        r"data_val_last\.bin: 'last' is no number",
    ),
    "val in train": (
        without_manifest(
            lambda folder: copy(folder, "data_val_000000.bin", "data_train_000005.bin")
        ),
        r"documents of val, \d+\.\d% of its tokens, are in train",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_shards_that_are_not_what_they_claim_are_one_line_to_every_reader(
    made: Path, name: str
) -> None:
    change, reason = WRONG[name]
    change(made)
    for read in (describe, lambda folder: Text.load(folder, vocab=280)):
        with pytest.raises(DataError, match=reason) as raised:
            read(made)
        assert "\n" not in str(raised.value)


def test_an_untouched_folder_is_read_with_and_without_its_manifest(made: Path) -> None:
    text = Text.load(made, vocab=280)
    stated = json.loads((made / "manifest.json").read_text())["val"]
    assert [shard.sha256 for shard in text.shards] == [s["sha256"] for s in stated["shards"]]
    assert len(text.tokens) == stated["tokens"]
    (made / "manifest.json").unlink()
    assert np.array_equal(Text.load(made, vocab=280).tokens, text.tokens)


def test_a_limit_reads_only_the_shards_that_hold_it_but_counts_all(made: Path) -> None:
    flip(made)
    opened = open_split(made, "val", 280, 400)
    assert [shard.path.name for shard in opened] == ["data_val_000000.bin"]
    with pytest.raises(ShardError, match=r"000001\.bin: sha256"):
        open_split(made, "val", 280, 401)
    (made / "data_val_000002.bin").unlink()
    with pytest.raises(ShardError, match="no such file"):
        open_split(made, "val", 280, 400)


def test_a_process_reads_a_shard_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a_val_000000.bin"
    write_shard(path, np.array([1, 5, 2]))
    reads = []
    real = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda *a: reads.append(a) or real(*a))
    for _ in range(3):
        shard = Shard.open(path, 6)
        assert shard.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(reads) == 1
    with pytest.raises(ShardError, match="token 5 at 1 is not below"):
        Shard.open(path, 5)
    assert len(reads) == 1
    write_shard(path, np.array([1, 5, 2, 3]))
    assert Shard.open(path, 6).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(reads) == 2


def test_equal_shards_that_a_manifest_states_are_no_copies(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("a|" * 6)
    out = tmp_path / "out"
    config = TokenizeConfig(shard_tokens=2, workers=1, separator="|")
    made = tokenize_files([], [tmp_path / "val.txt"], corpus().tokenizer, out, config)
    assert len({shard.sha256 for shard in made.val.shards}) < len(made.val.shards)
    assert len(load_tokens(out, "val", 280)) == made.val.tokens


# what train and val share

documents = st.lists(st.lists(st.integers(2, 4), max_size=4), max_size=12)


def stream(texts: list[list[int]], cuts: list[int], dtype: type) -> list[np.ndarray]:
    tokens = np.array([token for text in texts for token in (BOS, *text)], dtype)
    return np.split(tokens, sorted(cut % (len(tokens) + 1) for cut in cuts))


@settings(deadline=None)
@given(
    val=documents,
    train=documents,
    cuts=st.lists(st.integers(0, 60), max_size=4),
    block=st.integers(1, 70),
)
def test_the_overlap_is_the_set_of_documents_in_both_wherever_shards_end(
    val: list[list[int]], train: list[list[int]], cuts: list[int], block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlaps, "BLOCK_TOKENS", block)
        patch.setattr(overlaps, "PREFIX_TOKENS", 2)
        found = overlap(stream(val, cuts, np.uint16), stream(train, cuts[::2], np.uint32), BOS)
    twins = [text for text in val if text in train and text]
    assert found.documents == len(twins)
    assert found.tokens == sum(1 + len(text) for text in twins)
    assert found.val_documents == sum(1 for text in val if text)
    assert found.compared_tokens == found.train_tokens == sum(1 + len(text) for text in train)


def test_only_the_first_train_tokens_are_compared_if_so_asked() -> None:
    held = [np.array([BOS, 2, 2, BOS, 3, 3]), np.array([BOS, 4, 4])]
    for limit, shared in ((3, 0), (5, 0), (6, 0), (8, 0), (9, 1), (0, 1)):
        found = overlap([np.array([BOS, 4, 4])], held, BOS, limit)
        assert found.documents == shared
        assert found.compared_tokens == (limit or 9)


def test_few_shared_tokens_of_unknown_origin_are_told_and_more_are_refused() -> None:
    counts = {"documents": 1, "val_documents": 9, "compared_tokens": 9, "train_tokens": 9}
    most = round(1000 * MOST_SHARED)
    Overlap(tokens=most, val_tokens=1000, **counts).check(Path("x"))
    with pytest.raises(DataError, match=r"x: 1 of 9 documents of val, 1\.1% of its tokens"):
        Overlap(tokens=most + 1, val_tokens=1000, **counts).check(Path("x"))


def test_equal_tokens_have_one_hash_in_both_widths() -> None:
    assert digest(np.array([1, 2], np.uint16)) == digest(np.array([1, 2], np.uint32))
    assert digest(np.array([1, 2], np.uint16)) != digest(np.array([2, 1], np.uint16))


TWINS = ("a \ufb01ne day at noon with the cat", "a fine  day at noon with\nthe cat")
"""Texts that SentencePiece's nmt_nfkc makes one text of."""


def test_texts_that_a_tokenizer_makes_one_of_are_refused_in_two_splits(tmp_path: Path) -> None:
    paths = [tmp_path / "train.jsonl", tmp_path / "val.jsonl"]
    for path, text in zip(paths, TWINS, strict=True):
        path.write_text("\n".join(json.dumps({"text": t}) for t in ("other " + path.stem, text)))
    config = TokenizeConfig(workers=1)
    with pytest.raises(DataError, match=r"1 documents of train .*: document 2 of .*train\.jsonl"):
        tokenize_files(paths[:1], paths[1:], corpus().tokenizer, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_a_split_by_hash_puts_such_texts_on_one_side(tmp_path: Path, fraction: float) -> None:
    texts = [f"{twin} {i}" for i in range(30) for twin in TWINS]
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    config = TokenizeConfig(workers=1, val_fraction=fraction)
    out = tmp_path / "out"
    made = tokenize_files([source], [], corpus().tokenizer, out, config)
    assert made.val.documents % 2 == made.train.documents % 2 == 0
    assert made.val.documents + made.train.documents == 60
    assert made.disjoint
    parts = [[s.tokens for s in open_split(out, split, 280)] for split in ("val", "train")]
    found = overlap(*parts, BOS)
    assert found.documents == 0
    assert found.val_documents == made.val.documents
    for split, tokens in zip((made.val, made.train), parts, strict=True):
        assert split.tokens == sum(map(len, tokens))
        assert split.text_bytes > split.normalized_bytes == split.accounted_bytes > 0


# a run and its data


def test_a_run_remembers_its_data_and_resumes_on_no_other(made: Path, tmp_path: Path) -> None:
    opened = open_split(made, "train", 280)
    recipe = tiny("model.vocab=280")
    tokens, data = [shard.tokens for shard in opened], entries(opened)
    result = train(recipe, tokens, tmp_path / "run", CPU, data=data)
    assert load_checkpoint(result.checkpoint).data == data
    train(recipe, tokens, tmp_path / "run", CPU, data=data, resume=True)
    train(recipe, tokens, tmp_path / "older", CPU)
    with pytest.raises(CheckpointError, match="does not say which train shards"):
        train(recipe, tokens, tmp_path / "older", CPU, data=data, resume=True)
    (made / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"began on \d+ train shards and found 1; resume"):
        train(recipe, tokens[:1], tmp_path / "run", CPU, data=data[:1], resume=True)
    write_shard(opened[0].path, np.flip(opened[0].tokens))
    other = entries(open_split(made, "train", 280))
    expected = r"began on data_train_000000\.bin of 400 tokens, sha256 .*, and found data_train"
    with pytest.raises(CheckpointError, match=expected):
        train(recipe, tokens, tmp_path / "run", CPU, data=other, resume=True)


def test_the_commands_end_with_status_2_where_data_is_not_what_its_manifest_states(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--recipe", "tiny", "--data", str(made), "--output", str(tmp_path / "run")]
    for setting in (*TINY, "model.vocab=280", "training.steps=2", "training.warmdown_fraction=0"):
        words += ["--set", setting]
    words += ["--device", "cpu", "--no-eval"]
    assert invoke("train", *words) == 0
    checkpoint = str(tmp_path / "run/checkpoint.pt")
    flip(made)
    rest = ["--data", str(made), "--device", "cpu"]
    packed = ["--budget", "100KB", "--output", str(tmp_path / "m.gptpack")]
    for arguments in (["eval", checkpoint, *rest], ["pack", checkpoint, *packed, *rest]):
        capsys.readouterr()
        assert invoke(*arguments) == 2
        assert "000001.bin: sha256" in capsys.readouterr().err.splitlines()[-1]
    shutil.copy(made / "data_train_000000.bin", made / "data_train_000001.bin")
    assert invoke("train", *words, "--resume") == 2
    assert "data_train_000001.bin: sha256" in capsys.readouterr().err.splitlines()[-1]


def test_a_manifest_with_half_a_surrogate_pair_is_one_line(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('.bin"', '\\ud800.bin"', 1))
    with pytest.raises(DataError, match="not a JSON manifest"):
        splits.manifest_beside(folder)
