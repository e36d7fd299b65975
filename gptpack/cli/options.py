"""Types of options that several commands share: text from the command line -> checked values."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gptpack.cli.help import Choice
from gptpack.errors import ConfigError

DEVICE = Choice(["auto", "cpu", "cuda"])
RUNS_ON = Choice([*DEVICE.choices, "mps"])
"""Devices that a model can be run on, and no more."""


class Finite(click.FloatRange):
    """A number that is neither NaN nor infinite."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


class Words(click.types.StringParamType):
    """Text for a model or a page; the bytes that the locale has no characters for are UTF-8."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        found: str = super().convert(value, param, ctx)
        if any("\ud800" <= character <= "\udfff" for character in found):
            try:
                return os.fsencode(found).decode()
            except UnicodeError:
                self.fail("not text in UTF-8.", param, ctx)
        return found


WORDS = Words()
FINITE = Finite()
POSITIVE = Finite(min=0, min_open=True)
COUNT = click.IntRange(min=0)
SEED = click.IntRange(min=0, max=2**63 - 1)
EVAL_TOKENS = click.option(
    "--eval-tokens",
    type=COUNT,
    default=0,
    show_default="all",
    help="Score the first so many targets.",
)

TEXT = click.option(
    "--text",
    multiple=True,
    help="Text file for --bpb in place of shards, of a Hugging Face model; repeatable.",
)


def beside(source: Path) -> Path:
    """The name of a packed file where none is given: the folder's, or the checkpoint's, beside it.

    Raises:
        ConfigError: the source is a folder that holds no model.
    """
    if source.is_dir():
        if not (source / "config.json").is_file():
            raise ConfigError(
                f"{source} is a directory; name a checkpoint in it, or a folder with a config.json"
            )
        source = source.resolve()
    # a folder's name may have dots that begin no suffix
    return source.parent / f"{source.name if source.is_dir() else source.stem}.gptpack"


def renamed(old: str, new: str) -> Callable[[Any], Any]:
    """A decorator: the option `old` is an error that says its `new` name."""

    def refuse(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise click.UsageError(f"{old} is now {new}", ctx)

    return click.option(old, hidden=True, expose_value=False, callback=refuse)
