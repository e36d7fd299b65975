"""The contest's quantized dictionaries -> its state dict in float.

Two layouts, one number a byte in both, and one scale a row or a tensor: that of the baseline
(``final_model.int8.ptz``: ``quantized``, ``scales``, ``dtypes``, ``passthrough``), and that of
later records (``final_model.int6.ptz``: ``w``, with ``NAME.q`` and ``NAME.scale``, and ``m``). The
first says which type a tensor had, and its script rounds to it; the second does not.

Shape legend:  R = output rows,  C = input columns
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gptpack.errors import CheckpointError
from gptpack.families.golf.reference import whole_tensor

FORMATS = ("int8_clean_per_row_v1", "int6_8_clean_per_row_v1", "mixed_intN_per_row_v1")
"""Names of the first layout whose numbers are integers times a scale."""
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
ON_GRID = re.compile(r"gptq \(int[2-8]\)|int[2-8N]")
"""Words of the second layout for a tensor that is integers times a scale."""
NO_MATTER = {"type", "bits", "clip_range", "method"}
"""Keys that say how a tensor of the second layout was rounded, not how it is read."""
AS_IT_IS = "passthrough"
TABLES = {"quantized", "scales", "dtypes", "qmeta", AS_IT_IS, "passthrough_orig_dtypes"}
"""Dictionaries of the first layout."""


def dequantized(where: object, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in float, by its scales; `content` itself where it is of neither layout.

    Raises:
        CheckpointError: a dictionary of these layouts that is damaged, or says that its numbers are
            anything but integers times a scale.
    """
    if content.keys() >= {"quantized", "scales", AS_IT_IS}:
        form = content.get("__quant_format__", FORMATS[0])
        if form not in FORMATS:
            raise _unknown(where, f"weights quantized as {form!r:.40}")
        if more := sorted(str(key) for key in content.keys() - TABLES - {"__quant_format__"}):
            raise _unknown(where, f"'{more[0]}' beside its quantized weights")
        return _int8(where, _tables(where, content, TABLES))
    if content.keys() == {"w", "m"}:
        tables = _tables(where, content, {"w", "m"})
        return _int6(where, tables["w"], tables["m"])
    return content


def _tables(
    where: object, content: Mapping[str, Any], names: set[str]
) -> dict[str, Mapping[str, Any]]:
    """The named dictionaries; one that is not there is empty."""
    tables = {name: content.get(name, {}) for name in sorted(names)}
    for key, value in tables.items():
        if not isinstance(value, Mapping):
            raise CheckpointError(
                f"{where}: '{key}' of its quantized weights is a {type(value).__name__}, needed a "
                "dictionary"
            )
    return tables


def _int8(where: object, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    scales, before = tables["scales"], tables["passthrough_orig_dtypes"]
    state: dict[str, Any] = {}
    for name, codes in tables["quantized"].items():
        meta = tables["qmeta"].get(name, {})
        if not isinstance(meta, Mapping) or not _by_row(meta):
            raise _unknown(where, f"{name} quantized by {meta!r:.60}")
        weight = _weight(where, name, codes, _of(where, name, scales))
        state[name] = weight.to(_dtype(where, name, tables["dtypes"]))
    for name, kept in tables[AS_IT_IS].items():
        if name in state:
            raise CheckpointError(f"{where}: {name} is quantized and kept; one of them is wrong")
        state[name] = kept
        if name in before:
            state[name] = whole_tensor(where, name, kept).to(_dtype(where, name, before))
    return state


def _by_row(meta: Mapping[str, Any]) -> bool:
    """Whether the first layout's words for a tensor mean what no words mean."""
    axis = meta.get("axis", 0)
    known = meta.keys() <= {"scheme", "axis", "bits", "clip_range"}
    return known and meta.get("scheme", "per_row") == "per_row" and type(axis) is int and axis == 0


def _int6(where: object, tensors: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    used: set[str] = set()
    for name, word in said.items():
        plain = isinstance(word, Mapping) and word.keys() <= NO_MATTER
        kind = word.get("type") if plain else word
        if isinstance(kind, str) and kind.startswith(AS_IT_IS):
            used.add(name)
            state[name] = _of(where, name, tensors)
        elif isinstance(kind, str) and ON_GRID.fullmatch(kind):
            parts = [f"{name}.q", f"{name}.scale"]
            used.update(parts)
            state[name] = _weight(where, name, *(_of(where, part, tensors) for part in parts))
        else:
            raise _unknown(where, f"{name} quantized as {word!r:.60}")
    if left := sorted(str(name) for name in tensors.keys() - used):
        raise _unknown(where, f"{left[0]} beside its quantized weights")
    return state


def _of(where: object, name: str, tensors: Mapping[str, Any]) -> Any:
    if name not in tensors:
        raise CheckpointError(f"{where}: its quantized weights lack {name}; get the file again")
    return tensors[name]


def _weight(where: object, name: str, codes: Any, scale: Any) -> Tensor:
    """``codes * scale``, float32 ``[R, ...]``; `scale` is ``[R]`` or a single number."""
    codes = whole_tensor(where, f"{name} (codes)", codes)
    scale = whole_tensor(where, f"{name} (scales)", scale)
    rows = codes.shape[:1]
    if codes.dtype != torch.int8 or not scale.is_floating_point() or scale.shape not in ((), rows):
        raise CheckpointError(
            f"{where}: {name} has codes of {codes.dtype} {tuple(codes.shape)} and scales of "
            f"{scale.dtype} {tuple(scale.shape)}; needed int8, and a float for each row or for all"
        )
    scale_R = scale.float().reshape(-1, *[1] * (codes.ndim - 1))
    return codes.float() * (scale_R if codes.ndim else scale.float())


def _dtype(where: object, name: str, said: Mapping[str, Any]) -> torch.dtype:
    word = said.get(name, "float32")
    if not isinstance(word, str) or word not in DTYPES:
        raise _unknown(where, f"{name} of type {word!r:.40}")
    return DTYPES[word]


def _unknown(where: object, found: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: {found}; read are int8 codes times scales, so save the state dict in float "
        "(final_model.pt)"
    )
