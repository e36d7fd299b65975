"""Any text -> text that a terminal, Markdown or GitHub shows and does not obey.

File names and what a packed file says of itself may be anybody's, a pull request's for instance.
"""

from typing import Any

LONGEST = 400
"""Characters of a value that are shown."""

_MARKUP = str.maketrans({character: f"&#{ord(character)};" for character in "&<>\\`*_[]|#@~"})


def plain(value: Any, longest: int = LONGEST) -> str:
    """`value` in printable ASCII, which has none of a terminal's control codes."""
    if type(value) is int:
        return f"{value:,}" if abs(value) < 1 << 63 else "an integer of more than 64 bits"
    text = value if isinstance(value, str) else repr(value)
    return ascii(text)[1:-1][:longest]


def first_line(error: BaseException) -> str:
    """The first line of a message, in printable ASCII; with the second where it leads up to it."""
    lines = str(error).strip().split("\n")
    said = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
    return plain(said or type(error).__name__, longest=300)


def line(text: str) -> str:
    """`text` as one line: whatever is not printable is escaped, letters of all scripts stay.

    A CI runner obeys lines that begin with ``::`` or ``##``; those begin otherwise here.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    start = shown.lstrip()
    if start.startswith(("::", "##")):
        shown = shown.replace(start[0], f"\\x{ord(start[0]):02x}", 1)
    return shown


def markdown(value: Any) -> str:
    """`value` for a cell of a Markdown table: no markup, no mention, no end of the cell."""
    return plain(value).translate(_MARKUP)


def command_data(value: Any) -> str:
    """`value` as the message of a GitHub workflow command, which ends at a line's end."""
    return plain(value).replace("%", "%25")


def command_property(value: Any) -> str:
    """`value` as a property of a GitHub workflow command."""
    return command_data(value).replace(":", "%3A").replace(",", "%2C")
