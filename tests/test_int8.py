"""The reference's int8 rules."""

import numpy as np
import pytest

from gptpack.errors import QuantError
from gptpack.quant.int8 import (
    keep_float,
    quantize_int8_rows,
    quantize_int8_tensor,
    quantize_reference,
)
from gptpack.quant.types import dequantize


def test_rows_are_within_half_a_step_where_nothing_is_clipped():
    weight = np.random.default_rng(0).normal(0, 0.1, (130, 600)).astype(np.float32)
    weight[3] *= 100
    packed = quantize_reference("blocks.0.mlp.fc.weight", weight)
    assert packed.method == "int8"
    scales = packed.arrays["scales"].astype(np.float32)
    assert (scales[:3] == np.float32(np.float16(1 / 127))).all(), "small rows sit on the floor"
    error = np.abs(dequantize(packed) - weight)
    inside = np.abs(weight) < np.quantile(np.abs(weight), 0.999, axis=1, keepdims=True)
    assert (error <= 0.501 * scales[:, None])[inside].all()
    assert scales[3] > 10 / 127


@pytest.mark.parametrize(
    ("name", "shape", "method"),
    [
        ("blocks.0.attn.c_k.weight", (256, 256), "float16"),
        ("blocks.0.attn.c_k.weight", (256, 257), "int8"),
        ("blocks.0.attn_scale", (512,), "float32"),
        ("blocks.0.resid_mix", (2, 70000), "float32"),
        ("skip_weights", (4, 512), "float32"),
        ("bigram.scale", (), "float16"),
        ("vector", (70000,), "int8-tensor"),
    ],
)
def test_name_and_size_choose_the_method(name, shape, method):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    packed = quantize_reference(name, values)
    assert packed.method == method
    assert dequantize(packed).shape == shape
    assert np.abs(dequantize(packed) - values).max() < 0.05


def test_bfloat16_rounds_to_nearest_even():
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -2.5], np.float32)
    rounded = dequantize(keep_float("x", values, "bfloat16"))
    assert rounded.tolist() == [1.0, 1 + 2**-6, 1 + 2**-7, -2.5]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_scalar_stays_an_array(dtype):
    values = dequantize(keep_float("bigram.scale", np.array(0.5, np.float32), dtype))
    assert isinstance(values, np.ndarray)
    assert (values.shape, values.dtype, float(values)) == ((), np.float32, 0.5)


def test_zero_tensors_stay_zero():
    zero = np.zeros((300, 300), np.float32)
    assert not dequantize(quantize_reference("w", zero)).any()
    assert not dequantize(quantize_int8_tensor("w", zero)).any()


def test_what_float16_cannot_hold_is_an_error_and_not_infinite():
    values = np.full((300, 300), 0.1, np.float32)
    assert keep_float("w", values * 65504 * 10, "float16").arrays["values"].max() == 65504
    for beyond in (65520.0, 1e8):
        values[0, 0] = beyond
        with pytest.raises(QuantError, match=r"w: needs .* in float16"):
            keep_float("w", values, "float16")
    values[0] = 1e8
    with pytest.raises(QuantError, match=r"w: needs .* in float16"):
        quantize_int8_rows("w", values)
