"""Bits per weight and seconds of the context coder, next to general compressors.

    python benchmarks/bench_codec.py                      # 23 M Gaussian codes, scales known
    python benchmarks/bench_codec.py --checkpoint X.pt    # its matrices, rounded
    python benchmarks/bench_codec.py --checkpoint X.pt --contexts --general

Steps are 0.4145 standard deviations of the row, or one per matrix. The synthetic codes have
log-normal row (0.3) and column (0.5) scales; their entropy is computed from the true ones.
"""

import argparse
import lzma
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import zstandard

from gptpack.codec.contexts import class_range, fit_scales
from gptpack.codec.range import (
    decode_codes,
    encode_codes,
    estimate_bits,
)
from gptpack.codec.stepper import TableStepper

T = TypeVar("T")
Matrix = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]
STEP = 0.4145
EIGHT = np.array([[s >> 1 ^ 5 * (s & 1) ^ 2 * bit for bit in (0, 1)] for s in range(8)])
"""Ungerboeck's code with 8 states."""


def checkpoint_matrices(path: Path) -> list[Matrix]:
    """The matrices of a checkpoint, banks [L, R, C] one by one; embeddings are left out."""
    import torch

    state = torch.load(path, weights_only=True, map_location="cpu")
    banks = [tensor.float().numpy() for name, tensor in state.items() if name.endswith("_bank")]
    return [matrix for bank in banks for matrix in bank]


def synthetic(layers: int) -> tuple[list[Codes], float]:
    """Codes, and their entropy in bits given the true scales."""
    from scipy.special import ndtr

    rng = np.random.default_rng(0)
    codes, bits = [], 0.0
    for shape in [(512, 512)] * 2 + [(1536, 512), (512, 1536)]:
        for _ in range(layers):
            row_R = np.exp(0.3 * rng.standard_normal((shape[0], 1)))
            scale_RC = row_R * np.exp(0.5 * rng.standard_normal((1, shape[1]))) / STEP
            codes.append(np.rint(scale_RC * rng.standard_normal(shape)).astype(np.int32))
            upper, lower = (codes[-1] + 0.5) / scale_RC, (codes[-1] - 0.5) / scale_RC
            bits -= float(np.log2(np.abs(ndtr(upper) - ndtr(lower)).clip(1e-18)).sum())
    return codes, bits


def entropy(symbols: npt.NDArray[np.int64], contexts: npt.NDArray[np.int64] | int = 0) -> float:
    """Empirical bits per symbol given a context, tables not counted."""
    shifted = np.clip(symbols, -63, 64) + 63
    counts = np.bincount((shifted + 128 * contexts).ravel()).astype(np.float64)
    counts = np.pad(counts, (0, -counts.size % 128)).reshape(-1, 128)
    totals = np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape)
    used = counts > 0
    return float((counts[used] * np.log2(totals[used] / counts[used])).sum()) / symbols.size


def timed(label: str, action: Callable[[], T]) -> T:
    wall, cpu = time.perf_counter(), time.process_time()
    result = action()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"    {label:<28} {wall:7.2f} s   {cpu:7.2f} s of processor")
    return result


def measure(name: str, codes: Sequence[Codes], *, ideal: float | None, general: bool) -> None:
    count = sum(matrix.size for matrix in codes)
    shapes = [(matrix.shape[0], matrix.shape[1]) for matrix in codes]
    flat = np.concatenate([matrix.ravel() for matrix in codes]).astype(np.int64)
    print(f"{name}: {len(codes)} matrices, {count:,} codes")
    if ideal is not None:
        print(f"  entropy given true scales      {ideal / count:.5f} bits")
    print(f"  order-0 entropy                {entropy(flat):.5f} bits")
    for trellis in (False, True):
        parities = [TableStepper(EIGHT).trace(m) for m in codes] if trellis else None
        steppers = [TableStepper(EIGHT) for _ in codes] if trellis else None
        data = encode_codes(codes, parities=parities)
        label = "with 8-state parities" if trellis else "context coder"
        print(f"  {label:<30} {8 * len(data) / count:.5f} bits, {len(data):,} bytes")
        estimate = timed("estimate", partial(estimate_bits, codes, parities=parities))
        print(f"    estimate / size              {estimate / 8 / len(data):.6f}")
        timed("encode", partial(encode_codes, codes, parities=parities))
        decoded = timed("decode", partial(decode_codes, data, shapes, steppers=steppers))
        assert all(map(np.array_equal, codes, decoded))
    if general:
        columns = b"".join(matrix.T.astype(np.int8).tobytes() for matrix in codes)
        for label, compress in (
            ("zstd-22", zstandard.ZstdCompressor(level=22).compress),
            ("lzma-9", partial(lzma.compress, preset=9)),
        ):
            size = len(timed(label, partial(compress, columns)))
            print(f"  {label:<30} {8 * size / count:.5f} bits")


def compare_contexts(codes: Sequence[Codes]) -> None:
    """Empirical entropies given the class and one context more, tables not counted."""
    scales = [fit_scales(matrix) for matrix in codes]
    lowest, classes = class_range(scales)
    pairs = zip(codes, scales, strict=True)
    found: dict[str, list[npt.NDArray[np.float64]]] = {}
    classes_of, symbols = [], []
    for index, (matrix, scale) in enumerate(pairs):
        class_RC = np.clip(scale.rows[:, None] + scale.columns - lowest, 0, classes - 1)
        classes_of.append(class_RC.ravel())
        symbols.append(matrix.ravel().astype(np.int64))
        normal_RC = matrix * np.exp2(-(class_RC + lowest) / 6)
        for name, context_RC in neighbours(normal_RC):
            found.setdefault(name, []).append(context_RC.ravel())
        found.setdefault("matrix", []).append(np.full(matrix.size, float(index)))
    class_N, symbol_N = np.concatenate(classes_of), np.concatenate(symbols)
    print(f"  {'row x column class':<30} {entropy(symbol_N, class_N):.5f} bits")
    for name, parts in found.items():
        value_N = np.concatenate(parts)
        if name == "matrix":
            bin_N, bins = value_N.astype(np.int64), len(codes)
        else:
            bins = 8
            edges = np.quantile(value_N[::97], np.linspace(0, 1, bins + 1)[1:-1])
            bin_N = np.searchsorted(edges, value_N)
        print(f"  {'... and ' + name:<30} {entropy(symbol_N, class_N * bins + bin_N):.5f} bits")


def neighbours(
    normal_RC: npt.NDArray[np.float64],
) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    """What a decoder that goes by rows could know of a code's surroundings."""
    for kind, values_RC in (("magnitude", np.abs(normal_RC)), ("sign", normal_RC)):
        mean = values_RC.mean()
        yield f"{kind} above", np.pad(values_RC, ((1, 0), (0, 0)), constant_values=mean)[:-1]
        yield (
            f"{kind} to the left",
            np.pad(values_RC, ((0, 0), (1, 0)), constant_values=mean)[:, :-1],
        )
        average_RC = np.empty_like(values_RC)
        state_C = np.full(values_RC.shape[1], mean)
        for row, value_C in enumerate(values_RC):
            average_RC[row] = state_C
            state_C = state_C + (value_C - state_C) / 16
        yield f"{kind}, average of column", average_RC


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--layers", type=int, default=11, help="of the synthetic codes")
    parser.add_argument("--contexts", action="store_true", help="what further contexts are worth")
    parser.add_argument("--general", action="store_true", help="zstd and lzma too; minutes")
    options = parser.parse_args()
    if options.checkpoint is None:
        codes, ideal = synthetic(options.layers)
        measure("synthetic", codes, ideal=ideal, general=options.general)
        return
    matrices = checkpoint_matrices(options.checkpoint)
    for name, axis in (("a step per row", 1), ("a step per matrix", None)):
        codes = [
            np.rint(m / (STEP * m.std(axis=axis, keepdims=True))).astype(np.int32) for m in matrices
        ]
        measure(name, codes, ideal=None, general=options.general)
        if options.contexts:
            compare_contexts(codes)


if __name__ == "__main__":
    main()
