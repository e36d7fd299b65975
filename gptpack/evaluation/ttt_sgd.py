"""A text -> its score under a model that learns from each chunk of it once that is scored.

The schedule is that of parameter-golf #549 and #1060. One SGD optimizer serves the whole text, and
its rate falls as half a cosine over the chunks. A chunk's own tokens are rows of one context, for
several epochs; the last chunk is only scored. With `reset`, every so many chunks the weights are
the file's again, without momentum, as if the text began there: that undoes drift, and learning.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from gptpack.errors import ConfigError
from gptpack.evaluation.forward import Forward, batch_tokens_for
from gptpack.evaluation.reading import Reading
from gptpack.evaluation.result import Score
from gptpack.evaluation.scorer import Scorer
from gptpack.evaluation.settings import SgdSettings, brief, describe
from gptpack.ranks import Ranks


def check_sgd(model: nn.Module, settings: SgdSettings, context: int) -> None:
    """Check that `settings` fit the model.

    Raises:
        ConfigError: a chunk is shorter than a context, or more blocks are frozen than there are.
    """
    if settings.chunk < context:
        raise ConfigError(f"chunk={settings.chunk:,} holds no row of context={context:,}")
    names = {name.split(".")[1] for name, _ in model.named_parameters() if name[:7] == "blocks."}
    if settings.freeze > len(names):
        raise ConfigError(f"freeze={settings.freeze}, but the model has {len(names)} blocks")


def score_with_sgd(forward: Forward, reading: Reading, settings: SgdSettings) -> Score:
    """The score of a text under a model that learns from the targets that have been scored.

    The model comes back with the weights that it had.

    Raises:
        ConfigError: see `check_sgd`.
        LimitError: the loss is not finite, perhaps because the rate is too high.
    """
    check_sgd(forward.model, settings, reading.context)
    plan = reading.plan()
    scorer = reading.scorer(forward, plan)
    chunks = -(-plan.targets // settings.chunk)
    # A window belongs to the chunk of the first target that it scores.
    windows = plan.select(np.arange(len(plan)))
    firsts = np.searchsorted(windows.first_scored, np.arange(chunks + 1) * settings.chunk)
    adapted_before = forward.clock.seconds("adapt")
    with adapted(forward.model):
        student = Student(forward, settings, plan.context, chunks, reading.batch_tokens)
        for chunk in range(chunks):
            if settings.reset and chunk and chunk % settings.reset == 0:
                student.reset()
            if not scorer.score(np.arange(firsts[chunk], firsts[chunk + 1])):
                break
            last = chunk == chunks - 1
            thrown_away = settings.reset and (chunk + 1) % settings.reset == 0
            if not (last or thrown_away):
                student.learn(scorer, chunk)
        forward.synchronize()
    details = {
        "settings": describe(settings),
        "chunks": chunks,
        "updates": student.updates,
        "resets": student.resets,
        "seconds_adapting": forward.clock.seconds("adapt") - adapted_before,
    }
    return reading.finish(scorer, brief(settings), details)


@contextmanager
def adapted(model: nn.Module) -> Iterator[None]:
    """Weights may change inside; afterwards they are as before."""
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value, grad in zip(model.parameters(), kept, wanted, strict=True):
                parameter.copy_(value)
                parameter.grad = None
                parameter.requires_grad_(grad)


class Student:
    """A model that learns from released tokens, and its optimizer."""

    def __init__(
        self, forward: Forward, settings: SgdSettings, context: int, chunks: int, batch_tokens: int
    ) -> None:
        self.forward, self.settings, self.context, self.chunks = forward, settings, context, chunks
        self.updates = self.resets = 0
        self.parameters = _trainable(forward.model, settings.freeze)
        self.origin = [parameter.detach().clone() for parameter in self.parameters]
        self.micro = max(1, batch_tokens_for(forward.device, batch_tokens) // context)
        per_chunk = settings.chunk // context
        self.compiled = forward.pays(settings.epochs * per_chunk * context * chunks)
        self.shape: torch.Size | None = None
        """Shape of the first batch; batches of another are not compiled."""
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.SGD:
        return torch.optim.SGD(
            self.parameters, lr=self.settings.lr, momentum=self.settings.momentum
        )

    def reset(self) -> None:
        """Take the file's weights again, without momentum."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.origin, strict=True):
                parameter.copy_(value)
        self.optimizer = self._optimizer()
        self.resets += 1

    def learn(self, scorer: Scorer, chunk: int) -> None:
        """Train on the rows of a scored chunk, for all epochs."""
        settings, context = self.settings, self.context
        start = chunk * settings.chunk
        count = min(settings.chunk, scorer.plan.targets - start) // context
        if not count:
            return
        with self.forward.clock.phase("adapt"):
            tokens = scorer.release(start, start + count * context)
            inputs_RT = tokens[:-1].view(count, context)
            targets_RT = tokens[1:].view(count, context)
            rate = settings.lr * cosine(chunk, self.chunks)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            for _ in range(settings.epochs):
                for first in range(0, count, settings.rows):
                    rows = slice(first, first + settings.rows)
                    self._step(inputs_RT[rows], targets_RT[rows], scorer.ranks)
            self.forward.synchronize()

    def _step(self, inputs_RT: Tensor, targets_RT: Tensor, ranks: Ranks) -> None:
        """One SGD step on the mean loss of the rows, which are shared out among the ranks."""
        mine = ranks.share(len(inputs_RT))
        with torch.enable_grad():
            for start in range(mine.start, mine.stop, self.micro):
                rows = slice(start, min(start + self.micro, mine.stop))
                inputs = inputs_RT[rows]
                self.shape = self.shape or inputs.shape
                compiled = self.compiled and inputs.shape == self.shape
                losses = self.forward.losses(inputs, targets_RT[rows], compiled=compiled)
                (losses.sum() / targets_RT.numel()).backward()  # type: ignore[no-untyped-call]
        if ranks.world > 1:
            for parameter in self.parameters:
                # a rank without rows has no gradients yet
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            ranks.sum([p.grad for p in self.parameters if p.grad is not None])
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1


def cosine(chunk: int, chunks: int) -> float:
    """Half a cosine: 1 for the first of `chunks`, 0 for the last."""
    return 0.5 * (1 + math.cos(math.pi * chunk / max(chunks - 1, 1)))


def _trainable(model: nn.Module, freeze: int) -> list[nn.Parameter]:
    """Parameters to train; those of the first `freeze` blocks are told that they do not move."""
    frozen = tuple(f"blocks.{block}." for block in range(freeze))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(frozen)))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
