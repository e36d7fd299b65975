"""What an evaluation comes to."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.evaluation.windows import Tail


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Sums over every scored target, and how they were made."""

    nats: float
    tokens: int
    """Scored targets."""
    bytes: int
    """Bytes of text that the scored targets stand for."""
    context: int
    stride: int
    tail: Tail
    windows: int
    seconds: float
    """Wall-clock time of scoring alone."""
    losses: npt.NDArray[np.float32] | None = None
    """Nats of each target in order, where asked for."""

    @property
    def bpb(self) -> float:
        """Bits per byte of text."""
        return self.nats / (math.log(2.0) * self.bytes)

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def metric(self) -> str:
        """What the figure is, in words that cannot be mistaken for another figure."""
        kind = "plain" if self.stride == self.context else f"sliding, stride {self.stride}"
        return f"{kind}, context {self.context}"

    def to_dict(self) -> dict[str, Any]:
        """The figures for JSON, without the single losses."""
        return {
            "metric": self.metric,
            "bpb": self.bpb,
            "nats_per_token": self.nats_per_token,
            "nats": self.nats,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "context": self.context,
            "stride": self.stride,
            "tail": self.tail,
            "windows": self.windows,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
        }
