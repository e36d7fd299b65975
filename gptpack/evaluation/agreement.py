"""A model and a text -> its score, and that of its blend with n-grams, from one pass.

Shape legend:  B = windows of a batch,  T = positions,  S = the last positions, those asked for
their targets,  V = vocabulary
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from gptpack.evaluation.forward import Forward
from gptpack.evaluation.ngram import NgramSettings, blend, check_blend, make_hints
from gptpack.evaluation.reading import Reading
from gptpack.evaluation.result import Score
from gptpack.evaluation.scorer import NO_LOSS, Scorer
from gptpack.evaluation.windows import Indices

CHECKED_TARGETS = 256
"""Number of targets whose blended distribution is checked over the whole vocabulary."""


def score_with_ngram(
    forward: Forward, reading: Reading, settings: NgramSettings, *, seed: int = 0
) -> tuple[Score, Score]:
    """The network's score, and that of its blend with an n-gram model of the text so far.

    Both come from one pass. The second score's details say how the normalisation was checked.

    Raises:
        LimitError: the blended probabilities do not sum to one.
    """
    plan = reading.plan()
    tokens = reading.tokens[: plan.targets + 1]
    with forward.clock.phase("ngram"):
        hints = make_hints(tokens, settings)
    draw = np.random.default_rng(seed)
    samples = draw.choice(plan.targets, min(CHECKED_TARGETS, plan.targets), replace=False)
    options = reading.options(plan) | {"per_token": True}
    scorer = HintScorer(forward, hints=hints.tokens, samples=samples, **options)
    scorer.score(np.arange(len(plan)))
    hint_losses, sampled = scorer.hint_losses()
    network = reading.finish(scorer)
    assert network.losses is not None
    with forward.clock.phase("ngram"):
        blended = blend(tokens, hints, network.losses, hint_losses, settings)
        normalisation = check_blend(tokens[1:], hints, blended, sampled)
    agreeing = replace(
        network,
        nats=float(np.nansum(blended.losses)),
        adaptation=settings.description,
        losses=blended.losses.astype(np.float32) if reading.per_token else None,
        details={
            "normalisation": normalisation,
            "hinted": blended.hinted,
            "hint_hits": blended.hits,
        },
    )
    return network if reading.per_token else replace(network, losses=None), agreeing


class HintScorer(Scorer):
    """A scorer that also keeps the loss of another token at each target.

    Args:
        hints: that token for each target, -1 for none.
        samples: targets whose whole distributions are kept.
    """

    def __init__(
        self, forward: Forward, *, hints: npt.NDArray[np.int32], samples: Indices, **options: Any
    ) -> None:
        super().__init__(forward, **options)
        self._hints = torch.from_numpy(hints).to(self.forward.device)
        self._samples = torch.from_numpy(np.sort(samples)).to(self.forward.device)
        self._hint_losses = torch.full_like(self._losses, NO_LOSS)
        self._sampled: dict[int, npt.NDArray[np.float32]] = {}

    def _score_batch(
        self, inputs_BT: Tensor, targets_BS: Tensor, at_BS: Tensor, compiled: bool
    ) -> Tensor:
        asked = targets_BS.shape[1]
        log_p_BSV = self.forward.log_probabilities(inputs_BT, asked, compiled=compiled)
        hints_BS = self._hints[at_BS.clamp(max=self.plan.targets - 1)].long().clamp(min=0)
        self._hint_losses[at_BS] = -log_p_BSV.gather(2, hints_BS.unsqueeze(2)).squeeze(2)
        for row, position in torch.isin(at_BS, self._samples).nonzero().tolist():
            target = int(at_BS[row, position])
            self._sampled[target] = log_p_BSV[row, position].cpu().numpy()
        return -log_p_BSV.gather(2, targets_BS.unsqueeze(2)).squeeze(2)

    def hint_losses(self) -> tuple[npt.NDArray[np.float32], dict[int, npt.NDArray[np.float32]]]:
        """Nats of each target's hint, and the log-probabilities of the sampled targets."""
        sampled = self._sampled
        if self.ranks.world > 1:
            dist.all_reduce(self._hint_losses, dist.ReduceOp.MAX)
            parts: list[Any] = [None] * self.ranks.world
            dist.all_gather_object(parts, sampled)
            sampled = {target: row for part in parts for target, row in part.items()}
        return self._hint_losses[:-1].cpu().numpy(), sampled
