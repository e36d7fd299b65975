"""A Hugging Face folder or a GGUF file -> its model, its configuration, and the files to ship.

Nothing is downloaded and no code of the folder is run. Weights become float32.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptpack.errors import CheckpointError, ConfigError, GptpackError
from gptpack.families.language_model import not_finite
from gptpack.families.transformers.config import TransformersConfig, portable
from gptpack.families.transformers.library import check_gguf, quiet
from gptpack.families.transformers.model import TransformersModel
from gptpack.families.transformers.texts import TextTokenizer, read_tokenizer

CONFIG = "config.json"
GGUF = b"GGUF"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Names of the files that hold weights; the first kind that is there is loaded."""
SHIPPED = ("generation_config.json", "LICENSE*", "LICENCE*", "NOTICE*", "README.md")
"""Names of files that go into the packed file beside those of the tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model as others keep it."""

    model: TransformersModel
    tokenizer: TextTokenizer | None
    files: Mapping[str, bytes]
    """Name and content of the files that running the model needs, beside weights and config."""
    sha256: str
    """One digest of all files that weights and configuration came from."""
    file_bytes: int
    assumed: tuple[str, ...] = ()
    """What the files do not say and was taken for granted, such as ``bos=0``."""


def is_transformers(path: Path) -> bool:
    """Whether there is a folder with a ``config.json``, or a GGUF file."""
    if path.is_dir():
        return (path / CONFIG).is_file()
    try:
        with path.open("rb") as file:
            return file.read(len(GGUF)) == GGUF
    except OSError:
        return False


def read_source(path: Path) -> Source:
    """The model at `path`, a folder or a GGUF file, in evaluation mode on the CPU.

    Raises:
        CheckpointError: weights are missing, left over, or not finite; the model is none that
            predicts the next token; or the library cannot read it.
        MissingDependencyError: transformers, or gguf for such a file, is not installed.
    """
    if path.is_dir():
        values = _config_json(path / CONFIG)
        arguments: dict[str, Any] = {"pretrained_model_name_or_path": str(path)}
        kinds = [sorted(path.glob(pattern)) for pattern in WEIGHTS]
        weights = next((kind for kind in kinds if kind), [])
        if not weights:
            raise CheckpointError(
                f"{path}: a config.json and no weights; needed model.safetensors or "
                "pytorch_model.bin, in one file or sharded"
            )
        arguments["use_safetensors"] = weights[0].suffix == ".safetensors"
    else:
        check_gguf()
        values, weights = None, [path]
        arguments = {
            "pretrained_model_name_or_path": str(path.parent),
            "gguf_file": path.name,
        }
    inner = _loaded(path, arguments)
    if values is None:
        values = json.loads(json.dumps(inner.config.to_dict(), default=str))
    tokenizer, files = read_tokenizer(path)
    if path.is_dir():
        for pattern in SHIPPED:
            files |= {f.name: f.read_bytes() for f in sorted(path.glob(pattern)) if f.is_file()}
    begins = tokenizer is not None and tokenizer.begins_with is not None
    start = tokenizer.begins_with if begins and tokenizer else values.get("bos_token_id")
    bos, said = _first_token(start, values)
    try:
        config = TransformersConfig(values=portable(values), bos=bos, begins=begins)
        model = TransformersModel(inner, config, as_linear(inner))
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if broken := not_finite(model.weights()):
        raise CheckpointError(f"{path}: not finite: {', '.join(broken[:4])}")
    parts = [*weights, path / CONFIG] if path.is_dir() else weights
    hashes = "".join(f"{each.name} {_sha256(each)}\n" for each in parts)
    return Source(
        model=model,
        tokenizer=tokenizer,
        files=files,
        sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        file_bytes=sum(each.stat().st_size for each in weights),
        assumed=() if said else (f"bos={bos}",),
    )


def build(
    config: TransformersConfig,
    weights: Mapping[str, Tensor],
    error: type[GptpackError],
    *,
    linear: bool = False,
) -> TransformersModel:
    """The model of these weights, on the CPU; names as in a state of transformers' own model.

    Its shapes are compared before anything is allocated.

    Args:
        linear: put a Linear in place of each Conv1D, for packing.

    Raises:
        error: the library knows no such model, or `weights` are not those of one.
    """
    if config.layers > len(weights):
        raise error(f"{config.layers:,} layers cannot be made of {len(weights):,} tensors")
    with quiet() as library:
        try:
            values = portable(config.values)
            made = library.AutoConfig.for_model(values.pop("model_type"), **values)
            with torch.device("meta"):
                skeleton = library.AutoModelForCausalLM.from_config(
                    made, trust_remote_code=False, attn_implementation="eager"
                )
        except Exception as cause:  # whatever a hostile configuration provokes in the library
            raise error(
                f"transformers cannot make a {config.model_type}: {_line(cause)}"
            ) from cause
        shapes = {name: value.shape for name, value in skeleton.state_dict().items()}
        names = {id(v): n for n, v in reversed(list(skeleton.state_dict(keep_vars=True).items()))}
        if problem := _difference(shapes, set(names.values()), weights):
            raise error(f"its tensors are not those of its model: {problem}")
        inner = type(skeleton).from_pretrained(
            None,
            config=made,
            state_dict=dict(weights),
            dtype=torch.float32,
            attn_implementation="sdpa" if skeleton._supports_sdpa else "eager",
        )
    return TransformersModel(inner.eval(), config, as_linear(inner) if linear else frozenset())


def as_linear(inner: nn.Module) -> frozenset[str]:
    """Put a Linear in place of each Conv1D, whose weight is ``[C, R]``; returns their names."""
    with quiet() as library:
        conv1d = library.pytorch_utils.Conv1D
    found = []
    for path, module in list(inner.named_modules()):
        if not isinstance(module, conv1d):
            continue
        weight = module.weight
        linear = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
        linear.weight = nn.Parameter(weight.detach().T.contiguous())
        linear.bias = module.bias
        parent, _, name = path.rpartition(".")
        setattr(inner.get_submodule(parent), name, linear)
        found.append(f"{path}.weight")
    return frozenset(found)


def _config_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a configuration in JSON: {_line(error)}") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise CheckpointError(f"{path}: does not say its model_type; needed transformers' own file")
    if "quantization_config" in values:
        raise CheckpointError(
            f"{path}: the weights are quantized already; give the folder of the original model"
        )
    return values


def _loaded(path: Path, arguments: Mapping[str, Any]) -> Any:
    """The model of a folder as transformers loads it, every weight of it from there."""
    with quiet() as library:
        try:
            model, info = library.AutoModelForCausalLM.from_pretrained(
                **arguments,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:  # the library's errors are of many kinds
            raise CheckpointError(f"{path}: transformers cannot load it: {_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} tensors are not in its files, such as {missing[0]}"
        )
    return model.eval()


def _first_token(token: Any, values: Mapping[str, Any]) -> tuple[int, bool]:
    """The token that a text begins with, and whether `token` says it; else EOS, or 0."""
    vocab = values.get("vocab_size", 0)
    usable = [type(t) is int and 0 <= t < vocab for t in (token, values.get("eos_token_id"))]
    if usable[0]:
        return token, True
    return (values["eos_token_id"] if usable[1] else 0), False


def _difference(
    shapes: Mapping[str, torch.Size], firsts: set[str], weights: Mapping[str, Tensor]
) -> str:
    """How `weights` differ from tensors of `shapes`, of which `firsts` are not tied to others."""
    if missing := sorted(firsts - weights.keys()):
        return f"missing {', '.join(missing[:4])}"
    if extra := sorted(weights.keys() - shapes.keys()):
        return f"unexpected {', '.join(extra[:4])}"
    for name, value in weights.items():
        if value.shape != shapes[name]:
            return f"{name} has shape {tuple(value.shape)}, needed {tuple(shapes[name])}"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(error: BaseException) -> str:
    """The first line of a message, in printable ASCII characters."""
    first = str(error).strip().splitlines() or [type(error).__name__]
    return f"{ascii(first[0])[1:-1]:.300}"
