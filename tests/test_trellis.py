"""Trellis quantization: its optimum, its decoder, and GPTQ around it."""

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from gptpack.codec.polynomials import POLYNOMIALS
from gptpack.codec.trellis import decode_trellis, next_states
from gptpack.errors import QuantError
from gptpack.quant import trellis
from gptpack.quant.factor import factorize
from gptpack.quant.gptq import quantize_uniform
from gptpack.quant.trellis import quantize_on_grid, quantize_trellis
from gptpack.quant.workers import side_by_side


def problem(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    inputs_NC = rng.standard_normal((2 * columns + 5, columns))
    inputs_NC *= np.exp(0.5 * rng.standard_normal(columns))
    hessian_CC = inputs_NC.T @ inputs_NC / len(inputs_NC) + 0.5
    weight_RC = rng.standard_normal((rows, columns)) * 3
    row_scale_R = np.exp(rng.uniform(-1, 0, rows))
    column_scale_C = np.exp(rng.uniform(-0.5, 0.5, columns))
    row_weight_R = np.exp(rng.uniform(-3, 3, rows))
    return weight_RC, hessian_CC, row_scale_R, column_scale_C, row_weight_R


@pytest.mark.parametrize("states", POLYNOMIALS)
def test_the_search_finds_the_path_of_the_textbook_search(states):
    rng = np.random.default_rng(states)
    for rows in (1, 2, 50):
        target_R = rng.standard_normal(rows) * 4
        weight_R = np.exp(rng.standard_normal(rows))
        fast = quantize_trellis(
            target_R[:, None],
            factorize(np.eye(1), damp=0, dtype=np.float64),
            np.full(rows, 2.0),
            states=states,
            row_weight=weight_R,
        )
        slow_R, cost = reference.viterbi(target_R, weight_R, states)
        assert np.array_equal(fast.points[:, 0], slow_R)
        assert weight_R @ fast.row_loss == pytest.approx(cost, rel=1e-12)


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 8), seed=st.integers(0, 10_000))
def test_no_path_at_all_is_better_than_the_one_found(rows, seed):
    rng = np.random.default_rng(seed)
    target_R = rng.standard_normal(rows) * 3
    weight_R = np.exp(rng.standard_normal(rows))
    best_R, cost = reference.cheapest_path(target_R, weight_R, 4)
    fast = quantize_trellis(
        target_R[:, None],
        factorize(np.eye(1), damp=0, dtype=np.float64),
        np.full(rows, 2.0),
        states=4,
        row_weight=weight_R,
    )
    assert np.array_equal(fast.points[:, 0], best_R)
    assert weight_R @ fast.row_loss == pytest.approx(cost, rel=1e-12)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    block=st.integers(1, 24),
    states=st.sampled_from([4, 8, 16]),
    order=st.sampled_from(["activation", "natural"]),
    seed=st.integers(0, 1000),
)
def test_points_are_those_of_textbook_gptq_around_the_textbook_search(
    rows, columns, block, states, order, seed
):
    weight_RC, hessian_CC, row_R, column_C, weight_R = problem(rows, columns, seed)
    factor = factorize(hessian_CC, order=order, dtype=np.float64)
    fast = quantize_trellis(
        weight_RC,
        factor,
        row_R,
        column_C,
        states=states,
        row_weight=weight_R,
        block=block,
    )

    def decide(target_R, column):
        return reference.viterbi(target_R, weight_R * row_R**2, states)[0]

    scale_RC = np.outer(row_R, column_C) / 2
    slow_RC = reference.gptq(weight_RC, hessian_CC, scale_RC, order=factor.order, decide=decide)
    assert np.array_equal(fast.points, slow_RC)
    loss_R = reference.proxy_loss(weight_RC, slow_RC * scale_RC, hessian_CC)
    np.testing.assert_allclose(fast.row_loss, loss_R, rtol=1e-9, atol=1e-12 * loss_R.max())


@pytest.mark.parametrize("states", POLYNOMIALS)
def test_decoding_the_symbols_gives_the_points(states):
    weight_RC, hessian_CC, row_R, column_C, _ = problem(60, 17)
    factor = factorize(hessian_CC, dtype=np.float32 if states == 8 else np.float64)
    rounded = quantize_trellis(weight_RC, factor, row_R, column_C, states=states)
    symbols_RC = rounded.symbols
    points_RC = decode_trellis(symbols_RC, states)
    assert np.array_equal(points_RC, rounded.points)
    assert np.array_equal(rounded.points & 1, points_RC - 2 * symbols_RC)
    assert points_RC.dtype == np.int32


@settings(deadline=None, max_examples=30)
@given(
    states=st.sampled_from(list(POLYNOMIALS)),
    rows=st.integers(0, 30),
    columns=st.integers(0, 5),
    dtype=st.sampled_from([np.int8, np.int16, np.int32, np.int64]),
    seed=st.integers(0, 1000),
)
def test_any_symbols_decode_as_the_shift_register_says(states, rows, columns, dtype, seed):
    symbols_RC = np.random.default_rng(seed).integers(-100, 100, (rows, columns)).astype(dtype)
    points_RC = decode_trellis(symbols_RC, states)
    assert np.array_equal(points_RC, reference.decode_trellis(symbols_RC, states))
    assert np.array_equal(points_RC >> 1, symbols_RC)


def test_row_by_row_decoding_knows_the_parities_first():
    rng = np.random.default_rng(0)
    symbols_RC = rng.integers(-9, 9, (40, 6)).astype(np.int32)
    points_RC = decode_trellis(symbols_RC, 8)
    state_C = np.zeros(6, np.int32)
    for symbols_C, points_C in zip(symbols_RC, points_RC, strict=True):
        assert np.array_equal(points_C, 2 * symbols_C + (state_C & 1))
        state_C = next_states(state_C, symbols_C, 8)
        assert ((state_C >= 0) & (state_C < 8)).all()


def test_a_trellis_of_one_state_is_plain_gptq():
    weight_RC, hessian_CC, row_R, column_C, _ = problem(10, 12)
    factor = factorize(hessian_CC)
    rounded = quantize_on_grid(weight_RC, factor, row_R, column_C, states=1)
    plain = quantize_uniform(weight_RC, factor, row_R, column_C)
    assert np.array_equal(rounded.points, plain.points)
    assert rounded.symbols is rounded.points
    assert np.array_equal(decode_trellis(rounded.symbols, 1), rounded.points)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_do_not_depend_on_the_number_of_threads(dtype):
    problems = []
    for seed, shape in enumerate([(40, 30), (7, 200), (130, 9), (64, 64), (1, 1)]):
        weight_RC, hessian_CC, row_R, column_C, weight_R = problem(*shape, seed)
        problems.append((weight_RC, factorize(hessian_CC, dtype=dtype), row_R, column_C, weight_R))
    first, *others = (
        side_by_side(
            lambda of: quantize_trellis(*of[:4], states=8, row_weight=of[4]),
            problems,
            cost=lambda of: of[0].size,
            threads=threads,
        )
        for threads in (1, 2, 5)
    )
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            assert np.array_equal(ours.points, theirs.points)
            assert np.array_equal(ours.row_loss, theirs.row_loss)


@pytest.mark.parametrize("states", [8, 256])
def test_bands_of_rows_go_on_one_path_whatever_threads_there_are(monkeypatch, states):
    weight_RC, hessian_CC, row_R, column_C, weight_R = problem(700, 70)
    factor = factorize(hessian_CC)

    def quantized(rows, threads=1):
        monkeypatch.setattr(trellis, "BAND_ROWS", rows)
        of = (weight_RC, factor, row_R, column_C)
        return quantize_trellis(*of, states=states, row_weight=weight_R, threads=threads)

    whole, first, *others = quantized(700), *(quantized(150, threads) for threads in (1, 2, 5))
    for other in others:
        assert np.array_equal(first.points, other.points)
        assert np.array_equal(first.row_loss, other.row_loss)
    assert np.array_equal(decode_trellis(first.symbols, states), first.points)
    assert not np.array_equal(first.points, whole.points)
    assert weight_R @ first.row_loss < 1.1 * (weight_R @ whole.row_loss)


def test_more_states_lose_less_and_all_less_than_rounding_on_many_weights():
    rng = np.random.default_rng(0)
    weight_RC = rng.standard_normal((2000, 8)) * 4
    factor = factorize(np.eye(8), damp=0, dtype=np.float64)
    losses = [
        quantize_on_grid(weight_RC, factor, np.ones(2000), states=states).loss
        for states in (1, 4, 16, 64, 256)
    ]
    assert losses == sorted(losses, reverse=True)
    gain_decibels = 10 * np.log10(losses[0] / np.array(losses[1:]))
    np.testing.assert_allclose(gain_decibels, [0.99, 1.16, 1.27, 1.33], atol=0.06)


def test_inputs_are_not_modified_and_may_have_any_strides():
    weight_RC, hessian_CC, row_R, column_C, weight_R = problem(30, 13)
    factor = factorize(hessian_CC)
    arguments = {"states": 8, "row_weight": weight_R}
    plain = quantize_trellis(weight_RC, factor, row_R, column_C, **arguments)
    view = np.asfortranarray(weight_RC)
    for array in (view, row_R, column_C, weight_R, factor.feedback, factor.pivots):
        array.flags.writeable = False
    again = quantize_trellis(view, factor, row_R, column_C, **arguments)
    assert np.array_equal(plain.points, again.points)
    assert np.array_equal(view, weight_RC)


def test_dead_columns_stay_in_state_zero():
    weight_RC, hessian_CC, row_R, column_C, _ = problem(30, 8)
    hessian_CC[2, :] = hessian_CC[:, 2] = 0
    rounded = quantize_trellis(weight_RC, factorize(hessian_CC), row_R, column_C, states=8)
    assert not rounded.points[:, 2].any()
    assert np.array_equal(decode_trellis(rounded.symbols, 8), rounded.points)


@pytest.mark.parametrize("states", [4, 8, 256])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rows_that_cost_nothing_have_symbols_of_zero_and_the_path_goes_on(states, share):
    weight_RC, hessian_CC, row_R, column_C, weight_R = problem(200, 20)
    free_R = np.random.default_rng(1).random(200) < share
    of = (weight_RC, factorize(hessian_CC, dtype=np.float64), row_R, column_C)
    rounded = quantize_trellis(*of, states=states, row_weight=np.where(free_R, 0, weight_R))
    assert not rounded.symbols[free_R].any()
    assert np.array_equal(decode_trellis(rounded.symbols, states), rounded.points)
    plain = quantize_on_grid(*of, states=1, row_weight=np.where(free_R, 0, weight_R))
    assert not plain.points[free_R].any()
    # rows that are left still gain by the trellis
    lost, lost_plain = (weight_R[~free_R] @ found.row_loss[~free_R] for found in (rounded, plain))
    assert lost < lost_plain or share == 1


def test_the_scale_of_the_row_weights_does_not_matter():
    weight_RC, hessian_CC, row_R, column_C, weight_R = problem(30, 8)
    factor = factorize(hessian_CC)
    one, other = (
        quantize_trellis(weight_RC, factor, row_R, column_C, row_weight=scale * weight_R)
        for scale in (1.0, 2.0**-80)
    )
    assert np.array_equal(one.points, other.points)


def test_bad_arguments_are_errors():
    factor = factorize(np.eye(4), name="w")
    weight_RC = np.ones((3, 4))
    with pytest.raises(QuantError, match="no trellis code with 12 states; there are 4, 8"):
        quantize_trellis(weight_RC, factor, np.ones(3), states=12)
    with pytest.raises(QuantError, match="w: row weights are not all positive"):
        quantize_trellis(weight_RC, factor, np.ones(3), row_weight=-np.ones(3))
    with pytest.raises(QuantError, match="w: the grid is too fine"):
        quantize_trellis(weight_RC * 1e30, factor, np.ones(3))
    with pytest.raises(QuantError, match="block=0"):
        quantize_trellis(weight_RC, factor, np.ones(3), block=0)
    with pytest.raises(QuantError, match="need integers"):
        decode_trellis(weight_RC, 8)
    with pytest.raises(QuantError, match="beyond 30 bits"):
        decode_trellis(np.full((1, 1), 2**30), 8)
    with pytest.raises(QuantError, match="no trellis code"):
        quantize_on_grid(weight_RC, factor, np.ones(3), states=3)
