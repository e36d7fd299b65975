"""A model and its sensitivities -> codes at one delta -> coded sections -> the bytes of a file.

The delta that fits a budget is found in search.py. Nothing here writes a file; the caller does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.artifact.record import PackRecord, Quality
from gptpack.artifact.writer import EncodedSections, assemble, assembled_bytes, encode_sections
from gptpack.errors import BudgetError, CheckpointError, QuantError
from gptpack.families.language_model import LanguageModel, not_finite
from gptpack.packing.config import GRIDS, PackConfig
from gptpack.progress import Progress, silent
from gptpack.quant.allocation import (
    Matrix,
    Sensitivity,
    prepare_matrix,
    quantize_matrices,
)
from gptpack.quant.gptq import quantize_clipped
from gptpack.quant.int8 import keep_float, quantize_int8_rows, quantize_reference
from gptpack.quant.types import PackedTensor
from gptpack.quant.workers import side_by_side
from gptpack.values import TokenizerIdentity
from gptpack.version import VERSION

MARGIN_BYTES = 32
"""Bytes that deflating other digits may add to a header: 21 at the worst of 3,000 headers."""
UNLIMITED = 2**62
"""The budget of a pack that has none; larger than any file. A header does not mention it."""
LEAST_CODED = 4096
"""Matrices of fewer weights are kept in floats: their tables and scales would cost more."""
SMALLEST_FLOAT16 = 2.0**-17
"""From here on float16, whose smallest values are 2^-24 apart, has eight bits or more."""
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedFile:
    """Coded sections and everything that the header will say; `assemble` makes the bytes."""

    encoded: EncodedSections
    model: Any
    """The family's configuration."""
    tokenizer: TokenizerIdentity
    record: PackRecord
    budget_bytes: int
    code_bytes: int
    notes: tuple[str, ...] = ()
    """Warnings for a person, each naming its tensor."""
    predicted_nats: float = 0.0
    """Rise of the loss per token that the allocation expects."""

    @property
    def delta(self) -> float:
        """The delta of all grids.

        Raises:
            QuantError: no matrix is on a grid.
        """
        if self.record.delta is None:
            raise QuantError("no matrix is on a grid, so there is no delta")
        return self.record.delta

    def assemble(self, quality: Quality | None = None) -> bytes:
        """The file's bytes, with what was measured of it; never over the budget.

        Raises:
            BudgetError: it does not fit.
        """
        record = replace(self.record, quality=quality or Quality())
        pack = record.to_dict()
        data = assemble(self.encoded, model=self.model, tokenizer=self.tokenizer, pack=pack)
        check_budget(len(data), self.budget_bytes, self.code_bytes)
        return data


def check_budget(file_bytes: int, budget_bytes: int, code_bytes: int) -> None:
    """Raise the `BudgetError` of a file that, with the code beside it, is over its budget."""
    needed = file_bytes + code_bytes
    if needed > budget_bytes:
        code = f" and {code_bytes:,} bytes of code" if code_bytes else ""
        raise BudgetError(
            f"the smallest file found has {file_bytes:,} bytes{code}, over the budget of "
            f"{budget_bytes:,}; {needed:,} bytes are enough"
        )


def grid_bits(encoded: EncodedSections) -> float | None:
    """Coded bits per weight on a grid: codes, scales and tables; None where there is no grid."""
    methods = ("trellis", "uniform")
    weights = sum(tensor.numel for tensor in encoded.tensors if tensor.method in methods)
    names = tuple(f"{method}." for method in methods)
    stored = sum(s.stored_bytes for s in encoded.sections if s.name.startswith(names))
    return 8 * stored / weights if weights else None


def finite_weights(model: LanguageModel) -> dict[str, Float32]:
    """The weights by name, in the model's order, in float32 on the CPU.

    Raises:
        CheckpointError: some are not finite; names them.
    """
    weights = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
    if broken := not_finite(weights):
        raise CheckpointError(f"the model has weights that are not finite: {', '.join(broken[:4])}")
    return {name: value.numpy() for name, value in weights.items()}


@dataclass(slots=True, kw_only=True)
class Packer:
    """A model taken apart: what is on grids of one delta, and what does not depend on it."""

    model: Any
    """The family's configuration, for the header."""
    tokenizer: TokenizerIdentity
    config: PackConfig
    order: list[str]
    """Names in the order of the tensor table."""
    matrices: list[Matrix] = field(default_factory=list)
    states: dict[str, int] = field(default_factory=dict)
    fixed: dict[str, PackedTensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    record: PackRecord = field(default_factory=PackRecord)
    """What the header will say, as far as it is known."""
    budget_bytes: int = UNLIMITED
    code_bytes: int = 0
    threads: int | None = None
    """Threads that quantize; None takes one per core."""
    proved: bool = True
    """Whether the header will have figures that are measured on the file."""

    @property
    def weights(self) -> int:
        """Weights that are on grids."""
        return sum(matrix.weight.size for matrix in self.matrices)

    def size(self, encoded: EncodedSections) -> int:
        """Bytes of the file, with room for what is measured later."""
        pack = self.record.widest(proved=self.proved).to_dict()
        file_bytes = assembled_bytes(encoded, model=self.model, tokenizer=self.tokenizer, pack=pack)
        return file_bytes + MARGIN_BYTES

    def tensors(self, coded: Mapping[str, PackedTensor]) -> list[PackedTensor]:
        """All tensors in the order of the table."""
        return [coded[name] if name in coded else self.fixed[name] for name in self.order]

    def quantize(self, delta: float) -> tuple[dict[str, PackedTensor], float]:
        """Every matrix on its grid at `delta`, and the predicted rise of the loss, nats a token."""
        coded: dict[str, PackedTensor] = {}
        loss = 0.0
        for states in sorted(set(self.states.values())):
            group = [matrix for matrix in self.matrices if self.states[matrix.name] == states]
            for result in quantize_matrices(
                group,
                {m.name: delta * self.config.step_factor_of(m.name) for m in group},
                states=states,
                row_power=self.config.row_power,
                rescale=self.config.rescale,
                threads=self.threads,
            ):
                coded[result.tensor.name] = result.tensor
                loss += result.loss_nats
        return coded, loss

    def encode(self, coded: Mapping[str, PackedTensor]) -> EncodedSections:
        return encode_sections(self.tensors(coded), self.config.codecs)

    def draft(self, coded: Mapping[str, PackedTensor]) -> EncodedSections:
        """As large as `encode` would make it, or a few bytes larger, and of no other use."""
        return encode_sections(self.tensors(coded), self.config.codecs, draft=True)

    def seal(
        self, encoded: EncodedSections, *, delta: float | None, predicted_nats: float
    ) -> CodedFile:
        """The result, within the budget.

        Raises:
            BudgetError: it does not fit.
        """
        check_budget(self.size(encoded), self.budget_bytes, self.code_bytes)
        record = self.record
        if delta is not None:
            record = replace(
                record,
                delta=float(f"{delta:.6g}"),
                predicted_nats=float(f"{predicted_nats:.6g}"),
            )
        return CodedFile(
            encoded=encoded,
            model=self.model,
            tokenizer=self.tokenizer,
            record=record,
            budget_bytes=self.budget_bytes,
            code_bytes=self.code_bytes,
            notes=tuple(self.notes),
            predicted_nats=predicted_nats,
        )


def take_apart(
    model: LanguageModel,
    tokenizer: TokenizerIdentity,
    config: PackConfig,
    sensitivities: Mapping[str, Sensitivity],
    *,
    budget_bytes: int = UNLIMITED,
    code_bytes: int = 0,
    record: PackRecord = PackRecord(),  # noqa: B008, frozen
    proved: bool = True,
    progress: Progress = silent,
) -> Packer:
    """Quantize what does not depend on the budget, and factor the Hessians of the rest.

    Args:
        sensitivities: by weight name; matrices without one that need it fall back to int8 rows,
            which is noted, or an error where `config` is strict.
        code_bytes: bytes of code that count into the same budget.
        record: what the header shall say of the input, such as its hash.
        proved: whether the file will be scored, and its header have room for the figures.

    Raises:
        CheckpointError: weights are not finite.
        QuantError: a Hessian that cannot be used, or a fallback where `config` is strict.
    """
    weights = finite_weights(model)
    methods, factors = config.methods, config.step_factors
    packer = Packer(
        model=model.config,
        tokenizer=tokenizer,
        config=config,
        order=list(weights),
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
            packer.fixed[name] = keep_smallest_float(name, values)
        elif method == "float16":
            packer.fixed[name] = keep_float(name, values, "float16")
        else:
            calibrated.append(name)
    progress("factor", 0, len(calibrated))
    made = side_by_side(
        lambda name: _calibrated(name, weights[name], sensitivities.get(name), config),
        calibrated,
        cost=lambda name: float(weights[name].shape[1]) ** 3,
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


def on_grid(name: str, shape: Sequence[int]) -> bool:
    """Whether calibrated methods code a tensor of this name; others are kept in floats."""
    return len(shape) == 2 and name.endswith(".weight") and math.prod(shape) >= LEAST_CODED


def keep_smallest_float(name: str, values: Float32) -> PackedTensor:
    """bfloat16 where that is exact, else float16 where that does, else float32.

    float16 does not where a value becomes infinite, or all are so small that the largest has less
    than bfloat16's precision: those of 1e-9 would become 0.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    if not (bits & 0xFFFF).any():
        return keep_float(name, values, "bfloat16")
    largest = np.abs(values).max(initial=0)
    does = SMALLEST_FLOAT16 <= largest < np.finfo(np.float16).max
    return keep_float(name, values, "float16" if does else "float32")


def _calibrated(
    name: str, values: Float32, sensitivity: Sensitivity | None, config: PackConfig
) -> tuple[Matrix | PackedTensor, tuple[str, ...]]:
    """A matrix for the grid of one slope, or a tensor that is done, and notes about it.

    Raises:
        QuantError: it would have to fall back, and `config` is strict.
    """
    method = config.method_of(name)
    try:
        if sensitivity is None:
            raise QuantError(f"{name}: no calibration input reaches it")
        matrix = prepare_matrix(name, values, sensitivity, damp=config.damp)
    except QuantError as error:
        if config.strict:
            raise
        tensor = quantize_int8_rows(name, values)
        note = f"{error}; packed as int8 rows instead"
        return _with_record(tensor, {"fallback": method}), (note,)
    notes = matrix.factor.notes
    if method in GRIDS:
        return matrix, notes
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
