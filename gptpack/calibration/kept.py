"""Arrays that took long to make <-> a file beside the model, named by a hash of what matters."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gptpack.atomic import replacing
from gptpack.errors import GptpackError
from gptpack.families.language_model import LanguageModel
from gptpack.inputs import opened
from gptpack.shelf import Held, Shelved, Store, raw_bytes

Array = npt.NDArray[Any]

DIGEST = "sha256"
"""Name, in a file, of the digest of its arrays."""
TYPES = {"F32": "<f4", "I64": "<i8", "U8": "|u1"}
"""Types of arrays by their names in safetensors."""


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
            key.update(raw_bytes(value.cpu().numpy()))
        for tensor in given:
            key.update(raw_bytes(tensor.numpy()))
        return self.folder / f".gptpack-{what}-{key.hexdigest()[:24]}.safetensors"

    def keep(self, path: Path, arrays: Callable[[], Mapping[str, Held]]) -> None:
        """Write arrays to `path`; where the folder takes no file, the next run makes them again."""
        if not self.writes:
            return
        self.written.append(path)
        if self.background is None:
            _write(path, arrays)
        else:
            self.background.submit(_write, path, arrays)


def read_kept(path: Path) -> dict[str, Held] | None:
    """The arrays of a kept file by name, left in it; None if there is no file, or it has changed.

    Each is read when it is asked for, and all of them once here.
    """
    try:
        arrays = _left_in(path)
        said = np.asarray(arrays.pop(DIGEST))
        state = hashlib.sha256()
        for name in sorted(arrays):
            _add(state, name, np.asarray(arrays[name]))
    except (OSError, LookupError, TypeError, ValueError, RecursionError):
        return None
    return arrays if said.tobytes() == state.digest() else None


def _write(path: Path, make: Callable[[], Mapping[str, Held]]) -> None:
    """Write the arrays; where a folder takes no file, the next run makes them again.

    The file is one of safetensors, and its last tensor the digest of the others.
    """
    arrays = make()
    names = {np.dtype(dtype): name for name, dtype in TYPES.items()}
    state, header, end = hashlib.sha256(), {}, 0
    for name in sorted(arrays):
        start, end = end, end + arrays[name].size * arrays[name].dtype.itemsize
        header[name] = {
            "dtype": names[arrays[name].dtype],
            "shape": list(arrays[name].shape),
            "data_offsets": [start, end],
        }
    size = state.digest_size
    header[DIGEST] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)
    with suppress(GptpackError), replacing(path) as file:
        file.write(len(said).to_bytes(8, "little") + said)
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            _add(state, name, array)
            file.write(raw_bytes(array))
        file.write(state.digest())


def _left_in(path: Path) -> dict[str, Held]:
    """All arrays of a safetensors file, none of them read."""
    with opened(path) as file:
        store, most = Store(file), os.fstat(file.fileno()).st_size
        size = int.from_bytes(file.read(8), "little")
        header = dict(json.loads(file.read(min(size, most))))
    header.pop("__metadata__", None)
    arrays: dict[str, Held] = {}
    for name, said in header.items():
        start, dtype = 8 + size + said["data_offsets"][0], np.dtype(TYPES[said["dtype"]])
        array = Shelved(store, start, (*said["shape"],), dtype)
        if not 0 <= start <= most - array.size * dtype.itemsize:
            raise ValueError(f"{path}: {name} does not lie in the file")
        arrays[name] = array
    return arrays


def _add(state: "hashlib._Hash", name: str, array: Array) -> None:
    """Add name, shape and values to a digest, as safetensors has no checksum of its own."""
    state.update(f"{name} {array.shape} ".encode())
    state.update(raw_bytes(array))
