"""The dataclasses of a recipe -> docs/recipe.md, a page of all keys. `python docs/recipe.py` writes it.

A key's text is the string that stands below its field, as an editor shows it.
"""

import ast
import inspect
import textwrap
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

from gptpack.training.recipe import FOLDER, Recipe, recipe_names

PAGE = Path(__file__).with_name("recipe.md")
INTRODUCTION = """# The keys of a recipe

A recipe is a TOML file with the tables below; what it leaves out has its default. `gptpack train --recipe NAME` takes a file or
one of the recipes that come with gptpack, and `--set TABLE.KEY=VALUE` overrides a key. This page is made from the source by
`python docs/recipe.py`.

| recipe | what it is for |
| --- | --- |
"""


def page() -> str:
    """The page as it should be."""
    parts = [INTRODUCTION + "".join(f"| `{n}` | {_purpose(n)} |\n" for n in recipe_names())]
    hints = typing.get_type_hints(Recipe)
    for table in fields(Recipe):
        kind = hints[table.name]
        said = _sentences(inspect.getdoc(kind) or "")
        texts, types = _texts(kind), typing.get_type_hints(kind)
        rows = [
            f"| `{each.name}` | {_type(types[each.name])} | `{_toml(each.default)}` "
            f"| {texts.get(each.name, '')} |\n"
            for each in fields(kind)
        ]
        head = "| key | type | default | |\n| --- | --- | --- | --- |\n"
        parts.append(f"\n## [{table.name}]\n\n{said}\n\n{head}{''.join(rows)}")
    return "".join(parts)


def _purpose(name: str) -> str:
    """The comment that a packaged recipe begins with, up to its first command."""
    lines = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    said = []
    for line in lines:
        if not line.startswith("# ") or line.startswith("#     "):
            break
        said.append(line.removeprefix("# "))
    return " ".join(said)


def _texts(kind: type[Any]) -> dict[str, str]:
    """The string below each field."""
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(made, ast.ClassDef)
    found = {}
    for field, below in zip(made.body, made.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(field.target, ast.Name)
            assert isinstance(below.value, ast.Constant)
            found[field.target.id] = _sentences(str(below.value.value))
    return found


def _sentences(text: str) -> str:
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"list of {typing.get_args(hint)[0].__name__}"
    return str(hint.__name__)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else repr(value).replace("'", '"')


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
