"""Version 2: files of every family come back, and each way in which one can be wrong is refused."""

import copy
import json
import random
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden.make_artifact import CONTENTS, FILES, IDENTITY, PACK, TENSORS
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    HUGGING,
    MODEL,
    MODULE,
    TOKENIZER,
    encode_artifact,
    example_tensors,
    family_configs,
    file_sets,
    json_objects,
    tensor_lists,
)
from test_artifact import same
from test_artifact_hostile import VALUES as VALUES_1
from test_artifact_hostile import change, changed, forge, mutated, refused, split, survives

from gptpack.artifact.front import decode_header
from gptpack.artifact.layout import PREAMBLE_BYTES, section_digest
from gptpack.artifact.reader import decode_artifact, read_artifact
from gptpack.artifact.writer import encode_files
from gptpack.codec.general import BYTE_CODECS
from gptpack.errors import ArtifactError
from gptpack.families.transformers.config import DROPPED
from gptpack.quant.types import dequantize
from gptpack.values import TokenizerIdentity, to_dict

GOLDEN = Path(__file__).parent / "golden" / "tiny-v2.artifact"
NAMED = {"LICENSE": b"Do what you like.\n" * 20, "empty": b"", "tokenizer.json": b"{}" * 40}


def encoded(model=HUGGING, tensors=TENSORS, files=NAMED, tokenizer=IDENTITY, **more) -> bytes:
    contents = {"model": model, "tensors": tensors, "files": files, "tokenizer": tokenizer}
    return encode_artifact(**{"pack": PACK, "codecs": "zlib", **contents, **more})


DATA = encoded()
VALUES, SECTIONS = split(DATA)
OF_MODULE = split(encoded(MODULE, tokenizer=None))[0]
OF_GOLF = split(encoded(MODEL, tokenizer=TOKENIZER))[0]
LAST = f"sections.{len(SECTIONS) - 1}"


@settings(max_examples=60)
@given(
    model=family_configs(),
    tensors=tensor_lists,
    files=file_sets,
    pack=json_objects,
    named=st.booleans(),
    codecs=st.sampled_from(["raw", "zlib", "range", "auto"]),
)
def test_reading_gives_what_was_written(model, tensors, files, pack, named, codecs) -> None:
    tokenizer = TOKENIZER if named or type(model) is type(MODEL) else None
    data = encoded(model, tensors, files, tokenizer, pack=pack, codecs=codecs)
    artifact = decode_artifact(data, verify_weights=True)
    assert all(same(*pair) for pair in zip(artifact.tensors, tensors, strict=True))
    assert artifact.files == files
    header = artifact.header
    assert (header.model, header.tokenizer, header.pack) == (model, tokenizer, pack)
    assert header.file_bytes == len(data)
    golf = header.family == "golf" and model.vocab <= 65536 and not files
    turned = any("transposed" in tensor.parameters for tensor in tensors)
    assert header.version == (1 if golf and not turned else 2)
    assert encoded(model, tensors, files, tokenizer, pack=pack, codecs=codecs) == data


@settings(max_examples=150)
@given(data=st.data(), model=family_configs(), files=file_sets)
def test_a_byte_changed_anywhere_is_an_error(data, model, files) -> None:
    written = bytearray(encoded(model, example_tensors()[1:2], files, TOKENIZER))
    place = data.draw(st.integers(0, len(written) - 1))
    written[place] ^= data.draw(st.integers(1, 255))
    refused(bytes(written))


def test_every_single_bit_of_the_file_is_covered_by_a_checksum() -> None:
    for bit in range(8 * len(DATA)):
        data = bytearray(DATA)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ArtifactError):
            decode_artifact(bytes(data))


@settings(max_examples=400)
@given(seed=st.integers(0, 2**32), times=st.integers(1, 3), values=st.sampled_from([0, 1, 2]))
def test_headers_with_parts_changed_read_or_are_refused(seed, times, values) -> None:
    chooser = random.Random(seed)
    found: object = (VALUES, OF_MODULE, OF_GOLF)[values]
    for _ in range(times):
        if isinstance(found, dict | list):
            found = mutated(found, chooser)
    survives(forge(found, SECTIONS, 2))


# The golden file.


def test_the_golden_file_reads_as_what_it_was_made_of() -> None:
    artifact = read_artifact(GOLDEN, verify_weights=True)
    assert all(same(*pair) for pair in zip(artifact.tensors, TENSORS, strict=True))
    assert artifact.files == FILES
    header = artifact.header
    assert (header.version, header.family, header.model) == (2, "transformers", HUGGING)
    assert (header.tokenizer, header.pack) == (IDENTITY, PACK)


def test_the_golden_files_sections_and_raw_header_are_written_byte_for_byte() -> None:
    golden = GOLDEN.read_bytes()
    fresh = encode_artifact(**CONTENTS[GOLDEN.name], pack=PACK, codecs="raw")
    start, fresh_start = decode_header(golden).header_bytes, decode_header(fresh).header_bytes
    assert golden[start:] == fresh[fresh_start:]
    assert golden[8:12] == b"\2\0\1\0"
    raw = zlib.decompress(golden[PREAMBLE_BYTES:start])
    assert raw == zlib.decompress(fresh[PREAMBLE_BYTES:fresh_start])
    values = json.loads(raw)
    assert json.dumps(values, sort_keys=True, separators=(",", ":")).encode() == raw
    assert values["family"] == "transformers"
    assert values["files"] == [["LICENSE", 15], ["tokenizer.json", 2]]
    # files stand one after the other at the end
    assert values["sections"][-1][:5] == ["files", "raw", "row", 17, 17]
    assert golden.endswith(b"Do as you like.{}")
    assert values["tensors"][0][:4] == ["blocks.0.fc.weight", [16, 24], "int8", {"transposed": 1}]


def test_the_weights_hash_is_over_tensors_as_they_are_coded() -> None:
    plain = encode_artifact(model=MODEL, tensors=example_tensors(), pack={}, codecs="zlib")
    assert decode_header(DATA).weights_sha256 == decode_header(plain).weights_sha256


def test_every_key_that_readers_ignore_is_specified() -> None:
    page = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in page for key in DROPPED)


# What the versions differ in.


def test_a_file_that_version_1_can_hold_is_written_as_one_and_read_as_either() -> None:
    golf = {"model": MODEL, "tokenizer": TOKENIZER, "files": {}}
    assert decode_header(encoded(**golf, tensors=example_tensors())).version == 1
    assert decode_header(encoded(**golf)).version == 2
    large = replace(MODEL, vocab=65537)
    assert decode_header(encoded(large, example_tensors(), {}, TOKENIZER)).version == 2
    values = dict(OF_GOLF, files=[], sections=OF_GOLF["sections"][:-1])
    artifact = decode_artifact(forge(values, SECTIONS[:-1], 2), verify_weights=True)
    assert (artifact.header.family, artifact.header.model, artifact.files) == ("golf", MODEL, {})


def test_keys_of_the_other_version_are_refused() -> None:
    assert "must be an object of family, files, model" in refused(forge(VALUES_1, version=2))
    assert "must be an object of model, pack" in refused(forge(VALUES, SECTIONS))
    for key in VALUES:
        fewer = {k: v for k, v in VALUES.items() if k != key}
        assert "must be an object of family" in refused(forge(fewer, SECTIONS, 2))
    assert "must be an object of family" in refused(forge({**VALUES, "x": 1}, SECTIONS, 2))
    for key in ("family", "files"):
        assert "must be an object of model" in refused(change(key, VALUES[key]))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.vocab", 65537, "vocab=65537, version 1 holds 65536"),
        ("tokenizer.vocab", 65537, "vocab=65537, version 1 holds 65536"),
        ("tokenizer", None, "tokenizer must be an object"),
    ],
)
def test_what_version_2_alone_holds_is_refused_in_version_1(path, value, message) -> None:
    assert message in refused(change(path, value))


def test_version_1_does_not_know_the_parameter_transposed() -> None:
    for value in (7, 0.5, 1):
        assert decode_artifact(change("tensors.0.3", {"transposed": value}), verify_weights=True)


def test_a_header_of_another_version_around_the_same_sections_is_refused() -> None:
    assert "format version 3" in refused(forge(VALUES, SECTIONS, 3))
    assert "format version 0" in refused(forge(VALUES, SECTIONS, 0))


# Each rule by name.

MUST_NAME = "must be unlike the others"
COUNT = "is a number that no file can hold"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("family", "llama", "family 'llama', this gptpack knows golf, transformers, module"),
        ("family", None, "family None"),
        ("family", ["golf"], "family"),
        ("family", {}, "family"),
        ("family", "golf", "unknown setting 'model.begins'"),
        ("family", "module", "unknown setting 'model.begins'"),
        ("files", {}, "a list of at most 64"),
        ("files", None, "a list of at most 64"),
        ("files", [[f"f{i}", 0] for i in range(65)], "a list of at most 64"),
        ("files", [], f"must have {len(SECTIONS) - 1} rows"),
        ("files.0", "LICENSE", "must have 2 columns"),
        ("files.0", ["LICENSE"], "must have 2 columns"),
        ("files.0", ["LICENSE", 360, 0], "must have 2 columns"),
        *[
            ("files.0.0", name, MUST_NAME)
            for name in ("", ".", "..", ".env", "a/b", "/a", "../a", "a\\b", "a b", "a\0", "a\n")
        ],
        *[("files.0.0", name, MUST_NAME) for name in ("\u00e9", "x" * 101, "a:b", "~", 5, None)],
        ("files.0.0", "empty", MUST_NAME),
        ("files.0.0", ["empty"], MUST_NAME),
        *[("files.0.1", size, "bytes") for size in (-1, 1 << 48, 10**400, 360.0, True, "360")],
        ("files.0.1", 359, "raw bytes, its contents need 439"),
        ("files.0.1", (1 << 48) - 1, "raw bytes, its contents need"),
        ("sections", VALUES["sections"][:-1], f"must have {len(SECTIONS)} rows"),
        ("sections", VALUES["sections"] * 2, f"must have {len(SECTIONS)} rows"),
        (f"{LAST}.0", "file", "stands where files must be"),
        (LAST, VALUES["sections"][0], "stands where files must be"),
        ("sections.0", VALUES["sections"][-1], "stands where int8.scales must be"),
        (f"{LAST}.1", "range", "this gptpack knows raw, zlib, zstd, lzma, brotli"),
        (f"{LAST}.1", "gzip", "this gptpack knows raw, zlib, zstd, lzma, brotli"),
        (f"{LAST}.1", ["raw"], "this gptpack knows raw, zlib, zstd, lzma, brotli"),
        (f"{LAST}.2", "column", "section files has layout 'column'"),
        (f"{LAST}.2", "planes", "section files has layout 'planes'"),
        (f"{LAST}.2", 0, "section files has layout 0"),
        (f"{LAST}.3", len(SECTIONS[-1]) - 1, "1 bytes follow the last section"),
        (f"{LAST}.3", len(SECTIONS[-1]) + 1, "are left"),
        (f"{LAST}.4", 441, "declares 441 raw bytes"),
        (f"{LAST}.5", "0" * 32, "section files does not match its SHA-256"),
        (f"{LAST}.5", "0" * 31, "has digest"),
        ("tensors.0.3", {"transposed": 0}, "transposed must be 1"),
        ("tensors.0.3", {"transposed": 2}, "transposed must be 1"),
        ("tensors.0.3", {"transposed": 1.0}, "transposed must be 1"),
        ("tensors.0.3", {"transposed": True}, "64-bit numbers"),
        ("tensors.1.3", {"transposed": 1}, "the tensor a matrix"),
        ("tensors.4.3", {"transposed": 1}, "the tensor a matrix"),
        ("tensors.5.3", {"transposed": 1}, "the tensor a matrix"),
        ("tokenizer", {}, "object of bos, sha256, vocab"),
        ("tokenizer", False, "object of bos, sha256, vocab"),
        ("tokenizer.vocab", (1 << 20) + 1, "must lie in 1..1048576"),
        ("model", None, "must be an object"),
        ("model", [], "must be an object"),
        ("model", {}, "does not say its model_type"),
        *[
            ("model", {k: v for k, v in VALUES["model"].items() if k != key}, "the header's model")
            for key in VALUES["model"]
        ],
        ("model.extra", 1, "unknown setting 'model.extra'"),
        ("model.values", [], "model.values=[] must be"),
        ("model.values", "gpt2", "must be"),
        ("model.values", {"vocab_size": 64}, "does not say its model_type"),
        ("model.values.model_type", 5, "does not say its model_type"),
        *[
            ("model.values.model_type", name, "is no name of a model")
            for name in ("", "a/b", "a b", "x" * 101, "gpt2\n", "\x1b[2J", "\ud800", "\u0430")
        ],
        *[
            ("model.values.vocab_size", size, "must lie in 1..1,048,576")
            for size in (0, -64, True, 64.0, "64", None, [64], (1 << 20) + 1, 1 << 62)
        ],
        ("model.values.n_layer", 1 << 63, COUNT),
        ("model.values.rope", {"a": [{"theta": -(1 << 63)}]}, COUNT),
        ("model.values.rope", [10**400], COUNT),
        ("model.values.rope", json.loads("[" * 30 + "]" * 30), "nested more than 32 deep"),
        ("model.context", 0, "must have values, context, bos, begins"),
        ("model.context", 1, "must lie in 2..1,048,576"),
        ("model.context", -16, "must lie in 2..1,048,576"),
        ("model.context", (1 << 20) + 1, "must lie in 2..1,048,576"),
        ("model.context", 1 << 63, "an integer of 64 bits"),
        ("model.context", 16.0, "must be int"),
        ("model.context", True, "must be int"),
        ("model.bos", -1, "must lie in 0..63"),
        ("model.bos", 64, "must lie in 0..63"),
        ("model.bos", None, "must be int"),
        ("model.begins", 1, "must be bool"),
        ("model.begins", None, "must be bool"),
    ],
)
def test_each_rule_of_version_2_is_enforced_by_name(path, value, message) -> None:
    assert message in refused(forge(changed(path, value, VALUES), SECTIONS, 2))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        *[
            (
                "model",
                {k: v for k, v in OF_MODULE["model"].items() if k != key},
                "the header's model",
            )
            for key in OF_MODULE["model"]
        ],
        ("model.begins", True, "unknown setting 'model.begins'"),
        ("model.values", [], "must be"),
        ("model.vocab", 0, "must lie in 1..1,048,576"),
        ("model.vocab", (1 << 20) + 1, "must lie in 1..1,048,576"),
        ("model.vocab", 1 << 70, "an integer of 71 bits"),
        ("model.vocab", 64.0, "must be int"),
        ("model.context", 1, "must lie in 2..1,048,576"),
        ("model.context", (1 << 20) + 1, "must lie in 2..1,048,576"),
        ("model.bos", 64, "must lie in 0..63"),
        ("model.bos", -1, "must lie in 0..63"),
        ("model.values", json.loads("[" * 33 + "]" * 33), "nested more than 32 deep"),
    ],
)
def test_each_rule_of_a_module_is_enforced_by_name(path, value, message) -> None:
    assert message in refused(forge(changed(path, value, OF_MODULE), SECTIONS, 2))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("tokenizer", None, "object of bos, sha256, vocab"),
        ("model.vocab", (1 << 20) + 1, "must be at most 1048576"),
        ("model.values", {}, "unknown setting 'model.values'"),
    ],
)
def test_each_rule_of_golf_in_version_2_is_enforced_by_name(path, value, message) -> None:
    assert message in refused(forge(changed(path, value, OF_GOLF), SECTIONS, 2))


# The section of files.


def of_files(stored: bytes, rows: list, codec: str) -> bytes:
    """The file with another section of files, with the size and the digest to match."""
    values = copy.deepcopy(VALUES)
    total = sum(row[1] for row in rows)
    row = ["files", codec, "row", len(stored), total, section_digest(stored)]
    values["files"], values["sections"][-1] = rows, row
    return forge(values, [*SECTIONS[:-1], stored], 2)


@pytest.mark.parametrize("codec", BYTE_CODECS, ids=lambda codec: codec.name)
def test_files_come_back_by_each_codec_of_bytes(codec) -> None:
    pytest.importorskip("brotli" if codec.name == "brotli" else "zlib")
    raw = bytes(range(256)) * 4
    rows = [["a", 1000], ["b", 0], ["c", 24]]
    found = decode_artifact(of_files(codec.encode(raw), rows, codec.name)).files
    assert found == {"a": raw[:1000], "b": b"", "c": raw[1000:]}
    for stored, size in ((codec.encode(raw)[:-1], 1024), (codec.encode(raw), 1023)):
        assert "section files: not a" in refused(of_files(stored, [["a", size]], codec.name))


@settings(max_examples=150)
@given(
    stored=st.binary(max_size=120),
    codec=st.sampled_from([codec.name for codec in BYTE_CODECS]),
    sizes=st.lists(st.integers(0, 200), min_size=1, max_size=3),
    compress=st.booleans(),
)
def test_any_bytes_as_files_read_or_are_refused(stored, codec, sizes, compress) -> None:
    if compress:
        stored = zlib.compress(stored)
    survives(of_files(stored, [[f"f{i}", size] for i, size in enumerate(sizes)], codec))


def test_the_memory_rule_of_files_holds_to_the_byte() -> None:
    most = 64 * 10 + 65536
    good = of_files(b"x" * 10, [["a", most - 5], ["b", 5]], "zlib")
    assert decode_header(good).sections[-1].raw_bytes == most
    with pytest.raises(ArtifactError, match=f"may hold {most:,} at most"):
        decode_header(of_files(b"x" * 10, [["a", most - 5], ["b", 6]], "zlib"))


@pytest.mark.parametrize(
    "files",
    [
        {".env": b""},
        {"LICENSE of ours": b""},
        {"../tokenizer.json": b""},
        {"\u00e9": b""},
        {f"f{i}": b"" for i in range(65)},
    ],
)
def test_files_that_could_not_be_read_back_are_refused_before_anything_is_coded(files) -> None:
    with pytest.raises(ArtifactError, match=r"file name|at most 64"):
        encode_files(files)


def test_files_that_hardly_take_space_obey_the_memory_rule() -> None:
    zeros = {"zeros": bytes(1 << 20)}
    data = encoded(files=zeros)
    assert decode_artifact(data).files == zeros
    assert decode_header(data).sections[-1].codec == "raw"


def test_a_transposed_tensor_is_handed_out_as_it_is_coded() -> None:
    found = decode_artifact(DATA).tensors[0]
    assert np.array_equal(dequantize(found), dequantize(example_tensors()[0]))


def test_a_tokenizer_of_a_million_tokens_can_be_named() -> None:
    identity = TokenizerIdentity(sha256="0" * 64, vocab=1 << 20, bos=(1 << 20) - 1)
    found = decode_header(encoded(tokenizer=identity)).tokenizer
    assert to_dict(found) == to_dict(identity)
