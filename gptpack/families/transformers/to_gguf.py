"""A model of transformers and its tokenizer -> one GGUF file, as llama.cpp reads it.

GGUF names an architecture, and says its numbers but not its formulas: what llama.cpp would compute
otherwise is refused. Names of tensors are those of the package gguf.

Shape legend:  R = output rows,  C = input columns
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.errors import ConfigError, GptpackError, MissingDependencyError
from gptpack.escape import first_line
from gptpack.families.language_model import LanguageModel
from gptpack.families.transformers.folder import as_linear
from gptpack.families.transformers.gguf_words import add_words
from gptpack.families.transformers.texts import TextTokenizer

TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0"}
"""Type of the matrices -> its name in GGUF."""
BLOCK = 32
"""Values in a row that share a scale in Q8_0."""
LARGEST = {"F16": 65504.0, "Q8_0": 127 * 65504.0}
"""Largest magnitude that a type holds, where float32 has larger ones."""
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""``general.file_type`` of a file whose matrices have that type."""
SCALED = {"llama": ("default", "linear", "llama3")}
"""Kinds of positions that llama.cpp takes by a factor for each frequency, by architecture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What transformers calls by one name, in GGUF."""

    name: str
    """Its name in GGUF."""
    only: Mapping[str, tuple[Any, ...]]
    """Settings that GGUF cannot say -> the values that llama.cpp computes by."""
    permuted: bool = False
    """Whether the rows of q and k lie as llama.cpp rotates them: pairs side by side."""
    rotates: bool = True
    """Whether positions are angles; else they are a table."""


GATED = {"hidden_act": ("silu", "swish")}
ARCHITECTURES = {
    "llama": Architecture(name="llama", only=GATED, permuted=True),
    "mistral": Architecture(name="llama", only=GATED, permuted=True),
    "qwen2": Architecture(name="qwen2", only=GATED),
    "qwen3": Architecture(name="qwen3", only={**GATED, "attention_bias": (False,)}),
    "gpt2": Architecture(
        name="gpt2",
        only={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        rotates=False,
    ),
}
"""Architecture by the name in transformers."""


def check_gguf_target(model_type: str) -> None:
    """Check that a model of this type can become a GGUF file here.

    Raises:
        ConfigError: no such architecture.
        MissingDependencyError: the package gguf is not installed.
    """
    if model_type not in ARCHITECTURES:
        raise ConfigError(
            f"no GGUF architecture is known for model_type={model_type}, only for "
            f"{', '.join(ARCHITECTURES)}; unpack it --to transformers and convert that folder"
        )
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "writing a GGUF file needs gguf; run: pip install 'gptpack[gguf]'"
        ) from error


def write_gguf(
    model: LanguageModel,
    tokenizer: TextTokenizer | None,
    path: Path,
    *,
    dtype: str,
) -> list[str]:
    """Write the model, in float32 on the CPU, to `path`; returns notes on what is not as asked.

    Matrices get `dtype`, a key of `TYPES`; vectors and tables of positions stay in float32. The
    model's Conv1D layers become Linear.

    Raises:
        ConfigError: llama.cpp would compute something else than the model does, a tensor has no
            name in GGUF, or the tokenizer is of a kind that GGUF does not know.
    """
    import gguf

    config: Any = model.module.config
    known = ARCHITECTURES[config.model_type]
    try:
        _check(config, known)
        as_linear(model.module)
        writer = gguf.GGUFWriter(path, known.name)
        notes = _add_numbers(writer, config, known)
        notes += add_words(writer, tokenizer, config, model.config.vocab)
        notes += _add_tensors(writer, model, known, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except (GptpackError, OSError):
        raise
    except Exception as error:
        # a configuration may have any value under any key
        raise ConfigError(f"GGUF cannot hold this model: {first_line(error)}") from error
    return notes


def _check(config: Any, known: Architecture) -> None:
    """Refuse what the architecture's keys cannot say."""
    for key, allowed in known.only.items():
        value = getattr(config, key, allowed[0])
        if value not in allowed:
            raise ConfigError(
                f"GGUF cannot say {key}={value!a:.40} of a {config.model_type}, only "
                f"{' or '.join(map(str, allowed))}; unpack it --to transformers"
            )
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    slides |= config.model_type == "mistral" and window is not None
    if slides and window < config.max_position_embeddings:
        raise ConfigError(
            f"GGUF cannot say a {config.model_type}'s sliding window of {window}; unpack it --to "
            "transformers"
        )
    if not known.rotates:
        return
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in SCALED.get(config.model_type, ("default",)):
        raise ConfigError(f"positions scaled by {kind!a:.40} are not written to GGUF")
    if config.rope_parameters.get("partial_rotary_factor", 1) != 1:
        raise ConfigError("positions that rotate a part of each head are not written to GGUF")


def _add_numbers(writer: Any, config: Any, known: Architecture) -> list[str]:
    """Write sizes, and return what is not as the model has it."""
    import gguf

    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if not known.rotates:
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        exact = config.activation_function == "gelu"
        return ["the model has the exact GELU; llama.cpp computes its tanh form"] if exact else []
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    width = _head_width(config)
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_value_length(width)
    return []


def _head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _add_tensors(writer: Any, model: LanguageModel, known: Architecture, dtype: str) -> list[str]:
    """Write all tensors; returns which of them have another type than was asked for, and why."""
    import gguf

    config: Any = model.module.config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == known.name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    asked = TYPES[dtype]
    writer.add_file_type(FILE_TYPES[asked])
    heads: dict[str, int] = {}
    if known.permuted:
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    odd = []
    for name, weight in model.weights().items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ConfigError(f"GGUF has no name for {name!a:.80} in the architecture {known.name}")
        values = weight.numpy()
        if (count := heads.get(name.split(".")[-2])) is not None:
            values = permuted(values, count)
        matrix = values.ndim > 1 and not found.startswith("position_embd")
        kind = asked if matrix else "F32"
        if kind == "Q8_0" and values.shape[-1] % BLOCK:
            odd.append(name)
            kind = "F16"
        _add(writer, found, values, kind)
    scaled = _frequencies(model, config) if known.rotates else None
    if scaled is not None:
        _add(writer, "rope_freqs.weight", scaled, "F32")
    return [f"{len(odd)} tensors whose rows are no multiple of 32 are F16"] if odd else []


def _add(writer: Any, name: str, values: npt.NDArray[np.float32], kind: str) -> None:
    import gguf

    coded = gguf.GGMLQuantizationType[kind]
    if np.abs(values).max(initial=0) > LARGEST.get(kind, np.inf):
        raise ConfigError(f"{name} has values beyond {kind}; take --dtype bfloat16")
    data = gguf.quants.quantize(np.ascontiguousarray(values), coded)
    writer.add_tensor(name, data, raw_dtype=coded)


def permuted(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows ``[R, ...]`` of q or k as llama.cpp rotates them.

    transformers rotates row i of a head's first half with row i of its second half, llama.cpp row
    2i with row 2i + 1.
    """
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _frequencies(model: LanguageModel, config: Any) -> npt.NDArray[np.float32] | None:
    """What llama.cpp divides each frequency of the rotation by; None where all are as given."""
    rotary: Any = next(
        module for name, module in model.module.named_modules() if name.endswith("rotary_emb")
    )
    width, base = _head_width(config), float(config.rope_parameters["rope_theta"])
    plain = base ** -(np.arange(0, width, 2) / width)
    factors = plain / rotary.inv_freq.numpy()
    if not math.isclose(float(rotary.attention_scaling), 1.0):
        raise ConfigError("attention scaled by the positions' kind is not written to GGUF")
    return None if np.allclose(factors, 1, rtol=1e-4) else factors.astype(np.float32)
