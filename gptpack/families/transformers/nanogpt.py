"""nanoGPT's state dict -> Hugging Face's GPT-2: a configuration and weights under its names.

nanoGPT (github.com/karpathy/nanoGPT) is GPT-2 with the exact GELU, linear layers ``y = x W^T``
where Hugging Face's ``Conv1D`` computes ``y = x W``, and biases that may be left out. Its
``ckpt.pt`` has the state dict under ``model`` and the shape under ``model_args``. Also: which
layout is nanochat's, whose names are alike and whose model is another.

Shape legend:  W = width,  V = vocabulary
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gptpack.errors import CheckpointError

LAYER = "transformer.h."
QKV = "transformer.h.0.attn.c_attn.weight"
TABLE, POSITIONS, HEAD = "transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"
TRANSPOSED = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""Layers of a block that are linear here and Conv1D there."""
NORMS = ("ln_1", "ln_2")
MASKS = (".attn.bias", ".attn.masked_bias")
"""Ends of names of the causal mask, which older versions keep as a buffer."""
HEAD_WIDTH = 64
"""Width of a head where nothing says how many there are; it is that of every GPT-2."""
END_OF_TEXT = 50256
"""GPT-2's only special token, which nanoGPT's data puts after each document."""
SHOWN = ("n_layer", "n_embd", "vocab_size", "block_size", "bias")
"""Settings of `model_args` that the tensors show too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A nanoGPT as a GPT-2 of Hugging Face."""

    config: dict[str, Any]
    """Content of a ``config.json``."""
    weights: dict[str, Tensor]
    """Weights by the names of ``GPT2LMHeadModel``; a tied head is left out, as in its files."""
    assumed: tuple[str, ...]
    """What neither tensors nor `model_args` say, such as ``n_head=12``."""


def is_nanogpt(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are nanoGPT's names and shapes; Hugging Face's GPT-2 has the transposed."""
    qkv = weights.get(QKV)
    return qkv is not None and qkv.ndim == 2 and qkv.shape[0] == 3 * qkv.shape[1]


def is_nanochat(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are nanochat's names: nanoGPT's, but three matrices for its one."""
    return TABLE in weights and "transformer.h.0.attn.c_q.weight" in weights


def from_nanogpt(
    where: object, weights: Mapping[str, Tensor], model_args: Mapping[str, Any] | None = None
) -> Converted:
    """The GPT-2 that computes what nanoGPT's `weights` compute.

    Args:
        where: what an error names, such as the file.
        weights: the state dict without prefixes. Not modified.
        model_args: ``n_layer``, ``n_head``, ``n_embd``, ``block_size``, ``bias``, ``vocab_size``
            and ``dropout``, as far as known; None where the file has none.

    Raises:
        CheckpointError: tensors are missing, are not nanoGPT's or have other shapes, or
            `model_args` say otherwise than the tensors.
    """
    held = {name: each for name, each in weights.items() if not name.endswith(MASKS)}
    table, positions, inner = (
        _shape(where, held, name) for name in (TABLE, POSITIONS, f"{LAYER}0.mlp.c_fc.weight")
    )
    (vocab, width), block_size = table, positions[0]
    layers = len({name.split(".")[2] for name in held if name.startswith(LAYER)})
    biased = "transformer.ln_f.bias" in held
    said = dict(model_args) if model_args is not None else {}
    shown = (layers, width, vocab, block_size, biased)
    for name, value in zip(SHOWN, shown, strict=True):
        if type(said.get(name, value)) not in (int, bool) or said.get(name, value) != value:
            raise CheckpointError(
                f"{where}: model_args say {name}={said[name]!r:.20}, but its tensors {value}; "
                "save both from one model"
            )
    heads = said.get("n_head", max(1, width // HEAD_WIDTH))
    if type(heads) is not int or heads < 1 or width % heads:
        raise CheckpointError(
            f"{where}: n_head={heads!r:.20} does not divide n_embd={width}; model_args must say "
            "the number of heads"
        )
    made = dict(_converted(where, held, layers, biased))
    tied = HEAD not in held or torch.equal(held[HEAD], held[TABLE])
    if not tied:
        made[HEAD] = _of(where, held, HEAD, (vocab, width))
    if extra := sorted(held.keys() - made.keys() - {HEAD}):
        raise CheckpointError(
            f"{where}: nanoGPT's layout with {extra[0]}, which nanoGPT has not; needed what its "
            "train.py saves"
        )
    end = END_OF_TEXT if vocab > END_OF_TEXT else None
    dropout = said.get("dropout")
    dropout = dropout if isinstance(dropout, float) and 0 <= dropout < 1 else 0.0
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab,
        "n_positions": block_size,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_inner": inner[0],
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout),
        "tie_word_embeddings": tied,
        "bos_token_id": end,
        "eos_token_id": end,
    }
    # the first versions have the tanh form of GELU, and leave no trace of it
    assumed = ["activation_function=gelu"] + ([] if "n_head" in said else [f"n_head={heads}"])
    assumed += [f"bos_token_id={end}"] if end is not None else []
    return Converted(config=config, weights=made, assumed=tuple(assumed))


def _converted(
    where: object, held: Mapping[str, Tensor], layers: int, biased: bool
) -> Iterator[tuple[str, Tensor]]:
    """The weights but for the head, each under its name there."""
    width, inner = held[TABLE].shape[1], held[f"{LAYER}0.mlp.c_fc.weight"].shape[0]
    sizes = ((3 * width, width), (width, width), (inner, width), (width, inner))
    yield TABLE, held[TABLE]
    yield POSITIONS, _of(where, held, POSITIONS, (held[POSITIONS].shape[0], width))
    for layer in range(layers):
        for part, (outputs, inputs) in zip(TRANSPOSED, sizes, strict=True):
            name = f"{LAYER}{layer}.{part}"
            linear = _of(where, held, f"{name}.weight", (outputs, inputs))
            yield f"{name}.weight", linear.T.contiguous()
            yield f"{name}.bias", _bias(where, held, f"{name}.bias", outputs, biased)
    norms = [f"{LAYER}{layer}.{norm}" for layer in range(layers) for norm in NORMS]
    for norm in (*norms, "transformer.ln_f"):
        yield f"{norm}.weight", _of(where, held, f"{norm}.weight", (width,))
        yield f"{norm}.bias", _bias(where, held, f"{norm}.bias", width, biased)


def _shape(where: object, held: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    if name not in held or held[name].ndim != 2:
        raise CheckpointError(f"{where}: nanoGPT's layout without a matrix {name}; save all of it")
    rows, columns = held[name].shape
    return rows, columns


def _of(where: object, held: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in held:
        raise CheckpointError(f"{where}: nanoGPT's layout without {name}; save all of it")
    if held[name].shape != shape:
        raise CheckpointError(
            f"{where}: {name} has shape {tuple(held[name].shape)}, needed {shape}"
        )
    return held[name]


def _bias(where: object, held: Mapping[str, Tensor], name: str, size: int, biased: bool) -> Tensor:
    """A bias; zeros in a model that has none."""
    return _of(where, held, name, (size,)) if biased or name in held else torch.zeros(size)
