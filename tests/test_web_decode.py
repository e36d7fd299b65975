"""web/site/decode.js gives each tensor and file that the library gives, and errors where it does.

The hostile files are those of the reader's own tests, which run here with a recorder in its place.
"""

import contextlib
import hashlib
import inspect
import itertools
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import test_artifact_hostile
import test_artifact_hostile_grid
import test_artifact_v2
from hypothesis import given, settings
from hypothesis import strategies as st
from node import ask, needs_node
from strategies import (
    encode_artifact,
    example_tensors,
    family_configs,
    file_sets,
    grid_tensors,
    json_objects,
    tensor_lists,
)

from gptpack.artifact.front import decode_header
from gptpack.artifact.reader import decode_artifact
from gptpack.codec.general import BYTE_CODECS
from gptpack.codec.sections import SECTION_CODECS
from gptpack.errors import ArtifactError, MissingDependencyError
from gptpack.quant.types import PackedTensor, dequantize

pytestmark = needs_node

TESTS = Path(__file__).parent
SHARED = TESTS.parents[1] / "shared"
GOLDEN = sorted((TESTS / "golden").glob("*.artifact"))
FILES = {"LICENSE": b"Do what you like.\n" * 9, "empty": b""}
HOSTILE = (test_artifact_hostile, test_artifact_hostile_grid, test_artifact_v2)
MOST = 1500
"""Files, at most, that one test of the reader adds, evenly taken."""


def answers(tmp_path: Path, files: list[bytes]) -> list[dict]:
    path = tmp_path / "corpus"
    path.write_bytes(b"".join(struct.pack("<I", len(data)) + data for data in files))
    (found,) = ask([{"task": "corpus", "path": path}])
    assert len(found) == len(files)
    return found


def expected(data: bytes) -> dict:
    """What web_node.mjs says of a file that reads."""
    artifact = decode_artifact(data, verify_weights=True)
    tensors = []
    for tensor in artifact.tensors:
        value = dequantize(tensor)
        if tensor.parameters.get("transposed") and artifact.header.version > 1:
            value = value.T
        digest = hashlib.sha256(value.astype("<f4").tobytes()).hexdigest()
        tensors.append([tensor.name, list(value.shape), digest])
    files = [[name, hashlib.sha256(data).hexdigest()] for name, data in artifact.files.items()]
    return {"tensors": tensors, "files": files}


def agrees(answer: dict, data: bytes) -> None:
    wanted = expected(data)
    assert {key: answer.get(key, answer) for key in wanted} == wanted


def test_golden_files_and_each_codec_and_method_are_read(tmp_path):
    tensors = [*example_tensors(), *(t for t in grid_tensors() if t.method != "int8")]
    files = [path.read_bytes() for path in GOLDEN]
    for codec in (*SECTION_CODECS, "auto"):
        for beside in ({}, FILES):
            with contextlib.suppress(MissingDependencyError):
                files.append(encode_artifact(tensors=tensors, pack={}, codecs=codec, files=beside))
    for answer, data in zip(answers(tmp_path, files), files, strict=True):
        agrees(answer, data)


def test_whatever_can_be_written_is_read(tmp_path):
    files = []

    @settings(max_examples=150, deadline=None, database=None)
    @given(
        tensor_lists,
        family_configs(),
        file_sets,
        json_objects,
        st.sampled_from(["auto", "range", "lzma", "zstd", "zlib"]),
    )
    def collect(tensors, model, beside, pack, codec):
        made = {"tensors": tensors, "model": model, "files": beside, "pack": pack}
        files.append(encode_artifact(**made, codecs=codec))

    collect()
    for answer, data in zip(answers(tmp_path, files), files, strict=True):
        agrees(answer, data)


def test_each_codec_of_bytes_expands_what_its_library_compressed(tmp_path):
    """Long sections, of text, of noise and of runs, so that every kind of block occurs."""
    text = b"".join(path.read_bytes() for path in sorted(TESTS.glob("test_a*.py")))
    noise = bytes(
        hash_ % 256
        for hash_ in itertools.accumulate(range(70000), lambda a, b: a * 69069 + b & 0xFFFFFF)
    )
    beside = {"text": text, "noise": noise, "runs": b"ab" * 99 + bytes(3000) + text[:5000] * 7}
    files = []
    for codec in ("zlib", "zstd", "lzma", "brotli"):
        for name, data in beside.items():
            with contextlib.suppress(MissingDependencyError):
                made = {"tensors": example_tensors(), "pack": {}, "files": {name: data}}
                files.append(encode_artifact(**made, codecs=codec))
    for answer, data in zip(answers(tmp_path, files), files, strict=True):
        agrees(answer, data)


def test_a_zlib_stream_that_is_padded_for_the_memory_rule_is_read(tmp_path):
    shape = (1024, 512)
    arrays = {"codes": np.zeros(shape, np.int8), "scales": np.ones((), "<f4")}
    zeros = PackedTensor(name="w", shape=shape, method="int8-tensor", arrays=arrays)
    data = encode_artifact(tensors=[zeros], pack={})
    assert decode_header(data).sections[1].codec == "zlib"
    assert data.count(b"\0\0\0\xff\xff") > 100
    (answer,) = answers(tmp_path, [data])
    agrees(answer, data)


@pytest.mark.parametrize("codec", ["zlib", "zstd", "lzma", "brotli"])
def test_damaged_streams_read_or_are_refused_as_by_their_library(codec, tmp_path):
    """Each with a right digest around it, so that the stream itself has to tell."""
    source = next(found for found in BYTE_CODECS if found.name == codec)
    chooser = random.Random(codec)
    text = Path(__file__).read_bytes()[:3000]
    files = []
    try:
        for raw in (text, text[:60], bytes(2000), chooser.randbytes(400)):
            stored = source.encode(raw)
            for _ in range(150):
                broken = bytearray(stored)
                broken[chooser.randrange(len(broken))] ^= 1 << chooser.randrange(8)
                files.append(test_artifact_v2.of_files(bytes(broken), [["a", len(raw)]], codec))
            for size in {*range(0, len(stored), 1 + len(stored) // 40), len(stored) - 1}:
                files.append(test_artifact_v2.of_files(stored[:size], [["a", len(raw)]], codec))
            for size in (len(raw) - 1, len(raw) + 1):
                files.append(test_artifact_v2.of_files(stored, [["a", size]], codec))
    except MissingDependencyError as error:
        pytest.skip(str(error))
    wrong = []
    for answer, data in zip(answers(tmp_path, files), files, strict=True):
        try:
            wanted = expected(data)
        except ArtifactError as error:
            if "error" not in answer:
                wrong.append((answer, str(error)))
        else:
            # zstd's library does not look where literals end; RFC 8878 calls such a stream corrupt
            if codec == "zstd" and "literals that do not end" in answer.get("error", ""):
                continue
            if {key: answer.get(key) for key in wanted} != wanted:
                wrong.append((answer, "reads"))
    assert not wrong, (len(wrong), len(files), wrong[:5])


def test_brotli_expands_what_nodes_library_compressed_in_every_way():
    pages = sorted((TESTS.parent / "docs").glob("*.md"))
    paths = [*pages[:4], TESTS / "browser.py", TESTS.parent / "web" / "site" / "gptpack.wasm"]
    for answer in ask([{"task": "brotli", "path": path} for path in paths]):
        assert answer == {"streams": 36, "wrong": []}


def cases(function):
    """The arguments that a test's parametrize marks give it; one of none where it has none."""
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    every = []
    for mark in marks:
        names = mark.args[0]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        rows = [getattr(row, "values", row) for row in mark.args[1]]
        every.append(
            [dict(zip(names, row if len(names) > 1 else [row], strict=True)) for row in rows]
        )
    for chosen in itertools.product(*every):
        yield {key: value for part in chosen for key, value in part.items()}


def recorded(module, monkeypatch) -> list[bytes]:
    """All bytes that the tests of `module` have read."""
    kept: list[bytes] = []
    for name, function in vars(module).items():
        if not name.startswith("test_") or not inspect.isfunction(function):
            continue
        arguments = set(inspect.signature(function).parameters)
        own: list[bytes] = []
        for each in cases(function):
            if arguments - set(each):
                break  # it wants a fixture

            def record(data, _own=own, **_):
                _own.append(bytes(data))
                return decode_artifact(data, verify_weights=True)

            for reader in ("decode_artifact", "decode_header"):
                if hasattr(module, reader):
                    monkeypatch.setattr(module, reader, record)
            monkeypatch.setattr(test_artifact_hostile, "decode_artifact", record)
            with contextlib.suppress(Exception, pytest.skip.Exception, pytest.fail.Exception):
                function(**each)
        kept += own[:: len(own) // MOST + 1]
    monkeypatch.undo()
    return kept


@pytest.mark.slow  # thousands of files
@pytest.mark.parametrize("module", HOSTILE, ids=lambda module: module.__name__)
def test_hostile_files_are_an_error_where_the_reader_has_one(module, tmp_path, monkeypatch):
    files = sorted(set(recorded(module, monkeypatch)))
    assert len(files) > 400
    wrong = []
    for answer, data in zip(answers(tmp_path, files), files, strict=True):
        try:
            wanted = expected(data)
            if {key: answer.get(key) for key in wanted} != wanted:
                wrong.append((answer.get("fault") or answer.get("error"), "reads"))
        except MissingDependencyError:
            continue
        except ArtifactError as error:
            if "error" not in answer:
                wrong.append((answer.get("fault", "it reads"), str(error)))
    assert not wrong, (len(wrong), wrong[:5])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the files that went wrong are not beside this")
def test_files_that_once_went_wrong_are_an_error_or_read(tmp_path):
    files = [path.read_bytes() for path in sorted((SHARED / "cases" / "hostile").glob("*.gptpack"))]
    for answer, data in zip(answers(tmp_path, files), files, strict=True):
        try:
            agrees(answer, data)
        except ArtifactError:
            assert "error" in answer


def test_decompression_bombs_are_refused(tmp_path):
    scope = {"TESTS": str(TESTS)}
    exec("import lzma\n" + test_artifact_hostile.BOMBS.split("del zeros")[0], scope)
    for name, answer in zip(
        scope["bombs"], answers(tmp_path, [*scope["bombs"].values()]), strict=True
    ):
        assert "error" in answer, name
        assert "memory" not in answer["error"], name
