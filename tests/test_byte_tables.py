"""Bytes of tokens that no SentencePiece model decodes are exact, or refused."""

import base64
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from gptpack.artifact.front import read_header
from gptpack.data.accounting import PieceBytes
from gptpack.data.byte_tables import (
    ByteVocabulary,
    SidecarBytes,
    audit_documents,
    audit_pieces,
    load_sidecar,
    load_vocabulary,
)
from gptpack.data.shards import find_sidecars, write_shard
from gptpack.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from gptpack.errors import AccountingError, ConfigError, ShardError, TokenizerError
from gptpack.evaluation.text import Text, read_vocabulary
from gptpack.families.golf.gpt import GPT
from gptpack.inputs import file_sha256
from gptpack.training.checkpoint import Checkpoint, save_checkpoint

MERGES = [b" the", b" cat", b"at", b"\xc3\xa9", b"\xe6\x97", b"qu"]
PIECES = [bytes([byte]) for byte in range(256)] + MERGES
BOS = len(PIECES)


def write_ranks(path: Path) -> Path:
    lines = [base64.b64encode(piece) + b" %d" % rank for rank, piece in enumerate(PIECES)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def encode(text: str) -> list[int]:
    """Greedy: the longest piece at each place."""
    data, ids = text.encode(), []
    while data:
        length = max(n for n in range(1, 6) if data[:n] in PIECES and n <= len(data))
        ids.append(PIECES.index(data[:length]))
        data = data[length:]
    return ids


def stream(texts: list[str]) -> np.ndarray:
    return np.array([token for text in texts for token in (BOS, *encode(text))], np.uint16)


@pytest.fixture
def ranks(tmp_path: Path) -> ByteVocabulary:
    return load_vocabulary(write_ranks(tmp_path / "x.tiktoken"), vocab=300)


# Byte-level BPE.


def test_ranks_give_each_token_the_bytes_it_spells(ranks: ByteVocabulary) -> None:
    assert (ranks.vocab, ranks.bos) == (BOS + 1, BOS)
    assert ranks.pieces == tuple(PIECES)
    assert ranks.table.base[: len(PIECES)].tolist() == [len(piece) for piece in PIECES]
    assert len(ranks.table.base) == 300
    assert ranks.table.boundary[BOS:].all()
    assert not ranks.table.base[BOS:].any()
    assert not ranks.table.leading_space.any()


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1)


@settings(deadline=None, max_examples=60)
@given(texts=TEXTS)
def test_any_text_in_byte_level_bpe_is_audited_to_its_bytes(texts: list[str]) -> None:
    table = PieceBytes(
        np.array([len(piece) for piece in PIECES] + [0], np.int32),
        np.zeros(BOS + 1, np.bool_),
        np.arange(BOS + 1) == BOS,
    )
    vocabulary = ByteVocabulary(Path("x"), "0" * 64, BOS + 1, BOS, table, tuple(PIECES))
    tokens = stream(texts)
    wanted = sum(len(text.encode()) for text in texts)
    assert audit_pieces(vocabulary, tokens) == wanted
    assert audit_documents(table, tokens, BOS, texts) == wanted
    assert table.charged(tokens, 0, len(tokens) - 1) == wanted
    for cut in range(1, len(tokens)):
        part = tokens[:cut]
        charged = table.charged(part, 0, cut - 1)
        assert audit_pieces(vocabulary, part) == charged
        assert audit_documents(table, part, BOS, texts, cut=True) == charged


def test_tokens_that_spell_no_text_are_refused(ranks: ByteVocabulary) -> None:
    with pytest.raises(AccountingError, match="document at 2 are not UTF-8: invalid start byte"):
        audit_pieces(ranks, np.array([BOS, 65, BOS, 0xFF, 65, BOS]))
    with pytest.raises(AccountingError, match="document at 0 are not UTF-8: unexpected end"):
        audit_pieces(ranks, np.array([BOS, 0xC3, BOS]))
    assert audit_pieces(ranks, np.array([BOS, 65, 0xC3])) == 2
    with pytest.raises(AccountingError, match="token 280 of the document at 0 spells nothing"):
        audit_pieces(ranks, np.array([BOS, 280]))
    with pytest.raises(AccountingError, match=r"begin with 65, not with BOS \(262\)"):
        audit_pieces(ranks, np.array([65]))
    with pytest.raises(AccountingError, match="are none, not with BOS"):
        audit_pieces(ranks, np.array([], np.uint16))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"QQ== zero\n", "line 1 is not a base64 token and its rank"),
        (b"QQ== 0\n\n?? 1\n", "line 3 is not"),
        (b"QQ==\n", "line 1 is not"),
        (b"QQ== 1\n", "ranks are not 0 to 0, each once"),
        (b"QQ== 0\nQg== 2\n", "ranks are not 0 to 1"),
        (b"QQ== 0\nQg== 0\n", "ranks are not 0 to 1, each once"),
        (b"QQ== 0\nQg== -1\n", "ranks are not 0 to 1, each once"),
        (b"", "no kind of tokenizer"),
    ],
)
def test_ranks_that_are_malformed_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        load_vocabulary(path, vocab=10)


def test_more_tokens_than_the_model_has_are_refused(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "x.tiktoken")
    with pytest.raises(TokenizerError, match="263 tokens, but the model has a vocabulary of 262"):
        load_vocabulary(path, vocab=262)
    with pytest.raises(
        TokenizerError,
        match="token 65 begins documents, says the model, but stands for text; 262 is",
    ):
        load_vocabulary(path, vocab=300, bos=65)
    with pytest.raises(TokenizerError, match="cannot read"):
        load_vocabulary(tmp_path / "none.tiktoken", vocab=300)


# Metadata tables.


def table_of(**changes: object) -> dict[str, object]:
    values: dict[str, object] = {
        "base_bytes": np.array([0, 0, 3, 2, 1], np.int16),
        "has_leading_space": np.array([0, 0, 1, 0, 0], np.bool_),
        "is_boundary_token": np.array([1, 1, 0, 0, 0], np.bool_),
        "bos": 1,
    }
    return values | changes


def write_table(path: Path, values: dict[str, object]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **values)
    else:
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}
        path.write_text(json.dumps(plain))
    return path


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_a_table_charges_what_it_says(tmp_path: Path, suffix: str) -> None:
    found = load_vocabulary(write_table(tmp_path / f"t{suffix}", table_of()), vocab=8)
    assert (found.vocab, found.bos, found.pieces) == (5, 1, None)
    # " the" behind BOS and behind another, "at", "x".
    tokens = np.array([1, 2, 2, 3, 4, 1, 4], np.uint16)
    assert found.table.each(tokens, np.arange(6)).tolist() == [3, 4, 2, 1, 0, 1]
    assert audit_documents(found.table, tokens, 1, ["the the" + "atx"[:3], "x"]) == 11
    with pytest.raises(AccountingError, match="not below 8"):
        found.table.each(np.array([1, 9]), np.arange(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_bytes": np.array([0.5] * 5)}, "base_bytes must be whole numbers of 0 to 65536"),
        ({"base_bytes": np.array([0, 0, -1, 2, 1])}, "whole numbers"),
        ({"base_bytes": np.array([0, 0, 3])}, r"one-dimensional and alike, not \(3,\) \(5,\)"),
        ({"has_leading_space": np.array([0, 0, 2, 0, 0])}, "must be 0 or 1"),
        ({"bos": 2}, "token 2 begins documents, says the file, but stands for text"),
        ({"bos": "one"}, "not a table of bytes"),
        ({"bos": float("inf")}, "not a table of bytes"),
        ({"bos": 0.9}, "not a table of bytes"),
    ],
)
def test_tables_that_make_no_sense_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = write_table(tmp_path / "t.json", table_of(**changes))
    with pytest.raises(TokenizerError, match=message):
        load_vocabulary(path, vocab=8)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{]")
    (tmp_path / "b.npz").write_bytes(b"PK\3\4 nonsense")
    (tmp_path / "c.json").write_text('{"base_bytes": [1]}')
    (tmp_path / "d.txt").write_text("x")
    np.savez(tmp_path / "e.npz", base_bytes=np.array([{"pickle": 1}], object))
    shape = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000,), }\n"
    array = b"\x93NUMPY\x01\x00" + len(shape).to_bytes(2, "little") + shape
    with zipfile.ZipFile(tmp_path / "g.npz", "w") as file:
        file.writestr("base_bytes.npy", array)
    with zipfile.ZipFile(tmp_path / "h.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("base_bytes.npy", array)
    written = (tmp_path / "h.npz").read_bytes()
    at = written.index(b"base_bytes.npy") + len("base_bytes.npy")
    (tmp_path / "h.npz").write_bytes(written[:at] + b"\xff" * 8 + written[at + 8 :])
    encrypted = bytearray((tmp_path / "g.npz").read_bytes())
    encrypted[encrypted.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "i.npz").write_bytes(encrypted)
    for name, message in [
        ("g.npz", "not a table of bytes"),
        ("h.npz", "not a table of bytes"),
        ("i.npz", "not a table of bytes"),
        ("a.json", "not a table of bytes"),
        ("b.npz", "not a table of bytes"),
        ("c.json", "needs the arrays base_bytes, has_leading_space, is_boundary_token"),
        ("d.txt", "no kind of tokenizer"),
        ("e.npz", "not a table of bytes"),
    ]:
        with pytest.raises(TokenizerError, match=message):
            load_vocabulary(tmp_path / name, vocab=8)
    no_bos = table_of()
    del no_bos["bos"]
    path = write_table(tmp_path / "f.json", no_bos)
    with pytest.raises(TokenizerError, match="does not say which token begins a document"):
        load_vocabulary(path, vocab=8)
    assert load_vocabulary(path, vocab=8, bos=0).bos == 0


def test_a_table_that_charges_spaces_twice_is_caught_by_the_text() -> None:
    # The published mistake: the space is in base_bytes already, and charged again.
    texts = ["the the at", "at the"]
    table = PieceBytes(
        np.array([0, 0, 4, 3], np.int32),
        np.array([0, 0, 1, 1], np.bool_),
        np.array([1, 1, 0, 0], np.bool_),
    )
    tokens = np.array([1, 2, 2, 3, 1, 3, 2], np.uint16)
    with pytest.raises(
        AccountingError,
        match=r"document 1 \('the the at'\): 13 bytes by its tokens, 10 in the text; document 2",
    ):
        audit_documents(table, tokens, 1, texts)


def test_another_number_of_documents_is_refused() -> None:
    sidecar = SidecarBytes(np.array([0, 1, 0, 1], np.uint16))
    tokens = np.array([1, 5, 1, 5], np.uint16)
    assert audit_documents(sidecar, tokens, 1, ["a", "b"]) == 2
    with pytest.raises(AccountingError, match="hold 2 documents, the text 1"):
        audit_documents(sidecar, tokens, 1, ["a"])
    with pytest.raises(AccountingError, match="hold 2 documents, the text has more"):
        audit_documents(sidecar, tokens, 1, ["a", "b", "c"])
    assert audit_documents(sidecar, tokens, 1, ["a", "bcd", "c"], cut=True) == 2
    with pytest.raises(AccountingError, match=r"document 2 \(''\): 1 bytes by its tokens, 0"):
        audit_documents(sidecar, tokens, 1, ["a", "", "c"], cut=True)


# Sidecars.


def test_a_sidecar_is_read_beside_its_shards(tmp_path: Path) -> None:
    write_shard(tmp_path / "x_val_000000.bin", np.array([1, 5, 6]))
    write_shard(tmp_path / "x_val_000001.bin", np.array([7, 1]))
    assert find_sidecars(tmp_path, "val") == []
    write_shard(tmp_path / "x_val_bytes_000000.bin", np.array([0, 4, 2]))
    with pytest.raises(ShardError, match=r"x_val_bytes_000001\.bin: no such file, but other"):
        find_sidecars(tmp_path, "val")
    write_shard(tmp_path / "x_val_bytes_000001.bin", np.array([9, 0]))
    sidecar = load_sidecar(tmp_path, "val")
    tokens = np.array([1, 5, 6, 7, 1], np.uint16)
    assert sidecar.each(tokens, np.arange(4)).tolist() == [4, 2, 9, 0]
    assert sidecar.charged(tokens, 1, 3) == 11
    part = load_sidecar(tmp_path, "val", limit=2)
    with pytest.raises(AccountingError, match="has 2 entries, but token 3 is scored"):
        part.each(tokens, np.array([2]))
    write_shard(tmp_path / "x_val_bytes_000001.bin", np.array([9]))
    with pytest.raises(ShardError, match=r"1 entries for the 2 tokens of x_val_000001\.bin"):
        load_sidecar(tmp_path, "val")


# Everything behind one door.


def shards(folder: Path, tokens: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    write_shard(folder / "x_val_000000.bin", tokens)
    return folder


def test_ranks_are_loaded_audited_and_charged(tmp_path: Path) -> None:
    texts = ["the cat sat\xe9", "qu \u65e5"]
    data = shards(tmp_path / "data", stream(texts))
    (tmp_path / "v.txt").write_text("\n\x1e\n".join(texts), encoding="utf-8")
    ranks = write_ranks(tmp_path / "x.tiktoken")
    wanted = sum(len(text.encode()) for text in texts)
    for source in (None, tmp_path / "v.txt"):
        text = Text.load(data, vocab=300, tokenizer=ranks, bos=BOS, source=source)
        assert text.accounting == "ranks"
        targets = len(text.tokens) - 1
        assert text.audited_bytes([targets, 5]) == {
            targets: wanted,
            5: text.token_bytes.charged(text.tokens, 0, 5),
        }
        assert text.documents.tolist() == [0, 1 + len(encode(texts[0]))]
        assert text.unknown_tokens(targets) == 0
    (tmp_path / "v.txt").write_text("the cat sat?\n\x1e\nqu 1", encoding="utf-8")
    other = Text.load(data, vocab=300, tokenizer=ranks, source=tmp_path / "v.txt")
    with pytest.raises(AccountingError, match="document 1"):
        other.audited_bytes([len(other.tokens) - 1])


def test_a_sidecar_beside_the_shards_is_used_and_needs_the_text(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(
        [f"the cat {i} sat" for i in range(50)], tmp_path / "t.model", TokenizerConfig(vocab=290)
    )
    # The tokens spell lower case; the text has two capitals, each charged to its letter.
    texts = ["the cat", "Sat AT"]
    ids = [[tokenizer.bos, *tokenizer.encode(text.lower())] for text in texts]
    lengths = [
        [0, *(len(tokenizer.decode([i]).encode()) for i in document[1:])] for document in ids
    ]
    for document, text in zip(lengths, texts, strict=True):
        document[1] += len(text.encode()) - sum(document)
    data = shards(tmp_path / "data", np.concatenate(ids))
    write_shard(data / "x_val_bytes_000000.bin", np.concatenate(lengths))
    source = tmp_path / "v.txt"
    source.write_text("\n\x1e\n".join(texts))
    with pytest.raises(ConfigError, match=r"byte sidecars .* give it with text"):
        Text.load(data, vocab=290, tokenizer=tokenizer.path)
    text = Text.load(data, vocab=290, tokenizer=tokenizer.path, source=source)
    assert text.accounting == "sidecar"
    targets = len(text.tokens) - 1
    assert text.audited_bytes([targets]) == {targets: 13}
    cut = Text.load(data, vocab=290, tokenizer=tokenizer.path, source=source, limit_tokens=4)
    assert cut.cut
    assert cut.audited_bytes([4]) == {4: cut.token_bytes.charged(cut.tokens, 0, 4)}


def test_a_table_is_believed_only_with_the_text(tmp_path: Path) -> None:
    data = shards(tmp_path / "data", np.array([1, 2, 3, 1, 4]))
    path = write_table(tmp_path / "t.npz", table_of())
    with pytest.raises(ConfigError, match="can only be audited against the text"):
        Text.load(data, vocab=8, tokenizer=path)
    (tmp_path / "v.txt").write_text("theat\n\x1e\nx")
    text = Text.load(data, vocab=8, tokenizer=path, source=tmp_path / "v.txt")
    assert text.accounting == "table"
    assert text.audited_bytes([4]) == {4: 6}


def test_pieces_are_audited_against_the_text_too_where_it_is_given(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(
        [f"the cat {i} sat" for i in range(50)], tmp_path / "t.model", TokenizerConfig(vocab=290)
    )
    data = shards(tmp_path / "data", np.array([tokenizer.bos, *tokenizer.encode("the cat")]))
    source = tmp_path / "v.txt"
    for text in ("the cat", "the  cat "):
        source.write_text(text)
        found = Text.load(data, vocab=290, tokenizer=tokenizer.path, source=source)
        targets = len(found.tokens) - 1
        assert found.audited_bytes([targets]) == {targets: 7}
    source.write_text("the ca")
    found = Text.load(data, vocab=290, tokenizer=tokenizer.path, source=source)
    with pytest.raises(AccountingError, match="7 bytes by its tokens, 6 in the text"):
        found.audited_bytes([targets])


# A reader for all kinds of tokenizers, and what serves eval serves pack.


@pytest.mark.parametrize("name", ["a", "tokenizer.model", "a.json", "a.tiktoken", "a.npz"])
def test_the_content_says_which_kind_of_tokenizer_a_file_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    shutil.copy(worlds.corpus().tokenizer.path, path)
    assert isinstance(read_vocabulary(path, vocab=300), Tokenizer)
    for make in (
        lambda: write_ranks(tmp_path / "made.tiktoken"),
        lambda: write_table(tmp_path / "made.npz", table_of()),
        lambda: write_table(tmp_path / "made.json", table_of()),
    ):
        shutil.copy(make(), path)
        found = read_vocabulary(path, vocab=300)
        assert isinstance(found, ByteVocabulary)
        assert found.identity.sha256 == file_sha256(path)


def test_ranks_serve_pack_as_they_serve_eval(tmp_path: Path, capsys: Any) -> None:
    ranks = tmp_path / "ranks"
    ranks.write_text("".join(f"{base64.b64encode(bytes([i])).decode()} {i}\n" for i in range(256)))
    data = tmp_path / "data"
    data.mkdir()
    texts = [" ".join(worlds.WORDS[i % 12 :] * 3) for i in range(60)]
    tokens = np.array([token for text in texts for token in (256, *text.encode())], np.uint16)
    write_shard(data / "x_val_000000.bin", tokens)
    config = worlds.tiny("model.vocab=257").model
    # its bos, 1, is what a model has where nobody says another
    save_checkpoint(
        tmp_path / "own.pt", Checkpoint(model=config, weights=GPT(config, seed=0).state_dict())
    )
    baseline = replace(config, context=1024, bos=1)
    torch.save(GPT(baseline, seed=0).state_dict(), tmp_path / "bare.pt")
    given = ["--data", str(data), "--tokenizer", str(ranks), "--device", "cpu"]
    assert worlds.invoke("eval", str(tmp_path / "own.pt"), *given) == 2
    assert "token 1 begins documents, says the model" in capsys.readouterr().err
    source = str(tmp_path / "bare.pt")
    assert worlds.invoke("eval", source, *given, "--context", "16") == 0
    packed = str(tmp_path / "m.gptpack")
    how = ["--delta", "0.05", "--method", "int8", "-o", packed]
    assert worlds.invoke("pack", source, *given, *how) == 0
    assert read_header(packed).tokenizer.bos == 256
    assert worlds.invoke("eval", packed, *given, "--context", "16") == 0
