"""A model of transformers -> a folder of its own: as its library writes it, or around packed bytes.

The first needs nothing of gptpack. The second holds the packed file as its only tensor, for
`gptpack.hf` to decode.
"""

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from gptpack.families.language_model import LanguageModel
from gptpack.families.transformers.folder import CONFIG, QUANT_METHOD, SHIPPED
from gptpack.families.transformers.library import quiet
from gptpack.families.transformers.texts import FILES

SHARD_BYTES = 4_000_000_000
"""Most bytes of one file of weights; what is larger is sharded."""
WEIGHTS = "model.safetensors"
GENERATION = "generation_config.json"
WRITTEN = (CONFIG, "*.safetensors", "*.safetensors.index.json", *FILES, *SHIPPED)
"""Patterns of the names of all files that are written, the first of which is in each folder."""


def write_plain(model: LanguageModel, files: Mapping[str, bytes], folder: Path) -> list[str]:
    """Write the model, in the type that it has, and its files; returns notes.

    Names, shards and tied weights are as `save_pretrained` has them.

    Raises:
        OSError: the file system refuses.
    """
    try:
        with quiet():
            model.module.save_pretrained(  # type: ignore[operator]
                folder, max_shard_size=SHARD_BYTES
            )
    except SafetensorError as error:
        raise OSError(str(error)) from error
    # no more than there was, so that packing the folder again takes no more bytes
    (folder / GENERATION).unlink(missing_ok=True)
    _write_config(model, folder, {"dtype": str(model.embedding.weight.dtype).split(".")[1]})
    for weights in folder.glob("*.safetensors"):
        # its library lets nobody but the owner read them
        weights.chmod((folder / CONFIG).stat().st_mode & 0o777)
    return _write_files(files, folder)


def write_packed(
    model: LanguageModel, files: Mapping[str, bytes], packed: bytes, folder: Path
) -> list[str]:
    """Write a configuration, the files, and the packed file as the only tensor; returns notes.

    No type is in the configuration, and the tensor, uint8 ``[N]``, has the name of the token
    embedding: where `gptpack.hf` is not imported, transformers would warn of an unknown quantizer
    and draw weights at random, but ends with an error for either reason.
    """
    _write_config(model, folder, {"quantization_config": {"quant_method": QUANT_METHOD}})
    data = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    (folder / WEIGHTS).write_bytes(save({model.embedding_name: data}, {"format": "pt"}))
    return _write_files(files, folder)


def _write_config(model: LanguageModel, folder: Path, more: Mapping[str, Any]) -> None:
    """Write the configuration that the header has, and how the weights are kept here."""
    said = {**model.config.values, "architectures": [type(model.module).__name__], **more}
    (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _write_files(files: Mapping[str, bytes], folder: Path) -> list[str]:
    """Write the files that a packer ships; another's could say what is run, and stay out."""
    notes = []
    for name, content in files.items():
        if any(fnmatchcase(name, pattern) for pattern in (*FILES, *SHIPPED)):
            (folder / name).write_bytes(content)
        else:
            notes.append(f"{name}: left out, is neither a tokenizer's file nor a licence or card")
    return notes
