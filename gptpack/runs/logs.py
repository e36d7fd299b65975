"""The text of a log -> a `LoggedRun`: logs of parameter-golf, modded-nanogpt, and our submissions.

A log is what somebody printed, so nothing in it is taken at its word: totals are added up again,
the bytes of text are worked out from each pair of loss and bits per byte, and what does not fit
together is said (log_checks.py). Lines that match none of the patterns are passed over; of lines
that say the same thing, the last one holds.
"""

import re
from pathlib import Path
from typing import Any

from gptpack.errors import DataError
from gptpack.inputs import read_text
from gptpack.runs.log_checks import contradictions
from gptpack.runs.logged import Kind, LoggedRun, LoggedScore

_NUMBER = r"([0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|nan|inf)"
_SCORE = re.compile(rf"^([A-Za-z][\w +:-]*?) val_loss[:=] ?{_NUMBER} val_bpb[:=] ?{_NUMBER}(.*)$")
_STEP = re.compile(r"^(?:step[: ] ?)?(\d+)/(\d+):? (.*)$")
_PAIR = re.compile(rf"(\w+): ?{_NUMBER}(ms|s|m)?(?= |$)")
_SIZE = re.compile(r"^(Serialized model|Code size|Total submission size)([^:]*): (\d+) bytes")
_FACTS = {
    "parameters": re.compile(r"\bmodel_params: ?(\d+)"),
    "train_shards": re.compile(r"\btrain_shards: ?(\d+)"),
    "val_tokens": re.compile(r"(?:val_loader:.* tokens:|^val_tokens: ?)(\d+)"),
    "seed": re.compile(r"^(?:run:\S+ )?seed: ?(\d+)"),
    "context": re.compile(r"\btrain_seq_len: ?(\d+)"),
    "batch_tokens": re.compile(r"\btrain_batch_tokens: ?(\d+)"),
    "ranks": re.compile(r"(?:\bworld_size: ?|^gptpack:.* ranks:)(\d+)"),
    "peak_memory_mib": re.compile(r"^peak memory(?: allocated| consumption)?: (\d+) MiB"),
    "gptq_layers": re.compile(r"(\d+) GPTQ layers"),
    "naive_layers": re.compile(r"(\d+) naive layers"),
}
_SECONDS = {
    "train_limit": re.compile(rf"\bmax_wallclock_seconds: ?{_NUMBER}()"),
    "reserved": re.compile(rf"\bgptq:reserving {_NUMBER}(ms|s)"),
    "calibrate": re.compile(rf"\bcalibrated .* in {_NUMBER}(s|ms)"),
    "pack": re.compile(rf"^pack_time:{_NUMBER}(ms|s)"),
    "eval_total": re.compile(
        rf"^(?:total_eval_time: ?|eval_seconds .*\ball:){_NUMBER}(ms|s)(?!\S)"
    ),
}
_WORDS = {
    "artifact_sha256": re.compile(r"^artifact:\S+ sha256:([0-9a-f]{64})"),
    "adaptation": re.compile(r"^adaptation:(\S+)"),
    "torch": re.compile(r"^gptpack:\S+ python:\S+ torch:(\S+)"),
    "gptpack": re.compile(r"^gptpack:(\S+) python:"),
    "device": re.compile(r"^gptpack:.* device:(.+) ranks:\d+$"),
}
_END = re.compile(
    rf"^(?:stopping_early:|training_done)(?=.* train_time: ?{_NUMBER}(ms|s))"
    r"(?=.* step: ?(\d+)(?:/(\d+))?)"
)
_UNITS = {"ms": (1, 1000), "s": (1, 1), "m": (60, 1), "": (1, 1), None: (1, 1)}
MOST_DIGITS = 18
"""Digits of a count; one with more is passed over."""
LONGEST_SECONDS = 1e12
"""Bound of a time; a longer one is passed over."""


def read_log(path: str | Path) -> LoggedRun:
    """Parse the log at `path` and look for contradictions.

    Raises:
        DataError: it cannot be read, or holds neither a step nor a loss.
    """
    try:
        text = read_text(path, "replace")
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from error
    return parse_log(text, str(path))


def parse_log(text: str, path: str = "log") -> LoggedRun:
    """Parse a log and look for contradictions; `path` is its name in errors.

    Raises:
        DataError: it holds neither a step nor a loss.
    """
    log = LoggedRun(path)
    for line in map(str.strip, text.splitlines()):
        if not (_take_step(log, line) or _take_score(log, line) or _take_size(log, line)):
            _take_facts(log, line)
    if "gptpack" in log.words:
        # the script that `gptpack submission` ships prints no other model than the packed one.
        for name, packed in (("checkpoint", "model"), ("checkpoint_total", "total")):
            if name in log.sizes:
                log.sizes[packed] = log.sizes.pop(name)
    if not log.steps and not log.scores:
        raise DataError(f"{path}: no training step and no loss; not a log of the reference's kind")
    log.contradictions = list(contradictions(log))
    return log


def _take_step(log: LoggedRun, line: str) -> bool:
    """``step:500/20000 train_loss:2.39 train_time:43567ms step_avg:87.13ms`` and its relatives."""
    match = _STEP.match(line)
    if not match:
        return False
    pairs = {name: (value, unit) for name, value, unit in _PAIR.findall(match[3])}
    if not pairs.keys() & {"train_loss", "val_loss"}:
        return False
    steps, planned = _count(match[1]), _count(match[2])
    if steps is None or planned is None:
        return False
    log.steps, log.planned_steps = steps, planned
    if "train_time" in pairs:
        log.train_seconds = _duration(*pairs["train_time"]) or 0.0
    if "step_avg" in pairs:
        seconds = _duration(*pairs["step_avg"])
        log.step_ms = None if seconds is None else 1000 * seconds
    if "val_loss" in pairs:
        loss, bpb = pairs["val_loss"][0], pairs.get("val_bpb", (None,))[0]
        log.scores.append(_score(f"step {log.steps}", "before", loss, bpb))
    return True


def _take_score(log: LoggedRun, line: str) -> bool:
    """``final_int6_roundtrip_exact val_loss:1.91705823 val_bpb:1.13538987`` and its relatives."""
    match = _SCORE.match(line)
    if not match:
        return False
    label, loss, bpb, rest = match.groups()
    pairs = {name: (value, unit) for name, value, unit in _PAIR.findall(rest.replace("=", ":"))}
    time = pairs.get("eval_time") or pairs.get("elapsed")
    counts = {
        name: _whole(pairs[name][0]) if name in pairs else None
        for name in ("context", "stride", "tokens", "bytes")
    }
    log.scores.append(
        _score(
            label,
            _kind(label.lower()),
            loss,
            bpb,
            seconds=_duration(*time) if time else None,
            **counts,
        )
    )
    return True


def _kind(label: str) -> Kind:
    if "ttt" in label:
        return "ttt"
    if "ema" in label or "pre-quant" in label or "prequant" in label:
        return "before"
    return "sliding" if "sliding" in label else "plain"


def _score(label: str, kind: Kind, loss: str, bpb: str | None, **more: Any) -> LoggedScore:
    digits = min(len(text.partition(".")[2]) for text in (loss, bpb or loss))
    return LoggedScore(
        label=label, kind=kind, nats=float(loss), bpb=float(bpb or "nan"), digits=digits, **more
    )


def _take_size(log: LoggedRun, line: str) -> bool:
    """``Serialized model int6+lzma: 15875980 bytes``; without a packing it is the checkpoint."""
    match = _SIZE.match(line)
    if not match:
        return False
    what, how, size = match[1], match[2].strip(), _count(match[3])
    if size is None:
        return False
    if what == "Code size":
        # where both are printed, the compressed code is what counts and comes second.
        log.sizes["code"] = size
    elif what == "Serialized model":
        log.sizes["model" if how else "checkpoint"] = size
        log.packing = how or log.packing
    elif how or "model" not in log.sizes:
        log.sizes["total" if how else "checkpoint_total"] = size
    return True


def _take_facts(log: LoggedRun, line: str) -> None:
    for name, pattern in _FACTS.items():
        if (match := pattern.search(line)) and (count := _count(match[1])) is not None:
            log.facts[name] = count
    for name, pattern in _SECONDS.items():
        if (match := pattern.search(line)) and (seconds := _duration(*match.groups())) is not None:
            log.seconds[name] = seconds
    for name, pattern in _WORDS.items():
        if match := pattern.search(line):
            log.words[name] = match[1]
    if match := _END.match(line):
        steps, planned = _count(match[3]), _count(match[4] or str(log.planned_steps))
        if steps is not None and planned is not None:
            log.train_seconds = _duration(match[1], match[2]) or 0.0
            log.steps, log.planned_steps = steps, planned


def _count(digits: str) -> int | None:
    """A count, or None where it has too many digits."""
    return int(digits) if len(digits) <= MOST_DIGITS else None


def _whole(number: str) -> int | None:
    """A count that may be written with decimals, or None where it is too large."""
    value = float(number)
    return int(value) if value < 10**MOST_DIGITS else None


def _duration(number: str, unit: str | None) -> float | None:
    """Seconds, or None where they are more than any run takes."""
    times, over = _UNITS[unit]
    seconds = float(number) * times / over
    return seconds if seconds < LONGEST_SECONDS else None
