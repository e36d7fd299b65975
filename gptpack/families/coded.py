"""A module and its weight's decoded values -> the module with those values times a gain per row.

Offsets of columns, where there are any, are added after that.

Shape legend: R = outputs, C = inputs.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, cast

from torch import Tensor, nn

BASE, GAIN, OFFSET = "coded_base", "coded_gain", "coded_offset"


def put_values(modules: Iterable[nn.Module], values: Tensor, offset: Tensor | None = None) -> None:
    """Put `values` ``[R, C]``, of which `offset` ``[C]`` is a part, in the place of a weight.

    They stay as they are; a gain for each row, one at first, is a parameter. It is of the values
    without their offset.

    Args:
        modules: all modules that have that weight, and share it from then on as before.
    """
    if offset is not None:
        offset = offset.to(values)
        values = values - offset
    gain = nn.Parameter(values.new_ones(values.shape[0]))
    for module in modules:
        del module.weight
        module.register_buffer(BASE, values, persistent=False)
        module.register_buffer(OFFSET, offset, persistent=False)
        module.register_parameter(GAIN, gain)
        module.__class__ = _coded(cast(Any, type(module)))


def is_coded(module: nn.Module) -> bool:
    """Whether the module's weight is such values."""
    return BASE in module._buffers


@cache
def _coded(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of `kind` with such a weight: one for all, so that one graph serves like layers."""
    return type(f"Coded{kind.__name__}", (kind,), {"weight": property(_weight)})


def _weight(module: nn.Module) -> Tensor:
    weight: Tensor = module.coded_base * module.coded_gain.unsqueeze(1)  # type: ignore[operator]
    offset = cast(Tensor | None, module.coded_offset)
    return weight if offset is None else weight + offset
