"""The small parts of the model: linear layers, tables, rotary positions, the smear gate.

Shape legend: B = sequences, T = positions, H = heads, D = width of a head, W = model width.

Weights stay float32; every part computes in the dtype of the activations that it is given.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptpack import ops
from gptpack.ops import Tables


class Linear(nn.Module):
    """A linear layer, ``x W^T``, without bias; `weight` is ``[outputs, inputs]``."""

    def __init__(self, inputs: int, outputs: int, *, zero: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.zero = zero

    def reset(self, generator: torch.Generator, *, orthogonal: bool = False) -> None:
        """Draw the weight uniformly in ``+-1/sqrt(inputs)``, or orthogonal; one of zeros stays."""
        if self.zero:
            return
        if orthogonal:
            nn.init.orthogonal_(self.weight, generator=generator)
            return
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def scaled(linear: Linear, x: Tensor, scale: Tensor, *, kernels: bool) -> Tensor:
    """``scale * linear(x)``, with a scale per output channel.

    With kernels the scale goes into the weight: neither direction needs another pass over
    activations, and the gradient of the scale is a sum over the weight.
    """
    if kernels:
        return F.linear(x, ops.scaled_rows(linear.weight, scale, x.dtype))
    return scale.to(x.dtype) * linear(x)


class Embedding(nn.Module):
    """A table ``[rows, width]`` looked up by integer ids."""

    def __init__(self, rows: int, width: int, *, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, width))
        self.std = std

    def reset(self, generator: torch.Generator) -> None:
        if self.std:
            nn.init.normal_(self.weight, std=self.std, generator=generator)

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(ids, self.weight).to(dtype)


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
more than the second are left alone."""


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


class BigramHash(nn.Module):
    """An embedding of the hashed pair (previous token, token), projected to the model's width.

    With m = rows - 1, position 0 has row m and position t has row
    ``((36313 * token[t]) XOR (27191 * token[t - 1])) mod m``. parameter-golf, `BigramHash`.
    With `bos`, a document's first token has row m as well, so that it depends on no other document.
    """

    def __init__(self, rows: int, width: int, outputs: int, *, bos: int | None = None) -> None:
        super().__init__()
        self.rows, self.bos = rows, bos
        self.embed = Embedding(rows, width, std=0.0)
        self.proj = Linear(width, outputs)
        self.scale = nn.Parameter(torch.tensor(0.05))

    def hashes(self, tokens: Tensor) -> Tensor:
        """Rows ``[B, T]`` (int64) of the tokens ``[B, T]``."""
        modulus = self.rows - 1
        pairs = torch.bitwise_xor(36313 * tokens[:, 1:], 27191 * tokens[:, :-1]) % modulus
        rows = F.pad(pairs, (1, 0), value=modulus)
        return rows if self.bos is None else rows.masked_fill(tokens == self.bos, modulus)

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        return self.proj(self.embed(self.hashes(tokens), dtype)) * self.scale.to(dtype)


class SmearGate(nn.Module):
    """``(1 - g) x[t] + g x[t - 1]`` with a learned gate g per channel.

    The predecessor of a sequence's first position is zero, and so is that of a document's first
    token unless `across_documents`: otherwise the last token of one document leaks into the next.
    """

    def __init__(self, width: int, *, bos: int, across_documents: bool) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(width))
        self.bos, self.across_documents = bos, across_documents

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate).to(x.dtype)
        previous = F.pad(x[:, :-1], (0, 0, 1, 0))
        if not self.across_documents:
            previous = previous * (tokens != self.bos).unsqueeze(-1).to(x.dtype)
        return (1 - gate) * x + gate * previous


class ValueEmbedding(nn.Module):
    """A token embedding projected to the width of the values, shared by several layers."""

    def __init__(self, vocab: int, width: int, outputs: int) -> None:
        super().__init__()
        self.embed = Embedding(vocab, width, std=0.01)
        self.proj = Linear(width, outputs)
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        return self.proj(self.embed(tokens, dtype)) * self.scale.to(dtype)
