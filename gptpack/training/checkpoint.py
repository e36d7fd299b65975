"""Weights, configuration and training state <-> one file, read without running anything in it.

Three kinds of file are accepted: gptpack's own checkpoint, a plain state dict of the reference
(`final_model.pt`, also with its matrices in banks), and the same as safetensors.
"""

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gptpack.atomic import replacing
from gptpack.errors import CheckpointError
from gptpack.families.golf.config import ModelConfig
from gptpack.training.recipe import Recipe
from gptpack.values import TokenizerIdentity, from_dict, to_dict

VERSION = 1
_MARK = "gptpack_checkpoint"

BANKS = {
    "qo_bank": ("attn.c_q.weight", "attn.proj.weight"),
    "kv_bank": ("attn.c_k.weight", "attn.c_v.weight"),
    "mlp_up_bank": ("mlp.fc.weight",),
    "mlp_down_bank": ("mlp.proj.weight",),
}
"""Banked matrices of the reference: the layers of the first role, then those of the second."""
_UNREADABLE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What torch's loader raises on files that are damaged."""
NEWER_PARTS = ("bigram", "smear", "ve_", "skip_gates", "lambdas", "gate")
"""Parts of names of tensors that no baseline has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a checkpoint holds; `weights` are float32 on the CPU."""

    model: ModelConfig
    weights: Mapping[str, Tensor]
    tokenizer: TokenizerIdentity | None = None
    recipe: Recipe | None = None
    step: int = 0
    training: Mapping[str, Any] | None = None
    """State that only resuming needs: raw weights, optimizers, seconds spent."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: whoever is interrupted leaves the previous file or none.

    Raises:
        CheckpointError: the file cannot be written.
    """
    content = {
        _MARK: VERSION,
        "model": to_dict(checkpoint.model),
        "tokenizer": to_dict(checkpoint.tokenizer) if checkpoint.tokenizer else None,
        "recipe": to_dict(checkpoint.recipe) if checkpoint.recipe else None,
        "step": checkpoint.step,
        "weights": dict(checkpoint.weights),
        "training": checkpoint.training,
    }
    with replacing(path, CheckpointError) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's word for what the file system refuses
            raise CheckpointError(
                f"{path}: cannot write, the disk may be full; choose another directory or free "
                "some space"
            ) from error


def load_checkpoint(path: Path, model: ModelConfig | None = None) -> Checkpoint:
    """Read a checkpoint; `model` says the shape where the file does not.

    Raises:
        CheckpointError: unreadable, not a checkpoint, or a shape that has to be told.
    """
    content = _read(path)
    if _MARK not in content:
        weights = _plain_state(path, content)
        return Checkpoint(model=model or _infer(path, weights), weights=weights)
    version = content[_MARK]
    if not isinstance(version, int) or version != VERSION:
        raise CheckpointError(f"{path}: checkpoint version {version!r:.20}, needed {VERSION}")
    try:
        return Checkpoint(
            model=from_dict(ModelConfig, content["model"]),
            weights={name: _tensor(path, name, t) for name, t in content["weights"].items()},
            tokenizer=content["tokenizer"] and from_dict(TokenizerIdentity, content["tokenizer"]),
            recipe=content["recipe"] and from_dict(Recipe, content["recipe"]),
            step=int(content["step"]),
            training=content["training"],
        )
    except CheckpointError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint: {error!r}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            # torch warns of unusual pickle protocols before it refuses them
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot read the checkpoint: {error.strerror or error}"
        ) from error
    except _UNREADABLE as error:
        # torch's own words end in the advice to load it without the weights-only loader
        raise CheckpointError(
            f"{path}: not a checkpoint that torch's weights-only loader reads; needed a file that "
            "torch.save or safetensors wrote, of tensors and plain values"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, needed a state dict")
    return content


def _tensor(path: Path, name: Any, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or not isinstance(name, str):
        found = type(value).__name__
        raise CheckpointError(f"{path}: '{name}' is a {found}; a state dict holds tensors only")
    dense = value.layout is torch.strided and not (value.is_meta or value.is_quantized)
    if value.is_complex() or not dense:
        raise CheckpointError(
            f"{path}: {name} is a tensor of {value.dtype}, {value.layout}, on {value.device}; "
            "needed real numbers, all of them in the file"
        )
    return value.detach().to(torch.float32)


def _plain_state(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The reference's state dict under its unbanked names."""
    prefixes = ("_orig_mod.", "module.")
    named: dict[str, Tensor] = {}
    for key, value in content.items():
        tensor = _tensor(path, key, value)
        name = key.removeprefix(prefixes[0]).removeprefix(prefixes[1])
        roles = BANKS.get(name)
        if roles is None:
            named[name] = tensor
            continue
        if tensor.ndim != 3 or tensor.shape[0] % len(roles):
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, needed {len(roles)} equal "
                "stacks of matrices"
            )
        layers = tensor.shape[0] // len(roles)
        for index, matrix in enumerate(tensor):
            named[f"blocks.{index % layers}.{roles[index // layers]}"] = matrix.clone()
    return named


def _infer(path: Path, weights: Mapping[str, Tensor]) -> ModelConfig:
    """The shape of a baseline checkpoint; anything newer has switches that no shape shows."""
    try:
        vocab, width = weights["tok_emb.weight"].shape
        layers = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("blocks."))
        heads = weights["blocks.0.attn.q_gain"].shape[0]
        kv_width = weights["blocks.0.attn.c_k.weight"].shape[0]
        mlp_hidden = weights["blocks.0.mlp.fc.weight"].shape[0]
        newer = [name for name in weights if any(part in name for part in NEWER_PARTS)]
        if newer:
            raise CheckpointError(
                f"{path}: a state dict with {newer[0]} does not show its whole configuration "
                "(RoPE, XSA, activation); name its recipe with --model"
            )
        return ModelConfig(
            vocab=vocab,
            layers=layers,
            width=width,
            heads=heads,
            kv_heads=kv_width // (width // heads),
            mlp_hidden=mlp_hidden,
            tied_embedding="lm_head.weight" not in weights,
        )
    except (LookupError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path}: not a checkpoint of gptpack or of the reference ({error})"
        ) from error
