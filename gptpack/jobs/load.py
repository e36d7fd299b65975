"""A path -> the model of that checkpoint, folder or packed file, built, checked and hashed once."""

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gptpack.artifact.layout import LFS_POINTER, MAGIC
from gptpack.artifact.memory import memory_here
from gptpack.artifact.record import PackRecord
from gptpack.errors import ArtifactError, CheckpointError, ConfigError, GptpackError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.transformers.config import TransformersConfig
from gptpack.inputs import FOLDER, GGUF, file_sha256, kind_of, opened
from gptpack.values import TokenizerIdentity, check_choice

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from gptpack.families.language_model import LanguageModel
    from gptpack.families.transformers.texts import TextTokenizer

DTYPES = ("float32", "bfloat16", "float16")
"""Types that weights can be loaded in."""
LARGEST_EXCESS = 4
"""A model is not even allocated if its matrices have so many times the weights of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model in memory, in evaluation mode, and what its file says of it."""

    language_model: "LanguageModel | None"
    """The model as packing and evaluation see it; None of a packed module, see `state_dict`."""
    kind: Literal["artifact", "checkpoint"]
    """``artifact`` is a packed file."""
    path: Path | None = None
    """The file or folder; None where the model was made in memory."""
    file_bytes: int = 0
    sha256: str | None = None
    """SHA-256 of the file, in hexadecimal; of a folder, that of all files it was made of."""
    tokenizer_identity: TokenizerIdentity | None = None
    """Which tokenizer the tokens belong to; None where a checkpoint does not say."""
    tokenizer: "TextTokenizer | None" = None
    """The tokenizer that came with the model; None where none did."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Name and content of the files that go with the model, such as those of its tokenizer."""
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
    tensors: Mapping[str, "torch.Tensor"] = field(default_factory=dict, repr=False)
    """The tensors of a packed module, by name."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Further names of those tensors, each with the name in `tensors`."""

    def runnable(self) -> "LanguageModel":
        """The model as packing and evaluation see it.

        Raises:
            ConfigError: the file holds the tensors of a module that its packer's caller made.
        """
        if self.language_model is None:
            raise ConfigError(
                f"{self.path}: holds a module's tensors, not how to run it; load its state_dict() "
                "into that module, and wrap it in gptpack.Module"
            )
        return self.language_model

    @property
    def bos(self) -> int | None:
        """The token that begins a document; None where the file does not say it."""
        if self.tokenizer_identity is not None:
            return self.tokenizer_identity.bos
        assumed = any(fact.startswith("bos=") for fact in self.assumed)
        return None if assumed else self.runnable().config.bos

    @property
    def model(self) -> "torch.nn.Module":
        """The module: for a Hugging Face model, transformers' own class.

        Raises:
            ConfigError: see `runnable`.
        """
        return self.runnable().module

    def generate(self, prompt: str, **settings: Any) -> Iterator[str]:
        """Text that follows `prompt`, in pieces as it is drawn.

        `settings` are those of `gptpack.jobs.sample.generate`: `max_tokens`, `temperature`,
        `top_p`, `seed`, `chat`, and `tokenizer` for models that do not bring theirs.
        """
        from gptpack.jobs.sample import generate

        return generate(self, prompt, **settings)

    def state_dict(self) -> "dict[str, torch.Tensor]":
        """The model's state, by the names that its module has; float32 unless loaded otherwise."""
        if self.language_model is not None:
            return self.model.state_dict()
        return {**self.tensors, **{name: self.tensors[own] for name, own in self.tied.items()}}


def load(
    path: str | Path,
    *,
    model: str | ModelConfig | None = None,
    device: "torch.device | str" = "cpu",
    dtype: "torch.dtype | str | None" = None,
    limit_bytes: int | None = None,
) -> Loaded:
    """The model of the checkpoint, Hugging Face folder, GGUF or packed file at `path`.

    The first bytes tell files apart. All checksums of a packed file are verified, that of its
    float32 weights too, and no model is allocated that the file's tensors could not fill. Nothing
    in a file is run, and nothing is downloaded.

    Args:
        model: what a bare state dict does not say: a recipe, by file or name, whose ``[model]`` it
            has, or the configuration itself.
        device: where the weights go: a device, or ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: ``float32``, ``bfloat16`` or ``float16``: type that the weights get once all is
            verified, and that the model computes in. None leaves them in float32; our own family
            then computes in bfloat16 on CUDA.
        limit_bytes: memory that decoding a packed file may take, see
            `gptpack.artifact.reader.read_artifact`; None takes what is free on this machine.

    Raises:
        CheckpointError: no checkpoint, or its tensors are not those of its model.
        ConfigError: `model` is given, and the file says its own; no such device or type.
        ArtifactError: a packed file that is corrupt or hostile.
        MissingDependencyError: the codec of a section, transformers, the device or enough memory
            is not there.

    Example:
        >>> loaded = gptpack.load("model.gptpack")
        >>> loaded.kind, loaded.record.method, type(loaded.model).__name__
        ('artifact', 'gptq-trellis', 'GPT')
        >>> gptpack.load("checkpoint.pt").sha256 == loaded.record.checkpoint_sha256
        True
    """
    path = Path(path)
    if isinstance(device, str):
        from gptpack.ranks import pick_device

        device = pick_device(device)
    kind = None if dtype is None else str(dtype).removeprefix("torch.")
    check_choice("dtype", kind, (None, *DTYPES))
    packed, foreign = is_packed(path), is_transformers(path)
    if model is not None and (packed or foreign):
        raise ConfigError(f"--model {model} is for bare state dicts; {path} says its own model")
    if packed:
        with memory_here():
            loaded = load_packed(path, device, limit_bytes)
    elif foreign:
        loaded = _load_transformers(path, device)
    else:
        loaded = _load_checkpoint(path, model, device)
    return loaded if kind is None else _converted(loaded, kind)


def _converted(loaded: Loaded, kind: str) -> Loaded:
    """`loaded` with its weights, or its tensors, in the type of this name."""
    import torch

    dtype = getattr(torch, kind)
    if loaded.language_model is not None:
        loaded.language_model.convert(dtype)
    return replace(loaded, tensors={n: value.to(dtype) for n, value in loaded.tensors.items()})


def is_packed(path: Path) -> bool:
    """Whether the file begins as a packed one, or as what became of one on its way here."""
    try:
        with opened(path) as file:
            start = file.read(len(LFS_POINTER))
    except OSError:  # of what is no file its reader says more
        return False
    return not start or start.startswith((MAGIC[:6], LFS_POINTER))


def is_transformers(path: Path) -> bool:
    """Whether this is a folder with a ``config.json``, or a GGUF file."""
    return kind_of(path) in (FOLDER, GGUF)


def load_packed(
    path: Path, device: "torch.device | str" = "cpu", limit_bytes: int | None = None
) -> Loaded:
    """`load` of a packed file."""
    import torch

    from gptpack.artifact.reader import read_artifact
    from gptpack.artifact.tables import TRANSPOSED, further_names

    began = time.perf_counter()
    values: dict[str, npt.NDArray[np.float32]] = {}
    with _imports_of(path):
        artifact = read_artifact(
            path, verify_weights=True, keep=values.__setitem__, limit_bytes=limit_bytes
        )
    header = artifact.header
    sha256 = file_sha256(path)
    decoded = time.perf_counter()
    weights = {name: torch.from_numpy(made) for name, made in values.items()}
    for entry in header.tensors:
        if TRANSPOSED in entry.parameters and header.version > 1:
            weights[entry.name] = weights[entry.name].T.contiguous()
    tokenizer = None
    model: LanguageModel | None = None
    if isinstance(header.model, TransformersConfig):
        from gptpack.families.transformers.folder import build
        from gptpack.families.transformers.texts import tokenizer_of

        try:
            model = build(header.model, weights, ArtifactError)
            tokenizer = tokenizer_of(artifact.files)
            named = header.tokenizer
            if tokenizer and named and tokenizer.sha256 != named.sha256:
                raise ArtifactError("its tokenizer.json is not the one that its header names")
        except GptpackError as error:
            raise type(error)(f"{path}: {error}") from error
    elif isinstance(header.model, ModelConfig):
        model = _built(path, header.model, weights, ArtifactError)
    return Loaded(
        language_model=None if model is None else model.to(device).eval(),
        tensors={} if model is not None else {n: v.to(device) for n, v in weights.items()},
        tied={} if model is not None else further_names(header.tensors),
        kind="artifact",
        path=path,
        file_bytes=header.file_bytes,
        sha256=sha256,
        tokenizer_identity=header.tokenizer,
        tokenizer=tokenizer,
        files=artifact.files,
        record=header.record,
        weights_sha256=header.weights_sha256,
        seconds={"decode": decoded - began, "build": time.perf_counter() - decoded},
    )


@contextmanager
def _imports_of(path: Path) -> Iterator[None]:
    """Import what the model in the file at `path` needs while the body runs: both take seconds."""
    from gptpack.artifact.front import read_header

    config = read_header(path).model
    if not isinstance(config, TransformersConfig):
        yield
        return
    from gptpack.families.transformers.library import import_model

    # not waited for where the body fails: an interrupt may have left it without its turn for ever
    beside = threading.Thread(target=import_model, args=(config.model_type,), daemon=True)
    beside.start()
    yield
    beside.join()


def _check_room(
    path: Path,
    config: ModelConfig,
    weights: "Mapping[str, torch.Tensor]",
    error: type[GptpackError],
) -> None:
    """Refuse a golf model of a shape that the file's tensors could not fill."""
    needed, held = config.least_weights(), sum(tensor.numel() for tensor in weights.values())
    if config.layers > len(weights):
        raise error(f"{path}: {config.layers:,} layers cannot be made of {len(weights):,} tensors")
    if needed > LARGEST_EXCESS * held:
        raise error(
            f"{path}: a model of this shape has {needed:,} weights in its matrices alone, but the "
            f"file holds {held:,}"
        )


def _load_transformers(path: Path, device: "torch.device | str") -> Loaded:
    from gptpack.families.transformers.folder import read_source

    began = time.perf_counter()
    source = read_source(path)
    config = source.model.config
    parts = [*source.weights, *([] if source.config is None else [source.config])]
    hashes = "".join(f"{each.name} {file_sha256(each)}\n" for each in parts)
    identity = None
    if source.tokenizer is not None:
        identity = source.tokenizer.identity(config.vocab, config.bos)
    return Loaded(
        language_model=source.model.to(device).eval(),
        kind="checkpoint",
        path=path,
        file_bytes=sum(each.stat().st_size for each in source.weights),
        sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        tokenizer_identity=identity,
        tokenizer=source.tokenizer,
        files=source.files,
        assumed=source.assumed,
        seconds={"build": time.perf_counter() - began},
    )


def _load_checkpoint(
    path: Path, told: str | ModelConfig | None, device: "torch.device | str"
) -> Loaded:
    from gptpack.training.checkpoint import load_checkpoint
    from gptpack.training.recipe import load_recipe

    began = time.perf_counter()
    shape = load_recipe(told).model if isinstance(told, str) else told
    with ThreadPoolExecutor(1) as beside:
        hashed = beside.submit(file_sha256, path)
        checkpoint = load_checkpoint(path, shape)
    # a bare state dict has the model that it was told, any other file its own
    if isinstance(told, str) and checkpoint.model is not shape:
        raise ConfigError(f"--model {told} is for bare state dicts; {path} says its own model")
    sha256 = hashed.result()
    decoded = time.perf_counter()
    if isinstance(checkpoint.model, TransformersConfig):
        from gptpack.families.transformers.folder import build

        built: LanguageModel = build(
            checkpoint.model, checkpoint.weights, CheckpointError, linear=True
        )
    else:
        built = _built(path, checkpoint.model, checkpoint.weights, CheckpointError)
    return Loaded(
        language_model=built.to(device).eval(),
        kind="checkpoint",
        path=path,
        file_bytes=path.stat().st_size,
        sha256=sha256,
        tokenizer_identity=checkpoint.tokenizer,
        step=checkpoint.step,
        told=told if isinstance(told, str) else None,
        assumed=checkpoint.assumed,
        seconds={"decode": decoded - began, "build": time.perf_counter() - decoded},
    )


def _built(
    path: Path,
    config: ModelConfig,
    weights: "Mapping[str, torch.Tensor]",
    error: type[GptpackError],
) -> "LanguageModel":
    """The model of these weights; what keeps them from being its weights is an `error`."""
    from gptpack.families.golf.gpt import model_of
    from gptpack.families.language_model import state_problem

    _check_room(path, config, weights, error)
    model = model_of(config, seed=None)
    if problem := state_problem(model, weights):
        raise error(f"{path}: its tensors are not those of its model: {problem}")
    model.load_state_dict(weights)
    return model
