"""A checkpoint on the command line, and the recipe that says what its file does not."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptpack.training.checkpoint import Checkpoint


def load_told(path: Path, recipe: str | None) -> "Checkpoint":
    """The checkpoint at `path`; `recipe`, file or name, has the model of a bare state dict.

    Raises:
        CheckpointError: see `load_checkpoint`.
        ConfigError: no such recipe, or the file says its own model.
    """
    from gptpack.errors import ConfigError
    from gptpack.training.checkpoint import load_checkpoint
    from gptpack.training.recipe import load_recipe

    told = load_recipe(recipe).model if recipe else None
    checkpoint = load_checkpoint(path, told)
    # a bare state dict has the model that it was told, any other file its own
    if told is not None and checkpoint.model is not told:
        raise ConfigError(f"--model {recipe} is for bare state dicts; {path} says its own model")
    return checkpoint
