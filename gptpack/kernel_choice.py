"""A name and a device -> whether ops.py runs by Triton's kernels there, in words."""

import importlib
from typing import Literal, get_args

import torch

from gptpack.errors import ConfigError, MissingDependencyError

Kernels = Literal["auto", "on", "off"]

MODULES = ("cross_entropy", "heads", "mlp", "own_value")
OLDEST = (8, 0)
"""Least compute capability whose tensor cores know bfloat16."""


def choose_kernels(name: str, device: torch.device) -> str:
    """The choice that `name` means on `device`: ``off``, or ``on`` with what kernels run by.

    ``auto`` takes kernels on CUDA where Triton and the device allow, and never on a CPU. By ``on``
    they also run in Triton's interpreter (``TRITON_INTERPRET=1``), slowly, for tests.

    Raises:
        ConfigError: `name` is neither auto, on nor off.
        MissingDependencyError: `name` is on, but kernels cannot run here.
    """
    if name not in get_args(Kernels):
        raise ConfigError(f"kernels '{name}': choose {', '.join(get_args(Kernels))}")
    if name == "off" or (name == "auto" and device.type != "cuda"):
        return "off"
    problem = _missing(device)
    if problem and name == "on":
        raise MissingDependencyError(f"kernels 'on': {problem}; use auto or off")
    if problem:
        return f"off ({problem})"
    import triton

    if device.type != "cuda":
        return "on (Triton's interpreter)"
    tiles = "TMA" if torch.cuda.get_device_capability(device)[0] >= 9 else "pointers, no TMA"
    return f"on (Triton {triton.__version__}, {tiles})"


def _missing(device: torch.device) -> str:
    """The reason why kernels cannot run on `device`; empty if they can, and are imported."""
    try:
        import triton
    except ImportError:
        return "Triton is not installed (pip install 'gptpack[triton]')"
    if triton.knobs.runtime.interpret:
        if device.type != "cpu":
            return "TRITON_INTERPRET is set, which is for CPUs"
    elif device.type != "cuda":
        return f"a {device.type} device has no Triton"
    elif (found := torch.cuda.get_device_capability(device)) < OLDEST:
        return f"compute capability {found[0]}.{found[1]}, needed {OLDEST[0]}.{OLDEST[1]}"
    try:
        for module in MODULES:
            importlib.import_module(f"gptpack.kernels.{module}")
    except ImportError as error:
        return f"they cannot be imported: {error}"
    return ""
