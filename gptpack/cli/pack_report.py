"""What `gptpack pack` reports: the file to its last byte, and what it is worth."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptpack.cli.console import note, print_table

if TYPE_CHECKING:
    from gptpack.packing.packer import Packed


def quality(scores: Mapping[str, Any]) -> dict[str, float]:
    """What the header says of the file's worth."""
    before, after = (scores[when]["plain"] for when in ("before", "after"))
    return {
        "bpb_before": round(before["bpb"], 6),
        "bpb_after": round(after["bpb"], 6),
        "context": after["context"],
        "tokens": after["tokens"],
    }


def report_of(packed: "Packed", file: bytes, path: Path | None) -> dict[str, Any]:
    """Everything about the file but its scores."""
    from gptpack.artifact.writer import summarize
    from gptpack.packing.packer import UNLIMITED, grid_bits

    summary = summarize(path or "", file)
    tensors = packed.encoded.tensors
    left = packed.budget_bytes - packed.code_bytes - len(file)
    limited = packed.budget_bytes < UNLIMITED
    return {
        "file": None if path is None else str(path),
        "bytes": len(file),
        "sha256": hashlib.sha256(file).hexdigest(),
        "budget_bytes": packed.budget_bytes if limited else None,
        "code_bytes": packed.code_bytes,
        "headroom_bytes": left if limited else None,
        "parameters": sum(tensor.numel for tensor in tensors),
        "bits": grid_bits(packed.encoded),
        "delta": packed.pack.get("delta"),
        "predicted_nats": packed.predicted_nats,
        "methods": dict(Counter(tensor.method for tensor in tensors)),
        "fallbacks": [tensor.name for tensor in tensors if "fallback" in tensor.record],
        "notes": list(packed.notes),
        "header_bytes": summary.header_bytes,
        "sections": {
            section.name: {"codec": section.codec, "bytes": section.stored_bytes}
            for section in summary.sections
        },
    }


def print_report(report: dict[str, Any]) -> None:
    rows = [
        ["parameters", f"{report['parameters']:,}"],
        ["code, bytes", f"{report['code_bytes']:,}"],
        ["file, bytes", f"{report['bytes']:,}"],
        ["bits per parameter", f"{8 * report['bytes'] / report['parameters']:.3f}"],
    ]
    if report["budget_bytes"] is not None:
        rows.insert(1, ["budget, bytes", f"{report['budget_bytes']:,}"])
        rows.insert(4, ["headroom, bytes", f"{report['headroom_bytes']:,}"])
    if report["delta"] is not None:
        rows.append(["coded bits per weight on a grid", f"{report['bits']:.3f}"])
        rows.append(["step (delta)", f"{report['delta']:.4g}"])
    counts = ", ".join(f"{method} {count}" for method, count in report["methods"].items())
    rows.append(["tensors", f"{counts}; fallback {len(report['fallbacks'])}"])
    predicted = report["predicted_nats"]
    if "after" in report:
        before, after = (report[when]["plain"] for when in ("before", "after"))
        rise = after["nats_per_token"] - before["nats_per_token"]
        rows += [
            ["bpb before packing", f"{before['bpb']:.5f}"],
            ["bpb of the reloaded file", f"{after['bpb']:.5f}"],
            ["penalty", f"{after['bpb'] - before['bpb']:+.5f}"],
            ["rise, nats per token: measured", f"{rise:+.5f}"],
        ]
        if report["delta"] is not None:
            rows.append(["the same, predicted without tuning", f"{predicted:+.5f}"])
        if sliding := report["after"]["sliding"]:
            rows.append([f"sliding bpb, stride {sliding['stride']}", f"{sliding['bpb']:.5f}"])
    elif report["delta"] is not None:
        rows.append(["predicted rise, nats per token", f"{predicted:+.5f}"])
    rows += [[f"seconds to {phase}", f"{spent:.1f}"] for phase, spent in report["seconds"].items()]
    print_table(["packed", ""], rows)
    print_table(
        ["section", "codec", "bytes"],
        [["header", "", f"{report['header_bytes']:,}"]]
        + [
            [name, section["codec"], f"{section['bytes']:,}"]
            for name, section in report["sections"].items()
        ],
    )
    note(f"wrote {report['file']}" if report["file"] else "nothing was written (--plan)")
