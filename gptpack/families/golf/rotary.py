"""A configuration and a length -> rotary angles, and the tables that turn queries and keys by them.

Shape legend: T = positions, D = channels of a head that turn.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gptpack.errors import ConfigError
from gptpack.families.golf.config import ModelConfig
from gptpack.ops import Tables


def ntk_base(base: float, dims: int, *, length: int, trained: int) -> float:
    """``base * s^(dims / (dims - 2))`` with ``s = length / trained`` if that is above 1.

    With a `trained` length of 0 the base stays.
    """
    if trained and length > trained and dims > 2:
        base *= (length / trained) ** (dims / (dims - 2))
    return base


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary angles that are the same whatever the length of a sequence."""

    base: float
    factors: tuple[float, ...] = ()
    """Factor on the frequency of each pair of channels; empty leaves all frequencies."""
    temperature: float = 1.0
    """Factor on rotated queries and on rotated keys."""


YARN_TURNS = (1.0, 32.0)
"""Turns over the trained length: channels with fewer than the first are interpolated, those with
more than the second are left alone. stages.py says it again, as contest scripts go without that."""


def yarn(base: float, dims: int, *, length: int, trained: int) -> Rope:
    """YaRN for sequences of `length` in a model trained on `trained` (with `base`).

    Peng et al. 2023, https://arxiv.org/abs/2309.00071, section 3. Like theirs, the temperature
    ``0.1 ln(s) + 1`` is on the rotated channels, so it is partial where the rotation is.
    """
    scale = length / trained
    if scale <= 1:
        return Rope(base)
    low, high = YARN_TURNS
    turns = [trained * base ** (-2 * i / dims) / (2 * math.pi) for i in range(dims // 2)]
    kept = [min(max((turn - low) / (high - low), 0.0), 1.0) for turn in turns]
    factors = tuple(keep + (1 - keep) / scale for keep in kept)
    return Rope(base, factors, 0.1 * math.log(scale) + 1)


def rotary_tables(length: int, dims: int, *, rope: Rope, like: Tensor, first: int = 0) -> Tables:
    """Rotary angles of positions from `first` to `length`, in `like`'s dtype and on its device."""
    pairs = torch.arange(0, dims, 2, dtype=torch.float32, device=like.device) / dims
    frequencies = rope.base**-pairs
    if rope.factors:
        frequencies = frequencies * torch.tensor(rope.factors, device=like.device)
    return angle_tables(frequencies, length, like=like, first=first, temperature=rope.temperature)


def angle_tables(
    frequencies: Tensor, length: int, *, like: Tensor, first: int = 0, temperature: float = 1.0
) -> Tables:
    """The same for `frequencies` ``[dims / 2]``, float32, in radians a position."""
    positions = torch.arange(first, length, dtype=torch.float32, device=like.device)
    angles = torch.outer(positions, frequencies).view(1, length - first, 1, -1)
    cos, sin = angles.cos(), angles.sin()
    if temperature != 1:
        cos, sin = cos * temperature, sin * temperature
    return cos.to(like.dtype), sin.to(like.dtype)


def own_rope(config: ModelConfig, length: int) -> Rope:
    """The angles for sequences of `length` by the configuration's own rule."""
    trained = config.rope_ntk_context
    return Rope(ntk_base(config.rope_base, config.turning, length=length, trained=trained))


def rope_for(config: ModelConfig, scaling: str, length: int) -> tuple[Rope, str]:
    """Angles for sequences of up to `length`, and words for them; see `GPT.use_rope`.

    Raises:
        ConfigError: there is no scaling of this name.
    """
    if scaling == "model":
        known = config.rope_ntk_context
        words = f"model (ntk from {known:,})" if known else "model (unscaled)"
        return own_rope(config, length), words
    trained, dims = config.context, config.turning
    rope = own_rope(config, trained)
    if scaling == "ntk":
        rope = Rope(ntk_base(rope.base, dims, length=length, trained=trained))
    elif scaling == "yarn":
        rope = yarn(rope.base, dims, length=length, trained=trained)
    elif scaling != "none":
        raise ConfigError(f"rope scaling '{scaling}': choose model, none, ntk, yarn")
    return rope, f"{scaling}, trained at {trained:,}" if length > trained else "as trained"
