"""Training what the packer leaves in floating point against the model as it was before packing.

Codes are frozen; row scales, gains, norms and whatever matrices are not coded yet move so that the
student's next-token distributions come close to the teacher's, on training text only. Known from
QuIP# (https://arxiv.org/abs/2402.04396) and EfficientQAT (https://arxiv.org/abs/2407.11062) to win
back a large part of what rounding costs; it needs no re-coding because scales are stored anyway.

The teacher is not the truth: one that was averaged over its last steps is less sure than the text
warrants, and what rounding adds makes it less sure still. A share of the loss may therefore be the
text's own next tokens (`TuneConfig.labels`).

Shape legend: B = sequences, T = positions, R = outputs, C = inputs, V = vocabulary.
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptpack.errors import ConfigError
from gptpack.families.golf.gpt import GPT
from gptpack.families.golf.layers import Embedding
from gptpack.progress import Progress, silent
from gptpack.ranks import Ranks
from gptpack.training.schedules import share_done


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """Adam, its learning rates falling linearly to 0."""

    steps: int = 250
    """At most; fewer where `seconds` are over before."""
    seconds: float = 0.0
    """The rates fall with the clock or the steps, whichever is ahead; 0 has no clock."""
    tokens: int = 16384
    """Tokens of a step over all ranks."""
    scale_lr: float = 2e-3
    """Of row scales (relative) and of all vectors and scalars."""
    matrix_lr: float = 2e-4
    """Of matrices and embeddings that are not coded."""
    warmup: int = 10
    """Steps over which the rates rise first: Adam's first estimates are noise."""
    betas: tuple[float, float] = (0.9, 0.99)
    labels: float = 0.0
    """Share of the loss that is the text's cross entropy; the rest is the KL to the teacher."""

    def __post_init__(self) -> None:
        if not 0 <= self.labels <= 1:
            raise ConfigError(f"labels={self.labels} is a share; it must lie in 0..1")


class Tuned(NamedTuple):
    """What tuning came to."""

    steps: int
    loss_nats: float
    """Mean per token over the last tenth of the steps; not a number without any."""


class Coded(nn.Module):
    """A weight that is a frozen ``[R, C]`` base times a trained gain per row."""

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        self.base: Tensor
        self.register_buffer("base", base)
        self.gain = nn.Parameter(torch.ones(base.shape[0], device=base.device))

    @property
    def weight(self) -> Tensor:
        return self.base * self.gain.unsqueeze(1)


class CodedLinear(Coded):
    """A linear layer with a coded weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class CodedEmbedding(Coded):
    """An embedding table with coded rows."""

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(ids, self.weight).to(dtype)


def freeze(student: GPT, values: Mapping[str, Tensor]) -> None:
    """Put coded values ``[R, C]`` in place of the named weights; a gain per row stays trainable."""
    for name, value in values.items():
        path = name.removesuffix(".weight")
        parent_path, _, attribute = path.rpartition(".")
        parent = student.get_submodule(parent_path)
        device = student.tok_emb.weight.device
        embedding = isinstance(getattr(parent, attribute), Embedding)
        coded = CodedEmbedding if embedding else CodedLinear
        setattr(parent, attribute, coded(value.to(device)))


def gains(student: GPT) -> dict[str, Tensor]:
    """The trained gain ``[R]`` of each coded weight, on the CPU."""
    return {
        f"{name}.weight": module.gain.detach().cpu()
        for name, module in student.named_modules()
        if isinstance(module, Coded)
    }


def floats(student: GPT) -> dict[str, Tensor]:
    """The tensors of `student` that are not coded, by their name in the checkpoint, on the CPU."""
    return {
        name: value.detach().cpu()
        for name, value in student.state_dict().items()
        if not name.endswith((".base", ".gain"))
    }


def copy_of(model: GPT) -> GPT:
    """A student that starts as `model`."""
    return copy.deepcopy(model)


def tune(
    student: GPT,
    teacher: GPT,
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
        windows: training tokens ``[N, T]`` (int64), taken in order, round and round.
        fixed: names of parameters that must not move.
    """
    device = student.tok_emb.weight.device
    batch = max(1, config.tokens // windows.shape[1])
    share = ranks.share(batch)
    vectors: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name not in fixed)
        if name not in fixed:
            (matrices if name.endswith(".weight") else vectors).append(parameter)
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
        # rank 0's clock is everybody's, so that all make the same steps
        spent = ranks.first(time.perf_counter() - start) if config.seconds else 0.0
        done = share_done(step, steps=config.steps, elapsed=spent, seconds=config.seconds)
        if done >= 1:
            break
        for group in adam.param_groups:
            rise = min(1.0, (step + 1) / max(1, config.warmup))
            group["lr"] = group["base"] * rise * (1 - done)
        rows = (step * batch + torch.arange(share.start, share.stop)) % len(windows)
        tokens = windows[rows].to(device)
        logits = F.log_softmax(student.logits(student.hidden(tokens)), -1)
        loss = _loss(logits, tokens, teacher, config.labels) / (batch * tokens.shape[1])
        loss.backward()  # type: ignore[no-untyped-call]
        total = loss.detach().clone()
        ranks.sum([*(p.grad for p in student.parameters() if p.grad is not None), total])
        adam.step()
        adam.zero_grad(set_to_none=True)
        losses.append(total)
        if config.seconds and device.type == "cuda":
            torch.cuda.synchronize()  # else the clock would time launches
        progress(phase, step + 1, config.steps)
    recent = losses[-max(1, len(losses) // 10) :]
    mean = float(torch.stack(recent).mean()) if recent else float("nan")
    return Tuned(len(losses), mean)


def _loss(logits_BTV: Tensor, tokens_BT: Tensor, teacher: GPT, labels: float) -> Tensor:
    """Sums over positions: the KL to the teacher, and the text's cross entropy by its share."""
    loss = logits_BTV.new_zeros(())
    if labels < 1:
        with torch.no_grad():
            target = F.log_softmax(teacher.logits(teacher.hidden(tokens_BT)), -1)
        divergence = F.kl_div(
            logits_BTV.flatten(0, 1), target.flatten(0, 1), log_target=True, reduction="sum"
        )
        loss = loss + (1 - labels) * divergence
    if labels > 0:
        # the last position of a window has no next token in it
        known = logits_BTV[:, :-1].flatten(0, 1)
        loss = loss + labels * F.nll_loss(known, tokens_BT[:, 1:].flatten(), reduction="sum")
    return loss
