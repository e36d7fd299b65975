"""Types of options that several commands share: text from the command line -> checked values."""

import math
from collections.abc import Callable
from typing import Any

import click

DEVICE = click.Choice(["auto", "cpu", "cuda"])


class Finite(click.FloatRange):
    """A number that is neither NaN nor infinite."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


FINITE = Finite()
POSITIVE = Finite(min=0, min_open=True)
COUNT = click.IntRange(min=0)
SEED = click.IntRange(min=0, max=2**63 - 1)


def renamed(old: str, new: str) -> Callable[[Any], Any]:
    """A decorator: the option `old` is an error that says its `new` name."""

    def refuse(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise click.UsageError(f"{old} is now {new}", ctx)

    return click.option(old, hidden=True, expose_value=False, callback=refuse)
