"""Whatever the bytes are, reading them gives the tensors or one line of `ArtifactError`.

`forge` makes files with right checksums and sizes around a wrong header or section, as an attacker
would; the mutations of docs/format.md's MUST sentences are listed one by one below it.
"""

import contextlib
import copy
import json
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import MODEL, TOKENIZER, encode_artifact, example_tensors

from gptpack.artifact.front import decode_header, read_header
from gptpack.artifact.layout import (
    FIELDS,
    MAGIC,
    PREAMBLE_BYTES,
    digest,
    read_preamble,
    section_digest,
)
from gptpack.artifact.reader import decode_artifact, read_artifact, read_sections
from gptpack.errors import ArtifactError, GptpackError, MissingDependencyError

DATA = encode_artifact(
    model=MODEL,
    tokenizer=TOKENIZER,
    tensors=example_tensors(),
    pack={"a": [1.5, {}]},
    codecs="zlib",
)
LENGTH = len(DATA)


def split(data: bytes = DATA) -> tuple[dict, list[bytes]]:
    """The header's values and the stored sections of a good file."""
    header = decode_header(data)
    values = json.loads(zlib.decompress(data[PREAMBLE_BYTES : header.header_bytes]))
    return values, [stream.data for stream in read_sections(data, header)]


VALUES, SECTIONS = split()


def seal(stored: bytes, rest: bytes, *, raw_bytes: int, flags: int = 0, **other: int) -> bytes:
    """A preamble with a right digest in front of any header and sections."""
    size = other.get("file_bytes", PREAMBLE_BYTES + len(stored) + len(rest))
    fields = FIELDS.pack(MAGIC, other.get("version", 1), flags, len(stored), raw_bytes, size)
    return fields + digest(fields, stored) + stored + rest


def forge(values: object, sections: list[bytes] = SECTIONS, version: int = 1) -> bytes:
    """A file with this header, in canonical form, and these sections."""
    raw = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    return seal(raw, b"".join(sections), raw_bytes=len(raw), version=version)


def forge_text(text: bytes) -> bytes:
    return seal(text, b"".join(SECTIONS), raw_bytes=len(text))


def forge_section(index: int, stored: bytes, **columns: object) -> bytes:
    """A file whose section `index` is `stored`, with the digest to match."""
    values, sections = copy.deepcopy(VALUES), list(SECTIONS)
    sections[index] = stored
    row = values["sections"][index]
    row[3], row[5] = len(stored), section_digest(stored)
    for column, value in columns.items():
        row[["name", "codec", "layout", "stored", "raw", "digest"].index(column)] = value
    return forge(values, sections)


def refused(data: bytes) -> str:
    """The one line that `data` is refused with."""
    with pytest.raises(ArtifactError) as caught:
        decode_artifact(data, verify_weights=True)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    assert caught.value.exit_status == 3
    return str(caught.value)


def survives(data: bytes) -> None:
    """`data` reads or is refused; nothing else happens."""
    with contextlib.suppress(ArtifactError, MissingDependencyError):
        decode_artifact(data, verify_weights=True)


def test_forge_makes_files_that_read_when_nothing_is_wrong() -> None:
    found = decode_artifact(forge(VALUES), verify_weights=True)
    assert [t.name for t in found.tensors] == [t.name for t in example_tensors()]


# Damage: the checksums have to notice.


def test_every_single_bit_of_the_file_is_covered_by_a_checksum() -> None:
    for bit in range(8 * LENGTH):
        data = bytearray(DATA)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ArtifactError):
            decode_artifact(bytes(data))


def test_a_file_cut_short_anywhere_is_refused() -> None:
    for size in range(LENGTH):
        with pytest.raises(ArtifactError):
            decode_artifact(DATA[:size])


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_spliced_extended_and_overwritten_files_are_refused(data: st.DataObject) -> None:
    start, stop = sorted(data.draw(st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH))))
    piece = data.draw(st.binary(max_size=40) | st.just(DATA[start:stop] * 2))
    changed = DATA[:start] + piece + DATA[stop:]
    if changed == DATA:
        return
    refused(changed)


@settings(deadline=None, max_examples=150)
@given(tail=st.binary(max_size=200), whole=st.booleans())
def test_random_bytes_are_refused(tail: bytes, whole: bool) -> None:
    refused(tail if whole else MAGIC + b"\1\0" + tail)


# Right checksums around wrong contents.


@settings(deadline=None, max_examples=200)
@given(raw=st.binary(max_size=300), size=st.integers(0, 400), deflated=st.booleans())
def test_any_bytes_as_header_are_refused(raw: bytes, size: int, deflated: bool) -> None:
    stored = zlib.compress(raw) if deflated else raw
    refused(seal(stored, b"", raw_bytes=size, flags=int(deflated)))


ODD = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    2**64,
    10**400,
    0.5,
    -1e300,
    "",
    "x",
    "int8",
    [],
    {},
]
ODD += [[1], {"a": 1}, "9" * 64, "\ud800\x1b[2J", [[[]]], "raw", "lzma", "planes", "column"]


def mutated(values: object, chooser: random.Random) -> object:
    """`values` with one part somewhere replaced, removed, doubled, or swapped."""
    values = copy.deepcopy(values)
    holder, key = {"": values}, ""
    while isinstance(holder[key], dict | list) and holder[key] and chooser.random() < 0.85:
        holder = holder[key]
        key = chooser.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    action = chooser.randrange(5)
    if action == 0 and isinstance(holder[key], int) and not isinstance(holder[key], bool):
        holder[key] += chooser.choice((-1, 1, 255, -(10**6), 10**9))
    elif action == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(chooser.choice(holder)))
    elif action == 2 and not (isinstance(holder, dict) and "" in holder):
        del holder[key]
    elif action == 3 and isinstance(holder, dict) and "" not in holder:
        holder[chooser.choice(("", "x", "model", "a.b"))] = copy.deepcopy(chooser.choice(ODD))
    else:
        holder[key] = copy.deepcopy(chooser.choice(ODD))
        return holder[key] if key == "" else values
    return values


@settings(deadline=None, max_examples=400)
@given(seed=st.integers(0, 2**32), times=st.integers(1, 3))
def test_headers_with_parts_changed_read_or_are_refused(seed: int, times: int) -> None:
    chooser = random.Random(seed)
    values: object = VALUES
    for _ in range(times):
        if isinstance(values, dict | list):
            values = mutated(values, chooser)
    survives(forge(values))


@settings(deadline=None, max_examples=200)
@given(
    index=st.integers(0, len(SECTIONS) - 1),
    stored=st.binary(max_size=120),
    codec=st.sampled_from(["raw", "zlib", "zstd", "lzma", "range", "brotli"]),
    layout=st.sampled_from(["row", "column", "planes"]),
    compress=st.booleans(),
)
def test_any_bytes_as_section_read_or_are_refused(index, stored, codec, layout, compress) -> None:
    if compress:
        stored = zlib.compress(stored)
    survives(forge_section(index, stored, codec=codec, layout=layout))


def changed(path: str, value: object, values: dict = VALUES) -> dict:
    """A header's values with that at the dotted `path` replaced."""
    values = copy.deepcopy(values)
    holder: object = values
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in parents:
        holder = holder[key]  # type: ignore[index]
    holder[last] = value  # type: ignore[index]
    return values


def change(path: str, value: object) -> bytes:
    """The good file with the header's value at the dotted `path` replaced."""
    return forge(changed(path, value))


INT8 = VALUES["tensors"][0]
assert INT8[2] == "int8"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("extra", 1, "must be an object of model, pack"),
        ("pack", [], "pack must be an object"),
        ("weights_sha256", "AB" * 32, "not 64 hex digits"),
        ("weights_sha256", 5, "not 64 hex digits"),
        ("weights_sha256", "00" * 32, "the weights hash to"),
        ("model", [], "model is \\[\\], must be an object"),
        ("model.layers", 0, "layers=0 must be at least 1"),
        ("model.layers", "2", "model.layers='2' must be int"),
        ("model.rope_base", 10**400, "the header's model is not one"),
        ("model.hidden", 1, "unknown setting 'model.hidden'"),
        ("tokenizer.sha256", "0" * 63, "the header's tokenizer is not one"),
        ("tokenizer.vocab", True, "tokenizer.vocab=True must be int"),
        ("tokenizer.bos", 64, "must lie in 0..63"),
        ("tokenizer.bos", -1, "must lie in 0..63"),
        ("tokenizer.vocab", (1 << 20) + 1, "must lie in 1..1048576"),
        ("tokenizer.extra", 0, "object of bos, sha256, vocab"),
        ("tensors", [], "at least one tensor"),
        ("tensors", {}, "at least one tensor"),
        ("tensors.0", INT8[:4], "must have 5 columns"),
        ("tensors.0.0", "blocks.1.fc.weight", "appears twice"),
        ("tensors.0.0", "", "printable ASCII"),
        ("tensors.0.0", "n" * 201, "printable ASCII"),
        ("tensors.0.0", "a\x1b", "printable ASCII"),
        ("tensors.0.0", "a\n", "printable ASCII"),
        ("tensors.0.1", [16], "has rank 1, int8 takes"),
        ("tensors.0.1", [16, 0], "positive integers"),
        ("tensors.0.1", [-16, -24], "positive integers"),
        ("tensors.0.1", [16, 24.0], "positive integers"),
        ("tensors.0.1", [True, 24], "positive integers"),
        ("tensors.0.1", [1 << 48, 24], "positive integers"),
        ("tensors.0.1", [1] * 5, "at most 4 positive integers"),
        ("tensors.0.1", "16", "positive integers"),
        ("tensors.0.1", [16, 25], "declares 768 raw bytes, its contents need 784"),
        ("tensors.0.1", [(1 << 48) - 1] * 2, "its contents need"),
        ("tensors.0.2", "int3", "this gptpack knows"),
        ("tensors.0.2", ["int8"], "this gptpack knows"),
        ("tensors.0.3", {"p": True}, "64-bit numbers"),
        ("tensors.0.3", {"p": 1 << 63}, "64-bit numbers"),
        ("tensors.0.3", {"p": "1"}, "64-bit numbers"),
        ("tensors.0.3", [], "64-bit numbers"),
        ("tensors.0.4", [], "record that is not an object"),
        ("sections", [], "must have 7 rows"),
        ("sections.0", [], "must have 6 columns"),
        ("sections.0", VALUES["sections"][1], "stands where int8.scales must be"),
        ("sections.0.1", "gzip", "this gptpack knows raw, zlib"),
        ("sections.0.1", {}, "this gptpack knows raw, zlib"),
        ("sections.0.2", "diagonal", "not one of"),
        ("sections.0.2", [], "not one of"),
        ("sections.0.3", -1, "takes -1 bytes"),
        ("sections.0.3", LENGTH, "are left"),
        ("sections.0.3", True, "takes True bytes"),
        ("sections.0.4", 65, "declares 65 raw bytes, its contents need 64"),
        ("sections.0.4", 64.0, "declares 64.0 raw bytes"),
        ("sections.0.5", "0" * 32, "section int8.scales does not match its SHA-256"),
        ("sections.0.5", "0" * 31, "has digest"),
        ("sections.6.3", VALUES["sections"][6][3] - 1, "1 bytes follow the last section"),
    ],
)
def test_each_rule_of_the_header_is_enforced_by_name(path, value, message) -> None:
    with pytest.raises(ArtifactError, match=message):
        decode_artifact(change(path, value), verify_weights=True)


@pytest.mark.parametrize("text", ["\x1b[2J\n", "\ud800", "\u202e", "x" * 60000])
def test_text_of_the_file_reaches_an_error_only_short_and_escaped(text: str) -> None:
    refused(change(f"model.{text}", 1))
    for path in ("model.activation", "tensors.0.0", "tensors.0.2", "sections.0.1"):
        refused(change(path, text))
    for path in ("model.activation", "tokenizer.bos", "tensors.0.1", "weights_sha256"):
        refused(change(path, [text]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not ASCII JSON"),
        (b"\xff", "not ASCII JSON"),
        (b"[" * 60000, "not ASCII JSON|nested"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "not ASCII JSON|nested"),
        (b"[" * 33 + b"]" * 33, "nested more than 32 deep"),
        (b"9" * 5000, "not ASCII JSON"),
        (b"NaN", "cannot be written as JSON"),
        (b"1e999", "cannot be written as JSON"),
        (b'{"a":1,"a":1}', "not canonical"),
        (b'{"b":1,"a":1}', "not canonical"),
        (b'{"a": 1}', "not canonical"),
        (b'{"a":1}\n', "not canonical"),
        (b'{"a":1.50}', "not canonical"),
        (b'{"a":-0}', "not canonical"),
        (b'{"\\u0061":1}', "not canonical"),
        (b'{"a":1}', "must be an object of"),
    ],
)
def test_a_header_that_is_not_canonical_json_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        decode_header(forge_text(text))


def test_preambles_are_refused_by_name() -> None:
    raw = json.dumps(VALUES, sort_keys=True, separators=(",", ":")).encode()
    rest = b"".join(SECTIONS)
    deflated = zlib.compress(raw)
    size = len(raw)
    for data, message in (
        (b"", "empty"),
        (b"PK\3\4" + DATA, "not a gptpack artifact"),
        (DATA[:20], "less than the preamble"),
        (DATA.replace(b"\r\n", b"\n", 1), "line ends were converted"),
        (seal(raw, rest, raw_bytes=size, version=3), "format version 3, this gptpack reads"),
        (seal(raw, rest, raw_bytes=size, flags=2), "flags 0x0002"),
        (seal(raw, rest, raw_bytes=size, file_bytes=5), "the preamble says 5"),
        (seal(raw, rest, raw_bytes=size + 1), "is stored as is"),
        (seal(deflated, rest, raw_bytes=1 << 23, flags=1), "at most"),
        (seal(b"x" * 70000, rest, raw_bytes=1 << 20, flags=1), "not a zlib stream"),
        (seal(deflated, rest, raw_bytes=size + 1, flags=1), "not one zlib stream"),
        (seal(deflated, rest, raw_bytes=size - 1, flags=1), "not one zlib stream"),
        (seal(deflated + b"x", rest, raw_bytes=size, flags=1), "not one zlib stream"),
        (seal(deflated[:-1], rest, raw_bytes=size, flags=1), "not one zlib stream"),
        (DATA + b"x", "the preamble says"),
    ):
        assert message in refused(data)
    # A header that says it is larger than the file, with the digest of what is there.
    fields = FIELDS.pack(MAGIC, 1, 0, 5000, 5000, PREAMBLE_BYTES)
    assert "does not fit" in refused(fields + digest(fields, b""))


def test_a_section_of_the_wrong_length_or_not_finite_is_refused() -> None:
    floats = [s[0] for s in VALUES["sections"]].index("float32.values")
    assert "float32.values" in refused(forge_section(floats, bytes(39), codec="raw"))
    assert "finite" in refused(forge_section(floats, b"\0\0\xc0\x7f" * 10, codec="raw"))


@pytest.mark.parametrize("stored_bytes", [0, 1, 100])
def test_the_memory_rule_of_sections_holds_to_the_byte(stored_bytes: int) -> None:
    beside = 7  # bytes of another section, which count once
    most = 128 * stored_bytes + stored_bytes + beside + 65536
    for raw, allowed in ((most, True), (most + 1, False)):
        stored, other = b"x" * stored_bytes, bytes(beside)
        shapes = [["t", [1, raw], "int8", {}, {}]]
        rows = [
            ["int8.scales", "raw", "row", beside, 2, section_digest(other)],
            ["int8.codes", "zlib", "row", stored_bytes, raw, section_digest(stored)],
        ]
        data = forge(dict(VALUES, tensors=shapes, sections=rows), [other, stored])
        if allowed:
            assert decode_header(data).sections[1].raw_bytes == raw
        else:
            with pytest.raises(ArtifactError, match=f"may hold {most:,} at most"):
                decode_header(data)


@pytest.mark.parametrize(
    ("stored", "raw", "allowed"),
    [
        (0, 65536, True),
        (0, 65537, False),
        (10, 66176, True),
        (10, 66177, False),
        (1 << 20, 1 << 20, True),
        (1 << 20, (1 << 20) + 1, False),
    ],
)
def test_the_memory_rule_of_headers_holds_to_the_byte(stored: int, raw: int, allowed: bool) -> None:
    start = seal(b"x" * stored, b"", raw_bytes=raw, flags=1)[:PREAMBLE_BYTES]
    if allowed:
        assert read_preamble(start, PREAMBLE_BYTES + stored).raw_header_bytes == raw
    else:
        with pytest.raises(ArtifactError, match="at most"):
            read_preamble(start, PREAMBLE_BYTES + stored)


# What the operating system hands over.


def test_a_git_lfs_pointer_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "model.gptpack"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(ArtifactError, match=r"model\.gptpack: a git-lfs pointer.*git lfs pull"):
        read_header(path)


def test_what_is_not_a_regular_file_is_a_usage_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "missing", "No such file"),
        (tmp_path, "a folder, not a packed file"),
        (tmp_path / "pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("nul\0byte", "not the name of a file"),
    ):
        for read in (read_header, read_artifact):
            with pytest.raises(GptpackError, match=message) as caught:
                read(path)
            assert caught.value.exit_status == 2
            assert "\n" not in str(caught.value)


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gptpack"
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"model\.gptpack: the file is empty"):
        read_artifact(path)
    path.write_bytes(DATA[:-1])
    with pytest.raises(ArtifactError, match=r"model\.gptpack: .* the preamble says"):
        read_header(path)


# Bombs: right checksums, small files, huge claims.

BOMBS = r"""
import json, lzma, resource, sys, zlib
import zstandard
sys.path.insert(0, TESTS)
from strategies import MODEL, TOKENIZER, encode_artifact, example_tensors
from test_artifact_hostile import SECTIONS, VALUES, forge, forge_text, seal
from gptpack.artifact.reader import decode_artifact
from gptpack.artifact.layout import section_digest
from gptpack.errors import ArtifactError

MiB = 1 << 20
zeros = bytes(128 * MiB)
filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 4096}]
def deflate(data):
    return zlib.compress(data, 9)
def claim(stored, codec, raw):
    # One int8 tensor whose codes claim `raw` bytes.
    values = dict(VALUES, tensors=[["t", [1, raw], "int8", {}, {}]])
    values["sections"] = [
        ["int8.scales", "raw", "row", 2, 2, section_digest(bytes(2))],
        ["int8.codes", codec, "row", len(stored), raw, section_digest(stored)],
    ]
    return forge(values, [bytes(2), stored])
def claim_files(stored, codec, raw):
    # A file beside the model that claims them.
    row = ["files", codec, "row", len(stored), raw, section_digest(stored)]
    values = dict(VALUES, family="golf", files=[["a", raw]])
    values["sections"] = [*VALUES["sections"], row]
    return forge(values, [*SECTIONS, stored], version=2)

small = zstandard.ZstdCompressor(3)
unsized = zstandard.ZstdCompressor(3, write_content_size=False)
wide = zstandard.ZstdCompressor(
    compression_params=zstandard.ZstdCompressionParameters(window_log=27, write_content_size=0)
)
stream = wide.compressobj()
windowed = stream.compress(bytes(1000)) + stream.flush()
streams = {
    "zlib": (deflate(zeros), "zlib", MiB),
    "zstd": (small.compress(zeros), "zstd", 60000),
    "zstd no size": (unsized.compress(zeros), "zstd", 60000),
    "zstd window": (windowed, "zstd", 1000),
    "zstd truncated": (small.compress(zeros)[:-1], "zstd", 60000),
    "zstd many frames": (small.compress(bytes(60000)) * 4000, "zstd", 60000),
    "lzma": (lzma.compress(zeros, lzma.FORMAT_RAW, filters=filters), "lzma", MiB),
    "lzma tiny": (b"\0", "lzma", 60000),
    "huge": (b"x" * 100, "raw", 1 << 47),
    "over the rule": (b"x" * 100, "zlib", 129 * 100 + 2 + 65537),
}
try:
    import brotli
    streams["brotli"] = (brotli.compress(bytes(128 * MiB), quality=1), "brotli", 60000)
except ImportError:
    pass
bombs = {
    "header deflated": seal(deflate(zeros), b"", raw_bytes=MiB, flags=1),
    "header nested": forge_text(b"[" * 65000),
    "header of empty lists": forge_text(b"[" + b"[]," * 349000 + b"[]]"),
    **{name: claim(*stream) for name, stream in streams.items()},
    **{f"files, {name}": claim_files(*stream) for name, stream in streams.items()},
}
del zeros
# Address space now, and 64 MiB more: half of what a bomb would take.
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 64 * MiB, now + 64 * MiB))
try:
    bytes(100 * MiB)
    sys.exit("the limit does not hold")
except MemoryError:
    pass
for name, data in bombs.items():
    try:
        decode_artifact(data)
        sys.exit(f"{name} was read")
    except ArtifactError as error:
        if "memory" in str(error):
            sys.exit(f"{name} took the memory")
        print(f"{name}: {error}")
print("all", len(bombs), "refused")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures through /proc")
def test_decompression_bombs_are_refused_in_bounded_memory() -> None:
    code = f"TESTS = {str(Path(__file__).parent)!r}\n" + BOMBS
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "refused" in done.stdout
