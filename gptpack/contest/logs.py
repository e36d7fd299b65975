"""The log of one run: training, packing, and what the shipped script printed. Written and read.

Lines are the contest's (``step:N/M train_loss:... train_time:...ms``, ``final_..._exact
val_loss:... val_bpb:...``), so that its readers work on them; every figure of a submission comes
from here.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptpack.errors import DataError

MOST_STEPS = 500
"""Lines of a log for the steps of a run; evenly thinned, the last one included."""

COUNT = r"[0-9]{1,18}"
"""Further digits make a line one that says nothing."""
NUMBER = rf"{COUNT}(?:\.[0-9]{{1,18}})?"
FIELDS = {
    "seed": rf"^run:\S+ seed:({COUNT})\b",
    "steps": rf"^training_done step:({COUNT})\b",
    "train_seconds": rf"^training_done step:\d+ train_time:({COUNT})ms",
    "pack_seconds": rf"^pack_time:({COUNT})ms",
    "model_bytes": rf"^Serialized model: ({COUNT}) bytes",
    "code_bytes": rf"^Code size: ({COUNT}) bytes",
    "total_bytes": rf"^Total submission size: ({COUNT}) bytes",
    "parameters": rf"^model_params:({COUNT})\b",
    "eval_seconds": rf"^eval_seconds .*\ball:({NUMBER})s",
    "artifact_sha256": r"^artifact:\S+ sha256:([0-9a-f]{64})",
    "adaptation": r"^adaptation:(\S+)",
    "torch": r"^gptpack:\S+ python:\S+ torch:(\S+)",
    "gptpack": r"^gptpack:(\S+)",
    "device": r"^gptpack:.* device:(.+) ranks:\d+$",
    "ranks": rf"^gptpack:.* ranks:({COUNT})$",
}
SCORE = re.compile(
    rf"^final_(?P<name>\w+)_exact val_loss:(?P<loss>{NUMBER}) val_bpb:(?P<bpb>{NUMBER}) "
    rf"tokens:(?P<tokens>{COUNT}) bytes:(?P<bytes>{COUNT}) context:(?P<context>{COUNT}) "
    rf"stride:(?P<stride>{COUNT}) eval_time:(?P<ms>{COUNT})ms$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedScore:
    """A ``final_..._exact`` line."""

    loss: float
    """Nats per token."""
    bpb: float
    tokens: int
    bytes: int
    context: int
    stride: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLog:
    """What a log says; None where it does not."""

    seed: int
    scores: Mapping[str, LoggedScore]
    adaptation: str
    artifact_sha256: str
    model_bytes: int
    code_bytes: int
    total_bytes: int
    parameters: int
    eval_seconds: float
    torch: str
    gptpack: str
    device: str
    ranks: int
    steps: int | None = None
    train_seconds: float | None = None
    pack_seconds: float | None = None
    """Calibration, quantization and coding."""

    @property
    def score(self) -> LoggedScore:
        """The figure that counts: of the sliding window if there is one."""
        return self.scores.get("sliding") or self.scores["plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a training run left, as far as a log tells it."""

    name: str
    seed: int
    metrics: Sequence[Mapping[str, Any]] = ()
    """Lines of metrics.jsonl."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    train_seconds: float | None = None
    pack: Mapping[str, Any] = field(default_factory=dict)
    """What the artifact's header says of packing."""
    pack_seconds: float | None = None


def training_lines(run: RunRecord) -> Iterator[str]:
    """The part of a log that tells of training and packing."""
    yield f"run:{run.name.replace(' ', '_')} seed:{run.seed}"
    if run.recipe:
        yield f"recipe {json.dumps(run.recipe, sort_keys=True)}"
    total = int(run.recipe.get("training", {}).get("steps", 0)) or len(run.metrics)
    stride = max(1, -(-len(run.metrics) // MOST_STEPS))
    last = len(run.metrics) - 1
    for index, entry in enumerate(run.metrics):
        if index % stride and index != last:
            continue
        spent = 1000 * entry.get("seconds", 0.0)
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


def parse_log(text: str, where: str) -> RunLog:
    """Read a log back.

    Raises:
        DataError: a line that every log has is missing; names it.
    """
    values: dict[str, Any] = {}
    for name, pattern in FIELDS.items():
        found = re.search(pattern, text, re.MULTILINE)
        values[name] = found[1] if found else None
    optional = ("steps", "train_seconds", "pack_seconds")
    if missing := [name for name, v in values.items() if v is None and name not in optional]:
        raise DataError(f"{where}: no line says {', '.join(missing)}; make the submission again")
    words = ("adaptation", "artifact_sha256", "torch", "gptpack", "device")
    for name, value in values.items():
        if value is None or name in words:
            continue
        values[name] = float(value) if name.endswith("seconds") else int(value)
    for name in ("train_seconds", "pack_seconds"):
        if values[name] is not None:
            values[name] /= 1000
    scores = {
        found["name"]: LoggedScore(
            loss=float(found["loss"]),
            bpb=float(found["bpb"]),
            tokens=int(found["tokens"]),
            bytes=int(found["bytes"]),
            context=int(found["context"]),
            stride=int(found["stride"]),
            seconds=int(found["ms"]) / 1000,
        )
        for found in SCORE.finditer(text)
    }
    if "plain" not in scores:
        raise DataError(f"{where}: no line final_plain_exact; make the submission again")
    return RunLog(scores=scores, **values)


def read_log(path: Path) -> RunLog:
    """`parse_log` of a file."""
    try:
        return parse_log(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the log: {error}") from error
