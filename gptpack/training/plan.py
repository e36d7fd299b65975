"""A run that has not begun -> what it will take: memory, operations, seconds, bytes of its file.

Memory and arithmetic come from passes over a few tokens of the model itself, so they follow
whatever the model consists of: the cost of such a pass is a polynomial in the number T of tokens,
``constant + linear T + quadratic T^2``, which three lengths determine exactly.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gptpack.errors import BudgetError, ConfigError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT, model_of
from gptpack.training.recipe import Recipe
from gptpack.training.schedules import Phase, phases
from gptpack.training.stepper import Stepper

LENGTHS = (16, 32, 64)
PROBE_TOKENS = 1024
"""Tokens, at most, of the pass that tells whether whole steps can be timed on a CPU."""
TIMED_STEPS = 3
TIMING_SECONDS = 20.0
"""Seconds that timing whole steps on a CPU may take; longer ones are estimated."""
HEADER_BYTES = 1300
"""Bytes of a packed file's header, which has some 600 to 1,300."""
FLOAT_BYTES = 2
"""Bytes of a weight that stays a float."""
MOST_BITS = 16.0
"""Bits that a coded weight takes at most: a grid finer than floats changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Polynomial:
    """A cost of one sequence of T tokens."""

    constant: int
    linear: int
    quadratic: int

    @classmethod
    def through(cls, costs: Sequence[int]) -> "Polynomial":
        """The polynomial with these values, whole numbers, at `LENGTHS`."""
        first, second, third = costs
        n = LENGTHS[0]
        quadratic = (third - 3 * second + 2 * first) // (6 * n * n)
        linear = (second - first) // n - 3 * n * quadratic
        return cls(
            constant=first - n * (linear + n * quadratic), linear=linear, quadratic=quadratic
        )


@lru_cache(maxsize=16)
def training_flops(config: ModelConfig) -> Polynomial:
    """Floating-point operations of forward and backward over one sequence, as torch counts them.

    A product of matrices takes two per multiplication; the linear part is 6 per weight of a matrix
    (and per use of it), the quadratic part is attention over all pairs of positions. Nothing is
    computed: the model is on the meta device.
    """
    with torch.device("meta"):
        model = model_of(config)
    model.use_attention("math")
    costs = []
    for length in LENGTHS:
        tokens = torch.zeros(1, length, dtype=torch.int64, device="meta")
        with FlopCounterMode(display=False) as counter:
            model(tokens, tokens).backward()
        costs.append(counter.get_total_flops())
    return Polynomial.through(costs)


def flops_per_token(config: ModelConfig, *, halvings: int = 0) -> int:
    """Operations of a training step for each token; attention counts half of all pairs (causal).

    The context may be halved so many times. Within a window a position attends to that many; the
    last stage's windows count.
    """
    flops = training_flops(config)
    if not config.windows:
        return flops.linear + flops.quadratic * (config.context >> halvings) // 2
    layers = {*range(config.layers)} - {*config.attention_free_layers}
    far = layers & {*config.long_window_layers}
    seen = [config.windows[-1]] * len(far) + [config.short_windows[-1]] * len(layers - far)
    pairs = sum(min(config.context // 2, window) for window in seen)
    return flops.linear + flops.quadratic * pairs // max(1, len(layers))


def saved_bytes(model: GPT) -> Polynomial:
    """Bytes that a forward pass over one sequence keeps for the backward pass, without parameters.

    The model runs uncompiled, on its device and with its attention. The constant part is the
    weights in the activations' dtype.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    costs = []
    for length in LENGTHS:
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor, kept: dict[int, torch.UntypedStorage] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage
            return tensor

        device = model.tok_emb.weight.device
        tokens = torch.zeros(1, length, dtype=torch.int64, device=device)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(tokens, tokens)
        costs.append(sum(storage.nbytes() for storage in kept.values()))
        del loss
    return Polynomial.through(costs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that one rank holds at the peak of a step."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    average_bytes: int
    """Bytes of the averaged weights."""
    activations_bytes: int
    """Bytes that the backward pass needs, uncompiled; compiled, 0.78 times that was measured."""

    @property
    def total_bytes(self) -> int:
        return sum(asdict(self).values())


def memory(stepper: Stepper) -> Memory:
    """The memory that a step of `stepper` takes on its device."""
    weights = sum(parameter.nbytes for parameter in stepper.model.parameters())
    saved, context = saved_bytes(stepper.model), stepper.recipe.model.context
    window = saved.linear * context + saved.quadratic * context**2
    return Memory(
        weights_bytes=weights,
        gradients_bytes=weights,
        optimizer_bytes=sum(tensor.nbytes for tensor in stepper.optimizers.tensors()),
        average_bytes=sum(tensor.nbytes for tensor in stepper.average.mean.values()),
        activations_bytes=saved.constant + stepper.micro_batch() * window,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Expected seconds of a step, the mean over a run, and how they were found."""

    seconds: float
    source: str
    timed: bool = False
    """Whether whole steps were made and timed."""


def mean_seconds(recipe: Recipe, seconds: Sequence[float]) -> float:
    """Mean seconds of a step, where one of each of the run's phases takes so many.

    Shares of the run are those of its clock, if that ends it, and of its steps otherwise.
    """
    training = recipe.training
    parts = [(phase.share, each) for phase, each in zip(phases(recipe), seconds, strict=True)]
    by_clock = 1 / sum(share / each for share, each in parts)
    if training.seconds and training.clock_seconds / by_clock < training.steps:
        return by_clock
    return sum(share * each for share, each in parts)


def time_from_rate(stepper: Stepper, flops_per_second: float, source: str) -> StepTime:
    """The time of a step's operations on one rank, at a rate in operations per second."""
    recipe = stepper.recipe
    tokens = len(stepper.share) * recipe.model.context
    once = replace(recipe.model, loop_start=0, loop_layers=0, loops=0)
    each = []
    for phase in phases(recipe):
        model = recipe.model if phase.recurrence else once
        flops = flops_per_token(model, halvings=phase.context_halvings) * tokens
        each.append(flops / flops_per_second)
    seconds = mean_seconds(recipe, each)
    return StepTime(
        seconds=seconds,
        source=f"{seconds * flops_per_second / 1e12:.4g} TFLOP at "
        f"{flops_per_second / 1e12:.4g} TFLOP/s, {source}",
    )


def time_steps(stepper: Stepper) -> StepTime:
    """Time whole steps of `stepper`; where a CPU takes long for them, a pass over fewer tokens.

    The run's weights are then those of a run that has begun.

    Raises:
        ConfigError: the device's memory does not hold a step.
    """
    try:
        if stepper.ranks.device.type == "cpu":
            tokens, seconds = _probe(stepper)
            # if one rank times whole steps, all must: they meet in every one
            seconds = stepper.ranks.first(seconds)
            flops = training_flops(stepper.recipe.model)
            rate = (flops.linear * tokens + flops.quadratic * tokens**2 / 2) / seconds
            expected = time_from_rate(stepper, rate, f"measured on {tokens} tokens")
            if (TIMED_STEPS + 1) * expected.seconds > TIMING_SECONDS:
                return expected
        stepper.warm_up()
        kind = "compiled" if stepper.compiled else "uncompiled"
        parts = phases(stepper.recipe)
        seconds = mean_seconds(stepper.recipe, [_timed(stepper, phase) for phase in parts])
        if len(parts) > 1:
            kind += f", of each of the run's {len(parts)} phases"
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{stepper.ranks.device} does not hold a step of {stepper.micro_batch()} windows at "
            "once; lower training.micro_batch_tokens"
        ) from error
    return StepTime(seconds=seconds, source=f"{TIMED_STEPS} steps timed, {kind}", timed=True)


def _timed(stepper: Stepper, phase: Phase) -> float:
    """Mean seconds of a step of `phase`, after a first one that is not counted."""
    stepper.update(0.0, phase=phase)
    stepper.synchronize()
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        stepper.update(0.0, phase=phase)
    stepper.synchronize()
    return (time.perf_counter() - start) / TIMED_STEPS


def _probe(stepper: Stepper) -> tuple[int, float]:
    """Tokens of a short pass, and the seconds that it takes the second time."""
    tokens = min(stepper.recipe.model.context, PROBE_TOKENS)
    window = torch.zeros(1, tokens, dtype=torch.int64, device=stepper.ranks.device)
    start = 0.0
    for _ in range(2):
        start = time.perf_counter()
        stepper.model(window, window).backward()
        stepper.model.zero_grad(set_to_none=True)
    return tokens, time.perf_counter() - start


def time_look(stepper: Stepper) -> float:
    """Seconds of a look at the packer, the second of two; 0 for a run without a target."""
    if stepper.pressure is None:
        return 0.0
    seconds = 0.0
    for _ in range(2):
        stepper.synchronize()
        start = time.perf_counter()
        stepper.outlook()
        seconds = time.perf_counter() - start
    return seconds


def expected_steps(stepper: Stepper, seconds_per_step: float, *, lost_seconds: float = 0.0) -> int:
    """Steps until the nearer of the recipe's limits; no step is made in `lost_seconds`."""
    training = stepper.recipe.training
    if not training.seconds:
        return training.steps
    left = max(0.0, training.clock_seconds - lost_seconds)
    return math.ceil(min(training.steps, left / seconds_per_step))


def artifact_bytes(coded: int, kept: int, bits: float) -> int:
    """Expected bytes of a file: `coded` weights at `bits` each, and `kept` ones in floats."""
    return HEADER_BYTES + FLOAT_BYTES * kept + round(coded * bits / 8)


def bits_allowed(coded: int, kept: int, budget_bytes: int) -> float:
    """Bits, 16 at most, that each of `coded` weights may take for the file to fit the budget.

    Raises:
        BudgetError: the weights in floats and the header fill the budget.
    """
    left = budget_bytes - artifact_bytes(coded, kept, 0.0)
    if left <= 0:
        raise BudgetError(
            f"{kept:,} weights in floats and the header take {budget_bytes - left:,} bytes of a "
            f"budget of {budget_bytes:,}; nothing is left for {coded:,} weights"
        )
    return min(MOST_BITS, 8 * left / max(coded, 1))
