"""How a pack quantizes and codes: methods by pattern of names, the trellis, damping, codecs."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gptpack.codec.trellis import POLYNOMIALS
from gptpack.errors import ConfigError

CLIPPED = tuple(f"gptq-int{bits}" for bits in range(4, 9))
GRIDS = ("gptq-uniform", "gptq-trellis")
METHODS = ("int8", *CLIPPED, *GRIDS, "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackConfig:
    """How tensors are quantized and coded."""

    methods: tuple[tuple[str, str], ...] = (("*", "gptq-trellis"),)
    """(pattern of names, method) pairs; the last that matches a matrix counts."""
    states: int = 256
    """Of the trellis."""
    damp: float = 0.03
    row_power: float = 0.5
    rescale: bool = True
    step_factors: tuple[tuple[str, float], ...] = ()
    """(pattern of names, factor) pairs: a matrix' steps are so many times what equal slope says.
    The last that matches counts."""
    codecs: tuple[str, ...] = ("zlib", "zstd", "range")
    strict: bool = False
    """A fallback is an error."""
    tolerance: float = 1e-3
    """How far under the budget a file may stay while finer steps exist."""

    def __post_init__(self) -> None:
        if self.states not in POLYNOMIALS:
            known = ", ".join(map(str, POLYNOMIALS))
            raise ConfigError(f"states={self.states}: the trellis has {known} states")
        for pattern, method in self.methods:
            if method not in METHODS:
                raise ConfigError(
                    f"method '{method}' for '{pattern}': there are {', '.join(METHODS)}"
                )
        if not self.methods or self.methods[0][0] != "*":
            raise ConfigError("the first method must be for all tensors: '*'")
        for pattern, factor in self.step_factors:
            if not (math.isfinite(factor) and factor > 0):
                raise ConfigError(f"step factor {factor} for '{pattern}' must be positive")

    def check_names(self, names: Collection[str]) -> None:
        """Whether every pattern is of some use to a model of these tensors.

        Raises:
            ConfigError: one matches none of them.
        """
        for pattern, _ in (*self.methods, *self.step_factors):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    f"'{pattern}' matches no tensor of this model; names are such as "
                    f"{next(iter(names), 'none')}"
                )

    def method_of(self, name: str) -> str:
        """The method of a matrix of this name."""
        return next(m for pattern, m in reversed(self.methods) if fnmatchcase(name, pattern))

    def step_factor_of(self, name: str) -> float:
        """How many times coarser than equal slope a matrix of this name is coded."""
        chosen = (f for pattern, f in reversed(self.step_factors) if fnmatchcase(name, pattern))
        return next(chosen, 1.0)

    @property
    def calibrated(self) -> bool:
        """Whether any method needs Hessians."""
        return any(method not in ("int8", "float16") for _, method in self.methods)
