"""Hypothesis strategies for packed tensors, what goes into a file with them, and such files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from gptpack.artifact.shares import with_coded_bytes
from gptpack.artifact.writer import assemble, encode_files, encode_sections, write_atomic
from gptpack.families.family import FamilyConfig
from gptpack.families.golf.config import ModelConfig
from gptpack.families.modules.config import ModuleConfig
from gptpack.families.transformers.config import TransformersConfig
from gptpack.quant.allocation import grid_tensor
from gptpack.quant.methods import METHODS
from gptpack.quant.types import PackedTensor
from gptpack.values import TokenizerIdentity

MODEL = ModelConfig(vocab=64, layers=2, width=16, heads=2, kv_heads=1, mlp_hidden=32)
TOKENIZER = TokenizerIdentity(sha256="ab12" * 16, vocab=64, bos=1)

HUGGING = TransformersConfig(
    values={"model_type": "gpt2", "vocab_size": 64, "n_layer": 2, "rope": {"theta": 1e4}},
    context=16,
    bos=3,
    begins=True,
)
MODULE = ModuleConfig(vocab=64, context=16, bos=3, values={"depth": 2, "mixers": ["a", None]})

names = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30)
shapes = st.lists(st.integers(1, 7), max_size=4).map(tuple)
scalars = st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | scalars | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
json_objects = st.dictionaries(st.text(max_size=8), json_values, max_size=4)


file_names = st.from_regex("[A-Za-z0-9_-][A-Za-z0-9._-]{0,12}", fullmatch=True)
file_sets = st.dictionaries(file_names, st.binary(max_size=300), max_size=4)


@st.composite
def family_configs(draw: st.DrawFn) -> FamilyConfig:
    """A configuration of any family."""
    vocab = draw(st.integers(1, 1 << 20))
    facts = {"bos": draw(st.integers(0, vocab - 1)), "context": draw(st.integers(2, 1 << 20))}
    values = draw(json_objects)
    family = draw(st.sampled_from(["golf", "transformers", "module"]))
    if family == "golf":
        return replace(MODEL, vocab=vocab, **facts)
    if family == "module":
        return ModuleConfig(vocab=vocab, values=values, **facts)
    name = draw(st.from_regex("[A-Za-z0-9._-]{1,20}", fullmatch=True))
    values |= {"model_type": name, "vocab_size": vocab}
    return TransformersConfig(values=values, begins=draw(st.booleans()), **facts)


def encode_artifact(
    *,
    tensors: Sequence[PackedTensor],
    model: FamilyConfig = MODEL,
    tokenizer: TokenizerIdentity | None = TOKENIZER,
    pack: Mapping[str, Any],
    codecs: Sequence[str] | str = "auto",
    files: Mapping[str, bytes] | None = None,
    recorded: bool = False,
) -> bytes:
    """The bytes of a file of `tensors`; where `recorded`, it says what each one takes."""
    encoded = encode_sections(tensors, codecs, files=encode_files(files or {}))
    if recorded:
        encoded = with_coded_bytes(encoded, tensors)
    return assemble(encoded, model=model, tokenizer=tokenizer, pack=pack)


def write_artifact(path: Path, **contents: Any) -> None:
    """Write what `encode_artifact` makes of `contents`."""
    write_atomic(path, encode_artifact(**contents))


def contents(dtype: str, shape: tuple[int, ...]) -> st.SearchStrategy[npt.NDArray[Any]]:
    """Arrays whose values stay finite when they are dequantized."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        width = 8 * kind.itemsize
        limit = float(np.float32(1e30)) if width == 32 else 6e4
        limit = float(kind.type(limit))
        values: st.SearchStrategy[Any] = st.floats(-limit, limit, width=width)
    elif dtype == "<u2":
        # bfloat16: an exponent of all ones is not finite.
        values = st.integers(0, 0xFFFF).filter(lambda bits: bits & 0x7F80 != 0x7F80)
    else:
        values = npst.from_dtype(kind)
    return npst.arrays(kind, shape, elements=values)


def array_contents(
    method: str, array: str, dtype: str, shape: tuple[int, ...]
) -> st.SearchStrategy[npt.NDArray[Any]]:
    """`contents` for an array of `method`; scales on a grid stay so small that products do."""
    if array in ("row_scales", "column_scales"):
        # 2^-50 .. 2^50.
        most = 3200 if array == "row_scales" else 200
        return npst.arrays(dtype, shape, elements=st.integers(-most, most))
    return contents(dtype, shape)


@st.composite
def packed_tensors(draw: st.DrawFn, name: str | None = None) -> PackedTensor:
    """A tensor of any method."""
    method = draw(st.sampled_from(sorted(METHODS)))
    parameters = draw(st.dictionaries(st.text(max_size=4), scalars, max_size=2))
    if METHODS[method].states:
        parameters["states"] = draw(st.sampled_from(METHODS[method].states))
    shape = draw(shapes)
    if METHODS[method].ranks is not None:
        shape = (*shape, 1, 1)[:2]
    if len(shape) == 2 and draw(st.booleans()):
        parameters["transposed"] = 1
    return PackedTensor(
        name=draw(names) if name is None else name,
        shape=shape,
        method=method,
        arrays={
            spec.name: draw(array_contents(method, spec.name, spec.dtype, spec.shape(shape)))
            for spec in METHODS[method].arrays
        },
        parameters=parameters,
        record=draw(json_objects),
    )


tensor_lists = st.lists(names, min_size=1, max_size=5, unique=True).flatmap(
    lambda unique: st.tuples(*(packed_tensors(name=name) for name in unique))
)


def example_tensors() -> list[PackedTensor]:
    """Two layers of a small model in every plain method, always the same."""
    tensors = []
    for layer in range(2):
        # Integer arithmetic, so that no version of numpy's generators matters.
        square = (np.arange(16 * 24).reshape(16, 24) * (37 + layer)) ** 2 % 23
        tensors += [
            PackedTensor(
                name=f"blocks.{layer}.fc.weight",
                shape=(16, 24),
                method="int8",
                arrays={
                    "codes": (square - 11).astype(np.int8),
                    "scales": (np.arange(16) / 16 + 1).astype("<f2"),
                },
                record={"made_by": "rounding", "damping": 0.01},
            ),
            PackedTensor(
                name=f"blocks.{layer}.gain",
                shape=(5,),
                method="float32",
                arrays={"values": (np.arange(5) / 7).astype("<f4")},
            ),
        ]
    tensors += [
        PackedTensor(
            name="embedding",
            shape=(3, 2, 2),
            method="int8-tensor",
            arrays={
                "codes": (np.arange(12).reshape(3, 2, 2) * 23 - 128).astype(np.int8),
                "scales": np.array(0.25, "<f4"),
            },
        ),
        PackedTensor(
            name="temperature",
            shape=(),
            method="bfloat16",
            arrays={"values": np.array(0x3FC0, "<u2")},
            parameters={"integer": 3, "number": 0.5},
        ),
        PackedTensor(
            name="skip",
            shape=(1, 3),
            method="float16",
            arrays={"values": np.array([[1.5, -2.0, 0.0]], "<f2")},
        ),
    ]
    return tensors


def grid_tensors() -> list[PackedTensor]:
    """Matrices of the grid methods, and of what else the context coder takes, always the same."""
    tensors = []
    for index, states in enumerate((None, 8, None, 64, None, 16)):
        rows, columns = 12 + index, 9 - index
        places = np.arange(rows * columns).reshape(rows, columns) * (41 + index)
        offsets = (0x3C00 + 0x8000 * (np.arange(columns) % 2) + np.arange(columns)).astype("<u2")
        tensors.append(
            grid_tensor(
                f"blocks.{index}.proj.weight",
                places**2 % 17 - 8 + 300 * (places % 97 == 1),
                (
                    (-64 * 5 + np.arange(rows) ** 2 % 7).astype("<i2"),
                    (np.arange(columns) % 3 - 1).astype("<i2"),
                ),
                states=states or 1,
                offsets=offsets if index > 3 else None,
            )
        )
    return [*tensors, *(tensor for tensor in example_tensors() if tensor.method == "int8")]
