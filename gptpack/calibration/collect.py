"""Tokens -> what each weight's rounding costs: input second moments and output gradients.

For a linear layer y = W x the packer needs ``H = E[x x^T]`` and, to compare rows and tensors, the
Fisher information of its outputs ``g_r = E[(dL/dy_r)^2]``, with labels drawn from the model itself
(docs/decisions/packing.md). Both are sums over tokens here, so that ranks may be added.

Shape legend: B = sequences, T = positions, R = outputs, C = inputs, V = vocabulary.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptpack.errors import CheckpointError
from gptpack.families.language_model import LanguageModel
from gptpack.progress import Progress, silent
from gptpack.quant.allocation import Sensitivity
from gptpack.ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Sensitivities of a model's matrices and where they are from."""

    sensitivities: Mapping[str, Sensitivity]
    """By the name of the weight."""
    hessian_tokens: int
    fisher_tokens: int


@contextmanager
def _hooks(register: Callable[[ExitStack], None]) -> Iterator[None]:
    with ExitStack() as stack:
        register(stack)
        yield


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """TF32 multiplies bfloat16 inputs exactly and adds in float32; the setting is put back."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


BANDS = 4
"""A symmetric sum is made in so many bands of rows, each from the diagonal on: 5/8 of the work."""


def _add_moments(sum_CC: Tensor, x_NC: Tensor) -> None:
    """Add ``x^T x`` to the part of `sum_CC` from the diagonal on, band by band."""
    size = sum_CC.shape[0]
    edges = [band * size // BANDS for band in range(BANDS + 1)]
    for start, stop in itertools.pairwise(edges):
        sum_CC[start:stop, start:].addmm_(x_NC[:, start:stop].T, x_NC[:, start:])


def _mirrored(sum_CC: Tensor) -> Tensor:
    """The whole symmetric matrix."""
    upper_CC = sum_CC.triu()
    return upper_CC + upper_CC.triu(1).T


EMBEDDED = "embedded tokens"
"""Key of what belongs to the token embedding's output."""


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def input_moments(
    model: LanguageModel,
    windows: Tensor,
    *,
    batch: int,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Sums of ``x x^T`` over all tokens of `windows` ``[N, T]``, for each matrix of the model.

    The embedding, where it is the output head, has the final norm's output as x. Layers that share
    weights add up. Accumulated in float32 on the model's device.
    """
    device, layers, head = model.device, model.layers(), model.head_name
    sources = {n: layer.module for n, layer in layers.items() if layer.shares_input_of == n != head}
    sizes = {name: _weight(module).shape[1] for name, module in sources.items()}
    sizes[head] = _weight(model.embedding).shape[1]
    # zeros where a rank has no window: ranks add up the same names in the same order
    sums = {name: torch.zeros(size, size, device=device) for name, size in sizes.items()}

    def add(name: str, x: Tensor) -> None:
        _add_moments(sums[name], x.reshape(-1, x.shape[-1]).float())

    def register(stack: ExitStack) -> None:
        for name, module in sources.items():
            hook = module.register_forward_pre_hook(
                lambda _module, inputs, name=name: add(name, inputs[0])
            )
            stack.callback(hook.remove)

    with torch.no_grad(), _exact_products(device), _hooks(register):
        for start in range(0, len(windows), batch):
            tokens = windows[start : start + batch].to(device)
            hidden = model.hidden(tokens)
            add(head, hidden)
            progress("hessians", min(start + batch, len(windows)), len(windows))
    return {name: _mirrored(found) for name, found in sums.items()}


def finite(logits: Tensor) -> Tensor:
    """`logits`, none of which is infinite or not a number.

    Raises:
        CheckpointError: one is.
    """
    if not logits.isfinite().all():
        raise CheckpointError(
            "the model's outputs are not finite, so it cannot be calibrated; it may hold very "
            "large weights: see what 'gptpack eval' says of the checkpoint"
        )
    return logits


def output_fisher(
    model: LanguageModel,
    windows: Tensor,
    *,
    batch: int,
    seed: int,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Sums over tokens of ``(dL/dy_r)^2`` ``[R]`` for each matrix, labels sampled from the model.

    L is the sum of the tokens' cross entropies. The key `EMBEDDED` has the same of the embedding's
    output, by channel ``[C]``.

    Raises:
        CheckpointError: the model's outputs are not finite.
    """
    device, head = model.device, model.head_name
    generator = torch.Generator(device=device).manual_seed(seed)
    vocab, width = _weight(model.embedding).shape
    layers = {name: layer.module for name, layer in model.layers().items() if name != head}
    sizes = {name: _weight(module).shape[0] for name, module in layers.items()}
    sizes |= {head: vocab, EMBEDDED: width}
    sums = {name: torch.zeros(size, device=device) for name, size in sizes.items()}

    def add(name: str, squares: Tensor) -> None:
        sums[name] += squares

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def forward(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if not output.requires_grad:
                output.requires_grad_()  # of a table that is coded and must not move (tuning.py)
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: add(name, gradient.float().square().flatten(0, -2).sum(0))
            )

        return forward

    def register(stack: ExitStack) -> None:
        for name, module in layers.items():
            stack.callback(module.register_forward_hook(watch(name)).remove)
        stack.callback(model.embedding.register_forward_hook(watch(EMBEDDED)).remove)

    with _hooks(register):
        for start in range(0, len(windows), batch):
            tokens = windows[start : start + batch].to(device)
            hidden = model.hidden(tokens)
            logits = finite(model.logits(hidden))
            with torch.no_grad():
                probabilities = logits.softmax(-1).flatten(0, 1)
                labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
                # dL/dlogit = p - 1[label]; its square sums to E[p (1 - p)] in expectation
                add(head, (probabilities * (1 - probabilities)).sum(0))
            loss = F.cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            progress("fisher", min(start + batch, len(windows)), len(windows))
    model.zero_grad(set_to_none=True)
    return sums


def collect(
    model: LanguageModel,
    windows: Tensor,
    ranks: Ranks,
    *,
    fisher_windows: int,
    batch: int,
    seed: int,
    progress: Progress = silent,
) -> Calibration:
    """Moments over `windows` ``[N, T]`` (int64 tokens) and Fisher rows over the first few of them.

    Every rank calls this with the same windows, sees its share, and gets the sums over all ranks.

    Raises:
        CheckpointError: see `output_fisher`.
    """
    share = ranks.share(len(windows))
    few = ranks.share(min(fisher_windows, len(windows)))
    mine, mine_few = windows[share.start : share.stop], windows[few.start : few.stop]
    moments = input_moments(model, mine, batch=batch, progress=progress)
    fisher = output_fisher(model, mine_few, batch=batch, seed=seed + ranks.rank, progress=progress)
    ranks.sum([*moments.values(), *fisher.values()])
    tokens = windows.numel()
    fisher_tokens = min(fisher_windows, len(windows)) * windows.shape[1]
    found = {
        name: Sensitivity(
            hessian=(moments[layer.shares_input_of] / tokens).cpu().numpy(),
            row_weight=(fisher[name] / fisher_tokens).cpu().numpy(),
        )
        for name, layer in model.layers().items()
    }
    counts = torch.bincount(windows.flatten().cpu(), minlength=model.config.vocab)
    found.update(_tables(model, found, moments, fisher, windows, counts, tokens, fisher_tokens))
    return Calibration(sensitivities=found, hessian_tokens=tokens, fisher_tokens=fisher_tokens)


def _tables(
    model: LanguageModel,
    linears: Mapping[str, Sensitivity],
    moments: Mapping[str, Tensor],
    fisher: Mapping[str, Tensor],
    windows: Tensor,
    counts: Tensor,
    tokens: int,
    fisher_tokens: int,
) -> dict[str, Sensitivity]:
    """Embeddings: a row is used as often as its token comes, a column costs what follows it.

    A table E that is projected by P costs ``count_r/N  e_r (P^T G P) e_r^T`` with G the Fisher
    information of the projection's outputs. The tied embedding adds its two parts, input and output
    head, each with its own rows and columns, as one Hessian with row weights in proportion.
    """
    found = {}
    share_R = (counts / tokens).numpy()
    layers = model.layers()
    for table in model.tables():
        # once tuning has frozen a projection it is no layer to pack, and its table is coded too
        if table.projection not in linears:
            continue
        projection = _weight(layers[table.projection].module).detach().float().cpu().numpy()
        rows = linears[table.projection].row_weight
        used = torch.bincount(table.ids(windows.cpu()).flatten(), minlength=table.rows)
        found[table.weight] = Sensitivity(
            hessian=projection.T @ (rows[:, None] * projection),
            row_weight=(used / tokens).numpy(),
        )
    input_C = (fisher[EMBEDDED] / fisher_tokens).cpu().numpy()
    input_part = Sensitivity(hessian=np.diag(input_C), row_weight=share_R)
    head = model.head_name
    if head != model.embedding_name:
        found[model.embedding_name] = input_part
        return found
    output_part = Sensitivity(
        hessian=(moments[head] / tokens).cpu().numpy(),
        row_weight=(fisher[head] / fisher_tokens).cpu().numpy(),
    )
    found[head] = _together(input_part, output_part)
    return found


def _together(a: Sensitivity, b: Sensitivity) -> Sensitivity:
    """One Hessian and row weights whose traces are those of the sum of two."""
    hessian = a.row_weight.mean() * a.hessian + b.row_weight.mean() * b.hessian
    rows = a.row_weight * np.trace(a.hessian) + b.row_weight * np.trace(b.hessian)
    trace = np.trace(hessian)
    if not 0 < trace < np.inf:
        # nothing depends on the table, or its moments are beyond float32
        return Sensitivity(hessian=hessian, row_weight=np.zeros_like(rows))
    return Sensitivity(hessian=hessian, row_weight=rows / trace)
