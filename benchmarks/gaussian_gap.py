"""How far above the rate-distortion bound each ingredient leaves Gaussian weights.

    python benchmarks/gaussian_gap.py [--rates 3.4 2.7] [--seeds 1]

512 x 1536 weights with log-normal row scales (sigma 0.15); Hessian ``D Q L Q^T D`` with a random
rotation Q, eigenvalues 1/k, and log-normal channel scales D (sigma 0.5). A rate is the empirical
entropy of the symbols given their context (variance class of row + column, trellis parity), plus
tables of 12 bits for every symbol in use, plus the entropies of the scale and class indexes. One
matrix pays for its own tables under "alone"; under "model", 33 such matrices (26 M weights) share
them, as the artifact does. Each scheme's scale is set so that its rate under "model" is the one
asked for; "gap" is that rate minus R(D) at the distortion reached. "unbiased" is that rate minus
what codes need at least whose errors do not correlate with the weights: what a search, a code or
tables could still win without shrinking weights towards zero.

Shape legend: R = rows (outputs), C = columns (inputs).
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from gptpack.codec.polynomials import GAIN_DECIBELS
from gptpack.quant.factor import Factor, factorize
from gptpack.quant.grids import quantize_scale, scale_values
from gptpack.quant.trellis import quantize_on_grid

ROWS, COLUMNS = 512, 1536
MATRICES = 33
TABLE_BITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    weight: np.ndarray
    hessian: np.ndarray
    variances: np.ndarray
    """Of all components after whitening, sorted, in units of the loss per weight."""

    @classmethod
    def draw(cls, seed: int) -> "Problem":
        rng = np.random.default_rng(seed)
        row_R = np.exp(0.15 * rng.standard_normal(ROWS))
        weight_RC = rng.standard_normal((ROWS, COLUMNS)) * row_R[:, None]
        rotation_CC = np.linalg.qr(rng.standard_normal((COLUMNS, COLUMNS)))[0]
        channel_C = np.exp(0.5 * rng.standard_normal(COLUMNS))
        root_CC = channel_C[:, None] * rotation_CC / np.sqrt(np.arange(1, COLUMNS + 1))
        hessian_CC = root_CC @ root_CC.T
        hessian_CC *= COLUMNS / np.trace(hessian_CC)
        eigenvalues_C = np.linalg.eigvalsh(hessian_CC)
        variances = np.sort(np.outer(row_R**2, eigenvalues_C).ravel())
        return cls(weight=weight_RC, hessian=hessian_CC, variances=variances)

    def bound(self, distortion: float) -> float:
        """R(D), bits per weight, by reverse water-filling."""
        low, high = 1e-12, float(self.variances[-1])
        for _ in range(100):
            level = np.sqrt(low * high)
            if np.minimum(self.variances, level).mean() < distortion:
                low = level
            else:
                high = level
        return float(np.maximum(0, 0.5 * np.log2(self.variances / low)).mean())

    def unbiased_bound(self, distortion: float) -> float:
        """Bits per weight for Gaussian errors of `distortion` that are independent of the weights.

        Such an error adds its power to a component's code: ``1/2 log2(1 + variance / distortion)``.
        """
        return float(0.5 * np.log2(1 + self.variances / distortion).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    name: str
    states: int = 8
    order: str = "activation"
    damp: float = 1e-6
    water: bool = True
    """Column scales proportional to 1 / pivot; flat otherwise."""
    scales_per_octave: int = 4
    classes_per_octave: int = 4
    parity: bool = True


def entropy_bits(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def variance_classes(symbols_RC: np.ndarray, per_octave: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column indexes whose sum is the class of a symbol."""
    squares_RC = symbols_RC.astype(np.float64) ** 2
    row_R = np.zeros(len(squares_RC))
    for _ in range(3):
        column_C = 0.5 * np.log2((squares_RC / 4.0 ** row_R[:, None]).mean(axis=0) + 1e-3)
        column_C = np.rint(column_C * per_octave) / per_octave
        row_R = 0.5 * np.log2((squares_RC / 4.0**column_C).mean(axis=1) + 1e-3)
        row_R = np.rint(row_R * per_octave) / per_octave
    return np.rint(row_R * per_octave).astype(int), np.rint(column_C * per_octave).astype(int)


def symbol_bits(symbols_RC: np.ndarray, context_RC: np.ndarray) -> tuple[float, int]:
    """Conditional entropy, and the number of table entries in use."""
    least, width = symbols_RC.min(), int(np.ptp(symbols_RC)) + 1
    joint = (context_RC - context_RC.min()) * width + (symbols_RC - least)
    counts = np.bincount(joint.ravel())
    counts = np.pad(counts, (0, -len(counts) % width)).reshape(-1, width)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, where=counts > 0, out=np.ones(counts.shape))
    return float(-(counts * np.log2(shares)).sum()), int((counts > 0).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    rate: float
    alone: float
    side: float
    distortion: float


def evaluate(problem: Problem, factor: Factor, scheme: Scheme, step: float) -> Point:
    scale_C = 1 / factor.pivots if scheme.water else np.full(COLUMNS, 1.0)
    scale_C = scale_C * step / np.exp(np.mean(np.log(scale_C)))
    index_C = quantize_scale(scale_C, per_octave=scheme.scales_per_octave)
    if not scheme.water:
        side_bits = 16.0
    else:
        side_bits = entropy_bits(index_C) + 16
        scale_C = scale_values(index_C, per_octave=scheme.scales_per_octave).astype(np.float64)
        scale_C *= step / np.exp(np.mean(np.log(scale_C)))
    rounded = quantize_on_grid(problem.weight, factor, np.ones(ROWS), scale_C, states=scheme.states)
    symbols_RC = rounded.symbols
    row_R, column_C = variance_classes(symbols_RC, scheme.classes_per_octave)
    class_RC = row_R[:, None] + column_C
    context_RC = 2 * class_RC + (rounded.points & (scheme.parity and scheme.states > 1))
    bits, entries = symbol_bits(symbols_RC, context_RC)
    side_bits += entropy_bits(row_R)
    # What the scale says about the class is not sent twice.
    ratio = scheme.classes_per_octave / scheme.scales_per_octave
    side_bits += entropy_bits(column_C + np.rint(index_C * ratio).astype(int))
    size = problem.weight.size
    tables = entries * TABLE_BITS
    return Point(
        rate=(bits + side_bits + tables / MATRICES) / size,
        alone=(bits + side_bits + tables) / size,
        side=side_bits / size,
        distortion=rounded.loss / size,
    )


def at_rate(rate: float, evaluate_step: Callable[[float], Point]) -> Point:
    """The point whose rate is within 0.002 of `rate`: it falls by one bit per doubled step."""
    step = 2.0 ** (2 - rate)
    for _ in range(6):
        point = evaluate_step(step)
        if abs(point.rate - rate) < 0.002:
            break
        step *= 2 ** (point.rate - rate)
    return point


def schemes() -> list[Scheme]:
    plain = [Scheme(name=f"{states} states", states=states) for states in GAIN_DECIBELS]
    plain[0] = replace(plain[0], name="uniform, no trellis")
    best = Scheme(name="", states=64)
    return [
        *plain,
        replace(best, name="64, flat columns", water=False),
        replace(best, name="64, natural order", order="natural"),
        replace(best, name="64, damp 0.01", damp=0.01),
        replace(best, name="64, damp 0.001", damp=0.001),
        replace(best, name="64, 2 scales an octave", scales_per_octave=2),
        replace(best, name="64, 8 scales an octave", scales_per_octave=8),
        replace(best, name="64, 2 classes an octave", classes_per_octave=2),
        replace(best, name="64, 8 classes an octave", classes_per_octave=8),
        replace(best, name="64, no parity context", parity=False),
        replace(best, name="256, 8 classes", states=256, classes_per_octave=8),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=float, nargs="*", default=[3.4, 2.7])
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    problems = [Problem.draw(seed) for seed in range(options.seeds)]
    factors: dict[tuple[int, str, float], Factor] = {}
    heads = f"{'rate':>8} {'gap':>7} {'unbiased':>8} {'alone':>7} {'side':>7}"
    print(" " * 38 + heads * len(options.rates))
    for scheme in schemes():
        line = f"{scheme.name:38}"
        for rate in options.rates:
            rows = []
            for seed, problem in enumerate(problems):
                key = (seed, scheme.order, scheme.damp)
                if key not in factors:
                    factors[key] = factorize(problem.hessian, damp=scheme.damp, order=scheme.order)
                point = at_rate(
                    rate,
                    partial(evaluate, problem, factors[key], scheme),
                )
                bound = problem.bound(point.distortion)
                unbiased = point.rate - problem.unbiased_bound(point.distortion)
                alone = point.alone - bound
                rows.append([point.rate, point.rate - bound, unbiased, alone, point.side])
            mean = np.mean(rows, axis=0)
            line += f"{mean[0]:8.3f} {mean[1]:7.4f} {mean[2]:8.4f} {mean[3]:7.4f} {mean[4]:7.4f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
