"""The small parts of the model: linear layers, tables, the smear gate.

Shape legend: B = sequences, T = positions, H = heads, D = width of a head, W = model width.

Weights stay float32; every part computes in the dtype of the activations that it is given.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptpack import ops


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
