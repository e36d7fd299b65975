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

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptpack.errors import ConfigError
from gptpack.families.coded import GAIN, put_values
from gptpack.families.language_model import LanguageModel, most_logits, weight_of
from gptpack.progress import Progress, silent
from gptpack.ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """How to train by Adam, with learning rates that fall linearly to 0."""

    steps: int = 250
    """Optimizer steps, where `seconds` is 0."""
    seconds: float = 0.0
    """Seconds that tuning takes, by whose clock the rates fall, in place of a number of steps."""
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


def freeze(
    student: LanguageModel,
    values: Mapping[str, Tensor],
    offsets: Mapping[str, Tensor] | None = None,
) -> None:
    """Put coded values ``[R, C]`` in place of the named weights; a gain per row stays trainable.

    Args:
        offsets: by name, what of the values are offsets of the columns ``[C]``; no gain scales it.
    """
    for name, value in values.items():
        weight = weight_of(student.get_submodule(name.removesuffix(".weight")))
        sharing = [m for m in student.modules() if m._parameters.get("weight") is weight]
        put_values(sharing, value.to(weight), (offsets or {}).get(name))


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix or table; else it is a vector, scalar, or a row of each."""
    return name.endswith(".weight") and parameter.ndim > 1


def gain_name(name: str) -> str:
    """Name of the parameter that holds the gains of a frozen weight."""
    return f"{name.removesuffix('.weight')}.{GAIN}"


def gains(student: LanguageModel) -> dict[str, Tensor]:
    """The trained gains ``[R]`` by the name of their frozen weight, on the CPU."""
    return {
        f"{name.removesuffix(GAIN)}weight": value.detach().cpu()
        for name, value in student.named_parameters()
        if name.endswith(f".{GAIN}")
    }


def floats(student: LanguageModel) -> dict[str, Tensor]:
    """The tensors of `student` that are not frozen, by their name in the checkpoint, on the CPU."""
    return {
        name: value.detach().cpu()
        for name, value in student.state_dict().items()
        if not name.endswith(f".{GAIN}")
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
    compiler: Callable[..., Any] | None = None,
) -> Tuned:
    """Train the student's floats in place.

    Args:
        windows: training tokens ``[N, T]`` (int64), taken in order, again and again.
        fixed: names of parameters that must not move.
        compiler: `torch.compile` or a test's stand-in; None compiles on CUDA alone.
    """
    device = student.device
    if compiler is None and device.type == "cuda":
        compiler = torch.compile
    batch = max(1, config.tokens // windows.shape[1])
    share = ranks.share(batch)
    most = max(1, most_logits(device) // (student.config.vocab * windows.shape[1]))
    # parts as even as can be, so that compiled layers see one size where there is one
    at_once = math.ceil(max(1, len(share)) / max(1, math.ceil(len(share) / most)))
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
    whole = config.seconds or config.steps
    start = time.perf_counter()
    with (
        student.compiled_predictions(compiler) as learned,
        teacher.compiled_predictions(compiler) as taught,
    ):
        loss_of = compiler(_loss, dynamic=False) if compiler is not None else _loss
        for step in itertools.count():
            # all ranks go by rank 0's clock, so that they make the same steps
            now = ranks.first(time.perf_counter() - start) if config.seconds else step
            if now >= whole:
                break
            done = now / whole
            for group in adam.param_groups:
                rise = min(1.0, (step + 1) / max(1, config.warmup))
                group["lr"] = group["base"] * rise * (1 - done)
            rows = (step * batch + torch.arange(share.start, share.stop)) % len(windows)
            total = torch.zeros((), device=device)
            for part in torch.split(rows, at_once):
                tokens = windows[part].to(device)
                guide = None
                if config.labels < 1:
                    with torch.no_grad():
                        guide = taught(tokens)
                loss = loss_of(learned(tokens), guide, tokens, config.labels)
                loss = loss / (batch * tokens.shape[1])
                loss.backward()
                total += loss.detach()
            ranks.sum([*(p.grad for p in student.parameters() if p.grad is not None), total])
            adam.step()
            adam.zero_grad(set_to_none=True)
            losses.append(total)
            if config.seconds and device.type == "cuda":
                torch.cuda.synchronize()  # otherwise the clock would time launches
            progress(phase, now if config.seconds else step + 1, whole)
    recent = losses[-max(1, len(losses) // 10) :]
    mean = float(torch.stack(recent).mean()) if recent else float("nan")
    return Tuned(len(losses), mean)


def _loss(logits_BTV: Tensor, guide_BTV: Tensor | None, tokens_BT: Tensor, labels: float) -> Tensor:
    """Sum over positions of the KL to the teacher and, with the weight `labels`, the cross entropy.

    The teacher's logits `guide_BTV` may be None where that weight is 1.
    """
    learned_BTV = F.log_softmax(logits_BTV, -1)
    loss = logits_BTV.new_zeros(())
    if guide_BTV is not None:
        target = F.log_softmax(guide_BTV, -1)
        divergence = F.kl_div(
            learned_BTV.flatten(0, 1), target.flatten(0, 1), log_target=True, reduction="sum"
        )
        loss = loss + (1 - labels) * divergence
    if labels > 0:
        # the last position of a window has no next token in it
        known = learned_BTV[:, :-1].flatten(0, 1)
        loss = loss + labels * F.nll_loss(known, tokens_BT[:, 1:].flatten(), reduction="sum")
    return loss
