"""The version of the package, and that of the file format, which changes on its own."""

VERSION = "0.1.0"
FORMAT_VERSION = 1
"""Version of packed files, as docs/format.md specifies them; each file begins with it."""
