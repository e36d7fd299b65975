"""A pack's report, or a curve -> aligned tables."""

from typing import TYPE_CHECKING, Any

from gptpack.cli.console import note, print_table

if TYPE_CHECKING:
    from gptpack.jobs.curve import Curve, Point


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
        rows.append(["delta", f"{report['delta']:.4g}"])
    counts = ", ".join(f"{method} {count}" for method, count in report["methods"].items())
    rows.append(["tensors", f"{counts}; fallback {len(report['fallbacks'])}"])
    if "after" in report:
        before, after = (report[when]["plain"] for when in ("before", "after"))
        rise = after["nats_per_token"] - before["nats_per_token"]
        rows += [
            ["bpb before packing", f"{before['bpb']:.5f}"],
            ["bpb of the reloaded file", f"{after['bpb']:.5f}"],
            ["penalty", f"{after['bpb'] - before['bpb']:+.5f}"],
            ["rise, nats per token", f"{rise:+.5f}"],
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
    note(f"wrote {report['file']}" if report["file"] else "nothing was written (--plan)")


def print_curve(curve: "Curve") -> None:
    print_table(
        ["bits a weight", "delta", "bytes", "bpb", "penalty"],
        [[f"{p.bits:.3f}", f"{p.delta:.4g}", f"{p.bytes:,}", *_figures(p)] for p in curve.points],
    )
    note(f"wrote {curve.path}" + (f" and {curve.plot}" if curve.plot else ""))


def _figures(point: "Point") -> list[str]:
    before, measured = point.bpb_before, point.bpb_measured
    if before is None or measured is None:
        return ["", ""]
    return [f"{measured:.5f}", f"{measured - before:+.5f}"]
