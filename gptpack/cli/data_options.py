"""The options of `gptpack data`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gptpack.cli.help import Choice
from gptpack.errors import ConfigError
from gptpack.jobs.data import DEFAULTS

Function = TypeVar("Function", bound=Callable[..., Any])


def _unescape(separator: str) -> str:
    try:
        unescaped = separator.encode("latin-1", "backslashreplace").decode("unicode_escape")
        unescaped.encode()
        return unescaped
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ConfigError(f"--separator {separator}: {error.reason}") from error


PATH = click.Path(path_type=Path)
NORMALIZATION = Choice(["nmt_nfkc", "nfkc", "identity"])
OUTPUT = click.option("--output", "-o", required=True, type=PATH, help="Directory to write.")
SEPARATOR = click.option(
    "--separator",
    default=DEFAULTS["separator"].encode("unicode_escape").decode(),
    callback=lambda _context, _option, text: _unescape(text),
    help="Between documents of a .txt file; backslash escapes are understood.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
QUIET = click.option("--quiet", is_flag=True, help="No progress on stderr.")


def setting(name: str, text: str, kind: Choice | None = None) -> Callable[[Function], Function]:
    """The option of a setting whose default is the job's."""
    flag = f"--{name.replace('_', '-')}"
    return click.option(flag, type=kind, default=DEFAULTS[name], help=text)
