"""A GPT's beginning, layer, skip and end, each a function -> the same four, compiled one by one.

What differs between layers comes in as a tensor, so that one graph serves them all, however often
they run (docs/log.md, 2026-11-30).

Shape legend: B = sequences, T = positions, S = the last positions, those with targets,
W = model width.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptpack.families.golf.blocks import Block, Lanes

MOST_GRAPHS = 64
"""Graphs that torch may compile of one part: shapes, layers with and without value embeddings,
halved contexts, a speedrun's windows, with and without gradients."""


class Parts(NamedTuple):
    """The parts, as they are or compiled."""

    begin: Callable[..., tuple[Tensor, dict[int, Tensor]]]
    """What the first layer is given, ``[B, T, W]``, and value embeddings by layer."""
    layer: Callable[..., Lanes]
    take_up: Callable[..., Lanes]
    end: Callable[..., Tensor]
    """Losses ``[B, S]`` in nats."""


def begin(model: Any, tokens: Tensor, dtype: torch.dtype) -> tuple[Tensor, dict[int, Tensor]]:
    return model.embedded(tokens, dtype), model.value_embeddings(tokens, dtype)


def layer(block: Block, *inputs: Any, **named: Any) -> Lanes:
    lanes: Lanes = block(*inputs, **named)
    return lanes


def take_up(skip: Lanes, lanes: Lanes, weight: Tensor, gate: Tensor | None) -> Lanes:
    """`lanes` plus a skip of the first half, or with a gate a blend, ``s + g (x - s)``."""
    weight = weight.to(skip.first.dtype)
    if gate is None:
        return lanes.map(skip, lambda x, s: x + weight * s)
    gate = torch.sigmoid(gate).to(weight.dtype)
    return lanes.map(skip, lambda x, s: torch.lerp(weight * s, x, gate))


def end(model: Any, lanes: Lanes, targets: Tensor) -> Tensor:
    losses: Tensor = model.end(lanes, targets)
    return losses


PLAIN = Parts(begin, layer, take_up, end)
ALL = Parts._fields
REPEATED = ("layer", "take_up")
"""The parts that a pass runs several times: nearly all of its time, and half of what compiling all
takes."""


def allow_graphs() -> None:
    """Let torch compile up to `MOST_GRAPHS` of one function; by itself it stops after 8."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(MOST_GRAPHS, config.recompile_limit)


def compiled(compiler: Callable[..., Any], which: Sequence[str] = ALL) -> Parts:
    """The parts, of which `compiler`, torch's or a test's stand-in, compiles those of `which`."""
    allow_graphs()
    made = partial(compiler, fullgraph=True, dynamic=False)
    return PLAIN._replace(**{name: made(getattr(PLAIN, name)) for name in which})
