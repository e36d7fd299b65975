"""A file or a directory appears under its final name complete, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from gptpack.errors import ConfigError, DataError, GptpackError

OF_THE_SYSTEM = (".DS_Store", "._*")
"""Patterns of the files that macOS puts into a folder which was looked at, or beside a file."""


def check_writable(path: str | Path, error: type[GptpackError] = GptpackError) -> None:
    """Whether `replacing` will find a directory that takes files, or can make one.

    Raises:
        `error`: it will not.
    """
    target = Path(os.path.realpath(path))
    directory = next(parent for parent in target.parents if parent.exists())
    if not directory.is_dir():
        raise error(f"{path}: {directory} is not a directory; choose another name")
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as cause:
        raise error(
            f"{path}: cannot write in {directory}: {cause.strerror}; choose another directory"
        ) from cause


def check_target(path: str | Path, kind: str, *starts: bytes) -> None:
    """Whether a file that takes long to make may be written to `path`, asked before it is made.

    Args:
        kind: what the file will be, in words.
        starts: with what files of that kind start; others are not replaced.

    Raises:
        ConfigError: a directory, a device, or a file of another kind, stands there.
        GptpackError: the directory takes no files.
    """
    target = Path(path)
    if target.is_dir():
        raise ConfigError(f"{path} is a directory; name a file in it")
    if target.exists():
        if not target.is_file():
            raise ConfigError(f"{path} exists and is not a regular file; choose another name")
        with target.open("rb") as file:
            found = file.read(max(map(len, starts)))
        if found and not found.startswith(starts):
            raise ConfigError(
                f"{path} exists and is no {kind}; it stays as it is: choose another name"
            )
    check_writable(target)


def check_folder(path: str | Path, kind: str, mark: str, *names: str) -> None:
    """Whether `replacing_directory` may take what stands at `path` away, asked before it does.

    Args:
        kind: what the directory will be, in words.
        mark: the file by which one of that kind is known; an empty directory needs none. What
            macOS puts into directories does not count.
        names: patterns of the files that one of that kind consists of, besides.

    Raises:
        ConfigError: something of another kind stands there, or holds anything else.
    """
    target = Path(path)
    if not target.exists():
        return
    entries = [target]
    if target.is_dir():
        entries = [each for each in sorted(target.iterdir()) if not _is_named(each, OF_THE_SYSTEM)]
    if entries and not (target / mark).is_file():
        raise ConfigError(f"{path} exists and is no {kind}; it stays as it is: choose another name")
    for entry in entries:
        if not _is_named(entry, (mark, *names)):
            raise ConfigError(
                f"{path} exists and holds {entry.name}, which is not of the {kind} and would be "
                "lost; choose another name"
            )


def _is_named(entry: Path, patterns: Iterable[str]) -> bool:
    """Whether `entry` is a regular file whose name one of `patterns` matches."""
    return entry.is_file() and any(fnmatchcase(entry.name, pattern) for pattern in patterns)


@contextmanager
def replacing(path: str | Path, error: type[GptpackError] = GptpackError) -> Iterator[BinaryIO]:
    """A writable file that becomes `path` when the block ends, synced to disk; dropped on error.

    A link is followed; what stood there before stays until the new file is complete. Missing
    directories are made, so that hours of work do not end at one; they go again on error.

    Raises:
        `error`: `path` is not the name of a regular file, or the file system refuses.
    """
    try:
        target = Path(os.path.realpath(path))
        exists = target.exists()
        missing = [directory for directory in target.parents if not directory.exists()]
    except (OSError, ValueError) as cause:
        raise error(f"{str(path)!r} is not the name of a file: {cause}") from cause
    if exists and not target.is_file():
        raise error(f"{path}: exists and is not a regular file; choose another name")
    temporary = target.with_name(f".gptpack-{os.urandom(8).hex()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as cause:
        with suppress(OSError):
            temporary.unlink()
        for directory in missing:
            with suppress(OSError):
                directory.rmdir()
        if not isinstance(cause, OSError):
            raise
        raise error(
            f"{path}: cannot write: {cause.strerror or cause}; "
            "choose another directory or free some space"
        ) from cause
    # Some file systems cannot sync a directory; the file itself is complete by now.
    with suppress(OSError):
        parent = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def remove_leftovers(path: str | Path, start: bytes) -> None:
    """Delete what killed processes left of `replacing` beside `path`, if it begins with `start`.

    Nobody can tell whether a process still writes one of those files, so that `start` must be what
    only the caller's own files have.
    """
    for temporary in Path(os.path.realpath(path)).parent.glob(".gptpack-*.tmp"):
        with suppress(OSError):
            with open(temporary, "rb") as file:
                found = file.read(len(start))
            if found == start:
                temporary.unlink()


@contextmanager
def staged_directory(path: Path, *, last: str, replaces: Sequence[str]) -> Iterator[Path]:
    """A hidden directory whose files move into `path` when the block ends; dropped on error.

    A `path` that does not exist, or is empty, appears at once. In any other the file `last` is
    removed first and written last, and files that match `replaces` are removed.

    Raises:
        DataError: the file system refuses.
    """
    with _stage(path) as stage:
        yield stage
        if not path.exists() or not any(path.iterdir()):
            stage.replace(path)
            return
        (path / last).unlink(missing_ok=True)
        for pattern in replaces:
            for old in path.glob(pattern):
                old.unlink()
        for file in sorted(stage.iterdir(), key=lambda file: (file.name == last, file.name)):
            file.replace(path / file.name)


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """A hidden directory that becomes `path` when the block ends; dropped on error.

    A link is followed. A directory that stands at `path` stays until the new one is complete, and
    is then exchanged with it in one step. Where the system has no such step, a process that is
    killed at that moment leaves the old one beside `path` under a hidden name.

    Raises:
        DataError: the file system refuses.
    """
    target = Path(os.path.realpath(path))
    with _stage(target) as stage:
        yield stage
        if not target.exists():
            stage.replace(target)
        elif not _exchanged(stage, target):
            old = target.replace(stage.with_suffix(".old"))
            try:
                stage.replace(target)
            except BaseException:
                old.replace(target)
                raise
            old.replace(stage)


@contextmanager
def _stage(path: Path) -> Iterator[Path]:
    """A hidden directory beside `path`; what is left of it when the block ends is deleted."""
    # of a name that nobody else has, so that what goes at the end is ours
    stage = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        stage.mkdir(parents=True)
        yield stage
    except OSError as error:
        raise DataError(f"{path}: cannot write: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Swap the names of two directories in one step; False where the system cannot."""
    import ctypes

    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(here, paths[0], here, paths[1], exchange) == 0
