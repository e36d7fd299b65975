"""docs/decoder.py, the page to port from, gives the tensors of every file, bit for bit."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    encode_artifact,
    example_tensors,
    family_configs,
    file_sets,
    grid_tensors,
    tensor_lists,
)

from gptpack.artifact.reader import decode_artifact
from gptpack.codec.sections import SECTION_CODECS
from gptpack.quant.methods import METHODS
from gptpack.quant.types import PackedTensor, dequantize

PAGE = Path(__file__).parent.parent / "docs" / "decoder.py"
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.artifact"))
FILES = {"LICENSE": b"Do what you like.\n" * 9, "empty": b""}


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("decoder", PAGE)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def agrees(page, data: bytes) -> None:
    """The page reads what the library reads."""
    expected = decode_artifact(data, verify_weights=True)
    header, tensors, files = page.decode(data)
    assert header["weights_sha256"] == expected.header.weights_sha256
    assert files == expected.files
    assert list(tensors) == [tensor.name for tensor in expected.tensors]
    for tensor in expected.tensors:
        value = dequantize(tensor)
        if tensor.parameters.get("transposed") and expected.header.version > 1:
            value = value.T
        found = tensors[tensor.name]
        assert (found.dtype, found.shape) == (np.dtype(np.float32), value.shape)
        assert np.array_equal(found.view(np.int32), value.view(np.int32))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_the_golden_file_of_each_version_is_read(page, path):
    agrees(page, path.read_bytes())


@pytest.mark.parametrize("codec", [*SECTION_CODECS, "auto"])
def test_each_codec_and_method_is_read(page, codec):
    if codec == "brotli":
        pytest.importorskip("brotli")
    tensors = [*example_tensors(), *(t for t in grid_tensors() if t.method != "int8")]
    assert {tensor.method for tensor in tensors} <= METHODS.keys()
    for files in ({}, FILES):
        agrees(page, encode_artifact(tensors=tensors, pack={}, codecs=codec, files=files))


@settings(max_examples=40, deadline=None)
@given(tensor_lists, family_configs(), file_sets, st.sampled_from(["auto", "range", "lzma"]))
def test_whatever_can_be_written_is_read(page, tensors, model, files, codec):
    agrees(page, encode_artifact(tensors=tensors, model=model, pack={}, files=files, codecs=codec))


def test_three_dimensions_are_never_in_columns(page):
    values = [np.array([[1, 1, 0], [1, 1, 1]]), np.array([[[1, 0], [1, 1]]])]
    tensors = [
        PackedTensor(
            name=str(index), shape=value.shape, method="float16",
            arrays={"values": value.astype("<f2")}, parameters={}, record={},
        )
        for index, value in enumerate(values)
    ]  # fmt: skip
    data = encode_artifact(tensors=tensors, pack={}, codecs="zlib")
    assert [row[2] for row in page.decode(data)[0]["sections"]] == ["column"]
    agrees(page, data)


def test_damage_is_noticed(page):
    data = bytearray(encode_artifact(tensors=example_tensors(), pack={}))
    for place in (0, 9, 30, 80, len(data) - 1):
        broken = bytearray(data)
        broken[place] ^= 1
        with pytest.raises(AssertionError):
            page.decode(bytes(broken))


def test_the_page_needs_numpy_alone_and_fits_on_250_lines(tmp_path):
    assert len(PAGE.read_text().splitlines()) <= 250
    path = tmp_path / "m.gptpack"
    path.write_bytes(encode_artifact(tensors=example_tensors(), pack={}, codecs="zlib"))
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "sys.modules.update(dict.fromkeys(('gptpack', 'torch', 'zstandard', 'numba')))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, str(PAGE), str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == [tensor.name for tensor in example_tensors()]
