"""A contest's state dict (openai/parameter-golf) -> our names of its weights, and its shape.

Its scripts save ``final_model.pt`` in several spellings: with the prefixes of a compiled and of a
distributed model, with the head that is the embedding twice, and with the matrices of all layers
stacked in banks. Other scripts put the state dict beside an optimizer's.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gptpack.errors import CheckpointError
from gptpack.families.golf.config import ModelConfig

NESTS = ("model", "model_state_dict", "state_dict")
"""Keys that hold the weights where a file holds more than those."""
DEEPEST = 3
"""Most of these keys inside each other; a dictionary in a file may hold itself."""
MOST_SHARED = 4
"""Times, on average, that a number of a file may belong to a tensor; tied heads share theirs."""
COMPILED = "_orig_mod."
DISTRIBUTED = "module."
BUFFERS = ("mask", "causal_mask", "attn_mask", "masked_bias", "position_ids", "tril")
"""Last parts of names of integers and booleans that follow from the shape."""
BANKS = {
    "qo_bank": ("attn.c_q.weight", "attn.proj.weight"),
    "kv_bank": ("attn.c_k.weight", "attn.c_v.weight"),
    "mlp_up_bank": ("mlp.fc.weight",),
    "mlp_down_bank": ("mlp.proj.weight",),
}
"""Roles of the matrices in a bank: all layers of the first role, then all of the second."""
NEWER_PARTS = ("bigram", "smear", "ve_", "skip_gates", "lambdas", "gate")
"""Parts of tensors' names that no baseline has."""
EMBEDDING, HEAD = "tok_emb.weight", "lm_head.weight"


def state_dict_in(where: object, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in what a file holds, which may be all of it.

    Raises:
        CheckpointError: two of the keys that hold one have tensors under them.
    """
    for _ in range(DEEPEST):
        found = [key for key in NESTS if _holds_weights(content.get(key))]
        if len(found) > 1:
            raise CheckpointError(
                f"{where}: tensors under '{found[0]}' and under '{found[1]}'; save the one that is "
                "the model's state dict"
            )
        if not found:
            break
        content = content[found[0]]
    return content


def _holds_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and (
        any(isinstance(each, Tensor) for each in value.values())
        or any(isinstance(value.get(key), Mapping) for key in NESTS)
    )


def whole_tensor(where: object, name: Any, value: Any) -> Tensor:
    """A file's `value` if it is a tensor all of whose numbers are in the file, else an error."""
    if not isinstance(value, Tensor) or not isinstance(name, str):
        found = type(value).__name__
        raise CheckpointError(f"{where}: '{name}' is a {found}; a state dict holds tensors only")
    if not _is_whole(value):
        raise CheckpointError(
            f"{where}: {name} is a tensor of {value.dtype}, {value.layout}, on {value.device}; "
            "needed real numbers, all of them in the file"
        )
    return value


def _is_whole(tensor: Tensor) -> bool:
    """Whether all of a tensor's numbers are there; one that repeats a few takes more memory."""
    dense = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)
    return dense and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def float_tensor(where: object, name: Any, value: Any) -> Tensor:
    """A state dict's entry as float32; CheckpointError if it is no tensor of real numbers."""
    tensor = whole_tensor(where, name, value)
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{where}: {name} is a tensor of {tensor.dtype}, which no weight is; needed real "
            "numbers (float), so leave it out of the state dict"
        )
    return tensor.detach().to(torch.float32)


def own_weights(where: object, weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint of ours, float32; CheckpointError as `named_weights` raises."""
    _check_storage(where, weights)
    return {name: float_tensor(where, name, value) for name, value in weights.items()}


def _check_storage(where: object, state: Mapping[str, Any]) -> None:
    """Refuse tensors that share their numbers so often that the file does not justify them."""
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    whole = [t for t in tensors if _is_whole(t)]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in whole}
    needed = sum(t.numel() * t.element_size() for t in whole)
    if needed > MOST_SHARED * sum(held.values()):
        raise CheckpointError(
            f"{where}: {len(whole):,} tensors of {needed:,} bytes on {sum(held.values()):,} bytes "
            "of numbers; save each with numbers of its own"
        )


def named_weights(where: object, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a state dict by name, without prefixes and masks, float32.

    Raises:
        CheckpointError: it holds anything else, or two different tensors of one name.
    """
    _check_storage(where, state)
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _plain(key) if isinstance(key, str) else key
        if not _is_mask(name, value):
            _enter(where, named, name, float_tensor(where, name, value))
    return named


def unbanked(where: object, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with those of banks under a name each; CheckpointError if a bank is none."""
    weights: dict[str, Tensor] = {}
    for name, tensor in named.items():
        roles = BANKS.get(name)
        if roles is None:
            _enter(where, weights, name, tensor)
            continue
        if tensor.ndim != 3 or tensor.shape[0] % len(roles):
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, needed {len(roles)} equal "
                "stacks of matrices"
            )
        layers = tensor.shape[0] // len(roles)
        for index, matrix in enumerate(tensor):
            single = f"blocks.{index % layers}.{roles[index // layers]}"
            _enter(where, weights, single, matrix.clone())
    return weights


def _plain(key: str) -> str:
    name = key.replace(COMPILED, "")
    while name.startswith(DISTRIBUTED):
        name = name.removeprefix(DISTRIBUTED)
    return name


def _is_mask(name: Any, value: Any) -> bool:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    known = name.endswith("attn.bias") or name.rpartition(".")[2] in BUFFERS
    return known and not (value.is_floating_point() or value.is_complex())


def _enter(where: object, named: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    """Add a tensor; one that is there already must be the same."""
    held = named.setdefault(name, tensor)
    if held is not tensor and not torch.equal(held, tensor):
        raise CheckpointError(
            f"{where}: two different tensors for {name}, under prefixes or in a bank; save one"
        )


def has_tied_head(weights: Mapping[str, Tensor]) -> bool:
    """Whether the head is stored beside an embedding that has the very same values."""
    pair = EMBEDDING in weights and HEAD in weights
    return pair and torch.equal(weights[EMBEDDING], weights[HEAD])


def assumed_of(config: ModelConfig) -> tuple[str, ...]:
    """What no tensor of a baseline shows and `infer_config` takes for granted."""
    return (
        f"context={config.context}",
        f"rope_base={config.rope_base:g}",
        f"rope_dims={config.turning}",
        f"activation={config.activation}",
        f"logit_softcap={config.logit_softcap:g}",
        f"bos={config.bos}",
    )


def infer_config(where: object, weights: Mapping[str, Tensor]) -> ModelConfig:
    """The configuration of a baseline's `weights`, by their shapes.

    Raises:
        CheckpointError: not weights of the reference, or with parts whose switches no shape shows.
    """
    try:
        vocab, width = weights[EMBEDDING].shape
        layers = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
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
            tied_embedding=HEAD not in weights,
        )
    except (LookupError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, CheckpointError):
            raise
        why = f"no tensor {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{where}: not a checkpoint of gptpack or of the reference ({why}); needed what "
            "gptpack train or parameter-golf's train_gpt.py saves, or the folder of a Hugging Face "
            "model"
        ) from error
