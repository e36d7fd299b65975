import gzip
import json
import lzma
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
    ".gz": gzip.compress,
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


def test_several_zstd_frames_are_one_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress(b"one|t") + zstandard.compress(b"wo"))
    assert list(iterate_documents(path, "|")) == ["one", "two"]


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
    with pytest.raises(DataError, match=r"a\.txt: byte 5: not UTF-8"):
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


@pytest.mark.parametrize("name", ["a", "a.csv", "a.gz", "a.csv.zst", "a.txt.bz2"])
def test_an_unknown_kind_of_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="unknown kind of text file"):
        list(iterate_documents(write(tmp_path / name, b"x")))


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
