"""docs/format.md says all that a decoder needs: reference_range.py, written from it, agrees."""

import json
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import reference_range as page
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from gptpack.codec.polynomials import POLYNOMIALS
from gptpack.codec.range import (
    decode_codes,
    decode_small,
    encode_codes,
    encode_small,
)
from gptpack.codec.stepper import TableStepper
from gptpack.codec.stream import HEADER
from gptpack.codec.trellis import state_table
from gptpack.errors import ArtifactError
from gptpack.families.golf.config import ModelConfig
from gptpack.quant.allocation import grid_tensor
from gptpack.quant.types import dequantize
from gptpack.values import to_dict

ROOT = Path(__file__).parent
GOLDEN = ROOT / "golden"
SHAPES = [(40, 24), (5, 16), (3, 7)]
"""Of the golden matrices."""
EIGHT = [8, 8, 8]

codes_lists = st.lists(
    npst.array_shapes(min_dims=2, max_dims=2, max_side=7).flatmap(
        lambda shape: st.sampled_from([1, 3, 40, 400, 2**15 - 1]).flatmap(
            lambda bound: npst.arrays(np.int16, shape, elements=st.integers(-bound, bound))
        )
    ),
    min_size=1,
    max_size=3,
)
known_states = st.sampled_from(sorted(POLYNOMIALS))


def steppers(states: list[int]) -> list[TableStepper]:
    return [TableStepper(state_table(count)) for count in states]


def plain(matrices) -> list[list[list[int]]]:
    return [matrix.tolist() for matrix in matrices]


def agree(payload: bytes, shapes, states: list[int] | None) -> None:
    """Both decoders give the same integers, or both reject."""
    expected = found = None
    with suppress(page.RejectedError):
        expected = page.decode_matrices(payload, shapes, states)
    machines = None if states is None else steppers(states)
    with suppress(ArtifactError):
        found = plain(decode_codes(payload, shapes, steppers=machines))
    assert found == expected


def agree_on_vector(payload: bytes, size: int) -> None:
    expected = found = None
    with suppress(page.RejectedError):
        expected = page.decode_vector(payload, size)
        # No array holds more than 16 bits.
        expected = expected if all(-(2**15) <= value < 2**15 for value in expected) else None
    with suppress(ArtifactError):
        found = decode_small(payload, size).tolist()
        found = found if all(-(2**15) <= value < 2**15 for value in found) else None
    assert found == expected


def test_the_golden_payloads_decode_by_the_page() -> None:
    codes = page.decode_matrices((GOLDEN / "codes-plain.bin").read_bytes(), SHAPES)
    assert codes == page.decode_matrices((GOLDEN / "codes-trellis.bin").read_bytes(), SHAPES, EIGHT)
    assert codes[1][4][15] == -1000
    assert codes[2] == [[0] * 7] * 3
    agree((GOLDEN / "codes-plain.bin").read_bytes(), SHAPES, None)
    agree((GOLDEN / "codes-trellis.bin").read_bytes(), SHAPES, EIGHT)
    agree_on_vector((GOLDEN / "codes-small.bin").read_bytes(), 200)


@settings(deadline=None, max_examples=40)
@given(codes_lists)
@example([np.arange(-(2**9), 2**9, dtype=np.int16).reshape(4, 256)])
def test_matrices_decode_by_the_page(codes) -> None:
    shapes = [matrix.shape for matrix in codes]
    assert page.decode_matrices(encode_codes(codes), shapes) == plain(codes)


@settings(deadline=None, max_examples=40)
@given(codes_lists, st.data())
def test_matrices_of_trellises_decode_by_the_page(codes, data: st.DataObject) -> None:
    states = [data.draw(known_states) for _ in codes]
    parities = [stepper.trace(c) for c, stepper in zip(codes, steppers(states), strict=True)]
    payload = encode_codes(codes, parities=parities)
    shapes = [matrix.shape for matrix in codes]
    assert page.decode_matrices(payload, shapes, states) == plain(codes)


def test_a_matrix_of_several_blocks_decodes_by_the_page() -> None:
    # 2^18 codes to a block: 3 rows, then 1.
    codes = np.zeros((4, 80_000), np.int8)
    codes[:, ::997] = 1
    codes[3, 5] = -3
    (found,) = page.decode_matrices(encode_codes([codes]), [codes.shape])
    assert np.array_equal(found, codes)


@settings(deadline=None, max_examples=40)
@given(
    npst.arrays(np.int16, st.integers(1, 60))
    | npst.arrays(np.int16, st.integers(1, 60), elements=st.integers(-9, 9))
)
@example(np.repeat(np.arange(1000, 1002, dtype=np.int16), 60))
@example(np.resize(np.array([1000, 3], np.int16), 400))
def test_vectors_decode_by_the_page(array) -> None:
    assert page.decode_vector(encode_small(array), array.size) == array.tolist()


@settings(deadline=None, max_examples=120)
@given(st.sampled_from(["plain", "trellis", "small"]), st.data())
def test_both_decoders_reject_the_same_damaged_payloads(name: str, data: st.DataObject) -> None:
    payload = bytearray((GOLDEN / f"codes-{name}.bin").read_bytes())
    # The first words hold what can be wrong; the later ones are codes, and any bits are codes.
    area = len(payload) if data.draw(st.booleans()) else 60
    for place in data.draw(st.lists(st.integers(0, area - 1), min_size=1, max_size=3)):
        payload[place] ^= data.draw(st.integers(1, 255))
    if name == "small":
        agree_on_vector(bytes(payload), 200)
    else:
        agree(bytes(payload), SHAPES, EIGHT if name == "trellis" else None)


@settings(deadline=None, max_examples=120)
@given(st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**32 - 1]), max_size=12))
def test_both_decoders_agree_on_any_words(words: list[int]) -> None:
    body = np.array(words, "<u4").tobytes()
    agree(HEADER.pack(1, len(words)) + body, [(2, 3), (1, 1)], None)
    agree(HEADER.pack(2, len(words)) + body, [(2, 3), (1, 1)], [8, 64])
    agree_on_vector(HEADER.pack(3, len(words)) + body, 5)


@settings(deadline=None, max_examples=80)
@given(
    npst.array_shapes(min_dims=2, max_dims=2, max_side=5).flatmap(
        lambda shape: st.tuples(
            npst.arrays("<i2", shape),
            npst.arrays("<i2", shape[0], elements=st.integers(-6400, 6463)),
            npst.arrays("<i2", shape[1], elements=st.integers(-400, 403)),
            st.none() | npst.arrays("<u2", shape[1]),
        )
    ),
    st.none() | known_states,
)
def test_values_of_the_grid_methods_are_those_of_the_page(arrays, states: int | None) -> None:
    codes, rows, columns, offsets = arrays
    tensor = grid_tensor("t", codes, (rows, columns), states=states or 1, offsets=offsets)
    lists = (None if array is None else array.tolist() for array in arrays)
    try:
        expected = page.grid_values(*(next(lists) for _ in range(3)), states, *lists)
    except page.RejectedError:
        with pytest.raises(ArtifactError, match="finite"):
            dequantize(tensor)
        return
    assert dequantize(tensor).tolist() == [[float(value) for value in row] for row in expected]


def test_the_page_prints_the_constants_of_its_rules() -> None:
    text = (ROOT.parent / "docs" / "format.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"\d+", text)]

    def printed(constants: list[int]) -> bool:
        size = len(constants)
        starts = [i for i, number in enumerate(numbers) if number == constants[0]]
        return any(numbers[i : i + size] == constants for i in starts)

    assert printed(page.SIGNIFICANDS)
    assert printed(page.ROOTS)
    for states, polynomials in page.POLYNOMIALS.items():
        row = " | ".join([str(states), *(f"{h:o}" for h in polynomials)])
        assert f"| {row} |" in text


def test_the_page_has_every_field_of_the_model_and_what_it_is_where_it_is_not_there():
    text = (ROOT.parent / "docs" / "format.md").read_text(encoding="utf-8")
    section = text[text.index("### The model") : text.index("### Tensor rows")]
    rows = re.findall(r"^\| `(\w+)` \| `(.+)` \|$", section, re.MULTILINE)
    assert {key: json.loads(value) for key, value in rows} == to_dict(ModelConfig())
