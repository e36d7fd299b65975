"""A checkpoint, a `Loaded` or a `LanguageModel`, and a request -> one proved file in its budget."""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gptpack.artifact.front import decode_header
from gptpack.artifact.layout import MAGIC
from gptpack.artifact.record import PackRecord
from gptpack.artifact.writer import write_atomic
from gptpack.atomic import check_target
from gptpack.errors import ConfigError
from gptpack.evaluation.result import Evaluation
from gptpack.families.language_model import LanguageModel
from gptpack.jobs.curve import Point
from gptpack.jobs.load import Loaded
from gptpack.jobs.prepare import check_unpacked, prepared
from gptpack.jobs.proof import quality
from gptpack.jobs.request import PackRequest
from gptpack.jobs.rise import smallest
from gptpack.memory import give_back
from gptpack.packing.packer import UNLIMITED, CodedFile, grid_bits
from gptpack.progress import Progress, silent
from gptpack.quant.allocation import UNREAD
from gptpack.values import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A file that was made, what it is made of, and what was measured of it."""

    data: bytes = field(repr=False)
    """The file's bytes."""
    coded: CodedFile = field(repr=False)
    path: Path | None
    """Where the file was written; None where it was not."""
    before: Evaluation | None = None
    """What the unpacked model scored on validation text; None where there was none to prove on."""
    after: Evaluation | None = None
    """What the file scored, reloaded in a fresh process."""
    search: tuple[Point, ...] = ()
    """What was measured to find the file, where `max_rise` was given."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock seconds to ``calibrate``, ``pack`` and ``prove``."""

    @property
    def record(self) -> PackRecord:
        """What the header says of packing, but for the measured quality."""
        return self.coded.record

    @property
    def assumed(self) -> tuple[str, ...]:
        """What the checkpoint did not say of its model and was taken for granted."""
        return self.record.assumed or ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings for a person, each naming its tensor."""
        return self.coded.notes

    def to_dict(self) -> dict[str, Any]:
        """The file to its last byte and what it is worth, as plain values for JSON."""
        header = decode_header(self.data)
        coded, tensors = self.coded, self.coded.encoded.tensors
        limited = coded.budget_bytes < UNLIMITED
        left = coded.budget_bytes - coded.code_bytes - len(self.data)
        report: dict[str, Any] = {
            "file": None if self.path is None else str(self.path),
            "bytes": len(self.data),
            "sha256": hashlib.sha256(self.data).hexdigest(),
            "budget_bytes": coded.budget_bytes if limited else None,
            "code_bytes": coded.code_bytes,
            "headroom_bytes": left if limited else None,
            "parameters": sum(tensor.numel for tensor in tensors),
            "bits": grid_bits(coded.encoded),
            "delta": coded.record.delta,
            "predicted_nats": coded.predicted_nats,
            "methods": dict(Counter(tensor.method for tensor in tensors)),
            "idle_channels": sum(tensor.record.get(UNREAD, 0) for tensor in tensors),
            "fallbacks": [tensor.name for tensor in tensors if "fallback" in tensor.record],
            "search": [asdict(point) for point in self.search],
            "assumed": list(self.assumed),
            "notes": list(coded.notes),
            "header_bytes": header.header_bytes,
            "sections": {
                section.name: {"codec": section.codec, "bytes": section.stored_bytes}
                for section in header.sections
            },
            "seconds": dict(self.seconds),
        }
        if self.before is not None and self.after is not None:
            report |= {"before": self.before.to_dict(), "after": self.after.to_dict()}
        return report


def pack(
    source: str | Path | Loaded | LanguageModel,
    request: PackRequest | None = None,
    *,
    progress: Progress = silent,
    **settings: Any,
) -> Packed:
    """Pack a model into one file that is never a byte over its budget, and prove it.

    With validation shards in `data`, or with `eval_text`, the file is reloaded in a fresh process
    and its bits per byte are measured, beside those of the unpacked model, before it gets its name.
    Hessians are kept beside a checkpoint and used again, which the notes say. Under torchrun every
    rank calls this: calibration and tuning are shared, and rank 0 alone writes, proves, and has
    scores.

    Args:
        source: a checkpoint's path, what `load` made of one, or a model in memory. Its weights stay
            as they are; it comes back on `device` and in evaluation mode.
        request: what is asked; None makes one of `settings`.
        settings: the fields of `PackRequest`, which says more of each. How large: one of `budget`
            (bytes, or such as ``"16MB"``), `max_rise` (the smallest file found that costs at most
            so many bits per byte), `bits` (most coded bits a weight) and `delta`. Where:
            `output` (None writes no file; the bytes are in the result), and `force`, which replaces
            a packed file there. What of: `data` (folder
            of shards), or `text` and `eval_text` (files of text), `tokenizer`, `model` (recipe of a
            bare state dict), `code` (files that count too). How: `methods`, `delta_factors`,
            `states`, `codecs`, `strict`. Calibrated on: `calibration`, `calibration_tokens`,
            `seed`, `keep`. Tuned: `tune` (``"none"``, ``"floats"``, ``"deep"``), `tune_labels`,
            `tune_seconds`. Proved on: `eval_tokens`, `stride`. And `device`, and `plan`, which
            writes and proves nothing.

    Raises:
        BudgetError: nothing fits; names a budget, or bits, that work. No file is written.
        LimitError: the finest file that was tried costs more than `max_rise`.
        CheckpointError: the source is no checkpoint, or has weights that are not finite.
        ConfigError: the request makes no sense, or asks for what is not there.
        GptpackError: text, tokenizer or target cannot be used. Nothing is half written.

    Example:
        >>> packed = gptpack.pack(
        ...     "checkpoint.pt", budget="100KB", data="shards", output="small.gptpack"
        ... )
        >>> len(packed.data) <= 100_000, packed.path.name
        (True, 'small.gptpack')
        >>> packed.after.plain.bpb - packed.before.plain.bpb < 0.1
        True
    """
    if request is not None and settings:
        raise ConfigError(f"{', '.join(settings)}: set them in the request that is given")
    known = [field.name for field in fields(PackRequest)]
    for name in settings.keys() - known:
        raise TypeError(f"pack() has no argument '{name}'{nearest(name, known)}")
    request = PackRequest(**settings) if request is None else request
    request.check_size()
    request.check_files()
    if isinstance(source, str | Path):
        check_unpacked(Path(source))
    path = None if request.output is None or request.plan else Path(request.output)
    if path is not None:
        check_target(path, "packed file", MAGIC)
        if path.exists() and not request.force:
            raise ConfigError(f"{path} exists; give --force, or another --output")
    with prepared(source, request, path, progress) as ready:
        began = time.perf_counter()
        points: tuple[Point, ...] = ()
        if request.max_rise is None:
            coded, scores = ready.fit(delta=request.delta, bits=request.bits), None
        else:
            coded, scores, points = smallest(ready, request.max_rise)
        ready.seconds["pack"] = ready.preparing_seconds + time.perf_counter() - began
        data = coded.assemble()
        give_back()
        if not ready.ranks.main:
            return Packed(data=data, coded=coded, path=None, seconds=ready.seconds)
        began = time.perf_counter()
        scores = scores or ready.proof.of(data, progress=progress)
        if scores is not None:
            ready.seconds["prove"] = time.perf_counter() - began
            data = coded.assemble(quality(*scores))
    if path is not None:
        write_atomic(path, data)
    coded = replace(coded, notes=(*coded.notes, *ready.kept_notes()))
    before, after = scores or (None, None)
    return Packed(
        data=data,
        coded=coded,
        path=path,
        before=before,
        after=after,
        search=points,
        seconds=ready.seconds,
    )
