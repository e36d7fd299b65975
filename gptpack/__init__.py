"""Pack small language models into one file under a byte budget, run them, and prove the result.

    import gptpack

    packed = gptpack.pack("run/checkpoint.pt", budget="16MB", data="shards", output="m.gptpack")
    found = gptpack.evaluate("m.gptpack", "shards", stride=64)
    model = gptpack.load("m.gptpack").model

Every function raises `GptpackError` or a subclass of it for what is wrong with its input, and
prints nothing; those that take long tell a callback, `progress`, where they are. Importing this
module loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gptpack.errors import GptpackError
from gptpack.version import VERSION as __version__

if TYPE_CHECKING:
    from gptpack.evaluation.result import Evaluation as Evaluation
    from gptpack.families.golf.config import ModelConfig as ModelConfig
    from gptpack.families.modules.model import Module as Module
    from gptpack.inspection.inspect import inspect as inspect
    from gptpack.jobs.check import check as check
    from gptpack.jobs.evaluate import evaluate as evaluate
    from gptpack.jobs.load import Loaded as Loaded
    from gptpack.jobs.load import load as load
    from gptpack.jobs.pack import Packed as Packed
    from gptpack.jobs.pack import pack as pack
    from gptpack.jobs.request import PackRequest as PackRequest
    from gptpack.jobs.train import TrainResult as TrainResult
    from gptpack.jobs.train import train as train
    from gptpack.jobs.unpack import unpack as unpack
    from gptpack.jobs.verify import verify as verify
    from gptpack.training.recipe import Recipe as Recipe

_PUBLIC = {
    "Evaluation": "gptpack.evaluation.result",
    "Loaded": "gptpack.jobs.load",
    "ModelConfig": "gptpack.families.golf.config",
    "Module": "gptpack.families.modules.model",
    "PackRequest": "gptpack.jobs.request",
    "Packed": "gptpack.jobs.pack",
    "Recipe": "gptpack.training.recipe",
    "TrainResult": "gptpack.jobs.train",
    "check": "gptpack.jobs.check",
    "evaluate": "gptpack.jobs.evaluate",
    "inspect": "gptpack.inspection.inspect",
    "load": "gptpack.jobs.load",
    "pack": "gptpack.jobs.pack",
    "train": "gptpack.jobs.train",
    "unpack": "gptpack.jobs.unpack",
    "verify": "gptpack.jobs.verify",
}
"""Name of the public surface -> the module that defines it, imported when it is first used."""

__all__ = ["GptpackError", "__version__", *_PUBLIC]  # noqa: PLE0604, the names are strings


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gptpack' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
