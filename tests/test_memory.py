"""What packing holds in memory, in multiples of a model's weights in float32."""

import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hugging import make_folder
from torch import nn

import gptpack
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.shelf import Shelf, Shelved, Store
from gptpack.training.checkpoint import Checkpoint, save_checkpoint
from gptpack.values import TokenizerIdentity

PROMISE = 3.0
"""Most times its weights that packing a model may take."""


def live_bytes() -> int:
    """Bytes of all tensors that somebody refers to."""
    kinds = (torch.Tensor, nn.Parameter)
    # what wraps another for vmap has no storage of its own
    wraps = torch._C._functorch.is_functorch_wrapped_tensor
    found = (each for each in gc.get_objects() if type(each) in kinds)
    tensors = [each for each in found if not wraps(each) and not each.is_meta]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    return sum(storage.nbytes() for storage in storages.values())


class Watch:
    """A progress function that keeps the most bytes of tensors and arrays that it ever saw."""

    def __init__(self) -> None:
        self.before, self.most = live_bytes(), dict[str, int]()

    def __call__(self, phase: str, done: int, total: int) -> None:
        # what modules and buffers for reading took before the first phase is nothing of the model's
        arrays = tracemalloc.get_traced_memory()[1] - self.modules if self.most else 0
        if not self.most:
            self.modules = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        found = live_bytes() - self.before + arrays
        self.most[phase] = max(self.most.get(phase, 0), found)


def source_of(folder: Path, family: str, *, layers: int, width: int, hidden: int) -> Path:
    """A checkpoint of a family with a random model of this shape."""
    if family == "golf":
        shape = {"vocab": 320, "layers": layers, "width": width, "heads": 4, "kv_heads": 4}
        model = GPT(ModelConfig(**shape, mlp_hidden=hidden, context=64))
        path = folder / "checkpoint.pt"
        tokenizer = TokenizerIdentity(sha256="ab" * 32, vocab=320, bos=1)
        save_checkpoint(
            path, Checkpoint(model=model.config, weights=model.state_dict(), tokenizer=tokenizer)
        )
        return path
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": hidden}
    if family == "gpt2":
        sizes = {"n_layer": layers, "n_embd": width, "n_head": 4}
    return make_folder(folder, family, **sizes)


@pytest.mark.slow  # of fewer than some million weights all else takes more
@pytest.mark.parametrize("family", ["llama", "gpt2", "golf"])
def test_packing_holds_three_times_the_weights_at_most(family, tmp_path, monkeypatch):
    # one matrix at a time, whatever the machine has
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0})
    tokens = np.random.default_rng(0).integers(0, 320, 1024)
    sizes = {"small": (1, 64, 96), "large": (16, 128, 512)}
    for name, (layers, width, hidden) in sizes.items():
        (tmp_path / name).mkdir()
        source = source_of(tmp_path / name, family, layers=layers, width=width, hidden=hidden)
        gc.collect()
        # what is imported and compiled comes with the first
        if name == "large":
            tracemalloc.start()
        watch = Watch()
        packed = gptpack.pack(source, bits=3.0, calibration=tokens, device="cpu", progress=watch)
    tracemalloc.stop()
    assert {"hessians", "fisher", "factor", "search delta"} <= watch.most.keys()
    weights = sum(tensor.numel for tensor in packed.coded.encoded.tensors)
    assert max(watch.most.values()) <= PROMISE * 4 * weights


def test_what_is_put_on_a_shelf_comes_back_as_it_was():
    shelf = Shelf()
    given = [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.arange(12, dtype=np.int64).reshape(3, 4).T,
        np.zeros((0, 5), np.float32),
    ]
    held = [shelf.put(array) for array in given]
    del shelf
    for array, waiting in zip(given, held, strict=True):
        assert isinstance(waiting, Shelved)
        found = np.asarray(waiting)
        assert (found.dtype, waiting.size, len(waiting)) == (array.dtype, array.size, len(array))
        assert np.array_equal(found, array)
        found[:] = 7  # a copy: what waits stays
        assert np.array_equal(np.asarray(waiting), array)
        assert np.asarray(waiting, np.float64).dtype == np.float64


def test_where_no_file_can_be_written_arrays_stay_in_memory(monkeypatch):
    def refuse(*_arguments, **_settings):
        raise OSError("no space left")

    monkeypatch.setattr("gptpack.shelf.tempfile.TemporaryFile", refuse)
    array = np.ones(3)
    assert Shelf().put(array) is array


def test_a_file_that_was_cut_short_is_an_error(tmp_path):
    path = tmp_path / "arrays"
    path.write_bytes(bytes(16))
    with path.open("rb") as file:
        waiting = Shelved(Store(file), 8, (4,), "<f4")
    with pytest.raises(OSError, match="cut short"):
        np.asarray(waiting)
