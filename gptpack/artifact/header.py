"""The header's values <-> canonical JSON, which names the tensors and the sections that hold them.

The writer makes its header from the same values that `parse_header` returns, and parses every
header before it is written, so that one place says what is allowed.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptpack.artifact.layout import (
    LARGEST_DEPTH,
    LARGEST_DIMENSION,
    LARGEST_RANK,
    LONGEST_NAME,
    SECTION_DIGEST_CHARACTERS,
)
from gptpack.artifact.plan import TensorEntry, plan_sections
from gptpack.artifact.record import PackRecord
from gptpack.codec.sections import LAYOUTS, SECTION_CODECS, most_section_bytes
from gptpack.errors import ArtifactError, ConfigError
from gptpack.families.golf.config import ModelConfig
from gptpack.quant.types import METHODS
from gptpack.values import TokenizerIdentity, from_dict, non_default

KEYS = ("model", "pack", "sections", "tensors", "tokenizer", "weights_sha256")


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
class ArtifactHeader:
    """Preamble and header of a file: all that stands before its sections."""

    model: ModelConfig
    tokenizer: TokenizerIdentity
    tensors: tuple[TensorEntry, ...]
    sections: tuple[SectionEntry, ...]
    weights_sha256: str
    pack: Mapping[str, Any]
    """Provenance and quality as the packer stored them; a hostile file may hold any JSON object."""
    file_bytes: int
    header_bytes: int
    """Bytes of the preamble and the stored header; the rest of the file is sections."""
    header_sha256: str
    """The preamble's digest. As the header holds the sections' digests, it names the whole file."""

    @property
    def record(self) -> PackRecord:
        """The figures of `pack` that make sense, typed."""
        return PackRecord.from_dict(self.pack)


def canonical_json(value: Any) -> bytes:
    """`value` in the one spelling that the format allows.

    Raises:
        ArtifactError: JSON cannot hold it: a number is not finite, a key is not a string, ...
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"the header cannot be written as JSON: {error}") from error
    return text.encode("ascii")


def header_json(
    *,
    model: ModelConfig,
    tokenizer: TokenizerIdentity,
    tensors: Sequence[TensorEntry],
    sections: Sequence[SectionEntry],
    weights_sha256: str,
    pack: Mapping[str, Any],
) -> bytes:
    """The raw header of these values; `parse_header` returns them."""
    return canonical_json(
        {
            "model": non_default(model),
            "pack": dict(pack),
            "sections": [
                [s.name, s.codec, s.layout, s.stored_bytes, s.raw_bytes, s.digest] for s in sections
            ],
            "tensors": [_row(tensor) for tensor in tensors],
            "tokenizer": {
                "bos": tokenizer.bos,
                "sha256": tokenizer.sha256,
                "vocab": tokenizer.vocab,
            },
            "weights_sha256": weights_sha256,
        }
    )


def check_table(tensors: Sequence[TensorEntry]) -> None:
    """Raise `ArtifactError` if no header can hold this tensor table."""
    list(_tensors([_row(tensor) for tensor in tensors]))


def parse_header(
    raw: bytes, *, header_bytes: int, file_bytes: int, header_sha256: str
) -> ArtifactHeader:
    """Read and check a raw header; the sections it names fill the file exactly.

    Raises:
        ArtifactError: docs/format.md does not allow such a header.
    """
    values = _load(raw)
    if type(values) is not dict or tuple(sorted(values)) != KEYS:
        raise ArtifactError(f"the header must be an object of {', '.join(KEYS)}")
    if type(values["pack"]) is not dict:
        raise ArtifactError("the header's pack must be an object")
    weights = values["weights_sha256"]
    if type(weights) is not str or not re.fullmatch("[0-9a-f]{64}", weights):
        raise ArtifactError(f"weights_sha256 is {_short(weights)}, not 64 hex digits")
    tensors = tuple(_tensors(values["tensors"]))
    return ArtifactHeader(
        model=_model(values["model"]),
        tokenizer=_tokenizer(values["tokenizer"]),
        tensors=tensors,
        sections=tuple(_sections(values["sections"], tensors, file_bytes - header_bytes)),
        weights_sha256=weights,
        pack=values["pack"],
        file_bytes=file_bytes,
        header_bytes=header_bytes,
        header_sha256=header_sha256,
    )


def _row(tensor: TensorEntry) -> list[Any]:
    return [
        tensor.name,
        list(tensor.shape),
        tensor.method,
        dict(tensor.parameters),
        dict(tensor.record),
    ]


def _load(raw: bytes) -> Any:
    """The values of `raw`, which must be canonical JSON and not nested too deeply."""
    try:
        values = json.loads(raw.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the header is not ASCII JSON: {error}") from error
    level = [values]
    depth = 0
    while level:
        depth += 1
        if depth > LARGEST_DEPTH:
            raise ArtifactError(f"the header is nested more than {LARGEST_DEPTH} deep")
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    if canonical_json(values) != raw:
        raise ArtifactError("the header's JSON is not canonical (sorted, dense, no repeated keys)")
    return values


def _model(values: Any) -> ModelConfig:
    if type(values) is not dict:
        raise ArtifactError(f"model is {_short(values)}, must be an object")
    try:
        return from_dict(ModelConfig, values, "model")
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ArtifactError(f"the header's model is not one: {_escaped(error)}") from error


def _tokenizer(values: Any) -> TokenizerIdentity:
    if type(values) is not dict or sorted(values) != ["bos", "sha256", "vocab"]:
        raise ArtifactError("the header's tokenizer must be an object of bos, sha256, vocab")
    try:
        return from_dict(TokenizerIdentity, values, "tokenizer")
    except ConfigError as error:
        raise ArtifactError(f"the header's tokenizer is not one: {_escaped(error)}") from error


def _tensors(rows: Any) -> Iterator[TensorEntry]:
    if type(rows) is not list or not rows:
        raise ArtifactError("the tensor table must be a list of at least one tensor")
    seen = set()
    for row in rows:
        if type(row) is not list or len(row) != 5:
            raise ArtifactError(f"tensor row {_short(row)} must have 5 columns")
        name, shape, method, parameters, record = row
        if type(name) is not str or not re.fullmatch(rf"[ -~]{{1,{LONGEST_NAME}}}", name):
            raise ArtifactError(
                f"tensor name {_short(name)} must be 1 to {LONGEST_NAME} printable ASCII characters"
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
                f"tensor {name} has shape {_short(shape)}, must be at most {LARGEST_RANK} "
                "positive integers"
            )
        if type(method) is not str or method not in METHODS:
            raise ArtifactError(
                f"tensor {name} has method {_short(method)}, this gptpack knows "
                f"{', '.join(METHODS)}"
            )
        ranks = METHODS[method].ranks
        if ranks is not None and len(shape) not in ranks:
            raise ArtifactError(f"tensor {name} has rank {len(shape)}, {method} takes {ranks}")
        if type(parameters) is not dict or not all(
            type(value) is float or (type(value) is int and abs(value) < 1 << 63)
            for value in parameters.values()
        ):
            raise ArtifactError(f"tensor {name} has parameters that are not 64-bit numbers")
        if problem := METHODS[method].problem(parameters):
            raise ArtifactError(f"tensor {name}: {problem}")
        if type(record) is not dict:
            raise ArtifactError(f"tensor {name} has a record that is not an object")
        yield TensorEntry(
            name=name, shape=tuple(shape), method=method, parameters=parameters, record=record
        )


def _sections(rows: Any, tensors: Sequence[TensorEntry], left: int) -> Iterator[SectionEntry]:
    """The section table, in which only codecs, layouts, sizes and digests may vary.

    Args:
        left: bytes of the file after its header, which the sections fill.
    """
    plans = plan_sections(tensors)
    if type(rows) is not list or len(rows) != len(plans):
        raise ArtifactError(f"the section table must have {len(plans)} rows for these tensors")
    for plan, row in zip(plans, rows, strict=True):
        if type(row) is not list or len(row) != 6:
            raise ArtifactError(f"section row {_short(row)} must have 6 columns")
        name, codec, layout, stored, raw, digest = row
        if name != plan.name:
            raise ArtifactError(f"section {_short(name)} stands where {plan.name} must be")
        if type(codec) is not str or codec not in SECTION_CODECS:
            raise ArtifactError(
                f"section {name} has codec {_short(codec)}, this gptpack knows "
                f"{', '.join(SECTION_CODECS)}"
            )
        if layout not in LAYOUTS:
            raise ArtifactError(f"section {name} has layout {_short(layout)}, not one of {LAYOUTS}")
        if type(stored) is not int or not 0 <= stored <= left:
            raise ArtifactError(f"section {name} takes {_short(stored)} bytes, {left:,} are left")
        expected = sum(plan.member_bytes)
        if type(raw) is not int or raw != expected:
            raise ArtifactError(
                f"section {name} declares {_short(raw)} raw bytes, its tensors need {expected:,}"
            )
        most = most_section_bytes(codec, stored)
        if raw > most:
            raise ArtifactError(
                f"section {name} declares {raw:,} raw bytes, {stored:,} stored bytes may hold "
                f"{most:,} at most"
            )
        if type(digest) is not str or not re.fullmatch(
            f"[0-9a-f]{{{SECTION_DIGEST_CHARACTERS}}}", digest
        ):
            raise ArtifactError(f"section {name} has digest {_short(digest)}")
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


def _escaped(error: Exception) -> str:
    """The start of a message that quotes the file, in printable ASCII characters."""
    return f"{ascii(str(error))[1:-1]:.400}"


def _short(value: Any) -> str:
    """`value` in a few printable ASCII characters: it may be anything, and goes to a terminal."""
    return f"{value!a:.60}"
