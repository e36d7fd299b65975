"""Causal grouped-query attention: activations -> activations, by a backend chosen here alone.

Shape legend: B = sequences, T = positions, S = the last positions, those with a query,
H = query heads, G = key/value heads, D = head width.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask

from gptpack import ops
from gptpack.errors import ConfigError, MissingDependencyError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.layers import Linear, scaled
from gptpack.families.golf.masks import Mask, attend_masked
from gptpack.ops import Tables

Backend = Literal["auto", "fa4", "fa3", "cudnn", "flash", "math", "flex"]

Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function that puts those of earlier positions before keys and values ``[B, T, G, D]``."""

FA3_KERNEL = "kernels-community/flash-attn3"
"""Name of FlashAttention-3 on Hugging Face's hub, from where it is fetched if asked for by name."""

_SDPA = {
    "auto": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "math": [SDPBackend.MATH],
}
_SDPA_MASKED = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
"""Backends where queries are fewer than keys, which needs a mask. Flash takes one on the CPU only,
and cuDNN is used without gradients only."""


def choose_backend(name: str, device: torch.device, *, masked: bool = False) -> Backend:
    """The backend that `name` stands for on `device`; ``auto`` takes the fastest measured one.

    On a Hopper GPU that is FlashAttention-3 if it has been downloaded before, else cuDNN
    (docs/log.md); on CPU torch's flash implementation, on MPS its plain one. With documents
    `masked`, CUDA has FlexAttention alone.

    Raises:
        ConfigError: there is no backend of this name, or it does not go with `masked`.
        MissingDependencyError: this machine or installation has not got it.
    """
    if name not in get_args(Backend):
        raise ConfigError(f"attention backend '{name}': choose {', '.join(get_args(Backend))}")
    cuda = device.type == "cuda"
    if name in ("cudnn", "fa4", "fa3", "flex") and not cuda:
        raise MissingDependencyError(f"attention backend '{name}' needs a CUDA device; use auto")
    if cuda and masked:
        if name not in ("auto", "flex"):
            raise ConfigError(
                f"attention backend '{name}': model.document_mask is FlexAttention's on CUDA; "
                "use flex or auto"
            )
        return "flex"
    if name == "flex":
        raise ConfigError("attention backend 'flex' is for model.document_mask; use auto")
    if name == "fa4":
        if (found := torch.cuda.get_device_capability(device)) < (9, 0):
            raise MissingDependencyError(
                f"attention backend 'fa4': compute capability {found[0]}.{found[1]}, needed 9.0; "
                "use auto"
            )
        from gptpack.families.golf.flash4 import flash_attention_4

        flash_attention_4()
    if name == "fa3":
        flash_attention_3()
    if name == "auto":
        if cuda and _fa3_is_here(device):
            return "fa3"
        if cuda and torch.backends.cudnn.enabled:
            return "cudnn"
        return "math" if device.type == "mps" else "flash"
    chosen: Backend = next(backend for backend in get_args(Backend) if backend == name)
    return chosen


def _fa3_is_here(device: torch.device) -> bool:
    """Whether FlashAttention-3 is in the hub's cache already and runs on `device`."""
    if torch.cuda.get_device_capability(device) != (9, 0):
        return False
    # unlike Path.expanduser, no error where the user has no home
    home = Path(os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface")))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    folder = FA3_KERNEL.replace("/", "--")
    here = ((cache / f"{kind}--{folder}").is_dir() for kind in ("kernels", "models"))
    if not any(here):
        return False
    try:
        flash_attention_3()
    except MissingDependencyError:
        return False  # the cache has another version, or no build for this machine
    return True


@cache
def flash_attention_3(name: str = "flash_attn_func") -> Callable[..., Any]:
    """A function of FlashAttention-3, which is downloaded if it is not in the hub's cache.

    Raises:
        MissingDependencyError: Hugging Face's package `kernels` is missing, or has no build of it
            for this machine.
    """
    try:
        from kernels import get_kernel  # type: ignore[attr-defined]
    except ImportError as error:
        raise MissingDependencyError(
            "attention backend 'fa3': Hugging Face's package kernels is missing; "
            "pip install kernels, or use auto"
        ) from error
    try:
        module: Any = get_kernel(FA3_KERNEL, version=1)
    except Exception as error:
        # the hub, the network and the loader each have errors of their own
        raise MissingDependencyError(
            f"attention backend 'fa3': {FA3_KERNEL} cannot be had: {error}; use auto"
        ) from error
    found: Callable[..., Any] = getattr(module, name)
    return found


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    backend: Backend,
    mask: Mask | None = None,
    fa3: Callable[..., Any] | None = None,
) -> Tensor:
    """Causal softmax attention; q ``[B, S, H, D]``, k and v ``[B, T, G, D]``, out like q.

    The queries are those of the last S of T positions. A `mask` (masks.py) takes the place of
    causality. `fa3` is the function of FlashAttention-3 where that is the backend, found beforehand
    because torch.compile cannot follow how.
    """
    if backend == "fa4" and mask is None:
        y, _ = torch.ops.gptpack.fa4(q, k, v)
        return y
    if fa3 is not None and mask is None:
        # causal: the last query sees the last key, however many of each there are
        y = fa3(q, k, v, causal=True)
        return y[0] if isinstance(y, tuple) else y
    q_BHTD, k_BGTD, v_BGTD = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[2] != k.shape[2]
    if isinstance(mask, BlockMask):
        return attend_masked(q_BHTD, k_BGTD, v_BGTD, mask).transpose(1, 2)
    queries, keys = q.shape[1], k.shape[1]
    if mask is None and 1 < queries < keys:
        sees = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        mask = sees[None, None]
    if mask is not None or queries < keys:
        able = _SDPA["math"] if backend == "math" else _SDPA_MASKED[torch.is_grad_enabled() :]
        if queries == 1:
            # cuDNN makes a plan for each number of keys, which grows with each token of a text
            able = [each for each in able if each is not SDPBackend.CUDNN_ATTENTION]
        with sdpa_kernel(able, set_priority=True):
            y = F.scaled_dot_product_attention(
                q_BHTD, k_BGTD, v_BGTD, attn_mask=mask, enable_gqa=grouped
            )
        return y.transpose(1, 2)
    with sdpa_kernel(_SDPA[backend], set_priority=backend == "auto"):
        y = F.scaled_dot_product_attention(
            q_BHTD, k_BGTD, v_BGTD, is_causal=True, enable_gqa=grouped
        )
    return y.transpose(1, 2)


class CausalSelfAttention(nn.Module):
    """Attention with normalised, rotated queries and keys, and a learned gain on queries per head.

    With gate inputs, head h is multiplied by ``2 sigmoid(W[h] x[:n])``, which is 1 at the start
    (parameter-golf #1667; #1787 has half of that).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.head_width = config.head_width
        self.xsa = layer >= config.layers - config.xsa_layers
        self.backend: Backend = "auto"
        self.fa3: Callable[..., Any] | None = None
        self.kernels = False
        self.halvings = 0
        """Times that the positions are halved into blocks beyond which nothing is seen."""
        self.c_q = Linear(config.width, config.width)
        self.c_k = Linear(config.width, config.kv_width)
        self.c_v = Linear(config.width, config.kv_width)
        self.proj = Linear(config.width, config.width, zero=True)
        self.q_gain = nn.Parameter(torch.full((config.heads,), config.qk_gain))
        gate = torch.zeros(config.heads, config.attention_gate_inputs)
        self.gate = nn.Parameter(gate) if config.attention_gate_inputs else None

    def _projections(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values; with kernels in one product, and so one in backward too."""
        if not self.kernels:
            # values first: gradients of x add up in the order in which it was used
            v = self.c_v(x)
            return self.c_q(x), self.c_k(x), v
        weights = torch.cat([linear.weight for linear in (self.c_q, self.c_k, self.c_v)])
        return (F.linear(x, weights.to(x.dtype)),)

    def forward(
        self,
        x: Tensor,
        tables: Tables,
        value_embedding: Tensor | None,
        scale: Tensor,
        mask: Mask | None = None,
        *,
        last: int | None = None,
        extend: Extend | None = None,
    ) -> Tensor:
        """x ``[B, T, W]``; `value_embedding` ``[B, T, G * D]`` is added to the values.

        `scale` ``[W]`` multiplies the output's channels. With `last`, only the last so many
        positions have queries: the output is ``[B, last, W]``, and a `mask` is for those positions
        alone, ``[B, 1, last, T]``. With `extend`, x goes on from earlier positions, whose keys and
        values that gives; the columns of a `mask` are for those too.
        """
        if last is None:
            q, k, v = ops.split_heads(
                self._projections(x),
                self.q_gain,
                tables,
                value_embedding,
                heads=self.heads,
                kv_heads=self.kv_heads,
                kernels=self.kernels,
            )
            own = v
        else:
            q, k, v = self._heads_of_the_last(x, tables, value_embedding, last)
            own = v[:, -last:]
        if extend is not None:
            k, v = extend(k, v)
        blocks = 2**self.halvings
        if blocks > 1:
            q, k, v = (y.reshape(len(y) * blocks, -1, *y.shape[2:]) for y in (q, k, v))
        y = attend(q, k, v, self.backend, mask, self.fa3)
        if blocks > 1:
            y = y.reshape(len(x), -1, *y.shape[2:])
        if self.xsa:
            y = ops.remove_own_value(y, own, kernels=self.kernels)
        if self.gate is not None:
            inputs = x[:, -y.shape[1] :, : self.gate.shape[1]]
            y = y * (2 * torch.sigmoid(F.linear(inputs, self.gate.to(x.dtype)))).unsqueeze(-1)
        return scaled(self.proj, y.flatten(2), scale, kernels=self.kernels)

    def _heads_of_the_last(
        self, x: Tensor, tables: Tables, value_embedding: Tensor | None, last: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the last positions ``[B, last, H, D]``, keys and values of all."""
        k, v = self.c_k(x), self.c_v(x)
        if value_embedding is not None:
            v = v + value_embedding
        q, k, v = (y.unflatten(2, (-1, self.head_width)) for y in (self.c_q(x[:, -last:]), k, v))
        late = (tables[0][:, -last:], tables[1][:, -last:])
        q = ops.rotate(ops.rms_norm(q), late) * self.q_gain.to(x.dtype).view(1, 1, -1, 1)
        return q, ops.rotate(ops.rms_norm(k), tables), v
