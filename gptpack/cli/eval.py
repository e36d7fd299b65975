"""`gptpack eval`: a packed file, a tokenizer and shards -> bits per byte, and nothing else."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gptpack.cli.console import progress_bars
from gptpack.cli.options import COUNT, DEVICE, FINITE, Finite
from gptpack.inspection.inspect import recorded_quality

if TYPE_CHECKING:
    import torch

    from gptpack.evaluation.forward import Compile
    from gptpack.evaluation.reading import Reading
    from gptpack.evaluation.result import Documents, Score
    from gptpack.evaluation.settings import Settings
    from gptpack.families.golf.gpt import GPT

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".safetensors")
PATH = click.Path(path_type=Path)


@click.command()
@click.argument("path", metavar="FILE", type=PATH)
@click.option("--data", required=True, type=PATH, help="Folder of shards; val is scored.")
@click.option(
    "--tokenizer",
    type=PATH,
    help="SentencePiece model, .tiktoken ranks, or .npz/.json byte table. [default: in --data]",
)
@click.option("--text", type=PATH, help="What the tokens were made from, to audit a byte table.")
@click.option("--model", help="Recipe (file or name) whose [model] a bare state dict has.")
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Also score a sliding window that moves by so many.",
)
@click.option("--context", type=COUNT, default=0, help="Tokens of a window. [default: the model's]")
@click.option(
    "--rope",
    type=click.Choice(["model", "none", "ntk", "yarn"]),
    default="model",
    show_default=True,
    help="Positions beyond the trained context.",
)
@click.option(
    "--documents",
    type=click.Choice(["packed", "masked"]),
    default="packed",
    show_default=True,
    help="Whether a window may see the document before.",
)
@click.option(
    "--tail",
    type=click.Choice(["score", "drop"]),
    help="Targets after the last whole context. [default: plain drops, sliding scores]",
)
@click.option(
    "--ttt",
    "adaptations",
    multiple=True,
    metavar="SETTINGS",
    help="Also with test-time training: sgd:lr=0.002,epochs=3 or lora:rank=8 or sweep. Repeats.",
)
@click.option("--ngram", is_flag=True, help="Also blended with n-grams of the text scored so far.")
@click.option(
    "--limit-tokens", type=COUNT, default=0, help="Score the first so many targets; 0: all."
)
@click.option(
    "--time-limit",
    type=Finite(min=0),
    default=0.0,
    help="Stop so many seconds after the process began; 0: never.",
)
@click.option("--batch-tokens", type=COUNT, default=0, help="Tokens at once; 0: by device.")
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option(
    "--compile",
    "compiled",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="torch.compile; auto: on CUDA, where it pays.",
)
@click.option("--max-bpb", type=FINITE, help="End with status 1 if bits per byte are above.")
@click.option("--wait", is_flag=True, hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--output", type=PATH, help="Also write the JSON to this file.")
def command(
    path: Path,
    data: Path,
    tokenizer: Path | None,
    text: Path | None,
    model: str | None,
    stride: int | None,
    context: int,
    rope: str,
    documents: "Documents",
    tail: Literal["score", "drop"] | None,
    adaptations: tuple[str, ...],
    ngram: bool,
    limit_tokens: int,
    time_limit: float,
    batch_tokens: int,
    device: str,
    compiled: "Compile",
    max_bpb: float | None,
    wait: bool,
    as_json: bool,
    output: Path | None,
) -> None:
    """Reload the packed FILE and measure its bits per byte on validation text.

    The model comes from FILE alone. Plain evaluation, by the reference's accounting, is always
    printed; --stride adds a sliding window in which every target is scored once, the tail
    included. FILE may also be a checkpoint (.pt, .pth, .safetensors). Runs under torchrun.

    --ttt lets the model learn from what has been scored, and from nothing else: sgd trains all
    weights on each chunk, lora low-rank factors within each document. Given more than once, each
    starts from the file; sweep stands for four known settings.

    --max-bpb is compared with the last figure of plain, sliding, n-gram and (if there is one
    only) test-time training. --time-limit counts from the start of the process; when it comes,
    the exact share that was scored is reported and the status is 1.

    \b
    Examples:
      gptpack eval model.gptpack --data shards/
      gptpack eval model.gptpack --data shards/ --stride 64 --json
      gptpack eval model.gptpack --data shards/ --tokenizer tok.model --max-bpb 1.23
      gptpack eval model.gptpack --data shards/ --stride 64 --ttt sweep --time-limit 600
      gptpack eval model.gptpack --data shards/ --ttt lora:rank=8,chunk=256
      torchrun --nproc_per_node=8 eval.py model.gptpack --data shards/ --stride 64
    """
    from gptpack.cli.eval_report import decisive, report, result_of
    from gptpack.errors import ConfigError, LimitError
    from gptpack.evaluation.clock import Clock, process_age
    from gptpack.evaluation.forward import Forward
    from gptpack.evaluation.reading import Reading
    from gptpack.evaluation.text import Text
    from gptpack.ranks import ranks

    settings = _settings(adaptations)
    with ranks(device) as here, progress_bars(quiet=as_json or not here.main) as progress:
        age = process_age()
        if wait:
            _wait_for_file(here.device)
        clock = Clock(time_limit, age=age)
        source = _open(path, here.device, model)
        for phase, seconds in source.seconds.items():
            clock.add(phase, seconds)
        config = source.model.config
        window = context or config.context
        if stride is not None and stride > window:
            raise ConfigError(f"--stride {stride} must not be above the context of {window}")
        attention = source.model.use_attention("auto")
        positions = source.model.use_rope(rope, window)
        _check(source.model, settings, window)
        with clock.phase("audit"):
            progress("audit", 0, 0)
            scored = Text.load(
                data,
                vocab=config.vocab,
                tokenizer=tokenizer,
                sha256=source.tokenizer_sha256,
                bos=config.bos,
                source=text,
                limit_tokens=limit_tokens,
            )
            base = Reading(
                tokens=scored.tokens,
                token_bytes=scored.token_bytes,
                context=window,
                tail=tail,
                documents=scored.documents if documents == "masked" else None,
                limit_tokens=limit_tokens,
                batch_tokens=batch_tokens,
                rope=positions,
                progress=progress,
            )
            readings = _audited(scored, _readings(base, stride, settings, scored))
        forward = Forward(source.model, here.device, compiled=compiled, clock=clock)
        scores = _score(forward, readings, settings, ngram)
        if here.main:
            result = result_of(path, source, scored, scores, clock, here.device, here.world)
            result["device"]["attention"] = attention
    if here.main:
        report(result, scores, as_json=as_json, output=output)
    if stopped := [score for score in scores.values() if not score.complete]:
        raise LimitError(
            f"{path}: the time limit of {time_limit:g} s came with {stopped[0].tokens:,} of "
            f"{stopped[0].planned_tokens:,} targets scored ({stopped[0].metric})"
        )
    last = scores[decisive(scores)]
    if max_bpb is not None and not last.bpb <= max_bpb:
        raise LimitError(
            f"{path}: {last.bpb:.6f} bits per byte ({last.metric}), {max_bpb} at most are allowed"
        )


def _wait_for_file(device: "torch.device") -> None:
    """Get ready, then stay until a line on standard input says that the file is there.

    A packer starts its proof like this, hidden from users, while it works. If it ends without a
    line, so does this process.
    """
    import torch

    import gptpack.evaluation.scoring
    import gptpack.jobs.reload  # noqa: F401

    torch.zeros(1, device=device)
    if not sys.stdin.readline():
        raise SystemExit(1)


def _settings(adaptations: tuple[str, ...]) -> dict[str, "Settings"]:
    """Each way of test-time training by the name of its row."""
    from gptpack.evaluation.settings import SWEEP, parse_settings

    named: dict[str, str] = {}
    for text in adaptations:
        if text == "sweep":
            named |= {f"ttt {letter}": setting for letter, setting in SWEEP.items()}
        else:
            named[f"ttt {len(named) + 1}" if len(adaptations) > 1 else "ttt"] = text
    return {name: parse_settings(text) for name, text in named.items()}


def _check(model: "GPT", settings: Mapping[str, "Settings"], context: int) -> None:
    """Refuse settings that do not fit, before anything is scored."""
    from gptpack.evaluation.settings import SgdSettings
    from gptpack.evaluation.ttt_lora import check_lora
    from gptpack.evaluation.ttt_sgd import check_sgd

    for setting in settings.values():
        if isinstance(setting, SgdSettings):
            check_sgd(model, setting, context)
        else:
            check_lora(model, setting, context)


def _readings(
    base: "Reading", stride: int | None, settings: Mapping[str, "Settings"], text: Any
) -> dict[str, "Reading"]:
    """What is read for each row of the result."""
    from gptpack.evaluation.settings import LoraSettings

    readings = {"plain": replace(base, phase="plain")}
    if stride is not None:
        readings["sliding"] = replace(base, stride=stride, phase="sliding")
    for name, setting in settings.items():
        reading = replace(base, stride=stride, phase=name)
        if isinstance(setting, LoraSettings):
            # Its plan has its own stride, and no tail to drop.
            reading = replace(reading, stride=setting.chunk, tail=None, documents=text.documents)
        readings[name] = reading
    return readings


def _audited(text: Any, readings: Mapping[str, "Reading"]) -> dict[str, "Reading"]:
    """The readings, each with the bytes that the audit found for its targets."""
    targets = {name: reading.plan().targets for name, reading in readings.items()}
    found = text.audited_bytes(targets.values())
    return {
        name: replace(reading, audited_bytes=found[targets[name]])
        for name, reading in readings.items()
    }


def _score(
    forward: Any,
    readings: Mapping[str, "Reading"],
    settings: Mapping[str, "Settings"],
    ngram: bool,
) -> dict[str, "Score"]:
    """The score of each row; n-grams are blended into the last one that does not adapt."""
    from gptpack.evaluation.agreement import score_with_ngram
    from gptpack.evaluation.ngram import NgramSettings
    from gptpack.evaluation.scoring import score
    from gptpack.evaluation.settings import SgdSettings
    from gptpack.evaluation.ttt_lora import score_with_lora
    from gptpack.evaluation.ttt_sgd import score_with_sgd

    blended = "sliding" if "sliding" in readings else "plain"
    scores: dict[str, Score] = {}
    for name, reading in readings.items():
        setting = settings.get(name)
        if isinstance(setting, SgdSettings):
            scores[name] = score_with_sgd(forward, reading, setting)
        elif setting is not None:
            scores[name] = score_with_lora(forward, reading, setting)
        elif ngram and name == blended:
            scores[name], scores["ngram"] = score_with_ngram(forward, reading, NgramSettings())
        else:
            scores[name] = score(forward, reading)
    return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model and where it is from."""

    kind: Literal["artifact", "checkpoint"]
    model: "GPT"
    tokenizer_sha256: str | None
    """None where a checkpoint does not say."""
    weights_sha256: str | None
    recorded: Mapping[str, float] | None
    """What the packer measured, as the artifact has it: bpb, and of how many tokens at which
    context."""
    seconds: Mapping[str, float]


def _open(path: Path, device: "torch.device", recipe: str | None) -> Source:
    """The model of an artifact, or of a checkpoint if the name and the first bytes say so."""
    if path.suffix in CHECKPOINT_SUFFIXES and not _starts_as_artifact(path):
        return _open_checkpoint(path, device, recipe)
    from gptpack.errors import ConfigError
    from gptpack.jobs.reload import load_model

    if recipe:
        raise ConfigError(f"--model {recipe} is for bare state dicts; {path} says its own model")
    loaded = load_model(path, device)
    return Source(
        kind="artifact",
        model=loaded.model,
        tokenizer_sha256=loaded.header.tokenizer.sha256,
        weights_sha256=loaded.header.weights_sha256,
        recorded=_recorded(loaded.header.pack),
        seconds=loaded.seconds,
    )


def _starts_as_artifact(path: Path) -> bool:
    from gptpack.artifact.layout import MAGIC

    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _open_checkpoint(path: Path, device: "torch.device", recipe: str | None) -> Source:
    from gptpack.cli.models import load_told
    from gptpack.errors import CheckpointError
    from gptpack.families.golf.gpt import GPT, state_problem

    began = time.perf_counter()
    checkpoint = load_told(path, recipe)
    decoded = time.perf_counter()
    model = GPT(checkpoint.model, seed=None)
    if problem := state_problem(model, checkpoint.weights):
        raise CheckpointError(f"{path}: {problem}")
    model.load_state_dict(checkpoint.weights)
    model = model.to(device).eval()
    return Source(
        kind="checkpoint",
        model=model,
        tokenizer_sha256=checkpoint.tokenizer.sha256 if checkpoint.tokenizer else None,
        weights_sha256=None,
        recorded=None,
        seconds={"decode": decoded - began, "build": time.perf_counter() - decoded},
    )


def _recorded(pack: Mapping[str, Any]) -> dict[str, float] | None:
    """The plain figure in an artifact's header (``pack.quality``), which may hold anything."""
    quality = recorded_quality(pack)
    if "bpb_after" not in quality:
        return None
    counts = {key: count for key, count in quality.items() if key in ("context", "tokens")}
    return {"bpb": quality["bpb_after"], **counts}
