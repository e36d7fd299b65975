"""A packed file's header -> a report on what the file holds. Torch is not needed.

A section's stored bytes are shared out over its tensors, by what the packer recorded of their
codes, so the bytes of all tensors and of the header add up to the size of the file, exactly.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptpack.artifact.front import read_header
from gptpack.artifact.header import ArtifactHeader
from gptpack.artifact.memory import check_room
from gptpack.artifact.plan import plan_sections
from gptpack.artifact.record import PackRecord
from gptpack.artifact.recorded import recorded_bytes, shared_out
from gptpack.errors import GptpackError
from gptpack.escape import plain
from gptpack.inputs import read_input
from gptpack.values import TokenizerIdentity, to_dict

SHARED = "the file does not say what each tensor takes: bytes of codes are shares by raw bytes"
"""What there is to say of a report that is not `exact`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """One tensor of a file, and its share of the bytes."""

    name: str
    shape: tuple[int, ...]
    method: str
    parameters: int
    """Numbers that the tensor holds."""
    stored_bytes: int
    """Bytes that it takes up of the file; see `InspectReport.exact`."""
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReport:
    """Tensors of one shape and method whose names differ in layer numbers only."""

    name: str
    """The common name, with ``*`` for each layer number."""
    tensors: int
    shape: tuple[int, ...]
    """Shape of each tensor."""
    method: str
    parameters: int
    """Numbers that all tensors hold together; the bytes are of all of them too."""
    stored_bytes: int
    bits_per_parameter: float
    share: float
    """Share of the file's bytes."""


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
    """SHA-256 that names the whole file, as the header holds the sections' digests."""
    weights_sha256: str
    budget_bytes: int | None
    """Budget that the file was packed for; None if it does not say."""
    code_bytes: int | None
    """Bytes of source code that count into the budget; None if the file does not say."""
    headroom_bytes: int | None
    """Bytes that the budget leaves after file and code; negative when over."""
    exact: bool
    """Whether the bytes of each tensor are what its codes cost, as recorded by the packer or by
    decoding; else those of a section of codes are shares in proportion to raw bytes."""
    parameters: int
    model: Mapping[str, Any]
    family: str
    """Name of the model's family: golf, transformers or module."""
    tokenizer: TokenizerIdentity | None
    files: Mapping[str, int]
    """Bytes of each file that goes with the model, by name."""
    files_bytes: int
    """Bytes that those files take up, coded."""
    pack: Mapping[str, Any]
    groups: tuple[GroupReport, ...]
    sections: tuple[SectionReport, ...]
    tensors: tuple[TensorReport, ...]

    @property
    def record(self) -> PackRecord:
        """What of `pack` can be meant, typed."""
        return PackRecord.from_dict(self.pack)

    @property
    def shape(self) -> str:
        """The model's shape in a line, as far as its family's configuration says it."""
        model = self.model
        if self.family != "golf":
            values = model["values"]
            kind = f"{self.family} {plain(values.get('model_type', ''), 40)}".strip()
            vocab = model.get("vocab") or values.get("vocab_size")
            return f"{kind}, vocab {vocab:,}, context {model['context']:,}"
        return (
            f"{model['layers']:,} layers, width {model['width']:,}, heads {model['heads']:,} "
            f"({model['kv_heads']:,} kv), vocab {model['vocab']:,}, context {model['context']:,}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return dataclasses.asdict(self)


def inspect(path: str | Path, *, decode: bool = False) -> InspectReport:
    """Report on what a packed file holds: its size, budget, model, tensors and provenance.

    Only the header is read, so damage to a section is not seen; `verify` sees all.

        >>> report = gptpack.inspect("model.gptpack")
        >>> coded = report.files_bytes + sum(t.stored_bytes for t in report.tensors)
        >>> report.header_bytes + coded == report.file_bytes
        True

    Args:
        decode: also decode the file, which takes some seconds and verifies its sections, and share
            out a section of codes by what its codes cost; else by what the packer recorded of that,
            or, in files that do not say, by raw bytes.

    Raises:
        GptpackError: there is no regular file that can be read.
        ArtifactError: preamble, header, or a section that was decoded are corrupt, or the file has
            another size.
        MissingDependencyError: a section's codec is not installed, or memory does not suffice.
    """
    header = read_header(path)
    if not decode:
        return report_on(header, str(path))
    from gptpack.inspection.shares import measured_bytes

    try:
        check_room(header.decoded_bytes, None)
        shares = measured_bytes(read_input(path, header.file_bytes))
    except GptpackError as error:
        raise type(error)(f"{path}: {error}") from error
    return report_on(header, str(path), shares)


def report_on(
    header: ArtifactHeader, path: str, shares: Sequence[int] | None = None
) -> InspectReport:
    """The report on a header that has been read; `shares` are the stored bytes of each tensor."""
    shares, exact = tensor_bytes(header) if shares is None else (shares, True)
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
    budget, code = header.record.budget_bytes, header.record.code_bytes
    return InspectReport(
        path=path,
        format_version=header.version,
        file_bytes=header.file_bytes,
        header_bytes=header.header_bytes,
        header_sha256=header.header_sha256,
        weights_sha256=header.weights_sha256,
        budget_bytes=budget,
        code_bytes=code,
        headroom_bytes=None if budget is None else budget - header.file_bytes - (code or 0),
        exact=exact,
        parameters=sum(tensor.parameters for tensor in tensors),
        model=to_dict(header.model),
        family=header.family,
        tokenizer=header.tokenizer,
        files={file.name: file.raw_bytes for file in header.files},
        files_bytes=header.files_bytes,
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


def tensor_bytes(header: ArtifactHeader) -> tuple[list[int], bool]:
    """Stored bytes of each tensor, which with the header's are all, and whether they are exact.

    A section of codes whose tensors do not say what they take is shared out by raw bytes.
    """
    shares = [0] * len(header.tensors)
    exact = True
    for plan, section in zip(plan_sections(header.tensors), header.tensor_sections, strict=True):
        sizes = recorded_bytes(plan, section, header.tensors)
        if sizes is None:
            sizes, exact = shared_out(section.stored_bytes, plan.member_bytes), False
        for member, size in zip(plan.members, sizes, strict=True):
            shares[member] += size
    return shares, exact


def group_name(name: str) -> str:
    """`name` with ``*`` for each of its dotted parts that is a number."""
    return ".".join("*" if re.fullmatch("[0-9]+", part) else part for part in name.split("."))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings by dotted name; a list is a leaf."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
