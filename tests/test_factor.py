"""Factoring Hessians: the identity it rests on, and every kind of bad Hessian."""

import numpy as np
import pytest

from gptpack.errors import QuantError
from gptpack.quant.factor import factorize
from gptpack.quant.gptq import quantize_uniform


def hessian(columns, seed=0, samples=None):
    rng = np.random.default_rng(seed)
    inputs_NC = rng.standard_normal((samples or 3 * columns, columns))
    inputs_NC *= np.exp(rng.standard_normal(columns))
    return inputs_NC.T @ inputs_NC / len(inputs_NC)


@pytest.mark.parametrize("order", ["activation", "natural"])
@pytest.mark.parametrize("columns", [1, 2, 7, 130])
def test_feedback_and_pivots_multiply_back_to_the_damped_hessian(columns, order):
    hessian_CC = hessian(columns)
    factor = factorize(hessian_CC, order=order, dtype=np.float64)
    upper_PP = (factor.feedback + np.eye(columns)).T * factor.pivots[factor.order]
    damped_CC = hessian_CC + 0.01 * hessian_CC.diagonal().mean() * np.eye(columns)
    expected_PP = damped_CC[np.ix_(factor.order, factor.order)]
    np.testing.assert_allclose(upper_PP @ upper_PP.T, expected_PP, rtol=1e-12, atol=1e-12)
    assert factor.damping == pytest.approx(0.01 * hessian_CC.diagonal().mean(), rel=1e-14)
    assert factor.notes == ()


def test_activation_order_decides_the_largest_diagonal_first():
    hessian_CC = hessian(20)
    factor = factorize(hessian_CC)
    assert (np.diff(hessian_CC.diagonal()[factor.order]) <= 0).all()
    assert factorize(hessian_CC, order="natural").order.tolist() == list(range(20))


@pytest.mark.parametrize("order", ["activation", "natural"])
def test_early_columns_come_before_all_others_the_smallest_first(order):
    hessian_CC = hessian(20)
    early_C = np.isin(np.arange(20), [2, 7, 11])
    first, rest = np.split(factorize(hessian_CC, order=order, early=early_C).order, [3])
    assert sorted(first) == [2, 7, 11]
    assert (np.diff(hessian_CC.diagonal()[first]) >= 0).all()
    others = factorize(hessian_CC, order=order).order
    assert rest.tolist() == [c for c in others if not early_C[c]]


def test_the_hessian_is_symmetrized_and_not_modified():
    hessian_CC = hessian(9)
    skew_CC = np.triu(np.ones((9, 9)), 1)
    lopsided_CC = hessian_CC + skew_CC - skew_CC.T
    before = lopsided_CC.copy()
    factor = factorize(lopsided_CC, dtype=np.float64)
    assert np.array_equal(lopsided_CC, before)
    np.testing.assert_allclose(
        factor.feedback, factorize(hessian_CC, dtype=np.float64).feedback, rtol=1e-9
    )


def test_dead_columns_are_listed_quantized_to_zero_and_cost_nothing():
    hessian_CC = hessian(12)
    dead = [0, 5, 11]
    hessian_CC[dead, :] = 0
    hessian_CC[:, dead] = 0
    factor = factorize(hessian_CC, dtype=np.float64, name="blocks.0.attn.q")
    assert factor.dead_columns == dead
    assert "blocks.0.attn.q: 3 of 12 inputs are always zero" in factor.notes[0]
    assert (factor.pivots > 0).all()

    rng = np.random.default_rng(1)
    weight_RC = rng.standard_normal((4, 12))
    rounded = quantize_uniform(weight_RC, factor, np.full(4, 0.1))
    assert not rounded.points[:, dead].any()
    live = [column for column in range(12) if column not in dead]
    alone = quantize_uniform(
        weight_RC[:, live],
        factorize(hessian_CC[np.ix_(live, live)], dtype=np.float64),
        np.full(4, 0.1),
    )
    assert np.array_equal(rounded.points[:, live], alone.points)
    np.testing.assert_allclose(rounded.row_loss, alone.row_loss, rtol=1e-10)


def test_duplicated_columns_are_handled_by_damping():
    hessian_CC = hessian(6)
    doubled_CC = hessian_CC[np.ix_([0, 1, 2, 2, 3, 4, 5, 0], [0, 1, 2, 2, 3, 4, 5, 0])]
    factor = factorize(doubled_CC)
    assert factor.notes == ()
    assert np.isfinite(factor.feedback).all()


def test_a_singular_hessian_raises_the_damping_and_says_so():
    hessian_CC = hessian(8, samples=3)
    factor = factorize(hessian_CC, damp=0.0, name="blocks.3.mlp.out")
    assert 0 < factor.damp < 1e-3
    assert factor.notes
    assert all(note.startswith("blocks.3.mlp.out: singular Hessian") for note in factor.notes)
    assert f"to {factor.damp:.3g}" in factor.notes[-1]


def test_each_doubling_of_the_damping_has_its_note():
    indefinite_CC = np.diag([1.0, 1.0, 1.0, 1.0])
    indefinite_CC[0, 1] = indefinite_CC[1, 0] = 1.03
    factor = factorize(indefinite_CC, damp=0.01)
    assert factor.damp == pytest.approx(0.04)
    assert len(factor.notes) == 2


def test_a_hessian_that_no_damping_mends_is_an_error():
    indefinite_CC = np.array([[1.0, 9.0], [9.0, 1.0]])
    with pytest.raises(QuantError, match="w: the Hessian is not positive definite even with damp"):
        factorize(indefinite_CC, name="w")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((3, 3), np.nan), "w: 9 of 9 entries of the Hessian are not finite"),
        (np.diag([1.0, np.inf]), "w: 1 of 4 entries"),
        (np.zeros((3, 3)), "w: every column of the Hessian is zero"),
        (np.diag([1.0, -1.0]), "w: the Hessian's diagonal holds -1"),
        (np.ones((2, 3)), r"w: the Hessian has shape \(2, 3\)"),
        (np.zeros((0, 0)), r"w: the Hessian has shape \(0, 0\)"),
    ],
)
def test_a_bad_hessian_is_an_error_that_names_the_tensor(bad, message):
    with pytest.raises(QuantError, match=message):
        factorize(bad, name="w")


@pytest.mark.parametrize("settings", [{"damp": -1}, {"damp": 2}, {"order": "x"}, {"dtype": "i4"}])
def test_a_setting_that_makes_no_sense_is_an_error(settings):
    with pytest.raises(QuantError):
        factorize(np.eye(2), **settings)


def test_a_scaled_hessian_gives_the_same_feedback():
    hessian_CC = hessian(10)
    plain, tiny = factorize(hessian_CC), factorize(hessian_CC * 2.0**-60)
    assert np.array_equal(plain.feedback, tiny.feedback)
