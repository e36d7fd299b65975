"""Weights, configuration and training state <-> one file, read without running anything in it.

A file holds a checkpoint of ours or a plain state dict of the reference, as torch.save or
safetensors write them: alone or beside an optimizer's, in float or quantized and compressed. Which
it is shows in its bytes; its name says nothing.
"""

import io
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gptpack.atomic import replacing
from gptpack.data.manifest import ShardEntry
from gptpack.errors import CheckpointError, ConfigError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.quantized import dequantized
from gptpack.families.golf.reference import (
    HEAD,
    assumed_of,
    has_tied_head,
    infer_config,
    named_weights,
    own_weights,
    state_dict_in,
    unbanked,
)
from gptpack.families.transformers.config import TransformersConfig
from gptpack.families.transformers.nanogpt import from_nanogpt, is_nanochat, is_nanogpt
from gptpack.inputs import MODELS, kind_of, opened
from gptpack.training.compressed import decompressed, is_compressed
from gptpack.training.recipe import Recipe
from gptpack.values import TokenizerIdentity, from_dict, to_dict

VERSION = 1
_MARK = "gptpack_checkpoint"
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
"""Errors that torch's loader raises on damaged files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Content of a checkpoint; `weights` are float32 on the CPU."""

    model: ModelConfig | TransformersConfig
    weights: Mapping[str, Tensor]
    tokenizer: TokenizerIdentity | None = None
    data: tuple[ShardEntry, ...] = ()
    """Shards that the run trains on: names, counts and hashes."""
    recipe: Recipe | None = None
    unread: str = ""
    """What this version does not know in the file's recipe, which it then leaves out."""
    step: int = 0
    training: Mapping[str, Any] | None = None
    """State that only a resumed run needs: raw weights, optimizers, seconds spent."""
    assumed: tuple[str, ...] = ()
    """What a plain state dict does not say and was taken for granted, such as ``context=1024``."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file whole: an interrupted write leaves the previous file, or none.

    Raises:
        CheckpointError: the file cannot be written.
    """
    content = {
        _MARK: VERSION,
        "model": to_dict(checkpoint.model),
        "tokenizer": to_dict(checkpoint.tokenizer) if checkpoint.tokenizer else None,
        "data": [to_dict(shard) for shard in checkpoint.data],
        "recipe": to_dict(checkpoint.recipe) if checkpoint.recipe else None,
        "step": checkpoint.step,
        "weights": dict(checkpoint.weights),
        "training": checkpoint.training,
    }
    with replacing(path, CheckpointError) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's error where the file system refuses to write
            raise CheckpointError(
                f"{path}: cannot write, the disk may be full; choose another directory or free "
                "some space"
            ) from error


def load_checkpoint(path: Path, model: ModelConfig | None = None) -> Checkpoint:
    """Read a checkpoint.

    Args:
        model: shape of a plain state dict; None infers it. Other files say their own.

    Raises:
        CheckpointError: unreadable, not a checkpoint, or a shape that cannot be inferred.
    """
    content = _read(path)
    if _MARK not in content:
        return _of_state_dict(path, content, model)
    version = content[_MARK]
    if not isinstance(version, int) or version != VERSION:
        raise CheckpointError(f"{path}: checkpoint version {version!r:.20}, needed {VERSION}")
    with refusing_damage(path):
        recipe, unread = None, ""
        try:
            recipe = content["recipe"] and from_dict(Recipe, content["recipe"])
        except ConfigError as error:
            # of another version: only going on with its training needs it
            unread = str(error)
        return Checkpoint(
            model=_model(path, content["model"]),
            weights=own_weights(path, content["weights"]),
            tokenizer=content["tokenizer"] and from_dict(TokenizerIdentity, content["tokenizer"]),
            data=tuple(from_dict(ShardEntry, shard) for shard in content.get("data", ())),
            recipe=recipe,
            unread=unread,
            step=_step(content["step"]),
            training=content["training"],
        )


def _model(path: Path, values: Mapping[str, Any]) -> ModelConfig:
    try:
        return from_dict(ModelConfig, values)
    except ConfigError as error:
        raise CheckpointError(
            f"{path}: this version of gptpack does not know its model: {error}; use the version "
            "that trained it"
        ) from error


def _step(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"step {value!r:.40} is no number of steps")
    return value


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Turn what values of other types and shapes raise inside into a `CheckpointError`."""
    try:
        yield
    except CheckpointError as error:
        said = str(error)
        raise CheckpointError(said if str(path) in said else f"{path}: {said}") from error
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint: {error!r:.400}") from error
    except RuntimeError as error:
        raise CheckpointError(f"{path}: damaged checkpoint: its tensors do not fit") from error


def _of_state_dict(path: Path, content: Mapping[str, Any], told: ModelConfig | None) -> Checkpoint:
    """The checkpoint in a file that is none of ours; `told` is its model, None infers that."""
    named = named_weights(path, dequantized(path, state_dict_in(path, content)))
    if is_nanogpt(named) and told is None:
        arguments = content.get("model_args")
        found = from_nanogpt(path, named, arguments if isinstance(arguments, dict) else None)
        config = TransformersConfig(values=found.config, bos=found.config["bos_token_id"] or 0)
        return Checkpoint(model=config, weights=found.weights, assumed=found.assumed)
    if is_nanochat(named):
        raise CheckpointError(
            f"{path}: nanochat's layout (transformer.h.*.attn.c_q), which is not supported; save "
            "it as a Hugging Face folder, by transformers' NanoChatForCausalLM"
        )
    weights = unbanked(path, named)
    assumed: tuple[str, ...] = ()
    if has_tied_head(weights) and (told is None or told.tied_embedding):
        del weights[HEAD]
        assumed = ("tied_embedding=true",)
    if told is not None:
        return Checkpoint(model=told, weights=weights)
    inferred = infer_config(path, weights)
    return Checkpoint(model=inferred, weights=weights, assumed=(*assumed_of(inferred), *assumed))


def load_resumable(
    path: Path,
    recipe: Recipe,
    tokenizer: TokenizerIdentity | None,
    data: tuple[ShardEntry, ...] = (),
) -> tuple[Checkpoint, Mapping[str, Any]]:
    """The checkpoint at `path` and its training state, if it is of this very run.

    Raises:
        CheckpointError: none, without training state, or of another recipe, tokenizer or
            data.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.training is None:
        raise CheckpointError(f"{path} holds no training state; it cannot be resumed")
    if checkpoint.tokenizer != tokenizer:
        raise CheckpointError(
            f"{path} was trained on tokens of another tokenizer than the one beside these "
            "shards; resume with the same data"
        )
    if checkpoint.data != data:
        raise CheckpointError(f"{path}: {_other_data(checkpoint.data, data)}; resume with its data")
    if checkpoint.unread:
        raise CheckpointError(
            f"{path} has a recipe of another version of gptpack ({checkpoint.unread}); its weights "
            "can be packed, but training goes on by that version alone"
        )
    if checkpoint.recipe is None:
        raise CheckpointError(f"{path} does not say its recipe; it cannot be resumed")
    if checkpoint.recipe != recipe:
        old, new = to_dict(checkpoint.recipe), to_dict(recipe)
        changed = [
            f"{table}.{key}"
            for table, values in new.items()
            for key in values
            if values[key] != old[table][key] and not _is_longer(table, key, old, new)
        ]
        if changed:
            raise CheckpointError(
                f"{path} belongs to a recipe that differs in {', '.join(changed)}; resume with the "
                "same recipe, of which seconds and steps may be more"
            )
    return checkpoint, checkpoint.training


def _is_longer(
    table: str, key: str, old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> bool:
    """Whether this setting is a limit of the run's length, and now a later one."""
    limit = table == "training" and key in ("seconds", "steps")
    return limit and bool(0 < old[table][key] < new[table][key])


def _other_data(old: tuple[ShardEntry, ...], new: tuple[ShardEntry, ...]) -> str:
    """How the shards of a run differ from those that it began with, in words."""
    if not old:
        return "the checkpoint does not say which train shards its run began on"
    for before, now in zip(old, new, strict=False):
        if before != now:
            return (
                f"the run began on {before.file} of {before.tokens:,} tokens, sha256 "
                f"{before.sha256[:12]}, and found {now.file} of {now.tokens:,}, {now.sha256[:12]}"
            )
    return f"the run began on {len(old)} train shards and found {len(new)}"


def _read(path: Path) -> dict[str, Any]:
    try:
        with opened(path) as file, warnings.catch_warnings():
            # the length of a JSON header, 8 bytes, and its first character; headers are below
            # 100 MB, so the upper half of the length is 0, which it never is in torch's files
            start = file.read(9)
            if start[4:] == b"\0\0\0\0{":
                return dict(load_file(path))
            file.seek(0)
            source: BinaryIO = file
            if is_compressed(start):
                source = io.BytesIO(decompressed(path, file))
            # torch warns of unusual pickle protocols before it refuses them
            warnings.simplefilter("ignore")
            # given the path, it would take a name that ends in .safetensors at its word
            content = torch.load(source, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged safetensors file ({error})") from error
    except OSError as error:
        what = f"{kind}, " if (kind := kind_of(path)) else ""
        raise CheckpointError(
            f"{path}: cannot read the checkpoint: {what}{error.strerror or error}"
        ) from error
    except CheckpointError:
        raise
    except _UNREADABLE as error:
        what = f"{kind}, " if (kind := kind_of(path)) and kind not in MODELS else ""
        # torch's own words end in the advice to load it without the weights-only loader
        raise CheckpointError(
            f"{path}: {what}not a checkpoint that torch's weights-only loader reads; needed a file "
            "that torch.save or safetensors wrote, of tensors and plain values"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, needed a state dict")
    return content
