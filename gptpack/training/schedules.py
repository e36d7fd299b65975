"""Steps and seconds of a run -> what its next step is made with: pure functions.

`step` counts the steps that are done and `elapsed` the seconds of training that they took; `steps`
and `seconds` are the limits of both, and 0 seconds is no limit. A resumed run knows all of these
again, so it goes on with the same values.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from gptpack.training.recipe import OptimizerConfig, Recipe, TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """Settings that one step is made with."""

    progress: float
    """Share of the run that is done."""
    lr_multiplier: float
    momentum: float
    weight_decay_multiplier: float
    recurrence: bool
    """Whether the model's recurrent layers run more than once."""
    window_stage: int
    """Index of the stage whose windows attention has; -1 is the last."""
    context_halvings: int
    """Times that the context of attention is halved."""
    ahead_weight: float
    """Weight of the loss of the tokens after the next."""


class Phase(NamedTuple):
    """A part of a run whose steps all take the same operations."""

    share: float
    """How much of the run it is."""
    recurrence: bool
    context_halvings: int
    ahead: bool


def phases(recipe: Recipe) -> list[Phase]:
    """The parts of a run, in order; their shares add up to 1."""
    training = recipe.training
    halvings, full = training.context_halvings, training.full_context_start
    starts = {stage * full / halvings for stage in range(1, halvings + 1)}
    if recipe.model.loops:
        starts.add(training.recurrence_start)
    if training.ahead_weight:
        starts.add(training.ahead_end)
    found = []
    for start, end in itertools.pairwise(sorted({0.0, 1.0} | starts)):
        middle = (start + end) / 2
        found.append(
            Phase(
                share=end - start,
                recurrence=switch_at(middle, training.recurrence_start),
                context_halvings=halvings_at(middle, halvings, end=full),
                ahead=ahead_at(middle, training) > 0,
            )
        )
    return found


def scheduled(
    step: int, elapsed: float, training: TrainingConfig, optimizer: OptimizerConfig
) -> Scheduled:
    """The values of all of the recipe's schedules at one point of the run."""
    steps, seconds = training.steps, training.clock_seconds
    done = share_done(step, steps=steps, elapsed=elapsed, seconds=seconds)
    left = steps_left(step, steps=steps, elapsed=elapsed, seconds=seconds)
    ends = {"floor": training.lr_floor, "final": training.lr_final}
    if training.warmdown_fraction:
        rate = warmdown(1 - done, training.warmdown_fraction, **ends)
    else:
        rate = warmdown(left, training.warmdown_steps, **ends)
    return Scheduled(
        progress=done,
        lr_multiplier=rate,
        momentum=momentum(
            step,
            left,
            start=optimizer.muon_momentum_start,
            final=optimizer.muon_momentum,
            warmup=optimizer.muon_momentum_warmup_steps,
            cooldown=optimizer.muon_momentum_cooldown_steps,
        ),
        weight_decay_multiplier=taper(
            done, start=optimizer.weight_decay_taper_start, final=optimizer.weight_decay_final
        ),
        recurrence=switch_at(done, training.recurrence_start),
        window_stage=stage_at(done, training.window_stages),
        context_halvings=halvings_at(
            done, training.context_halvings, end=training.full_context_start
        ),
        ahead_weight=ahead_at(done, training),
    )


def in_phase(now: Scheduled, phase: Phase) -> Scheduled:
    """The same settings, but for what `phase` says."""
    return replace(
        now,
        recurrence=phase.recurrence,
        context_halvings=phase.context_halvings,
        ahead_weight=(now.ahead_weight or 1.0) if phase.ahead else 0.0,
    )


def share_done(step: int, *, steps: int, elapsed: float, seconds: float) -> float:
    """Share of the run that is done, 0 to 1: the larger one of its steps' and its seconds'."""
    by_clock = elapsed / seconds if seconds else 0.0
    return min(1.0, max(step / steps, by_clock))


def steps_left(step: int, *, steps: int, elapsed: float, seconds: float) -> float:
    """Steps until the nearer one of both limits; the clock's is counted at the mean pace so far."""
    by_step = float(max(steps - step, 0))
    if not seconds or not elapsed:
        return by_step
    return min(by_step, max(seconds - elapsed, 0.0) * max(step, 1) / elapsed)


def warmdown(left: float, window: float, *, floor: float = 0.0, final: float = 0.0) -> float:
    """1 until `window` is left, then linear to `final`, but never below `floor`.

    `left` and `window` are in one unit. parameter-golf has steps as time at the pace so far
    (baseline) and shares of the run (#1394); modded-nanogpt ends at a `final` above 0.
    """
    return max(floor, final + (1 - final) * min(1.0, left / window)) if window else 1.0


def momentum(
    step: int, left: float, *, start: float, final: float, warmup: int, cooldown: int = 0
) -> float:
    """From `start` to `final` over the first `warmup` steps, and back over the last `cooldown`."""
    fraction = min(1.0, step / warmup) if warmup else 1.0
    if cooldown:
        fraction = min(fraction, left / cooldown)
    return (1 - fraction) * start + fraction * final


def taper(done: float, *, start: float, final: float) -> float:
    """1 until the share `start` of the run, then linear to `final` at its end.

    parameter-golf #1729 tapers weight decay with 0.7 and 0.5. With a start of 1 it never falls.
    """
    fraction = max(0.0, (done - start) / (1 - start)) if start < 1 else 0.0
    return (1 - fraction) + fraction * final


def switch_at(done: float, start: float) -> bool:
    """Whether something that begins at the share `start` of a run is on; one of 1 never is."""
    return start < 1 and done >= start


def stage_at(done: float, stages: float) -> int:
    """Stage at the share `done` of a run of so many stages of equal length; -1 without stages."""
    return min(int(done * stages), math.ceil(stages) - 1)


def halvings_at(done: float, halvings: int, *, end: float) -> int:
    """Of so many halvings, how many are left at the share `done` of a run; from `end` on none."""
    return halvings - int(halvings * done / end) if done < end else 0


def ahead_at(done: float, training: TrainingConfig) -> float:
    """Weight of the loss of the tokens after the next at the share `done` of a run."""
    end = training.ahead_end
    return training.ahead_weight * (1 - done / end) if done < end else 0.0


def draw_seed(seed: int, index: int) -> int:
    """Seed of the random numbers that step or window `index` of a run draws."""
    return (seed * 1_000_003 + index) % 2**63
