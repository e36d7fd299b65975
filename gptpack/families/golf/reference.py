"""The reference's state dict (openai/parameter-golf) -> our names of its weights, and its shape.

Its scripts save ``final_model.pt`` in several spellings: with the prefix of a compiled or a
distributed model, and with the matrices of all layers stacked in banks.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gptpack.errors import CheckpointError
from gptpack.families.golf.config import ModelConfig

PREFIXES = ("_orig_mod.", "module.")
BANKS = {
    "qo_bank": ("attn.c_q.weight", "attn.proj.weight"),
    "kv_bank": ("attn.c_k.weight", "attn.c_v.weight"),
    "mlp_up_bank": ("mlp.fc.weight",),
    "mlp_down_bank": ("mlp.proj.weight",),
}
"""Roles of the matrices in a bank: all layers of the first role, then all of the second."""
NEWER_PARTS = ("bigram", "smear", "ve_", "skip_gates", "lambdas", "gate")
"""Parts of tensors' names that no baseline has."""


def float_tensor(where: object, name: Any, value: Any) -> Tensor:
    """A state dict's entry as float32; CheckpointError if it is no tensor of real numbers."""
    if not isinstance(value, Tensor) or not isinstance(name, str):
        found = type(value).__name__
        raise CheckpointError(f"{where}: '{name}' is a {found}; a state dict holds tensors only")
    dense = value.layout is torch.strided and not (value.is_meta or value.is_quantized)
    if value.is_complex() or not dense:
        raise CheckpointError(
            f"{where}: {name} is a tensor of {value.dtype}, {value.layout}, on {value.device}; "
            "needed real numbers, all of them in the file"
        )
    return value.detach().to(torch.float32)


def unbanked(where: object, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a state dict under our names; CheckpointError if it holds anything else."""
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        tensor = float_tensor(where, key, value)
        name = key.removeprefix(PREFIXES[0]).removeprefix(PREFIXES[1])
        roles = BANKS.get(name)
        if roles is None:
            named[name] = tensor
            continue
        if tensor.ndim != 3 or tensor.shape[0] % len(roles):
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, needed {len(roles)} equal "
                "stacks of matrices"
            )
        layers = tensor.shape[0] // len(roles)
        for index, matrix in enumerate(tensor):
            named[f"blocks.{index % layers}.{roles[index // layers]}"] = matrix.clone()
    return named


def infer_config(where: object, weights: Mapping[str, Tensor]) -> ModelConfig:
    """The configuration of a baseline's `weights`, by their shapes.

    Raises:
        CheckpointError: not weights of the reference, or with parts whose switches no shape shows.
    """
    try:
        vocab, width = weights["tok_emb.weight"].shape
        layers = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("blocks."))
        heads = weights["blocks.0.attn.q_gain"].shape[0]
        kv_width = weights["blocks.0.attn.c_k.weight"].shape[0]
        mlp_hidden = weights["blocks.0.mlp.fc.weight"].shape[0]
        newer = [name for name in weights if any(part in name for part in NEWER_PARTS)]
        if newer:
            raise CheckpointError(
                f"{where}: a state dict with {newer[0]} does not show its whole configuration "
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
            f"{where}: not a checkpoint of gptpack or of the reference ({error})"
        ) from error
