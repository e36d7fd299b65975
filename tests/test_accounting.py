from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptpack.data import accounting
from gptpack.data.accounting import PieceBytes, audit, unknown_tokens
from gptpack.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from gptpack.errors import AccountingError

TEXTS = [f"the cat number {i} sat on the mat\nand saw  12 näïve dögs" for i in range(60)]
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("accounting") / "a.model"
    return train_tokenizer(TEXTS, path, TokenizerConfig(vocab=320, normalization="nmt_nfkc"))


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("accounting") / "keeping.model"
    config = TokenizerConfig(vocab=320, normalization="identity", keep_whitespace=True)
    return train_tokenizer(TEXTS, path, config)


@pytest.fixture(scope="module")
def spaceless(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("accounting") / "spaceless.model"
    texts = ["catdogmouse", "catcatdog"] * 30
    made = train_tokenizer(texts, path, TokenizerConfig(vocab=275))
    assert made.processor.piece_to_id("\u2581") == made.unknown
    return made


@pytest.fixture(scope="module")
def without_bytes(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The same model with its byte pieces unused and byte fallback off."""
    path = tmp_path_factory.mktemp("accounting") / "b.model"
    path.write_bytes(turn_off_bytes(tokenizer.path.read_bytes()))
    return Tokenizer.load(path)


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def turn_off_bytes(model: bytes) -> bytes:
    """Edit the protocol buffer: piece type BYTE (6) -> UNUSED (5), trainer's byte_fallback -> 0."""
    out = bytearray(model)
    at = 0
    while at < len(model):
        key, at = varint(model, at)
        size, at = varint(model, at)
        message = model[at : at + size]
        if key >> 3 == 1 and message.endswith(b"\x18\x06"):
            out[at + size - 1] = 5
        if key >> 3 == 2:
            option = message.index(bytes([35 << 3 & 0x7F | 0x80, 35 >> 4, 1]))
            out[at + option + 2] = 0
        at += size
    return bytes(out)


def stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    ids = [token for text in texts for token in (tokenizer.bos, *tokenizer.encode(text))]
    return np.array(ids, np.uint16)


def check(tokenizer: Tokenizer, texts: list[str]) -> int:
    tokens = stream(tokenizer, texts)
    table = PieceBytes.from_tokenizer(tokenizer)
    total = audit(table, tokenizer, tokens)
    assert total == table.charged(tokens, 0, len(tokens) - 1)
    return total


def test_the_table_is_the_contests(tokenizer: Tokenizer) -> None:
    table = PieceBytes.from_tokenizer(tokenizer, vocab=330)
    for token in range(tokenizer.vocab):
        piece = tokenizer.piece(token)
        if token < 4:
            expected = (0, False, True)
        elif token < 260:
            expected = (1, False, False)
        else:
            bare = piece[1:] if piece.startswith("\u2581") else piece
            expected = (len(bare.encode()), piece.startswith("\u2581"), False)
        row = (table.base[token], table.leading_space[token], table.boundary[token])
        assert row == expected, piece
    assert table.boundary[tokenizer.vocab :].all()
    assert not table.base[tokenizer.vocab :].any()
    assert len(table.base) == len(table.leading_space) == len(table.boundary) == 330
    with pytest.raises(ValueError, match="read-only"):
        table.base[0] = 1


def test_a_space_is_charged_unless_a_boundary_stands_before_it(tokenizer: Tokenizer) -> None:
    table = PieceBytes.from_tokenizer(tokenizer)
    the = tokenizer.processor.piece_to_id("\u2581the")
    assert the != tokenizer.unknown
    previous = np.array([tokenizer.bos, the, 0, 100], np.uint16)
    assert table.of(previous, np.full(4, the, np.uint16)).tolist() == [3, 4, 3, 4]
    assert table.charged(np.array([tokenizer.bos, the, the, 0, the]), 0, 4) == 3 + 4 + 0 + 3
    assert table.of(previous[:1], np.array([tokenizer.bos])).tolist() == [0]
    with pytest.raises(AccountingError, match=f"token {tokenizer.vocab} is not below"):
        table.of(previous[:1], np.array([tokenizer.vocab]))


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_any_text_is_audited_to_its_normalised_bytes(
    tokenizer: Tokenizer, texts: list[str]
) -> None:
    assert check(tokenizer, texts) == sum(tokenizer.normalized_bytes(texts))


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from("the cat\u00e9\u65e5\u2581 \n")), min_size=1))
def test_the_parts_that_the_audit_works_in_do_not_matter(
    tokenizer: Tokenizer, texts: list[str]
) -> None:
    whole = check(tokenizer, texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounting, "AUDIT_TOKENS", 3)
        assert check(tokenizer, texts) == whole


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 0), (" the cat", 7), ("the  cat\n", 7), ("日本", 6), ("\0", 1), ("\N{DOG FACE} ", 4)],
)
def test_documents_of_every_sort_are_exact(tokenizer: Tokenizer, text: str, size: int) -> None:
    assert check(tokenizer, [text]) == size
    assert check(tokenizer, ["", text, "", text]) == 2 * size


def test_double_spaces_that_are_kept_are_charged(keeping: Tokenizer) -> None:
    assert check(keeping, ["the  cat\n\n mat  "]) == 16


def test_a_kept_space_at_the_start_of_a_document_stops_the_audit(keeping: Tokenizer) -> None:
    # The contest's rule charges no space behind BOS, but this text has one.
    with pytest.raises(
        AccountingError, match=r"in 1 runs: tokens \d+ '\u2581the': 3 bytes by the "
    ):
        check(keeping, ["the cat", " the cat"])


def test_spaces_spelled_as_bytes_stop_the_audit(spaceless: Tokenizer) -> None:
    assert check(spaceless, ["catdog"]) == 6
    expected = "tokens 230 '<0xE2>' 154 '<0x96>' 133 '<0x81>': 3 bytes by the table, 1 by decoding"
    with pytest.raises(AccountingError, match=expected):
        check(spaceless, ["catdog", "cat dog"])


def test_the_culprit_in_the_middle_of_a_long_document_is_found(keeping: Tokenizer) -> None:
    table = PieceBytes.from_tokenizer(keeping)
    base = table.base.copy()
    wrong = keeping.encode("at")[-1]
    base[wrong] += 2
    text = "the cat " * 500
    first = keeping.decode([wrong])
    with pytest.raises(AccountingError) as error:
        audit(
            PieceBytes(base, table.leading_space, table.boundary),
            keeping,
            stream(keeping, ["og", text + "at"]),
        )
    assert f"tokens {wrong} " in str(error.value)
    assert f"{len(first) + 2} bytes by the table, {len(first)} by decoding" in str(error.value)


def test_unknown_tokens_count_nothing_and_are_counted(without_bytes: Tokenizer) -> None:
    texts = ["the 日 cat", "日", "日日 the"]
    # "the " and "cat"; nothing; "the" behind a boundary.
    tokens = stream(without_bytes, texts)
    assert unknown_tokens(without_bytes, tokens) == 3
    assert check(without_bytes, texts) == 4 + 3 + 0 + 3
    assert sum(without_bytes.normalized_bytes(texts)) == 11 + 3 + 10


def test_a_stream_cut_inside_a_character_counts_the_bytes_it_has(tokenizer: Tokenizer) -> None:
    table = PieceBytes.from_tokenizer(tokenizer)
    whole = stream(tokenizer, ["the", "cat \N{DOG FACE}\u65e5"])
    for cut in range(1, len(whole) + 1):
        tokens = whole[:cut]
        assert audit(table, tokenizer, tokens) == table.charged(tokens, 0, len(tokens) - 1)


def test_broken_characters_elsewhere_stop_the_audit(tokenizer: Tokenizer) -> None:
    table = PieceBytes.from_tokenizer(tokenizer)
    for ids in ([1, 4 + 0xF0, 1, 300], [1, 4 + 0x80], [1, 4 + 0xFF, 300], [1, 4 + 0xC3, 4 + 0xC3]):
        with pytest.raises(AccountingError, match="by decoding"):
            audit(table, tokenizer, np.array(ids, np.uint16))


def test_tokens_that_are_not_documents_of_this_tokenizer_are_refused(tokenizer: Tokenizer) -> None:
    table = PieceBytes.from_tokenizer(tokenizer, vocab=1024)
    with pytest.raises(AccountingError, match=r"begin with 300, not with BOS \(1\)"):
        audit(table, tokenizer, np.array([300, 1], np.uint16))
    with pytest.raises(AccountingError, match="token 1000 at 2 is not below the 320 pieces"):
        audit(table, tokenizer, np.array([1, 300, 1000], np.uint16))
    assert audit(table, tokenizer, np.array([], np.uint16)) == 0


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 319)))
def test_any_tokens_are_exact_or_refused(tokenizer: Tokenizer, ids: list[int]) -> None:
    table = PieceBytes.from_tokenizer(tokenizer)
    tokens = np.array([tokenizer.bos, *ids], np.uint16)
    message = "bytes by the table"
    try:
        assert audit(table, tokenizer, tokens) == table.charged(tokens, 0, len(tokens) - 1)
    except AccountingError as error:
        message = str(error)
    assert "bytes by the table" in message


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the shared corpus is not here")
@pytest.mark.parametrize(("vocab", "total"), [(1024, 8029904), (8192, 8045701)])
def test_the_shared_corpus_has_the_bytes_that_were_counted(vocab: int, total: int) -> None:
    from gptpack.data.documents import iterate_documents

    tokenizer = Tokenizer.load(SHARED / f"tokenizers/fineweb_{vocab}_bpe.model")
    tokens = stream(tokenizer, list(iterate_documents(SHARED / "corpus/val.txt.xz")))
    assert audit(PieceBytes.from_tokenizer(tokenizer), tokenizer, tokens) == total
