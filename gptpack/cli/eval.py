"""`gptpack eval`: a packed file, a tokenizer and shards -> bits per byte, and nothing else."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gptpack.cli.console import note, print_json, print_table, progress_bars
from gptpack.report.inspect import recorded_quality

if TYPE_CHECKING:
    import torch

    from gptpack.evaluation.result import Score
    from gptpack.evaluation.text import Text
    from gptpack.model.gpt import GPT

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".safetensors")
PATH = click.Path(path_type=Path)


@click.command()
@click.argument("path", metavar="FILE", type=PATH)
@click.option("--data", required=True, type=PATH, help="Folder of shards; val is scored.")
@click.option("--tokenizer", type=PATH, help="SentencePiece model. [default: that in --data]")
@click.option("--model", help="Recipe (file or name) whose [model] a bare state dict has.")
@click.option("--stride", type=int, help="Also score a sliding window that moves by so many.")
@click.option("--context", default=0, help="Tokens of a window. [default: the model's]")
@click.option(
    "--tail",
    type=click.Choice(["score", "drop"]),
    help="Targets after the last whole context. [default: plain drops, sliding scores]",
)
@click.option("--limit-tokens", default=0, help="Score the first so many targets; 0: all.")
@click.option("--batch-tokens", default=0, help="Tokens at once; 0: by device.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option("--max-bpb", type=float, help="End with status 1 if bits per byte are above.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--output", type=PATH, help="Also write the JSON to this file.")
def command(
    path: Path,
    data: Path,
    tokenizer: Path | None,
    model: str | None,
    stride: int | None,
    context: int,
    tail: Literal["score", "drop"] | None,
    limit_tokens: int,
    batch_tokens: int,
    device: str,
    max_bpb: float | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Reload the packed FILE and measure its bits per byte on validation text.

    The model comes from FILE alone. Plain evaluation, by the reference's accounting, is always
    printed; --stride adds a sliding window in which every target is scored once, the tail
    included. FILE may also be a checkpoint (.pt, .pth, .safetensors). Runs under torchrun.

    --max-bpb is compared with the sliding figure if there is one, else with the plain one.

    \b
    Examples:
      gptpack eval model.gptpack --data shards/
      gptpack eval model.gptpack --data shards/ --stride 64 --json
      gptpack eval model.gptpack --data shards/ --tokenizer tok.model --max-bpb 1.23
      torchrun --nproc_per_node=8 eval.py model.gptpack --data shards/ --stride 64
    """
    from gptpack.errors import ConfigError, LimitError
    from gptpack.evaluation.scoring import evaluate
    from gptpack.evaluation.text import Text
    from gptpack.evaluation.windows import plan_windows
    from gptpack.training.distributed import ranks

    if context < 0:
        raise ConfigError(f"--context {context} must not be negative")
    with ranks(device) as here, progress_bars(quiet=as_json or not here.main) as progress:
        source = _open(path, here.device, model)
        seconds = dict(source.seconds)
        config = source.model.config

        began = time.perf_counter()
        progress("audit", 0, 0)
        text = Text.load(
            data,
            vocab=config.vocab,
            tokenizer=tokenizer,
            sha256=source.tokenizer_sha256,
            limit_tokens=limit_tokens,
        )
        strides: dict[str, int | None] = {"plain": None}
        if stride is not None:
            strides["sliding"] = stride
        targets = {
            name: plan_windows(
                len(text.tokens),
                context=context or config.context,
                stride=step,
                tail=tail,
                limit_tokens=limit_tokens,
            ).targets
            for name, step in strides.items()
        }
        audited = text.audited_bytes(targets.values())
        seconds["audit"] = time.perf_counter() - began

        scores: dict[str, Score] = {}
        for name, step in strides.items():
            scores[name] = evaluate(
                source.model,
                text.tokens,
                text.token_bytes,
                context=context or config.context,
                stride=step,
                tail=tail,
                audited_bytes=audited[targets[name]],
                limit_tokens=limit_tokens,
                batch_tokens=batch_tokens,
                device=here.device,
                progress=progress,
                phase=name,
            )
            seconds[name] = scores[name].seconds
        if here.main:
            result = _result(path, source, text, scores, seconds, here.device, here.world)
    if here.main:
        _report(result, scores, as_json=as_json, output=output)
    decisive = scores.get("sliding", scores["plain"])
    if max_bpb is not None and not decisive.bpb <= max_bpb:
        raise LimitError(
            f"{path}: {decisive.bpb:.6f} bits per byte ({decisive.metric}), "
            f"{max_bpb} at most are allowed"
        )


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
    from gptpack.reload import load_model

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
    from gptpack.checkpoint import load_checkpoint
    from gptpack.config import load_recipe
    from gptpack.errors import CheckpointError
    from gptpack.model.gpt import GPT, state_problem
    from gptpack.recipe_files import find_recipe

    began = time.perf_counter()
    checkpoint = load_checkpoint(path, load_recipe(find_recipe(recipe)).model if recipe else None)
    decoded = time.perf_counter()
    model = GPT(checkpoint.model)
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


def _result(
    path: Path,
    source: Source,
    text: "Text",
    scores: Mapping[str, "Score"],
    seconds: Mapping[str, float],
    device: "torch.device",
    world: int,
) -> dict[str, Any]:
    """Everything that is known about this evaluation, for JSON."""
    import torch

    from gptpack.data.accounting import unknown_tokens
    from gptpack.data.shards import file_sha256
    from gptpack.version import VERSION

    most = max(score.tokens for score in scores.values())
    cuda = device.type == "cuda"
    sliding = scores.get("sliding")
    recorded = source.recorded
    return {
        "source": source.kind,
        "file": {
            "path": str(path),
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
            "weights_sha256": source.weights_sha256,
        },
        "plain": scores["plain"].to_dict(),
        "sliding": sliding.to_dict() if sliding else None,
        "adaptation": "none",
        "recorded": recorded,
        "difference_bpb": None if recorded is None else scores["plain"].bpb - recorded["bpb"],
        "unknown_tokens": unknown_tokens(text.tokenizer, text.tokens[1 : most + 1]),
        "tokenizer": {
            "path": str(text.tokenizer.path),
            "sha256": text.tokenizer.sha256,
            "vocab": text.tokenizer.vocab,
            "checked": source.tokenizer_sha256 is not None,
        },
        "shards": [{"file": shard.name, "sha256": file_sha256(shard)} for shard in text.shards],
        "seconds": dict(seconds),
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if cuda else "cpu",
            "ranks": world,
        },
        "versions": {"gptpack": VERSION, "torch": torch.__version__},
    }


def _report(
    result: Mapping[str, Any],
    scores: Mapping[str, "Score"],
    *,
    as_json: bool,
    output: Path | None,
) -> None:
    """Print the result, and write it where asked."""
    if output is not None:
        from gptpack.atomic import replacing

        with replacing(output) as file:
            file.write(json.dumps(result, indent=2, allow_nan=False).encode() + b"\n")
    if not result["tokenizer"]["checked"]:
        note("the checkpoint does not say which tokenizer it belongs to; it was not checked")
    if result["unknown_tokens"]:
        note(f"{result['unknown_tokens']:,} tokens are unknown and count 0 bytes")
    if as_json:
        print_json(result)
        return
    print_table(
        ["metric", "bpb", "nats/token", "tokens", "bytes", "seconds", "tokens/s"],
        [
            [
                score.metric,
                f"{score.bpb:.6f}",
                f"{score.nats_per_token:.6f}",
                f"{score.tokens:,}",
                f"{score.bytes:,}",
                f"{score.seconds:,.1f}",
                f"{score.tokens_per_second:,.0f}",
            ]
            for score in scores.values()
        ],
    )
    if recorded := result["recorded"]:
        counts = ", ".join(f"{key} {recorded[key]:,}" for key in recorded if key != "bpb")
        click.echo(
            f"\nrecorded when packed: {recorded['bpb']:.6f} bpb ({counts or 'of unknown text'}); "
            f"plain differs by {result['difference_bpb']:+.6f}"
        )
    click.echo()
    print_table(
        ["phase", "seconds"],
        [[phase, f"{seconds:,.2f}"] for phase, seconds in result["seconds"].items()],
    )
