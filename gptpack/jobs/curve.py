"""A checkpoint and bits per weight -> what its file is worth at each, as rows, CSV and a plot."""

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gptpack.artifact.record import Quality
from gptpack.atomic import check_target, replacing
from gptpack.errors import ConfigError
from gptpack.evaluation.result import Evaluation
from gptpack.jobs.load import Loaded
from gptpack.jobs.prepare import prepared
from gptpack.jobs.proof import quality
from gptpack.jobs.request import PackRequest
from gptpack.packing.packer import CodedFile, grid_bits
from gptpack.progress import Progress, silent

MOST_BITS = 16
"""Most bits a weight of a point; no codes take more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One file of the curve; bits per byte are None where nothing was measured."""

    delta: float
    bits: float
    """Coded bits of a weight on a grid."""
    bytes: int
    bpb_before: float | None = None
    bpb_measured: float | None = None

    @property
    def rise(self) -> float | None:
        """Measured bits per byte less those before packing."""
        if self.bpb_measured is None or self.bpb_before is None:
            return None
        return self.bpb_measured - self.bpb_before


def point_of(coded: CodedFile, scores: tuple[Evaluation, Evaluation] | None) -> Point:
    """The point of a file that says its scores before and after packing, if there are any."""
    measured: dict[str, float] = {}
    if scores is not None:
        before, after = (each.plain for each in scores)
        measured["bpb_before"] = before.bpb
        measured["bpb_measured"] = after.bpb
    said = Quality() if scores is None else quality(*scores)
    size = coded.bytes_for(coded.budget_bytes, said)
    bits = grid_bits(coded.encoded) or 0.0
    return Point(delta=coded.delta, bits=bits, bytes=size, **measured)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The points, the files that were written, and what was left out."""

    points: tuple[Point, ...]
    path: Path
    plot: Path | None
    notes: tuple[str, ...]
    assumed: tuple[str, ...] = ()
    """What the checkpoint did not say of its model and was taken for granted."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "curve": [asdict(point) for point in self.points],
            "file": str(self.path),
            "plot": self.plot and str(self.plot),
            "assumed": list(self.assumed),
        }


CURVE_BITS = "4,3.5,3,2.5,2"
"""Bits per weight of the points where none are asked for."""


def parse_bits(text: str | None) -> list[float]:
    """Bits per weight, separated by commas, the most first; None takes `CURVE_BITS`."""
    text = CURVE_BITS if text is None else text
    try:
        bits = sorted({float(part) for part in text.split(",")}, reverse=True)
    except ValueError:
        bits = []
    if not bits or not all(0 < value <= MOST_BITS for value in bits):
        raise ConfigError(
            f"--curve-bits {text}: write positive numbers up to {MOST_BITS} such as 4,3,2"
        )
    return bits


def make_curve(
    source: str | Path | Loaded,
    request: PackRequest,
    path: Path,
    bits: list[float],
    *,
    progress: Progress = silent,
) -> Curve:
    """Pack at deltas for about `bits`, score each file, and write the table to `path`.

    The first delta is searched; each bit less than it comes to doubles it. Points beyond what the
    finest grids take are left out. Columns that were not measured are empty.

    Raises:
        ConfigError: the request asks for a size too, or no method has a delta.
        GptpackError: see `pack`.
    """
    if request.sizes:
        request.check_size()
        raise ConfigError(
            "--curve takes no --budget, --max-rise, --bits or --delta; give one of the five"
        )
    if request.plan:
        raise ConfigError("--plan writes no --curve; give one of them")
    request.check_files()
    _check_writes(path, plotted=request.data is not None or bool(request.eval_text))
    notes: list[str] = []
    points: list[Point] = []
    delta, reached = 0.0, 0.0
    with prepared(source, request, path.with_suffix(".gptpack"), progress) as ready:
        if not ready.packer.matrices:
            raise ConfigError("--curve needs a method with a delta: gptq-trellis or gptq-uniform")
        notes += ready.packer.notes
        for wanted in bits:
            if not points:
                coded = ready.fit(bits=wanted)
                delta, reached = coded.delta, grid_bits(coded.encoded) or 0.0
            elif wanted >= reached:
                notes.append(
                    f"--curve-bits {wanted:g}: left out, the finest grids take {reached:.3f}"
                )
                continue
            else:
                coded = ready.fit(delta=delta * 2 ** (reached - wanted))
            file = coded.assemble()
            scores = ready.proof.of(file, progress=progress) if ready.ranks.main else None
            points.append(point_of(coded, scores))
        plot = _write(points, path, notes) if ready.ranks.main else None
        assumed = ready.packer.record.assumed or ()
    notes += ready.kept_notes()
    return Curve(points=tuple(points), path=path, plot=plot, notes=tuple(notes), assumed=assumed)


def _check_writes(path: Path, *, plotted: bool) -> None:
    """Whether a curve, and its plot, may be written, asked before anything is packed."""
    if path.suffix == ".png":
        raise ConfigError(f"--curve {path}: name the CSV; the plot gets its name with .png")
    check_target(path, "curve", fields(Point)[0].name.encode())
    if plotted:
        check_target(path.with_suffix(".png"), "plot", b"\x89PNG")


def _write(points: list[Point], path: Path, notes: list[str]) -> Path | None:
    """Write the table, and the plot where something was measured; returns the plot's path."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [each.name for each in fields(Point)])
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)
    with replacing(path) as file:
        file.write(text.getvalue().encode())
    if points[0].bpb_before is None:
        notes.append("no plot: nothing was measured (give --data or --eval-text)")
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        notes.append("no plot: matplotlib is missing (pip install 'gptpack[plot]')")
        return None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    sizes = [point.bytes / 1e6 for point in points]
    measured = [float(point.bpb_measured or 0) for point in points]
    axes.plot(sizes, measured, "o-", label="measured on the file")
    axes.axhline(points[0].bpb_before, color="black", lw=0.8, ls=":", label="before packing")
    axes.set(xlabel="bytes of the file, millions", ylabel="bits per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    plot = path.with_suffix(".png")
    with replacing(plot) as file:
        figure.savefig(file, format="png", dpi=120)
    return plot
