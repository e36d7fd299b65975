"""A model taken apart -> codes at one delta -> coded sections -> the bytes of a file.

apart.py makes a `Packer`, and search.py finds the delta that fits a budget. Nothing here writes a
file; the caller does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from gptpack.artifact.record import PackRecord, Quality
from gptpack.artifact.shares import with_coded_bytes
from gptpack.artifact.tables import FURTHER_NAMES, TRANSPOSED
from gptpack.artifact.writer import (
    NO_FILES,
    EncodedFiles,
    EncodedSections,
    assemble,
    assembled_bytes,
    encode_sections,
)
from gptpack.errors import BudgetError, QuantError
from gptpack.families.family import FamilyConfig
from gptpack.packing.config import PackConfig
from gptpack.quant.allocation import Matrix, quantize_matrices
from gptpack.quant.channels import without_idle
from gptpack.quant.methods import GRID_METHODS
from gptpack.quant.types import PackedTensor
from gptpack.shelf import Shelf
from gptpack.values import TokenizerIdentity

MARGIN_BYTES = 32
"""Bytes that deflating other digits may add to a header: 21 at the worst of 3,000 headers."""
PROOFS = (
    Quality(bpb_before=1.0, bpb_after=1.0, context=8, tokens=8),
    Quality(bpb_before=9.876543, bpb_after=8.976534, context=65536, tokens=9182736450),
    Quality(bpb_before=1.357924, bpb_after=2.468013, context=98304, tokens=1928374650),
    Quality(bpb_before=0.918273, bpb_after=6.504837, context=12345, tokens=6758493021),
)
"""Figures that a proof might find: the shortest, and some of the longest."""
PROOF_BYTES = 8
"""Bytes that others of that length may take more."""
UNLIMITED = 2**62
"""Budget of a pack that has none, larger than any file; a header does not mention it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedFile:
    """A file that is complete but for what is measured of it; `assemble` makes the bytes."""

    encoded: EncodedSections
    model: FamilyConfig
    tokenizer: TokenizerIdentity | None
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
        """The file's bytes, never over the budget; its header has the measured `quality`.

        Raises:
            BudgetError: the file does not fit.
        """
        pack = replace(self.record, quality=quality or Quality()).to_dict()
        data = assemble(self.encoded, model=self.model, tokenizer=self.tokenizer, pack=pack)
        check_budget(len(data), self.budget_bytes, self.code_bytes)
        return data

    def bytes_for(self, budget_bytes: int, quality: Quality) -> int:
        """Bytes of the file if it were made for this budget and had this quality."""
        limited = self.record.budget_bytes is not None
        record = replace(self.record, quality=quality)
        if limited:
            record = replace(record, budget_bytes=budget_bytes)
        return assembled_bytes(
            self.encoded, model=self.model, tokenizer=self.tokenizer, pack=record.to_dict()
        )


def check_budget(
    file_bytes: int,
    budget_bytes: int,
    code_bytes: int,
    enough: int | None = None,
    files: EncodedFiles = NO_FILES,
) -> None:
    """Check that a file and the code beside it are within their budget.

    Args:
        files: what of the file goes with the model, to be named.
        enough: the budget to name where they are not; None names the bytes of both.

    Raises:
        BudgetError: they are over it; names a budget that is enough.
    """
    needed = file_bytes + code_bytes
    if needed > budget_bytes:
        beside = f" ({files.stored_bytes:,} of {files.named})" if files.files else ""
        code = f" and {code_bytes:,} bytes of code" if code_bytes else ""
        raise BudgetError(
            f"the smallest file found has {file_bytes:,} bytes{beside}{code}, over the budget of "
            f"{budget_bytes:,}; {enough or needed:,} bytes are enough"
        )


def grid_bytes(encoded: EncodedSections) -> int:
    """Bytes of what is on a grid: codes, scales and tables."""
    names = tuple(f"{method}." for method in GRID_METHODS)
    return sum(s.stored_bytes for s in encoded.sections if s.name.startswith(names))


def grid_bits(encoded: EncodedSections) -> float | None:
    """Coded bits per weight on a grid: codes, scales and tables; None where there is no grid."""
    weights = sum(tensor.numel for tensor in encoded.tensors if tensor.method in GRID_METHODS)
    return 8 * grid_bytes(encoded) / weights if weights else None


@dataclass(slots=True, kw_only=True)
class Packer:
    """A model taken apart: matrices for grids of one delta, and the tensors beside them."""

    model: FamilyConfig
    """The model's configuration, for the header."""
    tokenizer: TokenizerIdentity | None
    config: PackConfig
    order: list[str]
    """Names of all tensors in the order of the table."""
    transposed: frozenset[str] = frozenset()
    """Names of the tensors whose transpose the model's state has."""
    further_names: Mapping[str, list[str]] = field(default_factory=dict)
    """Names that tensors have beside the one in the table, for their record."""
    files: EncodedFiles = NO_FILES
    """Files that go with the model, coded."""
    matrices: list[Matrix] = field(default_factory=list)
    states: dict[str, int] = field(default_factory=dict)
    """States of each matrix' trellis by name; 1 for a plain uniform grid."""
    feeds: Mapping[str, str] = field(default_factory=dict)
    """Names of matrices whose rows make channels, and of those whose columns alone take them."""
    fixed: dict[str, PackedTensor] = field(default_factory=dict)
    """The tensors that do not depend on delta, by name."""
    notes: list[str] = field(default_factory=list)
    """Warnings for a person, each naming its tensor."""
    record: PackRecord = field(default_factory=PackRecord)
    """The header's record, as far as it is known."""
    budget_bytes: int = UNLIMITED
    code_bytes: int = 0
    threads: int | None = None
    """Threads that quantize; None takes one per core."""
    proved: bool = True
    """Whether the header will have figures that are measured on the file."""

    @property
    def weights(self) -> int:
        """Number of weights that are on grids."""
        return sum(matrix.weight.size for matrix in self.matrices)

    def put_away(self, shelf: Shelf) -> None:
        """Put the weights of all matrices on a shelf: the model's memory can then be freed."""
        self.matrices = [
            replace(matrix, weight=shelf.put(np.asarray(matrix.weight))) for matrix in self.matrices
        ]

    def size(self, encoded: EncodedSections) -> int:
        """Bytes of the file, with room for figures that are measured later."""
        pack = self.record.widest(proved=self.proved).to_dict()
        file_bytes = assembled_bytes(encoded, model=self.model, tokenizer=self.tokenizer, pack=pack)
        return file_bytes + MARGIN_BYTES

    def tensors(self, coded: Mapping[str, PackedTensor]) -> list[PackedTensor]:
        """All tensors in the order of the table."""
        found = [coded[name] if name in coded else self.fixed[name] for name in self.order]
        turned = {name: {TRANSPOSED: 1} for name in self.transposed}
        more = {name: {FURTHER_NAMES: names} for name, names in self.further_names.items()}
        return [
            replace(
                t,
                parameters={**t.parameters, **turned.get(t.name, {})},
                record={**t.record, **more.get(t.name, {})},
            )
            for t in found
        ]

    def quantize(self, delta: float) -> tuple[dict[str, PackedTensor], float]:
        """Every matrix on its grid at `delta`, and the predicted rise of the loss, nats per token.

        Raises:
            QuantError: codes of so fine a grid cannot be stored.
        """
        coded: dict[str, PackedTensor] = {}
        loss = 0.0
        deltas = {m.name: delta * self.config.delta_factor_of(m.name) for m in self.matrices}
        matrices = {matrix.name: matrix for matrix in self.matrices}
        for pair in self.feeds.items():
            if matrices.keys() >= set(pair):
                first, second = (matrices[name] for name in pair)
                kept = without_idle(first, second, deltas[second.name])
                matrices.update(zip(pair, kept, strict=True))
        for states in sorted(set(self.states.values())):
            group = [m for m in matrices.values() if self.states[m.name] == states]
            for result in quantize_matrices(
                group,
                deltas,
                states=states,
                row_power=self.config.row_power,
                rescale=self.config.rescale,
                threads=self.threads,
            ):
                coded[result.tensor.name] = result.tensor
                loss += result.loss_nats
        return coded, loss

    def encode(self, coded: Mapping[str, PackedTensor]) -> EncodedSections:
        """The sections of all tensors, of which those on grids are `coded`."""
        return self._encoded(coded, draft=False)

    def draft(self, coded: Mapping[str, PackedTensor]) -> EncodedSections:
        """Sections as large as `encode` makes them or a few bytes larger, with no codes in them."""
        return self._encoded(coded, draft=True)

    def _encoded(self, coded: Mapping[str, PackedTensor], *, draft: bool) -> EncodedSections:
        tensors = self.tensors(coded)
        encoded = encode_sections(tensors, self.config.codecs, files=self.files, draft=draft)
        return with_coded_bytes(encoded, tensors, draft=draft)

    def seal(
        self, encoded: EncodedSections, *, delta: float | None, predicted_nats: float
    ) -> CodedFile:
        """The coded file, whose header says `delta` and `predicted_nats`.

        Raises:
            BudgetError: the file does not fit its budget.
        """
        check_budget(self.size(encoded), self.budget_bytes, self.code_bytes, files=self.files)
        return self._coded(encoded, delta, predicted_nats)

    def seal_smallest(
        self, encoded: EncodedSections, *, delta: float | None, predicted_nats: float
    ) -> CodedFile:
        """`seal` of codes that cannot be smaller: no room is kept free for what it may not take.

        What is measured later may still be some bytes too long; `CodedFile.assemble` says so.

        Raises:
            BudgetError: the file does not fit its budget; names the least one that is enough, or
                some bytes more where figures come later.
        """
        coded = self._coded(encoded, delta, predicted_nats)
        shortest, *longer = PROOFS if self.proved else (Quality(), Quality())
        if coded.bytes_for(self.budget_bytes, shortest) + self.code_bytes <= self.budget_bytes:
            return coded

        def needed(budget: int) -> int:
            most = max(coded.bytes_for(budget, quality) for quality in longer)
            return most + self.code_bytes + (PROOF_BYTES if self.proved else 0)

        # the budget is in the header, whose bytes its digits change
        start = needed(needed(self.budget_bytes)) - PROOF_BYTES
        enough = next(budget for budget in count(start) if needed(budget) <= budget)
        least = needed(enough) - self.code_bytes
        check_budget(least, self.budget_bytes, self.code_bytes, enough, self.files)
        return coded  # where figures of some length would fit, and those of another would not

    def _coded(
        self, encoded: EncodedSections, delta: float | None, predicted_nats: float
    ) -> CodedFile:
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
