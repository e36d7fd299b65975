"""A packed file -> what others read: a Hugging Face folder, a safetensors file, or a GGUF."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptpack.artifact.front import read_header
from gptpack.atomic import check_folder, check_writable, replacing, replacing_directory
from gptpack.errors import ConfigError
from gptpack.families.family import model_values
from gptpack.families.transformers.config import TransformersConfig
from gptpack.progress import Progress, silent
from gptpack.values import check_choice

if TYPE_CHECKING:
    import torch

    from gptpack.artifact.header import ArtifactHeader
    from gptpack.jobs.load import Loaded

FLOATS = ("float32", "bfloat16", "float16")
DTYPES: Mapping[str, tuple[str, ...]] = {
    "transformers": FLOATS,
    "safetensors": FLOATS,
    "gguf": ("float16", "bfloat16", "float32", "q8_0"),
}
"""Target -> the types that its matrices may have; the first is taken where none is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """What was written."""

    path: Path
    to: str
    dtype: str
    """Type of the matrices; ``packed`` where the bytes were kept."""
    packed_bytes: int
    """Bytes of the packed file."""
    bytes: int
    """Bytes of what was written, all files of a folder together."""
    notes: tuple[str, ...] = ()
    """What is not as the model has it, or was left out."""


def unpack(
    path: str | Path,
    output: str | Path,
    *,
    to: str,
    dtype: str | None = None,
    keep_packed: bool = False,
    force: bool = False,
    limit_bytes: int | None = None,
    progress: Progress = silent,
) -> Unpacked:
    """Write the model in a packed file so that others can read it; complete, or not at all.

    ``transformers`` is a folder that needs nothing of gptpack, in float32 bit for bit what was
    evaluated; with `keep_packed` a folder around the packed bytes, for `gptpack.hf` to decode.
    ``safetensors`` is one file of named tensors, of any family. ``gguf`` is one file, tokenizer
    included, of the architectures that `gptpack.families.transformers.to_gguf` lists.

    Args:
        to: ``transformers``, ``safetensors`` or ``gguf``.
        dtype: type of the matrices, see `DTYPES`; None takes float32, for GGUF float16.
        force: whether what stands at `output` is replaced, if it is of the same kind.
        limit_bytes: memory that decoding may take; see `gptpack.load`.

    Raises:
        ConfigError: no such target or type, the model is not of the family or architecture that it
            takes, or something stands at `output`.
        ArtifactError: the packed file is corrupt or hostile.
        MissingDependencyError: a package that the target needs is not installed, or memory does not
            suffice.

    Example:
        >>> made = gptpack.unpack("model.gptpack", "model.safetensors", to="safetensors")
        >>> made.dtype, made.bytes > made.packed_bytes
        ('float32', True)
    """
    path, output = Path(path), Path(output)
    check_choice("to", to, tuple(DTYPES))
    if keep_packed and (to != "transformers" or dtype is not None):
        raise ConfigError("--keep-packed goes with --to transformers, and keeps the type as it is")
    dtype = dtype or DTYPES[to][0]
    if dtype not in DTYPES[to]:
        raise ConfigError(f"--dtype {dtype}: --to {to} takes {', '.join(DTYPES[to])}")
    header = read_header(path)
    _check_model(path, header, to)
    _check_output(output, to, force=force)
    progress("decode", 0, 0)
    from gptpack.jobs.load import load_packed

    loaded = load_packed(path, limit_bytes=limit_bytes)
    progress(f"write {to}", 0, 0)
    if to == "transformers":
        notes = _write_folder(loaded, output, None if keep_packed else dtype)
    elif to == "safetensors":
        notes = _write_safetensors(loaded, header, output, dtype)
    else:
        notes = _write_gguf(loaded, output, dtype)
    files = output.iterdir() if output.is_dir() else [output]
    return Unpacked(
        path=output,
        to=to,
        dtype="packed" if keep_packed else dtype,
        packed_bytes=header.file_bytes,
        bytes=sum(file.stat().st_size for file in files),
        notes=tuple(notes),
    )


def _check_model(path: Path, header: "ArtifactHeader", to: str) -> None:
    """Refuse a model that the target cannot hold, before anything is decoded."""
    if to == "safetensors":
        return
    if not isinstance(header.model, TransformersConfig):
        raise ConfigError(
            f"{path}: a model of the family {header.family}, which --to {to} cannot hold; take "
            "--to safetensors"
        )
    if to == "gguf":
        from gptpack.families.transformers.to_gguf import check_gguf_target

        check_gguf_target(header.model.model_type)


def _check_output(output: Path, to: str, *, force: bool) -> None:
    """Refuse an output that stands there, but for one of the target's kind with `force`."""
    if output.exists():
        if not force:
            raise ConfigError(f"{output} exists; give --force, or another --output")
        if to == "transformers":
            from gptpack.families.transformers.export import WRITTEN

            check_folder(output, "unpacked model", *WRITTEN)
        elif not _is_of(output, to):
            raise ConfigError(f"{output} exists and is no {to}; it stays: choose another --output")
    check_writable(output, ConfigError)


def _is_of(output: Path, to: str) -> bool:
    if not output.is_file():
        return False
    with output.open("rb") as file:
        start = file.read(9)
    return start.startswith(b"GGUF") if to == "gguf" else start.endswith(b"{")


def _write_folder(loaded: "Loaded", output: Path, dtype: str | None) -> list[str]:
    """Write a Hugging Face folder: in `dtype`, or around the packed bytes if that is None."""
    from gptpack.families.transformers.export import write_packed, write_plain

    model, path = loaded.runnable(), loaded.path
    assert path is not None
    with replacing_directory(output) as folder:
        if dtype is None:
            return write_packed(model, loaded.files, path.read_bytes(), folder)
        _weights(loaded, dtype)
        return write_plain(model, loaded.files, folder)


def _write_safetensors(
    loaded: "Loaded", header: "ArtifactHeader", output: Path, dtype: str
) -> list[str]:
    """Write one file of named tensors, which says in its metadata what they are of."""
    from safetensors.torch import save

    said = json.dumps({"family": header.family, "model": model_values(header.model)})
    with replacing(output, ConfigError) as file:
        file.write(save(_weights(loaded, dtype), {"format": "pt", "gptpack": said}))
    return []


def _write_gguf(loaded: "Loaded", output: Path, dtype: str) -> list[str]:
    from gptpack.families.transformers.to_gguf import write_gguf

    with replacing(output, ConfigError) as file:
        return write_gguf(loaded.runnable(), loaded.tokenizer, Path(file.name), dtype=dtype)


def _weights(loaded: "Loaded", dtype: str) -> "dict[str, torch.Tensor]":
    """The weights by name in a type of floats, which the model itself has from then on.

    Raises:
        ConfigError: a value is beyond what the type holds.
    """
    import torch

    from gptpack.families.language_model import not_finite

    kind = getattr(torch, dtype)
    held = loaded.tensors or loaded.runnable().to(kind).weights()
    weights = {name: value.to(kind).contiguous() for name, value in held.items()}
    if beyond := not_finite(weights):
        raise ConfigError(f"{beyond[0]} has values beyond {dtype}; take --dtype bfloat16")
    return weights
