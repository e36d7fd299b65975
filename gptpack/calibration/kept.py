"""Arrays that took long to make <-> a file beside the model, named by a hash of what matters."""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The files in a folder that spare the next pack of a model the same work."""

    folder: Path
    writes: bool = True
    """Whether files are written; those that are there are read either way."""
    background: Executor | None = None
    """What writes them; None makes the caller wait."""
    written: list[Path] = field(default_factory=list)
    """The files that were to be written so far; a folder may have taken none."""

    def path(self, what: str, model: LanguageModel, said: str, *given: Tensor) -> Path:
        """The file for arrays that follow from these weights, settings and tensors."""
        key = hashlib.sha256(f"{said} {model.config}".encode())
        for name, value in model.weights().items():
            key.update(name.encode())
            key.update(value.cpu().numpy().tobytes())
        for tensor in given:
            key.update(tensor.numpy().tobytes())
        return self.folder / f".gptpack-{what}-{key.hexdigest()[:24]}.safetensors"

    def keep(self, path: Path, arrays: Callable[[], Mapping[str, Array]]) -> None:
        """Write arrays to `path`; where the folder takes no file, the next run makes them again."""
        if not self.writes:
            return
        self.written.append(path)
        if self.background is None:
            _write(path, arrays)
        else:
            self.background.submit(_write, path, arrays)


def read_kept(path: Path) -> dict[str, Array] | None:
    """The arrays of a kept file by name; None if there is no file, or it has changed."""
    try:
        with opened(path):
            arrays = load_file(path)
        return arrays if np.array_equal(arrays.pop(DIGEST), _digest(arrays)) else None
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _write(path: Path, make: Callable[[], Mapping[str, Array]]) -> None:
    arrays = make()
    with suppress(GptpackError), replacing(path) as file:
        file.write(save({**arrays, DIGEST: _digest(arrays)}))


def _digest(arrays: Mapping[str, Array]) -> Array:
    """SHA-256 of names, shapes and values, as safetensors has no checksum of its own."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].shape} ".encode())
        found.update(arrays[name].tobytes())
    return np.frombuffer(found.digest(), np.uint8)
