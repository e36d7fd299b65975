"""How a pack quantizes and codes, as one value: methods by name, trellis, damping, codecs."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gptpack.codec.polynomials import POLYNOMIALS
from gptpack.errors import ConfigError
from gptpack.values import nearest

CLIPPED = tuple(f"gptq-int{bits}" for bits in range(4, 9))
GRIDS = ("gptq-uniform", "gptq-trellis")
METHODS = ("int8", *CLIPPED, *GRIDS, "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackConfig:
    """How tensors are quantized and coded."""

    methods: tuple[tuple[str, str], ...] = (("*", "gptq-trellis"),)
    """(pattern of names, method) pairs; the last that matches a matrix counts."""
    states: int = 256
    """States of the trellis."""
    damp: float = 0.03
    """Damping of Hessians, as a fraction of the mean diagonal."""
    row_power: float = 0.5
    """Power of the rows' Fisher information that sets their scales."""
    rescale: bool = True
    """Whether rows are scaled after coding so that their errors cost least."""
    delta_factors: tuple[tuple[str, float], ...] = ()
    """(pattern of names, factor) pairs: how many times the common delta a matrix' own is. The last
    that matches counts."""
    codecs: tuple[str, ...] = ("zlib", "zstd", "range")
    """Codecs that each section tries."""
    strict: bool = False
    """Whether a fallback is an error."""
    tolerance: float = 1e-3
    """Share of the budget that a file may leave free while a finer delta exists."""

    def __post_init__(self) -> None:
        if self.states not in POLYNOMIALS:
            known = ", ".join(map(str, POLYNOMIALS))
            raise ConfigError(f"states={self.states}: the trellis has {known} states")
        for pattern, method in self.methods:
            if method not in METHODS:
                raise ConfigError(
                    f"method '{method}' for '{pattern}': there are {', '.join(METHODS)}"
                    f"{nearest(method, METHODS)}"
                )
        if not self.methods or self.methods[0][0] != "*":
            raise ConfigError("the first method must be for all tensors: '*'")
        for pattern, factor in self.delta_factors:
            if not (math.isfinite(factor) and factor > 0):
                raise ConfigError(f"delta factor {factor} for '{pattern}' must be positive")

    def check_names(self, names: Collection[str]) -> None:
        """Check that every pattern matches a tensor of a model that has these.

        Raises:
            ConfigError: a pattern matches none of them.
        """
        for pattern, _ in (*self.methods, *self.delta_factors):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    f"'{pattern}' matches no tensor of this model; names are such as "
                    f"{next(iter(names), 'none')}"
                )

    def method_of(self, name: str) -> str:
        """The method of a matrix of this name."""
        return next(m for pattern, m in reversed(self.methods) if fnmatchcase(name, pattern))

    def delta_factor_of(self, name: str) -> float:
        """How many times the common delta is that of a matrix of this name."""
        chosen = (f for pattern, f in reversed(self.delta_factors) if fnmatchcase(name, pattern))
        return next(chosen, 1.0)

    @property
    def calibrated(self) -> bool:
        """Whether any method needs Hessians."""
        return any(method not in ("int8", "float16") for _, method in self.methods)
