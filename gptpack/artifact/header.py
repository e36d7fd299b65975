"""The header's values <-> canonical JSON, which names the tensors and the sections that hold them.

The writer makes its header from the same values that `parse_header` returns, and parses every
header before it is written, so that one place says what is allowed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptpack.artifact.layout import (
    LARGEST_DEPTH,
)
from gptpack.artifact.plan import TensorEntry
from gptpack.artifact.record import PackRecord
from gptpack.artifact.tables import (
    TRANSPOSED,
    FileEntry,
    SectionEntry,
    file_entries,
    section_entries,
    short,
    tensor_entries,
    tensor_row,
)
from gptpack.errors import ArtifactError, ConfigError
from gptpack.families.family import (
    FAMILIES,
    FamilyConfig,
    config_of,
    family_of,
    model_values,
)
from gptpack.families.golf.config import ModelConfig
from gptpack.values import TokenizerIdentity, from_dict

KEYS = ("model", "pack", "sections", "tensors", "tokenizer", "weights_sha256")
KEYS_2 = ("family", "files", *KEYS)
"""Keys of a header of version 2."""
LARGEST_VOCAB_1 = 65536
"""Most tokens of a model in a file of version 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactHeader:
    """Preamble and header of a file: all that stands before its sections."""

    version: int
    """Version of the format, 1 or 2."""
    family: str
    """Name of the model's family, a key of `gptpack.families.family.FAMILIES`."""
    model: FamilyConfig
    tokenizer: TokenizerIdentity | None
    """Which tokenizer the tokens belong to; None where nobody said it, which golf's must."""
    files: tuple[FileEntry, ...]
    """The files that go with the model, in the order of their section."""
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
    def tensor_sections(self) -> tuple[SectionEntry, ...]:
        """The sections of tensors: all but that of files."""
        return self.sections[:-1] if self.files else self.sections

    @property
    def files_bytes(self) -> int:
        """Stored bytes of the files that go with the model."""
        return self.sections[-1].stored_bytes if self.files else 0

    @property
    def decoded_bytes(self) -> int:
        """Memory that decoding takes: the sections, stored and raw, and the weights as float32."""
        sections = sum(section.stored_bytes + section.raw_bytes for section in self.sections)
        return sections + 4 * sum(tensor.numel for tensor in self.tensors)

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


def version_for(
    model: FamilyConfig, tensors: Sequence[TensorEntry], files: Sequence[FileEntry]
) -> int:
    """The first version of the format that can hold these."""
    plain = family_of(model) == "golf" and model.vocab <= LARGEST_VOCAB_1 and not files
    return 1 if plain and not any(TRANSPOSED in t.parameters for t in tensors) else 2


def header_json(
    *,
    model: FamilyConfig,
    tokenizer: TokenizerIdentity | None,
    tensors: Sequence[TensorEntry],
    sections: Sequence[SectionEntry],
    files: Sequence[FileEntry],
    weights_sha256: str,
    pack: Mapping[str, Any],
) -> bytes:
    """The raw header of these values; `parse_header` returns them."""
    family = {"family": family_of(model), "files": [[f.name, f.raw_bytes] for f in files]}
    return canonical_json(
        (family if version_for(model, tensors, files) > 1 else {})
        | {
            "model": model_values(model),
            "pack": dict(pack),
            "sections": [
                [s.name, s.codec, s.layout, s.stored_bytes, s.raw_bytes, s.digest] for s in sections
            ],
            "tensors": [tensor_row(tensor) for tensor in tensors],
            "tokenizer": None
            if tokenizer is None
            else {
                "bos": tokenizer.bos,
                "sha256": tokenizer.sha256,
                "vocab": tokenizer.vocab,
            },
            "weights_sha256": weights_sha256,
        }
    )


def parse_header(
    raw: bytes, *, version: int, header_bytes: int, file_bytes: int, header_sha256: str
) -> ArtifactHeader:
    """Read and check a raw header; the sections it names fill the file exactly.

    Raises:
        ArtifactError: docs/format.md does not allow such a header.
    """
    values = _load(raw)
    keys = KEYS if version == 1 else KEYS_2
    if type(values) is not dict or tuple(sorted(values)) != keys:
        raise ArtifactError(f"the header must be an object of {', '.join(keys)}")
    family = values.get("family", "golf")
    if type(family) is not str or family not in FAMILIES:
        raise ArtifactError(f"family {short(family)}, this gptpack knows {', '.join(FAMILIES)}")
    if type(values["pack"]) is not dict:
        raise ArtifactError("the header's pack must be an object")
    weights = values["weights_sha256"]
    if type(weights) is not str or not re.fullmatch("[0-9a-f]{64}", weights):
        raise ArtifactError(f"weights_sha256 is {short(weights)}, not 64 hex digits")
    model = _model(family, values["model"], version)
    tensors = tuple(tensor_entries(values["tensors"], version=version))
    files = tuple(file_entries(values.get("files", [])))
    return ArtifactHeader(
        version=version,
        family=family,
        model=model,
        tokenizer=_tokenizer(values["tokenizer"], model, version),
        files=files,
        tensors=tensors,
        sections=tuple(
            section_entries(values["sections"], tensors, files, file_bytes - header_bytes)
        ),
        weights_sha256=weights,
        pack=values["pack"],
        file_bytes=file_bytes,
        header_bytes=header_bytes,
        header_sha256=header_sha256,
    )


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


def _model(family: str, values: Any, version: int) -> FamilyConfig:
    if type(values) is not dict:
        raise ArtifactError(f"model is {short(values)}, must be an object")
    try:
        found = config_of(family, values)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ArtifactError(f"the header's model is not one: {_escaped(error)}") from error
    if not isinstance(found, ModelConfig) and model_values(found) != values:
        raise ArtifactError(f"the header's model must have {', '.join(model_values(found))}")
    _check_vocab("model", found.vocab, version)
    return found


def _tokenizer(values: Any, model: FamilyConfig, version: int) -> TokenizerIdentity | None:
    if values is None and not isinstance(model, ModelConfig):
        return None
    if type(values) is not dict or sorted(values) != ["bos", "sha256", "vocab"]:
        raise ArtifactError("the header's tokenizer must be an object of bos, sha256, vocab")
    try:
        found = from_dict(TokenizerIdentity, values, "tokenizer")
    except ConfigError as error:
        raise ArtifactError(f"the header's tokenizer is not one: {_escaped(error)}") from error
    _check_vocab("tokenizer", found.vocab, version)
    return found


def _check_vocab(what: str, vocab: int, version: int) -> None:
    """Raise the `ArtifactError` of a vocabulary that is too large for a file of this version."""
    if version == 1 and vocab > LARGEST_VOCAB_1:
        raise ArtifactError(
            f"the header's {what} is not one: vocab={vocab}, version 1 holds {LARGEST_VOCAB_1} at "
            "most"
        )


def _escaped(error: Exception) -> str:
    """The start of a message that quotes the file, in printable ASCII characters."""
    return f"{ascii(str(error))[1:-1]:.400}"
