"""What is written is read back exactly, and a file is put in place whole or not at all."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden.make_artifact import PACK
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    MODEL,
    TOKENIZER,
    encode_artifact,
    example_tensors,
    json_objects,
    tensor_lists,
    write_artifact,
)

from gptpack import atomic
from gptpack.artifact.front import decode_header, read_header
from gptpack.artifact.layout import FIELDS, MAGIC, PREAMBLE_BYTES
from gptpack.artifact.reader import decode_artifact, read_artifact
from gptpack.artifact.weights import weights_sha256
from gptpack.artifact.writer import (
    assemble,
    assembled_bytes,
    encode_sections,
    write_atomic,
)
from gptpack.codec.sections import SECTION_CODECS, OfBytes
from gptpack.errors import ArtifactError, GptpackError, MissingDependencyError
from gptpack.quant.methods import METHODS
from gptpack.quant.types import PackedTensor, dequantize

GOLDEN = Path(__file__).parent / "golden" / "tiny-v1.artifact"


def same(found: PackedTensor, expected: PackedTensor) -> bool:
    """Equal down to the bits of each array."""
    return (
        (found.name, found.shape, found.method) == (expected.name, expected.shape, expected.method)
        and dict(found.parameters) == dict(expected.parameters)
        and dict(found.record) == dict(expected.record)
        and set(found.arrays) == set(expected.arrays)
        and all(
            found.arrays[key].tobytes() == array.tobytes()
            and found.arrays[key].dtype == array.dtype
            and found.arrays[key].shape == array.shape
            for key, array in expected.arrays.items()
        )
    )


def encoded(tensors=None, codecs="zlib", pack=PACK) -> bytes:
    return encode_artifact(
        model=MODEL,
        tokenizer=TOKENIZER,
        tensors=example_tensors() if tensors is None else tensors,
        pack=pack,
        codecs=codecs,
    )


@settings(deadline=None, max_examples=60)
@given(
    tensors=tensor_lists,
    pack=json_objects,
    codecs=st.sampled_from(["raw", "zlib", ["zstd"], ["lzma"], "range", "auto"]),
)
def test_reading_gives_what_was_written(tensors, pack, codecs) -> None:
    data = encoded(tensors, codecs, pack)
    artifact = decode_artifact(data, verify_weights=True)
    assert all(same(*pair) for pair in zip(artifact.tensors, tensors, strict=True))
    assert artifact.header.model == MODEL
    assert artifact.header.tokenizer == TOKENIZER
    assert artifact.header.pack == pack
    assert artifact.header.file_bytes == len(data)


def test_the_golden_file_reads_as_the_tensors_it_was_made_of() -> None:
    artifact = read_artifact(GOLDEN, verify_weights=True)
    assert all(same(*pair) for pair in zip(artifact.tensors, example_tensors(), strict=True))
    assert artifact.header.pack == PACK


def test_the_golden_files_sections_and_raw_header_are_written_byte_for_byte() -> None:
    golden, fresh = GOLDEN.read_bytes(), encoded(codecs="raw")
    start, fresh_start = decode_header(golden).header_bytes, decode_header(fresh).header_bytes
    assert golden[start:] == fresh[fresh_start:]
    # The deflated form may change with zlib's version, what it inflates to may not.
    assert zlib.decompress(golden[PREAMBLE_BYTES:start]) == zlib.decompress(
        fresh[PREAMBLE_BYTES:fresh_start]
    )


def test_the_golden_files_preamble_is_as_the_specification_says() -> None:
    golden = GOLDEN.read_bytes()
    assert golden[:12] == bytes.fromhex("8947 5054504b 0d0a 0100 0100".replace(" ", ""))
    magic, version, flags, stored, raw, size = struct.unpack("<8sHHIIQ", golden[:28])
    assert (magic, version, flags, size) == (MAGIC, 1, 1, len(golden))
    assert golden[28:60] == hashlib.sha256(golden[:28] + golden[60 : 60 + stored]).digest()
    header = zlib.decompress(golden[60 : 60 + stored])
    assert len(header) == raw
    values = json.loads(header)
    assert json.dumps(values, sort_keys=True, separators=(",", ":")).encode() == header
    name, codec, layout, section_bytes, raw_bytes, digest = values["sections"][0]
    assert (name, codec, layout, section_bytes, raw_bytes) == ("int8.scales", "raw", "row", 64, 64)
    section = golden[60 + stored :][:64]
    assert section == (np.arange(16) / 16 + 1).astype("<f2").tobytes() * 2
    assert digest == hashlib.sha256(section).hexdigest()[:32]


def test_the_weights_hash_is_over_names_shapes_and_float32_values_in_table_order() -> None:
    expected = hashlib.sha256()
    for tensor in example_tensors():
        expected.update(tensor.name.encode() + b"\0" + bytes([len(tensor.shape)]))
        expected.update(b"".join(n.to_bytes(8, "little") for n in tensor.shape))
        expected.update(dequantize(tensor).astype("<f4").tobytes())
    assert decode_header(encoded()).weights_sha256 == expected.hexdigest()


def test_the_weights_hash_does_not_depend_on_the_method() -> None:
    values = np.array([0.5, -2.0])
    hashes = {
        weights_sha256(
            [PackedTensor(name="t", shape=(2,), method=method, arrays={"values": array})]
        )
        for method, array in (
            ("float32", values.astype("<f4")),
            ("float16", values.astype("<f2")),
            ("bfloat16", (values.astype("<f4").view("<u4") >> 16).astype("<u2")),
        )
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("codecs", ["auto", "zlib"])
def test_writing_twice_gives_the_same_bytes(codecs) -> None:
    assert encoded(codecs=codecs) == encoded(codecs=codecs)


def test_the_order_of_mapping_keys_does_not_change_the_bytes() -> None:
    tensors = example_tensors()
    turned = [
        replace(
            t,
            arrays=dict(reversed(t.arrays.items())),
            record=dict(reversed(t.record.items())),
        )
        for t in tensors
    ]
    assert encoded(turned) == encoded(tensors)


def test_sections_stand_by_method_with_codes_last() -> None:
    header = decode_header(encoded())
    assert [section.name for section in header.sections] == [
        "int8.scales",
        "int8.codes",
        "float32.values",
        "int8-tensor.scales",
        "int8-tensor.codes",
        "bfloat16.values",
        "float16.values",
    ]
    stored_bytes = sum(section.stored_bytes for section in header.sections)
    assert header.header_bytes + stored_bytes == header.file_bytes


def test_pack_changes_without_encoding_the_sections_again() -> None:
    sections = encode_sections(example_tensors(), "zlib")
    identity = {"model": MODEL, "tokenizer": TOKENIZER}
    first = assemble(sections, **identity, pack={})
    assert len(first) == assembled_bytes(sections, **identity, pack={})
    pack = {"file_bytes": len(first), "quality": {"bits_per_byte": 1.25}}
    second = assemble(sections, **identity, pack=pack)
    assert decode_header(second).pack == pack
    assert second[decode_header(second).header_bytes :] == b"".join(sections.data)


def test_a_header_that_deflates_too_well_is_stored_as_it_is_and_can_be_read() -> None:
    pack = {"zeros": "0" * 200_000}
    data = encoded(pack=pack)
    assert FIELDS.unpack_from(data)[2] == 0
    assert decode_artifact(data).header.pack == pack


def test_a_header_of_more_than_a_mebibyte_is_refused_when_written() -> None:
    with pytest.raises(ArtifactError, match="shorten the records or pack"):
        encoded(pack={"noise": os.urandom(1 << 19).hex() + "0"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "int3"}, "no method int3"),
        ({"arrays": {}}, "has arrays"),
        ({"arrays": {"values": np.zeros(5, "<f8")}}, "needs <f4"),
        ({"arrays": {"values": np.zeros((5, 1), "<f4")}}, r"needs <f4 \[5\]"),
        ({"arrays": {"values": np.full(5, np.nan, "<f4")}}, "finite"),
        ({"name": ""}, "printable ASCII"),
        ({"name": "a\n"}, "printable ASCII"),
        ({"name": "caf\N{LATIN SMALL LETTER E WITH ACUTE}"}, "printable ASCII"),
        ({"name": "x" * 201}, "printable ASCII"),
        ({"parameters": {"p": True}}, "64-bit numbers"),
        ({"parameters": {"p": 1 << 63}}, "64-bit numbers"),
        ({"parameters": {"p": float("nan")}}, "JSON"),
        ({"parameters": {"states": 8}}, "states without a trellis"),
        ({"record": {"r": float("inf")}}, "JSON"),
        ({"record": {"r": object()}}, "JSON"),
        ({"record": {1: 0, "1": 0}}, "JSON"),
    ],
)
def test_a_tensor_that_could_not_be_read_back_is_refused(change, message) -> None:
    good = example_tensors()[1]
    assert good.method == "float32"
    with pytest.raises(ArtifactError, match=message):
        encoded([replace(good, **change)])


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(ArtifactError, match="twice"):
        encoded([example_tensors()[1]] * 2)


def test_a_written_file_is_as_long_as_its_header_and_sections(tmp_path: Path) -> None:
    path = tmp_path / "model.gptpack"
    write_artifact(path, tensors=example_tensors(), pack=PACK)
    header = read_header(path)
    assert header.file_bytes == path.stat().st_size
    assert header.file_bytes == header.header_bytes + sum(s.stored_bytes for s in header.sections)
    assert len(read_artifact(path, verify_weights=True).tensors) == len(example_tensors())


def test_an_existing_file_is_replaced_and_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "old"
    target.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(target)
    write_atomic(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path / "there") == ["old"]


def test_two_that_write_one_directory_at_once_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "site"
    with atomic.replacing_directory(path) as one:
        (one / "page").write_text("one")
        with atomic.replacing_directory(path) as other:
            (other / "page").write_text("other")
        assert (path / "page").read_text() == "other"
    assert (path / "page").read_text() == "one"
    assert os.listdir(tmp_path) == ["site"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "model.gptpack"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, failing, full)
    with pytest.raises(GptpackError, match=r"cannot write: No space left") as caught:
        write_atomic(path, b"new")
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.gptpack"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "model.gptpack", b"new")
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_take_a_file_are_one_line_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    for path in (
        tmp_path,
        tmp_path / "file" / "x",
        tmp_path / "file" / "deep" / "x",
        tmp_path / "missing" / ("n" * 300),
        tmp_path / "missing" / ("n" * 300) / "x",
        tmp_path / "pipe",
        tmp_path / ("n" * 300),
        "nul\0byte",
        "",
    ):
        with pytest.raises(GptpackError) as caught:
            write_atomic(path, b"data")
        assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


def test_missing_directories_are_made_and_those_of_a_failed_write_go_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "a" / "b" / "model.gptpack", b"new")
    assert (tmp_path / "a" / "b" / "model.gptpack").read_bytes() == b"new"
    assert os.listdir(tmp_path / "a" / "b") == ["model.gptpack"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(GptpackError, match="No space left"):
        write_atomic(tmp_path / "a" / "c" / "d" / "model.gptpack", b"new")
    assert os.listdir(tmp_path / "a") == ["b"]


def test_a_full_disk_is_a_one_line_error_of_the_process(tmp_path: Path) -> None:
    # A limit on file size stands in for a full disk.
    code = f"""
import resource, signal
from gptpack.artifact.writer import write_atomic
from gptpack.errors import GptpackError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomic({str(tmp_path / "m")!r}, bytes(5000))
except GptpackError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot write: File too large" in done.stdout
    assert os.listdir(tmp_path) == []


def test_writing_and_reading_need_no_torch() -> None:
    code = (
        "import sys, gptpack.artifact.writer, gptpack.artifact.reader;"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_decompressor_is_not_called_corruption(monkeypatch) -> None:
    data = encoded()

    class Missing(OfBytes):
        def decode(self, stored, slots, layout):
            raise MissingDependencyError("codec zlib needs a package")

    monkeypatch.setitem(SECTION_CODECS, "zlib", lambda: Missing(SECTION_CODECS["raw"]().codec))
    with pytest.raises(MissingDependencyError, match=r"section int8.scales: codec zlib needs"):
        decode_artifact(data)


def test_every_method_of_the_package_is_specified() -> None:
    page = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
    for name in METHODS:
        assert f"| `{name}` |" in page
    for name in SECTION_CODECS:
        assert f"| `{name}` |" in page
