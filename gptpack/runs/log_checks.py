"""A `LoggedRun` -> what in it does not fit together."""

import math
import re
from collections.abc import Iterator

from gptpack.runs.logged import (
    CAP_BYTES,
    MOST_SECONDS,
    TEXT_BYTES,
    Contradiction,
    LoggedRun,
    difference,
)

KNOWN_BYTES = {62_021_632: TEXT_BYTES, 40_540_160: 151_078_222, 47_851_520: 151_074_499}
"""Targets of parameter-golf's validation text -> its bytes, as valid logs imply them: for 1,024
pieces, 8,192 pieces, and 8,192 pieces with case operations."""
TOLERANCE = 1e-3
"""Relative difference in bytes of one text that is no contradiction; valid runs differ by 5e-5, as
windows may drop or repeat a tail."""
CODECS = re.compile(r"int\d|zlib|lzma|zstd|brotli")


def contradictions(log: LoggedRun) -> Iterator[Contradiction]:
    """Each thing that does not fit; a score that stands under a wrong label is dropped."""
    yield from _labels(log)
    yield from _sizes(log)
    yield from _bytes(log)
    yield from _times(log)
    for score in log.scores:
        if not math.isfinite(score.nats):
            yield Contradiction(about="loss", says=f"{score.label}: the loss is {score.nats}")
    rise = difference(log.best("plain"), log.best("before"))
    if rise is not None and rise < -5e-4:
        yield Contradiction(
            about="loss",
            says=f"the packed model scores {-rise:.5f} bits per byte better than the unpacked",
        )
    if naive := log.facts.get("naive_layers"):
        yield Contradiction(about="fallback", says=f"{naive} layers were not quantized by GPTQ")


def _labels(log: LoggedRun) -> Iterator[Contradiction]:
    """A plain label on another metric's figures, or the label of another way of packing.

    A line that states its context is taken at its word: on a text of one window both scores agree.
    """
    others = [score for score in log.scores if score.kind in ("sliding", "ttt")]
    words = set(CODECS.findall(log.packing))
    kept = []
    for score in log.scores:
        twin = next((o for o in others if (o.nats, o.bpb) == (score.nats, score.bpb)), None)
        suspect = score.kind == "plain" and score.digits >= 6 and score.context is None
        if suspect and twin is not None:
            yield Contradiction(about="label", says=f"{score.label} is the figure of {twin.label}")
        else:
            kept.append(score)
        if words and (wrong := set(CODECS.findall(score.label)) - words):
            yield Contradiction(
                about="label",
                says=f"{score.label} names {'+'.join(sorted(wrong))}, but the model is packed as "
                f"{log.packing}",
            )
    log.scores = kept


def _sizes(log: LoggedRun) -> Iterator[Contradiction]:
    model, code, total = (log.sizes.get(name) for name in ("model", "code", "total"))
    if model is not None and code is not None and total is not None and model + code != total:
        yield Contradiction(
            about="size",
            says=f"model {model:,} and code {code:,} bytes are {model + code:,}, "
            f"not the stated total of {total:,}",
        )
    counted = max(filter(None, (total, (model or 0) + (code or 0))), default=0)
    if counted > CAP_BYTES:
        yield Contradiction(
            about="size", says=f"{counted:,} bytes are {counted - CAP_BYTES:,} over {CAP_BYTES:,}"
        )


def _bytes(log: LoggedRun) -> Iterator[Contradiction]:
    """Bytes of text that loss, bits per byte and targets imply, against what is known of them."""
    for score in log.scores:
        implied = score.implied_bytes
        if implied and score.bytes and abs(score.bytes / implied - 1) > 1e-6 + score.relative_error:
            yield Contradiction(
                about="bytes",
                says=f"{score.label}: its loss and bits per byte do not belong to "
                f"{score.tokens:,} targets of {score.bytes:,} bytes",
            )
    rated = [(score, score.tokens_per_byte) for score in log.scores]
    exact = max((s.digits for s, rate in rated if rate is not None), default=0)
    rates = [(s, rate) for s, rate in rated if rate is not None and s.digits == exact]
    if not rates:
        return
    tokens = log.facts.get("val_tokens")
    known = KNOWN_BYTES.get(tokens or 0)
    first, base = rates[0]
    for score, rate in rates:
        if known and tokens:
            wanted, source = tokens / known, f"the {known:,} of the contest's text"
        else:
            wanted, source = base, f"what {first.label} implies"
        if abs(rate / wanted - 1) > TOLERANCE + score.relative_error + first.relative_error:
            found = f"{tokens / rate:,.0f} bytes" if tokens else f"{1 / rate:.4f} bytes a token"
            yield Contradiction(
                about="bytes",
                says=f"{score.label}: its figures imply {found}, "
                f"{wanted / rate - 1:+.2%} against {source}",
            )


def _times(log: LoggedRun) -> Iterator[Contradiction]:
    limit, reserved = log.seconds.get("train_limit", 0.0), log.seconds.get("reserved", 0.0)
    step = (log.step_ms or 0.0) / 1000
    # training ends with the step that crosses the limit, whose time not all logs print
    last = step or log.train_seconds / max(log.steps, 1)
    if limit and log.train_seconds > limit - reserved + 2 * last + 0.1:
        yield Contradiction(
            about="time",
            says=f"training took {log.train_seconds:,.1f} s of {limit - reserved:,.1f} s",
        )
    if log.step_ms and log.steps and log.train_seconds:
        worked_out = log.steps * step
        if abs(worked_out / log.train_seconds - 1) > 0.01:
            yield Contradiction(
                about="time",
                says=f"{log.steps:,} steps of {log.step_ms:.2f} ms are {worked_out:,.1f} s, "
                f"not {log.train_seconds:,.1f} s",
            )
    packed = [score.seconds or 0.0 for score in log.passes() if score.kind != "before"]
    spent = max(sum(packed), log.seconds.get("eval_total", 0.0))
    if spent > MOST_SECONDS:
        yield Contradiction(
            about="time", says=f"evaluation took {spent:,.1f} s of {MOST_SECONDS:,.0f} s"
        )
