"""A model, its sensitivities and a configuration -> a `Packer`, which can quantize it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gptpack.artifact.plan import TensorEntry
from gptpack.artifact.record import PackRecord
from gptpack.artifact.tables import check_table
from gptpack.artifact.writer import NO_FILES, EncodedFiles
from gptpack.errors import ArtifactError, BudgetError, CheckpointError, QuantError
from gptpack.families.language_model import LanguageModel, not_finite
from gptpack.packing.config import GRIDS, PackConfig
from gptpack.packing.packer import UNLIMITED, Packer
from gptpack.progress import Progress, silent
from gptpack.quant.allocation import Matrix, Sensitivity, prepare_matrix
from gptpack.quant.gptq import quantize_clipped
from gptpack.quant.int8 import keep_float, quantize_int8_rows, quantize_reference
from gptpack.quant.types import PackedTensor
from gptpack.quant.workers import side_by_side
from gptpack.shelf import Shelf
from gptpack.values import TokenizerIdentity
from gptpack.version import VERSION

LEAST_CODED = 4096
"""Least weights of a matrix that is coded; of smaller ones, tables and scales would cost more."""
NOTABLE = 1 << 16
"""Least weights of a tensor in floats that is named to a person."""
MOST_HEADER = 1 << 16
"""Bytes that are granted to a header where nothing is coded yet."""
SMALLEST_FLOAT16 = 2.0**-17
"""Least magnitude at which float16, whose smallest values are 2^-24 apart, has eight bits."""
Float32 = npt.NDArray[np.float32]


def take_apart(
    model: LanguageModel,
    tokenizer: TokenizerIdentity | None,
    config: PackConfig,
    sensitivities: Mapping[str, Sensitivity],
    *,
    files: EncodedFiles = NO_FILES,
    budget_bytes: int = UNLIMITED,
    code_bytes: int = 0,
    record: PackRecord = PackRecord(),  # noqa: B008, frozen
    proved: bool = True,
    progress: Progress = silent,
) -> Packer:
    """Quantize what does not depend on the budget, and factor the Hessians of the rest.

    Args:
        sensitivities: by weight name. A matrix that needs one and has none falls back to int8 rows,
            with a note, or raises where `config` is strict.
        files: the files that go with the model.
        code_bytes: bytes of code that count towards the same budget.
        record: provenance for the header, such as the checkpoint's hash.
        proved: whether the file will be scored, so that its header needs room for the figures.

    Raises:
        CheckpointError: weights are not finite.
        ConfigError: a pattern of `config` matches no tensor.
        QuantError: a matrix would have to fall back, and `config` is strict.
    """
    weights = finite_weights(model)
    methods, factors = config.methods, config.delta_factors
    packer = Packer(
        model=model.config,
        tokenizer=tokenizer,
        config=config,
        order=list(weights),
        transposed=model.transposed,
        further_names=model.further_names(),
        feeds=model.feeds(),
        files=files,
        budget_bytes=budget_bytes,
        code_bytes=code_bytes,
        record=replace(
            record,
            gptpack=VERSION,
            method=methods[0][1] if len(methods) == 1 else methods,
            budget_bytes=budget_bytes if budget_bytes < UNLIMITED else None,
            code_bytes=code_bytes,
            step_factors=factors or None,
        ),
        proved=proved,
    )
    config.check_names(weights)
    calibrated = []
    for name, values in weights.items():
        method = config.method_of(name)
        if method == "int8":
            packer.fixed[name] = quantize_reference(name, values)
        elif not on_grid(name, values.shape):
            kept = packer.fixed[name] = keep_smallest_float(name, values)
            if values.size >= NOTABLE:
                packer.notes.append(
                    f"{name}: {' x '.join(map(str, values.shape))} is no weight of a linear layer "
                    f"or embedding; kept in {kept.method}"
                )
        elif method == "float16":
            packer.fixed[name] = keep_float(name, values, "float16")
        else:
            calibrated.append(name)
    progress("factor", 0, len(calibrated))
    shelf, fed = Shelf(), {*packer.feeds.values()}
    made = side_by_side(
        lambda name: _calibrated(
            name, weights[name], sensitivities.get(name), config, shelf, fed=name in fed
        ),
        calibrated,
        cost=lambda name: float(weights[name].shape[1]) ** 3,
        takes=lambda name: 40.0 * weights[name].shape[1] ** 2,  # five copies in float64
        weights=sum(values.size for values in weights.values()),
    )
    for name, (result, notes) in zip(calibrated, made, strict=True):
        packer.notes.extend(notes)
        if isinstance(result, Matrix):
            packer.matrices.append(result)
            trellis = config.method_of(name) == "gptq-trellis"
            packer.states[name] = config.states if trellis else 1
        else:
            packer.fixed[name] = result
    progress("factor", len(calibrated), len(calibrated))
    return packer


def check_files_fit(
    model: LanguageModel,
    config: PackConfig,
    files: EncodedFiles,
    *,
    budget_bytes: int | None,
    code_bytes: int,
) -> None:
    """Check, before anything is calibrated, that files and code leave room for the weights.

    Raises:
        BudgetError: they take the budget by themselves; names one that is enough.
    """
    taken = files.stored_bytes + code_bytes
    if budget_bytes is None or taken < budget_bytes:
        return
    enough = taken + MOST_HEADER
    for name, value in model.weights().items():
        coded = on_grid(name, value.shape) and config.method_of(name) != "float16"
        enough += value.numel() + 8 * value.shape[0] if coded else 4 * value.numel()
    code = f" and {code_bytes:,} of code" if code_bytes else ""
    raise BudgetError(
        f"{files.stored_bytes:,} bytes of {files.named}{code} leave nothing of the budget of "
        f"{budget_bytes:,} for the weights; {enough:,} bytes are enough, and fewer may be"
    )


def check_storable(model: LanguageModel) -> None:
    """Check, before anything is calibrated, that a file can hold each tensor of the model's state.

    Raises:
        CheckpointError: one is no tensor, or of a name, shape or type that no file holds, or not
            finite.
    """
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{name}: a {type(value).__name__} in the state; needed tensors")
        if value.is_inference():
            raise CheckpointError(
                f"{name} was made in torch.inference_mode, where no gradient goes; make it outside"
            )
        if value.is_complex() or not (
            value.is_floating_point() or torch.equal(value.float().to(value.dtype), value)
        ):
            raise CheckpointError(
                f"{name} has values in {value.dtype} that float32 does not hold; give them to "
                "register_buffer with persistent=False, which keeps them out of the state"
            )
    weights = model.weights()
    _check_finite(weights)
    try:
        check_table(
            TensorEntry(name=n, shape=tuple(v.shape), method="float32", parameters={}, record={})
            for n, v in weights.items()
        )
    except ArtifactError as error:
        raise CheckpointError(f"the model's state cannot be packed: {error}") from error


def finite_weights(model: LanguageModel) -> dict[str, Float32]:
    """The weights by name, in the model's order, in float32 on the CPU.

    Raises:
        CheckpointError: some are not finite; names them.
    """
    weights = {name: value.detach().float().cpu() for name, value in model.weights().items()}
    _check_finite(weights)
    return {name: value.numpy() for name, value in weights.items()}


def _check_finite(weights: Mapping[str, Tensor]) -> None:
    broken = not_finite(weights)
    if not broken:
        return
    mask = any(weights[name].isneginf().any() for name in broken)
    hint = "; give a mask to register_buffer with persistent=False, as it is no weight"
    raise CheckpointError(
        f"the model has weights that are not finite: {', '.join(broken[:4])}{hint if mask else ''}"
    )


def on_grid(name: str, shape: Sequence[int]) -> bool:
    """Whether calibrated methods code a tensor of this name and shape; others stay in floats."""
    return len(shape) == 2 and name.endswith(".weight") and math.prod(shape) >= LEAST_CODED


def keep_smallest_float(name: str, values: Float32) -> PackedTensor:
    """`values` in bfloat16 where that is exact, else in float16 where that suffices, else float32.

    float16 does not suffice where a value becomes infinite, or where even the largest is so small
    that it would have less than bfloat16's precision: values of 1e-9 would become 0.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    if not (bits & 0xFFFF).any():
        return keep_float(name, values, "bfloat16")
    largest = np.abs(values).max(initial=0)
    suffices = SMALLEST_FLOAT16 <= largest < np.finfo(np.float16).max
    return keep_float(name, values, "float16" if suffices else "float32")


def _calibrated(
    name: str,
    values: Float32,
    sensitivity: Sensitivity | None,
    config: PackConfig,
    shelf: Shelf,
    *,
    fed: bool,
) -> tuple[Matrix | PackedTensor, tuple[str, ...]]:
    """A matrix for a grid, or a tensor that is coded already; and notes about it.

    Raises:
        QuantError: the matrix would have to fall back, and `config` is strict.
    """
    method = config.method_of(name)
    try:
        if sensitivity is None:
            raise QuantError(f"{name}: no calibration input reaches it")
        matrix = prepare_matrix(name, values, sensitivity, fed=fed, damp=config.damp)
    except QuantError as error:
        if config.strict:
            raise
        tensor = quantize_int8_rows(name, values)
        note = f"{error}; packed as int8 rows instead"
        return _with_record(tensor, {"fallback": method}), (note,)
    notes = matrix.factor.notes
    if method in GRIDS:
        factor = replace(matrix.factor, feedback=shelf.put(np.asarray(matrix.factor.feedback)))
        return replace(matrix, factor=factor), notes
    bits = int(method.removeprefix("gptq-int"))
    rounding, scales = quantize_clipped(values, matrix.factor, bits)
    tensor = PackedTensor(
        name=name,
        shape=values.shape,
        method="int8",
        arrays={"codes": rounding.points.astype(np.int8), "scales": scales.astype(np.float16)},
    )
    loss = float(matrix.row_weight @ rounding.row_loss) / 2
    record = {"method": method, "damp": matrix.factor.damp, "loss_nats": float(f"{loss:.3g}")}
    return _with_record(tensor, record), notes


def _with_record(tensor: PackedTensor, record: Mapping[str, Any]) -> PackedTensor:
    return replace(tensor, record={**tensor.record, **record})
