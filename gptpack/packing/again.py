"""A packer and a budget -> the file, in which weights that were unpacked keep their codes.

Rounding again what was rounded before loses as much again. Where weights are those of a packed
file, bit for bit, and what they take fits the budget, they are coded as they were.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from gptpack.errors import BudgetError
from gptpack.packing.packer import CodedFile, Packer
from gptpack.packing.search import pack_to_budget
from gptpack.progress import Progress, silent
from gptpack.quant.recover import recovered
from gptpack.quant.types import PackedTensor
from gptpack.quant.workers import side_by_side


def pack_again(packer: Packer, *, progress: Progress = silent) -> CodedFile:
    """`pack_to_budget`, but for matrices that have codes already; those keep them if they fit.

    Raises:
        BudgetError, QuantError: see `pack_to_budget`.
    """
    kept = _kept(packer)
    if kept:
        count = f"{len(kept)} of {len(packer.matrices)} matrices"
        rest = replace(
            packer,
            matrices=[matrix for matrix in packer.matrices if matrix.name not in kept],
            fixed={**packer.fixed, **kept},
            notes=[*packer.notes, f"{count} were unpacked from a file and keep their codes"],
        )
        try:
            return pack_to_budget(rest, progress=progress)
        except BudgetError:
            pass  # the budget is smaller than the first time
    return pack_to_budget(packer, progress=progress)


def _kept(packer: Packer) -> Mapping[str, PackedTensor]:
    """The matrices that lie on a grid already, by name."""
    found = side_by_side(
        lambda matrix: recovered(
            matrix.name,
            np.asarray(matrix.weight),
            packer.states[matrix.name],
            offsets=matrix.offsets is not None,
        ),
        packer.matrices,
        cost=lambda matrix: matrix.weight.size,
        threads=packer.threads,
    )
    return {tensor.name: tensor for tensor in found if tensor is not None}
