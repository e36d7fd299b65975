"""Gradients of a model -> its next weights: Muon for the blocks' matrices, Adam for all others.

On several ranks a step is, in this order: launch the sums of all gradients; Adam, while the
matrices' gradients are on their way; orthogonalise the largest matrices first, while what is done
is gathered; apply. docs/decisions/optimizers-over-ranks.md says why.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gptpack.errors import CheckpointError
from gptpack.families.golf.gpt import GPT
from gptpack.ranks import Ranks
from gptpack.training.adam import Adam
from gptpack.training.muon import Muon
from gptpack.training.recipe import OptimizerConfig

EMBEDDINGS = ("tok_emb.weight", "bigram.embed.weight", "ve_shared.embed.weight")
AHEAD = "ahead"
"""Name of the matrix that training alone has (families/golf/ahead.py)."""
State = dict[str, dict[str, Tensor]]
"""State of whole parameters by name and kind, such as ``exp_avg``, on the CPU."""


class Optimizers:
    """Muon and Adam as one optimizer, whose state is the same for any number of ranks."""

    def __init__(
        self, model: GPT, config: OptimizerConfig, ranks: Ranks, *, compiled: bool
    ) -> None:
        self.config, self.ranks = config, ranks
        self.parameters = dict(model.named_parameters())
        if model.ahead is not None:
            self.parameters[AHEAD] = model.ahead.matrix
        matrices, embeddings, head, scalars = _roles(self.parameters)
        embed_lr = config.embed_lr if model.lm_head is None else config.untied_embed_lr
        self.muon = Muon(matrices, config, ranks, compiled=compiled)
        groups = [
            (embeddings, embed_lr),
            (head, config.head_lr),
            (scalars, config.scalar_lr),
        ]
        self.adam = Adam(groups, config, ranks)

    def step(
        self, *, lr_multiplier: float, momentum: float, weight_decay_multiplier: float = 1.0
    ) -> None:
        """Update the parameters from the sum of all ranks' gradients, and clear those."""
        config = self.config
        if config.grad_clip and self.ranks.world == 1:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), config.grad_clip)
        # collectives run in the order in which they are launched: the small ones must not queue
        self.adam.launch_gradients()
        self.muon.launch_gradients()
        if config.grad_clip and self.ranks.world > 1:
            self._clip(config.grad_clip)
        self.adam.step(
            lr_multiplier=lr_multiplier,
            weight_decay=config.adam_weight_decay * weight_decay_multiplier,
        )
        self.muon.step(
            lr=config.matrix_lr * lr_multiplier,
            momentum=momentum,
            weight_decay=config.matrix_weight_decay * weight_decay_multiplier,
        )
        self.adam.finish()

    @torch.no_grad()
    def _clip(self, limit: float) -> None:
        """Scale all gradients so that their norm over all parameters is at most `limit`."""
        alike, rows = self.adam.gradients()
        mine = [*rows, *self.muon.gradients()]
        square = torch.nn.utils.get_total_norm(mine).square()
        self.ranks.sum([square])
        norm = (square + torch.nn.utils.get_total_norm(alike).square()).sqrt()
        torch._foreach_mul_([*alike, *mine], (limit / (norm + 1e-6)).clamp(max=1.0))

    def tensors(self) -> list[Tensor]:
        """Every tensor of the optimizer state that this rank holds."""
        kept = [bank.state for bank in self.muon.banks]
        kept += [self.adam.kept(name) for name in self.adam.owned]
        return [tensor for state in kept for tensor in state.values()]

    def state(self) -> State:
        """The state of all parameters, the same for any number of ranks; empty except on rank 0.

        Every rank calls this.
        """
        found: State = {name: {} for name in self.parameters}
        for bank in self.muon.banks:
            for kind in bank.state:
                whole = bank.whole(kind)
                if self.ranks.main:
                    for name, tensor in zip(bank.names, whole.cpu(), strict=True):
                        found[name][kind] = tensor.clone()
        for name in self.adam.owned:
            for kind in self.adam.kept(name):
                whole = self.adam.whole(name, kind)
                if self.ranks.main:
                    found[name][kind] = whole.cpu()
        return found if self.ranks.main else {}

    def load_state(self, state: Any) -> None:
        """Take up a state that `state` returned.

        Raises:
            CheckpointError: the state belongs to another model or to other settings.
        """
        wanted: dict[str, dict[str, tuple[int, ...]]] = {}
        for bank in self.muon.banks:
            for name in bank.names:
                wanted[name] = {kind: tuple(t.shape[1:]) for kind, t in bank.state.items()}
        for name in self.adam.owned:
            shape = tuple(self.parameters[name].shape)
            wanted[name] = {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
        try:
            found = {n: {k: tuple(t.shape) for k, t in kinds.items()} for n, kinds in state.items()}
        except AttributeError:
            found = {}
        if different := [name for name in wanted if found.get(name) != wanted[name]]:
            name = different[0]
            raise CheckpointError(
                f"optimizer state of {name} is {found.get(name, 'missing')}, needed {wanted[name]};"
                " its weights can be packed, but training cannot go on"
            )
        for bank in self.muon.banks:
            for kind in bank.state:
                bank.take(kind, [state[name][kind] for name in bank.names])
        for name in self.adam.owned:
            for kind in self.adam.kept(name):
                self.adam.take(name, kind, state[name][kind])


def _roles(parameters: Mapping[str, nn.Parameter]) -> list[dict[str, nn.Parameter]]:
    """Parameters in four groups: matrices of blocks, embeddings, the separate head, the others."""
    roles: list[dict[str, nn.Parameter]] = [{} for _ in range(4)]
    matrices, embeddings, head, scalars = roles
    for name, parameter in parameters.items():
        if name == AHEAD or (name.startswith("blocks.") and name.endswith(".weight")):
            matrices[name] = parameter
        elif name in EMBEDDINGS or name.startswith("value_tables."):
            embeddings[name] = parameter
        elif name == "lm_head.weight":
            head[name] = parameter
        else:
            scalars[name] = parameter
    return roles
