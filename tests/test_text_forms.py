"""A text as written, normalised and decoded, over the switches of SentencePiece's trainer."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece

from gptpack.data.documents import SEPARATOR, iterate_documents
from gptpack.data.encode import Document, Encoded, encoder
from gptpack.data.tokenize import TokenizeConfig, tokenize_files
from gptpack.data.tokenizer import Tokenizer
from gptpack.errors import AccountingError, DataError
from gptpack.evaluation.text import Text

TEXTS = [
    f"the {w} of the {w}, in {1900 + i}" for i, w in enumerate(["cat", "dog", "mat", "hat"] * 9)
]
DOCUMENTS = [
    "the cat of the mat",
    "two lines\r\nof the  cat\n\n",
    "\ufeffmarked",
    "  indented",
    "ends with spaces  ",
    " ",
    "no\u00a0break",
    "nul\0inside",
    "emoji \U0001f600 and \u65e5\u672c",
    "\ufb01ne \u00bd \ufdfa",
    "of the",
    "",
]
SWITCHES = {
    "as gptpack trains": {},
    "dummy prefix": {"add_dummy_prefix": True},
    "keep whitespace": {"remove_extra_whitespaces": False},
    "identity": {"normalization_rule_name": "identity"},
    "identity, keep": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "identity, keep, dummy prefix": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": True,
    },
    "nfkc": {"normalization_rule_name": "nfkc"},
    "case folded": {"normalization_rule_name": "nmt_nfkc_cf"},
    "suffix": {"treat_whitespace_as_suffix": True},
    "suffix and dummy": {"treat_whitespace_as_suffix": True, "add_dummy_prefix": True},
    "across": {"split_by_whitespace": False},
    "across, dummy prefix": {"split_by_whitespace": False, "add_dummy_prefix": True},
    "whitespace pieces": {
        "allow_whitespace_only_pieces": True,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": True,
    },
    "user symbols": {"user_defined_symbols": ["ca", "\u2581of\u2581the", "<br>"]},
    "unigram": {"model_type": "unigram", "vocab_size": 300},
}


def trained(path: Path, **options: object) -> Tokenizer:
    settings = {
        "model_type": "bpe",
        "vocab_size": 330,
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "hard_vocab_limit": False,
        "num_threads": 1,
        "minloglevel": 4,
        **options,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, **settings
    )
    path.write_bytes(model.getvalue())
    return Tokenizer.load(path)


def encoded(tokenizer: Tokenizer, text: str) -> Encoded:
    with encoder(tokenizer, 1) as encode:
        [(_, found)] = encode([[Document(text, Path("a.txt"), 7)]])
    return found


@pytest.mark.parametrize("name", SWITCHES)
def test_tokens_are_charged_what_they_decode_to_or_the_document_is_named(
    tmp_path: Path, name: str
) -> None:
    tokenizer = trained(tmp_path / "t.model", **SWITCHES[name])
    for text in DOCUMENTS:
        decoded = tokenizer.decode(tokenizer.encode(text))
        if decoded.startswith(" ") and "prefix" not in name and name != "whitespace pieces":
            with pytest.raises(AccountingError, match=r"a\.txt: document 7: .*start of a document"):
                encoded(tokenizer, text)
        elif decoded and name == "suffix and dummy":
            with pytest.raises(AccountingError, match=r"a\.txt: document 7: .*or adds some"):
                encoded(tokenizer, text)
        else:
            found = encoded(tokenizer, text)
            assert found.accounted_bytes == found.normalized_bytes == [len(decoded.encode())]
            assert found.text_bytes == [len(text.encode())]
            if "identity, keep" in name or name == "whitespace pieces":
                assert decoded == text


def test_sentencepieces_own_defaults_with_byte_fallback_make_shards(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=300, byte_fallback=True,
        hard_vocab_limit=False, minloglevel=4,
    )  # fmt: skip
    (tmp_path / "t.model").write_bytes(model.getvalue())
    (tmp_path / "val.txt").write_text(SEPARATOR.join(TEXTS))
    tokenizer = Tokenizer.load(tmp_path / "t.model")
    out = tmp_path / "out"
    made = tokenize_files([], [tmp_path / "val.txt"], tokenizer, out, TokenizeConfig(workers=1))
    assert made.val.text_bytes == made.val.accounted_bytes == sum(map(len, TEXTS))
    text = Text.load(out, vocab=tokenizer.vocab, source=tmp_path / "val.txt")
    targets = len(text.tokens) - 1
    assert text.audited_bytes([targets]) == {targets: made.val.text_bytes}
    assert text.stated["text_bytes"] == text.stated["token_bytes"] == made.val.text_bytes


@pytest.mark.parametrize("longer", ["rule", "ligature"])
def test_a_text_that_normalisation_makes_longer_is_not_scored(tmp_path: Path, longer: str) -> None:
    options = {}
    texts = TEXTS
    if longer == "rule":
        (tmp_path / "rule.tsv").write_text("65\t65 65 65 65\n")
        options["normalization_rule_tsv"] = str(tmp_path / "rule.tsv")
    else:
        texts = [f"\ufdfa {text}" for text in TEXTS]
    tokenizer = trained(tmp_path / "t.model", **options)
    source = tmp_path / "val.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    out = tmp_path / "out"
    made = tokenize_files([], [source], tokenizer, out, TokenizeConfig(workers=1)).val
    assert made.accounted_bytes > made.text_bytes
    expected = f"charged {made.accounted_bytes:,} bytes for a text of {made.text_bytes:,}"
    with pytest.raises(AccountingError, match=expected):
        Text.load(out, vocab=tokenizer.vocab)
    (out / "manifest.json").unlink()
    text = Text.load(out, vocab=tokenizer.vocab, source=source)
    with pytest.raises(AccountingError, match="bytes by its tokens"):
        text.audited_bytes([len(text.tokens) - 1])


def test_a_few_bytes_more_are_said_and_scored(tmp_path: Path) -> None:
    texts = [*TEXTS * (40_000 // len("".join(TEXTS)) + 1), "\u00bd"]  # becomes 1, U+2044, 2
    tokenizer = trained(tmp_path / "t.model")
    source = tmp_path / "val.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    made = tokenize_files([], [source], tokenizer, tmp_path / "out", TokenizeConfig(workers=1)).val
    assert made.accounted_bytes == made.text_bytes + 3
    stated = Text.load(tmp_path / "out", vocab=tokenizer.vocab).stated
    assert stated["token_bytes"] == stated["text_bytes"] + 3


def test_a_bad_document_is_named_among_many_files(tmp_path: Path) -> None:
    tokenizer = trained(tmp_path / "t.model", remove_extra_whitespaces=False)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(SEPARATOR.join([*TEXTS, *[" x"] * (name == "b.txt")]))
    sources = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for workers in (1, 2):
        config = TokenizeConfig(workers=workers)
        with pytest.raises(AccountingError, match=rf"b\.txt: document {len(TEXTS) + 1}: "):
            tokenize_files(sources, [], tokenizer, tmp_path / "out", config)


# files as other systems write them


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, suffix: str) -> None:
    lines = (
        SEPARATOR.join(TEXTS)
        if suffix == ".txt"
        else "\n".join(json.dumps({"text": text}) for text in TEXTS)
    )
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert list(iterate_documents(path)) == TEXTS
    path.write_bytes(b"\xef\xbb\xbf")
    assert list(iterate_documents(path)) == []
    path.write_bytes(b"\xef\xbb")
    with pytest.raises(DataError, match="not UTF-8"):
        list(iterate_documents(path))


def test_a_separator_with_windows_line_ends_is_told_and_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(SEPARATOR.join(TEXTS).replace("\n", "\r\n").encode())
    with pytest.raises(
        DataError, match=r"'\\n\\x1e\\n' does not occur, but '\\r\\n\\x1e\\r\\n' does, 35 times"
    ):
        list(iterate_documents(path))
    with pytest.raises(DataError, match=r"lines that end in '\\n', or .*r '\\r\\n\\x1e\\r\\n'$"):
        list(iterate_documents(path))
    path.write_bytes(SEPARATOR.join(TEXTS).replace("\n", "\r").encode())
    with pytest.raises(DataError, match=r"but '\\r\\x1e\\r' does, 35 times.*r '\\r\\x1e\\r'$"):
        list(iterate_documents(path))
    assert list(iterate_documents(path, "\r\x1e\r")) == [t.replace("\n", "\r") for t in TEXTS]
    path.write_bytes("\n\n".join(TEXTS).replace("\n", "\r\n").encode())
    with pytest.raises(DataError, match=r"'\\n\\n' does not occur, but '\\r\\n\\r\\n' does"):
        list(iterate_documents(path, "\n\n"))
    path.write_bytes(SEPARATOR.join(TEXTS).replace("\n", "\r\n").encode())
    assert list(iterate_documents(path, "\r\n\x1e\r\n")) == TEXTS
    path.write_text("one text, and no separator")
    assert list(iterate_documents(path)) == ["one text, and no separator"]
