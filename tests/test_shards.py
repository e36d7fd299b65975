import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptpack.data.shards import (
    Shard,
    ShardWriter,
    find_shards,
    write_shard,
)
from gptpack.data.splits import load_tokens
from gptpack.errors import DataError, ShardError
from gptpack.values import MAX_VOCAB

in_a_folder = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
token_arrays = hnp.arrays(np.uint16, st.integers(1, 300))
wide_arrays = hnp.arrays(np.uint32, st.integers(1, 300), elements=st.integers(0, MAX_VOCAB - 1))


def reference_bytes(tokens: list[int]) -> bytes:
    """The contest's format, spelled out."""
    header = [20240520, 1, len(tokens)] + [0] * 253
    return struct.pack("<256i", *header) + struct.pack(f"<{len(tokens)}H", *tokens)


def wide_reference_bytes(tokens: list[int]) -> bytes:
    """llm.c's format of 32-bit tokens, spelled out."""
    header = [20240801, 7, len(tokens)] + [0] * 253
    return struct.pack("<256i", *header) + struct.pack(f"<{len(tokens)}I", *tokens)


@in_a_folder
@given(tokens=token_arrays)
def test_what_is_written_is_read_back_and_is_the_contests_format(
    tmp_path: Path, tokens: np.ndarray
) -> None:
    path = tmp_path / "a_train_000000.bin"
    write_shard(path, tokens)
    assert path.read_bytes() == reference_bytes(tokens.tolist())
    shard = Shard.open(path, 65536)
    assert isinstance(shard.tokens, np.memmap)
    assert shard.tokens.dtype == np.uint16
    assert np.array_equal(shard.tokens, tokens)
    assert os.listdir(tmp_path) == [path.name]


@in_a_folder
@given(tokens=wide_arrays)
def test_a_vocabulary_above_16_bits_is_written_and_read_in_llm_cs_32_bit_format(
    tmp_path: Path, tokens: np.ndarray
) -> None:
    path = tmp_path / "a_train_000000.bin"
    write_shard(path, tokens, vocab=MAX_VOCAB)
    assert path.read_bytes() == wide_reference_bytes(tokens.tolist())
    shard = Shard.open(path, MAX_VOCAB)
    assert isinstance(shard.tokens, np.memmap)
    assert shard.tokens.dtype == np.uint32
    assert np.array_equal(shard.tokens, tokens)


@pytest.mark.parametrize(("vocab", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_the_vocabulary_chooses_the_width_of_a_token(tmp_path: Path, vocab: int, dtype) -> None:
    write_shard(tmp_path / "a_val_000000.bin", np.array([1, vocab - 1]), vocab=vocab)
    with ShardWriter(tmp_path, "a", "train", 2, vocab) as writer:
        writer.append(np.array([1, 2, vocab - 1], np.uint32))
    opened = [Shard.open(path, vocab).tokens for path in sorted(tmp_path.iterdir())]
    assert [tokens.dtype for tokens in opened] == [dtype] * 3
    assert [tokens.tolist() for tokens in opened] == [[1, 2], [vocab - 1], [1, vocab - 1]]


def test_shards_of_both_widths_are_one_stream(tmp_path: Path) -> None:
    write_shard(tmp_path / "a_val_000000.bin", np.array([1, 65535]))
    write_shard(tmp_path / "a_val_000001.bin", np.array([2, 65536]), vocab=70_000)
    assert load_tokens(tmp_path, "val", 70_000).tolist() == [1, 65535, 2, 65536]
    with pytest.raises(ShardError, match="token 65536 at 1 is not below the vocabulary's 65536"):
        load_tokens(tmp_path, "val", 65536)


@in_a_folder
@given(tokens=token_arrays, wide=st.booleans(), data=st.data())
def test_a_cut_or_flipped_shard_has_the_same_count_or_is_refused(
    tmp_path: Path, tokens: np.ndarray, wide: bool, data: st.DataObject
) -> None:
    written = wide_reference_bytes if wide else reference_bytes
    whole = bytearray(written(tokens.tolist()))
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        at = data.draw(st.one_of(st.integers(0, 11), st.integers(0, len(whole) - 1)))
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "a_train_000000.bin"
    path.write_bytes(whole)
    count, message = len(tokens), str(path)
    try:
        count = len(Shard.open(path).tokens)
    except ShardError as error:
        message = str(error)
    assert count == len(tokens)
    assert str(path) in message
    assert "\n" not in message


@in_a_folder
@given(data=st.binary(max_size=1100))
def test_any_bytes_are_a_shard_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    with pytest.raises(ShardError):
        Shard.open(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda b: b[:-1], r"1029 bytes, but 3 uint16 tokens need 1030"),
        (lambda b: b + b"\0\0", r"1032 bytes, but 3 uint16 tokens need 1030"),
        (lambda b: b[:100], r"100 bytes; a shard begins with a header of 1024"),
        (lambda b: b"", r"0 bytes; a shard begins"),
        (lambda b: b"\0" + b[1:], r"magic number 20240384, but token shards have 20240520 or"),
        (lambda b: b[:4] + b"\2" + b[5:], r"shard version 2, but only 1 is known of 20240520"),
        (lambda b: b[:4] + b"\7" + b[5:], r"shard version 7, but only 1 is known of 20240520"),
        (lambda b: b[:8] + b"\4" + b[9:], r"1030 bytes, but 4 uint16 tokens need 1032"),
        (lambda b: b[:8] + b"\xff" * 4 + b[12:], r"states -1 tokens"),
        (lambda b: b[:8] + bytes(4) + b[12:1024], r"states 0 tokens; a shard holds at least 1"),
    ],
)
def test_each_way_of_being_malformed_is_named(tmp_path: Path, change, reason: str) -> None:
    path = tmp_path / "a_val_000000.bin"
    path.write_bytes(change(reference_bytes([1, 2, 3])))
    with pytest.raises(ShardError, match=rf"a_val_000000\.bin: .*{reason}"):
        Shard.open(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda b: b[:-2], r"1034 bytes, but 3 uint32 tokens need 1036"),
        (lambda b: b + bytes(4), r"1040 bytes, but 3 uint32 tokens need 1036"),
        (lambda b: b[:1023], r"1023 bytes; a shard begins with a header of 1024"),
        (lambda b: b"\0" + b[1:], r"magic number 20240640, but token shards have .* or 20240801"),
        (lambda b: b[:4] + b"\1" + b[5:], r"shard version 1, but only 7 is known of 20240801"),
        (lambda b: b[:8] + b"\xff\xff\xff\x7f" + b[12:], r"but 2147483647 uint32 tokens need"),
        (lambda b: b[:8] + b"\xff" * 4 + b[12:], r"states -1 tokens"),
        (lambda b: b[:8] + bytes(4) + b[12:1024], r"states 0 tokens; a shard holds at least 1"),
    ],
)
def test_each_way_of_being_a_malformed_32_bit_shard_is_named(
    tmp_path: Path, change, reason: str
) -> None:
    path = tmp_path / "a_val_000000.bin"
    path.write_bytes(change(wide_reference_bytes([1, 2, 70_000])))
    with pytest.raises(ShardError, match=rf"a_val_000000\.bin: .*{reason}"):
        Shard.open(path)


def test_an_id_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a_val_000000.bin"
    write_shard(path, np.array([1, 5, 9, 2]))
    assert len(Shard.open(path, 10).tokens) == 4
    with pytest.raises(ShardError, match="token 9 at 2 is not below the vocabulary's 9"):
        Shard.open(path, 9)


def test_tokens_that_no_shard_can_hold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for tokens in (np.array([], int), np.array([-1]), np.array([65536]), np.zeros((2, 2), int)):
        with pytest.raises(ShardError, match=r"a\.bin"):
            write_shard(path, tokens)
    with pytest.raises(ShardError, match=r"ids 3 to 70000; .* hold ids of 0 to 69999"):
        write_shard(path, np.array([3, 70_000]), vocab=70_000)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.array([1, 2]))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"a\.bin: cannot write: No space left"):
        write_shard(path, np.array([3]))
    assert Shard.open(path).tokens.tolist() == [1, 2]
    assert os.listdir(tmp_path) == ["a.bin"]


@in_a_folder
@given(parts=st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=6), size=st.integers(1, 5))
def test_a_stream_of_tokens_becomes_full_shards_and_a_rest(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]], size: int
) -> None:
    folder = tmp_path_factory.mktemp("stream")
    with ShardWriter(folder, "a", "val", size, 10) as writer:
        for part in parts:
            writer.append(np.array(part, np.uint16))
    tokens = [token for part in parts for token in part]
    assert len(writer.paths) == -(-len(tokens) // size)
    if tokens:
        assert writer.paths == find_shards(folder, "val")
        held = [Shard.open(path).tokens.tolist() for path in writer.paths]
        assert [token for part in held for token in part] == tokens
        assert all(len(part) == size for part in held[:-1])


def test_shards_are_found_in_order_without_sidecars_and_other_splits(tmp_path: Path) -> None:
    for number, name in enumerate(
        [
            "fineweb_val_000001",
            "fineweb_val_000000",
            "fineweb_train_000000",
            "fineweb_val_bytes_000000",
            ".fineweb_val_000003",
        ]
    ):
        write_shard(tmp_path / f"{name}.bin", np.array([number, number]))
    names = [path.name for path in find_shards(tmp_path, "val")]
    assert names == ["fineweb_val_000000.bin", "fineweb_val_000001.bin"]
    assert load_tokens(tmp_path, "val", 5).tolist() == [1, 1, 0, 0]
    assert load_tokens(tmp_path, "val", 5, limit=3).tolist() == [1, 1, 0]
    assert isinstance(load_tokens(tmp_path, "val", 5, limit=2), np.memmap)
    assert isinstance(load_tokens(tmp_path, "train", 5), np.memmap)
    with pytest.raises(ShardError, match="is not below"):
        load_tokens(tmp_path, "val", 1)


def test_no_shards_or_those_of_two_datasets_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no shards named \*_train_\*\.bin"):
        find_shards(tmp_path, "train")
    with pytest.raises(ShardError, match="nowhere: no such folder"):
        find_shards(tmp_path / "nowhere", "train")
    write_shard(tmp_path / "a_train_000000.bin", np.array([1]))
    write_shard(tmp_path / "b_train_000000.bin", np.array([1]))
    with pytest.raises(ShardError, match=r"shards of 2 datasets \(a, b\)"):
        find_shards(tmp_path, "train")
