"""Steps at one slope: the formula, the predicted loss, and the search over delta."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptpack.artifact.writer import encode_sections
from gptpack.errors import QuantError
from gptpack.packing.solve import solve_delta
from gptpack.quant.allocation import (
    BEYOND,
    LEAST_GAIN,
    LEAST_ROW_SHARE,
    LITTLE,
    MUCH_NOISE,
    Matrix,
    Sensitivity,
    grid_indexes,
    prepare_matrix,
    quantize_matrices,
)
from gptpack.quant.grids import scale_values
from gptpack.quant.types import ROW_SCALES_PER_OCTAVE, PackedTensor, dequantize


def matrix_of(
    rows: int = 48, columns: int = 80, seed: int = 0, name: str = "a", *, fed: bool = False
) -> Matrix:
    rng = np.random.default_rng(seed)
    inputs_NC = rng.standard_normal((3 * columns, columns)) * np.exp(rng.standard_normal(columns))
    return prepare_matrix(
        name,
        rng.standard_normal((rows, columns)).astype(np.float32),
        Sensitivity(
            hessian=(inputs_NC.T @ inputs_NC / len(inputs_NC)).astype(np.float32),
            row_weight=np.exp(rng.standard_normal(rows)),
        ),
        fed=fed,
    )


def row_losses(matrix: Matrix, tensor: PackedTensor) -> np.ndarray:
    error_RC = dequantize(tensor).astype(np.float64) - matrix.weight
    hessian = matrix.hessian.astype(np.float64)
    return np.array(
        [
            0.5 * weight * (error @ hessian @ error)
            for weight, error in zip(matrix.row_weight, error_RC, strict=True)
        ]
    )


def loss_by_hand(matrix: Matrix, tensor: PackedTensor) -> float:
    return float(row_losses(matrix, tensor).sum())


# one matrix


@pytest.mark.parametrize("states", [1, 8])
@pytest.mark.parametrize("rescale", [True, False])
def test_the_predicted_loss_is_half_the_weighted_error_of_the_stored_values(states, rescale):
    matrices = [matrix_of(name="a"), matrix_of(30, 17, seed=1, name="b")]
    coded = quantize_matrices(matrices, 0.05, states=states, rescale=rescale)
    for matrix, result in zip(matrices, coded, strict=True):
        assert result.tensor.name == matrix.name
        # float32 feedback; the hand's sum is float64
        assert result.loss_nats == pytest.approx(loss_by_hand(matrix, result.tensor), rel=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_steps_are_delta_over_the_root_of_the_row_weight_and_the_pivot(power):
    matrix = matrix_of()
    rows, columns = grid_indexes(matrix, 0.03, row_power=power)
    row_R = scale_values(rows, per_octave=ROW_SCALES_PER_OCTAVE).astype(np.float64)
    step_RC = row_R[:, None] * scale_values(columns)
    mean = matrix.row_weight.mean()
    weight_R = mean * (matrix.row_weight / mean) ** power
    wanted_RC = 0.03 / (np.sqrt(weight_R)[:, None] * matrix.factor.pivots[None, :])
    # half a place of either grid: 1/128 and 1/8 octave
    assert np.abs(np.log2(step_RC / wanted_RC)).max() <= 1 / 128 + 1 / 8 + 1e-6
    # rows are not rounded together with columns: within one column the ratios are finer
    ratio_R = row_R / (1 / np.sqrt(weight_R))
    assert np.abs(np.log2(ratio_R / ratio_R[0])).max() <= 2 / 128 + 1e-6


def test_the_stored_scales_are_those_of_the_formula_without_rescaling():
    matrix = matrix_of()
    rows, columns = grid_indexes(matrix, 0.05)
    tensor = quantize_matrices([matrix], 0.05, states=8, rescale=False)[0].tensor
    assert np.array_equal(tensor.arrays["row_scales"], rows)
    assert np.array_equal(tensor.arrays["column_scales"], columns)
    assert tensor.method == "trellis"
    assert tensor.parameters == {"states": 8}
    assert tensor.record == {"damp": 0.01}


def test_steps_hardly_grow_where_a_rows_noise_is_larger_than_the_row():
    matrix = matrix_of()
    # a row that is small and seems not to matter
    matrix.weight[3] /= 100
    matrix.row_weight[3] = matrix.row_weight.mean() / 1e4
    small = prepare_matrix(
        "a", matrix.weight, Sensitivity(hessian=matrix.hessian, row_weight=matrix.row_weight)
    )
    plain = np.array([grid_indexes(small, d, row_power=1.0)[0] for d in (1e-5, 2e-5)])
    assert np.abs((plain[1] - plain[0]) - ROW_SCALES_PER_OCTAVE).max() <= 1
    noisy = np.array([grid_indexes(small, d, row_power=1.0)[0] for d in (0.02, 0.04)])
    octaves = (noisy[1] - noisy[0]) / ROW_SCALES_PER_OCTAVE
    assert octaves[3] == pytest.approx(BEYOND, abs=1 / ROW_SCALES_PER_OCTAVE)
    assert np.delete(octaves, 3).min() >= 1 - 1 / ROW_SCALES_PER_OCTAVE
    # at the bend, noise of s^2 / 12 in each decided column is so many times the row's power
    power = matrix.weight[3] @ matrix.hessian.astype(np.float64) @ matrix.weight[3]
    bend = np.sqrt(12 * MUCH_NOISE * power / 80 * matrix.row_weight[3])
    before, at, after = (
        int(grid_indexes(small, bend * 2.0**octave, row_power=1.0)[0][3]) for octave in (-1, 0, 1)
    )
    assert at - before == pytest.approx(ROW_SCALES_PER_OCTAVE, abs=1)
    assert after - at == pytest.approx(BEYOND * ROW_SCALES_PER_OCTAVE, abs=1)


def entropy_bits(codes: np.ndarray) -> float:
    share = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(share * np.log2(share)).sum())


@pytest.mark.parametrize("states", [1, 8])
def test_halving_delta_costs_about_a_bit_a_weight(states):
    rng = np.random.default_rng(0)
    matrix = prepare_matrix(
        "a",
        rng.standard_normal((256, 128)),
        Sensitivity(hessian=np.eye(128), row_weight=np.ones(256)),
    )
    rates, losses, sizes = [], [], []
    for delta in (0.4, 0.2, 0.1, 0.05):
        (coded,) = quantize_matrices([matrix], delta, states=states)
        rates.append(entropy_bits(coded.tensor.arrays["codes"]))
        sizes.append(encode_sections([coded.tensor], "range").stored_bytes * 8 / 256 / 128)
        losses.append(coded.loss_nats)
    # a high rate: the entropy of a fine uniform grid falls by log2 of the step
    assert np.diff(rates) == pytest.approx(1.0, abs=0.06)
    assert np.diff(sizes) == pytest.approx(1.0, abs=0.06)
    # and the distortion by its square: 6 dB a bit
    assert np.diff(np.log2(losses)) == pytest.approx(-2.0, abs=0.1)


@pytest.mark.parametrize("states", [1, 8])
@pytest.mark.parametrize("delta", [0.01, 0.3, 2.0, 50.0])
def test_rescaling_rows_never_raises_the_predicted_loss(states, delta):
    for seed in range(4):
        matrix = matrix_of(24, 40, seed)
        (plain,) = quantize_matrices([matrix], delta, states=states, rescale=False)
        (moved,) = quantize_matrices([matrix], delta, states=states, rescale=True)
        # float32 products of all columns at once, and column by column
        assert moved.loss_nats <= plain.loss_nats * (1 + 1e-4)
        assert np.array_equal(moved.tensor.arrays["codes"], plain.tensor.arrays["codes"])


@pytest.mark.parametrize("delta", [0.01, 0.3, 1.0])
def test_only_rows_that_gain_a_tenth_of_their_loss_are_rescaled(delta):
    matrix = matrix_of(64, 40)
    (plain,) = quantize_matrices([matrix], delta, states=8, rescale=False)
    (moved,) = quantize_matrices([matrix], delta, states=8, rescale=True)
    lost_R = [row_losses(matrix, result.tensor) for result in (plain, moved)]
    changed_R = plain.tensor.arrays["row_scales"] != moved.tensor.arrays["row_scales"]
    # float32 products there, float64 here
    assert (lost_R[1] <= lost_R[0] * (1 - LEAST_GAIN + 1e-3))[changed_R].all()
    assert changed_R.any() == (delta > 0.1)


def test_one_delta_for_all_or_one_by_name_and_any_number_of_threads_are_the_same():
    matrices = [matrix_of(name="a"), matrix_of(seed=1, name="b")]
    together = quantize_matrices(matrices, 0.1, states=8)
    named = quantize_matrices(matrices, {"b": 0.1, "a": 0.1}, states=8, threads=1)
    alone = [quantize_matrices([matrix], 0.1, states=8)[0] for matrix in matrices]
    for other in (named, alone):
        for a, b in zip(together, other, strict=True):
            assert a.loss_nats == b.loss_nats
            assert all(
                np.array_equal(a.tensor.arrays[k], b.tensor.arrays[k]) for k in a.tensor.arrays
            )


def test_codes_beyond_16_bits_are_an_error_that_names_the_matrix():
    with pytest.raises(QuantError, match=r"a: .*larger delta"):
        quantize_matrices([matrix_of()], 1e-4, states=1)


def test_channels_that_give_little_are_decided_before_all_others():
    assert (np.diff(np.diag(matrix_of().hessian)[matrix_of().factor.order]) <= 0).all()
    matrix = matrix_of(fed=True)
    diagonal_C = np.diag(matrix.hessian)
    given_C = matrix.row_weight @ matrix.weight**2 * diagonal_C
    little = np.flatnonzero(given_C < LITTLE * given_C.mean())
    assert 5 < len(little) < 75
    first, rest = np.split(matrix.factor.order, [len(little)])
    assert sorted(first) == little.tolist()
    assert (np.diff(diagonal_C[first]) >= 0).all()
    assert (np.diff(diagonal_C[rest]) <= 0).all()


def test_rows_without_fisher_information_count_a_little():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 6))
    found = prepare_matrix(
        "a", weight, Sensitivity(hessian=np.eye(6), row_weight=np.array([0.0, 1.0, 3.0, 0.0]))
    )
    assert found.row_weight.tolist() == [LEAST_ROW_SHARE, 1.0, 3.0, LEAST_ROW_SHARE]


@pytest.mark.parametrize(
    ("hessian", "rows", "message"),
    [
        (np.eye(5), np.ones(4), r"w: weight \(4, 6\) does not go with"),
        (np.eye(6), np.ones(3), r"w: weight \(4, 6\) does not go with"),
        (np.eye(6), np.zeros(4), "w: row weights must be finite, not negative, and not all zero"),
        (np.eye(6), np.array([1, 1, 1, -1.0]), "w: row weights must be finite"),
        (np.eye(6), np.array([1, 1, 1, np.nan]), "w: row weights must be finite"),
        (np.eye(6) * np.nan, np.ones(4), "w: .*not finite"),
        (np.zeros((6, 6)), np.ones(4), "w: every column of the Hessian is zero"),
    ],
)
def test_sensitivities_that_do_not_fit_are_named(hessian, rows, message):
    with pytest.raises(QuantError, match=message):
        prepare_matrix("w", np.ones((4, 6)), Sensitivity(hessian=hessian, row_weight=rows))


def test_a_weight_that_is_not_finite_is_named():
    weight = np.ones((4, 6))
    weight[2, 3] = np.inf
    with pytest.raises(QuantError, match="w: the weight is not finite"):
        prepare_matrix("w", weight, Sensitivity(hessian=np.eye(6), row_weight=np.ones(4)))


# the search

FINEST = 2e-6
WEIGHTS = 200_000


def size_of(bits: float, floor: int):
    """Sizes as of Gaussian weights of one variance: at high rates a bit per halving."""

    def size_at(delta: float) -> int:
        return floor + int(WEIGHTS / 8 * 0.5 * np.log2(1 + (2.0**bits * 1e-4 / delta) ** 2))

    return size_at


class Watched:
    """A size function that remembers what it was asked."""

    def __init__(self, size_at):
        self.size_at, self.deltas = size_at, []

    def __call__(self, delta):
        assert isinstance(delta, float)
        self.deltas.append(delta)
        return self.size_at(delta)


def solve(size_at, target, **settings):
    return solve_delta(
        size_at, target, **{"start": 1e-4, "octave_bits": WEIGHTS, "finest": FINEST} | settings
    )


@settings(deadline=None, max_examples=150)
@given(
    bits=st.floats(-4, 8),
    floor=st.integers(500, 20_000),
    target=st.integers(600, 400_000),
)
def test_the_target_is_met_from_below_wherever_it_can_be(bits, floor, target):
    size_at = Watched(size_of(bits, floor))
    found = solve(size_at, target)
    coarsest = size_at.size_at(1e-4 * 2.0**12)
    assert len(size_at.deltas) <= 12
    if found is None:
        assert coarsest > target
        return
    assert found in size_at.deltas
    assert (size := size_at.size_at(found)) <= target
    if size_at.size_at(FINEST) <= target:
        assert found == pytest.approx(FINEST)
    elif target > floor + WEIGHTS // 80:  # a tenth of a bit a weight
        assert size >= (1 - 1e-3) * target


@pytest.mark.parametrize("target", [20_000, 60_000, 100_000, 140_000])
def test_half_a_dozen_sizes_are_enough_at_ordinary_rates(target):
    size_at = Watched(size_of(3.0, 4000))
    found = solve(size_at, target)
    assert size_at.size_at(found) >= 0.999 * target
    assert len(size_at.deltas) <= 6


@pytest.mark.parametrize("seed", range(20))
def test_sizes_that_scatter_by_the_tolerance_do_not_prolong_the_search(seed):
    plain, rng = size_of(2.5, 3000), np.random.default_rng(seed)
    scatter = {}

    def size_at(delta):
        return plain(delta) + scatter.setdefault(delta, int(rng.integers(-60, 61)))

    found = solve(size_at, 60_000)
    assert len(scatter) <= 6
    assert 60_000 * (1 - 3e-3) <= size_at(found) <= 60_000


def test_a_target_below_the_coarsest_has_no_solution_and_the_coarsest_was_tried():
    size_at = Watched(size_of(2.0, 5000))
    assert solve(size_at, 4999) is None
    assert max(size_at.deltas) == pytest.approx(1e-4 * 2.0**12)
    # the very size of the coarsest has one
    coarsest = size_at.size_at(max(size_at.deltas))
    assert size_at.size_at(solve(size_at, coarsest)) == coarsest


@pytest.mark.parametrize("target", [-5000, 0, 1])
def test_a_target_of_nothing_has_no_solution(target):
    assert solve(size_of(2.0, 5000), target) is None


def test_a_target_above_the_finest_stops_there_after_few_sizes():
    size_at = Watched(size_of(2.0, 5000))
    found = solve(size_at, 10**9)
    assert found == pytest.approx(FINEST)
    assert len(size_at.deltas) <= 3


def test_a_start_finer_than_the_finest_begins_there():
    size_at = Watched(size_of(2.0, 5000))
    solve(size_at, 10**9, start=1e-9)
    assert size_at.deltas == pytest.approx([FINEST])


@settings(deadline=None, max_examples=100)
@given(
    edges=st.lists(st.floats(-5, 11), min_size=1, max_size=6),
    heights=st.lists(st.integers(1, 60_000), min_size=7, max_size=7),
    target=st.integers(1, 300_000),
)
def test_plateaus_and_cliffs_never_lead_over_the_target(edges, heights, target):
    edges = sorted(edges)

    def size_at(delta):
        place = int(np.searchsorted(edges, np.log2(delta / 1e-4)))
        return sum(heights[place:])  # coarser steps have fewer summands

    found = solve(Watched(size_at), target)
    if found is None:
        assert size_at(1e-4 * 2.0**12) > target
    else:
        assert size_at(found) <= target


def test_of_sizes_that_are_not_monotone_the_finest_step_that_fits_is_taken():
    # a coder that gives up at low rates: coarser steps cost more there
    def size_at(delta):
        position = np.log2(delta / 1e-4)
        return int(13_000 - 1500 * position) if position < 4 else int(11_000 - 300 * position)

    watched = Watched(size_at)
    found = solve(watched, 9000)
    assert found == min(d for d in watched.deltas if size_at(d) <= 9000)
    assert size_at(found) >= 0.999 * 9000


def test_a_refusal_of_fine_steps_counts_as_over():
    plain = size_of(2.0, 5000)

    def size_at(delta):
        return 2**62 if delta < 3e-5 else plain(delta)

    found = solve(size_at, 10**7)
    assert 3e-5 <= found < 3.1e-5


def test_the_search_is_deterministic():
    tried = [Watched(size_of(2.5, 3000)) for _ in range(2)]
    assert solve(tried[0], 70_000) == solve(tried[1], 70_000)
    assert tried[0].deltas == tried[1].deltas


def test_larger_targets_never_get_coarser_steps_beyond_the_tolerance():
    size_at = size_of(3.0, 4000)
    sizes = [size_at(solve(size_at, target)) for target in range(6000, 150_000, 3000)]
    assert sizes == sorted(sizes)
