"""A model's tokenizer -> a prompt as tokens, and the text of tokens, given out as they come."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gptpack.data.byte_pairs import BytePairs, load_tokenizer
from gptpack.data.tokenizer import Tokenizer, check_tokenizer
from gptpack.errors import ConfigError, TokenizerError

if TYPE_CHECKING:
    from gptpack.families.transformers.texts import TextTokenizer
    from gptpack.jobs.load import Loaded

UNFINISHED = "\ufffd"
"""Character that stands for the beginning of one whose other bytes have not come yet."""
MOST_HELD = 3
"""Tokens that are waited for while the last character is not whole: it has four bytes at most."""
BYTE = "<0x"
"""Beginning of the name of a token that is one byte."""


class Words(Protocol):
    """What text becomes tokens by, and back."""

    stops: frozenset[int]

    def start(self, prompt: str) -> list[int]:
        """The tokens that the model is given."""

    def text(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` stand for."""

    def name(self, token: int) -> str:
        """The vocabulary's entry for `token`."""


class OfPieces:
    """Tokens of a tokenizer's file; BOS begins a document, and so ends the one before."""

    def __init__(self, tokenizer: Tokenizer | BytePairs) -> None:
        self.tokenizer = tokenizer
        self.stops = frozenset({tokenizer.bos})

    def start(self, prompt: str) -> list[int]:
        return [self.tokenizer.bos, *self.tokenizer.encode(prompt)]

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)

    def name(self, token: int) -> str:
        return self.tokenizer.piece(token)


class OfModel:
    """The tokens of the tokenizer that came with a model; a chat model is spoken to as one."""

    def __init__(self, tokenizer: "TextTokenizer", ends: Any, *, chat: bool) -> None:
        self.tokenizer, self.chat = tokenizer, chat
        self.stops = frozenset(ends if isinstance(ends, list) else [ends])

    def start(self, prompt: str) -> list[int]:
        if self.chat and (found := self.tokenizer.chat_prompt(prompt)) is not None:
            return found
        begin = self.tokenizer.begins_with
        (ids,) = self.tokenizer.encode([prompt])
        return [*([] if begin is None else [begin]), *ids.tolist()]

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(np.array(tokens))

    def name(self, token: int) -> str:
        found: str | None = self.tokenizer.backend.id_to_token(token)
        return found or ""


def words_of(loaded: "Loaded", path: Path | None, *, chat: bool) -> Words:
    """The words of a model: of the tokenizer that it brings, or of that in the file `path`.

    Raises:
        ConfigError: it brings its own, and `path` is given.
        TokenizerError: there is none, or it is not the model's.
    """
    config = loaded.runnable().config
    if loaded.tokenizer is not None:
        if path is not None:
            raise ConfigError(f"{loaded.path} brings its tokenizer; leave --tokenizer out")
        return OfModel(loaded.tokenizer, config.values.get("eos_token_id"), chat=chat)
    if path is None:
        raise TokenizerError(f"{loaded.path} brings no tokenizer; name its file with --tokenizer")
    found, known = load_tokenizer(path), loaded.tokenizer_identity
    check_tokenizer(path, found, sha256=None if known is None else known.sha256, vocab=config.vocab)
    return OfPieces(found)


class Telling:
    """The text of one token after another, each piece given out once its characters are whole.

    Pieces are what the text of all tokens grows by, but that is not made again for each token: it
    is split where a token is whole characters, as what follows does not depend on what was before.
    """

    def __init__(self, words: Words, tokens: Sequence[int]) -> None:
        """Go on from `tokens`, whose text is out already."""
        self._words, self._tokens = words, list(tokens)
        self._said, self._held = words.text(tokens), 0

    def add(self, token: int) -> str:
        """The text that can be given out now that `token` is the last."""
        self._tokens.append(token)
        self._held += 1
        text = self._words.text(self._tokens)
        # bytes that are part of no character are given out as such, once that is clear
        if text.endswith(UNFINISHED) and self._held <= MOST_HELD:
            return ""
        piece, self._said, self._held = text[len(self._said) :], text, 0
        alone = self._words.text([token])
        # a text may lose a space that it begins with; bytes in a row are looked at together
        split = alone and UNFINISHED not in alone and not self._words.name(token).startswith(BYTE)
        if split:
            self._tokens, self._said = [token], alone
        return piece

    def rest(self) -> str:
        """The text that was held back, now that nothing follows."""
        return self._words.text(self._tokens)[len(self._said) :]
