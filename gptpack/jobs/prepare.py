"""A source and a request -> a model that is calibrated and taken apart, ready to be fitted."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gptpack.artifact.record import PackRecord
from gptpack.artifact.writer import encode_files
from gptpack.calibration.kept import Kept
from gptpack.calibration.text import (
    TextSource,
    calibrate,
    calibration_text,
    shard_windows,
    token_counts,
)
from gptpack.codec import sections
from gptpack.data.manifest import TOKENIZER
from gptpack.data.shards import Tokens
from gptpack.data.tokenizer import check_tokenizer
from gptpack.errors import CheckpointError, ConfigError, TokenizerError, spoken
from gptpack.evaluation.text import read_vocabulary
from gptpack.families.language_model import LanguageModel
from gptpack.families.wrapped import Wrapped
from gptpack.inputs import kind_of
from gptpack.jobs.data import check_scorable
from gptpack.jobs.load import Loaded, load
from gptpack.jobs.proof import Proof
from gptpack.jobs.request import PackRequest
from gptpack.jobs.scored_text import check_text
from gptpack.jobs.training_text import check_texts, training_tokens
from gptpack.memory import give_back
from gptpack.packing.again import pack_again
from gptpack.packing.apart import check_files_fit, check_storable, take_apart
from gptpack.packing.config import PackConfig
from gptpack.packing.packer import UNLIMITED, CodedFile, Packer
from gptpack.packing.progressive import ProgressiveConfig, pack_progressively
from gptpack.packing.search import pack_to_budget
from gptpack.progress import Progress
from gptpack.quant import trellis
from gptpack.quant.allocation import Sensitivity
from gptpack.ranks import Ranks, ranks
from gptpack.shelf import Shelf
from gptpack.values import TokenizerIdentity

PACKED_ALREADY = "already a packed file; give the checkpoint or folder that it was made of"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model that was calibrated and taken apart: it can be fitted to one size after another."""

    model: LanguageModel | None
    """The model; None where it is not needed any more and a path can give it again."""
    request: PackRequest
    packer: Packer
    sensitivities: Mapping[str, Sensitivity]
    training: Sequence[Tokens]
    """Text that may be trained on, as tokens; none where there is none."""
    proof: Proof
    ranks: Ranks
    progress: Progress
    seconds: dict[str, float]
    preparing_seconds: float
    """Wall-clock seconds of taking the model apart."""
    kept: Kept | None
    """Where Hessians are kept; None where there is no place beside the model."""

    def fit(self, *, delta: float | None = None, bits: float | None = None) -> CodedFile:
        """The file at `delta`, of at most `bits` a weight, or within the budget, tuned as asked.

        Raises:
            BudgetError: see `pack_to_budget`.
            ConfigError: tuning was asked for, and there is no text or nothing on a grid.
        """
        request, model = self.request, self.model
        if request.tune == "none":
            if delta is None and bits is None:
                return pack_again(self.packer, progress=self.progress)
            return pack_to_budget(self.packer, delta=delta, bits=bits, progress=self.progress)
        assert model is not None
        if not self.packer.matrices:
            raise ConfigError("--tune needs a gptq-trellis or gptq-uniform method")
        if not self.training:
            raise ConfigError("--tune needs text: --data with train shards, or --text")
        context = model.config.context
        most = sum(len(shard) // context for shard in self.training)
        windows = model.window(
            shard_windows(
                self.training,
                windows=max(1, min(8192, most)),
                context=context,
                seed=request.seed + 1,
            )
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

    def kept_notes(self) -> list[str]:
        """Words about the files that were written for the next pack, once all is done."""
        return [
            spoken(
                f"{path}: {path.stat().st_size:,} bytes, kept for the next pack of this model; it "
                "may be deleted, and --no-keep leaves it out"
            )
            for path in (self.kept.written if self.kept else ())
            if path.exists()
        ]


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
    with (
        ranks(request.device) as here,
        ThreadPoolExecutor(1) as background,
        # calibration and tuning need gradients, whatever the caller is in
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        loaded = _opened(source, request, here)
        model = loaded.runnable()
        config.check_names(model.weights())
        files = encode_files(loaded.files)
        check_files_fit(model, config, files, budget_bytes=budget, code_bytes=code_bytes)
        check_texts(loaded, request)
        if data is not None and not request.plan:
            check_scorable(
                data,
                vocab=model.config.vocab,
                bos=loaded.bos,
                context=model.config.context,
                stride=request.stride,
                limit_tokens=request.eval_tokens,
                tokenizer=None if request.tokenizer is None else Path(request.tokenizer),
            )
        if request.eval_text and not request.plan:
            check_text(
                loaded,
                [Path(path) for path in request.eval_text],
                stride=request.stride,
                limit_tokens=request.eval_tokens,
            )
        identity = identity_of(loaded, request)
        # what a caller hands over may be no longer, or never have been, what the file says
        same = loaded is not source and loaded.told == request.model
        by_path = same and loaded.path is not None
        own = replace(loaded, language_model=None) if by_path else replace(loaded, path=None)
        proof = Proof(own, request, target, here.device)
        with proof if here.main else nullcontext():
            record = PackRecord(
                checkpoint_sha256=loaded.sha256,
                step=loaded.step if loaded.path else None,
                assumed=loaded.assumed or None,
            )
            training = training_tokens(loaded, request, config)
            sensitivities: Mapping[str, Sensitivity] = {}
            kept = None
            if config.calibrated:
                background.submit(_get_ready, config)
                if loaded.path is not None:
                    writes = request.keep and not request.plan and here.main
                    folder = loaded.path.parent
                    kept = Kept(folder=folder, writes=writes, background=background)
                record, sensitivities = _calibrated(
                    loaded, request, training, here, record, kept, progress
                )
                give_back()
                seconds["calibrate"] = time.perf_counter() - began
                began = time.perf_counter()
            packer = take_apart(
                model,
                identity,
                config,
                sensitivities,
                files=files,
                budget_bytes=UNLIMITED if budget is None else budget,
                code_bytes=code_bytes,
                record=record,
                proved=data is not None or bool(request.eval_text),
                progress=progress,
            )
            needed = None if by_path and request.tune == "none" else model
            if needed is None:
                packer.put_away(Shelf())
                del loaded, model
                give_back()
            yield Prepared(
                model=needed,
                request=request,
                packer=packer,
                sensitivities=sensitivities,
                training=training,
                proof=proof,
                ranks=here,
                progress=progress,
                seconds=seconds,
                preparing_seconds=time.perf_counter() - began,
                kept=kept,
            )


def _get_ready(config: PackConfig) -> None:
    """Load the loops that quantize and code, or compile them: they are needed after calibration."""
    if any(method == "gptq-trellis" for _, method in config.methods):
        trellis.get_ready(config.states)
    if "range" in config.codecs:
        sections.get_ready()


def check_unpacked(path: Path) -> None:
    """Raise the `CheckpointError` of a packed file that is to be packed."""
    if kind_of(path) == "a packed file":
        raise CheckpointError(f"{path}: {PACKED_ALREADY}")


def _opened(
    source: str | Path | Loaded | LanguageModel, request: PackRequest, here: Ranks
) -> Loaded:
    if isinstance(source, Loaded):
        loaded = source
    elif isinstance(source, LanguageModel):
        loaded = Loaded(language_model=source, kind="checkpoint")
    elif isinstance(source, str | Path):
        loaded = load(source, model=request.model, device=here.device)
    else:
        raise ConfigError(
            f"a {type(source).__name__} cannot be packed; give the path of a checkpoint, what "
            "gptpack.load made of one, or a gptpack LanguageModel"
        )
    if loaded.kind != "checkpoint":
        raise CheckpointError(f"{loaded.path}: {PACKED_ALREADY}")
    model = loaded.runnable().to(here.device).eval()
    check_storable(model)
    if halves := {v.dtype for v in model.weights().values()} & {torch.bfloat16, torch.float16}:
        raise ConfigError(
            f"a model with weights in {halves.pop()} cannot be packed; needed float32: load it "
            "without dtype=, or call float() on it"
        )
    if isinstance(model, Wrapped):
        model.compute_dtype = torch.bfloat16
    return loaded


def _calibrated(
    loaded: Loaded,
    request: PackRequest,
    training: Sequence[Tokens],
    here: Ranks,
    record: PackRecord,
    kept: Kept | None,
    progress: Progress,
) -> tuple[PackRecord, Mapping[str, Sensitivity]]:
    """The sensitivities, and the record with what they are from."""
    model = loaded.runnable()
    model.use_attention("auto")
    there: TextSource = "text" if request.text else "shards"
    source: TextSource
    if request.tokens is not None:
        there = source = "given"
    else:
        source = request.calibration or (there if training else "self")
    if source in ("shards", "text") and (source != there or not training):
        needed = "--data with train shards" if source == "shards" else "--text"
        raise ConfigError(f"--calibration {source} needs {needed}")
    start = loaded.tokenizer.chat_start() if loaded.tokenizer and source == "self" else None
    windows = calibration_text(
        model,
        source,
        training,
        tokens=request.calibration_tokens,
        seed=request.seed,
        start=start or (),
        kept=kept,
        progress=progress,
    )
    found = calibrate(
        model,
        windows,
        here,
        seed=request.seed,
        counts=token_counts(training, model.config.vocab) if source == there else None,
        kept=kept,
        progress=progress,
    )
    record = replace(record, calibration=source, calibration_tokens=found.hessian_tokens)
    return record, found.sensitivities


def identity_of(loaded: Loaded, request: PackRequest) -> TokenizerIdentity | None:
    """The model's tokenizer: the checkpoint's word first, then the file that was given.

    Raises:
        TokenizerError: nobody says which, the words differ, or it has more pieces than the model.
    """
    known, vocab = loaded.tokenizer_identity, loaded.runnable().config.vocab
    path = Path(request.tokenizer) if request.tokenizer is not None else None
    if path is None and known is not None:
        return known
    if path is None and isinstance(loaded.runnable(), Wrapped):
        return None
    if path is None and request.data is not None:
        path = Path(request.data) / TOKENIZER
    if path is None:
        raise TokenizerError(
            "the checkpoint does not say which tokenizer it belongs to; name its file with "
            "--tokenizer or give --data"
        )
    found = read_vocabulary(path, vocab=vocab, bos=loaded.bos).identity
    check_tokenizer(path, found, sha256=None if known is None else known.sha256, vocab=vocab)
    return found
