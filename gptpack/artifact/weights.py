"""Packed tensors -> one hash of the weights that they stand for, whatever holds them."""

import hashlib
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt

from gptpack.cores import usable_cores
from gptpack.errors import ArtifactError, MissingDependencyError
from gptpack.quant.types import PackedTensor, dequantize

Keep = Callable[[str, npt.NDArray[np.float32]], None]
"""A function that takes the name and the values of each tensor, which are computed only once."""
_LARGE = 1 << 14
"""Weights of a tensor that are worth a thread: handing one over takes some 50 microseconds."""


def flushes_subnormals() -> bool:
    """Whether this thread takes numbers below float32's normal ones for zero."""
    smallest = np.full(1, 2.0**-126, np.float32)
    return not (smallest * np.float32(0.5)).any()


@contextmanager
def subnormal_numbers() -> Iterator[None]:
    """Compute as IEEE 754 says, whatever a library has set for speed; the format's values need it.

    Raises:
        MissingDependencyError: subnormal numbers are flushed to zero, and not by torch.
    """
    if not flushes_subnormals():
        yield
        return
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_flush_denormal(False)
    if flushes_subnormals():
        raise MissingDependencyError(
            "this process flushes subnormal numbers to zero, so weights would not be those of the "
            "file; run gptpack without the library that sets this (built with -ffast-math)"
        )
    try:
        yield
    finally:
        assert torch is not None
        torch.set_flush_denormal(True)


def weights_sha256(tensors: Iterable[PackedTensor], keep: Keep | None = None) -> str:
    """SHA-256, in hexadecimal, over name, shape, and float32 values of each tensor in order.

    A tensor adds its name in ASCII, a zero byte, its rank as u8, its dimensions as u64, and its
    values as float32 in row order, all little endian.

    Raises:
        ArtifactError: a tensor's arrays or parameters do not decode to finite values.
    """
    state = hashlib.sha256()
    for tensor, values in _dequantized(tensors):
        rank = len(tensor.shape)
        state.update(tensor.name.encode("ascii") + b"\0")
        state.update(struct.pack(f"<B{rank}Q", rank, *tensor.shape))
        state.update(values.astype("<f4", order="C", copy=False).reshape(-1).data)
        if keep is not None:
            keep(tensor.name, values)
    return state.hexdigest()


def _dequantized(
    tensors: Iterable[PackedTensor],
) -> Iterator[tuple[PackedTensor, npt.NDArray[np.float32]]]:
    """Each tensor with its values; those of large ones are computed in threads, a few ahead."""
    ahead = min(4, usable_cores())
    pending: deque[tuple[PackedTensor, partial[npt.NDArray[np.float32]]]] = deque()
    with ThreadPoolExecutor(ahead) as pool:
        try:
            for tensor in tensors:
                values = partial(_values, tensor)
                if tensor.numel >= _LARGE:
                    values = partial(Future.result, pool.submit(values))
                pending.append((tensor, values))
                if len(pending) > ahead:
                    first, made = pending.popleft()
                    yield first, made()
            while pending:
                first, made = pending.popleft()
                yield first, made()
        finally:
            pool.shutdown(cancel_futures=True)


def _values(tensor: PackedTensor) -> npt.NDArray[np.float32]:
    try:
        with subnormal_numbers():
            return dequantize(tensor)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(
            f"{tensor.name}: its {tensor.method} parameters cannot be decoded: {error!a:.100}"
        ) from error
