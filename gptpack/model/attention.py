"""Causal grouped-query attention, and the one place where its backend is chosen.

Shape legend: B = sequences, T = positions, S = the last positions, those with a query,
H = query heads, G = key/value heads, D = head width.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gptpack.config import ModelConfig
from gptpack.errors import ConfigError, MissingDependencyError
from gptpack.model.layers import Linear, Tables, rms_norm, rotate

Backend = Literal["auto", "cudnn", "flash", "math"]

_SDPA = {
    "auto": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "math": [SDPBackend.MATH],
}
_SDPA_MASKED = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
"""For fewer queries than keys, which need a mask. Flash takes one on the CPU only; of cuDNN we ask
it without gradients only."""


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
    """Causal softmax attention; q ``[B, S, H, D]``, k and v ``[B, T, G, D]``, out like q.

    The queries are those of the last S of T positions.
    """
    queries, keys = q.shape[1], k.shape[1]
    mask = None
    if queries < keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
        mask = mask.tril(keys - queries).view(1, 1, queries, keys)
    backends = _SDPA[backend] if mask is None else _SDPA_MASKED[torch.is_grad_enabled() :]
    with sdpa_kernel(backends, set_priority=len(backends) > 1):
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
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
        self.c_q = Linear(config.width, config.width)
        self.c_k = Linear(config.width, config.kv_width)
        self.c_v = Linear(config.width, config.kv_width)
        self.proj = Linear(config.width, config.width, zero=True)
        self.q_gain = nn.Parameter(torch.full((config.heads,), config.qk_gain))

    def forward(
        self,
        x: Tensor,
        tables: Tables,
        value_embedding: Tensor | None = None,
        *,
        last: int | None = None,
    ) -> Tensor:
        """x ``[B, T, W]``; `value_embedding` ``[B, T, G * D]`` is added to the values.

        With `last`, only the last so many positions ask: the output is ``[B, last, W]``.
        """
        batch, length, _ = x.shape
        v = self.c_v(x)
        if value_embedding is not None:
            v = v + value_embedding
        k = self.c_k(x).view(batch, length, self.kv_heads, self.head_width)
        k = rotate(rms_norm(k), tables)
        v = own = v.view(batch, length, self.kv_heads, self.head_width)
        if last is not None:
            x, own = x[:, -last:], v[:, -last:]
            tables = (tables[0][:, -last:], tables[1][:, -last:])
        q = self.c_q(x).view(batch, -1, self.heads, self.head_width)
        q = rotate(rms_norm(q), tables) * self.q_gain.to(x.dtype).view(1, 1, -1, 1)
        y = attend(q, k, v, self.backend)
        if self.xsa:
            y = remove_own_value(y, own)
        return self.proj(y.flatten(2))
