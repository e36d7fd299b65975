"""Tokens -> sums of squared gradients of the outputs of each matrix, with labels from the model.

Shape legend: N = windows, T = positions, R = outputs, C = channels.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptpack.errors import CheckpointError
from gptpack.families.language_model import LanguageModel, most_logits, weight_of
from gptpack.progress import Progress, silent

PART_LOGITS = 1 << 22
"""Logits from which labels are drawn at once."""
KEPT_OF_OUTPUTS = 2.5
"""Numbers that a pass back keeps of a layer for each of its outputs, about."""
EMBEDDED = "embedded tokens"
"""Key of the Fisher information of the token embedding's output."""


def finite(logits: Tensor) -> Tensor:
    """`logits`, which must all be finite.

    Raises:
        CheckpointError: one is infinite or not a number.
    """
    if not logits.isfinite().all():
        raise CheckpointError(
            "the model's outputs are not finite, so it cannot be calibrated; it may hold very "
            "large weights: see what 'gptpack eval' says of the checkpoint"
        )
    return logits


@contextmanager
def _fixed_weights(model: LanguageModel) -> Iterator[None]:
    """No gradients are made of any weight: they begin at what is looked up.

    Nor are the inputs of layers kept, which only their weights' gradients need.
    """
    moving = [p for p in model.parameters() if p.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_()


def _tokens_kept(model: LanguageModel) -> float:
    """Tokens for which a pass back may keep what blocks make inside.

    On a CPU that is as many numbers as there are weights, or as logits at once if those are more.
    """
    if model.device.type != "cpu":
        return math.inf
    outputs = sum(weight_of(layer.module).shape[0] for layer in model.layers().values())
    numbers = max(sum(w.numel() for w in model.weights().values()), most_logits(model.device))
    return numbers / (KEPT_OF_OUTPUTS * outputs)


@contextmanager
def _recomputed(model: LanguageModel, share: float) -> Iterator[None]:
    """What this share of the blocks makes inside is made again in a pass back, and not kept.

    It is the first blocks, which a pass back comes to once what the others keep is gone.
    """
    blocks = [block for stack in model.stacks() for block in stack if "forward" not in vars(block)]
    blocks = blocks[: math.ceil(share * len(blocks))]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _shorter(windows: Tensor, most: int) -> Tensor:
    """The windows ``[N, T]``, each in equal parts of at most `most` tokens where it has more."""
    parts = -(-windows.shape[1] // max(1, most))
    length = windows.shape[1] // parts
    return windows[:, : parts * length].reshape(-1, length)


class _Sloped(torch.autograd.Function):
    """A loss of 0 whose slope at its first argument is the second.

    ``backward(slope)`` of torch imports a library of symbols first, for a second or two.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return logits.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope, None


def output_fisher(
    model: LanguageModel,
    windows: Tensor,
    *,
    batch: int,
    seed: int,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Sums over tokens of ``(dL/dy_r)^2`` ``[R]`` for each matrix, with labels from the model.

    L is the sum of the tokens' cross entropies. The key `EMBEDDED` holds those sums for the
    embedding's output, by channel ``[C]``. A window with more logits than are made at once goes
    through in parts, as a pass back keeps what every layer made of it.

    Raises:
        CheckpointError: the model's outputs are not finite.
    """
    device, head = model.device, model.head_name
    generator = torch.Generator(device=device).manual_seed(seed)
    vocab, width = weight_of(model.embedding).shape
    layers = {name: layer.module for name, layer in model.layers().items() if name != head}
    sizes = {name: weight_of(module).shape[0] for name, module in layers.items()}
    others = {n: m for n, m in model.lookups().items() if n != model.embedding_name}
    sizes |= {head: vocab, EMBEDDED: width}
    sizes |= {name: weight_of(module).shape[1] for name, module in others.items()}
    sums = {name: torch.zeros(size, device=device) for name, size in sizes.items()}

    def add(name: str, squares: Tensor) -> None:
        sums[name] += squares

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def forward(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if not output.requires_grad:
                output.requires_grad_()
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: add(name, gradient.float().square().flatten(0, -2).sum(0))
            )

        return forward

    with ExitStack() as hooks:
        for name, module in layers.items():
            hooks.callback(module.register_forward_hook(watch(name)).remove)
        hooks.callback(model.embedding.register_forward_hook(watch(EMBEDDED)).remove)
        for name, module in others.items():
            hooks.callback(module.register_forward_hook(watch(name)).remove)
        hooks.enter_context(_fixed_weights(model))
        windows = model.window(_shorter(windows, most_logits(device) // (2 * vocab)))
        length, kept = windows.shape[1], _tokens_kept(model)
        batch = max(1, int(min(batch, most_logits(device) / (vocab * length), kept / length)))
        hooks.enter_context(_recomputed(model, max(0.0, 1 - kept / (batch * length))))
        rows = max(1, PART_LOGITS // vocab)
        for start in range(0, len(windows), batch):
            tokens = windows[start : start + batch].to(device)
            logits = finite(model.predictions(tokens))
            slope = torch.empty_like(logits)
            with torch.no_grad():
                parts = (torch.split(each.flatten(0, 1), rows) for each in (logits, slope))
                for part, slope_part in zip(*parts, strict=True):
                    probabilities = part.softmax(-1)
                    labels = torch.multinomial(probabilities, 1, generator=generator)
                    # dL/dlogit = p - 1[label]; its square sums to E[p (1 - p)] in expectation
                    add(head, (probabilities * (1 - probabilities)).sum(0))
                    torch.exp(part.log_softmax(-1), out=slope_part)
                    slope_part.scatter_add_(1, labels, slope_part.new_full(labels.shape, -1.0))
            _Sloped.apply(logits, slope).backward()  # type: ignore[no-untyped-call]
            progress("fisher", min(start + batch, len(windows)), len(windows))
    return sums
