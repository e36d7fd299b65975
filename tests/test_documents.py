import gzip
import json
import lzma
import struct
from functools import partial
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptpack.data import documents
from gptpack.data.documents import SEPARATOR, iterate_documents
from gptpack.errors import DataError

COMPRESS = {
    "": lambda data: data,
    ".gz": partial(gzip.compress, mtime=0),
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x1e"))
in_a_folder = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(COMPRESS.get(path.suffix, COMPRESS[""])(data))
    return path


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_compression_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    texts = ["one", "", "zwei\n\nänd", "three"]
    path = write(tmp_path / f"a.txt{suffix}", SEPARATOR.join(texts).encode())
    assert list(iterate_documents(path)) == texts
    lines = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts)
    path = write(tmp_path / f"a.jsonl{suffix}", lines.encode())
    assert list(iterate_documents(path)) == texts


@in_a_folder
@given(
    texts=st.lists(plain_text),
    separator=st.sampled_from(["\x1e", SEPARATOR, "\x1e\x1e\x1e"]),
    size=st.integers(1, 7),
)
def test_documents_survive_any_cut_into_chunks(
    tmp_path: Path, texts: list[str], separator: str, size: int
) -> None:
    path = write(tmp_path / "a.txt", separator.join(texts).encode())
    # Only an empty last document is lost: it cannot be told from a trailing separator.
    expected = texts[:-1] if texts and not texts[-1] else texts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "READ_BYTES", size)
        assert list(iterate_documents(path, separator)) == expected


def test_a_separator_at_the_end_makes_no_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one|two|")
    assert list(iterate_documents(path, "|")) == ["one", "two"]
    assert list(iterate_documents(write(tmp_path / "b.txt", b""), "|")) == []
    assert list(iterate_documents(write(tmp_path / "c.txt", b"||x"), "|")) == ["", "", "x"]
    one = write(tmp_path / "d.txt", b"a\x1eb\n\x1e\n")
    assert list(iterate_documents(one)) == ["a\x1eb"]


def skippable(data: bytes) -> bytes:
    """A zstd frame that stands for no text, RFC 8878 section 3.1.2."""
    return struct.pack("<II", 0x184D2A53, len(data)) + data


GZ, XZ, ZST = (
    [pack(text) for text in (b"one|t", b"wo|three")] for pack in list(COMPRESS.values())[1:]
)
DAMAGED = bytearray(XZ[1])
DAMAGED[len(DAMAGED) // 2] ^= 16


@pytest.mark.parametrize("read_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".gz", GZ[0] + GZ[1]),
        (".gz", GZ[0] + gzip.compress(b"", mtime=0) + GZ[1] + bytes(5)),
        (".xz", XZ[0] + XZ[1]),
        (".xz", XZ[0] + bytes(4) + XZ[1]),
        (".xz", XZ[0] + bytes(4096) + lzma.compress(b"") + XZ[1] + bytes(8)),
        (".zst", ZST[0] + ZST[1]),
        (".zst", skippable(b"") + ZST[0] + skippable(b"note" * 3000) + ZST[1] + skippable(b"x")),
    ],
)
def test_every_member_stream_and_frame_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, content: bytes, read_bytes: int
) -> None:
    monkeypatch.setattr(documents, "READ_BYTES", read_bytes)
    monkeypatch.setattr(documents, "ZSTD_READ_BYTES", min(read_bytes, 1 << 12))
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(content)
    assert list(iterate_documents(path, "|")) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".gz", GZ[0] + b"junk"),
        (".gz", GZ[0] + GZ[1][:-1]),
        (".gz", GZ[0] + GZ[1][:-8] + bytes(8)),
        (".xz", XZ[0] + b"not an xz stream"),
        (".xz", XZ[0] + b"\0\0\0j"),
        (".xz", XZ[0] + bytes(3) + XZ[1]),
        (".xz", XZ[0] + XZ[1] + bytes(6)),
        (".xz", bytes(4) + XZ[0]),
        (".xz", XZ[0] + bytes(DAMAGED)),
        (".xz", XZ[0] + XZ[1][:-1]),
        (".zst", ZST[0] + b"junk"),
        (".zst", ZST[0] + bytes(4)),
        (".zst", ZST[0] + skippable(b"cut")[:-1]),
        (".zst", ZST[0] + ZST[1][:-1]),
    ],
)
@pytest.mark.parametrize("read_bytes", [1, 1 << 20])
def test_damage_and_junk_behind_a_whole_part_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, content: bytes, read_bytes: int
) -> None:
    monkeypatch.setattr(documents, "READ_BYTES", read_bytes)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.txt\{suffix}: corrupt or truncated"):
        list(iterate_documents(path, "|"))


@pytest.mark.parametrize("window_log", [28, 31])
def test_a_zstd_frame_with_a_long_window_is_read(tmp_path: Path, window_log: int) -> None:
    settings = zstandard.ZstdCompressionParameters(window_log=window_log, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    path = tmp_path / "a.txt.zst"
    path.write_bytes(packer.compress(b"one|two") + packer.flush())
    assert zstandard.get_frame_parameters(path.read_bytes()).window_size == 1 << window_log
    assert list(iterate_documents(path, "|")) == ["one", "two"]


def test_a_window_that_memory_cannot_hold_is_not_called_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "ZSTD_WINDOW_BYTES", 1 << 20)
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=21)
    ).compressobj()
    path = tmp_path / "a.txt.zst"
    path.write_bytes(packer.compress(b"one|two") + packer.flush())
    with pytest.raises(DataError, match=r"a\.txt\.zst: too little memory .* a smaller window"):
        list(iterate_documents(path, "|"))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_compressed_file_cut_anywhere_is_an_error(tmp_path: Path, suffix: str) -> None:
    whole = COMPRESS[suffix](b"some text, not much of it" * 3)
    path = tmp_path / f"a.txt{suffix}"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=rf"a\.txt\{suffix}: corrupt or truncated"):
            list(iterate_documents(path))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@in_a_folder
@given(data=st.binary(max_size=64))
def test_any_bytes_in_a_compressed_file_decode_or_raise(
    tmp_path: Path, suffix: str, data: bytes
) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(data)
    message = path.name
    try:
        list(iterate_documents(path))
    except DataError as error:
        message = str(error)
    assert "\n" not in message
    assert path.name in message


def test_invalid_utf8_names_the_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "ä|bc".encode() + b"\xff|d")
    found = iterate_documents(path, "|")
    assert next(found) == "ä"
    with pytest.raises(DataError, match=r"a\.txt: document \d: byte 5: not UTF-8"):
        next(found)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "a.jsonl:3: not JSON"),
        ("[" * 100_000, "a.jsonl:3: not JSON: nested too deeply"),
        ("9" * 5000, "a.jsonl:3: not JSON: Exceeds the limit"),
        ("[1]", "a.jsonl:3: no object"),
        ('{"body": "x"}', "a.jsonl:3: no string under 'text'"),
        ('{"text": 3}', "a.jsonl:3: no string under 'text'"),
        ('{"text": "\\ud800"}', "a.jsonl:3: the text holds half of"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n \n{line}\n'.encode())
    found = iterate_documents(path)
    assert next(found) == "fine"
    with pytest.raises(DataError) as error:
        next(found)
    assert reason in str(error.value)


@pytest.mark.parametrize("name", ["a", "a.md", "a.txt", "a.GZ", "a.json.zst", "a.text.xz"])
@pytest.mark.parametrize("compression", COMPRESS)
def test_the_content_says_what_a_file_is(tmp_path: Path, name: str, compression: str) -> None:
    texts = ["one", "zwei", ""]
    lines = b"\n \n" + b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    plain = b"{one|zwei||"
    named = Path(name).suffix.lower() in list(COMPRESS)[1:]
    for content, wanted in ((lines, texts), (plain, ["{one", "zwei", ""])):
        path = tmp_path / name
        path.write_bytes(COMPRESS[compression](content))
        if named and not compression:
            with pytest.raises(DataError, match=f"corrupt or truncated {path.suffix}"):
                list(iterate_documents(path, "|"))
        else:
            assert list(iterate_documents(path, "|")) == wanted


def test_lines_of_json_without_a_text_are_no_text(tmp_path: Path) -> None:
    line = b'{"content": "one"}\n'
    with pytest.raises(DataError, match="no string under 'text'"):
        list(iterate_documents(write(tmp_path / "a.json", line)))
    assert list(iterate_documents(write(tmp_path / "a.txt", line))) == [line.decode()]


def test_a_document_that_never_ends_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MOST_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(documents, "READ_BYTES", 10)
    path = write(tmp_path / "a.txt", b"x" * 60 + b"|" + b"y" * 90 + b"|" + b"z" * 150)
    with pytest.raises(DataError, match="byte 152: a document of more than 100 bytes"):
        list(iterate_documents(path, "|"))
    with pytest.raises(DataError, match="a document of more than 100 bytes"):
        list(iterate_documents(write(tmp_path / "b", b"{" * 300), "|"))


def test_a_missing_file_and_an_empty_separator_are_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.txt: cannot read"):
        list(iterate_documents(tmp_path / "no.txt"))
    with pytest.raises(DataError, match="separator is empty"):
        list(iterate_documents(write(tmp_path / "a.txt", b"x"), ""))


def test_the_position_ends_at_the_size_of_the_compressed_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt.xz", b"text " * 1000)
    seen: list[int] = []
    list(iterate_documents(path, position=seen.append))
    assert seen == sorted(seen)
    assert seen[-1] == path.stat().st_size
