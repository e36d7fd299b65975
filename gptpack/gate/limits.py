"""The table ``[check]`` of gptpack.toml -> the limits of each packed file.

Keys of ``[check]`` are defaults for each ``[[check.artifact]]``; paths are relative to the file's
folder and may hold wildcards. Unknown keys are errors.
"""

import dataclasses
import glob
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptpack.errors import ConfigError
from gptpack.inputs import read_text
from gptpack.values import from_dict, parse_size

CONFIG = "gptpack.toml"
NO_DISKS = ("dev", "proc", "sys")
"""Folders at the top that hold no files, and may hold no end of names."""
SAMPLE_TOKENS = 65536
"""Targets that a model of 27 M parameters scores in two minutes on two busy cores (docs/log.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one file, or of each that a wildcard finds; what is not set is not checked."""

    path: str
    name: str = ""
    """Name in reports, and in the baseline to compare with; the path by default."""
    budget: str = ""
    """Most bytes of the file and its code, such as ``16MB``; by default the budget it names."""
    code: tuple[str, ...] = ()
    """Files whose bytes count into the budget."""
    max_bpb: float = math.inf
    """Most bits per byte: on the sample where one is scored, else as the packer recorded."""
    max_bpb_rise: float = math.inf
    """Most bits per byte above the baseline."""
    max_bytes_rise: str = ""
    """Most bytes (file and code) above the baseline, such as ``10KB``."""
    data: str = ""
    """Folder of validation shards to measure the bits per byte on."""
    text: tuple[str, ...] = ()
    """Text files to measure on instead, of a model that brings its tokenizer; beside `data`, the
    one that its tokens were made from."""
    tokenizer: str = ""
    """SentencePiece model; by default the one in `data`."""
    eval_tokens: int = SAMPLE_TOKENS
    """Targets of the sample; 0 scores all."""
    stride: int = 0
    """Tokens by which a sliding window moves; 0 scores whole contexts."""
    message: str = ""
    """Words to add to each failure, such as whom to ask."""

    def __post_init__(self) -> None:
        where = f"check of '{self.path}'"
        if not self.path:
            raise ConfigError("check: an artifact without a path")
        for name in ("eval_tokens", "stride"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{where}: {name}={getattr(self, name)} must not be negative")
        if not self.max_bpb > 0:
            raise ConfigError(f"{where}: max_bpb={self.max_bpb} must be positive")
        # a loss that gets smaller is no rise, so a negative limit asks for progress
        if not self.max_bpb_rise > -math.inf:
            raise ConfigError(f"{where}: max_bpb_rise={self.max_bpb_rise} must be a finite number")
        for name in ("budget", "max_bytes_rise"):
            if getattr(self, name):
                parse_size(getattr(self, name))

    @property
    def label(self) -> str:
        """What reports call the file."""
        return self.name or self.path

    @property
    def sample(self) -> str:
        """Where the text is that bits per byte are measured on; empty where none is named."""
        return self.data or ", ".join(self.text)


DEFAULTS = {field.name for field in dataclasses.fields(Limits)} - {"path", "name"}
"""Settings that ``[check]`` may make for all of its files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckConfig:
    """The files of one check, and what they are compared with."""

    artifacts: tuple[Limits, ...]
    folder: Path = Path()
    """Folder in which relative paths begin."""
    baseline: str = ""
    """Report of an earlier check, or a packed file; empty compares with nothing."""

    def __post_init__(self) -> None:
        if not self.artifacts:
            raise ConfigError("check: no files; name at least one")
        # a baseline is looked up by the name
        labels = [limits.label for limits in self.artifacts]
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise ConfigError(f"check: two artifacts are called '{twice}'; give each a name")


def load_check(path: Path) -> CheckConfig:
    """Read the table ``[check]`` of a TOML file.

    Raises:
        ConfigError: unreadable, no such table, no artifacts, unknown keys, values of a wrong type,
            or two artifacts of one name.
    """
    import tomllib

    try:
        values = tomllib.loads(read_text(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read it: {error.strerror}; name the artifacts, or write the limits "
            f"into {CONFIG}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    table = values.get("check")
    if not isinstance(table, dict) or not isinstance(table.get("artifact"), list):
        raise ConfigError(f"{path}: needs a table [check] with at least one [[check.artifact]]")
    known = {*DEFAULTS, "baseline", "artifact"}
    if unknown := sorted(table.keys() - known):
        raise ConfigError(
            f"{path}: unknown setting 'check.{unknown[0]}'; there are: {', '.join(sorted(known))}"
        )
    defaults = {key: value for key, value in table.items() if key in DEFAULTS}
    artifacts = [_limits(path, defaults, row) for row in table["artifact"]]
    baseline = table.get("baseline", "")
    if not artifacts or not isinstance(baseline, str):
        raise ConfigError(f"{path}: needs [[check.artifact]] tables, and a file name as baseline")
    return CheckConfig(artifacts=tuple(artifacts), folder=path.parent, baseline=baseline)


def _limits(path: Path, defaults: Mapping[str, Any], row: Any) -> Limits:
    if not isinstance(row, dict) or "path" not in row:
        raise ConfigError(f"{path}: each [[check.artifact]] needs a path")
    if row.keys() & {"data", "text"}:  # text of its own takes the place of all that others have
        defaults = {key: defaults[key] for key in defaults.keys() - {"data", "text"}}
    try:
        return from_dict(Limits, {**defaults, **row}, "check.artifact")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def expanded(config: CheckConfig) -> list[Limits]:
    """One entry for each file that a wildcard finds; a path that finds none stays as it is."""
    found = []
    for limits in config.artifacts:
        paths = files(config.folder, limits.path) or [limits.path]
        for path in paths:
            name = limits.name and (f"{limits.name}: {path}" if len(paths) > 1 else limits.name)
            found.append(dataclasses.replace(limits, path=path, name=name))
    return found


def files(folder: Path, pattern: str) -> list[str]:
    """Paths below `folder` that `pattern` names, sorted; the name of a file stands for itself.

    ``**`` follows no links, and hidden files are found only by a pattern that names the dot.

    Raises:
        ConfigError: the pattern would walk through all of the machine, or what is no disk.
    """
    if (folder / pattern).exists():
        return [pattern]
    if "\0" in pattern:
        return []
    parts = Path(pattern).parts
    base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    rest = parts[len(base.parts) :]
    root = (folder / base).resolve()
    if not rest or not root.is_dir():
        return []
    if root == root.parent or root.parts[1] in NO_DISKS:
        raise ConfigError(f"'{pattern}' would walk through {root}; name a folder of files first")
    shown = any(part.startswith(".") for part in rest)
    found = root.glob(str(Path(*rest, "*") if rest[-1] == "**" else Path(*rest)))
    names = [path.relative_to(root) for path in found if path.is_file()]
    return sorted(
        str(base / name)
        for name in names
        if shown or not any(part.startswith(".") for part in name.parts)
    )
