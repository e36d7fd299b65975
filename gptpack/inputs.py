"""The path of an input -> an open regular file, or its bytes up to a limit.

Every input of gptpack comes in here: a pipe or a device would wait for ever or never end, and a
file's size says nothing of what lies on the disk. What cannot be opened is an OSError with its
reason in `strerror`, for the caller to say what was needed instead.
"""

import codecs
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path

GGUF = "a GGUF file"
"""What a file of llama.cpp's format is."""
STARTS = {
    "a packed file": re.compile(rb"\x89GPTPK"),
    "a torch checkpoint": re.compile(rb"PK\x03\x04|\x80\x02"),
    "a safetensors file": re.compile(rb".{4}\0\0\0\0\{", re.DOTALL),
    GGUF: re.compile(b"GGUF"),
}
"""What files are, in words, and how they begin."""
FOLDER = "a Hugging Face folder"
MODELS = (*list(STARTS)[1:], FOLDER)
"""What a model that is not packed may lie in, as `kind_of` says it."""
TEXT = "a text file"
"""What a file that begins as UTF-8 is."""
MOST_BYTES = 1 << 28
"""Bytes of a file, at most, that is read whole: a tokenizer, a log, a recipe, a report."""


def once(paths: Iterable[str | Path]) -> list[Path]:
    """The paths without those that name the same file again, through a link or spelled otherwise.

    What is counted has an identity: a file counts once, however many patterns name it.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        try:
            found.setdefault(os.path.realpath(path), path)
        except ValueError:  # no name of a file, which whoever opens it says
            found[str(path)] = path
    return list(found.values())


def opened(path: str | Path) -> BufferedReader:
    """The regular file at `path`, or behind the link there, open for reading.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a device or no name at all.
    """
    # without O_NONBLOCK, a pipe would wait here for its writer
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:
        raise OSError(errno.EINVAL, f"not the name of a file ({error})", str(path)) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "a folder, not a regular file", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def kind_of(path: str | Path) -> str:
    """What lies at `path`, by its content and in words; empty where that is not plain to see."""
    path = Path(path)
    if path.is_dir():
        if (path / "config.json").is_file():
            return FOLDER
        return "a folder of shards" if any(path.glob("*_*_*.bin")) else "a folder"
    try:
        with opened(path) as file:
            start = file.read(512)
    except OSError:
        return ""
    if found := next((kind for kind, begins in STARTS.items() if begins.match(start)), ""):
        return found
    # the last character may be cut short
    text = codecs.getincrementaldecoder("utf-8")()
    try:
        return TEXT if start and "\0" not in text.decode(start) else ""
    except UnicodeDecodeError:
        return ""


def read_input(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """All bytes of the file at `path`.

    Raises:
        OSError: see `opened`, or it has more than `most` bytes.
    """
    with opened(path) as file:
        # a file that grows meanwhile is too large as well
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return data


def read_text(path: str | Path, errors: str = "strict") -> str:
    """The UTF-8 text of the file at `path`, its lines ended by LF alone, without a byte order mark.

    Raises:
        OSError: see `read_input`.
        UnicodeDecodeError: it is no UTF-8, and `errors` is ``strict``.
    """
    return read_input(path).decode("utf-8-sig", errors).replace("\r\n", "\n")


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex; raises OSError as `opened` does."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
