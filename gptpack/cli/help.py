"""Options under headings, and words that are not known -> help, and the nearest word that is."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import click
from click.core import ParameterSource

from gptpack.errors import GptpackError
from gptpack.values import nearest

Decorator = Callable[[Any], Any]

NAMES = 28
"""Columns of the options' names, the same under every heading."""
_RANGE = r"(?:[\d.e+-]+<=?)?x(?:[<>]=?(?:None|[\d.e+-]+))?"
RANGE = re.compile(rf"\s*\[{_RANGE}\]|; {_RANGE}(?=\])|(?<=default: )\(|\)(?=; |\])")
"""What click says of a number's range, and its brackets around a default that is in words."""
SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "show_default": True,
}
"""Settings of the outermost group, which all commands inherit."""


def heading(title: str) -> Decorator:
    """A decorator: the options from here to the next heading are shown under `title`."""

    def decorate(function: Any) -> Any:
        titles = vars(function).setdefault("headings", {})
        for option in vars(function).get("__click_params__", ()):
            titles.setdefault(option.name, title)
        return function

    return decorate


def together(*decorators: Decorator) -> Decorator:
    """One decorator that does what `decorators` do, of which the first stands on top."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


class Command(click.Command):
    """A command whose help shows its options under the headings that stand above them, and whose
    errors name the options that were typed."""

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command; ``states=7`` in an error reads ``--states 7`` if that was typed."""
        try:
            return super().invoke(ctx)
        except GptpackError as error:
            said = str(error)
            for option in self.params:
                typed = ctx.get_parameter_source(option.name or "") == ParameterSource.COMMANDLINE
                if isinstance(option, click.Option) and typed:
                    said = re.sub(rf"(?<![\w.]){option.name}=", f"{option.opts[0]} ", said)
            error.args = (said,)
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        titles: Mapping[str | None, str] = getattr(self.callback, "headings", {})
        title, sections = "Options", dict[str, list[tuple[str, str]]]()
        for option in self.get_params(ctx):
            if isinstance(option, click.Option) and (record := option.get_help_record(ctx)):
                title = titles.get(option.name, title)  # --help goes with the last ones
                names, text = record[0].replace(" RANGE", ""), RANGE.sub("", record[1])
                sections.setdefault(title, []).append((f"{names:<{NAMES}}", text))
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=NAMES)


class Group(click.Group):
    """A group that names the command nearest to one that it has not."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word, known = args[0], self.list_commands(ctx)
        if word not in known and not word.startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(f"no such command '{word}'{nearest(word, known)}", ctx)
        return super().resolve_command(ctx, args)


class DefaultGroup(Group):
    """A group that takes arguments without a subcommand as those of its command `default`."""

    def __init__(self, *arguments: Any, default: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.default = default

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            args = [self.default, *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # an option that is not the group's own belongs to that command
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


class Choice(click.Choice[str]):
    """A choice that names the word nearest to one that it has not."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        message = super().get_invalid_choice_message(value, ctx).rstrip(".")
        return message + nearest(str(value), self.choices)
