"""Coding a model group by group, what is left in floats learning to make up for what is coded.

Layers are coded from the last to the first; after each group the rest trains for a few steps
against the unquantized model (tuning.py), and the next group's Hessians are those of the
inputs that the coded layers really give it. The last group's step takes up what the budget leaves,
or the bits.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gptpack.artifact.writer import EncodedSections
from gptpack.calibration.collect import collect
from gptpack.errors import QuantError
from gptpack.families.language_model import LanguageModel
from gptpack.packing.packer import UNLIMITED, CodedFile, Packer, grid_bits, keep_smallest_float
from gptpack.packing.search import pack_to_budget
from gptpack.packing.solve import solve_delta
from gptpack.packing.tuning import TuneConfig, floats, freeze, gain_name, gains, tune
from gptpack.progress import Progress, silent
from gptpack.quant.allocation import (
    Sensitivity,
    prepare_matrix,
    with_row_scales,
)
from gptpack.quant.types import ROW_SCALES_PER_OCTAVE, PackedTensor, dequantize
from gptpack.ranks import Ranks

HELD_BACK = 5e-4
"""Share of the budget kept for what the last tuning does to scales and floats."""
HELD_BACK_BYTES = 64
"""And what the header says of it."""
MOST_EXCESS = 0.01
"""Share by which the last group's codes may grow coarser after their gains were learned; by a
twentieth, a file came out worse than without tuning."""
NOISE = 0.01
"""What tuning is taken to add to floats, as a share of each, where their size is foreseen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressiveConfig:
    """How many groups, and how long the rest trains after each."""

    by_layer: bool = True
    """Layer by layer; otherwise everything at once, and only floats are tuned."""
    group_steps: int = 50
    final_steps: int = 350
    tokens: int = 32768
    """Tokens of a tuning step."""
    matrix_lr: float = 3e-4
    scale_lr: float = 2e-3
    labels: float = 0.0
    """Weight of the text's cross entropy in the loss. Above 0 it trains on: a gain for
    a checkpoint that was not trained out, a loss for one that was (docs/log.md, 2026-11-28)."""
    seconds: float = 0.0
    """Most seconds of all this after the first search, shared among the groups by their steps; 0
    has no limit. With one, two packs of a checkpoint need not be the same bytes."""
    calibration_windows: int = 64
    """Windows from which each group's Hessians are collected again."""


def pack_progressively(
    packer: Packer,
    teacher: LanguageModel,
    windows: Tensor,
    ranks: Ranks,
    sensitivities: Mapping[str, Sensitivity],
    config: ProgressiveConfig,
    *,
    delta: float | None = None,
    bits: float | None = None,
    progress: Progress = silent,
) -> CodedFile:
    """Pack as `pack_to_budget` does, with tuning between the groups and after the last.

    `packer` stays as it is.

    Args:
        teacher: the unquantized model, on the device where tuning runs.
        windows: training tokens ``[N, T]`` (int64), never validation.
        sensitivities: those that `packer` was made with; their row weights stay.
        delta, bits: as `pack_to_budget` takes them.

    Raises:
        BudgetError: see `pack_to_budget`.
    """
    first = pack_to_budget(packer, delta=delta, bits=bits, progress=progress)
    search = delta is None
    delta = first.delta
    packer = replace(packer, fixed=dict(packer.fixed))
    student = copy.deepcopy(teacher)
    held = _hold(packer, student)
    coded_names = [matrix.name for matrix in packer.matrices]
    plan = student.groups(coded_names) if config.by_layer else [coded_names]
    batch = max(1, 16384 // windows.shape[1])
    goal = _goal(packer, bits)
    coded: dict[str, PackedTensor] = {}
    predicted = 0.0
    position = tuned = 0
    start = time.perf_counter()
    for index, names in enumerate(plan):
        few = windows.roll(-position, 0)[: config.calibration_windows]
        fresh = (
            collect(student, few, ranks, fisher_windows=1, batch=batch, seed=0).sensitivities
            if index
            else sensitivities
        )
        weights = floats(student)
        packer.matrices = [
            prepare_matrix(
                name,
                weights[name].numpy(),
                replace(sensitivities[name], hessian=fresh[name].hessian),
                damp=packer.config.damp,
            )
            for name in names
        ]
        last = index == len(plan) - 1
        if last and search:
            _refresh_floats(packer, student, tuned=False)
            room = int(goal.limit * HELD_BACK) + HELD_BACK_BYTES
            fitted = _fit_last(packer, coded, student, delta, goal.less(room))
            if fitted is None:
                return _untuned(first)
            tensors, loss = fitted
        else:
            tensors, loss = packer.quantize(delta)
        predicted += loss
        coded.update(tensors)
        values = {name: torch.from_numpy(dequantize(t).copy()) for name, t in tensors.items()}
        freeze(student, values)
        steps = config.final_steps if last else config.group_steps
        seconds = 0.0
        if config.seconds:
            later = 0 if last else config.group_steps * (len(plan) - 2 - index) + config.final_steps
            left = config.seconds - ranks.first(time.perf_counter() - start)
            seconds = left * steps / max(steps + later, 1)
            if seconds <= 0:
                continue
        settings = TuneConfig(
            steps=steps,
            seconds=seconds,
            tokens=config.tokens,
            matrix_lr=config.matrix_lr,
            scale_lr=config.scale_lr,
            labels=config.labels,
        )
        result = tune(
            student,
            teacher,
            windows.roll(-position, 0),
            settings,
            ranks,
            fixed=held,
            progress=progress,
            phase=f"tune {index + 1}/{len(plan)}",
        )
        tuned += result.steps
        position += result.steps * max(1, config.tokens // windows.shape[1])
    packer.record = replace(packer.record, tuned_steps=tuned, tuned_labels=config.labels or None)
    finished = _finish(packer, coded, student, goal, loss, delta if search else None)
    if finished is None:
        return _untuned(first)
    encoded, more = finished
    return packer.seal(encoded, delta=delta, predicted_nats=predicted + more)


class _Goal(NamedTuple):
    """What the file, or its coded bits, may take."""

    measure: Callable[[EncodedSections], int]
    limit: int

    def less(self, room: int) -> "_Goal":
        return _Goal(self.measure, self.limit - room)


def _goal(packer: Packer, bits: float | None) -> _Goal:
    """The budget of `packer`, or `bits` for each weight that is on a grid now."""
    if bits is None:
        return _Goal(packer.size, packer.budget_bytes - packer.code_bytes)
    weights = packer.weights

    def measure(encoded: EncodedSections) -> int:
        return math.ceil((grid_bits(encoded) or 0.0) * weights / 8)

    return _Goal(measure, int(bits * weights / 8))


def _finish(
    packer: Packer,
    coded: Mapping[str, PackedTensor],
    student: LanguageModel,
    goal: _Goal,
    loss: float,
    delta: float | None,
) -> tuple[EncodedSections, float] | None:
    """The sections of what tuning made, and the rise of `loss` that took; None if too large.

    Args:
        loss: what the last group was predicted to cost.
        delta: where that group may be coded again, with the gains that it has learned, if tuning
            added more than was held back.
    """
    _refresh_floats(packer, student)
    encoded = packer.encode(_with_gains(coded, student))
    excess = goal.measure(encoded) - goal.limit
    if excess <= 0:
        return encoded, 0.0
    fitted = None
    if delta is not None and excess <= MOST_EXCESS * goal.limit:
        fitted = _fit_last(packer, coded, student, delta, goal.less(HELD_BACK_BYTES))
    if fitted is None:
        return None
    encoded = packer.encode(_with_gains({**coded, **fitted[0]}, student))
    return (encoded, fitted[1] - loss) if goal.measure(encoded) <= goal.limit else None


def _untuned(first: CodedFile) -> CodedFile:
    """The file before tuning, which is known to fit, and a word on it."""
    remark = "tuning was left out: what it adds does not fit; raise the budget, or bits, a little"
    return replace(first, notes=(*first.notes, remark))


def _hold(packer: Packer, student: LanguageModel) -> tuple[str, ...]:
    """Freeze what is already coded by a method without steps; the names of its gains."""
    values = {
        name: torch.from_numpy(dequantize(tensor).copy())
        for name, tensor in packer.fixed.items()
        if tensor.method == "int8"
    }
    freeze(student, values)
    return tuple(map(gain_name, values))


def _with_gains(
    coded: Mapping[str, PackedTensor], student: LanguageModel
) -> dict[str, PackedTensor]:
    """`coded` with the gains that `student` has learned for them in their row scales."""
    learned = gains(student)
    return {
        name: _with_gain(tensor, learned[name]) if name in learned else tensor
        for name, tensor in coded.items()
    }


def _with_gain(tensor: PackedTensor, gain: Tensor) -> PackedTensor:
    ratio = np.clip(gain.numpy().astype(np.float64), 2.0**-4, 2.0**4)
    shift = np.rint(np.log2(ratio) * ROW_SCALES_PER_OCTAVE).astype(np.int16)
    return with_row_scales(tensor, tensor.arrays["row_scales"] + shift)


def _refresh_floats(packer: Packer, student: LanguageModel, *, tuned: bool = True) -> None:
    """What stayed in floats, as it is after tuning, in place of what it was.

    Before tuning is done it is only as large as it will be: noise takes the place of what tuning
    will add to values that may be all alike or exact in bfloat16.
    """
    generator = np.random.default_rng(0)
    found = floats(student)
    for name, tensor in packer.fixed.items():
        if name not in found or tensor.method not in ("bfloat16", "float16", "float32"):
            continue
        values = found[name].numpy()
        if not tuned:
            noise = generator.normal(0, NOISE, values.shape).astype(np.float32)
            values = values + noise * np.maximum(np.abs(values), NOISE)
        packer.fixed[name] = keep_smallest_float(name, values)


def _fit_last(
    packer: Packer,
    coded: Mapping[str, PackedTensor],
    student: LanguageModel,
    delta: float,
    goal: _Goal,
) -> tuple[dict[str, PackedTensor], float] | None:
    """The last group at the step that takes up what the others leave of `goal`, if any does."""
    seen: dict[float, tuple[dict[str, PackedTensor], float]] = {}

    def size_at(step: float) -> int:
        try:
            tensors, loss = packer.quantize(step)
        except QuantError:
            return UNLIMITED  # finer than the first search went, codes may not be storable
        seen[step] = (tensors, loss)
        return goal.measure(packer.draft(_with_gains({**coded, **tensors}, student)))

    solution = solve_delta(
        size_at,
        goal.limit,
        start=delta,
        octave_bits=packer.weights,
        finest=delta / 2,
        tolerance=HELD_BACK,
    )
    if solution is None:
        return None
    return seen[solution.delta]
