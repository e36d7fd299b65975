"""The browser's tokenizers give the ids of the libraries that made them, and the texts."""

import io
import json
import lzma
import random
from pathlib import Path

import pytest
import sentencepiece
from hugging import with_spaces_as_llama_has_them
from node import ask, needs_node

pytestmark = needs_node

SHARED = Path(__file__).parents[2] / "shared"
ODD = [
    "",
    " ",
    "  a  b ",
    "\t x\n\ny \r\n\r\n z",
    "\ufb01 \u2460 \uff21",
    "\u65e5\u672c\u8a9e \u30c6\u30b9\u30c8",
    "\U0001f469\u200d\U0001f467 ok " + "\U0001f44d" * 9,
    "a\u0301 e\u0308 \u212a \u017f",
    "1234567 12.5% 2026-11-29",
    "don't we'll I'M THEY'RE",
    "\ufeffbom \u2026\u2014\u201c\u201d",
    "<s> </s> <unk> <|end|> <mark> <pad>",
    "\u2581 mark <mark>end",
    "\x00\x01\x85ctl",
    "x" * 300,
]


@pytest.fixture(scope="module")
def texts():
    """This project's own text, odd ones, and random characters of all planes."""
    chooser = random.Random(3)
    ranges = [(32, 127), (32, 127), (0xA0, 0x2FF), (0x370, 0xD7FF), (0xE000, 0x2FFFF)]

    def character() -> str:
        return chr(chooser.randrange(*chooser.choice(ranges)))

    noise = ["".join(character() for _ in range(chooser.randrange(1, 50))) for _ in range(200)]
    pages = (Path(__file__).parents[1] / "docs").glob("*.md")
    lines = "\n".join(page.read_text(encoding="utf-8") for page in pages).split("\n\n")
    return [*ODD, *noise, *lines[::4]]


def agree(tokenizer: Path, texts: list[str], encode, decode, tmp_path: Path) -> None:
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(texts), encoding="utf-8")
    (found,) = ask([{"task": "tokens", "path": tokenizer, "texts": path}])
    for text, ids, decoded in zip(texts, found["ids"], found["decoded"], strict=True):
        assert ids == encode(text), text
        assert decoded == decode(ids), text


PIECES = {
    "of gptpack": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False},
    "bpe": {"model_type": "bpe", "user_defined_symbols": ["<mark>", "ing "]},
    "unigram": {"model_type": "unigram", "user_defined_symbols": ["<mark>"]},
    "unigram of bytes": {"model_type": "unigram", "byte_fallback": True},
    "as written": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
    },
    "spaces behind": {"model_type": "bpe", "treat_whitespace_as_suffix": True},
    "folded": {"model_type": "unigram", "normalization_rule_name": "nfkc_cf"},
}


@pytest.mark.parametrize("name", PIECES)
def test_sentencepiece(name, texts, tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts[215:] for line in text.splitlines()),
        model_writer=model,
        vocab_size=600,
        hard_vocab_limit=False,
        minloglevel=4,
        num_threads=1,
        **PIECES[name],
    )
    path = tmp_path / "tok.model"
    path.write_bytes(model.getvalue())
    library = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    agree(path, texts, library.encode, library.decode, tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the contest's tokenizers are not beside this")
@pytest.mark.parametrize("vocab", [1024, 8192])
def test_the_contests_tokenizers_on_the_shared_text(vocab, tmp_path):
    path = SHARED / "tokenizers" / f"fineweb_{vocab}_bpe.model"
    with lzma.open(SHARED / "corpus" / "val.txt.xz") as file:
        documents = file.read(400_000).decode("utf-8", "ignore").split("\n\x1e\n")
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    agree(path, [*ODD, *documents], library.encode, library.decode, tmp_path)


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def hugging(kind: str):
    """A tokenizer of this kind, not trained, and its trainer's settings."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    made = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel
    made.decoder = decoders.ByteLevel()
    if kind == "gpt2":
        made.pre_tokenizer = level(add_prefix_space=False)
    elif kind == "gpt2 with a space":
        made.pre_tokenizer = level(add_prefix_space=True)
    elif kind == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        made.pre_tokenizer = pre_tokenizers.Sequence([digits, level(add_prefix_space=False)])
    elif kind == "llama3":
        split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [split, level(add_prefix_space=False, use_regex=False)]
        )
    elif kind == "llama2":
        made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        with_spaces_as_llama_has_them(made)
    else:
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
    return made


@pytest.mark.parametrize(
    "kind", ["gpt2", "gpt2 with a space", "smollm", "llama3", "llama2", "metaspace"]
)
def test_hugging_faces_tokenizers(kind, texts, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = hugging(kind)
    special = ["<unk>", "<|end|>"]
    if kind == "llama2":
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    level = tokenizers.pre_tokenizers.ByteLevel.alphabet() if "ByteLevel" in made.to_str() else []
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=level, show_progress=False
    )
    train_from = [line for text in texts[215:] for line in text.splitlines()]
    if kind == "llama2":  # without words a line is one, which takes the trainer too long
        train_from = [word for line in train_from for word in line.split()]
    made.train_from_iterator(train_from, trainer)
    if kind == "llama2":  # bytes are pieces like others there
        state = json.loads(made.to_str())
        state["added_tokens"] = state["added_tokens"][:2]
        made = tokenizers.Tokenizer.from_str(json.dumps(state))
    made.add_tokens(["<mark>"])
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    made.encode_special_tokens = True
    agree(
        path,
        texts,
        lambda text: made.encode(text, add_special_tokens=False).ids,
        lambda ids: made.decode(ids, skip_special_tokens=True),
        tmp_path,
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pre_tokenizer": {"type": "BertPreTokenizer"}}, "the pre-tokenizer"),
        ({"normalizer": {"type": "BertNormalizer"}}, "the normalizer"),
        ({"model": {"type": "WordPiece"}}, "a model of type"),
        ({"decoder": {"type": "CTC"}}, "the decoder"),
    ],
)
def test_a_part_that_is_not_known_is_named(change, said, tmp_path):
    path, texts = tmp_path / "tokenizer.json", tmp_path / "texts.json"
    path.write_text(json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}, **change}))
    texts.write_text('["a"]')
    (found,) = ask([{"task": "tokens", "path": path, "texts": texts}])
    assert said in found["error"]


def test_bytes_that_are_no_tokenizer_are_an_error(tmp_path):
    texts = tmp_path / "texts.json"
    texts.write_text('["a"]')
    for name in ("tokenizer.json", "tok.model"):
        for data in (b"", b"\xff" * 30, b"[]", b"\x0a\x05abcde", bytes(range(256))):
            path = tmp_path / name
            path.write_bytes(data)
            (found,) = ask([{"task": "tokens", "path": path, "texts": texts}])
            assert "tokenizer" in found["error"], (name, data)
