"""A student with frozen codes and its teacher -> a student whose floats make up for the codes.

Row scales, gains, norms and matrices that are not coded yet move so that the student's next-token
distributions come close to the teacher's, on training text only. QuIP#
(https://arxiv.org/abs/2402.04396) and EfficientQAT (https://arxiv.org/abs/2407.11062) win back a
large part of what rounding costs like this. Codes stay the same, as scales are stored anyway.

The teacher is not the truth: one that was averaged over its last steps is less sure than the text
warrants, and rounding makes the student less sure still. The loss may therefore have a part that is
the cross entropy of the text itself (`TuneConfig.labels`).

Shape legend: B = sequences, T = positions, R = outputs, C = inputs, V = vocabulary.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gptpack.errors import ConfigError
from gptpack.families.language_model import LanguageModel, most_logits
from gptpack.progress import Progress, silent
from gptpack.ranks import Ranks

GAINS = "parametrizations.weight.original"
"""Name of a parametrized weight's parameter, below its module, as torch gives it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """How to train by Adam, with learning rates that fall linearly to 0."""

    steps: int = 250
    """Most optimizer steps; there are fewer if `seconds` are over before."""
    seconds: float = 0.0
    """Most seconds; 0 has no limit. Rates fall with the clock or the steps, whichever is ahead."""
    tokens: int = 16384
    """Tokens of a step over all ranks."""
    scale_lr: float = 2e-3
    """Learning rate of row scales (relative) and of all vectors and scalars."""
    matrix_lr: float = 2e-4
    """Learning rate of matrices and embeddings that are not coded."""
    warmup: int = 10
    """Steps at first in which the rates rise, as Adam's first estimates are noise."""
    betas: tuple[float, float] = (0.9, 0.99)
    labels: float = 0.0
    """Weight of cross entropy on the text; the rest is the KL divergence to the teacher."""

    def __post_init__(self) -> None:
        if not 0 <= self.labels <= 1:
            raise ConfigError(f"labels={self.labels} is a share; it must lie in 0..1")


class Tuned(NamedTuple):
    """Steps and loss of a finished training."""

    steps: int
    loss_nats: float
    """Mean loss per token over the last tenth of the steps; NaN without any."""


class RowGains(nn.Module):
    """A parametrization of a weight: a frozen ``[R, C]`` base times a trained gain ``[R]``."""

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        self.base: Tensor
        self.register_buffer("base", base)

    def forward(self, gain: Tensor) -> Tensor:
        return self.base * gain.unsqueeze(1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The gains with which the parametrization gives `weight`, the base: ones."""
        return weight.new_ones(weight.shape[0])


def freeze(student: LanguageModel, values: Mapping[str, Tensor]) -> None:
    """Put coded values ``[R, C]`` in place of the named weights; a gain per row stays trainable."""
    for name, value in values.items():
        module = student.get_submodule(name.removesuffix(".weight"))
        # unsafe: the gains that stand for the weight have another shape than it
        parametrize.register_parametrization(
            module, "weight", RowGains(value.to(student.device)), unsafe=True
        )


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix or table; else it is a vector, scalar, or a row of each."""
    return name.endswith(".weight") and parameter.ndim > 1


def gain_name(name: str) -> str:
    """Name of the parameter that holds the gains of a frozen weight."""
    return f"{name.removesuffix('.weight')}.{GAINS}"


def gains(student: LanguageModel) -> dict[str, Tensor]:
    """The trained gains ``[R]`` by the name of their frozen weight, on the CPU."""
    return {
        f"{name.removesuffix(GAINS)}weight": value.detach().cpu()
        for name, value in student.named_parameters()
        if name.endswith(f".{GAINS}")
    }


def floats(student: LanguageModel) -> dict[str, Tensor]:
    """The tensors of `student` that are not frozen, by their name in the checkpoint, on the CPU."""
    return {
        name: value.detach().cpu()
        for name, value in student.state_dict().items()
        if ".parametrizations." not in name
    }


def tune(
    student: LanguageModel,
    teacher: LanguageModel,
    windows: Tensor,
    config: TuneConfig,
    ranks: Ranks,
    *,
    fixed: tuple[str, ...] = (),
    progress: Progress = silent,
    phase: str = "tune",
) -> Tuned:
    """Train the student's floats in place.

    Args:
        windows: training tokens ``[N, T]`` (int64), taken in order, again and again.
        fixed: names of parameters that must not move.
    """
    device = student.device
    batch = max(1, config.tokens // windows.shape[1])
    share = ranks.share(batch)
    at_once = max(1, most_logits(device) // (student.config.vocab * windows.shape[1]))
    vectors: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name not in fixed)
        if name not in fixed:
            (matrices if is_matrix(name, parameter) else vectors).append(parameter)
    groups = [
        {"params": vectors, "base": config.scale_lr},
        {"params": matrices, "base": config.matrix_lr},
    ]
    adam = torch.optim.Adam(
        [{**group, "lr": group["base"]} for group in groups if group["params"]],
        betas=config.betas,
        fused=device.type == "cuda",
    )
    losses: list[Tensor] = []
    start = time.perf_counter()
    for step in range(config.steps):
        # all ranks go by rank 0's clock, so that they make the same steps
        spent = ranks.first(time.perf_counter() - start) if config.seconds else 0.0
        done = max(step / config.steps, spent / config.seconds if config.seconds else 0.0)
        if done >= 1:
            break
        for group in adam.param_groups:
            rise = min(1.0, (step + 1) / max(1, config.warmup))
            group["lr"] = group["base"] * rise * (1 - done)
        rows = (step * batch + torch.arange(share.start, share.stop)) % len(windows)
        total = torch.zeros((), device=device)
        for part in torch.split(rows, at_once):
            tokens = windows[part].to(device)
            logits = F.log_softmax(student.predictions(tokens), -1)
            loss = _loss(logits, tokens, teacher, config.labels) / (batch * tokens.shape[1])
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        ranks.sum([*(p.grad for p in student.parameters() if p.grad is not None), total])
        adam.step()
        adam.zero_grad(set_to_none=True)
        losses.append(total)
        if config.seconds and device.type == "cuda":
            torch.cuda.synchronize()  # otherwise the clock would time launches
        progress(phase, step + 1, config.steps)
    recent = losses[-max(1, len(losses) // 10) :]
    mean = float(torch.stack(recent).mean()) if recent else float("nan")
    return Tuned(len(losses), mean)


def _loss(logits_BTV: Tensor, tokens_BT: Tensor, teacher: LanguageModel, labels: float) -> Tensor:
    """Sum over positions of the KL to the teacher and, with weight `labels`, the cross entropy."""
    loss = logits_BTV.new_zeros(())
    if labels < 1:
        with torch.no_grad():
            target = F.log_softmax(teacher.predictions(tokens_BT), -1)
        divergence = F.kl_div(
            logits_BTV.flatten(0, 1), target.flatten(0, 1), log_target=True, reduction="sum"
        )
        loss = loss + (1 - labels) * divergence
    if labels > 0:
        # the last position of a window has no next token in it
        known = logits_BTV[:, :-1].flatten(0, 1)
        loss = loss + labels * F.nll_loss(known, tokens_BT[:, 1:].flatten(), reduction="sum")
    return loss
