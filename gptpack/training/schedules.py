"""Learning rate and momentum as pure functions of step and clock."""


def warmdown_by_step(step: int, *, steps: int, warmdown: int) -> float:
    """1, then linear to 0 over the last `warmdown` of `steps`; `step` counts those done."""
    return min(1.0, (steps - step) / warmdown) if warmdown else 1.0


def warmdown_by_clock(step: int, *, elapsed: float, seconds: float, warmdown: int) -> float:
    """1, then linear to 0 over as much time as `warmdown` steps take at the pace so far.

    `elapsed` of `seconds` have been spent on `step` steps. parameter-golf, `lr_mul`.
    """
    window = warmdown * elapsed / max(step, 1)
    remaining = max(seconds - elapsed, 0.0)
    return min(1.0, remaining / window) if window else 1.0


def lr_multiplier(step: int, *, steps: int, warmdown: int, elapsed: float, seconds: float) -> float:
    """The lower of the two rules: whichever end comes first is reached with a rate of 0."""
    by_step = warmdown_by_step(step, steps=steps, warmdown=warmdown)
    if not seconds:
        return by_step
    by_clock = warmdown_by_clock(step, elapsed=elapsed, seconds=seconds, warmdown=warmdown)
    return min(by_step, by_clock)


def momentum(step: int, *, start: float, final: float, warmup: int) -> float:
    """Linear from `start` to `final` over the first `warmup` steps."""
    fraction = min(1.0, step / warmup) if warmup else 1.0
    return (1 - fraction) * start + fraction * final
