"""What a script imports, through wrappers that unpack more code; nothing of it is run.

Contest scripts come as ``exec(decompress(b85decode(...)))``, ours in a denser text (base123.py) and
with modules as strings, so every long string that is, or unpacks to, Python is read as well.
"""

import ast
import base64
import binascii
import bz2
import lzma
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator

from gptpack.contest import base123

LEAST_CHARACTERS = 200
MOST_DEPTH = 4
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
"""Modules by which it could have others do so."""

TEXTS: tuple[Callable[[str], bytes], ...] = (
    base64.b85decode,
    base64.b64decode,
    base64.a85decode,
    base123.decode,
)


def parsed(source: str) -> Iterator[ast.Module]:
    """The trees of `source` and of all code that it holds in strings.

    Raises:
        SyntaxError: `source` itself is not Python; strings that are not are just strings.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that a newer Python frowns on
        yield from _parsed(ast.parse(source), 0)


def _parsed(tree: ast.Module, depth: int) -> Iterator[ast.Module]:
    yield tree
    if depth == MOST_DEPTH:
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str | bytes):
            continue
        if len(node.value) < LEAST_CHARACTERS:
            continue
        for text in _texts(node.value):
            try:
                inner = ast.parse(text)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            yield from _parsed(inner, depth + 1)
            break


def _texts(value: str | bytes) -> Iterator[str]:
    """`value` as text, and what it unpacks to."""
    if isinstance(value, str):
        yield value
    packed = [value] if isinstance(value, bytes) else []
    for decode in TEXTS:
        try:
            packed.append(decode(value))  # type: ignore[arg-type]
        except (ValueError, binascii.Error):
            continue
    for data in packed:
        for unpack in (_unpack_xz, _unpack_zlib, _unpack_bz2):
            try:
                yield unpack(data).decode()
            except (ValueError, OSError, EOFError, lzma.LZMAError, zlib.error):
                continue


def _unpack_xz(data: bytes) -> bytes:
    return lzma.LZMADecompressor().decompress(data, MOST_UNPACKED_BYTES)


def _unpack_zlib(data: bytes) -> bytes:
    return zlib.decompressobj(wbits=47).decompress(data, MOST_UNPACKED_BYTES)


def _unpack_bz2(data: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(data, MOST_UNPACKED_BYTES)


def imported_modules(source: str) -> set[str]:
    """Dotted names of every import in `source` and in the code that it holds.

    Raises:
        SyntaxError: `source` is not Python.
    """
    names: set[str] = set()
    for tree in parsed(source):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Call) and node.args:
                first = node.args[0]
                called = ast.unparse(node.func)
                dynamic = called in ("__import__", "importlib.import_module", "import_module")
                if dynamic and isinstance(first, ast.Constant) and isinstance(first.value, str):
                    names.add(first.value)
    return names


def own_modules(source: str) -> set[str]:
    """Top-level names of packages whose modules `source` holds itself, by string keys."""
    return {
        node.value.partition(".")[0]
        for tree in parsed(source)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith("gptpack.")
    }


def third_party(names: set[str]) -> set[str]:
    """Top-level names of `names` that Python does not bring."""
    tops = {name.partition(".")[0] for name in names}
    return {name for name in tops if name not in sys.stdlib_module_names}


def reaching(names: set[str], modules: frozenset[str]) -> set[str]:
    """Those of `names` that are, or lie in, one of `modules`."""
    return {name for name in names if any(name == m or name.startswith(f"{m}.") for m in modules)}
