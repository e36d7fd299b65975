"""What changes over a run, as pure functions of its steps and its clock.

`step` counts the steps that are done, `elapsed` the seconds of training they took, of `steps` and
`seconds` at most; 0 seconds is a run without a clock. A resumed run knows all of these again, so
it goes on with the same values.
"""

from dataclasses import dataclass

from gptpack.training.recipe import OptimizerConfig, TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """What one step is made with."""

    progress: float
    """Share of the run that is done."""
    lr_multiplier: float
    momentum: float
    weight_decay_multiplier: float
    recurrence: bool
    """Whether the model's recurrent layers run more than once."""
    qat: bool
    """Whether the forward pass sees quantized weights."""


def scheduled(
    step: int, elapsed: float, training: TrainingConfig, optimizer: OptimizerConfig
) -> Scheduled:
    """Every schedule of the recipe at one point of the run."""
    steps, seconds = training.steps, training.clock_seconds
    done = progress(step, steps=steps, elapsed=elapsed, seconds=seconds)
    left = steps_left(step, steps=steps, elapsed=elapsed, seconds=seconds)
    if training.warmdown_fraction:
        rate = warmdown(1 - done, training.warmdown_fraction, floor=training.lr_floor)
    else:
        rate = warmdown(left, training.warmdown_steps, floor=training.lr_floor)
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
        qat=switch_at(done, training.qat_start),
    )


def progress(step: int, *, steps: int, elapsed: float, seconds: float) -> float:
    """Share of the run that is done, 0 to 1: that of its steps or its seconds, the larger one."""
    by_clock = elapsed / seconds if seconds else 0.0
    return min(1.0, max(step / steps, by_clock))


def steps_left(step: int, *, steps: int, elapsed: float, seconds: float) -> float:
    """Steps until the first of both limits; until that of the clock at the mean pace so far."""
    by_step = float(max(steps - step, 0))
    if not seconds or not elapsed:
        return by_step
    return min(by_step, max(seconds - elapsed, 0.0) * max(step, 1) / elapsed)


def warmdown(left: float, window: float, *, floor: float = 0.0) -> float:
    """1, then linear in what is left to 0 over the last `window`, but never below `floor`.

    parameter-golf: in steps as time at the pace so far (baseline), as a share of the run (#1394).
    """
    return max(floor, min(1.0, left / window)) if window else 1.0


def momentum(
    step: int, left: float, *, start: float, final: float, warmup: int, cooldown: int = 0
) -> float:
    """Linear from `start` to `final` over the first `warmup` steps, and back over the last ones."""
    fraction = min(1.0, step / warmup) if warmup else 1.0
    if cooldown:
        fraction = min(fraction, left / cooldown)
    return (1 - fraction) * start + fraction * final


def taper(done: float, *, start: float, final: float) -> float:
    """1 until the share `start` of the run, then linear to `final` at its end.

    parameter-golf #1729 has 0.7 and 0.5 for weight decay. A start of 1 is no taper.
    """
    fraction = max(0.0, (done - start) / (1 - start)) if start < 1 else 0.0
    return (1 - fraction) + fraction * final


def switch_at(done: float, start: float) -> bool:
    """Whether what begins at the share `start` of the run is on; at 0 always, at 1 never."""
    return start < 1 and done >= start
