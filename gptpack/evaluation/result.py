"""Scores and how they were made <-> the JSON of an evaluation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gptpack.errors import DataError, LimitError
from gptpack.evaluation.windows import Tail

Documents = Literal["packed", "masked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Sums over all scored targets, and how they were made."""

    nats: float
    """Sum of the targets' losses."""
    tokens: int
    """Number of scored targets."""
    bytes: int
    """Bytes of text that the scored targets stand for."""
    planned_tokens: int
    """Number of targets to score; more than `tokens` if the time was up before."""
    in_order: bool = True
    """Whether scored targets are the first ones where the time was up. They are not with several
    ranks, which each begin a share of their own, nor with masked documents, which go by length."""
    context: int
    stride: int
    tail: Tail
    windows: int
    seconds: float
    """Wall-clock time of the whole pass, compilation and adaptation included."""
    documents: Documents = "packed"
    """Whether a window may see the document before (``packed``) or not (``masked``)."""
    rope: str = ""
    """How positions were scaled, where the model was told."""
    adaptation: str = "none"
    """Way in which the model learned from the text, as `settings.brief` says it."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Counts that belong to the adaptation."""
    losses: npt.NDArray[np.float32] | None = None
    """Nats of each planned target in order, where asked for; NaN for those not scored."""

    @property
    def complete(self) -> bool:
        """Whether all planned targets are scored."""
        return self.tokens == self.planned_tokens

    @property
    def bpb(self) -> float:
        """Bits per byte of text; NaN if the time was up before anything was scored."""
        return self.nats / (math.log(2.0) * self.bytes) if self.bytes else math.nan

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def metric(self) -> str:
        """The figure's name in full, such as ``sliding, stride 64, context 1024``."""
        parts = ["plain" if self.stride == self.context else f"sliding, stride {self.stride}"]
        parts.append(f"context {self.context}")
        if self.documents == "masked":
            parts.append("documents masked")
        if self.adaptation != "none":
            parts.append(self.adaptation)
        if not self.complete:
            share = f"{self.tokens / self.planned_tokens:.2%} only"
            parts.append(f"first {share}" if self.in_order else f"{share} (not in order)")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The figures for JSON, without the single losses."""
        return {
            "metric": self.metric,
            "bpb": self.bpb if self.bytes else None,
            "nats_per_token": self.nats_per_token if self.tokens else None,
            "nats": self.nats,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "planned_tokens": self.planned_tokens,
            "share": self.tokens / self.planned_tokens,
            "context": self.context,
            "stride": self.stride,
            "tail": self.tail,
            "windows": self.windows,
            "documents": self.documents,
            "rope": self.rope or None,
            "adaptation": self.adaptation,
            **self.details,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Score":
        """The score that `to_dict` wrote; raises as a mapping does where a figure is missing."""
        own = {each.name: values[each.name] for each in fields(cls) if each.name in values}
        derived = ("metric", "bpb", "nats_per_token", "share", "tokens_per_second")
        details = {key: values[key] for key in values if key not in (*own, *derived)}
        own["rope"] = own["rope"] or ""
        return cls(**own, details=details, in_order="(not in order)" not in values["metric"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One evaluation of a model on a text; `to_dict` is the JSON of ``gptpack eval``."""

    source: Literal["artifact", "checkpoint"]
    """Kind of the file that the model came from; ``artifact`` is a packed one."""
    path: str
    file_bytes: int
    file_sha256: str | None
    weights_sha256: str | None
    """SHA-256 of the float32 weights, where a packed file says it."""
    scores: Mapping[str, Score]
    """Scores by name, in the order in which they were made: ``plain``, ``sliding`` and the ways of
    test-time training, which begin with ``ttt``."""
    agreement: Mapping[str, Any] | None = None
    """How far predictions are from a reference's, as `gptpack.evaluation.agreement` has it, where
    that was asked for."""
    compressors: Mapping[str, Any] | None = None
    """What others make of the same text, as `gptpack.data.compressors` has it, where that was asked
    for and the text was given."""
    recorded: Mapping[str, float] | None = None
    """The packer's own figures: bpb, tokens and context, as far as the file says them."""
    assumed: tuple[str, ...] = ()
    """What a checkpoint did not say of its model and was taken for granted."""
    unknown_tokens: int = 0
    """Scored targets that the tokenizer has no piece for; they count 0 bytes."""
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    """The tokenizer's path, sha256 and vocab, and whether it was checked against the model's."""
    accounting: Mapping[str, Any] = field(default_factory=dict)
    """Source of the bytes that tokens stand for, and what those were audited against."""
    shards: tuple[Mapping[str, str], ...] = ()
    """File and sha256 of each shard."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock seconds of each phase, and in total."""
    time_limit_seconds: float | None = None
    device: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> Score:
        """Plain evaluation, by the reference's accounting."""
        return self.scores["plain"]

    @property
    def sliding(self) -> Score | None:
        """The sliding window, where one was asked for."""
        return self.scores.get("sliding")

    @property
    def best(self) -> Score:
        """The sliding window where there is one, else plain: the score of the model as it is."""
        return self.sliding or self.plain

    @property
    def decisive_name(self) -> str:
        """The last figure that was asked for; of several ways of test-time training, none."""
        adapted = [name for name in self.scores if name.startswith("ttt")]
        if len(adapted) == 1:
            return adapted[0]
        return "sliding" if "sliding" in self.scores else "plain"

    @property
    def decisive(self) -> Score:
        """The score that limits are compared with; see `decisive_name`."""
        return self.scores[self.decisive_name]

    @property
    def difference_bpb(self) -> float | None:
        """How far the plain score is from the recorded one; None where they do not compare."""
        if not self.recorded or not self.plain.complete:
            return None
        return self.plain.bpb - self.recorded["bpb"]

    def check(self, max_bpb: float | None = None) -> None:
        """Check that all planned targets are scored, and the decisive score is at most `max_bpb`.

        Raises:
            LimitError: a time limit came first, or bits per byte are above `max_bpb`.
        """
        if stopped := [score for score in self.scores.values() if not score.complete]:
            raise LimitError(
                f"{self.path}: the time limit of {self.time_limit_seconds or 0:g} s came with "
                f"{stopped[0].tokens:,} of {stopped[0].planned_tokens:,} targets scored "
                f"({stopped[0].metric})"
            )
        last = self.decisive
        if max_bpb is not None and not last.bpb <= max_bpb:
            raise LimitError(
                f"{self.path}: {last.bpb:.6f} bits per byte ({last.metric}), {max_bpb} at most "
                "are allowed"
            )

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as plain values, for JSON."""
        named = {name: score.to_dict() for name, score in self.scores.items()}
        return {
            "source": self.source,
            "file": {
                "path": self.path,
                "bytes": self.file_bytes,
                "sha256": self.file_sha256,
                "weights_sha256": self.weights_sha256,
            },
            "plain": named["plain"],
            "sliding": named.get("sliding"),
            "ttt": {name: row for name, row in named.items() if name.startswith("ttt")},
            "decisive": self.decisive_name,
            "adaptation": self.decisive.adaptation,
            "agreement": self.agreement,
            "compressors": self.compressors,
            "recorded": self.recorded,
            "difference_bpb": self.difference_bpb,
            "assumed": list(self.assumed),
            "unknown_tokens": self.unknown_tokens,
            "tokenizer": dict(self.tokenizer),
            "accounting": dict(self.accounting),
            "shards": [dict(shard) for shard in self.shards],
            "seconds": dict(self.seconds),
            "time_limit_seconds": self.time_limit_seconds,
            "device": dict(self.device),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Evaluation":
        """The evaluation that `to_dict` wrote.

        Raises:
            DataError: `values` are not the JSON of ``gptpack eval``; says what is missing.
        """
        try:
            rows = {name: values[name] for name in ("plain", "sliding") if values[name]}
            rows |= values["ttt"]
            file = values["file"]
            rest = {
                each.name: values[each.name]
                for each in fields(cls)
                if each.name in values and each.name not in ("assumed", "shards")
            }
            return cls(
                path=file["path"],
                file_bytes=file["bytes"],
                file_sha256=file["sha256"],
                weights_sha256=file["weights_sha256"],
                scores={name: Score.from_dict(row) for name, row in rows.items()},
                assumed=tuple(values.get("assumed", ())),
                shards=tuple(values["shards"]),
                **rest,
            )
        except (AttributeError, LookupError, TypeError) as error:
            raise DataError(
                f"not the JSON of 'gptpack eval' ({type(error).__name__}: {error})"
            ) from error
