"""A text of documents -> its score with low-rank additions that learn from each document's start.

Every document gets factors A and B of its own for some matrices, ``W x + scale * B (A x)``, with B
zero at its start. Its windows never reach beyond it. Chunk after chunk is scored with the factors
as they are, then trained on. Nothing passes from one document to another, so documents of similar
length are worked on side by side; which ones are together does not change any score. The method is
that of parameter-golf #77 and #1530; all documents' factors start with the same random numbers.

The model is not changed: forward hooks add to what its linear layers give. A linear layer is a
module with a two-dimensional `weight` ``[R, C]`` that maps ``[B, T, C]`` to ``[B, T, R]``.

Shape legend:  D = documents,  T = positions,  S = the last positions, those with targets,
C = inputs of a layer,  R = its outputs,  K = rank
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from gptpack.errors import ConfigError
from gptpack.evaluation.forward import Forward, batch_tokens_for
from gptpack.evaluation.reading import Reading
from gptpack.evaluation.result import Score
from gptpack.evaluation.scorer import Scorer
from gptpack.evaluation.settings import LoraSettings, brief, describe
from gptpack.evaluation.windows import Plan

HIDDEN = "hidden"
"""The target that stands for the state which the output head reads."""


def check_lora(model: nn.Module, settings: LoraSettings, context: int) -> None:
    """Check that `settings` fit the model.

    Raises:
        ConfigError: a chunk or the rank is too large, or the model has no such layers.
    """
    if settings.chunk > context:
        raise ConfigError(f"chunk={settings.chunk:,} is longer than context={context:,}")
    layers = find_layers(model, settings.targets.split("+"))
    if settings.rank > (most := max(min(shape) for shape in layers.values())):
        raise ConfigError(
            f"rank={settings.rank} is no low rank: the matrices of {settings.targets} have {most} "
            "rows or columns at most"
        )


def score_with_lora(forward: Forward, reading: Reading, settings: LoraSettings) -> Score:
    """The score of masked documents under a model with factors that learn in each of them.

    The stride is that of the settings. Documents are dealt to the ranks of torch.distributed; each
    adapts on its own.

    Raises:
        ConfigError: documents are not masked; or see `check_lora`.
        LimitError: the loss is not finite, perhaps because the rate is too high.
    """
    if reading.documents is None:
        raise ConfigError("factors per document need masked documents")
    check_lora(forward.model, settings, reading.context)
    plan = reading.plan(stride=settings.chunk, head=settings.chunk)
    scorer = reading.scorer(forward, plan, lanes="documents")
    model = forward.model
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    updates = 0
    adapted_before = forward.clock.seconds("adapt")
    try:
        groups = alike_in_length(plan, _documents_at_once(forward, reading, settings))
        for group in groups[scorer.ranks.rank :: scorer.ranks.world]:
            factors = Factors(model, settings, len(group), forward.device)
            done = _adapt(scorer, factors, group, settings)
            updates += factors.updates
            if not done:
                break
        forward.synchronize()
    finally:
        for parameter, grad in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(grad)
    details = {
        "settings": describe(settings),
        "adapted_documents": len(plan.spans),
        "updates": updates,
        "seconds_adapting": forward.clock.seconds("adapt") - adapted_before,
    }
    return reading.finish(scorer, brief(settings), details)


def _documents_at_once(forward: Forward, reading: Reading, settings: LoraSettings) -> int:
    """Documents that are worked on together: at most half the tokens of a batch, because training
    keeps what scoring throws away."""
    tokens = batch_tokens_for(forward.device, reading.batch_tokens)
    return max(1, min(settings.documents, tokens // (2 * reading.context)))


def alike_in_length(plan: Plan, documents: int) -> list[list[int]]:
    """Groups of at most so many spans of similar length; the longest come first."""
    lengths = [len(plan.windows_of(span)) for span in range(len(plan.spans))]
    order = sorted(range(len(lengths)), key=lambda span: -lengths[span])
    return [order[start : start + documents] for start in range(0, len(order), documents)]


def _adapt(
    scorer: Scorer, factors: "Factors", group: Sequence[int], settings: LoraSettings
) -> bool:
    """Score and train the documents of a group to their ends; False if the time was up."""
    plan, forward = scorer.plan, scorer.forward
    windows = [plan.windows_of(span) for span in group]
    with factors.attached():
        for step in range(len(windows[0])):
            # The longest come first, so those that still have text are the first rows.
            indices = np.array([own[step] for own in windows if step < len(own)])
            factors.rows = len(indices)
            if not scorer.score_rows(indices):
                return False
            factors.check()
            going_on = sum(step + 1 < len(own) for own in windows)
            if not going_on:
                break
            factors.rows = going_on
            with forward.clock.phase("adapt"):
                inputs_DT, targets_DS, exists_DS = scorer.release_rows(indices[:going_on])
                for _ in range(settings.steps):
                    losses_DS = factors.losses(inputs_DT, targets_DS)
                    # Each document's own mean: their sum leaves them independent.
                    weights_DS = exists_DS / exists_DS.sum(dim=1, keepdim=True)
                    factors.learn((losses_DS * weights_DS).sum())
                forward.synchronize()
    return True


class Factors:
    """Factors of some documents, and their optimizer."""

    def __init__(
        self,
        model: nn.Module,
        settings: LoraSettings,
        documents: int,
        device: torch.device,
    ) -> None:
        self.model, self.settings = model, settings
        self.rows = documents
        self.updates = 0
        self._used: set[str] = set()
        generator = torch.Generator().manual_seed(0)
        self.layers = find_layers(model, settings.targets.split("+"))
        self.a: dict[str, nn.Parameter] = {}
        self.b: dict[str, nn.Parameter] = {}
        for name, (outputs, inputs) in self.layers.items():
            bound = 1 / math.sqrt(inputs)
            a_KC = torch.empty(settings.rank, inputs).uniform_(-bound, bound, generator=generator)
            a_DKC = a_KC.to(device).expand(documents, -1, -1).clone()
            self.a[name] = nn.Parameter(a_DKC)
            self.b[name] = nn.Parameter(torch.zeros(documents, outputs, settings.rank).to(device))
        self.optimizer = torch.optim.AdamW(
            [*self.a.values(), *self.b.values()],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.decay,
        )

    def added(self, name: str, x_DTC: Tensor) -> Tensor:
        """``scale * B (A x)``, ``[D, T, R]``, for the first `rows` documents."""
        self._used.add(name)
        a_DKC = self.a[name][: self.rows].to(x_DTC.dtype)
        b_DRK = self.b[name][: self.rows].to(x_DTC.dtype)
        return torch.bmm(torch.bmm(x_DTC, a_DKC.mT), b_DRK.mT) * self.settings.scale

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The model's layers have the factors' additions inside."""
        handles = []

        def hook_of(name: str) -> Any:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
                return output + self.added(name, inputs[0])

            return hook

        modules = dict(self.model.named_modules())
        for name in self.layers:
            if name != HIDDEN:
                handles.append(modules[name].register_forward_hook(hook_of(name)))
        model = cast(Any, self.model)
        if HIDDEN in self.layers:
            plain = model.hidden

            def hidden(tokens: Tensor, **options: Any) -> Tensor:
                state = plain(tokens, **options)
                return state + self.added(HIDDEN, state)

            # Shadows the method until it is deleted again.
            model.hidden = hidden
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            if HIDDEN in self.layers:
                del model.hidden

    def check(self) -> None:
        """Check that the model has used all factors so far.

        Raises:
            ConfigError: it has not used some, because it does not run those layers as modules.
        """
        if idle := sorted(self.layers.keys() - self._used):
            raise ConfigError(f"{', '.join(idle)}: not run as a layer of its own; no factors fit")

    def losses(self, inputs_DT: Tensor, targets_DS: Tensor) -> Tensor:
        """Nats ``[D, S]`` with gradients to the factors."""
        with torch.enable_grad():
            return cast(Any, self.model).token_losses(inputs_DT, targets_DS)

    def learn(self, loss: Tensor) -> None:
        """One step of AdamW."""
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1


def find_layers(model: nn.Module, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each linear layer whose last name is in `targets`, and of `HIDDEN`.

    Raises:
        ConfigError: the model has no layer of a target's name.
    """
    found: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if name.rpartition(".")[2] not in targets or "Embedding" in type(module).__name__:
            continue  # an embedding has a matrix too, but is given ids
        if isinstance(weight, Tensor) and weight.ndim == 2:
            found[name] = (weight.shape[0], weight.shape[1])
    seen = {name.rpartition(".")[2] for name in found}
    if HIDDEN in targets:
        width = _hidden_width(model)
        found[HIDDEN] = (width, width)
        seen.add(HIDDEN)
    if missing := [target for target in targets if target not in seen]:
        raise ConfigError(f"the model has no linear layer named {', '.join(missing)}")
    return found


def _hidden_width(model: nn.Module) -> int:
    """Width of the state that the output head reads."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        width: int = cast(Any, model).hidden(token).shape[-1]
        return width
