"""A model, a tokenizer and validation shards -> bits per byte, with all that is known of them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from gptpack.errors import ConfigError
from gptpack.evaluation.forward import Compile, Forward
from gptpack.evaluation.reading import Reading
from gptpack.evaluation.result import Documents, Evaluation, Score
from gptpack.evaluation.settings import LoraSettings, SgdSettings, named_settings
from gptpack.jobs.load import Loaded, load
from gptpack.progress import Progress, silent
from gptpack.values import check_choice
from gptpack.version import VERSION

if TYPE_CHECKING:
    import torch

    from gptpack.evaluation.agreement import Agreement
    from gptpack.evaluation.clock import Clock
    from gptpack.evaluation.plain_text import PlainText
    from gptpack.evaluation.settings import Settings
    from gptpack.evaluation.text import Text
    from gptpack.evaluation.windows import Plan
    from gptpack.families.golf.config import ModelConfig
    from gptpack.families.language_model import LanguageModel
    from gptpack.ranks import Ranks


def evaluate(
    source: str | Path | Loaded,
    data: str | Path | None = None,
    *,
    tokenizer: str | Path | None = None,
    text: "str | Path | Sequence[str | Path] | None" = None,
    model: "str | ModelConfig | None" = None,
    against: str | Path | Loaded | None = None,
    stride: int | None = None,
    context: int = 0,
    rope: str = "model",
    documents: Documents = "packed",
    tail: Literal["score", "drop"] | None = None,
    adaptations: Sequence[str] = (),
    eval_tokens: int = 0,
    time_limit: float = 0.0,
    batch_tokens: int = 0,
    compressors: bool = False,
    device: str = "auto",
    compiled: Compile = "auto",
    limit_bytes: int | None = None,
    progress: Progress = silent,
    on_ready: "Callable[[torch.device], None] | None" = None,
) -> Evaluation:
    """Measure the bits per byte of a checkpoint or packed file on validation text.

    Plain evaluation, by the reference's accounting, is always made. The bytes that the scored
    tokens stand for are audited first. Under torchrun every rank calls this and gets the result.

    Args:
        source: a path, or what `load` made of one; that is scored on the device where it is, and
            is left with the attention and the positions that are chosen for it here.
        data: folder of shards, of which those of ``val`` are scored; None scores `text` itself, by
            the tokenizer that came with the model.
        tokenizer: its file; None takes ``tokenizer.model`` in `data`.
        text: files of text. Beside `data`, the one that its tokens were made from: byte sidecars
            and tables are audited against it.
        model: recipe whose ``[model]`` a bare state dict has; see `load`.
        against: a reference, such as the model before packing: also find the divergence of the
            predictions from its, and the share of equal likeliest tokens, over the plain windows.
        stride: also score a sliding window that moves by so many tokens.
        context: tokens of a window; 0 takes the model's.
        rope: positions beyond the trained context: ``model``, ``none``, ``ntk`` or ``yarn``.
        documents: whether a window may see the document before (``packed``) or not (``masked``).
        tail: whether targets after the last whole context are scored; None drops them for plain
            evaluation and scores them for a sliding window.
        adaptations: ways of test-time training, such as ``sgd:lr=0.002,epochs=3``.
        eval_tokens: score the first so many targets; 0 scores all.
        time_limit: seconds from the start of the process after which scoring stops; 0 never.
        batch_tokens: most tokens that go through the model at once; 0 chooses by device.
        compressors: find also what gzip, xz and zstd make of the text that plain evaluation scores,
            where `text` is given: tokens are no text.
        compiled: whether to use torch.compile; ``auto`` does on CUDA, where it pays.
        device: ``auto``, ``cpu`` or ``cuda``, for a path.
        limit_bytes: memory that decoding may take, for a path; see `load`.
        progress: called with phase, done and total as scoring goes on.
        on_ready: called with the device before the source is opened.

    Raises:
        AccountingError: the tokens' bytes are not those of the text.
        ConfigError: settings that do not fit the model.
        GptpackError: see `load` and `Text.load`.

    Example:
        >>> found = gptpack.evaluate("model.gptpack", "shards", stride=16)
        >>> found.decisive.metric
        'sliding, stride 16, context 64'
        >>> found.plain.bpb > 0, abs(found.difference_bpb) < 1e-6
        (True, True)
    """
    from gptpack.evaluation.clock import Clock, process_age
    from gptpack.evaluation.plain_text import PlainText, text_files
    from gptpack.evaluation.text import Text
    from gptpack.jobs.scored_text import documents_of, plain_text
    from gptpack.ranks import ranks

    check_choice("documents", documents, get_args(Documents))
    check_choice("tail", tail, (None, "score", "drop"))
    check_choice("compiled", compiled, get_args(Compile))
    if isinstance(source, Loaded) and model is not None:
        raise ConfigError("model is for bare state dicts by path; what is loaded has its own")
    settings = named_settings(adaptations)
    texts = text_files("--text", (text,) if isinstance(text, str | Path) else text or ())
    if data is None and not texts:
        raise ConfigError("nothing to score: give --data with val shards, or --text with files")
    if data is not None and len(texts) > 1:
        raise ConfigError("--text beside --data is the one file that its tokens were made from")
    with ranks(device) if not isinstance(source, Loaded) else nullcontext(_alone(source)) as here:
        age = process_age()
        if on_ready is not None:
            on_ready(here.device)
        clock = Clock(time_limit, age=age)
        if isinstance(source, Loaded):
            loaded = source
        else:
            loaded = load(source, model=model, device=here.device, limit_bytes=limit_bytes)
            for phase, seconds in loaded.seconds.items():
                clock.add(phase, seconds)
        config = loaded.runnable().config
        window = context or config.context
        if stride is not None and stride > window:
            raise ConfigError(f"--stride {stride} must not be above the context of {window}")
        attention = loaded.runnable().use_attention("auto")
        positions = loaded.runnable().use_rope(rope, window)
        _check(loaded.runnable(), settings, window)
        with clock.phase("audit"):
            progress("audit", 0, 0)
            scored: Text | PlainText
            if data is None:
                scored = plain_text(loaded, texts, eval_tokens, tokenizer)
            else:
                scored = Text.load(
                    Path(data),
                    vocab=config.vocab,
                    tokenizer=None if tokenizer is None else Path(tokenizer),
                    sha256=loaded.tokenizer_identity.sha256 if loaded.tokenizer_identity else None,
                    bos=loaded.bos,
                    source=texts[0] if texts else None,
                    limit_tokens=eval_tokens,
                )
            base = Reading(
                tokens=scored.tokens,
                token_bytes=scored.token_bytes,
                context=window,
                tail=tail,
                documents=documents_of(scored) if documents == "masked" else None,
                limit_tokens=eval_tokens,
                batch_tokens=batch_tokens,
                rope=positions,
                progress=progress,
            )
            readings = _audited(scored, _readings(base, stride, settings, scored))
        forward = Forward(loaded.runnable(), here.device, compiled=compiled, clock=clock)
        scores = _score(forward, readings, settings)
        compared = None
        if against is not None:
            with clock.phase("compare"):
                compared = _compared(loaded, against, base, readings["plain"].plan())
        beside = _beside(texts if compressors and here.main else (), scores["plain"], base, clock)
        return _result(loaded, scored, scores, forward, here, attention, compared, beside)


def _beside(
    texts: Sequence[Path], scored: Score, base: Reading, clock: "Clock"
) -> dict[str, Any] | None:
    """What gzip, xz and zstd make of the part of the text that was scored, if there is some."""
    from gptpack.data.compressors import compressed
    from gptpack.evaluation.plain_text import joined

    if not texts or not scored.bytes:
        return None
    base.progress("compressors", 0, 0)
    with clock.phase("compressors"):
        return compressed(joined(texts).encode()[: scored.bytes])


def _alone(loaded: Loaded) -> "Ranks":
    """The one rank of an evaluation of a model that is in memory already."""
    from gptpack.ranks import Ranks, check_computes

    device = loaded.runnable().device
    check_computes(device)
    return Ranks(0, 1, device)


def wait_for_file(device: "torch.device") -> None:
    """Get everything but the file ready, then wait for a line on standard input that it is there.

    A packer starts its proof like this while it works. If it ends without a line, so does this
    process.
    """
    import sys

    import torch

    import gptpack.artifact.reader
    import gptpack.evaluation.scoring  # noqa: F401
    from gptpack.codec.sections import get_ready

    if device.type == "cuda":
        made = torch.ones(1, 1, 64, 64, dtype=torch.bfloat16, device=device)
        torch.nn.functional.scaled_dot_product_attention(made, made @ made, made)
    get_ready()
    if not sys.stdin.readline():
        raise SystemExit(1)


def _check(model: "LanguageModel", settings: "Mapping[str, Settings]", context: int) -> None:
    """Refuse settings that do not fit, before anything is scored."""
    from gptpack.evaluation.ttt_lora import check_lora
    from gptpack.evaluation.ttt_sgd import check_sgd

    for setting in settings.values():
        if isinstance(setting, SgdSettings):
            check_sgd(model, setting, context)
        else:
            check_lora(model, setting, context)


def _readings(
    base: Reading, stride: int | None, settings: "Mapping[str, Settings]", text: "Text | PlainText"
) -> dict[str, Reading]:
    """What is read for each score."""
    from gptpack.jobs.scored_text import documents_of

    readings = {"plain": replace(base, phase="plain")}
    if stride is not None:
        readings["sliding"] = replace(base, stride=stride, phase="sliding")
    for name, setting in settings.items():
        reading = replace(base, stride=stride, phase=name)
        if isinstance(setting, LoraSettings):
            # its plan has its own stride, and no tail to drop
            reading = replace(
                reading, stride=setting.chunk, tail=None, documents=documents_of(text)
            )
        readings[name] = reading
    return readings


def _audited(text: "Text | PlainText", readings: Mapping[str, Reading]) -> dict[str, Reading]:
    """The readings, each with the bytes that the audit found for its targets."""
    targets = {name: reading.plan().targets for name, reading in readings.items()}
    found = text.audited_bytes(targets.values())
    return {
        name: replace(reading, audited_bytes=found[targets[name]])
        for name, reading in readings.items()
    }


def _score(
    forward: Forward,
    readings: Mapping[str, Reading],
    settings: "Mapping[str, Settings]",
) -> dict[str, Score]:
    """All scores by name."""
    from gptpack.evaluation.scoring import score
    from gptpack.evaluation.ttt_lora import score_with_lora
    from gptpack.evaluation.ttt_sgd import score_with_sgd

    scores: dict[str, Score] = {}
    for name, reading in readings.items():
        setting = settings.get(name)
        if isinstance(setting, SgdSettings):
            scores[name] = score_with_sgd(forward, reading, setting)
        elif setting is not None:
            scores[name] = score_with_lora(forward, reading, setting)
        else:
            scores[name] = score(forward, reading)
    return scores


def _compared(
    loaded: Loaded, against: str | Path | Loaded, base: Reading, plan: "Plan"
) -> "Agreement":
    """How far the model's predictions for a plan are from those of a reference."""
    from gptpack.evaluation.agreement import agreement

    model = loaded.runnable()
    if not isinstance(against, Loaded):
        against = load(against, device=model.device)
    reference = against.runnable().to(model.device)
    reference.use_attention("auto")
    reference.use_rope("model", plan.context)
    return agreement(
        model,
        reference,
        base.tokens,
        plan,
        name=str(against.path),
        batch_tokens=base.batch_tokens,
        progress=base.progress,
    )


def _result(
    loaded: Loaded,
    text: "Text | PlainText",
    scores: Mapping[str, Score],
    forward: Forward,
    here: "Ranks",
    attention: str,
    compared: "Agreement | None",
    beside: Mapping[str, Any] | None,
) -> Evaluation:
    import torch

    from gptpack.jobs.scored_text import described

    quality = loaded.record.quality if loaded.record else None
    recorded = None
    if quality is not None and quality.bpb_after is not None:
        counts = {"tokens": quality.tokens, "context": quality.context}
        recorded = {"bpb": quality.bpb_after}
        recorded |= {name: count for name, count in counts.items() if count is not None}
    cuda = here.device.type == "cuda"
    return Evaluation(
        source=loaded.kind,
        path=str(loaded.path),
        file_bytes=loaded.file_bytes,
        file_sha256=loaded.sha256,
        weights_sha256=loaded.weights_sha256,
        scores=scores,
        agreement=None if compared is None else compared.to_dict(),
        compressors=beside,
        recorded=recorded,
        **described(loaded, text, max(s.planned_tokens for s in scores.values())),
        assumed=loaded.assumed,
        seconds=forward.clock.ledger(),
        time_limit_seconds=forward.clock.limit_seconds or None,
        device={
            "type": here.device.type,
            "name": torch.cuda.get_device_name(here.device) if cuda else "cpu",
            "ranks": here.world,
            "attention": attention,
        },
        versions={"gptpack": VERSION, "torch": str(torch.__version__)},
    )
