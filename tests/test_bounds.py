"""Files that ask for more memory or steps than they, the caller or the machine have to spare."""

import sys
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from strategies import encode_artifact, example_tensors, write_artifact
from test_artifact_hostile import VALUES, forge, refused
from worlds import invoke

import gptpack
from gptpack.artifact import reader
from gptpack.artifact.front import read_header, verify_sections
from gptpack.artifact.layout import FIELDS, MAGIC, PREAMBLE_BYTES, digest, section_digest
from gptpack.artifact.memory import available_bytes, check_room
from gptpack.artifact.reader import decode_artifact, read_artifact
from gptpack.codec.general import most_raw_bytes
from gptpack.codec.range import decode_codes, encode_codes
from gptpack.codec.sections import AUTO
from gptpack.codec.trellis import parities_of, stepper
from gptpack.errors import ArtifactError, MissingDependencyError
from gptpack.jobs.sample import sample
from gptpack.quant.methods import METHODS
from gptpack.quant.types import PackedTensor

MiB = 1 << 20


def most_memory(work: Callable[[], object]) -> int:
    """Bytes that Python and numpy have at most while `work` runs."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def of_zeros(method: str, shape: tuple[int, ...]) -> PackedTensor:
    made = METHODS[method]
    arrays = {array.name: np.zeros(array.shape(shape), array.dtype) for array in made.arrays}
    parameters = {"states": 8} if made.states else {}
    return PackedTensor(name="w", shape=shape, method=method, arrays=arrays, parameters=parameters)


@pytest.mark.parametrize("codec", ["auto", *AUTO])
@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_all_zero_are_written_so_that_they_can_be_read(
    method: str, codec: str
) -> None:
    data = encode_artifact(tensors=[of_zeros(method, (1024, 512))], pack={}, codecs=codec)
    found = decode_artifact(data, verify_weights=True)
    assert all(not array.any() for array in found.tensors[0].arrays.values())
    everything = sum(section.stored_bytes for section in found.header.sections)
    for section in found.header.sections:
        assert section.raw_bytes <= most_raw_bytes(section.stored_bytes, everything)
    assert len(data) < 2000 + 1024 * 512 * (4 if codec == "raw" else 4 / 128)


def test_a_thousandfold_stream_is_refused_by_its_header_alone() -> None:
    stored = zlib.compress(bytes(8 * MiB), 9)
    values = dict(VALUES, tensors=[["w", [8 * MiB], "int8-tensor", {}, {}]])
    scale = bytes(4)
    values["sections"] = [
        ["int8-tensor.scales", "raw", "row", 4, 4, section_digest(scale)],
        ["int8-tensor.codes", "zlib", "row", len(stored), 8 * MiB, section_digest(stored)],
    ]
    data = forge(values, [scale, stored])
    assert most_memory(lambda: refused(data)) < MiB
    assert "may hold" in refused(data)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    path = tmp_path / "model.gptpack"
    write_artifact(path, tensors=example_tensors(), pack={})
    return path


def test_a_limit_holds_to_the_byte_and_a_file_beyond_it_is_not_called_corrupt(
    example: Path, tmp_path: Path
) -> None:
    needed = read_header(example).decoded_bytes
    assert read_artifact(example, verify_weights=True, limit_bytes=needed).tensors
    assert gptpack.verify(example, limit_bytes=needed).parameters
    output = tmp_path / "out.safetensors"
    for read in (
        partial(read_artifact, example),
        partial(gptpack.load, example),
        partial(gptpack.verify, example),
        partial(gptpack.evaluate, example, text=example),
        partial(gptpack.unpack, example, output, to="safetensors"),
        lambda **limit: next(sample(example, "a", **limit)),
    ):
        with pytest.raises(MissingDependencyError, match=f"takes {needed:,} bytes") as caught:
            read(limit_bytes=needed - 1)
        assert caught.value.exit_status == 4
        assert str(caught.value).isprintable()


def test_a_file_beyond_this_machines_memory_is_one_line_and_status_4(
    example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gptpack.artifact.memory.available_bytes", lambda: 100)
    assert invoke("verify", str(example)) == 4
    assert "this machine has free 100" in capsys.readouterr().err.splitlines()[-1]


def test_a_failed_allocation_is_no_fault_of_the_file(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(reader, "decode_stream", fails)
    for read in (read_artifact, gptpack.load, gptpack.verify):
        with pytest.raises(MissingDependencyError, match=r"model.gptpack: .*memory"):
            read(example)


def test_memory_that_is_free_is_found_and_a_system_that_does_not_say_it_sets_no_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if Path("/proc/meminfo").exists():
        assert MiB < (available_bytes() or 0) < 1 << 50
    monkeypatch.setattr("gptpack.artifact.memory.available_bytes", lambda: None)
    check_room(1 << 60, None)


def sparse(path: Path, codec: str, stored_bytes: int) -> None:
    """A file of one tensor whose section is a hole, behind a header that is right but for it."""
    raw_bytes = stored_bytes if codec == "raw" else 4
    values = dict(VALUES, tensors=[["w", [raw_bytes // 4], "float32", {}, {}]])
    row = ["float32.values", codec, "row", stored_bytes, raw_bytes, section_digest(b"")]
    header = forge(dict(values, sections=[row]), [])[PREAMBLE_BYTES:]
    end = PREAMBLE_BYTES + len(header) + stored_bytes
    fields = FIELDS.pack(MAGIC, 1, 0, len(header), len(header), end)
    path.write_bytes(fields + digest(fields, header) + header)
    with path.open("r+b") as file:
        file.truncate(end)


def test_sections_are_hashed_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "hole.gptpack"
    sparse(path, "raw", 64 * MiB)

    def verify() -> None:
        with pytest.raises(ArtifactError, match=r"float32\.values does not match its SHA-256"):
            verify_sections(path)

    assert most_memory(verify) < 4 * MiB


@pytest.mark.parametrize("codec", ["raw", "zlib"])
def test_a_file_of_forty_gigabytes_of_nothing_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    path = tmp_path / "hole.gptpack"
    sparse(path, codec, 40 << 30)

    monkeypatch.setattr("gptpack.artifact.memory.available_bytes", lambda: 1 << 30)

    def read() -> None:
        for look in (read_artifact, gptpack.verify, partial(gptpack.inspect, decode=True)):
            with pytest.raises(MissingDependencyError, match="free 1,073,741,824"):
                look(path)

    assert most_memory(read) < MiB


def columns(heights: list[int]) -> list[np.ndarray]:
    """Matrices of one column and of these heights."""
    rng = np.random.default_rng(0)
    return [rng.integers(-3, 4, (rows, 1)).astype(np.int16) for rows in heights]


def test_matrices_of_all_heights_come_back() -> None:
    codes = columns([*range(1, 40), 3, 17, 39])
    states = [4, 256, 16] * 14
    data = encode_codes(codes, parities=parities_of(codes, states))
    machines = [stepper(count) for count in states]
    found = decode_codes(data, [c.shape for c in codes], steppers=machines, dtype="<i2")
    assert all(map(np.array_equal, found, codes))


def test_the_interpreters_work_grows_with_the_matrices_and_not_with_their_pairs() -> None:
    """Matrices of heights 1 to n have n(n + 1) / 2 codes, which compiled loops decode."""

    def calls(count: int) -> int:
        codes = columns(list(range(1, count + 1)))
        data = encode_codes(codes, parities=parities_of(codes, [4] * count))
        shapes, machines = [c.shape for c in codes], [stepper(4)] * count
        decode_codes(data, shapes, steppers=machines, dtype="<i2")
        seen: Counter[str] = Counter()
        sys.setprofile(lambda _frame, event, _: seen.update([event]))
        try:
            decode_codes(data, shapes, steppers=machines, dtype="<i2")
        finally:
            sys.setprofile(None)
        return seen["call"] + seen["c_call"]

    assert calls(200) < 2.5 * calls(100)


def test_matrices_share_the_tables_of_their_trellis() -> None:
    shapes = [(1, 1)] * 2000
    data = encode_codes(columns([1] * 2000), parities=[np.zeros((1, 1), np.uint8)] * 2000)
    few = most_memory(lambda: decode_codes(data, shapes, steppers=[stepper(4)] * 2000))
    many = most_memory(lambda: decode_codes(data, shapes, steppers=[stepper(256)] * 2000))
    assert stepper(256) is stepper(256)
    assert many < few + MiB


def test_a_wide_row_takes_little_memory_beside_its_codes() -> None:
    count = 1 << 20
    codes = np.zeros((1, count), np.int16)
    data = encode_codes([codes], parities=[codes.astype(np.uint8)])

    def decode() -> None:
        decode_codes(data, [(1, count)], steppers=[stepper(4)], dtype="<i2")

    decode()
    assert most_memory(decode) < 32 * count
