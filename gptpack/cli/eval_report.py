"""What `gptpack eval` says: its JSON, and the tables."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptpack.cli.console import note, print_json, print_table

if TYPE_CHECKING:
    import torch

    from gptpack.cli.eval import Source
    from gptpack.evaluation.clock import Clock
    from gptpack.evaluation.result import Score
    from gptpack.evaluation.text import Text


def result_of(
    path: Path,
    source: "Source",
    text: "Text",
    scores: Mapping[str, "Score"],
    clock: "Clock",
    device: "torch.device",
    world: int,
) -> dict[str, Any]:
    """Everything that is known about this evaluation, for JSON."""
    import torch

    from gptpack.data.shards import file_sha256
    from gptpack.version import VERSION

    most = max(score.planned_tokens for score in scores.values())
    cuda = device.type == "cuda"
    named = {name: score.to_dict() for name, score in scores.items()}
    recorded = source.recorded
    plain = scores["plain"]
    comparable = recorded is not None and plain.complete
    vocabulary = text.vocabulary
    return {
        "source": source.kind,
        "file": {
            "path": str(path),
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
            "weights_sha256": source.weights_sha256,
        },
        "plain": named["plain"],
        "sliding": named.get("sliding"),
        "ngram": named.get("ngram"),
        "ttt": {name: row for name, row in named.items() if name.startswith("ttt")},
        "decisive": decisive(scores),
        "adaptation": scores[decisive(scores)].adaptation,
        "recorded": recorded,
        "difference_bpb": plain.bpb - recorded["bpb"] if recorded and comparable else None,
        "unknown_tokens": text.unknown_tokens(most),
        "tokenizer": {
            "path": str(vocabulary.path),
            "sha256": vocabulary.sha256,
            "vocab": vocabulary.vocab,
            "checked": source.tokenizer_sha256 is not None,
        },
        "accounting": {
            "kind": text.accounting,
            "audited_against": str(text.source) if text.source else "what the tokens decode to",
        },
        "shards": [{"file": shard.name, "sha256": file_sha256(shard)} for shard in text.shards],
        "seconds": clock.ledger(),
        "time_limit_seconds": clock.limit_seconds or None,
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if cuda else "cpu",
            "ranks": world,
        },
        "versions": {"gptpack": VERSION, "torch": torch.__version__},
    }


def decisive(scores: Mapping[str, "Score"]) -> str:
    """The last figure that was asked for; of several ways of test-time training, none."""
    adapted = [name for name in scores if name.startswith("ttt")]
    if len(adapted) == 1:
        return adapted[0]
    return next(name for name in ("ngram", "sliding", "plain") if name in scores)


def report(
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
    _print_adaptations(scores)
    if ngram := scores.get("ngram"):
        checked = ngram.details["normalisation"]
        click.echo(
            f"\nn-grams: {ngram.details['hinted']:,} targets had a hint, "
            f"{ngram.details['hint_hits']:,} of them right; on {checked['positions']:,} sampled "
            f"targets the probabilities of all tokens sum to 1 within "
            f"{checked['largest_deviation_of_sum']:.1e}"
        )
    if (recorded := result["recorded"]) and result["difference_bpb"] is not None:
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


def _print_adaptations(scores: Mapping[str, "Score"]) -> None:
    """Ways of test-time training beside the same windows without."""
    adapted = {name: score for name, score in scores.items() if name.startswith("ttt")}
    if not adapted:
        return
    rows = []
    for name, score in adapted.items():
        alike = [
            other
            for other in scores.values()
            if other.adaptation == "none"
            and (other.stride, other.documents, other.tokens)
            == (score.stride, score.documents, score.tokens)
        ]
        rows.append(
            [
                f"{name}: {score.adaptation}",
                f"{score.bpb:.6f}",
                f"{score.bpb - alike[0].bpb:+.6f}" if alike else "",
                f"{score.details['updates']:,}",
                f"{score.details.get('resets', 0):,}",
                f"{score.details['seconds_adapting']:,.1f}",
            ]
        )
    click.echo()
    print_table(
        ["test-time training", "bpb", "against none", "updates", "resets", "seconds adapting"], rows
    )
