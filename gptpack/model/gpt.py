"""The model: tokens -> nats. The parameter-golf baseline and the parts its records added.

Shape legend: B = sequences, T = positions, S = the last positions, those with targets,
W = model width, V = vocabulary.

Each block mixes the embedding back in, attends, and applies its MLP; the first half of the layers
leaves its outputs as skips that the second half takes up in reverse (U-Net). State-dict names are
those of the reference, so its checkpoints load (gptpack/checkpoint.py).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptpack.config import ModelConfig
from gptpack.errors import ConfigError
from gptpack.model.attention import CausalSelfAttention, choose_backend
from gptpack.model.layers import (
    BigramHash,
    Embedding,
    Linear,
    Rope,
    SmearGate,
    Tables,
    ValueEmbedding,
    ntk_base,
    rms_norm,
    rotary_tables,
    yarn,
)

TIED_EMBEDDING_STD = 0.005
"""The output head starts nearly flat when it is the embedding (parameter-golf baseline)."""


class MLP(nn.Module):
    """``proj(act(fc(x)))`` with a squared rectifier."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.slope = 0.5 if config.activation == "leaky_relu2" else 0.0
        self.fc = Linear(config.width, config.mlp_hidden)
        self.proj = Linear(config.mlp_hidden, config.width, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc(x)
        hidden = F.leaky_relu(hidden, self.slope) if self.slope else F.relu(hidden)
        return self.proj(hidden.square())


class Block(nn.Module):
    """One layer; `resid_mix` weighs the residual stream against the embedding."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_scale = (layer + 1) ** -0.5 if config.ln_scale else 1.0
        self.attn = CausalSelfAttention(config, layer)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(config.width))
        self.mlp_scale = nn.Parameter(torch.ones(config.width))
        self.resid_mix = nn.Parameter(
            torch.stack((torch.ones(config.width), torch.zeros(config.width)))
        )

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        tables: Tables,
        value_embedding: Tensor | None,
        *,
        last: int | None = None,
    ) -> Tensor:
        """x and `x0` ``[B, T, W]``; out likewise, or ``[B, last, W]`` for the last positions."""
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        attended = self.attn(rms_norm(x) * self.norm_scale, tables, value_embedding, last=last)
        x = x if last is None else x[:, -last:]
        x = x + self.attn_scale.to(x.dtype) * attended
        return x + self.mlp_scale.to(x.dtype) * self.mlp(rms_norm(x) * self.norm_scale)


class GPT(nn.Module):
    """A GPT of the shape `config`, with weights drawn from `seed`.

    Weights are float32. Activations are bfloat16 on CUDA and float32 elsewhere, unless
    `compute_dtype` is set.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.rope: Rope | None = None
        """Set by `use_rope`; None follows the configuration and the length of each sequence."""
        self.rope_dims = config.rope_dims or config.head_width
        std = TIED_EMBEDDING_STD if config.tied_embedding else 1.0
        self.tok_emb = Embedding(config.vocab, config.width, std=std)
        self.bigram = (
            BigramHash(config.bigram_rows, config.bigram_width, config.width)
            if config.bigram_rows
            else None
        )
        self.smear = (
            SmearGate(config.width, bos=config.bos, across_documents=config.smear_across_documents)
            if config.smear_gate
            else None
        )
        self.ve_shared: ValueEmbedding | None = None
        if config.value_embedding_layers:
            self.ve_shared = ValueEmbedding(
                config.vocab, config.value_embedding_width, config.kv_width
            )
            self.ve_layer_scales = nn.ParameterList(
                nn.Parameter(torch.ones(1)) for _ in config.value_embedding_layers
            )
        self.encoders = config.layers // 2
        self.skip_weights = (
            nn.Parameter(torch.ones(self.encoders, config.width)) if self.encoders else None
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.lm_head = (
            None if config.tied_embedding else Linear(config.width, config.vocab, zero=True)
        )
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Draw the weights; the same `seed` gives the same weights on every machine."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, Linear | Embedding):
                module.reset(generator)

    def use_attention(self, name: str) -> str:
        """Choose the attention backend of all layers; returns what was chosen."""
        chosen = choose_backend(name, self.tok_emb.weight.device)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attn.backend = chosen
        return chosen

    def _ntk_base(self, length: int) -> float:
        """The configuration's base for sequences of `length`."""
        config = self.config
        trained = config.rope_ntk_context
        return ntk_base(config.rope_base, self.rope_dims, length=length, trained=trained)

    def use_rope(self, scaling: str, length: int) -> str:
        """Fix the rotary angles for sequences of up to `length`; returns what they are, in words.

        ``model`` applies the configuration's own rule to `length`. The others take the angles that
        the model was trained with (those of sequences of ``config.context``) and, if `length` is
        beyond that, leave them (``none``), stretch the base (``ntk``), or interpolate (``yarn``).

        Raises:
            ConfigError: no such scaling.
        """
        trained, dims = self.config.context, self.rope_dims
        base = self._ntk_base(trained)
        if scaling == "model":
            self.rope = Rope(self._ntk_base(length))
            known = self.config.rope_ntk_context
            return f"model (ntk from {known:,})" if known else "model (unscaled)"
        if scaling == "none":
            self.rope = Rope(base)
        elif scaling == "ntk":
            self.rope = Rope(ntk_base(base, dims, length=length, trained=trained))
        elif scaling == "yarn":
            self.rope = yarn(base, dims, length=length, trained=trained)
        else:
            raise ConfigError(f"rope scaling '{scaling}': choose model, none, ntk, yarn")
        return f"{scaling}, trained at {trained:,}" if length > trained else "as trained"

    def hidden(self, tokens: Tensor, *, last: int | None = None) -> Tensor:
        """Normalised output of the last layer, ``[B, T, W]``, for tokens ``[B, T]`` (int64).

        With `last`, that of the last so many positions: ``[B, last, W]``. The last layer then
        computes keys and values for all positions, and everything else for those alone.
        """
        device_dtype = torch.bfloat16 if tokens.device.type == "cuda" else torch.float32
        dtype = self.compute_dtype or device_dtype
        x = self.tok_emb(tokens, dtype)
        if self.bigram is not None:
            x = x + self.bigram(tokens, dtype)
        x = rms_norm(x)
        if self.smear is not None:
            x = self.smear(x, tokens)
        x0 = x
        values = self._value_embeddings(tokens, dtype)
        config = self.config
        length = tokens.shape[1]
        rope = self.rope or Rope(self._ntk_base(length))
        tables = rotary_tables(length, self.rope_dims, rope=rope, like=x)
        skips: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            if layer >= self.encoders and skips and self.skip_weights is not None:
                weight = self.skip_weights[layer - self.encoders].to(dtype)
                x = x + weight * skips.pop()
            final = last is not None and last < length and layer == config.layers - 1
            x = block(x, x0, tables, values.get(layer), last=last if final else None)
            if layer < self.encoders:
                skips.append(x)
        return rms_norm(x)

    def _value_embeddings(self, tokens: Tensor, dtype: torch.dtype) -> dict[int, Tensor]:
        if self.ve_shared is None:
            return {}
        shared = self.ve_shared(tokens, dtype)
        layers = self.config.value_embedding_layers
        scales = [scale.to(dtype) for scale in self.ve_layer_scales]
        return {layer: shared * scale for layer, scale in zip(layers, scales, strict=True)}

    def logits(self, hidden: Tensor) -> Tensor:
        """Soft-capped float32 logits ``[..., V]`` of `hidden` ``[..., W]``."""
        head = self.tok_emb.weight if self.lm_head is None else self.lm_head.weight
        cap = self.config.logit_softcap
        return cap * torch.tanh(F.linear(hidden, head.to(hidden.dtype)).float() / cap)

    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats of each target, float32 ``[B, S]``.

        `inputs` is ``[B, T]``; `targets` ``[B, S]`` belong to its last S positions.
        """
        logits = self.logits(self.hidden(inputs, last=targets.shape[1]))
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(targets.shape)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats over all targets."""
        return self.token_losses(inputs, targets).mean()


def state_problem(model: GPT, weights: Mapping[str, Tensor]) -> str:
    """What keeps `weights` from being the state of `model`, in one line; empty if nothing does."""
    wanted = model.state_dict()
    problems = []
    if missing := sorted(wanted.keys() - weights.keys()):
        problems.append(f"missing {_some(missing)}")
    if extra := sorted(weights.keys() - wanted.keys()):
        problems.append(f"unexpected {_some(extra)}")
    shared = [name for name in wanted if name in weights]
    for name in shared:
        if weights[name].shape != wanted[name].shape:
            found, needed = tuple(weights[name].shape), tuple(wanted[name].shape)
            problems.append(f"{name} has shape {found}, needed {needed}")
    if broken := [name for name in shared if not weights[name].isfinite().all()]:
        problems.append(f"not finite: {_some(broken)}")
    return "; ".join(problems[:6])


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
