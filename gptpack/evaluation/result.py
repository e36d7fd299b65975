"""What an evaluation comes to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gptpack.evaluation.windows import Tail

Documents = Literal["packed", "masked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Sums over every scored target, and how they were made."""

    nats: float
    tokens: int
    """Scored targets."""
    bytes: int
    """Bytes of text that the scored targets stand for."""
    planned_tokens: int
    """Targets that there were to score; more than `tokens` if the time was up before."""
    in_order: bool = True
    """Whether the scored targets are then the first ones. Several ranks each begin a share of
    their own, and masked documents go by their lengths."""
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
    details: Mapping[str, Any] = field(default_factory=dict)
    """Counts that belong to the adaptation."""
    losses: npt.NDArray[np.float32] | None = None
    """Nats of each planned target in order, where asked for; NaN for those not scored."""

    @property
    def complete(self) -> bool:
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
        """What the figure is, in words that cannot be mistaken for another figure."""
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
