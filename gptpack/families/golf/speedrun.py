"""Tokens -> losses: the GPT of modded-nanogpt's records of 2025, from golf's own parts.

Shape legend: B = sequences, T = positions, W = model width, H = query heads, G = key/value heads,
D = head width, L = layers.

It differs from golf in what is learned beside the matrices. A layer weighs the stream against the
embedding, and its values against a token's row of a table, by two scalars each; a skip has one;
queries have a fixed gain. Attention stays within a document and a window, which grows by stages
during training (stages.py).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptpack import ops
from gptpack.errors import ConfigError
from gptpack.families.golf.attention import (
    CausalSelfAttention,
    Extend,
    choose_backend,
    flash_attention_3,
)
from gptpack.families.golf.blocks import MLP
from gptpack.families.golf.cache import LOOKS_BACK, Cache
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.families.golf.layers import Embedding, Linear, scaled
from gptpack.families.golf.masks import document_ids
from gptpack.families.golf.parts import allow_graphs
from gptpack.families.golf.rotary import angle_tables
from gptpack.families.golf.stages import SMEAR_INPUTS, stages
from gptpack.families.golf.windows import (
    Flash,
    Window,
    attend_within,
    block_mask,
    document_starts,
)
from gptpack.families.language_model import Table
from gptpack.ops import Tables, rms_norm

INIT_STD = 0.5
"""Standard deviation of a matrix that does not start at zero, times the root of its inputs."""
SKIP_GATE = -1.5
"""Where the logit of a gated skip's weight starts (record of 2025-09-11)."""
MOST_LOGITS = 1 << 27
"""Logits to make at once without gradients, some: half a GiB as float32."""


class SpeedrunAttention(CausalSelfAttention):
    """Attention within a window; values are ``m[0] v + m[1] e`` of the projection and the table.

    With gate inputs, head h is multiplied by ``sigmoid(U[h] x[:n])``, which is 1/2 at the start.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        del self.q_gain
        self.value_mix = nn.Parameter(torch.full((2,), 0.5))

    def within(
        self,
        x: Tensor,
        tables: Tables,
        embedded: Tensor | None,
        gain: Tensor,
        window: Window,
        extend: Extend | None,
    ) -> Tensor:
        """x ``[B, T, W]``, `embedded` ``[B, T, G D]``; `gain` ``[H]`` multiplies queries."""
        q, k, v = ops.split_heads(
            self._projections(x),
            gain,
            tables,
            None if embedded is None else self.value_mix[1].to(x.dtype) * embedded,
            heads=self.heads,
            kv_heads=self.kv_heads,
            kernels=self.kernels,
        )
        if extend is not None:
            k, v = extend(k, v)
        y = attend_within(q, k, v, window)
        if self.gate is not None:
            inputs = x[..., : self.gate.shape[1]]
            y = y * torch.sigmoid(F.linear(inputs, self.gate.to(x.dtype))).unsqueeze(-1)
        projected: Tensor = self.proj(y.flatten(2))
        return projected

    def _projections(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys, and values times ``m[0]``; with kernels in one product."""
        share = self.value_mix[0].expand(self.c_v.weight.shape[0])
        if not self.kernels:
            v = scaled(self.c_v, x, share, kernels=False)
            return self.c_q(x), self.c_k(x), v
        values = ops.scaled_rows(self.c_v.weight, share, x.dtype)
        others = (linear.weight.to(x.dtype) for linear in (self.c_q, self.c_k))
        return (F.linear(x, torch.cat([*others, values])),)


class SpeedrunBlock(nn.Module):
    """One layer: ``x <- m[0] x + m[1] x0``, then ``x + attn(n(x))``, then ``x + mlp(n(x))``."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        attends = layer not in config.attention_free_layers
        self.attn = SpeedrunAttention(config, layer) if attends else None
        self.mlp = MLP(config) if layer not in config.mlp_free_layers else None
        self.resid_mix = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x: Tensor, x0: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """x after this layer, ``[B, T, W]``; `attend` calls attention with all but its input."""
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        if self.attn is not None:
            x = x + attend(self.attn, rms_norm(x))
        if self.mlp is not None:
            x = x + self.mlp(rms_norm(x), x.new_ones(x.shape[-1]))
        return x


class Smear(nn.Module):
    """``x[t] + s sigmoid(u . x[t, :12]) x[t - 1]``; a document's first token has no predecessor."""

    def __init__(self, bos: int) -> None:
        super().__init__()
        self.bos = bos
        self.gate = nn.Parameter(torch.zeros(1, SMEAR_INPUTS))
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        previous = F.pad(x[:, :-1], (0, 0, 1, 0)) * (tokens != self.bos).unsqueeze(-1).to(x.dtype)
        gate = torch.sigmoid(F.linear(x[..., :SMEAR_INPUTS], self.gate.to(x.dtype)))
        return x + self.scale.to(x.dtype) * gate * previous


def _flash4(q: Tensor, k: Tensor, v: Tensor, *, starts: Tensor, window: Tensor) -> Tensor:
    y, _ = torch.ops.gptpack.fa4_within(q, k, v, starts, window)
    return y


def _flash3(
    function: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    starts: Tensor,
    tokens: int,
) -> Tensor:
    length = q.shape[1]
    y = function(
        *(x.flatten(0, 1) for x in (q, k, v)),
        cu_seqlens_q=starts,
        cu_seqlens_k=starts,
        max_seqlen_q=length,
        max_seqlen_k=length,
        causal=True,
        window_size=(tokens - 1, 0),
    )
    out: Tensor = y[0] if isinstance(y, tuple) else y
    return out.view(q.shape)


class Speedrun(GPT):
    """A GPT of the shape `config`, of which ``architecture`` is ``speedrun``; see `GPT`."""

    block_type = SpeedrunBlock
    spans: Tensor
    frequencies: Tensor
    gain: Tensor

    def __init__(self, config: ModelConfig, *, seed: int | None = 0) -> None:
        super().__init__(config, seed=None)
        self.backend = "auto"
        self.flash3: Callable[..., Any] | None = None
        self.stages = stages(config)
        self.stage: int | None = None
        skips = config.layers // 2
        start = SKIP_GATE if config.skip_gates else 1.0
        self.skip_weights = nn.Parameter(torch.full((skips,), start))
        self.skip_gates = None
        self.smear = Smear(config.bos) if config.smear_gate else None  # type: ignore[assignment]
        self.value_tables = nn.ModuleList(
            Embedding(config.vocab, config.kv_width, std=1.0) for _ in range(config.value_tables)
        )
        # numbers of the stage, which a graph reads anew; never on the meta device
        pairs = len(self.stages[0].frequencies)
        for name, like in (
            ("spans", torch.zeros(2, dtype=torch.int64, device="cpu")),
            ("frequencies", torch.zeros(pairs, device="cpu")),
            ("gain", torch.zeros(config.heads, device="cpu")),
        ):
            self.register_buffer(name, like, persistent=False)
        self.use_stage(-1)
        if seed is not None:
            self.reset(seed)

    def reset(self, seed: int) -> None:
        super().reset(seed)
        with torch.no_grad():
            for block in self.blocks:
                for module in block.modules():
                    if isinstance(module, Linear):
                        module.weight.mul_(INIT_STD * 3**0.5)

    def use_stage(self, index: int) -> None:
        """Attend as in stage `index` of training; -1 is the last, which a model begins with."""
        if index == self.stage:
            return
        self.stage, stage = index, self.stages[index]
        self.on_host = torch.tensor([stage.long, stage.short], device="cpu")
        self.spans.copy_(self.on_host)
        self.frequencies.copy_(torch.tensor(stage.frequencies, device="cpu"))
        self.gain.fill_(stage.gain)

    def tables(self) -> list[Table]:
        return []

    def lookups(self) -> dict[str, nn.Module]:
        """The tokens' embedding, and the tables that are added to values."""
        more = {f"value_tables.{i}.weight": table for i, table in enumerate(self.value_tables)}
        return {**super().lookups(), **more}

    def use_attention(self, name: str) -> str:
        """Choose ``flex``, ``fa4``, ``fa3`` or ``math``; ``auto`` is flex on CUDA, else math.

        Raises:
            ConfigError: there is no backend of this name, or it does not know windows.
            MissingDependencyError: this machine or installation has not got it.
        """
        device = self.tok_emb.weight.device
        named = name in ("fa3", "fa4", "math")
        chosen = choose_backend(name, device, masked=not named)
        self.backend = chosen if chosen in ("fa3", "fa4", "flex") else "math"
        if self.backend == "fa3":
            self.flash3 = flash_attention_3("flash_attn_varlen_func")
            allow_graphs()
        return f"{self.backend}, windows and documents masked"

    def use_dropout(self, share: float) -> None:
        if share:
            raise ConfigError(f"dropout={share} is not of architecture='speedrun'; set it to 0")

    def use_rope(self, scaling: str, length: int) -> str:
        if scaling not in ("model", "none"):
            raise ConfigError(
                f"rope scaling '{scaling}': attention of architecture='speedrun' reaches no "
                "further in a longer text; choose model"
            )
        return "as trained"

    def hidden(
        self, tokens: Tensor, *, last: int | None = None, cache: Cache | None = None
    ) -> Tensor:
        device_dtype = torch.bfloat16 if tokens.device.type == "cuda" else torch.float32
        dtype = self.compute_dtype or device_dtype
        config, new = self.config, tokens.shape[1]
        text = tokens if cache is None else cache.read(tokens)
        length = text.shape[1]
        back = min(length - new, LOOKS_BACK)
        x = x0 = self.embedded(text[:, length - new - back :], dtype)[:, back:]
        values = [table(tokens, dtype) for table in self.value_tables]
        # of no effect but on the meta device, where nothing is computed
        spans, frequencies, gain = (
            each.to(x.device) for each in (self.spans, self.frequencies, self.gain)
        )
        rotary = angle_tables(frequencies, length, like=x, first=length - new)
        (long, short), gain = self._windows(text, spans, gain, plain=cache is not None)
        skips: list[Tensor] = []
        assert self.skip_weights is not None
        weights: Tensor = self.skip_weights
        if config.skip_gates:
            weights = weights.sigmoid()
        for layer, block in enumerate(self.blocks):
            if layer >= len(weights):
                x = x + weights[layer - len(weights)].to(dtype) * skips.pop()
            window = long if layer in config.long_window_layers else short
            attend = partial(
                SpeedrunAttention.within,
                tables=rotary,
                embedded=self._value_of(values, layer),
                gain=gain,
                window=window,
                extend=partial(cache.extend, layer) if cache is not None else None,
            )
            x = block(x, x0, attend)
            if layer < len(weights):
                skips.append(x)
        x = rms_norm(x)
        return x if last is None or last == new else x[:, -last:]

    @property
    def recordable(self) -> bool:
        return False

    def _windows(
        self, text: Tensor, spans: Tensor, gain: Tensor, *, plain: bool
    ) -> tuple[list[Window], Tensor]:
        """The long window and the short one over `text`, and the gain of queries.

        Flash kernels take so many documents at most; with more the gain, and so the loss, is nan.
        """
        ids, bos = document_ids(text, self.config.bos), self.config.bos
        backend = "flex" if self.backend == "auto" and text.is_cuda else self.backend
        backend = "math" if plain else backend
        found = []
        starts = text
        if backend in ("fa3", "fa4"):
            starts, over = document_starts(text, bos)
            gain = torch.where(over, torch.nan, gain)
        for index, counts in enumerate((self.config.windows, self.config.short_windows)):
            blocks = block_mask(ids, spans[index]) if backend == "flex" else None
            flash: Flash | None = None
            if backend == "fa4":
                flash = partial(_flash4, starts=starts, window=self.on_host[index])
            elif backend == "fa3":
                assert self.flash3 is not None
                assert self.stage is not None
                tokens = counts[self.stage]
                flash = partial(_flash3, self.flash3, starts=starts, tokens=tokens)
            found.append(Window(ids, spans[index], max(counts), blocks, flash))
        return found, gain

    def embedded(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        x: Tensor = self.tok_emb(tokens, dtype)
        return rms_norm(x if self.smear is None else self.smear(x, tokens))

    def _value_of(self, values: list[Tensor], layer: int) -> Tensor | None:
        """What the layer adds to its values: table i is for the i-th of the first and last ones."""
        from_end = layer - (self.config.layers - len(values))
        index = layer if layer < len(values) else from_end
        return values[index] if 0 <= index < len(values) else None

    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden, cap = self.hidden(inputs, last=targets.shape[1]), self.config.logit_softcap
        rows = targets.shape[1]
        if not torch.is_grad_enabled():
            rows = max(1, MOST_LOGITS // (len(targets) * self.config.vocab))
        parts = zip(torch.split(hidden, rows, 1), torch.split(targets, rows, 1), strict=True)
        losses = [ops.head_losses(h, self.head, t, cap, kernels=self.kernels) for h, t in parts]
        return losses[0] if len(losses) == 1 else torch.cat(losses, 1)
