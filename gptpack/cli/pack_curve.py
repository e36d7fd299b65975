"""`gptpack pack --curve`: what a checkpoint is worth at several sizes, as CSV and as a plot."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptpack.atomic import check_target
from gptpack.cli.console import note, print_json, print_table
from gptpack.errors import ConfigError
from gptpack.jobs.proof import Proof

if TYPE_CHECKING:
    from gptpack.jobs.pack import Job
    from gptpack.packing.packer import Packer

MOST_BITS = 16
"""Of a point; no codes take more."""
COLUMNS = ("delta", "bits", "bytes", "bpb_before", "bpb_predicted", "bpb_measured")


def parse_bits(text: str) -> list[float]:
    """Bits per weight, separated by commas, the most first."""
    try:
        bits = sorted({float(part) for part in text.split(",")}, reverse=True)
    except ValueError:
        bits = []
    if not bits or not all(0 < value <= MOST_BITS for value in bits):
        raise ConfigError(
            f"--curve-bits {text}: write positive numbers up to {MOST_BITS} such as 4,3,2"
        )
    return bits


def check_curve(path: Path, *, plotted: bool) -> None:
    """Whether a curve, and its plot, may be written, asked before anything is packed.

    Raises:
        GptpackError: they may not.
    """
    if path.suffix == ".png":
        raise ConfigError(f"--curve {path}: name the CSV; the plot gets its name with .png")
    check_target(path, "curve", COLUMNS[0].encode())
    if plotted:
        check_target(path.with_suffix(".png"), "plot", b"\x89PNG")


def write_curve(
    path: Path, job: "Job", packer: "Packer", proof: Proof, bits: list[float], *, as_json: bool
) -> None:
    """Pack at steps for about `bits`, score each file, and write the table to `path`.

    The first step is searched; each bit less than it comes to doubles it. Points beyond what the
    finest steps take are left out. Columns that were not measured are empty.
    """
    from gptpack.atomic import replacing
    from gptpack.packing.packer import grid_bits

    if not packer.matrices:
        raise ConfigError("--curve needs a method with steps: gptq-trellis or gptq-uniform")
    delta: float | None = None
    reached = 0.0
    rows: list[dict[str, Any]] = []
    for wanted in bits:
        if delta is None:
            packed = job.pack(packer, bits=wanted)
            delta, reached = float(packed.pack["delta"]), grid_bits(packed.encoded) or 0.0
        elif wanted >= reached:
            note(f"--curve-bits {wanted:g}: left out, the finest steps take {reached:.3f}")
            continue
        else:
            packed = job.pack(packer, delta=delta * 2 ** (reached - wanted))
        file = packed.file()
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {
            "delta": packed.pack["delta"],
            "bits": grid_bits(packed.encoded),
            "bytes": len(file),
        }
        scores = proof.of(file, progress=job.progress)
        if scores:
            before, after = (scores[when]["plain"] for when in ("before", "after"))
            bpb_per_nat = before["bpb"] / before["nats_per_token"]
            row["bpb_before"] = before["bpb"]
            row["bpb_predicted"] = before["bpb"] + packed.predicted_nats * bpb_per_nat
            row["bpb_measured"] = after["bpb"]
        rows.append(row)
    if not job.ranks.main:
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as file_out:
        file_out.write(text.getvalue().encode())
    plotted = _plot(rows, path.with_suffix(".png"))
    if as_json:
        print_json({"curve": rows, "file": str(path), "plot": plotted and str(plotted)})
        return
    print_table(
        ["bits a weight", "delta", "bytes", "bpb predicted", "bpb measured", "penalty"],
        [
            [f"{row['bits']:.3f}", f"{row['delta']:.4g}", f"{row['bytes']:,}", *_figures(row)]
            for row in rows
        ],
    )
    note(f"wrote {path}" + (f" and {plotted}" if plotted else ""))


def _figures(row: dict[str, Any]) -> list[str]:
    if row["bpb_measured"] is None:
        return ["", "", ""]
    penalty = row["bpb_measured"] - row["bpb_before"]
    return [f"{row['bpb_predicted']:.5f}", f"{row['bpb_measured']:.5f}", f"{penalty:+.5f}"]


def _plot(rows: list[dict[str, Any]], path: Path) -> Path | None:
    """The plot at `path`; None where nothing was measured or matplotlib is missing."""
    from gptpack.atomic import replacing

    if rows[0]["bpb_measured"] is None:
        note("no plot: nothing was measured (give --data)")
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        note("no plot: matplotlib is missing (pip install 'gptpack[plot]')")
        return None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    sizes = [row["bytes"] / 1e6 for row in rows]
    axes.plot(sizes, [row["bpb_measured"] for row in rows], "o-", label="measured on the file")
    axes.plot(sizes, [row["bpb_predicted"] for row in rows], "x--", label="predicted")
    axes.axhline(rows[0]["bpb_before"], color="black", lw=0.8, ls=":", label="before packing")
    axes.set(xlabel="bytes of the file, millions", ylabel="bits per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path
