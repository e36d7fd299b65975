"""Windows of a text -> sums of losses. A loss is recorded once, and may be learned from only then.

A `Scorer` owns the tokens. Nothing else in an evaluation that adapts gets to see them: windows are
scored under whatever weights the model has at that moment, without gradient, in the order of the
text, and `release` hands out tokens whose losses are recorded, and no others. So the four
conditions that parameter-golf settled on (issue #1017) hold by construction: a score depends on
the artifact and on tokens before it; it is the log of the model's own softmax over the whole
vocabulary; it is recorded before the update; and there is no second pass, because scoring a target
twice raises.

A lane is a stretch of text with an order of its own: the whole text, or one document each if
adaptation is per document. No lane needs the tokens of another, so lanes may be scored side by
side.

Shape legend:  B = windows of a batch,  T = positions,  S = the last positions, those asked for
their targets
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gptpack.data.accounting import TokenBytes
from gptpack.data.shards import Tokens
from gptpack.errors import LimitError
from gptpack.evaluation.forward import Forward, batch_tokens_for
from gptpack.evaluation.result import Documents, Score
from gptpack.evaluation.windows import Batch, Indices, Plan, Tail, Windows, batches
from gptpack.progress import Progress, silent
from gptpack.ranks import Ranks

Lanes = Literal["text", "documents"]

NO_LOSS = -1.0
"""Placeholder of a loss that is not recorded; a cross entropy is never negative."""


class OrderError(RuntimeError):
    """A target would be scored twice or out of order, or learned from before it was scored.

    This is no `GptpackError`, because only a wrong adaptation can cause it, and no input.
    """


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model is in evaluation mode inside, and afterwards in the mode that it had."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def joined_ranks(device: torch.device) -> Ranks:
    """The ranks that torch.distributed has been initialised for, or a single one."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size(), device)
    return Ranks(0, 1, device)


class Scorer:
    """Scores the windows of a plan, once each and in order, and sums what it found.

    Where torch.distributed is initialised, every rank makes one of the same text; `score` shares
    its windows out among the ranks, and `finish` gives the sums over all.

    Args:
        lanes: ``text`` makes the whole text one lane, ``documents`` each span of the plan.
        shorten: run short documents in less than a window; see `windows.batches`.
        per_token: also keep each target's loss.
    """

    def __init__(
        self,
        forward: Forward,
        tokens: Tokens,
        token_bytes: TokenBytes,
        plan: Plan,
        *,
        lanes: Lanes = "text",
        batch_tokens: int = 0,
        shorten: bool = False,
        per_token: bool = False,
        progress: Progress = silent,
        phase: str = "score",
    ) -> None:
        self.plan, self.forward, self.phase = plan, forward, phase
        self.ranks = joined_ranks(forward.device)
        self._token_bytes, self._progress = token_bytes, progress
        self._tokens = tokens[: plan.targets + 1]
        device = forward.device
        self._stream = torch.from_numpy(self._tokens.astype(np.int32)).to(device)
        self._batch_tokens = batch_tokens_for(device, batch_tokens)
        self._shorten = shorten
        spans = np.array([*plan.spans, plan.targets], np.int64)
        self._lanes = spans if lanes == "documents" else spans[[0, -1]]
        self._claimed = self._lanes[:-1].copy()
        """The next target of each lane that nobody has asked for."""
        self._released = self._lanes[:-1].copy()
        """The next target of each lane that has no loss yet, on whatever rank."""
        self._sum = torch.zeros(1, dtype=torch.float64, device=device)
        self._counts = np.zeros(2, np.int64)
        """Targets that this rank scored, and their bytes."""
        # One more slot takes what belongs to padding.
        slots = plan.targets + 1 if per_token else 0
        self._losses = torch.full((slots,), NO_LOSS, device=device)
        self._worth_compiling = self._large_shapes()
        self._began = time.perf_counter()
        progress(phase, 0, plan.targets)

    def _large_shapes(self) -> set[tuple[int, int]]:
        """Shapes (size, asked) through which so much goes that compiling them pays."""
        windows = self.plan.select(np.arange(len(self.plan)))
        shapes, counts = np.unique(windows.size << 32 | windows.asked, return_counts=True)
        return {
            (shape >> 32, shape & 0xFFFFFFFF)
            for shape, count in zip(shapes.tolist(), counts.tolist(), strict=True)
            if self.forward.pays((shape >> 32) * count // self.ranks.world)
        }

    def score(self, indices: Indices) -> bool:
        """Score windows of the plan, shared out among the ranks, which all ask for the same ones.

        Returns:
            Whether all were scored: False if the clock's limit came before the last batch.

        Raises:
            OrderError: a target is not the next one of its lane.
        """
        if not len(indices):
            return True
        windows = self.plan.select(indices)
        lanes = self._claim(windows)
        share = self.ranks.share(len(windows))
        mine = windows[share.start : share.stop]
        in_time = True
        with self.forward.clock.phase(self.phase):
            for batch in batches(mine, self._batch_tokens, shorten=self._shorten):
                if self.forward.clock.expired:
                    in_time = False
                    break
                self._run(batch, compiled=(batch.size, batch.asked) in self._worth_compiling)
            # so that the clock books what is queued on this phase and not on the next
            self.forward.synchronize()
        if self.ranks.world > 1:
            agreed = torch.tensor(float(in_time), device=self.forward.device)
            dist.all_reduce(agreed, dist.ReduceOp.MIN)
            in_time = bool(agreed.item())
        if in_time:
            np.maximum.at(self._released, lanes, windows.stop)
        return in_time

    def score_rows(self, indices: Indices) -> bool:
        """Score windows of one shape, a row each in the order given, on this rank alone.

        Adaptations may keep weights of their own for every row, so no row is added as padding, and
        nothing is compiled.

        Returns:
            Whether they were scored: False if the clock's limit has come.

        Raises:
            OrderError: a target is not the next one of its lane.
        """
        windows = self.plan.select(indices)
        lanes = self._claim(windows)
        with self.forward.clock.phase(self.phase):
            if self.forward.clock.expired:
                return False
            self._run(_as_batch(windows), compiled=False)
            self.forward.synchronize()
        np.maximum.at(self._released, lanes, windows.stop)
        return True

    def _claim(self, windows: Windows) -> Indices:
        """The lane of each window, whose targets nothing else can ask for from here on."""
        first, stop = windows.first_scored, windows.stop
        lanes = np.searchsorted(self._lanes, first, side="right") - 1
        order = np.argsort(lanes, kind="stable")
        same = np.concatenate(([False], lanes[order][1:] == lanes[order][:-1]))
        before = np.where(same, np.roll(stop[order], 1), self._claimed[lanes[order]])
        if wrong := np.flatnonzero(first[order] != before).tolist():
            at = order[wrong[0]]
            raise OrderError(
                f"targets {first[at]}..{stop[at] - 1} are asked for, but the next one of "
                f"lane {lanes[at]} is {before[wrong[0]]}"
            )
        np.maximum.at(self._claimed, lanes, stop)
        return lanes

    def released(self, lane: int = 0) -> range:
        """The targets of a lane whose losses are recorded."""
        return range(int(self._lanes[lane]), int(self._released[lane]))

    def release(self, start: int, stop: int, lane: int = 0) -> Tensor:
        """Tokens ``start .. stop`` (int64): what the targets ``start .. stop - 1`` need.

        Raises:
            OrderError: one of those targets has no recorded loss.
        """
        ready = self.released(lane)
        if not ready.start <= start <= stop <= ready.stop:
            raise OrderError(f"targets {start}..{stop - 1} are wanted, scored are {ready}")
        return self._stream[start : stop + 1].long()

    def release_rows(self, indices: Indices) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs ``[B, T]``, targets ``[B, S]`` and whether each exists, of scored windows.

        Raises:
            OrderError: one of those targets has no recorded loss.
        """
        windows = self.plan.select(indices)
        lanes = np.searchsorted(self._lanes, windows.first_scored, side="right") - 1
        if (windows.stop > self._released[lanes]).any():
            raise OrderError("windows are wanted for training that have not been scored")
        inputs_BT, targets_BS, at_BS = self._gather(_as_batch(windows))
        return inputs_BT, targets_BS, at_BS < self.plan.targets

    def _gather(self, batch: Batch, rows: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and the targets' positions; those of padding are ``plan.targets``.

        Tokens beyond a window's last target are 0, and rows up to `rows` are padding.
        """
        device, size = self.forward.device, batch.size
        missing = max(0, rows - len(batch.windows))
        start_B, stop_B = batch.windows.start, batch.windows.stop
        start_B = np.concatenate((start_B, np.zeros(missing, np.int64)))
        stop_B = np.concatenate((stop_B, np.full(missing, -1)))
        stop = torch.from_numpy(stop_B).to(device, non_blocking=True).unsqueeze(1)
        at = torch.from_numpy(start_B).to(device, non_blocking=True).unsqueeze(1)
        at = at + torch.arange(size + 1, device=device)
        tokens = self._stream[at.clamp(max=self.plan.targets)].long()
        tokens = torch.where(at <= stop, tokens, 0)
        asked = at[:, size - batch.asked : size]
        asked = torch.where(asked < stop, asked, self.plan.targets)
        return tokens[:, :-1], tokens[:, size + 1 - batch.asked :], asked

    def _run(self, batch: Batch, *, compiled: bool) -> None:
        """Score a batch and record its losses."""
        forward, windows = self.forward, batch.windows
        rows = max(1, self._batch_tokens // batch.size) if compiled else 0
        targets = _scored_targets(windows)
        with evaluating(forward.model), torch.inference_mode():
            inputs_BT, targets_BS, at_BS = self._gather(batch, rows)
            losses_BS = forward.losses(inputs_BT, targets_BS, compiled=compiled)
            exists = at_BS < self.plan.targets
            self._sum += torch.where(exists, losses_BS, 0).sum(dtype=torch.float64)
            if len(self._losses):
                self._losses[at_BS] = losses_BS.float()
        charged = int(self._token_bytes.each(self._tokens, targets).sum())
        self._counts += (len(targets), charged)
        forward.pace()
        done = min(int(self._counts[0]) * self.ranks.world, self.plan.targets)
        self._progress(self.phase, done, self.plan.targets)

    def finish(
        self,
        *,
        tail: Tail,
        documents: Documents = "packed",
        rope: str = "",
        adaptation: str = "none",
        details: Mapping[str, Any] | None = None,
    ) -> Score:
        """The sums over all ranks.

        Raises:
            LimitError: the loss is not finite.
        """
        with self.forward.clock.phase(self.phase):
            counts = torch.from_numpy(self._counts).to(self.forward.device)
            self.ranks.sum([counts])
            self.ranks.sum([self._sum])
            if self.ranks.world > 1 and len(self._losses):
                dist.all_reduce(self._losses, dist.ReduceOp.MAX)
            nats = self._sum.item()
        tokens, charged = counts.tolist()
        assert tokens <= self.plan.targets, (tokens, self.plan)
        if not math.isfinite(nats):
            raise LimitError(f"the loss over {tokens:,} targets is {nats}; the model is broken")
        losses = self._losses[:-1].cpu().numpy() if len(self._losses) else None
        if losses is not None:
            losses[losses == NO_LOSS] = np.nan
        return Score(
            nats=nats,
            tokens=tokens,
            bytes=charged,
            planned_tokens=self.plan.targets,
            in_order=self.ranks.world == 1 and documents == "packed",
            context=self.plan.context,
            stride=self.plan.stride,
            tail=tail,
            windows=len(self.plan),
            seconds=time.perf_counter() - self._began,
            documents=documents,
            rope=rope,
            adaptation=adaptation,
            details=details or {},
            losses=losses,
        )


def _as_batch(windows: Windows) -> Batch:
    """One batch of windows that agree in shape."""
    size, asked = int(windows.size[0]), int(windows.asked[0])
    assert (windows.size == size).all()
    assert (windows.asked == asked).all()
    return Batch(windows, size, asked)


def _scored_targets(windows: Windows) -> Indices:
    """The targets that `windows` score, in one array."""
    counts = windows.scored
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) + np.repeat(windows.stop - ends, counts)
