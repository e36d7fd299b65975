"""Rates before anything is quantized: entropies of rounded Gaussians, near what codes then take."""

import numpy as np
import pytest
from test_packing import UNIFORM, case

from gptpack.packing.packer import Packer, grid_bits
from gptpack.packing.search import expected_delta, pack_to_budget
from gptpack.quant.rates import rate_of, rounded_bits


@pytest.mark.parametrize("spread", [-3.0, -0.5, 1.0, 3.9, 6.0])
def test_entropies_are_those_of_rounded_gaussians(spread):
    drawn = np.rint(2.0**spread * np.random.default_rng(0).standard_normal(400_000))
    counts = np.unique(drawn, return_counts=True)[1]
    share = counts / counts.sum()
    found = -(share * np.log2(share)).sum()
    assert rounded_bits(np.array([spread]))[0] == pytest.approx(found, abs=0.004)


def test_entropies_rise_with_the_spread_and_by_a_bit_an_octave_at_the_end():
    bits = rounded_bits(np.linspace(-20, 20, 401))
    assert (np.diff(bits) >= 0).all()
    assert bits[-1] - bits[-11] == pytest.approx(1)
    assert 0 <= bits[0] < 1e-6


def test_the_rate_is_near_what_codes_take_and_so_is_its_slope():
    packer = case(width=144, layers=3, vocab=256).packer()
    rate = rate_of(packer.matrices, packer.config.delta_factor_of)

    def taken(delta: float) -> float:
        return packer.weights * grid_bits(packer.draft(packer.quantize(delta)[0]))

    for delta in (1e-5, 3e-5, 1e-4):
        assert rate(delta) == pytest.approx(taken(delta), rel=0.05)
    assert rate(2e-5) - rate(8e-5) == pytest.approx(taken(2e-5) - taken(8e-5), rel=0.03)


@pytest.mark.parametrize(
    ("bits", "uniform", "most"),
    [
        (2.0, False, 4),
        (3.5, False, 3),
        (5.0, False, 3),
        (2.0, True, 3),
        (3.5, True, 3),
        (5.0, True, 3),
    ],
)
def test_few_sizes_are_enough(monkeypatch, bits, uniform, most):
    chosen = case(width=144, layers=3, vocab=256)
    packer = chosen.packer(UNIFORM) if uniform else chosen.packer()
    packer.budget_bytes = int(packer.weights * bits / 8)
    deltas = []
    quantize = Packer.quantize
    monkeypatch.setattr(
        Packer, "quantize", lambda self, delta: deltas.append(delta) or quantize(self, delta)
    )
    pack_to_budget(packer)
    assert len(deltas) <= most


def test_what_is_expected_lies_between_the_finest_and_the_coarsest_steps():
    packer = case().packer()
    # so fine that codes may not be storable: the search begins where it is safe
    assert expected_delta(packer, 10**9)[0] == 1e-4
    start, octave_bits = expected_delta(packer, -100_000)  # what is on no grid takes more
    assert start == pytest.approx(4096e-4, rel=1e-3)
    assert octave_bits > 0
