"""A loaded model and a prompt -> the text that follows, piece by piece as it is drawn."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptpack.errors import TokenizerError
from gptpack.jobs.words import Telling, words_of
from gptpack.values import SHARE, check_fields

if TYPE_CHECKING:
    from torch import Tensor

    from gptpack.jobs.load import Loaded


LEAST_HEAT = 1e-5
"""Temperatures below this are 0: logits divided by them may be beyond float32."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """How many tokens a text has so far, and how long the model took for them."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    """Wall-clock seconds from the prompt to the first token after it."""
    tokens: int = 0
    """Tokens drawn after the prompt, without one that ends the text."""
    seconds: float = 0.0
    """Wall-clock seconds of those after the first, which came with the prompt."""

    def __str__(self) -> str:
        prompt = _pace(self.prompt_tokens, self.prompt_seconds)
        return f"{self.prompt_tokens:,} prompt tokens{prompt}; {self.tokens:,} tokens" + _pace(
            self.tokens - 1, self.seconds
        )


def _pace(tokens: int, seconds: float) -> str:
    return f", {tokens / seconds:,.1f} a second" if tokens > 0 and seconds > 0 else ""


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
    tally: Tally | None = None,
) -> Iterator[str]:
    """Text that follows `prompt`, in pieces, until the model ends it or `max_tokens` are drawn.

    Args:
        temperature: what logits are divided by before a token is drawn; 0 takes the likeliest.
        top_p: share of probability of the likeliest tokens, of which one is drawn.
        seed: what the draws are made from.
        chat: whether a tokenizer's chat template is put around the prompt, where it has one.
        tokenizer: a SentencePiece model or ranks, for models that do not bring their tokenizer.
        tally: what counts tokens and seconds, as they are spent.

    Raises:
        ConfigError: a setting makes no sense, or the file does not say how to run its model.
        TokenizerError: there is no tokenizer, or it is not the model's; or no token to begin with.
    """
    import torch

    settings = _Settings(max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    words = words_of(loaded, None if tokenizer is None else Path(tokenizer), chat=chat)
    tally = Tally() if tally is None else tally
    model = loaded.runnable()
    tokens = words.start(prompt)
    if not tokens:
        raise TokenizerError("an empty prompt gives this model nothing to begin with; write a word")
    generator = torch.Generator(device=model.device).manual_seed(seed)
    read, telling = model.reader(), Telling(words, tokens)
    tally.prompt_tokens = len(tokens)
    for step in range(settings.max_tokens):
        began = time.perf_counter()
        given = torch.tensor([tokens], dtype=torch.int64, device=model.device)
        with torch.inference_mode():
            token = _drawn(read(given)[0], settings, generator)
        spent = time.perf_counter() - began
        if step == 0:
            tally.prompt_seconds = spent
        if token in words.stops:
            break
        tally.tokens += 1
        tally.seconds += spent if step else 0.0
        tokens = [token]
        if piece := telling.add(token):
            yield piece
    if rest := telling.rest():
        yield rest


def sample(
    path: str | Path,
    prompt: str,
    *,
    model: str | None = None,
    device: str = "auto",
    limit_bytes: int | None = None,
    **settings: Any,
) -> Iterator[str]:
    """`generate` of the model at `path`, on ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Args:
        model: recipe whose ``[model]`` a bare state dict has.
        limit_bytes: memory that decoding may take; see `gptpack.jobs.load.load`.

    Raises:
        GptpackError: see `gptpack.jobs.load.load` and `generate`.
    """
    from gptpack.jobs.load import load

    loaded = load(path, model=model, device=device, limit_bytes=limit_bytes)
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


def _drawn(logits_V: "Tensor", settings: _Settings, generator: Any) -> int:
    """One token by its logits ``[V]``."""
    import torch

    if settings.temperature < LEAST_HEAT:
        return int(logits_V.argmax())
    likely_V, order_V = (logits_V / settings.temperature).softmax(-1).sort(descending=True)
    # the tokens before which less than the share is used up; the first is always among them
    before_V = likely_V.cumsum(-1) - likely_V
    likely_V = torch.where(before_V < max(settings.top_p, 1e-9), likely_V, 0.0)
    return int(order_V[torch.multinomial(likely_V, 1, generator=generator)])
