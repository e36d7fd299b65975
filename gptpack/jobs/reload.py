"""From an artifact to a model that can be run, with nothing but the file."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from gptpack.artifact.header import ArtifactHeader
from gptpack.artifact.reader import read_artifact
from gptpack.errors import ArtifactError
from gptpack.families.golf.gpt import GPT, state_problem

LARGEST_EXCESS = 4
"""A model is not even allocated if its matrices have so many times the weights of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model whose weights are those of a file, and what the file says of itself."""

    model: GPT
    header: ArtifactHeader
    seconds: Mapping[str, float]
    """Wall-clock time of ``decode`` (read, decode, values, verify) and ``build`` (model)."""


def load_model(path: str | Path, device: torch.device | str = "cpu") -> LoadedModel:
    """The model of the artifact at `path`, in evaluation mode on `device`.

    All checksums are verified, that of the float32 weights too. No model is allocated that the
    file's tensors could not fill.

    Raises:
        GptpackError: there is no file that can be read.
        ArtifactError: it is corrupt or hostile, or its tensors are not those of its model.
        MissingDependencyError: a section's codec is not installed.
    """
    began = time.perf_counter()
    values: dict[str, npt.NDArray[np.float32]] = {}
    artifact = read_artifact(path, verify_weights=True, keep=values.__setitem__)
    decoded = time.perf_counter()
    _check_shape(path, artifact.header)
    model = GPT(artifact.header.model, seed=None)
    state = {name: torch.from_numpy(made) for name, made in values.items()}
    if problem := state_problem(model, state):
        raise ArtifactError(f"{path}: its tensors are not those of its model: {problem}")
    model.load_state_dict(state, strict=True)
    model = model.to(device).eval()
    built = time.perf_counter()
    return LoadedModel(
        model=model,
        header=artifact.header,
        seconds={"decode": decoded - began, "build": built - decoded},
    )


def _check_shape(path: str | Path, header: ArtifactHeader) -> None:
    """Refuse a model with more layers than the file has tensors, or far more weights.

    A recurrence's passes count as well: half of them take up a skip, with weights of its own.

    This bounds memory; which tensor is missing is said later. (An outline on torch's meta device
    would say it at once, but costs two seconds of imports.)
    """
    config = header.model
    if config.layers > len(header.tensors):
        raise ArtifactError(
            f"{path}: {config.layers:,} layers cannot be made of {len(header.tensors):,} tensors"
        )
    width, kv_width = config.width, config.kv_width
    per_layer = 2 * width * (width + kv_width + config.mlp_hidden)
    bigram = config.bigram_width * (config.bigram_rows + width)
    values = config.value_embedding_width * (config.vocab + kv_width)
    # the order of layers with a recurrence is counted here, as it may be too long to be made
    passes = config.layers + config.loop_layers * config.loops
    skips = passes // 2 * width * (2 if config.skip_gates else 1)
    needed = config.layers * per_layer + config.vocab * width + bigram + values + skips
    held = sum(tensor.numel for tensor in header.tensors)
    if needed > LARGEST_EXCESS * held:
        raise ArtifactError(
            f"{path}: a model of this shape has more than {LARGEST_EXCESS * held:,} weights in its "
            f"matrices alone, but the file holds {held:,}"
        )
