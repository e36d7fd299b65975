"""Gradients -> updates by Adam, for all that is no matrix of a block.

Small tensors are updated whole on every rank, large tables by their rows, a part on each rank.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gptpack.ranks import Pending, Ranks
from gptpack.training.decay import decay_cautiously
from gptpack.training.recipe import OptimizerConfig

SHARED_NUMBERS = 2**20
"""Numbers from which on a table is updated by its rows. Summing a smaller one with all other small
tensors and updating it on every rank costs less than a collective more."""


class Table:
    """A large table of which every rank updates its part of the rows."""

    def __init__(self, parameter: nn.Parameter, ranks: Ranks) -> None:
        self.whole = parameter
        count = len(parameter) // ranks.world
        self.rows = slice(ranks.rank * count, (ranks.rank + 1) * count)
        self.mine = parameter.detach()[self.rows]
        """This rank's rows, in the table's own memory."""


class Adam:
    """torch's AdamW with bias correction, fused on CUDA. Kingma and Ba 2015.

    Args:
        groups: names and parameters, and their learning rate.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Mapping[str, nn.Parameter], float]],
        config: OptimizerConfig,
        ranks: Ranks,
    ) -> None:
        self.config, self.ranks = config, ranks
        self.small: list[nn.Parameter] = []
        self.tables: dict[str, Table] = {}
        self.owned: dict[str, Tensor] = {}
        """The part of each parameter that this rank updates."""
        self.rates = [lr for parameters, lr in groups if parameters]
        for name, parameter in (pair for parameters, _ in groups for pair in parameters.items()):
            if _shared(parameter, ranks):
                self.tables[name] = Table(parameter, ranks)
                self.owned[name] = self.tables[name].mine
            else:
                self.small.append(parameter)
                self.owned[name] = parameter
        fused = ranks.device.type == "cuda"
        self.adamw = torch.optim.AdamW(
            [
                {"params": [self.owned[name] for name in parameters], "lr": lr}
                for parameters, lr in groups
                if parameters
            ],
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps,
            weight_decay=0.0,
            fused=fused,
        )
        for tensor in self.owned.values():
            # what AdamW itself would begin with; made here so that all state exists from the start
            self.adamw.state[tensor] = {
                "step": torch.zeros((), device=ranks.device if fused else None),
                "exp_avg": torch.zeros_like(tensor, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(tensor, requires_grad=False),
            }
        self.sums: list[Pending] = []
        """Sums of gradients that are on their way in this step."""
        self.rows: list[Pending] = []
        """Tables whose updated rows are on their way."""

    def launch_gradients(self) -> None:
        """Begin to sum the gradients over the ranks: one flat buffer, and each large table."""
        if self.ranks.world == 1:
            return
        small = [parameter for parameter in self.small if parameter.grad is not None]
        flat = torch.cat([p.grad.reshape(-1) for p in small if p.grad is not None])
        offset = 0
        for parameter in small:
            end = offset + parameter.numel()
            parameter.grad, offset = flat[offset:end].view_as(parameter), end
        self.sums = [self.ranks.launch_sum(flat)]
        for table in self.tables.values():
            if table.whole.grad is not None:
                part = self.ranks.launch_scatter_sum(table.whole.grad)
                table.mine.grad = part.tensor
                table.whole.grad = None
                self.sums.append(part)

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """Summed gradients of small tensors, alike on all ranks, and of this rank's table rows."""
        for pending in self.sums:
            pending.wait()
        mine = [table.mine.grad for table in self.tables.values()]
        alike = [parameter.grad for parameter in self.small]
        return [g for g in alike if g is not None], [g for g in mine if g is not None]

    def step(self, *, lr_multiplier: float, weight_decay: float) -> None:
        """Update by the gradients that were launched, and begin to gather the tables' rows."""
        for pending in self.sums:
            pending.wait()
        for group, lr in zip(self.adamw.param_groups, self.rates, strict=True):
            group["lr"] = lr * lr_multiplier
            group["weight_decay"] = weight_decay
            if weight_decay and self.config.cautious_weight_decay:
                group["weight_decay"] = 0.0
                self._decay_cautiously(group["params"], group["lr"] * weight_decay)
        self.adamw.step()
        self.rows = [
            self.ranks.launch_gather(table.mine, table.whole.detach())
            for table in self.tables.values()
            if table.mine.grad is not None
        ]
        self.sums = []
        for tensor in self.owned.values():
            tensor.grad = None

    def finish(self) -> None:
        """Wait for the tables' rows of all ranks."""
        for pending in self.rows:
            pending.wait()
        self.rows = []

    def kept(self, name: str) -> dict[str, Tensor]:
        """This rank's state of a parameter: ``step``, ``exp_avg`` and ``exp_avg_sq``."""
        state: dict[str, Tensor] = self.adamw.state[self.owned[name]]
        return state

    def whole(self, name: str, kind: str) -> Tensor:
        """The state of one kind for a whole parameter, gathered from all ranks."""
        kept = self.kept(name)[kind]
        rows = name in self.tables and kept.ndim
        return self.ranks.launch_gather(kept).wait() if rows else kept

    def take(self, name: str, kind: str, whole: Tensor) -> None:
        """Keep this rank's part of `whole`, the state of one kind for a whole parameter."""
        rows = name in self.tables and whole.ndim
        self.kept(name)[kind].copy_(whole[self.tables[name].rows] if rows else whole)

    @torch.no_grad()
    def _decay_cautiously(self, tensors: Sequence[Tensor], amount: float) -> None:
        """Decay by the sign of the update, which is the moment's: AdamW divides by a positive."""
        weights = [tensor for tensor in tensors if tensor.grad is not None]
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        moments = [self.adamw.state[weight]["exp_avg"] for weight in weights]
        updates = torch._foreach_lerp(moments, gradients, 1 - self.config.adam_beta1)
        decay_cautiously(weights, updates, amount, strict=True)


def _shared(parameter: nn.Parameter, ranks: Ranks) -> bool:
    large = parameter.ndim == 2 and parameter.numel() >= SHARED_NUMBERS
    return ranks.world > 1 and large and len(parameter) % ranks.world == 0
