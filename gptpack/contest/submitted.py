"""A submission's folder -> `Submitted`, all that the rules look at. Nothing of it is run."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptpack.contest.folder import FIGURES, SCRIPT, UNCOUNTED, log_name
from gptpack.contest.imports import Imports, read_imports
from gptpack.contest.logs import read_submission_log
from gptpack.errors import ConfigError, DataError
from gptpack.runs.logged import LoggedRun

RECORD_TRACK = "10min_16mb"
"""The track where times, seeds and significance are rules; on others they are only reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A submission as it lies on the disk."""

    path: Path
    files: Mapping[str, int]
    """Bytes of each file, by its path below the folder."""
    values: Mapping[str, Any]
    """Content of submission.json; empty where that cannot be read."""
    logs: Sequence[LoggedRun]
    imports: Imports | str
    """What train_gpt.py imports, or why it is not Python."""
    problems: Sequence[str]
    """What could not be read of submission.json and the logs."""

    @property
    def counted(self) -> dict[str, int]:
        """Files whose bytes count."""
        return {
            name: size
            for name, size in self.files.items()
            if name not in UNCOUNTED and not name.endswith(".log")
        }

    @property
    def seeds(self) -> list[int | str]:
        """Seeds that the logs are named after; empty where submission.json lists none."""
        return _seeds(self.values)

    @property
    def is_record(self) -> bool:
        return self.values.get("track") == RECORD_TRACK

    def text(self, name: str) -> str:
        """The text of a file; empty where it cannot be read."""
        return _text(self.path / name)


def read_submitted(path: Path) -> Submitted:
    """Everything that the rules look at.

    Raises:
        ConfigError: there is no such folder.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: not a folder; 'gptpack submission' makes one")
    files = {
        item.relative_to(path).as_posix(): item.lstat().st_size
        for item in sorted(path.rglob("*"))
        if item.is_symlink() or item.is_file()
    }
    problems: list[str] = []
    values: dict[str, Any] = {}
    try:
        found = json.loads((path / FIGURES).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            values = found
        else:
            problems.append(f"{FIGURES} is not an object")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{FIGURES}: {error}")
    logs: list[LoggedRun] = []
    for seed in _seeds(values):
        try:
            logs.append(read_submission_log(path / log_name(seed)))
        except DataError as error:
            problems.append(str(error))
    return Submitted(
        path=path,
        files=files,
        values=values,
        logs=logs,
        imports=_imports(_text(path / SCRIPT)),
        problems=problems,
    )


def _seeds(values: Mapping[str, Any]) -> list[int | str]:
    found = values.get("seeds")
    return found if isinstance(found, list) and all(map(_is_seed, found)) else []


def _is_seed(value: Any) -> bool:
    return type(value) in (int, str) and bool(re.fullmatch(r"-?\w{1,20}", str(value)))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _imports(source: str) -> Imports | str:
    try:
        return read_imports(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"{SCRIPT} is not Python: {str(error) or type(error).__name__}"
