"""General codecs: exact, bounded in memory, and loud."""

import builtins
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import contents

from gptpack.codec.general import (
    BYTE_CODECS,
    LAYOUTS,
    ByteCodec,
    Zlib,
    Zstd,
    most_raw_bytes,
    padded_zlib,
)
from gptpack.codec.sections import (
    AUTO,
    SECTION_CODECS,
    EncodedStream,
    Slot,
    codec_names,
    decode_stream,
    encode_streams,
)
from gptpack.errors import ArtifactError, GptpackError, MissingDependencyError

INSTALLED = [codec for codec in BYTE_CODECS if codec.name != "brotli"]
try:
    import brotli
except ImportError:
    brotli = None
else:
    INSTALLED = list(BYTE_CODECS)
each_codec = pytest.mark.parametrize("codec", INSTALLED, ids=lambda codec: codec.name)


def slot(array):
    return Slot(shape=array.shape, dtype=array.dtype)


@each_codec
@settings(deadline=None, max_examples=40)
@given(raw=st.binary(max_size=2000) | st.integers(1, 5000).map(bytes))
def test_every_byte_string_comes_back(codec: ByteCodec, raw: bytes) -> None:
    assert codec.decode(codec.encode(raw), len(raw)) == raw


@each_codec
def test_encoding_twice_gives_the_same_bytes(codec: ByteCodec) -> None:
    raw = bytes(range(256)) * 40
    assert codec.encode(raw) == codec.encode(raw)


@each_codec
@settings(deadline=None, max_examples=60)
@given(stored=st.binary(max_size=300), raw_bytes=st.integers(0, 5000))
def test_any_bytes_decode_to_the_declared_size_or_raise(codec, stored, raw_bytes) -> None:
    try:
        raw = codec.decode(stored, raw_bytes)
    except ArtifactError:
        return
    assert len(raw) == raw_bytes


@each_codec
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damaged_streams_decode_to_the_declared_size_or_raise(codec, data) -> None:
    raw = data.draw(st.binary(min_size=1, max_size=500))
    stored = bytearray(codec.encode(raw))
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = codec.decode(bytes(stored), len(raw))
    except ArtifactError:
        return
    assert len(found) == len(raw)


@each_codec
@pytest.mark.parametrize("raw", [b"a", bytes(100_000), os.urandom(1000)], ids=len)
def test_a_stream_of_another_length_or_with_a_tail_is_rejected(codec, raw) -> None:
    stored = codec.encode(raw)
    for data, raw_bytes in (
        (stored + b"x", len(raw)),
        (stored + stored, len(raw)),
        (stored[:-1], len(raw)),
        (b"", len(raw)),
        (stored, len(raw) - 1),
        (stored, len(raw) + 1),
    ):
        with pytest.raises(ArtifactError, match=codec.name):
            codec.decode(data, raw_bytes)


@pytest.mark.parametrize("size", [1, 65536, 65665, 1 << 20, 1 << 24])
@pytest.mark.parametrize("all_bytes", [0, 1000, 1 << 20])
def test_a_padded_zlib_stream_is_as_large_as_the_memory_rule_asks_for(
    size: int, all_bytes: int
) -> None:
    stored = Zlib().encode(bytes(size))
    padded = padded_zlib(stored, size, all_bytes)
    assert size <= most_raw_bytes(len(padded), all_bytes)
    assert padded == stored or size > most_raw_bytes(len(padded) - 5, all_bytes)
    assert Zlib().decode(padded, size) == bytes(size)


def test_zstd_is_no_larger_than_its_levels_1_and_19() -> None:
    rng = np.random.default_rng(0)
    noise = np.round(rng.standard_normal(200_000) * 6).astype(np.int8).tobytes()
    repeats = b"".join(b"%d, %d; " % (i, i * i) for i in range(20_000))
    for raw, level in ((noise, 1), (repeats, 19)):
        sizes = [len(zstandard.ZstdCompressor(level=n).compress(raw)) for n in (1, 19)]
        assert sizes[0] != sizes[1]
        assert len(Zstd().encode(raw)) <= min(sizes)
        assert min(sizes) == sizes[0 if level == 1 else 1]


@pytest.mark.parametrize("codec", AUTO[1:])
def test_a_section_that_shrinks_too_far_to_be_read_falls_to_padded_zlib(codec: str) -> None:
    zeros = np.zeros((1 << 12, 1 << 10), np.int8)
    tried = SECTION_CODECS[codec]().encode([slot(zeros)], [zeros], "row")
    assert zeros.nbytes > most_raw_bytes(len(tried), len(tried))
    (stream,) = encode_streams([([slot(zeros)], [zeros])], [codec])
    assert stream.codec == "zlib"
    assert zeros.nbytes <= most_raw_bytes(len(stream.data), len(stream.data))
    assert np.array_equal(decode_stream(stream, [slot(zeros)])[0], zeros)


def test_equal_scales_beside_codes_cost_no_more_than_they_compress_to() -> None:
    codes = np.random.default_rng(0).integers(-128, 128, (400, 1000)).astype(np.int8)
    scales = np.full(200_000, 7, "<i2")
    jobs = [([slot(array)], [array]) for array in (scales, codes)]
    small, large = encode_streams(jobs, ["zstd"])
    assert len(small.data) < 100 < len(large.data)


def test_what_the_context_coder_cannot_hold_goes_to_another_codec() -> None:
    wide = np.array([[0, 1 << 20], [-(1 << 31), 5]], "<i4")
    unsigned = np.arange(6, dtype="<u2").reshape(2, 3)
    cube = np.zeros((2, 2, 2), np.int8)
    zeros = np.zeros((1024, 1024), "<i2")
    matrix = np.array([[1, -2], [3, 4]], "<i2")
    for arrays, states in (
        ([wide], {}),
        ([unsigned], {}),
        ([cube], {}),
        ([zeros], {}),
        ([matrix], {"states": 3}),
        ([matrix], {"states": 8.0}),
        ([matrix, matrix[0]], {}),
    ):
        slots = [replace(slot(array), parameters=states) for array in arrays]
        (stream,) = encode_streams([(slots, arrays)], ["range"])
        assert stream.codec == "zlib"
        assert all(map(np.array_equal, decode_stream(stream, slots), arrays))
        own = replace(stream, codec="range", layout="row")
        with pytest.raises(ArtifactError):
            decode_stream(own, slots)
    mixed = [replace(slot(matrix), parameters=p) for p in ({"states": 8}, {})]
    assert encode_streams([(mixed, [matrix] * 2)], ["range"])[0].codec == "zlib"


@pytest.mark.parametrize("dtype", ["|i1", "<i2"])
@pytest.mark.parametrize("states", [None, 4, 256])
def test_the_context_coder_holds_the_extremes_of_its_types(dtype: str, states: int | None) -> None:
    info = np.iinfo(dtype)
    matrix = np.array([[info.min, info.max, 0], [-1, info.min, info.max]], dtype)
    parameters = {} if states is None else {"states": states}
    for array in (matrix, matrix[0]):
        seen = replace(slot(array), parameters=parameters)
        (stream,) = encode_streams([([seen, seen], [array, array])], ["range"])
        assert stream.codec == "range"
        found = decode_stream(stream, [seen, seen])
        assert all(a.dtype == array.dtype and np.array_equal(a, array) for a in found)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_arrays_of_any_shape_come_back_in_every_layout(layout: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(("<f4", "<f2", "<u2", "|i1")))
    shapes = st.lists(st.integers(1, 6), max_size=4).map(tuple)
    arrays = data.draw(st.lists(shapes.flatmap(lambda s: contents(dtype, s)), min_size=1))
    slots = [slot(array) for array in arrays]
    for codec in ("raw", "zlib"):
        data_ = SECTION_CODECS[codec]().encode(slots, arrays, layout)
        found = decode_stream(EncodedStream(codec=codec, layout=layout, data=data_), slots)
        assert [a.tobytes() for a in found] == [a.tobytes() for a in arrays]
        assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in arrays]


def test_layouts_are_the_documented_orders() -> None:
    matrix = np.array([[1, 2, 3], [4, 5, 6]], "<u2") + 256
    cube = np.arange(8, dtype="<u2").reshape(2, 2, 2)
    raw = SECTION_CODECS["raw"]()

    def order(layout: str) -> bytes:
        return raw.encode([], [matrix, cube], layout)

    assert order("row") == matrix.tobytes() + cube.tobytes()
    assert order("column") == matrix.T.tobytes() + cube.tobytes()
    assert order("planes") == order("row")[0::2] + order("row")[1::2]


def test_a_non_contiguous_array_is_coded_by_its_values() -> None:
    array = np.arange(24, dtype=np.int8).reshape(4, 6)[::2, ::3]
    (stream,) = encode_streams([([slot(array)], [array])], ["raw"])
    assert stream.data == bytes([0, 3, 12, 15])


def test_auto_is_never_larger_than_any_codec_alone_and_finds_columns_and_planes() -> None:
    # Noise that repeats down each column, with a period of its own: only in column order does it
    # repeat at once. Gaussian codes repeat nowhere.
    rng = np.random.default_rng(0)
    columns = [np.resize(rng.integers(-128, 128, 80 + 7 * c), 4096) for c in range(7)]
    repeats = np.stack(columns, axis=1).astype(np.int8)
    floats = rng.normal(1, 0.001, 4096).astype("<f4")
    codes = np.round(3 * rng.standard_normal((128, 64))).astype(np.int8)
    jobs = [([slot(array)], [array]) for array in (repeats, floats, codes)]
    auto = encode_streams(jobs, AUTO)
    assert [stream.layout for stream in auto] == ["column", "planes", "row"]
    assert auto[2].codec == "range"
    for name in AUTO:
        for best, alone in zip(auto, encode_streams(jobs, [name]), strict=True):
            assert len(best.data) <= len(alone.data)


def test_the_first_of_equally_small_streams_wins() -> None:
    one = np.zeros(1, np.int8)
    assert encode_streams([([slot(one)], [one])], AUTO)[0].codec == "raw"


def test_names_of_codecs_are_checked_and_put_in_order() -> None:
    assert codec_names("auto") == AUTO
    assert codec_names(["lzma", "raw", "lzma"]) == ("raw", "lzma")
    assert codec_names(["auto", "brotli"]) == (*AUTO, "brotli")
    for wrong in ("gzip", ["zlib", "gzip"], []):
        with pytest.raises(GptpackError, match="there are auto, raw, zlib"):
            codec_names(wrong)


def test_brotli_that_is_not_installed_is_an_error_with_the_way_out(monkeypatch) -> None:
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "brotli":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    array = np.zeros(3, np.int8)
    with pytest.raises(MissingDependencyError, match="pip install") as caught:
        encode_streams([([slot(array)], [array])], ["raw", "brotli"])
    assert caught.value.exit_status == 4
    with pytest.raises(MissingDependencyError, match="pip install"):
        decode_stream(EncodedStream(codec="brotli", layout="row", data=b"x"), [slot(array)])


def test_a_brotli_that_cannot_be_bounded_is_not_used(monkeypatch) -> None:
    old = SimpleNamespace(__version__="1.1.0", Decompressor=object)
    monkeypatch.setitem(sys.modules, "brotli", old)
    with pytest.raises(MissingDependencyError, match=r"1\.1\.0"):
        BYTE_CODECS[-1].decode(b"x", 1)


def test_auto_leaves_out_what_not_every_machine_can_decode() -> None:
    assert set(AUTO) == set(SECTION_CODECS) - {"brotli"}
