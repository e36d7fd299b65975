"""Gradients -> updates by Muon: momentum, orthogonalised, the work shared out over ranks.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; parameter-golf's Parallel Muon
(#399, #549).

Shape legend: N = matrices of equal shape, S = one rank's share of them, R = rows, C = columns.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gptpack.ranks import Pending, Ranks
from gptpack.training.decay import decay_cautiously, decay_weights
from gptpack.training.orthogonal import orthogonalize
from gptpack.training.recipe import OptimizerConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Bank:
    """The N matrices of one shape, and the state of the S that are this rank's to orthogonalise.

    Rank r has the matrices from ``r S`` on. ``S world`` may be more than N: the matrices that are
    missing at the end are zeros, whose updates nobody uses.
    """

    def __init__(
        self, matrices: Mapping[str, nn.Parameter], ranks: Ranks, config: OptimizerConfig
    ) -> None:
        self.names = list(matrices)
        self.matrices = list(matrices.values())
        self.ranks = ranks
        like = self.matrices[0]
        rows, columns = like.shape
        self.scale: float = max(1.0, rows / columns) ** 0.5
        self.share = -(-len(matrices) // ranks.world)
        self.state = {
            "momentum": like.new_zeros(
                (self.share, rows, columns), dtype=DTYPES[config.muon_momentum_dtype]
            )
        }
        if config.muon_variance_beta2:
            squares = (rows, 1) if rows >= columns else (1, columns)
            self.state["variance"] = like.new_zeros((self.share, *squares))
        self.nothing = like.new_zeros(()).expand(like.shape)
        self.moving: list[int] = []
        """Indexes of the matrices that have a gradient in this step; the same on every rank."""
        self.gradient = self.update = Pending(like)

    def launch_gradients(self) -> None:
        """Begin to sum the matrices' gradients over the ranks, and take them from the matrices."""
        gradients = [matrix.grad for matrix in self.matrices]
        self.moving = [index for index, there in enumerate(gradients) if there is not None]
        if self.moving:
            padding: list[Tensor | None] = [None] * (self.share * self.ranks.world - len(gradients))
            found = [self.nothing if g is None else g for g in gradients + padding]
            self.gradient = self.ranks.launch_scatter_sum(torch.stack(found))
        for matrix in self.matrices:
            matrix.grad = None

    def whole(self, kind: str) -> Tensor:
        """The state of one kind for all N matrices, ``[N, ...]``, gathered from all ranks."""
        return self.ranks.launch_gather(self.state[kind]).wait()[: len(self.names)]

    def take(self, kind: str, whole: Sequence[Tensor]) -> None:
        """Keep this rank's share of `whole`, the state of one kind for all N matrices."""
        mine = whole[self.ranks.rank * self.share :][: self.share]
        self.state[kind].zero_()
        for kept, given in zip(self.state[kind], mine, strict=False):
            kept.copy_(given)


class Muon:
    """Nesterov momentum, orthogonalised, scaled by ``sqrt(max(1, R / C))``.

    Matrices of one shape are one batch, of which every rank orthogonalises its share. On CUDA that
    is done in bfloat16, which is also how updates travel. All ranks then apply all updates, so
    that their weights stay the same bits. A matrix without a gradient stays as it is.
    """

    def __init__(
        self,
        matrices: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        ranks: Ranks,
        *,
        compiled: bool,
    ) -> None:
        self.config, self.ranks = config, ranks
        shapes: dict[torch.Size, dict[str, nn.Parameter]] = {}
        for name, matrix in matrices.items():
            shapes.setdefault(matrix.shape, {})[name] = matrix
        banks = [Bank(members, ranks, config) for members in shapes.values()]
        # largest first: what is gathered last, and waited for, is then the smallest
        self.banks = sorted(banks, key=lambda bank: -len(bank.names) * bank.matrices[0].numel())
        cuda = ranks.device.type == "cuda"
        self.orthogonalize = partial(
            torch.compile(orthogonalize, fullgraph=True, dynamic=False)
            if compiled
            else orthogonalize,
            method=config.muon_method,
            steps=config.muon_steps,
            dtype=torch.bfloat16 if cuda else torch.float32,
            row_norm=config.muon_row_norm,
        )
        self.even_out = (
            torch.compile(even_out, fullgraph=True, dynamic=False) if compiled else even_out
        )

    def launch_gradients(self) -> None:
        """Begin to sum the matrices' gradients over the ranks, and take them from the matrices."""
        for bank in self.banks:
            bank.launch_gradients()

    def gradients(self) -> list[Tensor]:
        """The summed gradients of this rank's share."""
        return [bank.gradient.wait() for bank in self.banks if bank.moving]

    @torch.no_grad()
    def step(self, *, lr: float, momentum: float, weight_decay: float) -> None:
        """Update the matrices by the gradients that were launched."""
        banks = [bank for bank in self.banks if bank.moving]
        for bank in banks:
            update = self._update(bank, bank.gradient.wait(), momentum)
            bank.update = self.ranks.launch_gather(update)
        for bank in banks:
            self._apply(bank, bank.update.wait().float(), lr, weight_decay)
            bank.gradient = bank.update = Pending(bank.matrices[0])

    def _update(self, bank: Bank, gradient_SRC: Tensor, momentum: float) -> Tensor:
        kept_SRC = bank.state["momentum"]
        buffer_SRC = kept_SRC.float()
        buffer_SRC.mul_(momentum).add_(gradient_SRC)
        if buffer_SRC is not kept_SRC:
            kept_SRC.copy_(buffer_SRC)
        update_SRC = self.orthogonalize(gradient_SRC.add_(buffer_SRC, alpha=momentum))
        if "variance" in bank.state:
            beta2 = self.config.muon_variance_beta2
            update_SRC = self.even_out(update_SRC, bank.state["variance"], beta2)
        return update_SRC

    def _apply(self, bank: Bank, updates_NRC: Tensor, lr: float, weight_decay: float) -> None:
        matrices: list[Tensor] = [bank.matrices[index] for index in bank.moving]
        unbound = updates_NRC.unbind()
        updates = [unbound[index] for index in bank.moving]
        if weight_decay and self.config.cautious_weight_decay:
            decay_cautiously(matrices, updates, lr * weight_decay, strict=False)
        elif weight_decay:
            decay_weights(matrices, lr * weight_decay)
        torch._foreach_add_(matrices, updates, alpha=-lr * bank.scale)


def even_out(updates_SRC: Tensor, variance: Tensor, beta2: float) -> Tensor:
    """Divide rows by the root of a running mean of their squares; each matrix keeps its norm.

    A wide matrix has its columns divided instead. NorMuon, Li et al. 2025,
    https://arxiv.org/abs/2510.05491, as speedruns have it.

    Args:
        variance: the running mean, ``[S, R, 1]``, or ``[S, 1, C]`` for wide matrices; updated.
    """
    axis = -1 if variance.shape[-1] == 1 else -2
    squares = updates_SRC.to(variance.dtype).square().mean(axis, keepdim=True)
    variance.lerp_(squares, 1 - beta2)
    scale = variance.clamp_min(1e-10).rsqrt()
    # |O|^2 and |O scale|^2 are the same multiple of these two
    before = squares.sum((-2, -1), keepdim=True)
    after = (squares * scale.square()).sum((-2, -1), keepdim=True)
    scale = scale * (before / after.clamp_min(torch.finfo(variance.dtype).tiny)).sqrt()
    return (updates_SRC * scale).to(updates_SRC.dtype)
