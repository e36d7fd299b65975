"""Tokens -> what each weight's rounding costs: input second moments and output gradients.

For a linear layer y = W x the packer needs ``H = E[x x^T]`` and, to compare rows and tensors, the
Fisher information of its outputs ``g_r = E[(dL/dy_r)^2]``, with labels drawn from the model itself
(docs/decisions/packing.md). Both are summed over tokens, so that the sums of ranks can be added.

Shape legend: T = positions, R = rows of a table, V = vocabulary.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gptpack.calibration.fisher import EMBEDDED, output_fisher
from gptpack.calibration.moments import input_moments
from gptpack.families.language_model import LanguageModel, weight_of
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
        rows = weight_of(module).shape[0]
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
        projection = weight_of(layers[table.projection].module).detach().float().cpu().numpy()
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
