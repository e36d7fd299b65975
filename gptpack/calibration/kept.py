"""Arrays that took long to make <-> a file beside the model, named by a hash of what matters."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
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


def kept_path(folder: Path, what: str, model: LanguageModel, said: str, *given: Tensor) -> Path:
    """The file in `folder` for arrays that follow from these weights, settings and tensors."""
    key = hashlib.sha256(f"{said} {model.config}".encode())
    for name, value in model.weights().items():
        key.update(name.encode())
        key.update(raw_bytes(value.cpu().numpy()))
    for tensor in given:
        key.update(raw_bytes(tensor.numpy()))
    return folder / f".gptpack-{what}-{key.hexdigest()[:24]}.safetensors"


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


def keep(path: Path, arrays: Mapping[str, Held]) -> None:
    """Write `arrays` to `path`; where a folder takes no file, the next run makes them again.

    The file is one of safetensors, and its last tensor the digest of the others.
    """
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
