"""Weights in training -> the grid steps that the packer would use, and the bytes of its file.

Sensitivities are measured on a few training windows, and the packer codes at a delta, by a trellis
of few states. On a model of 123,464 weights, 8 states are within 0.4 % of the bytes of 256
(docs/log.md, 2026-11-25).

Shape legend: R = rows (outputs), C = columns (inputs).
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from gptpack.artifact.record import PackRecord
from gptpack.calibration.text import calibrate
from gptpack.codec.polynomials import noise_of
from gptpack.cores import usable_cores
from gptpack.errors import QuantError
from gptpack.families.language_model import LanguageModel
from gptpack.packing.apart import on_grid, take_apart
from gptpack.packing.config import GRIDS, PackConfig
from gptpack.packing.packer import Packer
from gptpack.quant.allocation import Matrix
from gptpack.quant.methods import GRID_METHODS
from gptpack.quant.steps import Outlook, Steps
from gptpack.quant.types import PackedTensor, grid_scales, grid_values
from gptpack.ranks import Ranks
from gptpack.values import TokenizerIdentity

STATES = 8
"""Most states of the trellis that codes here, where the packer's own may have more."""
CODES = tuple(f"{method}.codes" for method in GRID_METHODS)
"""Names of the sections that hold codes on grids."""
UNKNOWN = hashlib.sha256().hexdigest()
"""Placeholder of a digest that is not known yet."""


@dataclass(slots=True, kw_only=True)
class PackerForesight:
    """A `gptpack.quant.steps.Foresight` that asks the packer of a configuration."""

    build: Callable[[Mapping[str, Tensor]], LanguageModel]
    """Function that makes the model of given weights, on the device of `ranks`."""
    windows: Tensor
    """Training tokens ``[N, T]``, never validation."""
    ranks: Ranks
    tokenizer: TokenizerIdentity | None = None
    """Identity for the header; None has a placeholder."""
    config: PackConfig = field(default_factory=PackConfig)
    packer: Packer | None = None
    """The packer of the weights that were looked at last; None before `look`."""

    def coded(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Names of the tensors of these shapes that go on a grid."""
        return [
            name
            for name, shape in shapes.items()
            if on_grid(name, shape) and self.config.method_of(name) in GRIDS
        ]

    def look(self, weights: Mapping[str, Tensor]) -> None:
        """Measure the sensitivities of a model with these weights.

        Raises:
            QuantError: no matrix of the model is coded on a grid.
        """
        model = self.build(weights).eval()
        model.use_attention("auto")
        found = calibrate(model, self.windows, self.ranks)
        vocab, bos = model.config.vocab, model.config.bos
        self.packer = take_apart(
            model,
            self.tokenizer or TokenizerIdentity(sha256=UNKNOWN, vocab=vocab, bos=bos),
            replace(self.config, states=min(STATES, self.config.states), rescale=False),
            found.sensitivities,
            record=PackRecord(
                checkpoint_sha256=UNKNOWN,
                step=9999,
                calibration="shards",
                calibration_tokens=found.hessian_tokens,
            ),
        )
        # every rank quantizes, all at the same time
        self.packer.threads = max(1, usable_cores() // self.ranks.world)
        if not self.packer.matrices:
            raise QuantError(
                "no matrix of this model is coded on a grid, so training cannot move its bytes; "
                "leave compression.target_bytes at 0"
            )

    def at(self, delta: float) -> Outlook:
        """Grid steps and file size at `delta`, for the weights that were looked at last."""
        packer = self.packer
        assert packer is not None, "look comes first"
        coded, _ = packer.quantize(delta)
        encoded = packer.draft(coded)
        stored = sum(s.stored_bytes for s in encoded.sections if s.name in CODES)
        states = self.config.states if max(packer.states.values()) > 1 else 1
        return Outlook(
            delta=delta,
            steps={m.name: _steps(m, coded[m.name]) for m in packer.matrices},
            coded_bits=8.0 * stored,
            other_bytes=packer.size(encoded) - stored,
            noise=noise_of(states),
        )


def _steps(matrix: Matrix, coded: PackedTensor) -> Steps:
    """Grid steps of a matrix, from its codes."""
    row_R, column_C = grid_scales(coded.arrays["row_scales"], coded.arrays["column_scales"])
    scale_RC = row_R[:, None] * column_C
    before_C = np.square(matrix.coded_part / scale_RC).mean(0)
    after_C = np.square(grid_values(coded) / scale_RC).mean(0)
    more_C = after_C - before_C - 1 / 12
    return Steps(row=row_R, column=column_C, noise=np.maximum(more_C, 0).astype(np.float32))
