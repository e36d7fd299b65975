"""Logarithmic grids for scales."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptpack.errors import QuantError
from gptpack.quant.grids import RESOLUTIONS, quantize_scale, scale_values


@pytest.mark.parametrize("octave", [-100, -1, 0, 100])
def test_a_scale_is_the_float32_nearest_to_the_power_of_two(octave):
    finest = RESOLUTIONS[-1]
    indexes = np.arange(octave * finest, (octave + 1) * finest)
    for place, scale in enumerate(scale_values(indexes, per_octave=finest).tolist()):
        significand = Fraction(scale) / Fraction(2) ** octave  # within [1, 2): half an ulp is 2^-24
        low, high = significand - Fraction(1, 2**24), significand + Fraction(1, 2**24)
        assert low**finest <= 2**place <= high**finest


@pytest.mark.parametrize("per_octave", RESOLUTIONS)
def test_coarser_grids_are_parts_of_the_finest(per_octave):
    indexes = np.arange(-20, 20)
    finest = scale_values(indexes * (64 // per_octave), per_octave=64)
    assert np.array_equal(scale_values(indexes, per_octave=per_octave), finest)


@pytest.mark.parametrize("per_octave", RESOLUTIONS)
def test_every_grid_scale_quantizes_to_itself(per_octave):
    indexes = np.arange(-100 * per_octave, 101 * per_octave, dtype=np.int16)
    scales = scale_values(indexes, per_octave=per_octave)
    assert np.array_equal(quantize_scale(scales, per_octave=per_octave), indexes)


@given(st.floats(1e-25, 1e25), st.sampled_from(RESOLUTIONS))
def test_a_scale_moves_by_half_a_grid_step_at_most(value, per_octave):
    scale = float(
        scale_values(quantize_scale([value], per_octave=per_octave), per_octave=per_octave)[0]
    )
    assert abs(np.log2(scale / value)) <= 0.5 / per_octave + 1e-6


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, 1e35, 1e-35])
def test_what_the_grid_cannot_hold_is_an_error(bad):
    with pytest.raises(QuantError, match="scale"):
        quantize_scale([1.0, bad])


def test_indexes_off_the_grid_are_errors():
    with pytest.raises(QuantError, match="need integers"):
        scale_values(np.ones(2))
    with pytest.raises(QuantError, match=r"outside -400..403"):
        scale_values(np.array([404]))
    with pytest.raises(QuantError, match="3 scales per octave"):
        scale_values(np.array([0]), per_octave=3)
