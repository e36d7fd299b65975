"""Causal grouped-query attention, and the one place where its backend is chosen.

Shape legend: B = sequences, T = positions, H = query heads, G = key/value heads, D = head width.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gptpack import ops
from gptpack.config import ModelConfig
from gptpack.errors import ConfigError, MissingDependencyError
from gptpack.model.layers import Linear, scaled
from gptpack.ops import Tables

Backend = Literal["auto", "cudnn", "flash", "math"]

_SDPA = {
    "auto": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "math": [SDPBackend.MATH],
}


def choose_backend(name: str, device: torch.device) -> Backend:
    """The backend that `name` stands for on `device`; ``auto`` takes the fastest measured one.

    On CUDA that is cuDNN (docs/log.md), on CPU torch's flash implementation.

    Raises:
        ConfigError: no such backend.
        MissingDependencyError: a backend that the device does not have.
    """
    if name not in get_args(Backend):
        raise ConfigError(f"attention backend '{name}': choose {', '.join(get_args(Backend))}")
    if name == "cudnn" and device.type != "cuda":
        raise MissingDependencyError("attention backend 'cudnn' needs a CUDA device; use auto")
    if name == "auto":
        cuda = device.type == "cuda" and torch.backends.cudnn.enabled
        return "cudnn" if cuda else "flash"
    chosen: Backend = next(backend for backend in get_args(Backend) if backend == name)
    return chosen


def attend(q: Tensor, k: Tensor, v: Tensor, backend: Backend) -> Tensor:
    """Causal softmax attention; q ``[B, T, H, D]``, k and v ``[B, T, G, D]``, out like q."""
    with sdpa_kernel(_SDPA[backend], set_priority=backend == "auto"):
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=True,
            enable_gqa=q.shape[2] != k.shape[2],
        )
    return y.transpose(1, 2)


def remove_own_value(y: Tensor, v: Tensor) -> Tensor:
    """Subtract from each head's output its projection on the token's own value (XSA).

    With u = v / |v|, ``y - (y . u) u``; y is ``[B, T, H, D]`` and v ``[B, T, G, D]``, each value
    serving ``H / G`` heads. parameter-golf, `XSA`.
    """
    batch, length, heads, width = y.shape
    groups = v.shape[2]
    unit = F.normalize(v, dim=-1).unsqueeze(3)
    grouped = y.reshape(batch, length, groups, heads // groups, width)
    grouped = grouped - (grouped * unit).sum(dim=-1, keepdim=True) * unit
    return grouped.reshape(batch, length, heads, width)


class CausalSelfAttention(nn.Module):
    """Queries and keys are normalised, then rotated; queries get a learned gain per head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.head_width = config.head_width
        self.xsa = layer >= config.layers - config.xsa_layers
        self.backend: Backend = "auto"
        self.kernels = False
        self.c_q = Linear(config.width, config.width)
        self.c_k = Linear(config.width, config.kv_width)
        self.c_v = Linear(config.width, config.kv_width)
        self.proj = Linear(config.width, config.width, zero=True)
        self.q_gain = nn.Parameter(torch.full((config.heads,), config.qk_gain))

    def _projections(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values; with kernels as one product, and so one in backward as well."""
        if not self.kernels:
            # values first: gradients of x add up in the order in which it was used
            v = self.c_v(x)
            return self.c_q(x), self.c_k(x), v
        weights = torch.cat([linear.weight for linear in (self.c_q, self.c_k, self.c_v)])
        return (F.linear(x, weights.to(x.dtype)),)

    def forward(
        self, x: Tensor, tables: Tables, value_embedding: Tensor | None, scale: Tensor
    ) -> Tensor:
        """x ``[B, T, W]``; `value_embedding` ``[B, T, G * D]`` is added to the values.

        `scale` ``[W]`` multiplies the output's channels.
        """
        batch, length, _ = x.shape
        q, k, v = ops.split_heads(
            self._projections(x),
            self.q_gain,
            tables,
            value_embedding,
            heads=self.heads,
            kv_heads=self.kv_heads,
            kernels=self.kernels,
        )
        y = attend(q, k, v, self.backend)
        if self.xsa:
            y = remove_own_value(y, v)
        return scaled(self.proj, y.reshape(batch, length, -1), scale, kernels=self.kernels)
