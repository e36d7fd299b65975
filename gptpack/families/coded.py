"""A module and its weight's decoded values -> the module with those values times a gain per row.

Shape legend: R = outputs, C = inputs.
"""

from functools import cache
from typing import Any, cast

from torch import Tensor, nn

BASE, GAIN = "coded_base", "coded_gain"


def put_values(module: nn.Module, values: Tensor) -> None:
    """Put `values` ``[R, C]`` in the place of the module's weight.

    They stay as they are; a gain for each row, one at first, is a parameter.
    """
    del module.weight
    module.register_buffer(BASE, values, persistent=False)
    module.register_parameter(GAIN, nn.Parameter(values.new_ones(values.shape[0])))
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
    return weight
