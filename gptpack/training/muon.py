"""Muon: momentum whose matrices are orthogonalised before each update.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/

Shape legend: N = matrices of equal shape, R = rows, C = columns.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Quintic coefficients that push singular values towards 1 fast (Jordan et al. 2024)."""


def orthogonalize(gradients: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Approximate ``U V^T`` of each ``U S V^T`` in `gradients` ``[N, R, C]``, in `dtype`.

    Newton-Schulz iterations X <- a X + (b A + c A^2) X with A = X X^T, on the shorter side.
    """
    a, b, c = NEWTON_SCHULZ
    x = gradients.to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled by ``sqrt(max(1, R / C))``.

    Matrices of one shape go through Newton-Schulz as one batch. Weight decay is decoupled:
    weights shrink by ``lr * weight_decay`` first. On CUDA the iterations run in bfloat16.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        momentum: float,
        steps: int = 5,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(matrices, defaults)
        self.steps = steps
        self.orthogonalize: Callable[[Tensor, int, torch.dtype], Tensor] = orthogonalize

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes.setdefault(matrix.shape, []).append(matrix)
            for matrices in shapes.values():
                self._update(matrices, group)

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        buffers = [self.state[matrix]["momentum"] for matrix in matrices]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        nesterov = torch._foreach_add(gradients, buffers, alpha=group["momentum"])
        cuda = matrices[0].device.type == "cuda"
        dtype = torch.bfloat16 if cuda else torch.float32
        updates = self.orthogonalize(torch.stack(list(nesterov)), self.steps, dtype).float()
        rows, columns = matrices[0].shape
        if group["weight_decay"]:
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        scale = -group["lr"] * max(1.0, rows / columns) ** 0.5
        torch._foreach_add_(matrices, list(updates.unbind()), alpha=scale)
