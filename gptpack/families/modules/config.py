"""What a packed file says of a module of its caller's own: numbers that we need, and his words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gptpack.errors import ConfigError
from gptpack.values import MAX_VOCAB


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleConfig:
    """The facts of a module that maps tokens to logits."""

    vocab: int = 1
    """Logits of a position."""
    context: int = 2
    """Tokens of a window."""
    bos: int = 0
    """Token that a text begins with."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The caller's own configuration, which gptpack only keeps."""

    def __post_init__(self) -> None:
        if not 1 <= self.vocab <= MAX_VOCAB:
            raise ConfigError(f"vocab={self.vocab} must lie in 1..{MAX_VOCAB:,}")
        if not 2 <= self.context <= 1 << 20:
            raise ConfigError(f"context={self.context} must lie in 2..{1 << 20:,}")
        if not 0 <= self.bos < self.vocab:
            raise ConfigError(f"bos={self.bos} must lie in 0..{self.vocab - 1}")
