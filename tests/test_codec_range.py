"""The context coder: exact both ways, exact integers inside, close to the entropy, safe to read.

Run as a script, this file writes its golden payloads again (after a change of format).
"""

import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from gptpack.codec import tables
from gptpack.codec.coder import PRECISION, carry
from gptpack.codec.contexts import fit_scales, merge_classes
from gptpack.codec.range import (
    PLAIN,
    SMALL,
    TRELLIS,
    decode_codes,
    decode_small,
    encode_codes,
    encode_small,
    estimate_bits,
)
from gptpack.codec.stepper import TableStepper, joined
from gptpack.codec.stream import HEADER, LIMIT, Book, Reader, Writer
from gptpack.codec.tables import (
    REACH_MAX,
    SHAPES,
    Span,
    fit_span,
    frequencies,
    histogram,
    parametric,
)
from gptpack.errors import ArtifactError, QuantError

GOLDEN = Path(__file__).parent / "golden"

EIGHT = np.array([[s >> 1 ^ 5 * (s & 1) ^ 2 * bit for bit in (0, 1)] for s in range(8)])
"""Ungerboeck's code with 8 states, h0 = 13 and h1 = 4 in octal."""


def gaussian_codes(
    shape: tuple[int, int], *, rms: float = 2.4, seed: int = 0
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Rounded Gaussians with log-normal row (0.3) and column (0.5) scales, and those scales."""
    rng = np.random.default_rng(seed)
    row_R = np.exp(0.3 * rng.standard_normal((shape[0], 1)))
    column_C = np.exp(0.5 * rng.standard_normal((1, shape[1])))
    scale_RC = rms * row_R * column_C
    return np.rint(scale_RC * rng.standard_normal(shape)).astype(np.int32), scale_RC


def trellis_codes(shape: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Codes k of points 2 k + parity, nearest to Gaussians of rms 1.5 along an 8-state path."""
    target_RC = 1.5 * np.random.default_rng(0).standard_normal(shape)
    state_C = np.zeros(shape[1], dtype=np.int64)
    rows = []
    for target_C in target_RC:
        rows.append(np.rint((target_C - (state_C & 1)) / 2).astype(np.int32))
        state_C = EIGHT[state_C, rows[-1] & 1]
    return np.array(rows)


def counted(size: int, spread: int) -> npt.NDArray[np.int32]:
    """A sequence about zero from integer arithmetic alone, the same everywhere and for ever."""
    state, values = 12345, []
    for _ in range(size):
        total = 0
        for _ in range(4):
            state = (state * 1103515245 + 12345) % 2**31
            total += (state >> 16) % (2 * spread + 1) - spread
        values.append(total)
    return np.array(values, dtype=np.int32)


matrices = npst.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9).flatmap(
    lambda shape: st.sampled_from([1, 3, 40, 300, LIMIT - 1]).flatmap(
        lambda bound: npst.arrays(np.int32, shape, elements=st.integers(-bound, bound))
    )
)


def steppers(count: int) -> list[TableStepper]:
    return [TableStepper(EIGHT) for _ in range(count)]


def equal(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(map(np.array_equal, left, right))


@given(st.lists(matrices, max_size=4))
@settings(deadline=None)
def test_codes_come_back_as_they_were(codes: list[npt.NDArray[np.int32]]) -> None:
    shapes = [matrix.shape for matrix in codes]
    decoded = decode_codes(encode_codes(codes), shapes)
    assert equal(decoded, codes)
    assert all(matrix.dtype == np.int32 for matrix in decoded)


@given(st.lists(matrices, max_size=4))
@settings(deadline=None)
def test_codes_of_a_trellis_come_back_as_they_were(codes: list[npt.NDArray[np.int32]]) -> None:
    parities = [TableStepper(EIGHT).trace(matrix) for matrix in codes]
    data = encode_codes(codes, parities=parities)
    shapes = [matrix.shape for matrix in codes]
    assert equal(decode_codes(data, shapes, steppers=steppers(len(codes))), codes)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int64])
def test_every_integer_type_is_taken_and_none_is_modified(dtype: type[np.integer]) -> None:
    codes = np.arange(120).reshape(8, 15).astype(dtype)
    for matrix in (codes, codes.T, codes[::2, 1:]):
        before = matrix.copy()
        data = encode_codes([matrix])
        assert np.array_equal(matrix, before)
        assert equal(decode_codes(data, [matrix.shape]), [before])


@given(
    npst.arrays(np.int32, st.integers(0, 60), elements=st.integers(1 - LIMIT, LIMIT - 1))
    | npst.arrays(np.int16, st.integers(0, 60), elements=st.integers(-9, 9))
    | npst.arrays(np.uint8, st.integers(0, 60))
)
@settings(deadline=None)
def test_small_arrays_come_back_as_they_were(array: npt.NDArray[np.integer]) -> None:
    assert np.array_equal(decode_small(encode_small(array), array.size), array)


def test_the_same_codes_give_the_same_bytes() -> None:
    codes = [gaussian_codes((40, 60), seed=seed)[0] for seed in (1, 2)]
    assert encode_codes(codes) == encode_codes([matrix.astype(np.int64) for matrix in codes])


def golden_payloads() -> dict[str, tuple[bytes, list[npt.NDArray[np.int32]]]]:
    codes = [
        (counted(40 * 24, 9) * np.tile(np.arange(1, 25), 40) // 12).reshape(40, 24),
        np.append(counted(79, 3), -1000).reshape(5, 16),
        np.zeros((3, 7), dtype=np.int32),
    ]
    parities = [TableStepper(EIGHT).trace(matrix) for matrix in codes]
    small = counted(200, 2)
    return {
        "codes-plain.bin": (encode_codes(codes), codes),
        "codes-trellis.bin": (encode_codes(codes, parities=parities), codes),
        "codes-small.bin": (encode_small(small), [small]),
    }


@pytest.mark.parametrize("name", ["codes-plain.bin", "codes-trellis.bin", "codes-small.bin"])
def test_golden_payloads_are_still_written_and_read(name: str) -> None:
    written, codes = golden_payloads()[name]
    golden = (GOLDEN / name).read_bytes()
    shapes = [matrix.shape for matrix in codes]
    if golden[0] == SMALL:
        assert np.array_equal(decode_small(golden, codes[0].size), codes[0])
    else:
        machines = steppers(len(codes)) if golden[0] == TRELLIS else None
        assert equal(decode_codes(golden, shapes, steppers=machines), codes)
    assert written == golden


@given(npst.arrays(np.int64, st.integers(1, 512), elements=st.integers(-(2**40), 2**40)))
def test_frequencies_are_positive_and_sum_to_two_to_the_24(logs: npt.NDArray[np.int64]) -> None:
    found = frequencies(logs)
    assert found.sum() == 1 << PRECISION
    assert found.min() >= 1


@given(npst.arrays(np.int64, st.integers(2, 300), elements=st.integers(0, 320)), st.data())
@settings(deadline=None)
def test_the_words_are_those_of_another_range_coder(
    logs: npt.NDArray[np.int64], data: st.DataObject
) -> None:
    """constriction's queue coder, which has the same words, state, and precision."""
    constriction = pytest.importorskip("constriction")
    table = tables.FrequencyTable(0, logs)
    places = st.integers(0, table.size - 1)
    values = np.array(data.draw(st.lists(places, min_size=1, max_size=99)), np.int32)
    writer = Writer()
    writer.values(values, Book([table]))
    words = np.frombuffer(writer.payload(PLAIN), "<u4", offset=HEADER.size).astype(np.uint32)
    # it grants each symbol one part of 2^24 and shares out the rest as these floats, exactly
    shares = (table.frequencies - 1).astype(np.float64)
    model = constriction.stream.model.Categorical(shares, perfect=False)
    coder = constriction.stream.queue.RangeEncoder()
    coder.encode(values, model)
    assert coder.get_compressed().tolist() == words.tolist()
    decoder = constriction.stream.queue.RangeDecoder(words)
    assert decoder.decode(model, values.size).tolist() == values.tolist()


@pytest.mark.parametrize("carries", [1, 3, 200])
def test_a_carry_goes_back_through_words_of_ones(carries: int) -> None:
    words = np.array([5, *[2**32 - 1] * carries, 9], np.uint32)
    carry(words, 1 + carries)
    assert words.tolist() == [6, *[0] * carries, 9]


def test_probabilities_halve_every_sixteen_steps() -> None:
    found = frequencies(np.array([320, 304, 288, 272]))
    assert np.allclose(found / found[0], [1, 0.5, 0.25, 0.125], rtol=1e-6)


def test_no_table_of_the_fixed_family_forbids_a_value() -> None:
    assert all(parametric(shape).frequencies.min() >= 1 for shape in range(SHAPES))


@given(st.lists(st.integers(-400, 400), max_size=200))
@settings(deadline=None)
def test_a_fitted_table_holds_the_commonest_value_and_can_be_written(values: list[int]) -> None:
    array = np.array(values, dtype=np.int64)
    span = fit_span(histogram(array))
    writer = Writer()
    writer.spans([span, span], 1)
    assert Reader(writer.payload(PLAIN), PLAIN).spans(2, 1) == [span, span]
    inner = array[np.abs(array) <= REACH_MAX]
    if inner.size:
        commonest = int(np.bincount(inner + REACH_MAX).argmax()) - REACH_MAX
        assert span.low <= commonest < span.low + span.size


def test_a_table_costs_little_more_than_the_entropy_it_stands_for() -> None:
    values = np.rint(3 * np.random.default_rng(0).laplace(size=100_000)).astype(np.int64)
    counts = histogram(values)
    span = fit_span(counts)
    named = counts[span.low + REACH_MAX + 1 :][: span.size]
    share = counts[counts > 0] / values.size
    entropy = -float((share * np.log2(share)).sum())
    bits = float(named @ span.table().bits[:-1]) / values.size
    assert bits < entropy + 0.001


def test_scales_are_found_to_a_few_classes() -> None:
    codes, scale_RC = gaussian_codes((300, 200), rms=6.0)
    scales = fit_scales(codes)
    class_RC = scales.rows[:, None] + scales.columns
    assert np.abs(class_RC - 6 * np.log2(scale_RC)).max() < 4


def test_classes_with_few_codes_share_their_tables() -> None:
    counts_KPV = np.zeros((4, 1, tables.PLACES), dtype=np.int64)
    counts_KPV[:, 0, REACH_MAX : REACH_MAX + 3] = [[1, 2, 1], [1, 3, 1], [0, 0, 0], [9999, 5, 9999]]
    assert merge_classes(counts_KPV).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(("shape", "gap"), [((512, 1024), 0.018), ((1024, 2048), 0.0105)])
def test_codes_cost_little_more_than_their_entropy_given_the_true_scales(
    shape: tuple[int, int], gap: float
) -> None:
    # Scales cost some 4 bits per row and column, 0.012 bit per code of the smaller matrix.
    normal = pytest.importorskip("scipy.special").ndtr
    codes, scale_RC = gaussian_codes(shape, seed=1)
    share_RC = normal((codes + 0.5) / scale_RC) - normal((codes - 0.5) / scale_RC)
    bits = 8 * len(encode_codes([codes])) / codes.size
    assert bits < -np.log2(share_RC).mean() + gap


def test_codes_are_smaller_than_with_a_general_compressor() -> None:
    codes, _ = gaussian_codes((256, 512))
    general = zstandard.ZstdCompressor(level=22).compress(codes.T.astype(np.int8).tobytes())
    assert len(encode_codes([codes])) < 0.92 * len(general)


@given(matrices, st.sampled_from([8, 3]))
@settings(deadline=None)
def test_parities_traced_at_once_are_those_of_row_after_row(
    codes: npt.NDArray[np.int32], states: int
) -> None:
    table = np.random.default_rng(states).integers(0, states, (states, 2))
    state_C = np.zeros(codes.shape[1], dtype=np.int64)
    expected = np.zeros(codes.shape, dtype=np.uint8)
    for row, symbols in enumerate(codes):
        expected[row] = state_C & 1
        state_C = table[state_C, symbols & 1]
    assert np.array_equal(TableStepper(table).trace(codes), expected)


def test_matrices_side_by_side_step_as_each_does_alone() -> None:
    """Whatever their tables are, one of an odd number of states among them."""
    rng = np.random.default_rng(0)
    tables = [EIGHT, rng.integers(0, 3, (3, 2)), EIGHT, rng.integers(0, 5, (5, 2))]
    codes = [rng.integers(-4, 5, (9, columns)) for columns in (2, 4, 1, 6)]
    doubled, place_C = joined([TableStepper(table) for table in tables], [2, 4, 1, 6])
    parities = [TableStepper(table).trace(m) for table, m in zip(tables, codes, strict=True)]
    for found, row in zip(np.hstack(parities), np.hstack(codes), strict=True):
        assert np.array_equal(place_C >> 1 & 1, found)
        place_C = doubled[place_C + (row & 1)]
    data = encode_codes(codes, parities=parities)
    machines = [TableStepper(table) for table in tables]
    assert equal(decode_codes(data, [m.shape for m in codes], steppers=machines), codes)


def test_knowing_the_parity_saves_bytes() -> None:
    codes = trellis_codes((256, 512))
    parity = TableStepper(EIGHT).trace(codes)
    assert len(encode_codes([codes], parities=[parity])) < 0.97 * len(encode_codes([codes]))


def test_matrices_share_their_tables() -> None:
    codes = [gaussian_codes((32, 48), seed=seed)[0] for seed in range(8)]
    assert len(encode_codes(codes)) < sum(len(encode_codes([matrix])) for matrix in codes) - 250


def test_the_estimate_is_the_size_to_some_bytes_however_many_codes_there_are() -> None:
    codes = [gaussian_codes((512, 1024), rms=rms)[0] for rms in (0.8, 2.4, 9.0)]
    size = 8 * len(encode_codes(codes))
    assert abs(estimate_bits(codes) - size) < 128


@pytest.mark.parametrize("rms", [0.05, 0.4, 2.4, 60.0, 4000.0])
@pytest.mark.parametrize("with_parity", [False, True])
def test_the_estimate_is_the_size_within_a_fifth_of_a_percent(
    rms: float, with_parity: bool
) -> None:
    codes = [gaussian_codes((64, 96), rms=rms)[0], gaussian_codes((33, 21), rms=rms)[0]]
    parities = [TableStepper(EIGHT).trace(m) for m in codes] if with_parity else None
    size = 8 * len(encode_codes(codes, parities=parities))
    assert abs(estimate_bits(codes, parities=parities) - size) < 0.002 * size + 64


def test_zeros_cost_next_to_nothing() -> None:
    assert len(encode_codes([np.zeros((512, 512), dtype=np.int8)])) < 90


def test_small_arrays_of_a_lopsided_distribution_get_a_table_of_their_own() -> None:
    array = np.random.default_rng(0).geometric(0.2, 4000).astype(np.uint8)
    entropy = (-0.2 * np.log2(0.2) - 0.8 * np.log2(0.8)) / 0.2
    assert len(encode_small(array)) < 4000 * entropy / 8 + 70


def test_small_arrays_that_change_slowly_are_coded_by_differences() -> None:
    array = np.cumsum(np.random.default_rng(0).integers(-1, 2, 2000))
    assert len(encode_small(array)) < 2000 * np.log2(3) / 8 + 40


@pytest.mark.parametrize("value", [LIMIT, -LIMIT, 2**40])
def test_codes_beyond_the_limit_are_refused(value: int) -> None:
    codes = np.array([[0, value]])
    with pytest.raises(QuantError, match="magnitudes below"):
        encode_codes([codes])
    with pytest.raises(QuantError, match="magnitudes below"):
        encode_small(codes)


def test_parities_of_another_shape_are_refused() -> None:
    with pytest.raises(QuantError, match="parities 0"):
        encode_codes([np.zeros((2, 3), np.int8)], parities=[np.zeros((3, 2), np.uint8)])


def test_parities_other_than_0_and_1_are_refused() -> None:
    with pytest.raises(QuantError, match="0 or 1"):
        encode_codes([np.zeros((2, 3), np.int8)], parities=[np.full((2, 3), 2, np.uint8)])


def test_only_matrices_are_codes() -> None:
    with pytest.raises(QuantError, match="matrices"):
        encode_codes([np.zeros(3, np.int8)])


SHAPES_READ = [(40, 24), (5, 16), (3, 7)]


def decode(data: bytes, name: str) -> None:
    """Decode as if it were the golden payload `name`."""
    if name == "codes-small.bin":
        assert decode_small(data, 200).shape == (200,)
        return
    machines = steppers(3) if name == "codes-trellis.bin" else None
    decoded = decode_codes(data, SHAPES_READ, steppers=machines)
    assert [matrix.shape for matrix in decoded] == SHAPES_READ


def read(data: bytes, name: str) -> None:
    """Decode, or be told why not."""
    with suppress(ArtifactError):
        decode(data, name)


NAMES = st.sampled_from(["codes-plain.bin", "codes-trellis.bin", "codes-small.bin"])


@given(NAMES, st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_payloads_decode_or_raise(name: str, data: st.DataObject) -> None:
    payload = bytearray((GOLDEN / name).read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(payload) - 1), max_size=4)):
        payload[place] ^= data.draw(st.integers(1, 255))
    read(bytes(payload), name)


@given(NAMES, st.binary(max_size=200))
@settings(max_examples=400, deadline=None)
def test_any_words_decode_or_raise(name: str, body: bytes) -> None:
    kind = (GOLDEN / name).read_bytes()[0]
    body = body[: len(body) // 4 * 4]
    read(HEADER.pack(kind, len(body) // 4) + body, name)


@given(NAMES, st.binary(max_size=40))
@settings(deadline=None)
def test_any_bytes_decode_or_raise(name: str, data: bytes) -> None:
    read(data, name)


@pytest.mark.parametrize("name", ["codes-plain.bin", "codes-trellis.bin", "codes-small.bin"])
def test_truncated_and_lengthened_payloads_are_refused(name: str) -> None:
    payload = (GOLDEN / name).read_bytes()
    for data in [payload[:cut] for cut in range(len(payload))] + [payload + bytes(4)]:
        with pytest.raises(ArtifactError):
            decode(data, name)


def test_a_code_beyond_the_type_asked_for_is_refused() -> None:
    data = encode_codes([np.array([[-129, 3]])])
    assert decode_codes(data, [(1, 2)], dtype=np.int16)[0].dtype == np.int16
    with pytest.raises(ArtifactError, match="beyond int8"):
        decode_codes(data, [(1, 2)], dtype=np.int8)


def test_words_after_the_last_code_are_refused() -> None:
    payload = (GOLDEN / "codes-plain.bin").read_bytes()
    kind, words = HEADER.unpack_from(payload)
    longer = HEADER.pack(kind, words + 4) + payload[HEADER.size :] + bytes(16)
    with pytest.raises(ArtifactError, match="goes on"):
        decode_codes(longer, SHAPES_READ)


def test_plain_codes_are_not_read_as_those_of_a_trellis() -> None:
    payload = (GOLDEN / "codes-plain.bin").read_bytes()
    with pytest.raises(ArtifactError, match="kind"):
        decode_codes(payload, SHAPES_READ, steppers=steppers(3))


@pytest.mark.parametrize(
    "span",
    [
        Span(0, 0, 0, 300, 0, 100, ()),
        Span(-REACH_MAX - 1, 1, 0, 300, 0, 100, (0,)),
        Span(0, REACH_MAX + 2, 0, 300, 0, 100, (0,) * (REACH_MAX + 2)),
        Span(0, 1, 0, 300, 1 << 20, 100, (0,)),
        Span(0, 1, 0, 300, 0, 1000, (0,)),
        Span(0, 1, 0, 300, 0, -1, (0,)),
    ],
)
def test_tables_that_no_encoder_writes_are_refused(span: Span) -> None:
    writer = Writer()
    writer.spans([span], 1)
    with pytest.raises(ArtifactError, match="a table"):
        Reader(writer.payload(PLAIN), PLAIN).spans(1, 1)


def test_hostile_payloads_take_no_more_memory_than_the_codes() -> None:
    rng = np.random.default_rng(0)
    peaks = []
    for _ in range(20):
        words = rng.integers(0, 2**32, 500, dtype=np.uint32)
        words[0] >>= rng.integers(0, 20)
        tracemalloc.start()
        with suppress(ArtifactError):
            decode_codes(HEADER.pack(PLAIN, 500) + words.tobytes(), [(256, 256)])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 40 * 256 * 256 + 2**22


if __name__ == "__main__":
    for name, (payload, _) in golden_payloads().items():
        (GOLDEN / name).write_bytes(payload)
        sys.stdout.write(f"{name}: {len(payload)} bytes\n")
