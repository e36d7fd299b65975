"""A packer and its model -> a file coded group by group, whose floats learn to make up for codes.

Layers are coded from the last to the first. After each group the rest trains for a few steps
against the unquantized model (tuning.py), and the next group's Hessians are those of the inputs
that it really gets by then. The last group's delta takes up what the budget, or the bits, leave.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gptpack.artifact.writer import EncodedSections, encode_sections
from gptpack.calibration.collect import collect
from gptpack.errors import BudgetError, QuantError
from gptpack.families.language_model import LanguageModel
from gptpack.packing.apart import keep_smallest_float
from gptpack.packing.packer import UNLIMITED, CodedFile, Packer
from gptpack.packing.search import Goal, goal_of, pack_to_budget
from gptpack.packing.solve import solve_delta
from gptpack.packing.tuning import TuneConfig, floats, freeze, gain_name, gains, tune
from gptpack.progress import Progress, silent
from gptpack.quant.allocation import Matrix, Sensitivity, prepare_matrix, with_row_scales
from gptpack.quant.types import ROW_SCALES_PER_OCTAVE, PackedTensor, column_offsets, dequantize
from gptpack.ranks import Ranks

HELD_BACK = 5e-4
"""Share of the budget that is kept for what the last tuning does to scales and floats."""
HELD_BACK_BYTES = 64
"""Bytes kept beside that share, for what the header says of tuning."""
MOST_EXCESS = 0.01
"""Largest share by which codes of the last group may shrink after its gains were learned; where a
twentieth was needed, a file came out worse than without tuning."""
NOISE = 0.01
"""Change by tuning that is assumed where the size of floats is foreseen, as a share of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressiveConfig:
    """The groups, and how long floats train after each."""

    by_layer: bool = True
    """Whether each layer is a group; otherwise all matrices are one, and only floats are tuned."""
    group_steps: int = 50
    """Optimizer steps after each group but the last."""
    final_steps: int = 350
    """Optimizer steps after the last group."""
    tokens: int = 32768
    """Tokens of an optimizer step."""
    matrix_lr: float = 3e-4
    """Learning rate of matrices that are not coded yet."""
    scale_lr: float = 2e-3
    """Learning rate of row scales, vectors and scalars."""
    labels: float = 0.0
    """Weight of the text's cross entropy in the loss. Above 0, tuning also goes on with training: a
    gain for a checkpoint that was stopped early, a loss for one that was not (docs/log.md,
    2026-11-28)."""
    seconds: float = 0.0
    """Seconds after the first search, shared among the groups in proportion to those steps; 0 goes
    by the steps. By the clock, two packs of a checkpoint need not be the same bytes."""
    calibration_windows: int = 64
    """Windows from which each group's Hessians are collected anew."""

    def tuning(self, *, steps: int, later: int, spent: float) -> TuneConfig | None:
        """How to train for `steps` when `later` ones follow; None if `spent` seconds were all."""
        seconds = 0.0
        if self.seconds:
            seconds = (self.seconds - spent) * steps / max(steps + later, 1)
            if seconds <= 0:
                return None
        return TuneConfig(
            steps=steps,
            seconds=seconds,
            tokens=self.tokens,
            matrix_lr=self.matrix_lr,
            scale_lr=self.scale_lr,
            labels=self.labels,
        )


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

    `packer` is not modified.

    Args:
        teacher: the unquantized model, on the device where tuning runs.
        windows: training tokens ``[N, T]`` (int64), never validation.
        sensitivities: those that `packer` was made with; their row weights serve all groups.
        delta, bits: as in `pack_to_budget`.

    Raises:
        BudgetError, QuantError: see `pack_to_budget`.
        CheckpointError: the student's outputs are not finite.
    """
    first = pack_to_budget(packer, delta=delta, bits=bits, progress=progress)
    search = delta is None
    delta = first.delta
    packer = replace(packer, fixed=dict(packer.fixed), notes=list(first.notes))
    student = copy.deepcopy(teacher)
    held = _hold(packer, student)
    names = [matrix.name for matrix in packer.matrices]
    groups = student.groups(names) if config.by_layer else [names]
    batch = max(1, 16384 // windows.shape[1])
    goal = goal_of(packer, bits)
    if search and bits is None and packer.fixed and len(groups) > 1:
        delta = _delta_for_tuned_floats(packer, student, goal.limit, delta, progress)
    coded: dict[str, PackedTensor] = {}
    predicted = loss = 0.0
    position = tuned = 0
    start = time.perf_counter()
    for index, group in enumerate(groups):
        last = index == len(groups) - 1
        ahead = windows.roll(-position, 0)
        fresh = sensitivities
        if index:
            few = ahead[: config.calibration_windows]
            fresh = collect(
                student, few, ranks, fisher_windows=1, batch=batch, seed=0
            ).sensitivities
        packer.matrices = _matrices(packer, student, group, sensitivities, fresh)
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
        _freeze(student, tensors)
        settings = config.tuning(
            steps=config.final_steps if last else config.group_steps,
            later=0
            if last
            else config.group_steps * (len(groups) - 2 - index) + config.final_steps,
            spent=ranks.first(time.perf_counter() - start) if config.seconds else 0.0,
        )
        if settings is None:
            continue
        result = tune(
            student,
            teacher,
            ahead,
            settings,
            ranks,
            fixed=held,
            progress=progress,
            phase=f"tune {index + 1}/{len(groups)}",
        )
        tuned += result.steps
        position += result.steps * max(1, config.tokens // windows.shape[1])
    packer.record = replace(packer.record, tuned_steps=tuned, tuned_labels=config.labels or None)
    finished = _finish(packer, coded, student, goal, loss, delta if search else None)
    if finished is None:
        return _untuned(first)
    encoded, more = finished
    return packer.seal(encoded, delta=delta, predicted_nats=predicted + more)


def _delta_for_tuned_floats(
    packer: Packer, student: LanguageModel, limit: int, delta: float, progress: Progress
) -> float:
    """The delta at which the file fits once its floats are as large as tuning will leave them.

    It is `delta`, that of a file before tuning, where floats grow by no more than is held back. If
    they grow by more, as tables in bfloat16 do, the last group alone would have to make up for it:
    it cost more than all tuning won (docs/log.md, 2026-11-29).
    """
    grown = replace(packer, fixed=dict(packer.fixed))
    _refresh_floats(grown, student, tuned=False)
    codecs = packer.config.codecs
    before, after = (
        encode_sections([*each.fixed.values()], codecs).stored_bytes for each in (packer, grown)
    )
    if after - before <= int(limit * HELD_BACK) + HELD_BACK_BYTES:
        return delta
    try:
        return pack_to_budget(grown, progress=progress).delta
    except BudgetError:
        return delta


def _matrices(
    packer: Packer,
    student: LanguageModel,
    names: Sequence[str],
    sensitivities: Mapping[str, Sensitivity],
    fresh: Mapping[str, Sensitivity],
) -> list[Matrix]:
    """The named matrices as `student` has them, with fresh Hessians and the first row weights."""
    weights = floats(student)
    return [
        prepare_matrix(
            name,
            weights[name].numpy(),
            replace(sensitivities[name], hessian=fresh[name].hessian),
            fed=name in packer.feeds.values(),
            damp=packer.config.damp,
        )
        for name in names
    ]


def _freeze(student: LanguageModel, tensors: Mapping[str, PackedTensor]) -> None:
    offsets = {name: column_offsets(tensor) for name, tensor in tensors.items()}
    freeze(
        student,
        {name: torch.from_numpy(dequantize(t).copy()) for name, t in tensors.items()},
        {name: torch.from_numpy(each) for name, each in offsets.items() if each is not None},
    )


def _finish(
    packer: Packer,
    coded: Mapping[str, PackedTensor],
    student: LanguageModel,
    goal: Goal,
    loss: float,
    delta: float | None,
) -> tuple[EncodedSections, float] | None:
    """The sections after tuning, and the rise of `loss` that fitting them took; None if too large.

    Args:
        loss: predicted loss of the last group.
        delta: where the search for a coarser one begins if tuning has added more than was held
            back: the last group is then coded again, with the gains that it has learned. None
            leaves its codes as they are.
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
    """The file before tuning, which is known to fit, with a note that it is that one."""
    remark = "tuning was left out: what it adds does not fit; raise the budget, or bits, a little"
    return replace(first, notes=(*first.notes, remark))


def _hold(packer: Packer, student: LanguageModel) -> tuple[str, ...]:
    """Freeze what is in int8; returns the names of parameters that must not move for that."""
    held = {name: t for name, t in packer.fixed.items() if t.method == "int8"}
    weights = {name: t for name, t in held.items() if name.endswith(".weight")}
    _freeze(student, weights)
    state = student.state_dict()
    others = [name for name in held if name not in weights]
    for name in others:
        state[name].copy_(torch.from_numpy(dequantize(held[name])))
    return (*map(gain_name, weights), *others)


def _with_gains(
    coded: Mapping[str, PackedTensor], student: LanguageModel
) -> dict[str, PackedTensor]:
    """`coded`, with the gains that `student` has learned in their row scales."""
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
    """Put the student's floats in place of the packer's.

    Before tuning is done, only their size matters. Noise then stands for what tuning will add, as
    values may be all alike, or exact in bfloat16, until it does.
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
    goal: Goal,
) -> tuple[dict[str, PackedTensor], float] | None:
    """The last group at the delta that takes up what the others leave of `goal`; None if none does.

    Returns:
        Its tensors, and their predicted loss.
    """
    seen: dict[float, tuple[dict[str, PackedTensor], float]] = {}

    def size_at(tried: float) -> int:
        try:
            tensors, loss = packer.quantize(tried)
        except QuantError:
            return UNLIMITED  # finer than the first search went, codes may not be storable
        seen[tried] = (tensors, loss)
        return goal.measure(packer.draft(_with_gains({**coded, **tensors}, student)))

    found = solve_delta(
        size_at,
        goal.limit,
        start=delta,
        octave_bits=packer.weights,
        finest=delta / 2,
        tolerance=HELD_BACK,
    )
    return None if found is None else seen[found]
