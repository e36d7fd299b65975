"""Figures of several runs, out of whatever form they are kept in."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gptpack.errors import ConfigError, DataError
from gptpack.runs.logs import parse_log
from gptpack.runs.stats import Run

METRICS = {"bpb": "bpb", "nats": "nats_per_token"}
"""Of the last figure that a run asked for: a sliding window, if there is one, and so on."""


def read_runs(sources: Sequence[str], metric: str = "bpb") -> list[Run]:
    """One run per number, result of ``gptpack eval --json``, or log; files may list numbers.

    Args:
        metric: ``bpb`` or ``nats`` of the run's last figure, ``seconds`` of training (or of the
            whole evaluation), or a dotted path into the JSON such as ``plain.bpb``. Lists of
            numbers are taken as they are.

    Raises:
        DataError: a file cannot be read or holds nothing of the kind.
        ConfigError: a run has no such figure, or the runs measured different things.
    """
    runs: list[Run] = []
    kinds: dict[str, str] = {}
    seen: set[Path] = set()
    for source in sources:
        path = Path(source)
        if path.is_file() and path.resolve() in seen:
            raise ConfigError(f"{source} is given twice; a run counts once")
        seen.add(path.resolve())
        for run, kind in _read(source, metric):
            runs.append(run)
            if kind:
                kinds.setdefault(kind, run.name)
    if len(kinds) > 1:
        (one, here), (other, there) = list(kinds.items())[:2]
        raise ConfigError(
            f"the runs measured different things: {here} '{one}', {there} '{other}'; "
            "choose one figure with --metric"
        )
    return runs


def _read(source: str, metric: str) -> Iterator[tuple[Run, str]]:
    """Runs of one argument, each with what it measured, in words."""
    path = Path(source)
    if not path.exists():
        try:
            yield Run(name=source, value=float(source)), ""
            return
        except ValueError as error:
            raise DataError(f"{source}: no such file, and no number") from error
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{source}: cannot read: {error.strerror or error}") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = _numbers(text)
        if content is None:
            content = parse_log(text, source).to_dict()
    if isinstance(content, dict):
        yield _run(source, content, metric)
        return
    for number, entry in enumerate(content if isinstance(content, list) else [content], 1):
        name = f"{source}:{number}"
        if isinstance(entry, dict):
            yield _run(name, entry, metric)
        elif isinstance(entry, int | float) and not isinstance(entry, bool):
            yield Run(name=name, value=_figure(entry)), ""
        else:
            raise DataError(f"{name}: neither a number nor a result")


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(word) for word in text.replace(",", " ").split()] or None
    except ValueError:
        return None


def _run(name: str, result: dict[str, Any], metric: str) -> tuple[Run, str]:
    path, kind = _path_of(result, metric)
    value: Any = result
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"{name}: no figure '{metric}' ({'.'.join(path)})")
    row = result.get(path[0]) if len(path) > 1 else None
    return Run(name=name, value=_figure(value), tokens_per_byte=_rate(row)), kind


def _path_of(result: dict[str, Any], metric: str) -> tuple[list[str], str]:
    """Where the figure stands in a result, and what it is, in words."""
    if metric == "seconds":
        seconds = result.get("seconds")
        known = seconds if isinstance(seconds, dict) else {}
        return ["seconds", "train" if known.get("train") else "total"], ""
    if metric not in METRICS:
        return metric.split("."), ""
    last = result.get("decisive", "plain")
    path = ["ttt", last] if str(last).startswith("ttt") else [str(last)]
    row: Any = result
    for key in path:
        row = row.get(key) if isinstance(row, dict) else None
    kind = row.get("metric", "") if isinstance(row, dict) else ""
    return [*path, METRICS[metric]], str(kind)


def _figure(value: float) -> float:
    """`value` as a float; infinite where it is an integer beyond those."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _rate(row: Any) -> float | None:
    """Tokens per byte of a row of a result."""
    if not isinstance(row, dict):
        return None
    nats, bpb = row.get("nats_per_token"), row.get("bpb")
    if not isinstance(nats, float) or not isinstance(bpb, float) or not nats:
        return None
    rate = bpb * math.log(2) / nats
    return rate if 0 < rate < math.inf else None
