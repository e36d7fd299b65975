"""The source of a script -> what it imports, seen through wrappers that unpack more code.

Nothing of the script is run. Contest scripts come as ``exec(decompress(b85decode(...)))``, and ours
has its modules in strings, so every long string that is, or unpacks to, Python is read as well.
"""

import ast
import base64
import binascii
import bz2
import lzma
import sys
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

LEAST_CHARACTERS = 200
"""Length from which a string is tried as code."""
MOST_DEPTH = 4
"""Wrappers within wrappers that are opened."""
MOST_UNPACKED_BYTES = 1 << 24
# fmt: off
NETWORK = frozenset((
    "aiohttp", "asyncio.streams", "ftplib", "grpc", "http", "httpx", "huggingface_hub", "imaplib",
    "nntplib", "paramiko", "poplib", "requests", "smtplib", "socket", "socketserver", "ssl",
    "telnetlib", "urllib", "urllib3", "webbrowser", "websockets", "xmlrpc",
))
# fmt: on
"""Modules by which a script reaches a network."""
PROCESSES = frozenset({"subprocess", "pty", "multiprocessing.connection"})
"""Modules by which it could have another process do so."""
DYNAMIC = ("__import__", "importlib.import_module", "import_module")
"""Functions that import the module whose name they are given."""


@dataclass(frozen=True, slots=True)
class Imports:
    """What a script imports."""

    names: frozenset[str]
    """Dotted names of every import, ``a.b`` as well as ``a`` for ``from a import b``."""
    own: frozenset[str]
    """Top-level names of packages whose modules the script holds in itself, under string keys."""

    @property
    def third_party(self) -> set[str]:
        """Top-level names that neither Python nor the script itself brings."""
        tops = {name.partition(".")[0] for name in self.names}
        return tops - sys.stdlib_module_names - self.own

    def reaching(self, modules: frozenset[str]) -> set[str]:
        """Imports of one of `modules`, or of something in one."""
        return {
            name
            for name in self.names
            if any(name == module or name.startswith(f"{module}.") for module in modules)
        }


def read_imports(source: str) -> Imports:
    """The imports of `source` and of the code that it holds in strings.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: `source` is not Python, or is nested
            beyond what Python's parser takes.
    """
    names: set[str] = set()
    own: set[str] = set()
    for node in _nodes(source):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in DYNAMIC:
            if (name := _string(node.args[0])) is not None:
                names.add(name)
        elif (_string(node) or "").startswith("gptpack."):
            own.add("gptpack")
    return Imports(frozenset(names), frozenset(own))


def _string(node: ast.AST) -> str | None:
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str) else None


def _nodes(source: str) -> Iterator[ast.AST]:
    """The syntax tree of `source`, and those of all code in its strings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that a newer Python frowns on
        yield from _walk(ast.parse(source), 0)


def _walk(tree: ast.Module, depth: int) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        yield node
        value = node.value if isinstance(node, ast.Constant) else None
        if not isinstance(value, str | bytes) or len(value) < LEAST_CHARACTERS:
            continue
        for text in _texts(value) if depth < MOST_DEPTH else ():
            try:
                inner = ast.parse(text)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            yield from _walk(inner, depth + 1)
            break


def _texts(value: str | bytes) -> Iterator[str]:
    """`value` as text, and what it unpacks to."""
    if isinstance(value, str):
        yield value
    packed = [value] if isinstance(value, bytes) else []
    for decode in (base64.b85decode, base64.b64decode, base64.a85decode):
        try:
            packed.append(decode(value))
        except (ValueError, binascii.Error):
            continue
    for data in packed:
        unpackers = lzma.LZMADecompressor(), zlib.decompressobj(wbits=47), bz2.BZ2Decompressor()
        for unpacker in unpackers:
            try:
                yield unpacker.decompress(data, MOST_UNPACKED_BYTES).decode()
            except (ValueError, OSError, EOFError, lzma.LZMAError, zlib.error):
                continue
