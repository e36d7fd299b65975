"""Tokens -> what each weight's rounding costs: input second moments and output gradients.

For a linear layer y = W x the packer needs ``H = E[x x^T]`` and, to compare rows and tensors, the
Fisher information of its outputs ``g_r = E[(dL/dy_r)^2]``, with labels drawn from the model itself
(docs/decisions/packing.md). Both are summed over tokens, so that the sums of ranks can be added.

Shape legend: B = sequences, T = positions, R = outputs, C = inputs, V = vocabulary.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptpack.errors import CheckpointError
from gptpack.families.language_model import LanguageModel, most_logits
from gptpack.progress import Progress, silent
from gptpack.quant.allocation import Sensitivity
from gptpack.ranks import Ranks
from gptpack.shelf import Shelf


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Sensitivities of a model's matrices, and the tokens that they are from."""

    sensitivities: Mapping[str, Sensitivity]
    """Sensitivities by the name of the weight."""
    hessian_tokens: int
    """Tokens that the Hessians are means over."""
    fisher_tokens: int
    """Tokens that the Fisher rows are means over."""


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """CUDA multiplies by TF32 inside, which is exact for bfloat16 inputs and adds in float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


MOST_SUMS = 1.75
"""Most numbers of Hessians that are summed at once, as a multiple of the model's weights."""
BANDS = 4
"""Bands of rows in which a symmetric sum is made, each from the diagonal on: 5/8 of the work."""
PART_LOGITS = 1 << 22
"""Logits from which labels are drawn at once."""
KEPT_OF_OUTPUTS = 2.5
"""Numbers that a pass back keeps of a layer for each of its outputs, about."""
EMBEDDED = "embedded tokens"
"""Key of the Fisher information of the token embedding's output."""


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


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _rounds(model: LanguageModel) -> list[dict[str, int]]:
    """The matrices whose moments are summed, and their inputs, in rounds that fit into memory.

    Where the embedding is the output layer, its input is the hidden state.
    """
    head, layers = model.head_name, model.layers()
    sizes = {
        name: _weight(layer.module).shape[1]
        for name, layer in layers.items()
        if layer.shares_input_of == name != head
    }
    sizes[head] = _weight(model.embedding).shape[1]
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


@contextmanager
def _recomputed(model: LanguageModel, tokens: int) -> Iterator[None]:
    """What blocks of layers make inside is made again in a pass back, not kept, if that is much.

    Keeping it for so many tokens at once would take more than the weights do.
    """
    outputs = sum(_weight(layer.module).shape[0] for layer in model.layers().values())
    kept = KEPT_OF_OUTPUTS * outputs * tokens
    if model.device.type != "cpu" or kept < sum(w.numel() for w in model.weights().values()):
        yield
        return
    blocks = [block for stack in model.stacks() for block in stack if "forward" not in vars(block)]
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
    vocab, width = _weight(model.embedding).shape
    layers = {name: layer.module for name, layer in model.layers().items() if name != head}
    sizes = {name: _weight(module).shape[0] for name, module in layers.items()}
    others = {n: m for n, m in model.lookups().items() if n != model.embedding_name}
    sizes |= {head: vocab, EMBEDDED: width}
    sizes |= {name: _weight(module).shape[1] for name, module in others.items()}
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
        batch = max(1, min(batch, most_logits(device) // (vocab * windows.shape[1])))
        hooks.enter_context(_recomputed(model, batch * windows.shape[1]))
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
            logits.backward(slope)  # type: ignore[no-untyped-call]
            progress("fisher", min(start + batch, len(windows)), len(windows))
    return sums


def collect(
    model: LanguageModel,
    windows: Tensor,
    ranks: Ranks,
    *,
    fisher_windows: int,
    batch: int,
    seed: int,
    counts: Tensor | None = None,
    progress: Progress = silent,
) -> Calibration:
    """Sensitivities from moments over `windows` ``[N, T]`` (int64 tokens) and Fisher rows.

    Every rank calls this with the same windows, sees its share, and gets the sums over all ranks.

    Args:
        fisher_windows: windows for Fisher rows, the first ones.
        batch: windows that go through the model at once.
        counts: how often each token comes in more text than the windows, ``[V]``: few of a large
            vocabulary come in those.

    Raises:
        CheckpointError: see `output_fisher`.
    """
    share = ranks.share(len(windows))
    few = ranks.share(min(fisher_windows, len(windows)))
    mine, mine_few = windows[share.start : share.stop], windows[few.start : few.stop]
    tokens = windows.numel()
    fisher_tokens = min(fisher_windows, len(windows)) * windows.shape[1]
    shelf = Shelf()
    moment = {
        name: shelf.put((total / tokens).cpu().numpy())
        for name, total in input_moments(model, mine, ranks, batch=batch, progress=progress)
    }
    fisher = output_fisher(model, mine_few, batch=batch, seed=seed + ranks.rank, progress=progress)
    ranks.sum([*fisher.values()])
    rows = {name: (found / fisher_tokens).cpu().numpy() for name, found in fisher.items()}
    found = {
        name: Sensitivity(hessian=moment[layer.shares_input_of], row_weight=rows[name])
        for name, layer in model.layers().items()
    }
    found |= _tables(model, found, windows)
    for name, used in _rows_looked_up(model, windows, counts).items():
        key = EMBEDDED if name == model.embedding_name else name
        channels = rows[key] * model.lookup_gain(name) ** 2
        found[name] = Sensitivity(hessian=np.diag(channels), row_weight=used)
    embedding = found[model.embedding_name]
    head = model.head_name
    if head == model.embedding_name:
        output = Sensitivity(hessian=moment[head], row_weight=rows[head])
        found[head] = _together(embedding, output)
    return Calibration(sensitivities=found, hessian_tokens=tokens, fisher_tokens=fisher_tokens)


def _use(ids: Tensor, rows: int) -> npt.NDArray[np.float32]:
    """Times that each row of a table of so many rows is looked up, per token, ``[R]``."""
    return _shares(torch.bincount(ids.flatten().cpu(), minlength=rows))


def _shares(counts: Tensor) -> npt.NDArray[np.float32]:
    shares: npt.NDArray[np.float32] = (counts / counts.sum()).numpy()
    return shares


def _rows_looked_up(
    model: LanguageModel, windows: Tensor, counts: Tensor | None
) -> dict[str, npt.NDArray[np.float32]]:
    """Times that each row of each of the model's lookups is used, per token, ``[R]``.

    Those of the token embedding, and of others that tokens are looked up in, are `counts`, or
    counted in all `windows`; any other's are counted in the first window, as it looks up places,
    which are the same in each.
    """
    every = _use(windows, model.config.vocab) if counts is None else _shares(counts)
    found = {model.embedding_name: every}
    others = {n: m for n, m in model.lookups().items() if n not in found}
    if not others:
        return found

    def count(name: str, module: nn.Module, ids: Tensor) -> None:
        rows = _weight(module).shape[0]
        of_tokens = rows == len(every) and torch.equal(ids.cpu(), windows[:1].cpu())
        found[name] = every if of_tokens else _use(ids, rows)

    with torch.no_grad(), ExitStack() as hooks:
        for name, module in others.items():
            hook = module.register_forward_pre_hook(
                lambda own, inputs, name=name: count(name, own, inputs[0])
            )
            hooks.callback(hook.remove)
        model.hidden(windows[:1].to(model.device))
    return found


def _tables(
    model: LanguageModel, linears: Mapping[str, Sensitivity], windows: Tensor
) -> dict[str, Sensitivity]:
    """Tables beside the embedding: a row is used as often as its token comes.

    With a projection P, the error e_r of row r costs ``count_r/N  e_r (P^T G P) e_r^T``, where G is
    the Fisher information of the projection's outputs.
    """
    found = {}
    layers = model.layers()
    for table in model.tables():
        # once tuning has frozen a projection it is no layer to pack, and its table is coded too
        if table.projection not in linears:
            continue
        projection = _weight(layers[table.projection].module).detach().float().cpu().numpy()
        rows = linears[table.projection].row_weight
        found[table.weight] = Sensitivity(
            hessian=projection.T @ (rows[:, None] * projection),
            row_weight=_use(table.ids(windows.cpu()), table.rows),
        )
    return found


def _together(a: Sensitivity, b: Sensitivity) -> Sensitivity:
    """One Hessian and row weights for a tied embedding, which is an input and an output layer.

    Their traces are those of the sum of the two parts, which have rows and columns of their own.
    """
    a_CC, b_CC = np.asarray(a.hessian), np.asarray(b.hessian)
    hessian = a.row_weight.mean() * a_CC + b.row_weight.mean() * b_CC
    rows = a.row_weight * np.trace(a_CC) + b.row_weight * np.trace(b_CC)
    trace = np.trace(hessian)
    if not 0 < trace < np.inf:
        # nothing depends on the table, or its moments are beyond float32
        return Sensitivity(hessian=hessian, row_weight=np.zeros_like(rows))
    return Sensitivity(hessian=hessian, row_weight=rows / trace)
