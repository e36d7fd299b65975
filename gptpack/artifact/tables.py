"""Rows of a header's three tables <-> entries: tensors, the files beside them, and sections.

What a row may hold, docs/format.md says; each error names the row.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptpack.artifact.layout import (
    FILES_RAW_PER_STORED,
    FILES_SECTION,
    LARGEST_DIMENSION,
    LARGEST_RANK,
    LONGEST_NAME,
    MOST_FILES,
    SECTION_DIGEST_CHARACTERS,
)
from gptpack.artifact.plan import TensorEntry, plan_sections
from gptpack.codec.general import BYTE_CODECS, CODECS, LAYOUTS, RAW_ALWAYS, most_raw_bytes
from gptpack.errors import ArtifactError
from gptpack.quant.methods import METHODS
from gptpack.version import FORMAT_VERSION

FILE_CODECS = tuple(codec.name for codec in BYTE_CODECS)
"""Codecs of the section of files."""
FILE_NAME = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}"
"""Names that files may have: of one part, and not hidden."""
TRANSPOSED = "transposed"
"""Parameter of a tensor whose transpose the model's state has; version 2 alone knows it."""
FURTHER_NAMES = "further_names"
"""Key of a tensor's record: names that the module's state has for it beside that of its row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionEntry:
    """A row of the section table; sections follow the header in its order, without gaps."""

    name: str
    codec: str
    layout: str
    stored_bytes: int
    raw_bytes: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file that goes with the model, such as its tokenizer."""

    name: str
    raw_bytes: int


def named_files(raw_bytes: Mapping[str, int]) -> str:
    """The name of the largest of some files by their sizes, and how many others there are."""
    if not raw_bytes:
        return "files"
    others = len(raw_bytes) - 1
    more = f" and {others} other file{'s' if others > 1 else ''}" if others else ""
    return f"{max(raw_bytes, key=raw_bytes.__getitem__)}{more}"


def most_files_bytes(stored_bytes: int) -> int:
    """Largest raw size that `stored_bytes` of the section of files may stand for."""
    return FILES_RAW_PER_STORED * stored_bytes + RAW_ALWAYS


def check_table(tensors: Iterable[TensorEntry]) -> None:
    """Raise `ArtifactError` if no header can hold this tensor table."""
    list(tensor_entries([tensor_row(tensor) for tensor in tensors], version=FORMAT_VERSION))


def tensor_row(tensor: TensorEntry) -> list[Any]:
    """The row of the tensor table that says `tensor`."""
    return [
        tensor.name,
        list(tensor.shape),
        tensor.method,
        dict(tensor.parameters),
        dict(tensor.record),
    ]


def file_entries(rows: Any) -> Iterator[FileEntry]:
    """The files that go with a model, by the rows of a hostile header."""
    if type(rows) is not list or len(rows) > MOST_FILES:
        raise ArtifactError(f"files must be a list of at most {MOST_FILES}")
    seen = set()
    for row in rows:
        if type(row) is not list or len(row) != 2:
            raise ArtifactError(f"file row {short(row)} must have 2 columns")
        name, size = row
        if type(name) is not str or not re.fullmatch(FILE_NAME, name) or name in seen:
            raise ArtifactError(
                f"file name {short(name)} must be unlike the others, and 1 to 100 letters, "
                "digits, dots, hyphens and underscores that do not begin with a dot"
            )
        seen.add(name)
        if type(size) is not int or not 0 <= size <= LARGEST_DIMENSION:
            raise ArtifactError(f"file {name} has {short(size)} bytes")
        yield FileEntry(name=name, raw_bytes=size)


def tensor_entries(rows: Any, *, version: int) -> Iterator[TensorEntry]:
    """The tensor table, by the rows of a hostile header."""
    if type(rows) is not list or not rows:
        raise ArtifactError("the tensor table must be a list of at least one tensor")
    seen = set()
    for row in rows:
        if type(row) is not list or len(row) != 5:
            raise ArtifactError(f"tensor row {short(row)} must have 5 columns")
        name, shape, method, parameters, record = row
        if type(name) is not str or not re.fullmatch(rf"[ -~]{{1,{LONGEST_NAME}}}", name):
            raise ArtifactError(
                f"tensor name {short(name)} must be 1 to {LONGEST_NAME} printable ASCII characters"
            )
        if name in seen:
            raise ArtifactError(f"tensor {name} appears twice in the table")
        seen.add(name)
        if (
            type(shape) is not list
            or len(shape) > LARGEST_RANK
            or not all(type(n) is int and 1 <= n <= LARGEST_DIMENSION for n in shape)
        ):
            raise ArtifactError(
                f"tensor {name} has shape {short(shape)}, must be at most {LARGEST_RANK} "
                "positive integers"
            )
        if type(method) is not str or method not in METHODS:
            raise ArtifactError(
                f"tensor {name} has method {short(method)}, this gptpack knows {', '.join(METHODS)}"
            )
        ranks = METHODS[method].ranks
        if ranks is not None and len(shape) not in ranks:
            raise ArtifactError(f"tensor {name} has rank {len(shape)}, {method} takes {ranks}")
        if type(parameters) is not dict or not all(
            type(value) is float or (type(value) is int and abs(value) < 1 << 63)
            for value in parameters.values()
        ):
            raise ArtifactError(f"tensor {name} has parameters that are not 64-bit numbers")
        if problem := METHODS[method].problem(parameters) or _turned(shape, parameters, version):
            raise ArtifactError(f"tensor {name}: {problem}")
        if type(record) is not dict:
            raise ArtifactError(f"tensor {name} has a record that is not an object")
        yield TensorEntry(
            name=name, shape=tuple(shape), method=method, parameters=parameters, record=record
        )


def _turned(shape: Sequence[int], parameters: Mapping[str, Any], version: int) -> str:
    """The error in a tensor's `TRANSPOSED`, in words; empty if there is none."""
    if version == 1 or TRANSPOSED not in parameters:
        return ""
    right = len(shape) == 2 and type(parameters[TRANSPOSED]) is int and parameters[TRANSPOSED] == 1
    return "" if right else f"{TRANSPOSED} must be 1, and the tensor a matrix"


def further_names(tensors: Sequence[TensorEntry]) -> dict[str, str]:
    """The further names that records say, which may be anything, each with that of its row."""
    rows = {tensor.name for tensor in tensors}
    found: dict[str, str] = {}
    for tensor in tensors:
        names = tensor.record.get(FURTHER_NAMES)
        for name in names if type(names) is list else ():
            if type(name) is str and name not in rows:
                found.setdefault(name, tensor.name)
    return found


def section_entries(
    rows: Any, tensors: Sequence[TensorEntry], files: Sequence[FileEntry], left: int
) -> Iterator[SectionEntry]:
    """The section table, in which only codecs, layouts, sizes and digests may vary.

    Args:
        left: bytes of the file after its header, which the sections fill.
    """
    all_bytes = left
    plans = [(plan.name, sum(plan.member_bytes)) for plan in plan_sections(tensors)]
    if files:
        plans.append((FILES_SECTION, sum(file.raw_bytes for file in files)))
    if type(rows) is not list or len(rows) != len(plans):
        raise ArtifactError(f"the section table must have {len(plans)} rows for these tensors")
    for (planned, expected), row in zip(plans, rows, strict=True):
        if type(row) is not list or len(row) != 6:
            raise ArtifactError(f"section row {short(row)} must have 6 columns")
        name, codec, layout, stored, raw, digest = row
        if name != planned:
            raise ArtifactError(f"section {short(name)} stands where {planned} must be")
        known = CODECS if name != FILES_SECTION else FILE_CODECS
        if type(codec) is not str or codec not in known:
            raise ArtifactError(
                f"section {name} has codec {short(codec)}, this gptpack knows {', '.join(known)}"
            )
        layouts = LAYOUTS if name != FILES_SECTION else LAYOUTS[:1]
        if layout not in layouts:
            raise ArtifactError(f"section {name} has layout {short(layout)}, not one of {layouts}")
        if type(stored) is not int or not 0 <= stored <= left:
            raise ArtifactError(f"section {name} takes {short(stored)} bytes, {left:,} are left")
        if type(raw) is not int or raw != expected:
            raise ArtifactError(
                f"section {name} declares {short(raw)} raw bytes, its contents need {expected:,}"
            )
        most = (
            most_files_bytes(stored) if name == FILES_SECTION else most_raw_bytes(stored, all_bytes)
        )
        if raw > most:
            raise ArtifactError(
                f"section {name} declares {raw:,} raw bytes, {stored:,} stored bytes may hold "
                f"{most:,} at most"
            )
        if type(digest) is not str or not re.fullmatch(
            f"[0-9a-f]{{{SECTION_DIGEST_CHARACTERS}}}", digest
        ):
            raise ArtifactError(f"section {name} has digest {short(digest)}")
        yield SectionEntry(
            name=name,
            codec=codec,
            layout=layout,
            stored_bytes=stored,
            raw_bytes=raw,
            digest=digest,
        )
        left -= stored
    if left:
        raise ArtifactError(f"{left:,} bytes follow the last section")


def short(value: Any) -> str:
    """`value` in a few printable ASCII characters: it may be anything, and goes to a terminal."""
    return f"{value!a:.60}"
