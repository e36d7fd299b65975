"""A directory appears under its final name complete, or not at all."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gptpack.errors import DataError


@contextmanager
def staged_directory(path: Path, *, last: str, replaces: Sequence[str]) -> Iterator[Path]:
    """A hidden directory whose files move into `path` when the block ends; dropped on error.

    A `path` that does not exist, or is empty, appears at once. In any other the file `last` is
    removed first and written last, and files that match `replaces` are removed.

    Raises:
        DataError: the file system refuses.
    """
    stage = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        stage.mkdir(parents=True)
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
    except OSError as error:
        raise DataError(f"{path}: cannot write: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
