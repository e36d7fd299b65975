"""A loaded model and a prompt -> the text that follows, piece by piece as it is drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gptpack.errors import ConfigError, TokenizerError
from gptpack.values import SHARE, check_fields

if TYPE_CHECKING:
    from torch import Tensor

    from gptpack.jobs.load import Loaded

UNFINISHED = "\ufffd"
"""Character that stands for the beginning of one whose other bytes have not come yet."""
MOST_HELD = 3
"""Tokens that are waited for while the last character is not whole: it has four bytes at most."""


class _Words(Protocol):
    """What text becomes tokens by, and back."""

    stops: frozenset[int]

    def start(self, prompt: str) -> list[int]:
        """The tokens that the model is given."""

    def text(self, tokens: Sequence[int]) -> str:
        """The text of all tokens so far."""


class _OfPieces:
    """A SentencePiece model's tokens; BOS begins a document, and so ends the one before."""

    def __init__(self, path: Path) -> None:
        from gptpack.data.tokenizer import Tokenizer

        self.tokenizer = Tokenizer.load(path)
        self.stops = frozenset({self.tokenizer.bos})

    def start(self, prompt: str) -> list[int]:
        return [self.tokenizer.bos, *self.tokenizer.encode(prompt)]

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens[1:])


class _OfModel:
    """The tokens of the tokenizer that came with a model; a chat model is spoken to as one."""

    def __init__(self, loaded: "Loaded", *, chat: bool) -> None:
        tokenizer, config = loaded.tokenizer, loaded.runnable().config
        assert tokenizer is not None
        self.tokenizer, self.chat = tokenizer, chat
        ends = config.values.get("eos_token_id")
        self.stops = frozenset(ends if isinstance(ends, list) else [ends])

    def start(self, prompt: str) -> list[int]:
        if self.chat and (found := self.tokenizer.chat_prompt(prompt)) is not None:
            return found
        begin = self.tokenizer.begins_with
        (ids,) = self.tokenizer.encode([prompt])
        return [*([] if begin is None else [begin]), *ids.tolist()]

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(np.array(tokens))


def generate(
    loaded: "Loaded",
    prompt: str,
    *,
    max_tokens: int = 100,
    temperature: float = 0.8,
    top_p: float = 1.0,
    seed: int = 0,
    chat: bool = True,
    tokenizer: str | Path | None = None,
) -> Iterator[str]:
    """Text that follows `prompt`, in pieces, until the model ends it or `max_tokens` are drawn.

    Args:
        temperature: what logits are divided by before a token is drawn; 0 takes the likeliest.
        top_p: share of probability of the likeliest tokens, of which one is drawn.
        seed: what the draws are made from.
        chat: whether a tokenizer's chat template is put around the prompt, where it has one.
        tokenizer: a SentencePiece model, for models that do not bring their tokenizer.

    Raises:
        ConfigError: a setting makes no sense, or the file does not say how to run its model.
        TokenizerError: there is no tokenizer, or it is not the model's; or no token to begin with.
    """
    import torch

    settings = _Settings(max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    words = _words(loaded, tokenizer, chat=chat)
    model = loaded.runnable()
    tokens = words.start(prompt)
    if not tokens:
        raise TokenizerError("an empty prompt gives this model nothing to begin with; write a word")
    generator = torch.Generator(device=model.device).manual_seed(seed)
    read = model.reader()
    given = torch.tensor([tokens], dtype=torch.int64, device=model.device)
    said, held = words.text(tokens), 0
    for _ in range(settings.max_tokens):
        with torch.inference_mode():
            token = _drawn(read(given)[0], settings, generator)
        if token in words.stops:
            break
        tokens.append(token)
        given = torch.tensor([[token]], dtype=torch.int64, device=model.device)
        text, held = words.text(tokens), held + 1
        # bytes that are part of no character are given out as such, once that is clear
        if not text.endswith(UNFINISHED) or held > MOST_HELD:
            yield text[len(said) :]
            said, held = text, 0
    if rest := words.text(tokens)[len(said) :]:
        yield rest


def sample(
    path: str | Path,
    prompt: str,
    *,
    model: str | None = None,
    device: str = "auto",
    **settings: Any,
) -> Iterator[str]:
    """`generate` of the model at `path`, on ``auto``, ``cpu`` or ``cuda``.

    Args:
        model: recipe whose ``[model]`` a bare state dict has.

    Raises:
        GptpackError: see `gptpack.jobs.load.load` and `generate`.
    """
    from gptpack.jobs.load import load
    from gptpack.ranks import ranks

    with ranks(device) as here:
        loaded = load(path, model=model, device=here.device)
        loaded.runnable().use_attention("auto")
        yield from generate(loaded, prompt, **settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """How tokens are drawn."""

    max_tokens: int
    temperature: float
    top_p: float

    def __post_init__(self) -> None:
        check_fields(self, ("be a whole number above 0", lambda v: v > 0), "max_tokens")
        check_fields(self, ("be a finite number of at least 0", _is_heat), "temperature")
        check_fields(self, SHARE, "top_p")


def _is_heat(value: Any) -> bool:
    return bool(0 <= value < float("inf"))


def _words(loaded: "Loaded", tokenizer: str | Path | None, *, chat: bool) -> _Words:
    if loaded.tokenizer is not None:
        if tokenizer is not None:
            raise ConfigError(f"{loaded.path} brings its tokenizer; leave --tokenizer out")
        return _OfModel(loaded, chat=chat)
    if tokenizer is None:
        raise TokenizerError(f"{loaded.path} brings no tokenizer; name its file with --tokenizer")
    found = _OfPieces(Path(tokenizer))
    known = loaded.tokenizer_identity
    if known is not None and found.tokenizer.sha256 != known.sha256:
        raise TokenizerError(
            f"{tokenizer}: sha256 {found.tokenizer.sha256}, but the model was trained with "
            f"{known.sha256}; give that tokenizer"
        )
    return found


def _drawn(logits_V: "Tensor", settings: _Settings, generator: Any) -> int:
    """One token by its logits ``[V]``."""
    import torch

    if settings.temperature == 0:
        return int(logits_V.argmax())
    likely_V, order_V = (logits_V / settings.temperature).softmax(-1).sort(descending=True)
    # the tokens before which less than the share is used up; the first is always among them
    before_V = likely_V.cumsum(-1) - likely_V
    likely_V = torch.where(before_V < max(settings.top_p, 1e-9), likely_V, 0.0)
    return int(order_V[torch.multinomial(likely_V, 1, generator=generator)])
