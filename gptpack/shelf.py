"""Arrays -> a temporary file, and back when they are asked for: memory holds what is in work."""

import math
import os
import tempfile
import threading
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
MOST_BYTES = 1 << 22
"""Bytes that are read or written at once: macOS refuses 2 GiB, and what is read is copied."""


def raw_bytes(array: Array) -> memoryview:
    """The bytes of `array` in row order, copied only where they do not lie so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class Store:
    """What lies in an open file, for as long as somebody refers to it; threads may share it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._descriptor = os.dup(file.fileno())

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, start: int, into: memoryview) -> None:
        """Fill `into` from `start` on.

        Raises:
            OSError: the file has become shorter, or the disk fails.
        """
        while into:
            part = os.pread(self._descriptor, min(len(into), MOST_BYTES), start)
            if not part:
                raise OSError("a file that arrays wait in was cut short")
            into[: len(part)] = part
            start, into = start + len(part), into[len(part) :]

    def write(self, start: int, data: memoryview) -> None:
        """Write all of `data` from `start` on; raises OSError."""
        while data:
            count = os.pwrite(self._descriptor, data[:MOST_BYTES], start)
            start, data = start + count, data[count:]


class Shelved:
    """An array in a file: `np.asarray` reads it, each time anew."""

    def __init__(
        self, store: Store, start: int, shape: tuple[int, ...], dtype: npt.DTypeLike
    ) -> None:
        self._store, self._start = store, start
        self.shape, self.dtype = shape, np.dtype(dtype)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """The array in memory of its own; raises OSError."""
        del copy
        found = np.empty(self.shape, self.dtype)
        self._store.read(self._start, raw_bytes(found))
        return found if dtype is None else found.astype(dtype, copy=False)


Held = Array | Shelved
"""An array in memory, or one that waits in a file; `np.asarray` gives it."""


class Shelf:
    """A temporary file without a name, for arrays that would not fit into memory together."""

    def __init__(self) -> None:
        self._store: Store | None = None
        self._end = 0
        self._lock = threading.Lock()

    def put(self, array: Array) -> Held:
        """`array`, in the file; as it is, in memory, where no such file can be written."""
        with self._lock:
            start, self._end = self._end, self._end + array.nbytes
            try:
                if self._store is None:
                    with tempfile.TemporaryFile(prefix="gptpack-") as file:
                        self._store = Store(file)
                self._store.write(start, raw_bytes(array))
            except OSError:
                return array
        return Shelved(self._store, start, array.shape, array.dtype)
