"""Arrays that took long to make <-> a file beside the model, named by a hash of what matters."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from gptpack.atomic import replacing
from gptpack.errors import GptpackError
from gptpack.families.language_model import LanguageModel
from gptpack.inputs import opened

Array = npt.NDArray[Any]

DIGEST = "sha256"
"""Name, in a file, of the digest of its arrays."""


def kept_path(folder: Path, what: str, model: LanguageModel, said: str, *given: Tensor) -> Path:
    """The file in `folder` for arrays that follow from these weights, settings and tensors."""
    key = hashlib.sha256(f"{said} {model.config}".encode())
    for name, value in model.weights().items():
        key.update(name.encode())
        key.update(value.cpu().numpy().tobytes())
    for tensor in given:
        key.update(tensor.numpy().tobytes())
    return folder / f".gptpack-{what}-{key.hexdigest()[:24]}.safetensors"


def read_kept(path: Path) -> dict[str, Array] | None:
    """The arrays of a kept file by name; None if there is no file, or it has changed."""
    try:
        with opened(path):
            arrays = load_file(path)
        return arrays if np.array_equal(arrays.pop(DIGEST), _digest(arrays)) else None
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def keep(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write `arrays` to `path`; where a folder takes no file, the next run makes them again."""
    with suppress(GptpackError), replacing(path) as file:
        file.write(save({**arrays, DIGEST: _digest(arrays)}))


def _digest(arrays: Mapping[str, Array]) -> Array:
    """SHA-256 of names, shapes and values, as safetensors has no checksum of its own."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].shape} ".encode())
        found.update(arrays[name].tobytes())
    return np.frombuffer(found.digest(), np.uint8)
