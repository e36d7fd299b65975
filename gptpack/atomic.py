"""A file appears under its final name complete, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gptpack.errors import GptpackError


@contextmanager
def replacing(path: Path, error: type[GptpackError] = GptpackError) -> Iterator[BinaryIO]:
    """A writable file that becomes `path` when the block ends, synced to disk; dropped on error.

    Raises:
        `error`: the file system refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as cause:
        raise error(f"{path}: cannot write: {cause.strerror or cause}") from cause
    finally:
        temporary.unlink(missing_ok=True)
