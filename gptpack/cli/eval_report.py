"""An evaluation -> JSON, or aligned tables."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptpack.cli.console import note, note_assumed, print_json, print_table, say

if TYPE_CHECKING:
    from gptpack import Evaluation


def report(
    found: "Evaluation", *, as_json: bool, output: Path | None, quiet: bool, compressors: bool
) -> None:
    """Print the result, and write it where asked."""
    result = found.to_dict()
    scores = found.scores
    if output is not None:
        from gptpack.atomic import replacing

        with replacing(output) as file:
            file.write(json.dumps(result, indent=2, allow_nan=False).encode() + b"\n")
    if quiet:
        return
    note_assumed(found.assumed)
    if not result["tokenizer"]["checked"]:
        note("the checkpoint does not say which tokenizer it belongs to; it was not checked")
    if result["unknown_tokens"]:
        note(f"{result['unknown_tokens']:,} tokens are unknown and count 0 bytes")
    bytes_of = result["accounting"]
    if bytes_of.get("text_bytes") != bytes_of.get("token_bytes"):
        note(
            f"the tokens of val are charged {bytes_of['token_bytes']:,} bytes for a text of "
            f"{bytes_of['text_bytes']:,}, which the tokenizer normalises"
        )
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
    if compressors:
        _print_compressors(found)
    _print_adaptations(found)
    if found.agreement is not None:
        _print_agreement(found.agreement)
    if (recorded := result["recorded"]) and result["difference_bpb"] is not None:
        counts = ", ".join(f"{key} {recorded[key]:,}" for key in recorded if key != "bpb")
        say(
            "",
            f"recorded when packed: {recorded['bpb']:.6f} bpb ({counts or 'of unknown text'}); "
            f"plain differs by {result['difference_bpb']:+.6f}",
        )
    say()
    print_table(
        ["phase", "seconds"],
        [[phase, f"{seconds:,.2f}"] for phase, seconds in result["seconds"].items()],
    )


def _print_compressors(found: "Evaluation") -> None:
    """What gzip and others make of the same text."""
    beside = found.compressors
    if beside is None:
        if found.accounting.get("kind") != "text":
            note("no gzip, xz and zstd beside it: shards are no text; --text names theirs")
        return
    of = f"the same text, {beside['bytes']:,} bytes"
    say()
    print_table([of, "bpb"], [[name, f"{bpb:.6f}"] for name, bpb in beside["bpb"].items()])


def _print_agreement(found: Mapping[str, Any]) -> None:
    """Divergence from a reference beside the noise floor."""
    say()
    print_table(
        ["against the reference", "KL mean", "median", "99 %", "same top token", "positions"],
        [
            [
                "file",
                *(f"{found[name]:.6f}" for name in ("kl_mean", "kl_median", "kl_p99")),
                f"{found['same_top']:.2%}",
                f"{found['positions']:,}",
            ],
            [
                "noise floor (layers in bfloat16)",
                f"{found['noise_kl_mean']:.6f}",
                "",
                "",
                f"{found['noise_same_top']:.2%}",
                "",
            ],
        ],
    )


def _print_adaptations(found: "Evaluation") -> None:
    """Ways of test-time training beside the same windows without."""
    scores = found.scores
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
    say()
    print_table(
        ["test-time training", "bpb", "against none", "updates", "resets", "seconds adapting"], rows
    )
