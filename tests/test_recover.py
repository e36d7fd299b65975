"""Weights on a grid of ours give back their codes; all others give nothing."""

import numpy as np
import pytest

from gptpack.quant.recover import recovered
from gptpack.quant.types import PackedTensor, dequantize


def on_grid(states: int, spread: float, shape=(96, 64), seed: int = 0) -> PackedTensor:
    """A tensor of random codes, with scales as a packer has them."""
    draw = np.random.default_rng(seed)
    rows, columns = shape
    return PackedTensor(
        name="w",
        shape=shape,
        method="trellis" if states > 1 else "uniform",
        arrays={
            "codes": np.rint(draw.normal(0, spread, shape)).astype(np.int16),
            "row_scales": draw.integers(-500, -300, rows).astype(np.int16),
            "column_scales": draw.integers(-6, 7, columns).astype(np.int16),
        },
        parameters={"states": states} if states > 1 else {},
    )


@pytest.mark.parametrize("states", [1, 8, 256])
@pytest.mark.parametrize("spread", [0.7, 2.0, 30.0])
def test_codes_come_back_from_the_values_alone(states, spread):
    tensor = on_grid(states, spread)
    found = recovered("w", dequantize(tensor), states)
    assert found is not None
    assert np.array_equal(dequantize(found), dequantize(tensor))
    assert np.array_equal(found.arrays["codes"], tensor.arrays["codes"])


def test_rows_and_columns_of_zeros_are_no_hindrance():
    tensor = on_grid(1, 2.0)
    tensor.arrays["codes"][[0, 7]] = 0
    tensor.arrays["codes"][:, [0, 3]] = 0
    assert np.array_equal(dequantize(recovered("w", dequantize(tensor), 1)), dequantize(tensor))
    zeros = np.zeros((8, 8), np.float32)
    assert np.array_equal(dequantize(recovered("w", zeros, 256)), zeros)


def test_what_lies_on_no_grid_of_ours_gives_nothing():
    draw = np.random.default_rng(0)
    for values in (draw.normal(0, 1, (64, 64)), draw.integers(-9, 10, (64, 64)) * 0.0131):
        assert recovered("w", values.astype(np.float32), 256) is None
    values = dequantize(on_grid(256, 2.0))
    assert recovered("w", values, 8) is None  # another trellis
    values[5, 5] = np.nextafter(values[5, 5], np.float32(1))
    assert recovered("w", values, 256) is None
