"""One layer, which adds attention and MLP to a residual stream, or to two.

Shape legend: B = sequences, T = positions, W = model width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gptpack import ops
from gptpack.families.golf.attention import CausalSelfAttention, Extend
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.dropout import thinned
from gptpack.families.golf.layers import Linear, scaled
from gptpack.families.golf.masks import Mask
from gptpack.ops import Tables

RESIDUAL_LAMBDA = 1.1
"""Factor by which a layer of two lanes multiplies each at first (parameter-golf #1855)."""


class Lanes(NamedTuple):
    """The residual stream ``[B, T, W]``; two of them once layers run in parallel lanes."""

    first: Tensor
    second: Tensor | None = None

    def mean(self) -> Tensor:
        """One stream: the mean of two."""
        return self.first if self.second is None else (self.first + self.second) / 2

    def map(self, other: "Lanes", function: Callable[[Tensor, Tensor], Tensor]) -> "Lanes":
        """`function` of each lane and its counterpart in `other`, which may have one for both."""
        first = function(self.first, other.first)
        if self.second is None:
            return Lanes(first)
        counterpart = other.first if other.second is None else other.second
        return Lanes(first, function(self.second, counterpart))


class MLP(nn.Module):
    """``scale * proj(act(fc(x)))`` with a squared rectifier."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kernels = False
        self.slope = 0.5 if config.activation == "leaky_relu2" else 0.0
        self.fc = Linear(config.width, config.mlp_hidden)
        self.proj = Linear(config.mlp_hidden, config.width, zero=True)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """x ``[B, T, W]``; `scale` ``[W]`` multiplies the output's channels."""
        if self.kernels:
            down = ops.scaled_rows(self.proj.weight, scale, x.dtype)
            return ops.mlp(x, self.fc.weight.to(x.dtype), down, self.slope, kernels=True)
        hidden = ops.squared_rectifier(self.fc(x), self.slope)
        return scaled(self.proj, hidden, scale, kernels=False)


class Block(nn.Module):
    """One layer; `resid_mix` weighs the residual stream against the embedding.

    In turn, x becomes ``x + a attn(n(x))``, then ``x + m mlp(n(x))``. In parallel both read the
    layer's input x (GPT-J). With two lanes, attention reads the first and the MLP the second, and
    each lane i becomes ``r[i] lane + p[0, i] a attn + p[1, i] m mlp`` (parameter-golf #1529).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_scale: Tensor | float = 1.0
        if config.ln_scale:
            # a tensor, so that one compiled graph serves all layers; on the CPU, so that a
            # multiplication by it is one by a float
            self.norm_scale = torch.tensor((layer + 1) ** -0.5, device="cpu")
        self.dropout = 0.0
        """Share of what attention and MLP add that is left out."""
        self.parallel = layer >= config.layers - config.parallel_layers
        self.attn = CausalSelfAttention(config, layer)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(config.width))
        self.mlp_scale = nn.Parameter(torch.ones(config.width))
        self.resid_mix = nn.Parameter(
            torch.stack((torch.ones(config.width), torch.zeros(config.width)))
        )
        self.post_lambdas: nn.Parameter | None = None
        if self.parallel and config.parallel_lanes == 2:
            self.post_lambdas = nn.Parameter(torch.ones(2, 2))
            self.resid_lambdas = nn.Parameter(torch.full((2,), RESIDUAL_LAMBDA))

    def forward(
        self,
        lanes: Lanes,
        x0: Tensor,
        tables: Tables,
        value_embedding: Tensor | None,
        mask: Mask | None = None,
        *,
        last: int | None = None,
        seeds: Tensor | None = None,
        extend: Extend | None = None,
    ) -> Lanes:
        """The lanes after this layer, ``[B, T, W]``, or ``[B, last, W]`` of the last positions.

        Lanes and the embedding `x0` are ``[B, T, W]``. By `seeds` (int32, ``[2, 2]``) some of
        attention's output and of the MLP's is left out. `extend` is attention's.
        """
        x, h = self._mixed(lanes.first, x0)
        other, h_other = (x, h) if lanes.second is None else self._mixed(lanes.second, x0)
        attention = self.attn(
            h, tables, value_embedding, self.attn_scale, mask, last=last, extend=extend
        )
        if seeds is not None:
            attention = thinned(attention, seeds[0], self.dropout)
        if last is not None:
            x, other, h_other = x[:, -last:], other[:, -last:], h_other[:, -last:]
        if not self.parallel:
            x = x + attention
            h_other = self._normed(x)
        mlp = self.mlp(h_other, self.mlp_scale)
        if seeds is not None:
            mlp = thinned(mlp, seeds[1], self.dropout)
        if not self.parallel:
            return Lanes(x + mlp)
        if self.post_lambdas is None:
            return Lanes(x + attention + mlp)
        residual, post = self.resid_lambdas.to(x.dtype), self.post_lambdas.to(x.dtype)
        return Lanes(
            residual[0] * x + post[0, 0] * attention + post[1, 0] * mlp,
            residual[1] * other + post[0, 1] * attention + post[1, 1] * mlp,
        )

    def _mixed(self, x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        """The stream with the embedding mixed in, and its norm."""
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        return x, self._normed(x)

    def _normed(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x) * self.norm_scale
