"""A path -> the model of that checkpoint or packed file, built, checked and hashed once."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gptpack.artifact.layout import LFS_POINTER, MAGIC
from gptpack.artifact.record import PackRecord
from gptpack.data.shards import file_sha256
from gptpack.errors import ArtifactError, CheckpointError, ConfigError, GptpackError
from gptpack.families.golf.config import ModelConfig
from gptpack.values import TokenizerIdentity

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from gptpack.families.language_model import LanguageModel

LARGEST_EXCESS = 4
"""A model is not even allocated if its matrices have so many times the weights of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model in memory, in evaluation mode, and what its file says of it."""

    model: "LanguageModel"
    kind: Literal["artifact", "checkpoint"]
    """``artifact`` is a packed file."""
    path: Path | None = None
    """The file; None where the model was made in memory."""
    file_bytes: int = 0
    sha256: str | None = None
    """SHA-256 of the file, in hexadecimal."""
    tokenizer: TokenizerIdentity | None = None
    """Which tokenizer the tokens belong to; None where a checkpoint does not say."""
    record: PackRecord | None = None
    """What the packer wrote into the header of a packed file."""
    weights_sha256: str | None = None
    """SHA-256 of the float32 weights, verified; None for a checkpoint."""
    step: int = 0
    """Optimizer steps that a checkpoint was trained for."""
    told: str | None = None
    """The recipe, by file or name, that said the model of a bare state dict."""
    assumed: tuple[str, ...] = ()
    """What a bare state dict did not say and was taken for granted, such as ``context=1024``."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock time of ``decode`` (read, decode, verify) and of ``build`` (the model)."""


def load(
    path: str | Path,
    *,
    model: str | ModelConfig | None = None,
    device: "torch.device | str" = "cpu",
) -> Loaded:
    """The model of the checkpoint or packed file at `path`, which its first bytes tell apart.

    All checksums of a packed file are verified, that of its float32 weights too, and no model is
    allocated that the file's tensors could not fill. Nothing in a file is run.

    Args:
        model: what a bare state dict does not say: a recipe, by file or name, whose ``[model]`` it
            has, or the configuration itself.
        device: where the weights go.

    Raises:
        CheckpointError: no checkpoint, or its tensors are not those of its model.
        ConfigError: `model` is given, and the file says its own.
        ArtifactError: a packed file that is corrupt or hostile.
        MissingDependencyError: the codec of a section is not installed.

    Example:
        >>> loaded = gptpack.load("model.gptpack")
        >>> loaded.kind, loaded.record.method, loaded.tokenizer.vocab <= loaded.model.config.vocab
        ('artifact', 'gptq-trellis', True)
        >>> gptpack.load("checkpoint.pt").sha256 == loaded.record.checkpoint_sha256
        True
    """
    path = Path(path)
    if is_packed(path):
        if model is not None:
            raise ConfigError(f"--model {model} is for bare state dicts; {path} says its own model")
        return load_packed(path, device)
    return _load_checkpoint(path, model, device)


def is_packed(path: Path) -> bool:
    """Whether the file begins as a packed one, or as what became of one on its way here."""
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except (OSError, ValueError):
        return False  # the checkpoint's reader says why
    return not start or start.startswith((MAGIC[:6], LFS_POINTER))


def load_packed(path: Path, device: "torch.device | str" = "cpu") -> Loaded:
    """`load` of a packed file."""
    import torch

    from gptpack.artifact.reader import read_artifact

    began = time.perf_counter()
    values: dict[str, npt.NDArray[np.float32]] = {}
    header = read_artifact(path, verify_weights=True, keep=values.__setitem__).header
    sha256 = file_sha256(path)
    decoded = time.perf_counter()
    needed = header.model.least_weights()
    held = sum(tensor.numel for tensor in header.tensors)
    if header.model.layers > len(header.tensors):
        raise ArtifactError(
            f"{path}: {header.model.layers:,} layers cannot be made of {len(header.tensors):,} "
            "tensors"
        )
    if needed > LARGEST_EXCESS * held:
        raise ArtifactError(
            f"{path}: a model of this shape has {needed:,} weights in its matrices alone, but the "
            f"file holds {held:,}"
        )
    weights = {name: torch.from_numpy(made) for name, made in values.items()}
    model = _built(path, header.model, weights, device, ArtifactError)
    return Loaded(
        model=model,
        kind="artifact",
        path=path,
        file_bytes=header.file_bytes,
        sha256=sha256,
        tokenizer=header.tokenizer,
        record=header.record,
        weights_sha256=header.weights_sha256,
        seconds={"decode": decoded - began, "build": time.perf_counter() - decoded},
    )


def _load_checkpoint(
    path: Path, told: str | ModelConfig | None, device: "torch.device | str"
) -> Loaded:
    from gptpack.training.checkpoint import load_checkpoint
    from gptpack.training.recipe import load_recipe

    began = time.perf_counter()
    shape = load_recipe(told).model if isinstance(told, str) else told
    checkpoint = load_checkpoint(path, shape)
    # a bare state dict has the model that it was told, any other file its own
    if isinstance(told, str) and checkpoint.model is not shape:
        raise ConfigError(f"--model {told} is for bare state dicts; {path} says its own model")
    sha256 = file_sha256(path)
    decoded = time.perf_counter()
    built = _built(path, checkpoint.model, checkpoint.weights, device, CheckpointError)
    return Loaded(
        model=built,
        kind="checkpoint",
        path=path,
        file_bytes=path.stat().st_size,
        sha256=sha256,
        tokenizer=checkpoint.tokenizer,
        step=checkpoint.step,
        told=told if isinstance(told, str) else None,
        assumed=checkpoint.assumed,
        seconds={"decode": decoded - began, "build": time.perf_counter() - decoded},
    )


def _built(
    path: Path,
    config: ModelConfig,
    weights: "Mapping[str, torch.Tensor]",
    device: "torch.device | str",
    error: type[GptpackError],
) -> "LanguageModel":
    """The model of these weights; what keeps them from being its weights is an `error`."""
    from gptpack.families.golf.gpt import GPT
    from gptpack.families.language_model import state_problem

    model = GPT(config, seed=None)
    if problem := state_problem(model, weights):
        raise error(f"{path}: its tensors are not those of its model: {problem}")
    model.load_state_dict(weights)
    return model.to(device).eval()
