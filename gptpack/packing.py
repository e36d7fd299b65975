"""The packer's story: a checkpoint becomes the bytes of one file that fits its budget.

checkpoint -> checked weights -> packed tensors -> coded sections -> a file's bytes, or the smallest
budget that would have worked. Nothing here touches the disk; the caller writes what it gets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptpack.artifact.writer import EncodedSections, assemble, assembled_bytes, encode_sections
from gptpack.checkpoint import Checkpoint
from gptpack.config import TokenizerIdentity
from gptpack.errors import BudgetError, CheckpointError
from gptpack.model.gpt import GPT, state_problem
from gptpack.progress import Progress, silent
from gptpack.quant.int8 import quantize_reference
from gptpack.version import VERSION

QUALITY = {"bpb_before": 9.876543, "bpb_after": 9.876543, "context": 65536, "tokens": 9999999999}
"""Stands for the figures that are measured once the sections are known, so that they have room."""
MARGIN_BYTES = 16
"""What deflating other digits may add to a header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Coded sections and everything that the header will say."""

    encoded: EncodedSections
    checkpoint: Checkpoint
    tokenizer: TokenizerIdentity
    pack: Mapping[str, Any]
    budget_bytes: int
    code_bytes: int

    def file(self, quality: Mapping[str, float] | None = None) -> bytes:
        """The file, with what was measured of it; never over the budget.

        Raises:
            BudgetError: it does not fit.
        """
        pack = {**self.pack, **({"quality": dict(quality)} if quality else {})}
        data = assemble(
            self.encoded, model=self.checkpoint.model, tokenizer=self.tokenizer, pack=pack
        )
        check_budget(len(data), self.budget_bytes, self.code_bytes)
        return data


def check_budget(file_bytes: int, budget_bytes: int, code_bytes: int) -> None:
    """Raise the `BudgetError` of a file that, with the code beside it, is over its budget."""
    needed = file_bytes + code_bytes
    if needed > budget_bytes:
        code = f" and {code_bytes:,} bytes of code" if code_bytes else ""
        raise BudgetError(
            f"the smallest file of these methods has {file_bytes:,} bytes{code}, over the budget "
            f"of {budget_bytes:,}; the smallest budget that works is {needed:,} bytes"
        )


def checked_weights(checkpoint: Checkpoint) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The weights by name, in the model's order, all there and finite.

    Raises:
        CheckpointError: missing, extra, misshapen or non-finite tensors, all named.
    """
    model = GPT(checkpoint.model)
    if problem := state_problem(model, checkpoint.weights):
        raise CheckpointError(f"the checkpoint does not fit its model: {problem}")
    return {name: checkpoint.weights[name].numpy() for name in model.state_dict()}


def pack_int8(
    checkpoint: Checkpoint,
    tokenizer: TokenizerIdentity,
    *,
    budget_bytes: int,
    code_bytes: int = 0,
    codecs: Sequence[str] | str = ("zlib", "zstd"),
    provenance: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Packed:
    """Pack by the reference's int8 rules (gptpack/quant/int8.py).

    Args:
        code_bytes: bytes of code that count into the same budget.
        provenance: what the header shall say of the input, such as its hash.

    Raises:
        BudgetError: the file would be over the budget; names the smallest that works.
        CheckpointError: see `checked_weights`.
    """
    weights = checked_weights(checkpoint)
    tensors = []
    for index, (name, values) in enumerate(weights.items()):
        tensors.append(quantize_reference(name, values))
        progress("quantize", index + 1, len(weights))
    progress("code", 0, 1)
    encoded = encode_sections(tensors, codecs)
    progress("code", 1, 1)
    pack = {
        "gptpack": VERSION,
        "method": "int8",
        "budget_bytes": budget_bytes,
        "code_bytes": code_bytes,
        **(provenance or {}),
    }
    size = assembled_bytes(
        encoded, model=checkpoint.model, tokenizer=tokenizer, pack={**pack, "quality": QUALITY}
    )
    check_budget(size + MARGIN_BYTES, budget_bytes, code_bytes)
    return Packed(
        encoded=encoded,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        pack=pack,
        budget_bytes=budget_bytes,
        code_bytes=code_bytes,
    )
