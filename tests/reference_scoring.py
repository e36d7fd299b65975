"""The slow twin of gptpack/evaluation: one target at a time, nothing after it in sight.

Also the toy model and byte table that the tests of evaluation share.
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptpack.data.accounting import PieceBytes


class ToyModel(nn.Module):
    """Predicts from the running mean of the embeddings so far: causal, and cheap."""

    def __init__(
        self, vocab: int = 32, *, width: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Parameter(torch.randn(vocab, width, generator=generator).to(dtype))
        self.head = nn.Parameter(torch.randn(vocab, width, generator=generator).to(dtype))
        self.modes: list[bool] = []
        self.shapes: list[tuple[int, ...]] = []

    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.modes.append(self.training)
        self.shapes.append(tuple(inputs.shape))
        losses = F.cross_entropy(
            self.logits(self.hidden(inputs, last=targets.shape[1])).flatten(0, 1),
            targets.flatten(),
            reduction="none",
        )
        return losses.view(targets.shape)

    def hidden(self, inputs: Tensor, *, last: int | None = None) -> Tensor:
        x = self.embed[inputs]
        counts = torch.arange(1, inputs.shape[1] + 1, dtype=x.dtype, device=x.device)
        mean = x.cumsum(dim=1) / counts[:, None]
        return mean if last is None else mean[:, -last:]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.head.T


def toy_bytes(vocab: int = 32) -> PieceBytes:
    """Token t stands for ``t mod 5`` bytes, every third begins with a space, 0 is a boundary."""
    ids = np.arange(vocab, dtype=np.int32)
    return PieceBytes(base=ids % 5, leading_space=ids % 3 == 2, boundary=ids == 0)


def slow_context(target: int, context: int, stride: int) -> int:
    """Tokens that target `target` may see: slide one window along until it scores the target."""
    start, scored_until = 0, context
    while target >= scored_until:
        start += stride
        scored_until += stride
    return target - start + 1


def slow_losses(
    model: nn.Module, tokens: np.ndarray, *, targets: int, context: int, stride: int
) -> np.ndarray:
    """Nats of each of the first `targets` targets, each from its own forward pass, float64."""
    losses = []
    for target in range(targets):
        seen = slow_context(target, context, stride)
        window = torch.from_numpy(tokens[target + 1 - seen : target + 2].astype(np.int64))
        with torch.no_grad():
            losses.append(model.token_losses(window[None, :-1], window[None, 1:])[0, -1].item())
    return np.array(losses, dtype=np.float64)


def slow_bytes(table: PieceBytes, tokens: np.ndarray, targets: int) -> int:
    """Bytes of the first `targets` targets, one by one."""
    total = 0
    for previous, target in pairwise(tokens[: targets + 1].tolist()):
        total += int(table.base[target])
        if table.leading_space[target] and not table.boundary[previous]:
            total += 1
    return total
