"""Text given out token by token, against the text of all tokens, made anew for each."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
import sentencepiece
from hugging import SAID, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import folder

from gptpack.data.byte_pairs import load_tokenizer
from gptpack.data.tokenizer import Tokenizer
from gptpack.families.transformers.texts import TextTokenizer
from gptpack.jobs.words import MOST_HELD, UNFINISHED, OfModel, OfPieces, Telling, Words

PIECES = {
    "with a space in front": {},
    "as written": {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
    "spaces kept": {"remove_extra_whitespaces": False},
    "spaces behind": {"treat_whitespace_as_suffix": True},
    "unigram": {"model_type": "unigram", "vocab_size": 310},
}
"""Settings of SentencePiece's trainer; all fall back to bytes."""


@functools.cache
def words(name: str) -> tuple[Words, int]:
    """Words of the kind `name`, and how many there are."""
    if name == "ranks":
        merges = Path(folder("words of ranks")) / "vocab.bpe"
        merges.write_text(
            "#version: 0.2\nh e\n\u0120 t\n\u0120t he\n\u00c3 \u00a9\n", encoding="utf-8"
        )
        pairs = load_tokenizer(merges)
        return OfPieces(pairs), pairs.vocab
    if name in PIECES:
        model = io.BytesIO()
        asked = {"model_type": "bpe", "vocab_size": 320, **PIECES[name]}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SAID.split("\n") * 3), model_writer=model, byte_fallback=True,
            hard_vocab_limit=False, minloglevel=4, **asked,
        )  # fmt: skip
        path = Path(folder(f"words {name}")) / "tokenizer.model"
        path.write_bytes(model.getvalue())
        pieces = Tokenizer.load(path)
        return OfPieces(pieces), pieces.vocab
    found = TextTokenizer(tokenizer() if name == "byte level" else _of(name))
    return OfModel(found, 0, chat=False), found.vocab


def _of(name: str) -> object:
    """A tokenizer of pieces by the library tokenizers, with the decoder of this name."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models
    from transformers import PreTrainedTokenizerFast

    text = ["\u2581the", "\u2581", "\u2581\u2581", "a", "##b", "\u2581.", "n't", "\n", "\u00e9"]
    entries = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *text, "x</w>", "y"]
    made = Library(
        models.BPE(
            vocab={entry: place for place, entry in enumerate(entries)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    made.decoder = {
        "llama": decoders.Sequence(
            [
                decoders.Replace("\u2581", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        ),
        "metaspace": decoders.Metaspace(),
        "word pieces": decoders.WordPiece(),
        "suffix": decoders.BPEDecoder(),
    }[name]
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


KINDS = [*PIECES, "ranks", "byte level", "llama", "metaspace", "word pieces", "suffix"]


def anew(words: Words, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text, made of all tokens each time; last what was held back."""
    said, held, given_out = words.text(prompt), 0, []
    for end in range(1, len(tokens) + 1):
        text, held = words.text([*prompt, *tokens[:end]]), held + 1
        whole = not text.endswith(UNFINISHED) or held > MOST_HELD
        given_out.append(text[len(said) :] if whole else "")
        if whole:
            said, held = text, 0
    return [*given_out, words.text([*prompt, *tokens])[len(said) :]]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200)
@given(data=st.data())
def test_each_token_gives_out_what_the_text_of_all_grows_by(kind, data):
    found, vocab = words(kind)
    # bytes of characters, in order and not, among all other tokens
    character = [
        next(t for t in range(vocab) if found.name(t) in spelled)
        for spelled in (("<0xE2>", "\u00e2"), ("<0x82>", "\u0124"), ("<0xAC>", "\u00ac"))
    ]
    token = st.integers(0, vocab - 1).map(lambda t: [t])
    part = st.one_of(token, st.sampled_from([character, character[:2], character[2:]]))
    drawn = data.draw(st.lists(part, max_size=12))
    prompt = data.draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=4))
    tokens = [token for part in drawn for token in part]
    telling = Telling(found, prompt)
    assert [*map(telling.add, tokens), telling.rest()] == anew(found, prompt, tokens)


@pytest.mark.parametrize("kind", [*PIECES, "byte level"])
def test_a_text_is_given_out_as_it_is(kind):
    found, _ = words(kind)
    # of characters beyond the vocabulary, which come byte by byte
    text = "The river \u2013 caf\u00e9, \u6c34\u8f66 \U0001f30a\U0001f3fd; and 12 sacks  of rye."
    tokens = found.start(text)
    whole = found.text(tokens)
    assert "\U0001f30a\U0001f3fd" in whole
    telling = Telling(found, tokens[:1])
    told = [*map(telling.add, tokens[1:]), telling.rest()]
    assert "".join((found.text(tokens[:1]), *told)) == whole
    assert UNFINISHED not in "".join(told)


class Counted:
    """Words that count the tokens whose text is made."""

    def __init__(self, words: Words) -> None:
        self.words, self.stops, self.made = words, words.stops, 0

    def start(self, prompt: str) -> list[int]:
        return self.words.start(prompt)

    def name(self, token: int) -> str:
        return self.words.name(token)

    def text(self, tokens: Sequence[int]) -> str:
        self.made += len(tokens)
        return self.words.text(tokens)


@pytest.mark.parametrize("kind", KINDS[:6])
def test_the_work_for_a_token_does_not_grow_with_the_text(kind):
    found, _ = words(kind)
    tokens = found.start(SAID * 4)[1:]
    assert len(tokens) > 300
    counted = Counted(found)
    telling = Telling(counted, tokens[:1])
    for token in tokens[1:]:
        telling.add(token)
    assert counted.made < 5 * len(tokens)
