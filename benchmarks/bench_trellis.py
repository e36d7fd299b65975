"""Seconds to quantize the 66 matrices (25.95 M weights) of a 27 M-parameter GPT, by phase.

    python benchmarks/bench_trellis.py [--layers 11] [--threads 2] [--states 1 8 64 256]

Random weights and activations: the work does not depend on the values.
"""

import argparse
import time

import numpy as np

from gptpack.codec.trellis import decode_trellis
from gptpack.quant.columns import Rounding
from gptpack.quant.factor import Factor, factorize
from gptpack.quant.trellis import quantize_on_grid
from gptpack.quant.workers import side_by_side

SHAPES = [(512, 512), (512, 512), (256, 512), (256, 512), (1536, 512), (512, 1536)]
"""Query, output, key, value, MLP in, MLP out: rows, columns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--states", type=int, nargs="*", default=[1, 4, 8, 16, 32, 64, 128, 256])
    options = parser.parse_args()
    rng = np.random.default_rng(0)

    hessians = []
    for columns in (512, 1536):
        scale_C = np.exp(0.5 * rng.standard_normal(columns))
        inputs_NC = rng.standard_normal((2 * columns, columns)) * scale_C
        hessians.append(inputs_NC.T @ inputs_NC / len(inputs_NC))
    weights = [
        rng.standard_normal(shape, np.float32) for _ in range(options.layers) for shape in SHAPES
    ]
    total = sum(weight.size for weight in weights)
    print(f"{len(weights)} matrices, {total:,} weights, {options.threads} threads")

    def quantized(matrix: tuple[np.ndarray, Factor], states: int) -> Rounding:
        weight_RC, factor = matrix
        scale_R = np.full(len(weight_RC), 0.4)
        scale_C = factor.pivots.mean() / factor.pivots
        return quantize_on_grid(weight_RC, factor, scale_R, scale_C, states=states)

    start = time.perf_counter()
    factors = side_by_side(
        lambda w: factorize(hessians[w.shape[1] == 1536]),
        weights,
        cost=lambda w: float(w.shape[1]) ** 3,
        threads=options.threads,
    )
    matrices = list(zip(weights, factors, strict=True))
    print(f"{'factorize':>12} {time.perf_counter() - start:8.2f} s")
    for states in options.states:
        start = time.perf_counter()
        quantized(matrices[0], states)
        compile_seconds = time.perf_counter() - start
        start = time.perf_counter()
        results = side_by_side(
            lambda matrix, states=states: quantized(matrix, states),
            matrices,
            cost=lambda matrix: matrix[0].size * matrix[1].columns,
            threads=options.threads,
        )
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        symbols = [result.symbols for result in results]
        decoded = [decode_trellis(symbol_RC, states) for symbol_RC in symbols]
        decode_seconds = time.perf_counter() - start
        same = all(np.array_equal(a, b.points) for a, b in zip(decoded, results, strict=True))
        print(
            f"{states:5} states {seconds:8.2f} s  {total / seconds / 1e6:6.2f} M weights/s   "
            f"decode {decode_seconds:5.2f} s   loss {sum(r.loss for r in results):,.0f}   "
            f"first call {compile_seconds:.1f} s   {'same points' if same else 'DECODE DIFFERS'}"
        )


if __name__ == "__main__":
    main()
