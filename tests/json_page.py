"""docs/json.md -> the keys of each command's JSON, held against what a command printed."""

import functools
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "json.md"
PLAIN = {"null": type(None), "string": str, "boolean": bool, "object": dict, "list": list}


@functools.cache
def documented() -> dict[str, dict[str, tuple[list[str], bool]]]:
    """Name of a document or a part -> its keys -> their types, and whether one may be absent."""
    found = {}
    for title, body in re.findall(r"^## (.*?)\n.*?```\n(.*?)```", PAGE.read_text(), re.M | re.S):
        keys = {}
        for line in body.splitlines():
            key, types, _ = re.split(r"  +", line, maxsplit=2)
            keys[key.removesuffix("?")] = (types.split(" or "), key.endswith("?"))
        for name in title.replace("`", "").split(", "):
            found[name] = keys
    return found


def agrees(name: str, value: Any) -> None:
    """Assert that `value` has the keys that the page says of `name`, no others, and their types."""
    keys = documented()[name]
    assert set(value) <= set(keys), (name, set(value) - set(keys), "not in docs/json.md")
    needed = {key for key, (_, optional) in keys.items() if not optional}
    assert needed <= set(value), (name, needed - set(value), "in docs/json.md, and not there")
    for key, item in value.items():
        _fits(f"{name}: {key}", keys[key][0], item)


def _fits(where: str, types: list[str], value: Any) -> None:
    for kind in types:
        whole, _, part = kind.partition(" of ")
        if kind in documented() and isinstance(value, dict):
            return agrees(kind, value)
        if part and isinstance(value, {"list": list, "map": dict}[whole]):
            items = value if whole == "list" else value.values()
            for item in items:
                _fits(f"{where}, {whole}", [part], item)
            return None
        if kind in PLAIN and isinstance(value, PLAIN[kind]):
            return None
        number = {"integer": int, "number": (int, float)}.get(kind, ())
        if isinstance(value, number) and not isinstance(value, bool):
            return None
    raise AssertionError(f"{where} is {value!r}, documented as {' or '.join(types)}")
