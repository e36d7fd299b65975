"""Python's standard library -> the demo's text: the documentation that every installation has.

It is read from source files with `ast`; no module is imported, so nothing runs. The text depends on
the Python version and on what the distribution ships; for one installation it is always the same.
"""

import ast
import hashlib
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from gptpack.errors import DataError
from gptpack.progress import Progress, silent

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

SEPARATOR = "\n\x1e\n"
SKIPPED = frozenset({"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"})
TOPICS = Path("pydoc_data/topics.py")


def standard_library() -> Path:
    """The folder of this interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def documents(folder: Path, *, progress: Progress = silent) -> Iterator[str]:
    """One document per language topic, then one per module: its docstrings in source order.

    Files that do not parse are passed over (the library keeps a few on purpose), and so are tests
    and installed packages. Sorted by name, whatever order the file system has.
    """
    names = (path.relative_to(folder) for path in folder.rglob("*.py"))
    paths = sorted(
        (name for name in names if SKIPPED.isdisjoint(name.parts)), key=lambda name: name.as_posix()
    )
    if (folder / TOPICS).is_file():
        yield from topics((folder / TOPICS).read_bytes())
    for done, path in enumerate(paths):
        progress("text", done, len(paths))
        document = "\n\n".join(docstrings((folder / path).read_bytes()))
        if document:
            yield document
    progress("text", len(paths), len(paths))


def docstrings(source: bytes) -> Iterator[str]:
    """The docstrings of a module, its classes and its functions, in source order."""
    tree = parse(source)
    nodes = [] if tree is None else [tree, *_definitions(tree)]
    for node in nodes:
        text = clean(ast.get_docstring(node) or "")
        if text:
            yield text


def topics(source: bytes) -> Iterator[str]:
    """The language reference as `help()` shows it: the texts of ``topics = {...}``, by name."""
    tree = parse(source)
    for node in [] if tree is None else tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            texts = ast.literal_eval(node.value)
            yield from (clean(texts[name]) for name in sorted(texts))


def parse(source: bytes) -> ast.Module | None:
    """The module's tree; None where this Python does not take it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def clean(text: str) -> str:
    """`text` without control characters, which would split or end documents, or lone surrogates."""
    kept = "".join(c for c in text if c in "\n\t" or (c >= " " and not "\ud800" <= c <= "\udfff"))
    return kept.strip()


def write_text(path: Path, *, progress: Progress = silent, folder: Path | None = None) -> int:
    """Write the documents to `path` with the separator between them; returns the bytes.

    They are in the order of their hashes. Training reads in order, and what stands in one folder
    is alike: sorted by path, the same run ended 0.11 bits per byte worse (docs/log.md, 2026-11-21).

    Raises:
        DataError: the installation ships no sources.
    """
    folder = standard_library() if folder is None else folder
    encoded = SEPARATOR.encode().join(
        sorted(
            {document.encode() for document in documents(folder, progress=progress)},
            key=lambda document: hashlib.sha256(document).digest(),
        )
    )
    if not encoded:
        raise DataError(f"{folder}: no documentation in this Python's standard library")
    path.write_bytes(encoded)
    return len(encoded)


def _definitions(node: ast.AST) -> Iterator[Definition]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield child
        yield from _definitions(child)
