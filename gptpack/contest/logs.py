"""The log of one run of a submission: what training and packing left of it -> lines, and back.

The lines are the contest's (``step:N/M train_loss:... train_time:...ms``, ``final_..._exact
val_loss:... val_bpb:...``), so that `gptpack.runs.logs` reads them like anybody's; behind them
stands what the shipped script printed. Every figure of a submission comes from such a log.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptpack.errors import DataError
from gptpack.inputs import read_text
from gptpack.runs.logged import LoggedRun, LoggedScore
from gptpack.runs.logs import parse_log

MOST_STEPS = 500
"""Lines of a log for the steps of a run; evenly thinned, the last step included."""
NEEDED = {
    "facts": ("seed", "parameters", "ranks"),
    "sizes": ("model", "code", "total"),
    "seconds": ("eval_total",),
    "words": ("adaptation", "artifact_sha256", "torch", "gptpack", "device"),
}
"""What every log of a submission says, by the field of `LoggedRun`."""
LARGEST_FIGURE = 1e18
"""Bound of losses and bits per byte, so that sums of them stay within floats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a run left, as far as a submission tells it."""

    name: str
    seed: int
    artifact: Path
    file_bytes: int
    codecs: frozenset[str]
    """Codecs of the artifact's sections."""
    metrics: Sequence[Mapping[str, Any]] = ()
    """Lines of metrics.jsonl."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    train_seconds: float | None = None
    pack: Mapping[str, Any] = field(default_factory=dict)
    """What the artifact's header says of packing."""
    pack_seconds: float | None = None
    """Seconds of calibration, quantization and coding."""


def training_lines(run: RunRecord) -> Iterator[str]:
    """The part of a log that tells of training and packing."""
    yield f"run:{run.name.replace(' ', '_')} seed:{run.seed}"
    if run.recipe:
        yield f"recipe {json.dumps(run.recipe, sort_keys=True)}"
    total = int(run.recipe.get("training", {}).get("steps", 0)) or len(run.metrics)
    stride = max(1, -(-len(run.metrics) // MOST_STEPS))
    last = len(run.metrics) - 1
    # metrics have the seconds at which a step begins, a log those at which it ends
    began = [entry.get("seconds", 0.0) for entry in run.metrics]
    ends = [*began[1:], *(began[-1:] if run.train_seconds is None else [run.train_seconds])]
    for index, entry in enumerate(run.metrics):
        if index % stride and index != last:
            continue
        spent = 1000 * ends[index]
        yield (
            f"step:{entry['step']}/{total} train_loss:{entry.get('loss_nats', 0.0):.6f} "
            f"train_time:{spent:.0f}ms step_avg:{spent / max(entry['step'], 1):.2f}ms"
        )
    if run.metrics and run.train_seconds is not None:
        step = run.metrics[last]["step"]
        yield f"training_done step:{step} train_time:{1000 * run.train_seconds:.0f}ms"
    if run.pack:
        yield f"pack {json.dumps(run.pack, sort_keys=True)}"
    if run.pack_seconds is not None:
        yield f"pack_time:{1000 * run.pack_seconds:.0f}ms"


def submission_log(text: str, where: str) -> LoggedRun:
    """Read the log of a submission's run; it has all of `NEEDED`, and scores that say all.

    Raises:
        DataError: something of that is missing; names it.
    """
    log = parse_log(text, where)
    missing = [
        name for part, names in NEEDED.items() for name in names if name not in getattr(log, part)
    ]
    for kind in dict.fromkeys(("plain", log.decisive)):
        score = log.best(kind)
        if score is None or not _complete(score):
            missing.append(f"all of final_{kind}_exact")
    if missing:
        raise DataError(f"{where}: no line says {', '.join(missing)}; make the submission again")
    return log


def read_submission_log(path: Path) -> LoggedRun:
    """`submission_log` of a file."""
    try:
        return submission_log(read_text(path), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the log: {error}") from error


def _complete(score: LoggedScore) -> bool:
    """Whether a score says all that our script prints of one, in figures that can be summed."""
    counts = (score.tokens, score.bytes, score.context, score.stride, score.seconds)
    figures = (score.nats, score.bpb)
    return None not in counts and all(0 <= figure < LARGEST_FIGURE for figure in figures)


def plain_score(log: LoggedRun) -> LoggedScore:
    """The plain score of a log that `submission_log` has read."""
    score = log.best("plain")
    assert score is not None
    return score


def decisive_score(log: LoggedRun) -> LoggedScore:
    """The score that counts in a log that `submission_log` has read."""
    score = log.best(log.decisive)
    assert score is not None
    return score
