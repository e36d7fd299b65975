"""Files or numbers that a person names -> one figure for each run, and thresholds in their unit."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptpack.errors import ConfigError, DataError
from gptpack.inputs import read_text
from gptpack.runs.logs import parse_log

METRICS = {"bpb": "bpb", "nats": "nats_per_token"}
"""Metric -> its key in a row of the result; the row is that of the run's decisive score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigure:
    """One run's figure."""

    name: str
    value: float
    tokens_per_byte: float | None = None
    """Turns nats per token into bits per byte: ``bpb = nats * tokens_per_byte / ln 2``."""


def read_runs(sources: Sequence[str], metric: str = "bpb") -> list[RunFigure]:
    """The figure of each run in `sources`, in order.

    Args:
        sources: numbers, files with a list of numbers, results of ``gptpack eval --json`` or
            ``gptpack train --json``, or logs.
        metric: ``bpb`` or ``nats`` of the run's decisive score, ``seconds`` of training (or of the
            whole evaluation), or a dotted path into the JSON such as ``plain.bpb``. Lists of
            numbers are taken as they are.

    Raises:
        DataError: a file cannot be read or holds nothing of the kind.
        ConfigError: a run has no such figure, or the runs measured different things.
    """
    runs: list[RunFigure] = []
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


def read_nearest(sources: Sequence[str], threshold: float) -> tuple[str, list[RunFigure]]:
    """The metric that a threshold is one of, and the figure of each run.

    That is ``nats`` where runs say them and their median is nearer to `threshold`, by ratio, than
    that of bits per byte: the two are a factor of two to three apart. Raises as `read_runs` does.
    """
    found: dict[str, list[RunFigure]] = {}
    for metric in METRICS:
        try:
            found[metric] = read_runs(sources, metric)
        except ConfigError:
            if metric == "nats" and not found:
                return "bpb", read_runs(sources, "bpb")  # which says what is missing

    def distance(metric: str) -> float:
        middle = statistics.median(run.value for run in found[metric])
        return abs(math.log(middle / threshold)) if middle > 0 and threshold > 0 else 0.0

    best = min(found, key=distance)
    return best, found[best]


def _read(source: str, metric: str) -> Iterator[tuple[RunFigure, str]]:
    """The runs of one argument, each with what it measured, in words."""
    path = Path(source)
    if not path.exists():
        try:
            yield RunFigure(name=source, value=float(source)), ""
            return
        except ValueError as error:
            raise DataError(f"{source}: no such file, and no number") from error
    try:
        text = read_text(path, "replace")
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
            yield RunFigure(name=name, value=_figure(entry)), ""
        else:
            raise DataError(f"{name}: neither a number nor a result")


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(word) for word in text.replace(",", " ").split()] or None
    except ValueError:
        return None


def _run(name: str, result: dict[str, Any], metric: str) -> tuple[RunFigure, str]:
    path, kind = _path_of(result, metric)
    row: Any = None
    value: Any = result
    for key in path:
        row, value = value, value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"{name}: no figure '{metric}' ({'.'.join(path)})")
    return RunFigure(name=name, value=_figure(value), tokens_per_byte=_rate(row)), kind


def _path_of(result: dict[str, Any], metric: str) -> tuple[list[str], str]:
    """The path of the figure in a result, and what it measures, in words."""
    if metric == "seconds":
        seconds = result.get("seconds")
        if not isinstance(seconds, dict):
            return ["seconds"], ""
        return ["seconds", "train" if seconds.get("train") else "total"], ""
    if metric not in METRICS:
        return metric.split("."), ""
    # a run of training holds the evaluation that ended it
    score, within = result, []
    if isinstance(result.get("validation"), dict):
        score, within = result["validation"], ["validation"]
    last = score.get("decisive", "plain")
    path = [*within, *(["ttt", last] if str(last).startswith("ttt") else [str(last)])]
    row: Any = result
    for key in path:
        row = row.get(key) if isinstance(row, dict) else None
    kind = row.get("metric", "") if isinstance(row, dict) else ""
    return [*path, METRICS[metric]], str(kind)


def _figure(value: float) -> float:
    """`value` as a float; an integer beyond floats becomes infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _rate(row: Any) -> float | None:
    """Tokens per byte of the text behind a row of a result, if it has both figures."""
    if not isinstance(row, dict):
        return None
    nats, bpb = row.get("nats_per_token"), row.get("bpb")
    if not isinstance(nats, float) or not isinstance(bpb, float) or not nats:
        return None
    rate = bpb * math.log(2) / nats
    return rate if 0 < rate < math.inf else None


def in_nats(metric: str) -> bool:
    """Whether figures of a metric are nats per token."""
    return metric.endswith(("nats", "nats_per_token"))


def threshold_below(
    record: float, margin: float, *, unit: str, metric: str, runs: Sequence[RunFigure]
) -> float:
    """The threshold that is `margin` below `record`.

    Args:
        unit: ``bpb`` or ``nats`` for the margin, or ``same`` as the figures of `metric`.

    Raises:
        ConfigError: the margin cannot be turned into the unit of the figures.
    """
    of_bpb, of_nats = metric.endswith("bpb"), in_nats(metric)
    if (unit == "bpb" and not of_bpb) or (unit == "nats" and not (of_bpb or of_nats)):
        raise ConfigError(
            f"--unit {unit}: a margin in {unit} cannot be taken from a threshold of {metric}; give "
            "it in the unit of the figures"
        )
    return record - (margin_in_bpb(margin, runs) if unit == "nats" and of_bpb else margin)


def margin_in_bpb(margin_nats: float, runs: Sequence[RunFigure]) -> float:
    """A margin in nats per token, in bits per byte of the runs' text.

    Raises:
        ConfigError: a run does not say its tokens per byte, or they differ.
    """
    rates = [run.tokens_per_byte for run in runs]
    if None in rates:
        name = runs[rates.index(None)].name
        raise ConfigError(
            f"{name} does not say how many tokens a byte has, which turns nats into bits per "
            "byte; give --tokens-per-byte, or the margin in bpb"
        )
    known = [rate for rate in rates if rate is not None]
    # logs print eight digits of loss and of bits per byte
    if max(known) - min(known) > 1e-6 * max(known):
        raise ConfigError(
            f"the runs have {min(known):.6f} to {max(known):.6f} tokens per byte; "
            "they were not scored on one text"
        )
    return margin_nats * statistics.fmean(known) / math.log(2)
