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
    seeds: Sequence[int | str]
    """Seeds that the logs are named after; empty where submission.json lists none."""
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
    def is_record(self) -> bool:
        return self.values.get("track") == RECORD_TRACK


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
    seeds = values.get("seeds")
    if not isinstance(seeds, list) or not all(map(_is_seed, seeds)):
        seeds = []
    logs: list[LoggedRun] = []
    for seed in seeds:
        try:
            logs.append(read_submission_log(path / log_name(seed)))
        except DataError as error:
            problems.append(str(error))
    return Submitted(
        path=path,
        files=files,
        values=values,
        seeds=seeds,
        logs=logs,
        imports=_imports(text_of(path / SCRIPT)),
        problems=problems,
    )


def _is_seed(value: Any) -> bool:
    return type(value) in (int, str) and bool(re.fullmatch(r"-?\w{1,20}", str(value)))


def text_of(path: Path) -> str:
    """The text of a file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _imports(source: str) -> Imports | str:
    try:
        return read_imports(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"{SCRIPT} is not Python: {str(error) or type(error).__name__}"
