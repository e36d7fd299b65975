import hashlib
import os
from pathlib import Path

import pytest

from gptpack.data.tokenizer import Tokenizer, TokenizerConfig, _sample, train_tokenizer
from gptpack.errors import ConfigError, TokenizerError
from gptpack.progress import silent

TEXTS = [f"the cat number {i} sat on the mat\nand saw 12 näïve dögs" for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "a.model"
    return train_tokenizer(TEXTS, path, TokenizerConfig(vocab=320, normalization="nmt_nfkc"))


def test_special_pieces_and_bytes_stand_where_the_contest_has_them(tokenizer: Tokenizer) -> None:
    assert [tokenizer.piece(i) for i in range(4)] == ["<pad>", "<s>", "</s>", "<unk>"]
    assert [tokenizer.piece(i) for i in range(4, 260)] == [f"<0x{i:02X}>" for i in range(256)]
    assert (tokenizer.bos, tokenizer.unknown) == (1, 3)


def test_any_text_comes_back_normalised(tokenizer: Tokenizer) -> None:
    for text, expected in [
        ("the mat", "the mat"),
        ("  two   spaces\n\nand lines ", "two spaces and lines"),
        ("日本 \N{GRINNING FACE}", "日本 \N{GRINNING FACE}"),
        ("\N{LATIN SMALL LIGATURE FI}n", "fin"),
        ("", ""),
        ("<s>", "<s>"),
    ]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == expected
        assert tokenizer.unknown not in ids
        assert tokenizer.normalized_bytes([text]) == [len(expected.encode())]
    assert tokenizer.encode_batch(["the", ""]) == [tokenizer.encode("the"), []]


def test_identity_with_whitespace_keeps_every_character(tmp_path: Path) -> None:
    config = TokenizerConfig(vocab=320, normalization="identity", keep_whitespace=True)
    tokenizer = train_tokenizer(TEXTS, tmp_path / "a.model", config)
    for text in [" a\n\n  b\t", "\N{LATIN SMALL LIGATURE FI}", "x  "]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_split(tokenizer: Tokenizer) -> None:
    digits = [token for token in tokenizer.encode("1212") if tokenizer.piece(token).isdigit()]
    assert len(digits) == 4


def test_training_twice_gives_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = train_tokenizer(
        iter(TEXTS), tmp_path / "b.model", TokenizerConfig(vocab=320, normalization="nmt_nfkc")
    )
    assert again.path.read_bytes() == tokenizer.path.read_bytes()
    assert again.sha256 == hashlib.sha256(again.path.read_bytes()).hexdigest()
    assert os.listdir(tmp_path) == ["b.model"]


def test_training_is_silent(
    tokenizer: Tokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_tokenizer(
        TEXTS, tmp_path / "b.model", TokenizerConfig(vocab=320, normalization="nmt_nfkc")
    )
    with pytest.raises(TokenizerError):
        train_tokenizer(TEXTS, tmp_path / "c.model", TokenizerConfig(vocab=10))
    assert capfd.readouterr() == ("", "")


def test_a_long_document_is_learned_from_to_its_end(tmp_path: Path) -> None:
    long = "aaa " * 5000 + "zebra " * 2000
    tokenizer = train_tokenizer([long], tmp_path / "a.model", TokenizerConfig(vocab=280))
    assert len(tokenizer.encode("a zebra")) == 2


def test_a_sample_does_not_depend_on_the_order_and_respects_its_size() -> None:
    texts = [f"document {i:04d}" for i in range(100)]
    some = _sample(texts, 20 * len(texts[0]), silent)
    assert some == sorted(some)
    assert len(some) == 20
    assert set(some) == set(_sample(reversed(texts), 20 * len(texts[0]), silent))
    assert _sample(texts, 0, silent) == texts
    assert len(_sample(texts, 1, silent)) == 1


def test_a_vocabulary_too_small_or_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"10 pieces are too few .* at least (\d+)") as error:
        train_tokenizer(TEXTS, tmp_path / "a.model", TokenizerConfig(vocab=10))
    assert "character_coverage" not in str(error.value)
    with pytest.raises(TokenizerError, match="no text"):
        train_tokenizer([], tmp_path / "a.model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"", b"\0", b"not a model", b"\xff" * 100])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.model"
    path.write_bytes(data)
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        Tokenizer.load(path)
    with pytest.raises(TokenizerError, match="cannot read"):
        Tokenizer.load(tmp_path / "none.model")


def test_a_truncated_model_is_refused_or_another_model(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = tokenizer.path.read_bytes()
    path = tmp_path / "a.model"
    for size in range(0, len(whole), 4999):
        path.write_bytes(whole[:size])
        message = ""
        try:
            assert Tokenizer.load(path).sha256 != tokenizer.sha256
        except TokenizerError as error:
            message = str(error)
        assert "\n" not in message


def test_an_id_beyond_the_vocabulary_cannot_be_decoded(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="ids below"):
        tokenizer.decode([tokenizer.vocab])


@pytest.mark.parametrize(
    "wrong",
    [
        {"vocab": 0},
        {"vocab": (1 << 20) + 1},
        {"normalization": "x"},
        {"sample_bytes": -1},
        {"character_coverage": 0.0},
    ],
)
def test_a_senseless_configuration_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TokenizerConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", [b"\xff\xff", b"\xed\xa0"])
def test_a_model_whose_pieces_are_no_text_is_refused(tmp_path: Path, damage: bytes) -> None:
    made = train_tokenizer(["the cat sat " * 9], tmp_path / "t.model", TokenizerConfig(vocab=270))
    path = tmp_path / "damaged.model"
    path.write_bytes(made.path.read_bytes().replace(b"at", damage))
    with pytest.raises(TokenizerError, match=r"damaged\.model: (not|a damaged) .*SentencePiece"):
        Tokenizer.load(path)


def test_a_tokenizer_leaves_characters_as_they_are_unless_told_otherwise(tmp_path):
    text = "\u2460 \ufb01ve\u2122 \uff21\uff22"
    as_is = train_tokenizer([text] * 20, tmp_path / "a", TokenizerConfig(vocab=280))
    assert as_is.processor.decode(as_is.encode(text)) == text
    config = TokenizerConfig(vocab=280, normalization="nmt_nfkc")
    folded = train_tokenizer([text] * 20, tmp_path / "b", config)
    assert folded.processor.decode(folded.encode(text)) == "1 fiveTM AB"
