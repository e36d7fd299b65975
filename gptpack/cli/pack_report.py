"""A pack's report, or a curve -> aligned tables."""

import json
import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gptpack.cli.console import note, print_table, say

if TYPE_CHECKING:
    from gptpack.jobs.curve import Curve, Point
    from gptpack.jobs.pack import Packed


def print_report(packed: "Packed") -> None:
    """Print tables of a file that was packed, then what it is worth, and what comes next."""
    report = packed.to_dict()
    if packed.search:
        _print_points(packed.search)
        say()
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
        rows.append(["delta", f"{report['delta']:.4g}"])
    counts = ", ".join(f"{method} {count}" for method, count in report["methods"].items())
    rows.append(["tensors", f"{counts}; fallback {len(report['fallbacks'])}"])
    if report["idle_channels"]:
        rows.append(["idle channels left out", f"{report['idle_channels']:,}"])
    if "after" in report:
        before, after = (report[when]["plain"] for when in ("before", "after"))
        rise = after["nats_per_token"] - before["nats_per_token"]
        rows += [
            ["bpb before packing", f"{before['bpb']:.5f}"],
            ["bpb of the reloaded file", f"{after['bpb']:.5f}"],
            ["rise", change(after["bpb"] - before["bpb"])],
            ["rise, nats per token", change(rise)],
        ]
        if sliding := report["after"]["sliding"]:
            rows.append([f"sliding bpb, stride {sliding['stride']}", f"{sliding['bpb']:.5f}"])
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
    if report["file"] is None:
        note("nothing was written (--plan)")
        return
    say("", verdict(report), "", *following(report))


def change(value: float) -> str:
    """A difference with its sign; one that rounds to nothing has no minus."""
    return f"{round(value, 5) + 0.0:+.5f}"


def verdict(report: dict[str, Any]) -> str:
    """The size, the rise, and what it was measured on, in a sentence."""
    said = f"{report['file']} has {report['bytes']:,} bytes"
    if report["headroom_bytes"] is not None:
        said += f", {report['headroom_bytes']:,} fewer than allowed"
    if "after" not in report:
        return f"{said}; nothing was measured on it: give --eval-text, or --data with val shards"
    before, after = (report[when]["plain"] for when in ("before", "after"))
    files = [shard["file"] for shard in report["after"]["shards"]]
    more = f" and {len(files) - 1} more" if files[1:] else ""
    rise = change(after["bpb"] - before["bpb"])
    return (
        f"{said}, and a rise of {rise} bits per byte ({before['bpb']:.5f} "
        f"before, {after['bpb']:.5f} after), measured in a fresh process on {after['tokens']:,} "
        f"tokens ({after['bytes']:,} bytes) of {files[0]}{more}"
    )


def following(report: dict[str, Any]) -> list[str]:
    """Commands that one types next."""
    name = shlex.quote(report["file"])
    proved = report.get("after", {})
    limit = f"--budget {report['budget_bytes'] or report['bytes']}"
    if proved:  # rounded up, so that this file passes
        limit += f" --max-bpb {math.ceil(1e4 * proved['plain']['bpb']) / 1e4:.4f}"
    tokenizer = ""
    if "files" not in report["sections"]:  # the file brings none
        path = proved["tokenizer"]["path"] if proved else "TOKENIZER"
        tokenizer = f" --tokenizer {shlex.quote(path)}"
    code = f"import gptpack; gptpack.load({json.dumps(report['file'])})"
    return [
        "Next:",
        f"  gptpack sample {name}{tokenizer} --prompt The",
        f"  gptpack check {name} {limit}",
        f"  python -c {shlex.quote(code)}",
    ]


def print_curve(curve: "Curve") -> None:
    _print_points(curve.points)
    note(f"wrote {curve.path}" + (f" and {curve.plot}" if curve.plot else ""))


def _print_points(points: "Sequence[Point]") -> None:
    print_table(
        ["bits a weight", "delta", "bytes", "bpb", "rise"],
        [[f"{p.bits:.3f}", f"{p.delta:.4g}", f"{p.bytes:,}", *_figures(p)] for p in points],
    )


def _figures(point: "Point") -> list[str]:
    measured, rise = point.bpb_measured, point.rise
    if measured is None or rise is None:
        return ["", ""]
    return [f"{measured:.5f}", change(rise)]
