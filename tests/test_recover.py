"""Weights on a grid of ours give back their codes; all others give nothing."""

import numpy as np
import pytest

from gptpack.quant import recover
from gptpack.quant.allocation import grid_tensor
from gptpack.quant.int8 import keep_float, to_bfloat16
from gptpack.quant.recover import recovered
from gptpack.quant.types import PackedTensor, dequantize


def on_grid(
    states: int, spread: float, shape=(96, 64), seed: int = 0, offset: float = 0.0
) -> PackedTensor:
    """A tensor of random codes, with scales as a packer has them, and offsets about so large."""
    draw = np.random.default_rng(seed)
    rows, columns = shape
    return grid_tensor(
        "w",
        np.rint(draw.normal(0, spread, shape)),
        (
            draw.integers(-500, -300, rows).astype(np.int16),
            draw.integers(-6, 7, columns).astype(np.int16),
        ),
        states=states,
        offsets=to_bfloat16(draw.normal(0, offset, columns)) if offset else None,
    )


@pytest.mark.parametrize("states", [1, 8, 256])
@pytest.mark.parametrize("spread", [0.7, 2.0, 30.0])
def test_codes_come_back_from_the_values_alone(states, spread):
    tensor = on_grid(states, spread)
    found = recovered("w", dequantize(tensor), states)
    assert found is not None
    assert np.array_equal(dequantize(found), dequantize(tensor))
    assert np.array_equal(found.arrays["codes"], tensor.arrays["codes"])


@pytest.mark.parametrize("states", [1, 256])
@pytest.mark.parametrize("spread", [0.7, 3.0])
@pytest.mark.parametrize("offset", [0.005, 0.03])
def test_codes_come_back_from_under_their_offsets(states, spread, offset):
    tensor = on_grid(states, spread, (2000, 64), offset=offset)
    values = dequantize(tensor)
    found = recovered("w", values, states, offsets=True)
    assert found is not None
    assert np.array_equal(dequantize(found), values)
    for key in ("codes", "column_offsets"):
        assert np.array_equal(found.arrays[key], tensor.arrays[key])
    assert recovered("w", values, states) is None
    values[5, 5] = np.nextafter(values[5, 5], np.float32(9))
    assert recovered("w", values, states, offsets=True) is None


def test_a_table_without_offsets_is_found_where_there_may_be_some():
    tensor = on_grid(256, 2.0)
    found = recovered("w", dequantize(tensor), 256, offsets=True)
    assert found.method == "trellis"
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


def test_a_row_in_sixteen_bits_is_enough_to_see_that_there_is_no_grid(monkeypatch):
    monkeypatch.setattr(recover, "_scales", lambda *_: pytest.fail("looked at all weights"))
    values = np.random.default_rng(0).normal(0, 1, (16, 4096)).astype(np.float32)
    for dtype in ("float32", "bfloat16", "float16"):
        assert recovered("w", dequantize(keep_float("w", values, dtype)), 256) is None
