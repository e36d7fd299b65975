"""A GPT of one lane -> its loss, compiled block by block and not as a whole. No benchmark itself.

One block, the skips, the front and the end are compiled functions of their own, called one by one:
one graph serves all layers. It compiles faster, and golf-best's step was faster too (docs/log.md,
2026-11-29). torch.compiler.nested_compile_region did not serve: in torch 2.13 regions got each
other's inputs.

Shape legend: B = sequences, T = positions, W = model width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gptpack import ops
from gptpack.families.golf.dropout import WORD, hashed
from gptpack.families.golf.gpt import GPT
from gptpack.families.golf.layers import Rope, rotary_tables
from gptpack.ops import rms_norm


def one_block(
    block: Any,
    x: Tensor,
    x0: Tensor,
    cos: Tensor,
    sin: Tensor,
    value: Tensor | None,
    seeds: Tensor | None,
    share: float,
    norm_scale: Tensor,
) -> Tensor:
    """A block on x ``[B, T, W]``; what differs from layer to layer is a tensor, not a constant."""
    thinned = partial(thin, seeds, share) if seeds is not None else None
    x, h = block._mixed(x, x0)
    h = h * norm_scale
    attention = block.attn(h, (cos, sin), value, block.attn_scale, None, last=None)
    if thinned is not None:
        attention = thinned(attention, 0)
    x = x + attention
    mlp = block.mlp(block._normed(x) * norm_scale, block.mlp_scale)
    if thinned is not None:
        mlp = thinned(mlp, 1)
    return x + mlp


def thin(seeds: Tensor, share: float, branch: Tensor, index: int) -> Tensor:
    """`branch` without a `share` of its numbers, drawn as `Dropout` draws them."""
    words = hashed(branch.numel(), seeds[index]).view(branch.shape)
    return torch.where(words < round(share * WORD), 0.0, branch / (1 - share))


def front(model: GPT, tokens: Tensor) -> tuple[Tensor, dict[int, Tensor], Tensor, Tensor]:
    """What the first block is given: x, value embeddings by layer, and the rotary tables."""
    dtype = torch.bfloat16 if tokens.device.type == "cuda" else torch.float32
    x = model.tok_emb(tokens, dtype)
    if model.bigram is not None:
        x = x + model.bigram(tokens, dtype)
    x = rms_norm(x)
    if model.smear is not None:
        x = model.smear(x, tokens)
    values = model._value_embeddings(tokens, dtype)
    rope = model.rope or Rope(model._ntk_base(tokens.shape[1]))
    cos, sin = rotary_tables(tokens.shape[1], model.rope_dims, rope=rope, like=x)
    return x, values, cos, sin


def take_up(skip: Tensor, x: Tensor, weight: Tensor, gate: Tensor | None) -> Tensor:
    """A skip of the first half added to x, or blended in by its gate."""
    weight = weight.to(x.dtype)
    if gate is None:
        return x + weight * skip
    return torch.lerp(weight * skip, x, torch.sigmoid(gate).to(x.dtype))


def end(model: GPT, x: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy in nats."""
    losses = ops.head_losses(
        rms_norm(x), model.head, targets, model.config.logit_softcap, kernels=model.kernels
    )
    return losses.mean()


def by_blocks(model: GPT) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean loss of inputs and targets ``[B, T]``, from blocks compiled one by one.

    The model is changed: its blocks leave their norms' scales to this function.
    """
    torch._dynamo.config.recompile_limit = 64
    compiled = partial(torch.compile, fullgraph=True, dynamic=False)
    first, block, skip, last = map(compiled, (front, one_block, take_up, end))
    layers: list[Any] = list(model.blocks)
    scales = [torch.tensor(layer.norm_scale, device=model.device) for layer in layers]
    for layer in layers:
        layer.norm_scale = 1.0
    config = model.config

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        x, values, cos, sin = first(model, inputs)
        x0, skips = x, []
        order = config.layer_order(model.looped)
        encoders = len(order) // 2
        for position, layer in enumerate(order):
            if position >= encoders and skips:
                index = position - encoders
                gate = None if model.skip_gates is None else model.skip_gates[index]
                x = skip(skips.pop(), x, model.skip_weights[index], gate)
            dropout = model.dropout
            seeds, share = (
                (None, 0.0) if dropout is None else (dropout.seeds[position], dropout.share)
            )
            value = values.get(layer)
            x = block(layers[layer], x, x0, cos, sin, value, seeds, share, scales[layer])
            if position < encoders:
                skips.append(x)
        return last(model, x, targets)

    return loss
