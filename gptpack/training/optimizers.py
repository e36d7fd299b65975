"""Which parameter is trained by what: Muon for the blocks' matrices, Adam for all others."""

from collections.abc import Sequence
from typing import Any

import torch

from gptpack.config import OptimizerConfig
from gptpack.model.gpt import GPT
from gptpack.training.muon import Muon


class Optimizers:
    """Muon and Adam as one: a step, a learning-rate multiplier, one state."""

    def __init__(self, model: GPT, config: OptimizerConfig, *, compiled: bool) -> None:
        self.config = config
        matrices, embeddings, head, scalars = _roles(model)
        embed_lr = config.embed_lr if model.lm_head is None else config.untied_embed_lr
        self.muon = Muon(
            matrices,
            lr=config.matrix_lr,
            momentum=config.muon_momentum,
            steps=config.muon_steps,
            weight_decay=config.matrix_weight_decay,
        )
        if compiled:
            self.muon.orthogonalize = torch.compile(
                self.muon.orthogonalize, fullgraph=True, dynamic=False
            )
        groups = [
            {"params": embeddings, "lr": embed_lr},
            {"params": head, "lr": config.head_lr},
            {"params": scalars, "lr": config.scalar_lr},
        ]
        self.adam = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps,
            weight_decay=config.adam_weight_decay,
            fused=matrices[0].device.type == "cuda",
        )
        self.base = [(group["lr"], group["weight_decay"]) for group in self._groups()]

    def _groups(self) -> list[dict[str, Any]]:
        return [*self.muon.param_groups, *self.adam.param_groups]

    def step(
        self, *, lr_multiplier: float, momentum: float, weight_decay_multiplier: float = 1.0
    ) -> None:
        """Update the parameters from their gradients and clear those."""
        for group, (lr, weight_decay) in zip(self._groups(), self.base, strict=True):
            group["lr"] = lr * lr_multiplier
            group["weight_decay"] = weight_decay * weight_decay_multiplier
        for group in self.muon.param_groups:
            group["momentum"] = momentum
        for optimizer in (self.muon, self.adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def _roles(model: GPT) -> tuple[Sequence[torch.nn.Parameter], ...]:
    """Matrices of the blocks, embedding tables, the separate head, and everything else."""
    matrices, embeddings, head, scalars = [], [], [], []
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and name.endswith(".weight"):
            matrices.append(parameter)
        elif name in ("tok_emb.weight", "bigram.embed.weight", "ve_shared.embed.weight"):
            embeddings.append(parameter)
        elif name == "lm_head.weight":
            head.append(parameter)
        else:
            scalars.append(parameter)
    return matrices, embeddings, head, scalars
