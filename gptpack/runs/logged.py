"""What the log of one run says, and the same in the shape of the JSON of `gptpack eval`."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

CAP_BYTES = 16_000_000
"""Parameter-golf's limit (decimal) for code and model together."""
MOST_SECONDS = 600.0
"""Parameter-golf's limit for training with packing, and again for evaluation."""
TEXT_BYTES = 151_080_363
"""Bytes of parameter-golf's validation text with its 1,024 pieces; other tokenizers imply up to
5e-5 less."""

SAME_SECONDS = 0.02
"""Relative difference of the times that two lines about one pass state."""

NEIGHBOURS = 32
"""Passes of about the same time that a line is compared with."""

Kind = Literal["before", "plain", "sliding", "ttt"]
"""What was scored: the model before packing, or the packed one, plain, with a sliding window, or
with test-time training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedScore:
    """A loss and the bits per byte beside it."""

    label: str
    """As it was printed."""
    kind: Kind
    nats: float
    bpb: float
    """Bits per byte; NaN in logs that know no bytes."""
    seconds: float | None = None
    stride: int | None = None
    context: int | None = None
    tokens: int | None = None
    bytes: int | None = None
    """Bytes of the `tokens` scored targets; both stand in logs of `gptpack submission` only."""
    digits: int = 0
    """Decimals that were printed."""

    @property
    def tokens_per_byte(self) -> float | None:
        """The text's tokens per byte, as loss and bits per byte imply them."""
        if not (0 < self.nats < math.inf and math.isfinite(self.bpb)):
            return None
        rate = self.bpb * math.log(2) / self.nats
        # beyond these, what divides by it is beyond floats
        return rate if 1e-100 < rate < 1e100 else None

    @property
    def implied_bytes(self) -> float | None:
        """Bytes of the scored targets, as loss and bits per byte imply them."""
        rate = self.tokens_per_byte
        return self.tokens / rate if self.tokens and rate else None

    def same_pass(self, other: "LoggedScore") -> bool:
        """Whether both lines, which state their seconds, tell of one pass over the text."""
        if self.seconds is None or other.seconds is None:
            return False
        if None not in (self.stride, other.stride) and self.stride != other.stride:
            return False
        apart = 10.0 ** -min(self.digits, other.digits)
        alike = abs(self.nats - other.nats) <= apart and (
            abs(self.bpb - other.bpb) <= apart or math.isnan(self.bpb + other.bpb)
        )
        return alike and math.isclose(
            self.seconds, other.seconds, rel_tol=SAME_SECONDS, abs_tol=1.0
        )

    @property
    def relative_error(self) -> float:
        """How far rounding may have moved the ratio of loss and bits per byte."""
        half = 0.5 * 10.0**-self.digits
        return half / self.nats + half / self.bpb if self.nats and self.bpb else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """Something in a log that does not fit the rest."""

    about: Literal["size", "bytes", "label", "time", "loss", "fallback"]
    says: str


@dataclass(slots=True)
class LoggedRun:
    """What a log says of one run; `gptpack.runs.logs` reads it.

    The keys of the dictionaries are those of the tables there; what a log does not say is absent.
    """

    path: str
    facts: dict[str, int] = field(default_factory=dict)
    """Counts, such as ``seed``, ``parameters`` and ``ranks``."""
    words: dict[str, str] = field(default_factory=dict)
    """Versions, device, and the artifact's SHA-256, in logs of `gptpack submission`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Times other than training's, and limits of time."""
    sizes: dict[str, int] = field(default_factory=dict)
    """``model``, ``code`` and ``total`` in bytes of what is packed, as the log states them."""
    packing: str = ""
    """How the model is packed, in the log's words: ``int8+zlib``."""
    scores: list[LoggedScore] = field(default_factory=list)
    steps: int = 0
    planned_steps: int = 0
    train_seconds: float = 0.0
    step_ms: float | None = None
    contradictions: list[Contradiction] = field(default_factory=list)

    def passes(self) -> list[LoggedScore]:
        """The scores that took time, each pass over the text once, by its longest line.

        Scripts print a pass when it ends and again in their summary, rounded otherwise; loss, bits
        per byte and time show that it is one.
        """
        found: list[LoggedScore] = []
        for score in sorted(self.scores, key=lambda score: -(score.seconds or 0.0)):
            # lines about one pass are neighbours by their time, and a log may be anybody's
            if score.seconds and not any(map(score.same_pass, found[-NEIGHBOURS:])):
                found.append(score)
        kept = set(map(id, found))
        return [score for score in self.scores if id(score) in kept]

    def best(self, kind: Kind) -> LoggedScore | None:
        """The score of a kind with the most digits, the last one of those."""
        found = [score for score in self.scores if score.kind == kind]
        return max(reversed(found), key=lambda score: score.digits, default=None)

    @property
    def decisive(self) -> Kind:
        """The kind of the score that counts: the last one a run could ask for."""
        kinds: tuple[Kind, ...] = ("ttt", "sliding", "plain")
        return next((kind for kind in kinds if self.best(kind)), "plain")

    def to_dict(self) -> dict[str, Any]:
        """The log in the shape of ``gptpack eval --json``; bytes are implied, not counted."""
        named = {kind: self.best(kind) for kind in ("before", "plain", "sliding", "ttt")}
        rows = {kind: self._row(score) for kind, score in named.items()}
        plain, before = named["plain"], named["before"]
        model, code = self.sizes.get("model"), self.sizes.get("code")
        return {
            "source": "log",
            "file": {"path": self.path, "bytes": self.sizes.get("total"), "sha256": None},
            "before": rows["before"],
            "plain": rows["plain"] or rows["before"],
            "sliding": rows["sliding"],
            "ttt": {"ttt": rows["ttt"]} if rows["ttt"] else {},
            "decisive": self.decisive,
            "adaptation": "ttt (as the log names it)" if rows["ttt"] else "none",
            "rise_bpb": difference(plain, before),
            "sizes": {
                **self.sizes,
                "packing": self.packing or None,
                "recomputed_total": None if model is None or code is None else model + code,
                "cap": CAP_BYTES,
            },
            "training": {
                **self.facts,
                "steps": self.steps,
                "planned_steps": self.planned_steps,
                "step_ms": self.step_ms,
            },
            "seconds": self._ledger(),
            "contradictions": [
                {"about": one.about, "says": one.says} for one in self.contradictions
            ],
        }

    def _ledger(self) -> dict[str, float]:
        spent = {"train": self.train_seconds}
        spent |= {name: value for name, value in self.seconds.items() if name != "train_limit"}
        for score in self.passes():
            spent[score.label] = spent.get(score.label, 0.0) + (score.seconds or 0.0)
        within = ("reserved", "eval_total")
        return {**spent, "total": sum(spent[name] for name in spent if name not in within)}

    def _row(self, score: LoggedScore | None) -> dict[str, Any] | None:
        if score is None:
            return None
        tokens, rate = score.tokens or self.facts.get("val_tokens"), score.tokens_per_byte
        # what an `_exact` line leaves out stands in the other line of its kind
        alike = [other for other in self.scores if other.kind == score.kind]
        return {
            "metric": f"{score.label} (log)",
            "bpb": _finite(score.bpb),
            "nats_per_token": _finite(score.nats),
            "tokens": tokens,
            "bytes": round(tokens / rate) if tokens and rate else None,
            "tokens_per_byte": rate,
            "stride": next((other.stride for other in alike if other.stride), None),
            "seconds": next((other.seconds for other in alike if other.seconds), None),
        }


def _finite(value: float) -> float | None:
    """`value`, or None where it is NaN or infinite, which JSON has not."""
    return value if math.isfinite(value) else None


def difference(score: LoggedScore | None, other: LoggedScore | None) -> float | None:
    """Bits per byte of `score` above those of `other`, where both are known."""
    return None if score is None or other is None else _finite(score.bpb - other.bpb)
