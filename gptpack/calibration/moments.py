"""Tokens -> sums of ``x x^T`` over the inputs x of each matrix.

Shape legend: N = tokens, T = positions, C = inputs.
"""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from gptpack.families.language_model import LanguageModel, weight_of
from gptpack.progress import Progress, silent
from gptpack.ranks import Ranks

MOST_SUMS = 1.75
"""Most numbers of Hessians that are summed at once, as a multiple of the model's weights."""
BANDS = 4
"""Bands of rows in which a symmetric sum is made, each from the diagonal on: 5/8 of the work."""


def input_moments(
    model: LanguageModel,
    windows: Tensor,
    ranks: Ranks,
    *,
    batch: int,
    progress: Progress = silent,
) -> Iterator[tuple[str, Tensor]]:
    """Sums of ``x x^T`` over all tokens of the ranks' `windows` ``[N, T]``, matrix by matrix.

    Layers that share a weight add up. Sums are float32, on the model's device; where all of them
    take more than `MOST_SUMS` times the weights, the windows go through the model several times.
    """
    device, layers, head = model.device, model.layers(), model.head_name
    rounds = _rounds(model)
    total = len(rounds) * len(windows)
    for index, sizes in enumerate(rounds):
        # zeros where a rank has no window: ranks add up the same names in the same order
        sums = {name: torch.zeros(size, size, device=device) for name, size in sizes.items()}

        def add(name: str, x: Tensor, sums: Mapping[str, Tensor] = sums) -> None:
            if name in sums:
                _add_moments(sums[name], x.reshape(-1, x.shape[-1]).float())

        with torch.no_grad(), _exact_products(device), ExitStack() as hooks:
            for name in sizes.keys() - {head}:
                hook = layers[name].module.register_forward_pre_hook(
                    lambda _module, inputs, name=name, add=add: add(name, inputs[0])
                )
                hooks.callback(hook.remove)
            for start in range(0, len(windows), batch):
                tokens = windows[start : start + batch].to(device)
                add(head, model.hidden(tokens))
                done = index * len(windows) + min(start + batch, len(windows))
                progress("hessians", done, total)
        ranks.sum([*sums.values()])
        for name in sizes:
            yield name, _mirrored(sums.pop(name))


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """CUDA multiplies by TF32 inside, which is exact for bfloat16 inputs and adds in float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _add_moments(sum_CC: Tensor, x_NC: Tensor) -> None:
    """Add ``x^T x`` to the part of `sum_CC` from the diagonal on, band by band."""
    size = sum_CC.shape[0]
    edges = [band * size // BANDS for band in range(BANDS + 1)]
    for start, stop in itertools.pairwise(edges):
        sum_CC[start:stop, start:].addmm_(x_NC[:, start:stop].T, x_NC[:, start:])


def _mirrored(sum_CC: Tensor) -> Tensor:
    """The whole symmetric matrix of one that is summed from the diagonal on."""
    upper_CC = sum_CC.triu()
    return upper_CC + upper_CC.triu(1).T


def _rounds(model: LanguageModel) -> list[dict[str, int]]:
    """The matrices whose moments are summed, and their inputs, in rounds that fit into memory.

    Where the embedding is the output layer, its input is the hidden state.
    """
    head, layers = model.head_name, model.layers()
    sizes = {
        name: weight_of(layer.module).shape[1]
        for name, layer in layers.items()
        if layer.shares_input_of == name != head
    }
    sizes[head] = weight_of(model.embedding).shape[1]
    most = MOST_SUMS * sum(weight.numel() for weight in model.weights().values())
    rounds: list[dict[str, int]] = [{}]
    held = 0
    for name, size in sizes.items():
        held += size**2
        if held > most and rounds[-1]:
            rounds.append({})
            held = size**2
        rounds[-1][name] = size
    return rounds
