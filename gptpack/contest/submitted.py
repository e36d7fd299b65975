"""A submission's folder -> `Submitted`, all that the rules look at. Nothing of it is run."""

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptpack.contest.folder import FIGURES, SCRIPT, UNCOUNTED, log_name
from gptpack.contest.imports import Imports, read_imports
from gptpack.contest.logs import read_submission_log
from gptpack.errors import ConfigError, DataError
from gptpack.inputs import read_text
from gptpack.runs.logged import LoggedRun

RECORD_TRACK = "10min_16mb"
"""The track where times, seeds and significance are rules; on others they are only reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A submission as it lies on the disk."""

    path: Path
    files: Mapping[str, int]
    """Bytes of each regular file, by its path below the folder."""
    strange: Sequence[str]
    """Links, pipes and the like, whose bytes lie elsewhere."""
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
    files, strange = _listed(path)
    problems: list[str] = []
    values: dict[str, Any] = {}
    try:
        found = json.loads(read_text(path / FIGURES))
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
        strange=strange,
        values=values,
        seeds=seeds,
        logs=logs,
        imports=_imports(text_of(path / SCRIPT)),
        problems=problems,
    )


def _listed(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Bytes of each regular file below `folder`, and what else there is; no link is followed."""
    files: dict[str, int] = {}
    strange: list[str] = []
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            item = Path(place, name)
            status = item.lstat()
            shown = item.relative_to(folder).as_posix()
            if stat.S_ISREG(status.st_mode):
                files[shown] = status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                strange.append(shown)
    return dict(sorted(files.items())), sorted(strange)


def _is_seed(value: Any) -> bool:
    return type(value) in (int, str) and bool(re.fullmatch(r"-?\w{1,20}", str(value)))


def text_of(path: Path) -> str:
    """The text of a file; empty where it cannot be read."""
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError):
        return ""


def _imports(source: str) -> Imports | str:
    try:
        return read_imports(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"{SCRIPT} is not Python: {str(error) or type(error).__name__}"
