"""What a packed file holds, from its header alone: nothing is decoded, and torch is not needed.

A section's stored bytes are shared out over its tensors in proportion to their raw bytes, so the
bytes of all tensors and of the header add up to the size of the file, exactly.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptpack.artifact.header import ArtifactHeader
from gptpack.artifact.layout import VERSION
from gptpack.artifact.plan import plan_sections
from gptpack.artifact.reader import read_header
from gptpack.values import TokenizerIdentity, to_dict


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """One tensor, and its share of the file."""

    name: str
    shape: tuple[int, ...]
    method: str
    parameters: int
    """Numbers that it holds."""
    stored_bytes: int
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReport:
    """Tensors of one shape and method whose names differ in layer numbers only."""

    name: str
    """With ``*`` for each number."""
    tensors: int
    shape: tuple[int, ...]
    """Of each tensor."""
    method: str
    parameters: int
    """Of all tensors together, as are the bytes."""
    stored_bytes: int
    bits_per_parameter: float
    share: float
    """Of the file's bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionReport:
    """One section of the file."""

    name: str
    codec: str
    layout: str
    raw_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectReport:
    """A packed file on one page."""

    path: str
    format_version: int
    file_bytes: int
    header_bytes: int
    header_sha256: str
    """Names the whole file, as the header holds the sections' digests."""
    weights_sha256: str
    budget_bytes: int | None
    """That it was packed for; None if the file does not say."""
    code_bytes: int | None
    """Of source code counted towards the budget."""
    headroom_bytes: int | None
    """What the budget leaves after file and code; negative when over."""
    parameters: int
    model: Mapping[str, Any]
    tokenizer: TokenizerIdentity
    pack: Mapping[str, Any]
    groups: tuple[GroupReport, ...]
    sections: tuple[SectionReport, ...]
    tensors: tuple[TensorReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return dataclasses.asdict(self)


def inspect(path: str | Path) -> InspectReport:
    """Report on the file at `path`.

    Raises:
        GptpackError: there is no regular file that can be read.
        ArtifactError: its preamble or header are corrupt, or it has another size.
    """
    return report_on(read_header(path), str(path))


def report_on(
    header: ArtifactHeader, path: str, shares: Sequence[int] | None = None
) -> InspectReport:
    """`inspect` of a header that has been read; `shares` are the stored bytes of each tensor."""
    shares = tensor_bytes(header) if shares is None else shares
    tensors = tuple(
        TensorReport(
            name=entry.name,
            shape=entry.shape,
            method=entry.method,
            parameters=entry.numel,
            stored_bytes=stored,
            record=entry.record,
        )
        for entry, stored in zip(header.tensors, shares, strict=True)
    )
    budget = _count(header.pack, "budget_bytes")
    code = _count(header.pack, "code_bytes")
    return InspectReport(
        path=path,
        format_version=VERSION,
        file_bytes=header.file_bytes,
        header_bytes=header.header_bytes,
        header_sha256=header.header_sha256,
        weights_sha256=header.weights_sha256,
        budget_bytes=budget,
        code_bytes=code,
        headroom_bytes=None if budget is None else budget - header.file_bytes - (code or 0),
        parameters=sum(tensor.parameters for tensor in tensors),
        model=to_dict(header.model),
        tokenizer=header.tokenizer,
        pack=header.pack,
        groups=tuple(_groups(tensors, header.file_bytes)),
        sections=tuple(
            SectionReport(
                name=section.name,
                codec=section.codec,
                layout=section.layout,
                raw_bytes=section.raw_bytes,
                stored_bytes=section.stored_bytes,
            )
            for section in header.sections
        ),
        tensors=tensors,
    )


def tensor_bytes(header: ArtifactHeader) -> list[int]:
    """Stored bytes of each tensor; with the header's they add up to the file's.

    The boundary between two tensors of a section falls on the byte below its exact place.
    """
    shares = [0] * len(header.tensors)
    for plan, section in zip(plan_sections(header.tensors), header.sections, strict=True):
        raw = start = 0
        for member, size in zip(plan.members, plan.member_bytes, strict=True):
            raw += size
            stop = section.stored_bytes * raw // section.raw_bytes
            shares[member] += stop - start
            start = stop
    return shares


def group_name(name: str) -> str:
    """`name` with ``*`` for each of its dotted parts that is a number."""
    return ".".join("*" if re.fullmatch("[0-9]+", part) else part for part in name.split("."))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects by dotted name; lists count as leaves."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def recorded_quality(pack: Mapping[str, Any]) -> dict[str, float]:
    """What the packer measured (``pack.quality``), as far as the values can be what they say.

    ``bpb_before`` and ``bpb_after`` are bits per byte, ``tokens`` and ``context`` say of what.
    """
    quality = pack.get("quality")
    if not isinstance(quality, Mapping):
        return {}
    known: dict[str, float] = {}
    for key in ("bpb_before", "bpb_after"):
        bpb = quality.get(key)
        if type(bpb) is float and 0 <= bpb < 1000:
            known[key] = bpb
    for key in ("tokens", "context"):
        count = quality.get(key)
        if type(count) is int and 0 < count < 1 << 63:
            known[key] = count
    return known


def _groups(tensors: tuple[TensorReport, ...], file_bytes: int) -> Iterator[GroupReport]:
    members: dict[tuple[str, tuple[int, ...], str], list[TensorReport]] = {}
    for tensor in tensors:
        key = (group_name(tensor.name), tensor.shape, tensor.method)
        members.setdefault(key, []).append(tensor)
    for (name, shape, method), group in members.items():
        parameters = len(group) * math.prod(shape)
        stored = sum(tensor.stored_bytes for tensor in group)
        yield GroupReport(
            name=name,
            tensors=len(group),
            shape=shape,
            method=method,
            parameters=parameters,
            stored_bytes=stored,
            bits_per_parameter=8 * stored / parameters,
            share=stored / file_bytes,
        )


def _count(pack: Mapping[str, Any], key: str) -> int | None:
    """A byte count of `pack`, which may hold anything."""
    value = pack.get(key)
    return value if type(value) is int and value >= 0 else None
