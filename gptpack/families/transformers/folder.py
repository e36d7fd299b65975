"""A Hugging Face folder or a GGUF file -> its model, its configuration, and the files to ship.

Nothing is downloaded and no code of the folder is run. Weights become float32.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptpack.errors import CheckpointError, GptpackError, MissingDependencyError
from gptpack.escape import first_line
from gptpack.families.language_model import not_finite
from gptpack.families.transformers.config import TransformersConfig, portable
from gptpack.families.transformers.library import check_gguf, quiet
from gptpack.families.transformers.model import TransformersModel
from gptpack.families.transformers.room import check_numbers, check_size, making
from gptpack.families.transformers.texts import TextTokenizer, read_tokenizer
from gptpack.inputs import read_input, read_text

CONFIG = "config.json"
WEIGHTS = ("[!.]*.safetensors", "pytorch_model*.bin")
"""Names of the files that hold weights; the first kind that is there is loaded."""
LEAST_TENSOR_BYTES = 64
"""Bytes that a tensor takes in such a file at least: its name, its place and its type, in words."""
QUANT_METHOD = "gptpack"
"""Name of the quantizer in ``quantization_config``."""
SHIPPED = ("generation_config.json", "LICENSE*", "LICENCE*", "NOTICE*", "README.md")
"""Names of files that go into the packed file beside those of the tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model as others keep it."""

    model: TransformersModel
    tokenizer: TextTokenizer | None
    files: Mapping[str, bytes]
    """Name and content of the files that running the model needs, beside weights and config."""
    weights: tuple[Path, ...]
    """The files that weights came from."""
    config: Path | None
    """The file that the configuration came from; None where it is in that of the weights."""
    assumed: tuple[str, ...] = ()
    """What the files do not say and was taken for granted, such as ``bos=0``."""


def read_source(path: Path) -> Source:
    """The model at `path`, a folder or a GGUF file, in evaluation mode on the CPU.

    Raises:
        CheckpointError: weights are missing, left over, or not finite; the model is none that
            predicts the next token; or the library cannot read it.
        MissingDependencyError: transformers, or gguf for such a file, is not installed.
    """
    if path.is_dir():
        for item in path.iterdir():  # the library opens what it likes of them
            if item.exists() and not (item.is_file() or item.is_dir()):
                raise CheckpointError(f"{item}: not a regular file; put the file itself there")
        values = _config_json(path / CONFIG)
        kinds = [sorted(path.glob(pattern)) for pattern in WEIGHTS]
        weights = next((kind for kind in kinds if kind), [])
        if not weights:
            raise CheckpointError(
                f"{path}: a config.json and no weights; needed model.safetensors or "
                "pytorch_model.bin, in one file or sharded"
            )
        inner = _loaded(path, values, weights)
    else:
        check_gguf()
        weights = [path]
        inner = _loaded(path, None, weights)
        values = json.loads(json.dumps(inner.config.to_dict(), default=str))
    try:
        tokenizer, files = read_tokenizer(path)
        for pattern in SHIPPED if path.is_dir() else ():
            files |= {f.name: read_input(f) for f in sorted(path.glob(pattern)) if f.is_file()}
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot read it: {error.strerror}") from error
    begins = tokenizer is not None and tokenizer.begins_with is not None
    start = tokenizer.begins_with if begins and tokenizer else values.get("bos_token_id")
    bos, said = _first_token(start, values)
    with _refusing(f"{path}: transformers cannot run it", CheckpointError, f"{path}: "):
        config = TransformersConfig(values=portable(values), bos=bos, begins=begins)
        model = TransformersModel(inner, config, as_linear(inner))
    if broken := not_finite(model.weights()):
        raise CheckpointError(f"{path}: not finite: {', '.join(broken[:4])}")
    return Source(
        model=model,
        tokenizer=tokenizer,
        files=files,
        weights=tuple(weights),
        config=path / CONFIG if path.is_dir() else None,
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
    held = sum(value.numel() for value in weights.values())
    with quiet() as library, _refusing(f"transformers cannot make a {config.model_type}", error):
        made, skeleton = _skeleton(library, config.values, len(weights), held)
        shapes = {name: value.shape for name, value in skeleton.state_dict().items()}
        names = {id(v): n for n, v in reversed(list(skeleton.state_dict(keep_vars=True).items()))}
        if problem := _difference(shapes, set(names.values()), weights):
            raise error(f"its tensors are not those of its model: {problem}")
        inner = type(skeleton).from_pretrained(
            None,
            config=made,
            state_dict=dict(weights),
            dtype=torch.float32,
            attn_implementation=_attention(type(skeleton)),
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
        values = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not a configuration in JSON: {first_line(error)}"
        ) from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise CheckpointError(f"{path}: does not say its model_type; needed transformers' own file")
    if "quantization_config" in values:
        ours = values["quantization_config"] == {"quant_method": QUANT_METHOD}
        better = "packed file that it was unpacked from" if ours else "folder of the original model"
        raise CheckpointError(f"{path}: the weights are quantized already; give the {better}")
    with _refusing(f"{path}: no configuration", CheckpointError, f"{path}: "):
        TransformersConfig(values=portable(values))
    return values


def _skeleton(
    library: Any, values: Mapping[str, Any], tensors: int, weights: int
) -> tuple[Any, Any]:
    """The library's configuration of `values`, and its model on the device ``meta``.

    Raises:
        ConfigError: so many tensors of so many weights could not fill it.
    """
    said = portable(values)
    check_numbers(said, tensors=tensors, weights=weights)
    made = library.AutoConfig.for_model(said.pop("model_type"), **said)
    with torch.device("meta"), making(tensors, weights):
        skeleton = library.AutoModelForCausalLM.from_config(
            made, trust_remote_code=False, attn_implementation="eager"
        )
    check_size(skeleton, weights)
    return made, skeleton


def _attention(kind: Any) -> str:
    """Name of the attention of a class of models, chosen here: a configuration may name code."""
    return "sdpa" if kind._supports_sdpa else "eager"


def _loaded(path: Path, values: Mapping[str, Any] | None, files: list[Path]) -> Any:
    """The model of `files` as transformers loads it, every weight of it from there.

    Args:
        values: the folder's configuration; None for a GGUF file, which holds its own.
    """
    arguments: dict[str, Any] = {"output_loading_info": True, "dtype": torch.float32}
    size = sum(each.stat().st_size for each in files)
    said = f"{path}: transformers cannot load it"
    with quiet() as library, _refusing(said, CheckpointError, f"{path}: "):
        kind = library.AutoModelForCausalLM
        if values is None:
            arguments |= {"gguf_file": path.name, "trust_remote_code": False}
        else:
            made, skeleton = _skeleton(library, values, size // LEAST_TENSOR_BYTES, size)
            kind = type(skeleton)
            arguments |= {
                "config": made,
                "use_safetensors": files[0].suffix == ".safetensors",
                "attn_implementation": _attention(kind),
            }
        model, info = kind.from_pretrained(
            str(path if values else path.parent), local_files_only=True, **arguments
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} tensors are not in its files, such as {missing[0]}"
        )
    return model.eval()


@contextmanager
def _refusing(what: str, error: type[GptpackError], before: str = "") -> Iterator[None]:
    """Turn whatever a hostile configuration provokes in the library into an `error` of one line."""
    try:
        yield
    except MissingDependencyError:
        raise
    except GptpackError as cause:
        raise error(f"{before}{cause}") from cause
    except Exception as cause:
        raise error(f"{what}: {first_line(cause)}") from cause


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
