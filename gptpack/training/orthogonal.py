"""Matrices -> their nearest orthogonal ones, approximately, by odd polynomials.

Shape legend: N = matrices of equal shape, R = rows, C = columns.
"""

import torch
from torch import Tensor

from gptpack.training.recipe import MuonMethod

Quintic = tuple[float, float, float]
"""Coefficients (a, b, c) of ``s -> a s + b s^3 + c s^5``, which maps each singular value s."""

NEWTON_SCHULZ: Quintic = (3.4445, -4.7750, 2.0315)
"""One map for every iteration. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/"""

POLAR_EXPRESS: tuple[Quintic, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""A map for each iteration, the best one for where those before it leave singular values that
began in [0.001, 1]. Amsel et al. 2025, https://arxiv.org/abs/2505.16932; as speedruns have them,
with a margin of 2% for rounding. tests/reference_optimizers.py derives them, to 3e-15."""

ROW_NORM_FLOOR = 1e-7


def quintics(method: MuonMethod, steps: int) -> tuple[Quintic, ...]:
    """The polynomials of `steps` iterations; at most 5 of Polar Express."""
    return (NEWTON_SCHULZ,) * steps if method == "newton-schulz" else POLAR_EXPRESS[:steps]


def orthogonalize(
    matrices: Tensor,
    *,
    method: MuonMethod = "newton-schulz",
    steps: int = 5,
    dtype: torch.dtype = torch.float32,
    row_norm: bool = False,
) -> Tensor:
    """Approximate ``U V^T`` of each ``U S V^T`` in `matrices` ``[N, R, C]``, in `dtype`.

    Each iteration is X <- a X + (b A + c A^2) X with A = X X^T on the shorter side; matrices keep
    their layout. Singular values in [0.01, 1] of the norm end in [0.68, 1.14] after five iterations
    of Newton-Schulz, in [0.85, 1.15] after Polar Express.

    Args:
        row_norm: bring all rows to one length first (MuonEq-R, parameter-golf #1285).
    """
    if row_norm:
        lengths = matrices.norm(dim=-1, keepdim=True)
        matrices = matrices / lengths.clamp_min(ROW_NORM_FLOOR)
    x = matrices.to(dtype)
    norm = x.norm(dim=(-2, -1), keepdim=True)
    x = x / (norm + 1e-7 if method == "newton-schulz" else 1.02 * norm + 1e-6)
    tall = x.shape[-2] > x.shape[-1]
    for a, b, c in quintics(method, steps):
        short = x.mT if tall else x
        gram = short @ short.mT
        polynomial = b * gram + c * gram @ gram
        x = a * x + (x @ polynomial.mT if tall else polynomial @ x)
    return x
