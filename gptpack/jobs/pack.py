"""A checkpoint, a `Loaded` or a `LanguageModel`, and a request -> one proved file in its budget."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptpack.artifact.layout import MAGIC
from gptpack.artifact.reader import decode_header
from gptpack.artifact.record import PackRecord, Quality
from gptpack.artifact.writer import write_atomic
from gptpack.atomic import check_target
from gptpack.calibration.text import calibrate, calibration_text, shard_windows
from gptpack.data.manifest import TOKENIZER
from gptpack.data.shards import Shard, find_shards, has_shards
from gptpack.data.tokenizer import Tokenizer
from gptpack.errors import CheckpointError, ConfigError, TokenizerError
from gptpack.evaluation.result import Evaluation
from gptpack.families.language_model import LanguageModel
from gptpack.jobs.load import Loaded, load
from gptpack.jobs.proof import Proof, check_proof
from gptpack.jobs.request import PackRequest
from gptpack.packing.apart import take_apart
from gptpack.packing.packer import UNLIMITED, CodedFile, Packer, grid_bits
from gptpack.packing.progressive import ProgressiveConfig, pack_progressively
from gptpack.packing.search import pack_to_budget
from gptpack.progress import Progress, silent
from gptpack.quant.allocation import Sensitivity
from gptpack.ranks import Ranks, ranks
from gptpack.values import TokenizerIdentity

if TYPE_CHECKING:
    from gptpack.data.batches import Tokens


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
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock seconds to ``calibrate``, ``pack`` and ``prove``."""

    @property
    def record(self) -> PackRecord:
        """What the header says of packing, but for the measured quality."""
        return self.coded.record

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
            "fallbacks": [tensor.name for tensor in tensors if "fallback" in tensor.record],
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

    With `data` that has validation shards, the file is reloaded in a fresh process and its bits per
    byte are measured, beside those of the unpacked model, before it gets its name. Hessians are
    kept beside a checkpoint and used again. Under torchrun every rank calls this: calibration and
    tuning are shared, and rank 0 alone writes, proves, and has scores.

    Args:
        source: a checkpoint's path, what `load` made of one, or a model in memory. Packing changes
            nothing of it.
        request: what is asked; None makes one of `settings`.
        settings: the fields of `PackRequest`: ``budget="16MB"`` (or ``bits``, or ``delta``),
            ``output``, ``data``, ``tokenizer``, ``tune``, and the others.

    Raises:
        BudgetError: nothing fits; names a budget, or bits, that work. No file is written.
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
    request = PackRequest(**settings) if request is None else request
    request.check_size()
    path = None if request.output is None or request.plan else Path(request.output)
    if path is not None:
        check_target(path, "packed file", MAGIC)
    with prepared(source, request, path, progress) as ready:
        began = time.perf_counter()
        coded = ready.fit(delta=request.delta, bits=request.bits)
        ready.seconds["pack"] = ready.preparing_seconds + time.perf_counter() - began
        data = coded.assemble()
        if not ready.ranks.main:
            return Packed(data=data, coded=coded, path=None, seconds=ready.seconds)
        began = time.perf_counter()
        scores = ready.proof.of(data, progress=progress)
        if scores is not None:
            ready.seconds["prove"] = time.perf_counter() - began
            data = coded.assemble(quality(*scores))
    if path is not None:
        write_atomic(path, data)
    before, after = scores or (None, None)
    return Packed(
        data=data, coded=coded, path=path, before=before, after=after, seconds=ready.seconds
    )


def quality(before: Evaluation, after: Evaluation) -> Quality:
    """What the header says of the file's worth."""
    return Quality(
        bpb_before=round(before.plain.bpb, 6),
        bpb_after=round(after.plain.bpb, 6),
        context=after.plain.context,
        tokens=after.plain.tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model that was calibrated and taken apart: it can be fitted to one size after another."""

    model: LanguageModel
    request: PackRequest
    packer: Packer
    sensitivities: Mapping[str, Sensitivity]
    proof: Proof
    ranks: Ranks
    progress: Progress
    seconds: dict[str, float]
    preparing_seconds: float
    """Wall-clock seconds of taking the model apart."""

    def fit(self, *, delta: float | None = None, bits: float | None = None) -> CodedFile:
        """The file at `delta`, of at most `bits` a weight, or within the budget, tuned as asked.

        Raises:
            BudgetError: see `pack_to_budget`.
            ConfigError: tuning was asked for, and there is no text or nothing on a grid.
        """
        request, model = self.request, self.model
        if request.tune == "none":
            return pack_to_budget(self.packer, delta=delta, bits=bits, progress=self.progress)
        if request.data is None or not self.packer.matrices:
            raise ConfigError("--tune needs --data with train shards and a gptq-trellis method")
        context = model.config.context
        shards = training_shards(request, model.config.vocab)
        most = sum(len(shard) // context for shard in shards)
        windows = shard_windows(
            shards, windows=max(1, min(8192, most)), context=context, seed=request.seed + 1
        )
        return pack_progressively(
            self.packer,
            model,
            windows,
            self.ranks,
            self.sensitivities,
            ProgressiveConfig(
                by_layer=request.tune == "deep",
                labels=request.tune_labels,
                seconds=request.tune_seconds or 0.0,
            ),
            delta=delta,
            bits=bits,
            progress=self.progress,
        )


@contextmanager
def prepared(
    source: str | Path | Loaded | LanguageModel,
    request: PackRequest,
    target: Path | None,
    progress: Progress,
) -> Iterator[Prepared]:
    """Everything before the search: load, check, calibrate, take apart.

    Args:
        target: where the file will go, if it is to be written.
    """
    config, code_bytes = request.config, request.code_bytes()
    budget = request.budget_bytes
    data = None if request.data is None else Path(request.data)
    seconds, began = dict[str, float](), time.perf_counter()
    with ranks(request.device) as here, ThreadPoolExecutor(1) as background:
        loaded = _opened(source, request, here)
        model = loaded.model
        config.check_names(model.state_dict())
        if data is not None and not request.plan:
            check_proof(
                data,
                vocab=model.config.vocab,
                context=model.config.context,
                stride=request.stride,
                limit_tokens=request.eval_tokens,
            )
        identity = identity_of(loaded, request)
        proof = Proof(loaded, request, target, here.device)
        with proof if here.main else nullcontext():
            record = PackRecord(
                checkpoint_sha256=loaded.sha256, step=loaded.step if loaded.path else None
            )
            sensitivities: Mapping[str, Sensitivity] = {}
            if config.calibrated:
                cache = loaded.path.parent if loaded.path and not request.plan else None
                record, sensitivities = _calibrated(
                    model, request, here, record, cache, background, progress
                )
                seconds["calibrate"] = time.perf_counter() - began
                began = time.perf_counter()
            packer = take_apart(
                model,
                identity,
                config,
                sensitivities,
                budget_bytes=UNLIMITED if budget is None else budget,
                code_bytes=code_bytes,
                record=record,
                proved=data is not None,
                progress=progress,
            )
            yield Prepared(
                model=model,
                request=request,
                packer=packer,
                sensitivities=sensitivities,
                proof=proof,
                ranks=here,
                progress=progress,
                seconds=seconds,
                preparing_seconds=time.perf_counter() - began,
            )


def _opened(
    source: str | Path | Loaded | LanguageModel, request: PackRequest, here: Ranks
) -> Loaded:
    if isinstance(source, LanguageModel):
        return Loaded(model=source.to(here.device).eval(), kind="checkpoint")
    loaded = source
    if not isinstance(loaded, Loaded):
        loaded = load(loaded, model=request.model, device=here.device)
    if loaded.kind != "checkpoint":
        raise CheckpointError(
            f"{loaded.path}: a packed file; give the checkpoint that it was made of"
        )
    loaded.model.to(here.device)
    return loaded


def training_shards(request: PackRequest, vocab: int) -> "list[Tokens]":
    """The tokens of the training shards in the request's folder; none where it has no folder."""
    if request.data is None:
        return []
    paths = find_shards(Path(request.data), "train")
    return [Shard.open(path, vocab).tokens for path in paths]


def _calibrated(
    model: LanguageModel,
    request: PackRequest,
    here: Ranks,
    record: PackRecord,
    cache: Path | None,
    background: Executor,
    progress: Progress,
) -> tuple[PackRecord, Mapping[str, Sensitivity]]:
    """The sensitivities, and the record with what they are from.

    Args:
        background: writes Hessians, for which nobody waits.
    """
    model.use_attention("auto")
    there = request.data is not None and has_shards(Path(request.data), "train")
    source = request.calibration or ("shards" if there else "self")
    if source == "shards" and request.data is None:
        raise ConfigError("--calibration shards needs --data with train shards")
    windows = calibration_text(
        model,
        source,
        training_shards(request, model.config.vocab) if source == "shards" else [],
        tokens=request.calibration_tokens,
        seed=request.seed,
        progress=progress,
    )
    found = calibrate(
        model,
        windows,
        here,
        seed=request.seed,
        cache=cache,
        background=background,
        progress=progress,
    )
    record = replace(record, calibration=source, calibration_tokens=found.hessian_tokens)
    return record, found.sensitivities


def identity_of(loaded: Loaded, request: PackRequest) -> TokenizerIdentity:
    """The model's tokenizer: the checkpoint's word first, then the file that was given.

    Raises:
        TokenizerError: nobody says which, the words differ, or it has more pieces than the model.
    """
    known, vocab = loaded.tokenizer, loaded.model.config.vocab
    path = Path(request.tokenizer) if request.tokenizer is not None else None
    if path is None and known is not None:
        return known
    if path is None and request.data is not None:
        path = Path(request.data) / TOKENIZER
    if path is None:
        raise TokenizerError(
            "the checkpoint does not say which tokenizer it belongs to; name its file with "
            "--tokenizer or give --data"
        )
    found = Tokenizer.load(path).identity
    if known is not None and found != known:
        raise TokenizerError(
            f"{path}: sha256 {found.sha256}, but the checkpoint was trained with {known.sha256}; "
            "give that tokenizer, and its shards"
        )
    if found.vocab > vocab:
        raise TokenizerError(
            f"{path}: {found.vocab:,} pieces, but the model has a vocabulary of {vocab:,}; "
            "give the tokenizer that the model was trained with"
        )
    return found
