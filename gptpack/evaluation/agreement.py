"""A model, a reference and a text -> how far the model's predictions are from the reference's.

The divergence of each position is ``KL(reference || model)`` over the whole vocabulary, in nats.
Beside it stands a noise floor: that of the reference run again with the output of each of its
layers rounded to bfloat16, which is what a change of precision alone does.

Shape legend: B = windows, T = positions, V = vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gptpack.data.shards import Tokens
from gptpack.errors import ConfigError
from gptpack.evaluation.forward import batch_tokens_for
from gptpack.evaluation.scorer import evaluating
from gptpack.evaluation.windows import Plan
from gptpack.families.language_model import LanguageModel, most_logits
from gptpack.progress import Progress, silent

Divergences = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Divergence from a reference over all positions of plain windows, in nats."""

    reference: str
    """Path of the reference."""
    positions: int
    kl_mean: float
    kl_median: float
    kl_p99: float
    """99th percentile of the positions' divergences."""
    same_top: float
    """Share of positions whose likeliest token is the reference's."""
    noise_kl_mean: float
    """Mean divergence of the reference from itself with layers rounded to bfloat16."""
    noise_same_top: float

    def to_dict(self) -> dict[str, Any]:
        """The figures for JSON."""
        return asdict(self)


def agreement(
    model: LanguageModel,
    reference: LanguageModel,
    tokens: Tokens,
    plan: Plan,
    *,
    name: str,
    batch_tokens: int = 0,
    progress: Progress = silent,
) -> Agreement:
    """Compare the predictions of two models, on one device, for the targets of a plain `plan`.

    Raises:
        ConfigError: the vocabularies differ.
    """
    if model.config.vocab != reference.config.vocab:
        raise ConfigError(
            f"--against {name}: a vocabulary of {reference.config.vocab:,}, needed that of the "
            f"file, {model.config.vocab:,}"
        )
    kl: list[Divergences] = []
    noise: list[Divergences] = []
    same = noise_same = 0
    stream = torch.from_numpy(np.asarray(tokens[: plan.targets]).astype(np.int64))
    most = min(
        batch_tokens_for(model.device, batch_tokens),
        most_logits(model.device) // (4 * model.config.vocab),
    )
    rows = max(1, most // plan.context)
    with evaluating(model), evaluating(reference), torch.inference_mode():
        for inputs in _batches(stream, plan.context, rows):
            # a last window may be shorter than the others
            inputs_BT = model.window(inputs.to(model.device))
            target = reference.predictions(inputs_BT).log_softmax(-1)
            divergence, agrees = _compared(target, model.predictions(inputs_BT))
            kl.append(divergence)
            same += agrees
            with rounded(reference):
                divergence, agrees = _compared(target, reference.predictions(inputs_BT))
            noise.append(divergence)
            noise_same += agrees
            progress("compare with the reference", sum(map(len, kl)), plan.targets)
    each, floor = np.concatenate(kl), np.concatenate(noise)
    return Agreement(
        reference=name,
        positions=len(each),
        kl_mean=float(each.mean(dtype=np.float64)),
        kl_median=float(np.median(each)),
        kl_p99=float(np.quantile(each, 0.99)),
        same_top=same / len(each),
        noise_kl_mean=float(floor.mean(dtype=np.float64)),
        noise_same_top=noise_same / len(each),
    )


@contextmanager
def rounded(model: LanguageModel) -> Iterator[None]:
    """Inside, the output of each linear layer and embedding is rounded to bfloat16."""

    def round_output(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output.to(torch.bfloat16).to(output.dtype)

    modules: Mapping[str, nn.Module] = {
        **{name: layer.module for name, layer in model.layers().items()},
        **model.lookups(),
    }
    with ExitStack() as hooks:
        for module in modules.values():
            hooks.callback(module.register_forward_hook(round_output).remove)
        yield


def _batches(stream_N: Tensor, context: int, rows: int) -> Iterator[Tensor]:
    """Windows ``[B, T]`` of a stream, several of whole length at once, the last one as it is."""
    whole = len(stream_N) // context
    yield from torch.split(stream_N[: whole * context].view(whole, context), rows) if whole else ()
    if len(rest := stream_N[whole * context :]):
        yield rest[None]


def _compared(target_BTV: Tensor, logits_BTV: Tensor) -> tuple[Divergences, int]:
    """``KL(target || softmax(logits))`` of each position, and how many likeliest tokens agree."""
    found_BTV = logits_BTV.log_softmax(-1)
    divergence_BT = (target_BTV.exp() * (target_BTV - found_BTV)).sum(-1).clamp(min=0)
    agrees = int((target_BTV.argmax(-1) == found_BTV.argmax(-1)).sum())
    return divergence_BT.flatten().float().cpu().numpy(), agrees
