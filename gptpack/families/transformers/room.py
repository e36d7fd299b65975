"""A configuration and what a file holds -> whether its model may be made: bounds before memory.

The library makes whatever a configuration asks for, layer by layer. These bounds refuse first what
the tensors of the file could not fill.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gptpack.errors import ConfigError
from gptpack.families.transformers.config import numbers

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""Keys whose number of layers are made one by one, each of a tensor or more."""
RATES = ("theta", "base")
"""Parts of keys whose numbers are frequencies: nothing is as large as they say."""
ALWAYS = 1 << 24
"""Integer that a configuration may have, and values that a tensor beside the weights may have,
whatever is held. The longest reach of positions that we know, Llama 4's, is 10,485,760."""
LARGEST_EXCESS = 4
"""How many times the weights of the file a model, or what it makes of them, may have."""


def check_numbers(values: Mapping[str, Any], *, tensors: int, weights: int) -> None:
    """Check the integers of a ``config.json`` by what its files hold.

    Raises:
        ConfigError: there are more layers than tensors, or a number exceeds that of all weights.
    """
    for key, number in numbers(values):
        if key in LAYERS and number > tensors:
            raise ConfigError(f"{number:,} layers cannot be made of {tensors:,} tensors")
        rate = any(part in key for part in RATES)
        if type(number) is int and abs(number) > max(ALWAYS, weights) and not rate:
            raise ConfigError(f"{key!a:.40} is {number:,}, but the file holds {weights:,} weights")


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which a library works; it ends where a file of so many weights is no reason.

    Counting operations bounds loops, whatever a configuration calls the number of turns.

    Raises:
        ConfigError: more than `most` operations, or a tensor of far more values than `weights`.
    """

    def __init__(self, most: int, weights: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most, self.largest, self.done = most, largest(weights), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.done += 1
        if self.done > self.most:
            raise ConfigError(f"more than {self.most:,} operations on so few tensors")
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and not found.is_meta and found.numel() > self.largest:
            raise ConfigError(f"a result of {found.numel():,} values on the way to the logits")
        return found


def making(tensors: int, weights: int) -> Meter:
    """The bounds of making a model on the device ``meta``, to be filled by so many tensors.

    Twenty architectures of transformers 5.24 took 1.7 to 2.3 operations a tensor.
    """
    return Meter(1000 + 16 * tensors, weights)


def running(tensors: int, weights: int) -> Meter:
    """The bounds of running a model of so many tensors on a few tokens.

    The same took 3 to 68 operations a tensor.
    """
    return Meter(10_000 + 512 * tensors, weights)


def largest(weights: int) -> int:
    """Most values of a tensor beside the weights."""
    return max(ALWAYS, LARGEST_EXCESS * weights)


def check_size(skeleton: nn.Module, weights: int) -> None:
    """Check the size of a model on the device ``meta``.

    Raises:
        ConfigError: its parameters or its buffers have far more values than the file.
    """
    needed = sum(parameter.numel() for parameter in skeleton.parameters())
    if needed > LARGEST_EXCESS * weights:
        raise ConfigError(f"a model of {needed:,} weights, but the file holds {weights:,}")
    beside = sum(buffer.numel() for buffer in skeleton.buffers())
    if beside > largest(weights):
        raise ConfigError(f"buffers of {beside:,} values, but the file holds {weights:,} weights")
