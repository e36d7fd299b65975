"""The version of the package, and that of the file format, which changes on its own."""

VERSION = "0.2.0"
FORMAT_VERSION = 2
"""Newest version of packed files, as docs/format.md specifies them; each file begins with its own.
A file that version 1 can hold is written as one, so that older readers have it too."""
