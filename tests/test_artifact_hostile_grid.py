"""Hostile files with tensors of `uniform` and `trellis` and sections of the codec `range`.

All have right checksums: what is wrong has to be found behind them, and is one `ArtifactError`.
"""

import copy
import random
import tracemalloc
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import MODEL, TOKENIZER, encode_artifact, grid_tensors
from test_artifact_hostile import forge, mutated, refused, split, survives

from gptpack.artifact.front import decode_header
from gptpack.artifact.layout import section_digest
from gptpack.artifact.reader import decode_artifact
from gptpack.codec.range import encode_codes, encode_small
from gptpack.codec.stream import HEADER
from gptpack.errors import ArtifactError
from gptpack.quant.allocation import grid_tensor
from gptpack.quant.methods import GRID_METHODS, METHODS
from gptpack.quant.types import PackedTensor, dequantize

DATA = encode_artifact(
    model=MODEL, tokenizer=TOKENIZER, tensors=grid_tensors(), pack={}, codecs="range"
)
VALUES, SECTIONS = split(DATA)
NAMES = [row[0] for row in VALUES["sections"]]
CODED = [index for index, row in enumerate(VALUES["sections"]) if row[1] == "range"]
OFFSET_METHODS = ("uniform-offsets", "trellis-offsets")
UNIFORM = [row[2] for row in VALUES["tensors"]].index("uniform")
TRELLIS = [row[2] for row in VALUES["tensors"]].index("trellis")


def spoiled(index: int, stored: bytes, *, codec: str = "range", layout: str = "row") -> bytes:
    """The file with other stored bytes in section `index`, and all that follows from them."""
    values, sections = copy.deepcopy(VALUES), list(SECTIONS)
    sections[index] = stored
    row = values["sections"][index]
    row[1:4], row[5] = [codec, layout, len(stored)], section_digest(stored)
    return forge(values, sections)


def one_matrix(shape: list[int], codes: bytes, codec: str = "range", **parameters: int) -> bytes:
    """A file of one tensor whose scales are zeros and whose codes are stored as `codes`."""
    rows, columns = shape
    values = copy.deepcopy(VALUES)
    method = "trellis" if parameters else "uniform"
    values["tensors"] = [["t", shape, method, parameters, {}]]
    stored = [bytes(2 * rows), bytes(2 * columns)] if rows + columns < 1 << 20 else [b"", b""]
    values["sections"] = [
        [f"{method}.{name}", used, "row", len(data), raw, section_digest(data)]
        for name, used, data, raw in (
            ("row_scales", "raw", stored[0], 2 * rows),
            ("column_scales", "raw", stored[1], 2 * columns),
            ("codes", codec, codes, 2 * rows * columns),
        )
    ]
    return forge(values, [*stored, codes])


def changed_tensor(index: int, column: int, value: object) -> bytes:
    values = copy.deepcopy(VALUES)
    values["tensors"][index][column] = value
    return forge(values, SECTIONS)


def test_the_good_file_reads_and_has_every_kind_of_section() -> None:
    found = decode_artifact(forge(VALUES, SECTIONS), verify_weights=True)
    for tensor, expected in zip(found.tensors, grid_tensors(), strict=True):
        assert all(np.array_equal(tensor.arrays[key], a) for key, a in expected.arrays.items())
    kinds = {NAMES[index]: SECTIONS[index][0] for index in CODED}
    assert kinds == {
        "uniform.row_scales": 3,
        "uniform.column_scales": 3,
        "uniform.codes": 1,
        "trellis.row_scales": 3,
        "trellis.column_scales": 3,
        "trellis.codes": 2,
        "uniform-offsets.row_scales": 3,
        "uniform-offsets.column_scales": 3,
        "uniform-offsets.codes": 1,
        "trellis-offsets.row_scales": 3,
        "trellis-offsets.column_scales": 3,
        "trellis-offsets.codes": 2,
        "int8.codes": 1,
    }


def test_flipped_bits_behind_the_checksums_read_or_are_refused() -> None:
    for index in CODED:
        # The first words say most; all bits of the later ones are codes.
        for place in (*range(40), *range(40, len(SECTIONS[index]), 9)):
            if place >= len(SECTIONS[index]):
                break
            stored = bytearray(SECTIONS[index])
            stored[place] ^= 1 << (place * 5 % 8)
            survives(spoiled(index, bytes(stored)))


def test_sections_cut_short_or_lengthened_are_refused() -> None:
    for index in CODED:
        stored = SECTIONS[index]
        for size in {*range(0, len(stored), 10), 4, 5, 9, len(stored) - 4, len(stored) - 1}:
            if size < len(stored):
                refused(spoiled(index, stored[:size]))
        for more in (b"\0", bytes(4), stored):
            refused(spoiled(index, stored + more))
        words = (len(stored) - HEADER.size) // 4
        longer = HEADER.pack(stored[0], words + 3) + stored[HEADER.size :] + bytes(12)
        assert "goes on" in refused(spoiled(index, longer))


@settings(deadline=None, max_examples=200)
@given(
    index=st.sampled_from(CODED),
    kind=st.integers(0, 4),
    body=st.binary(max_size=120),
    layout=st.sampled_from(["row", "row", "column", "planes"]),
)
def test_any_words_in_a_section_read_or_are_refused(index, kind, body, layout) -> None:
    body = body[: len(body) // 4 * 4]
    survives(spoiled(index, HEADER.pack(kind, len(body) // 4) + body, layout=layout))


@settings(deadline=None, max_examples=300)
@given(seed=st.integers(0, 2**32), times=st.integers(1, 3))
def test_headers_with_parts_changed_read_or_are_refused(seed: int, times: int) -> None:
    chooser = random.Random(seed)
    values: object = VALUES
    for _ in range(times):
        if isinstance(values, dict | list):
            values = mutated(values, chooser)
    survives(forge(values, SECTIONS))


@pytest.mark.parametrize(
    "states", [0, 1, 2, 3, 5, 9, 512, -8, 8.0, 8.5, 1e300, 2**62, -(2**63) + 1]
)
def test_a_number_of_states_without_a_code_is_refused(states: float) -> None:
    message = refused(changed_tensor(TRELLIS, 3, {"states": states}))
    assert f"{states} trellis states, must be one of 4, 8" in message


def test_states_belong_to_trellises_and_to_all_of_them() -> None:
    assert "None trellis states" in refused(changed_tensor(TRELLIS, 3, {}))
    for index, row in enumerate(VALUES["tensors"]):
        if not row[2].startswith("trellis"):
            assert "without a trellis" in refused(changed_tensor(index, 3, {"states": 8}))


def test_codes_of_another_trellis_are_not_the_weights_of_the_header() -> None:
    refused(changed_tensor(TRELLIS, 3, {"states": 16}))


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("row_scales", 6464),
        ("row_scales", -6401),
        ("row_scales", 32767),
        ("column_scales", 404),
        ("column_scales", -401),
        ("column_scales", -32768),
    ],
)
@pytest.mark.parametrize("method", GRID_METHODS)
@pytest.mark.parametrize("codec", ["range", "raw"])
def test_scales_outside_the_grid_are_refused(method, name, index, codec) -> None:
    section = NAMES.index(f"{method}.{name}")
    scales = np.zeros(VALUES["sections"][section][4] // 2, "<i2")
    scales[-1] = index
    stored = scales.tobytes() if codec == "raw" else encode_small(scales)
    assert "a scale index is outside" in refused(spoiled(section, stored, codec=codec))


def test_values_that_overflow_are_refused() -> None:
    codes = np.full((1, 1), 2, "<i2")
    tensor = PackedTensor(
        name="t",
        shape=(1, 1),
        method="uniform",
        arrays={
            "codes": codes,
            "row_scales": np.full(1, 6463, "<i2"),
            "column_scales": np.full(1, 403, "<i2"),
        },
    )
    with pytest.raises(ArtifactError, match="finite"):
        dequantize(tensor)


@pytest.mark.parametrize("method", OFFSET_METHODS)
@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_offsets_that_are_not_finite_are_refused(method: str, bits: int) -> None:
    section = NAMES.index(f"{method}.column_offsets")
    offsets = np.zeros(VALUES["sections"][section][4] // 2, "<u2")
    offsets[-1] = bits
    assert "finite" in refused(spoiled(section, offsets.tobytes(), codec="raw"))


def test_offsets_that_carry_a_value_beyond_float32_are_refused() -> None:
    scales = (np.full(1, 6463, "<i2"), np.full(1, 96, "<i2"))
    for offset, refuses in ((0x0000, False), (0x7F7F, True), (0xFF7F, False)):
        bits = np.full(1, offset, "<u2")
        tensor = grid_tensor("t", np.full((1, 1), 2), scales, states=1, offsets=bits)
        with pytest.raises(ArtifactError, match="finite") if refuses else nullcontext():
            dequantize(tensor)


@pytest.mark.parametrize("method", OFFSET_METHODS)
def test_offsets_are_there_in_full_where_the_method_says_so(method: str) -> None:
    section = NAMES.index(f"{method}.column_offsets")
    values = copy.deepcopy(VALUES)
    row = values["sections"].pop(section)
    rest = [stored for index, stored in enumerate(SECTIONS) if index != section]
    assert "must have" in refused(forge(values, rest))
    for raw in (row[4] - 2, row[4] + 2, 0, 4 * row[4]):
        values = copy.deepcopy(VALUES)
        values["sections"][section][4] = raw
        assert "its contents need" in refused(forge(values, SECTIONS))
        refused(spoiled(section, bytes(raw), codec="raw"))
    plain = method.removesuffix("-offsets")
    tensor = next(index for index, row in enumerate(VALUES["tensors"]) if row[2] == method)
    refused(changed_tensor(tensor, 2, plain))
    coded = SECTIONS[NAMES.index(f"{method}.column_scales")]
    assert "codec range holds" in refused(spoiled(section, coded))


def test_a_reader_that_knows_no_offsets_names_their_method(monkeypatch) -> None:
    for method in OFFSET_METHODS:
        monkeypatch.delitem(METHODS, method)
    assert "has method 'uniform-offsets', this gptpack knows" in refused(DATA)


@pytest.mark.parametrize("value", [128, -129, 32768, -32769, (1 << 20) - 1])
def test_decoded_codes_beyond_their_type_are_refused(value: int) -> None:
    name = "int8.codes" if abs(value) < 1000 else "uniform.codes"
    shapes = [row[1] for row in VALUES["tensors"] if row[2] == name.partition(".")[0]]
    matrices = [np.zeros(shape, np.int32) for shape in shapes]
    matrices[-1][-1, -1] = value
    stored = encode_codes(matrices)
    assert "beyond int" in refused(spoiled(NAMES.index(name), stored))


def test_a_payload_of_another_kind_is_refused() -> None:
    for index in CODED:
        for other in CODED:
            if SECTIONS[index][0] != SECTIONS[other][0]:
                assert "kind" in refused(spoiled(index, SECTIONS[other]))


def test_the_context_coder_is_refused_where_it_has_nothing_to_say() -> None:
    floats = NAMES.index("int8.scales")
    assert "codec range holds" in refused(spoiled(floats, SECTIONS[CODED[0]]))
    for layout in ("column", "planes"):
        message = refused(spoiled(CODED[0], SECTIONS[CODED[0]], layout=layout))
        assert f"no layout {layout}" in message


@pytest.mark.parametrize("index", [UNIFORM, TRELLIS])
@pytest.mark.parametrize("shape", [[], [12], [3, 4, 9], [1, 12, 9, 1]])
def test_only_matrices_lie_on_grids(index: int, shape: list[int]) -> None:
    assert "has rank" in refused(changed_tensor(index, 1, shape))


@pytest.mark.parametrize(
    "shape",
    [[(1 << 48) - 1] * 2, [1 << 40, 1], [1, 1 << 40], [1 << 24, 1 << 24], [5000, 5000]],
)
@pytest.mark.parametrize("parameters", [{}, {"states": 8}])
def test_huge_shapes_are_refused_before_anything_is_decoded(shape, parameters) -> None:
    tracemalloc.start()
    try:
        assert "at most" in refused(one_matrix(shape, encode_codes([]), **parameters))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("stored_bytes", [5, 93])
def test_the_memory_rule_of_the_context_coder_holds_to_the_byte(stored_bytes: int) -> None:
    # 8 bytes of codes for each of C columns; the scales beside them are 8 + 2 C bytes
    columns = (129 * stored_bytes + 8 + 65536) // 6
    header = decode_header(one_matrix([4, columns], bytes(stored_bytes)))
    assert header.sections[2].raw_bytes == 8 * columns
    most = 129 * stored_bytes + 8 + 2 * (columns + 1) + 65536
    with pytest.raises(ArtifactError, match=f"may hold {most:,} at most"):
        decode_header(one_matrix([4, columns + 1], bytes(stored_bytes)))


@pytest.mark.parametrize("parameters", [{}, {"states": 256}])
@pytest.mark.parametrize("tall", [False, True])
def test_words_of_a_hostile_file_take_memory_in_proportion(parameters, tall: bool) -> None:
    rng = np.random.default_rng(0)
    peaks = []
    for attempt in range(4):
        words = rng.integers(0, 2**32, 250, dtype=np.uint32)
        # The largest shift makes small numbers of the first words: streams that get far.
        words[0] >>= 8 * attempt
        stored = HEADER.pack(2 if parameters else 1, words.size) + words.tobytes()
        codes = (128 * len(stored) + 65536) // 4 if tall else (128 * len(stored) + 65536) // 2
        shape = [codes // 50, 50] if tall else [1, codes]
        data = one_matrix(shape, stored, **parameters)
        tracemalloc.start()
        survives(data)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 50 * codes + 2**22


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.zeros((2, 3), "<f4")}, "need integers"),
        ({"codes": np.zeros(6, "<i2")}, "need integers"),
        ({"codes": np.full((2, 3), 1 << 30)}, "beyond 30 bits"),
        ({"row_scales": np.zeros(2, "<f4")}, "need integers"),
        ({"row_scales": np.full(2, 6464, "<i2")}, "outside"),
        ({"column_scales": np.full(3, -401, "<i2")}, "outside"),
    ],
)
@pytest.mark.parametrize("parameters", [{}, {"states": 8}])
def test_arrays_that_no_grid_holds_do_not_get_past_dequantize(change, message, parameters) -> None:
    good = PackedTensor(
        name="t",
        shape=(2, 3),
        method="trellis" if parameters else "uniform",
        arrays={
            "codes": np.ones((2, 3), "<i2"),
            "row_scales": np.zeros(2, "<i2"),
            "column_scales": np.zeros(3, "<i2"),
        },
        parameters=parameters,
    )
    assert dequantize(good).shape == (2, 3)
    with pytest.raises(ArtifactError, match=f"t: .*{message}"):
        dequantize(replace(good, arrays={**good.arrays, **change}))
    with pytest.raises(ArtifactError, match="states"):
        dequantize(replace(good, parameters={"states": 2.5}))
