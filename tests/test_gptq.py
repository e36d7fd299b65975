"""GPTQ on uniform grids, against the textbook."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import gptq, proxy_loss

from gptpack.errors import QuantError
from gptpack.quant.factor import factorize
from gptpack.quant.gptq import quantize_clipped, quantize_uniform


def problem(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    inputs_NC = rng.standard_normal((2 * columns + 5, columns)) @ rng.standard_normal(
        (columns, columns)
    )
    hessian_CC = inputs_NC.T @ inputs_NC / len(inputs_NC)
    weight_RC = rng.standard_normal((rows, columns)) * np.exp(0.3 * rng.standard_normal((rows, 1)))
    row_scale_R = np.exp(rng.uniform(-2, 0, rows))
    column_scale_C = np.exp(rng.uniform(-1, 1, columns))
    return weight_RC, hessian_CC, row_scale_R, column_scale_C


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 40),
    block=st.integers(1, 50),
    order=st.sampled_from(["activation", "natural"]),
    clip=st.sampled_from([None, 1, 7]),
    seed=st.integers(0, 1000),
)
def test_codes_are_those_of_the_textbook(rows, columns, block, order, clip, seed):
    weight_RC, hessian_CC, row_R, column_C = problem(rows, columns, seed)
    factor = factorize(hessian_CC, order=order, dtype=np.float64)
    fast = quantize_uniform(weight_RC, factor, row_R, column_C, clip=clip, block=block)
    step_RC = np.outer(row_R, column_C)
    slow_RC = gptq(weight_RC, hessian_CC, step_RC, order=factor.order, clip=clip)
    assert np.array_equal(fast.points, slow_RC)
    assert fast.points.dtype == np.int32
    loss_R = proxy_loss(weight_RC, slow_RC * step_RC, hessian_CC)
    np.testing.assert_allclose(fast.row_loss, loss_R, rtol=1e-9, atol=1e-12 * loss_R.max())


@pytest.mark.parametrize("shape", [(70, 300), (520, 40)])
def test_codes_are_those_of_the_textbook_beyond_a_block_and_a_tile(shape):
    weight_RC, hessian_CC, row_R, column_C = problem(*shape)
    factor = factorize(hessian_CC, dtype=np.float64)
    fast = quantize_uniform(weight_RC, factor, row_R, column_C)
    slow_RC = gptq(weight_RC, hessian_CC, np.outer(row_R, column_C), order=factor.order)
    assert np.array_equal(fast.points, slow_RC)


def test_float32_loses_no_more_than_a_thousandth_of_the_loss():
    weight_RC, hessian_CC, row_R, column_C = problem(64, 200)
    single = quantize_uniform(weight_RC, factorize(hessian_CC), row_R, column_C)
    double = quantize_uniform(weight_RC, factorize(hessian_CC, dtype=np.float64), row_R, column_C)
    true = proxy_loss(weight_RC, single.points * np.outer(row_R, column_C), hessian_CC)
    assert single.loss == pytest.approx(true.sum(), rel=1e-4)
    assert single.loss == pytest.approx(double.loss, rel=0.02)


def test_the_size_of_a_block_does_not_matter():
    weight_RC, hessian_CC, row_R, column_C = problem(33, 150)
    factor = factorize(hessian_CC, dtype=np.float64)
    first, *others = (
        quantize_uniform(weight_RC, factor, row_R, column_C, block=block).points
        for block in (1, 7, 64, 128, 1000)
    )
    assert all(np.array_equal(first, other) for other in others)


def test_a_diagonal_hessian_gives_plain_rounding():
    weight_RC, _, row_R, column_C = problem(9, 21)
    factor = factorize(np.diag(np.arange(1.0, 22.0)), dtype=np.float64)
    fast = quantize_uniform(weight_RC, factor, row_R, column_C)
    assert np.array_equal(fast.points, np.rint(weight_RC / np.outer(row_R, column_C)))


def test_inputs_are_not_modified_and_may_have_any_strides():
    weight_RC, hessian_CC, row_R, column_C = problem(12, 30)
    factor = factorize(hessian_CC, dtype=np.float64)
    plain = quantize_uniform(weight_RC, factor, row_R, column_C)
    for view in (np.asfortranarray(weight_RC), np.repeat(weight_RC, 2, axis=1)[:, ::2]):
        kept = view.copy()
        view.flags.writeable = False
        assert np.array_equal(quantize_uniform(view, factor, row_R, column_C).points, plain.points)
        assert np.array_equal(view, kept)


def test_torch_tensors_and_float32_come_in_as_they_are():
    torch = pytest.importorskip("torch")
    weight_RC, hessian_CC, row_R, _ = problem(5, 8)
    factor = factorize(torch.from_numpy(hessian_CC))
    ours = quantize_uniform(torch.from_numpy(weight_RC).float(), factor, torch.from_numpy(row_R))
    assert np.array_equal(
        ours.points, quantize_uniform(weight_RC.astype(np.float32), factor, row_R).points
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_a_clipped_grid_keeps_its_range_and_the_best_scale_of_every_row(bits):
    weight_RC, hessian_CC, _, _ = problem(16, 40)
    factor = factorize(hessian_CC, dtype=np.float64)
    rounded, scale_R = quantize_clipped(weight_RC, factor, bits, scales=(1.0, 0.8, 0.6))
    assert scale_R.dtype == np.float16
    clip = 2 ** (bits - 1) - 1
    assert np.abs(rounded.points).max() <= clip
    again = quantize_uniform(weight_RC, factor, scale_R, clip=clip)
    assert np.array_equal(again.points, rounded.points)
    for fraction in (1.0, 0.8, 0.6):
        peak_R = (np.abs(weight_RC).max(axis=1) * fraction / clip).astype(np.float16)
        fixed = quantize_uniform(weight_RC, factor, peak_R, clip=clip)
        assert (rounded.row_loss <= fixed.row_loss * (1 + 1e-9)).all()


def test_rows_of_zeros_have_codes_of_zero_and_a_usable_scale():
    factor = factorize(np.eye(6))
    rounded, scale_R = quantize_clipped(np.zeros((3, 6)), factor, 4)
    assert not rounded.points.any()
    assert (scale_R > 0).all()


def test_a_row_that_no_scale_can_hold_is_an_error():
    with pytest.raises(QuantError, match="too much for float16 scales"):
        quantize_clipped(np.full((1, 2), 1e9), factorize(np.eye(2)), 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.zeros((3, 5))}, "w: weight"),
        ({"weight": np.full((3, 4), np.nan)}, "w: a weight is not finite"),
        ({"weight": np.full((3, 4), 1e30)}, "w: the grid is too fine"),
        ({"row_scale": np.ones(4)}, "w: row scales have shape"),
        ({"row_scale": np.zeros(3)}, "w: row scales are not all positive"),
        ({"column_scale": np.full(4, np.inf)}, "w: column scales are not all positive"),
        ({"clip": 0}, "clip=0"),
        ({"block": 0}, "block=0"),
    ],
)
def test_bad_arguments_are_errors_that_name_the_tensor(change, message):
    arguments = {
        "weight": np.ones((3, 4)),
        "factor": factorize(np.eye(4), name="w"),
        "row_scale": np.ones(3),
        **change,
    }
    with pytest.raises(QuantError, match=message):
        quantize_uniform(**arguments)
