"""`gptpack verify`: every checksum and a full decode; with a checkpoint, the error per tensor."""

from pathlib import Path

import click

from gptpack.cli.bars import progress_bars
from gptpack.cli.console import note, print_json, print_table, say
from gptpack.cli.help import Command
from gptpack.escape import plain
from gptpack.inspection.compare import RELATIVE, WeightErrors
from gptpack.inspection.verify import VerifyReport
from gptpack.jobs.verify import verify

PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("path", metavar="FILE", type=PATH)
@click.option("--checkpoint", type=PATH, help="Also compare the weights with this checkpoint's.")
@click.option("--all", "every", is_flag=True, help="Show every tensor, not the worst ten only.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(path: Path, checkpoint: Path | None, every: bool, as_json: bool) -> None:
    """Verify all of the packed FILE: every checksum, a full decode, the hash of its weights.

    \b
    Examples:
      gptpack verify model.gptpack
      gptpack verify model.gptpack --checkpoint runs/a/checkpoint.pt
      gptpack verify model.gptpack --all --json

    Ends with status 3 and says where if anything is not as it should be. Needs no torch, unless a
    checkpoint is given: then the relative error of each tensor is shown, the largest first. The
    header knows which checkpoint the file was made of, and a note says if it is another one.
    """
    with progress_bars(quiet=as_json) as progress:
        report = verify(path, checkpoint, progress=progress)
    if report.errors is not None and report.errors.caution:
        note(report.errors.caution)
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report, every)


def _print(report: VerifyReport, every: bool) -> None:
    say(
        f"{report.path}: {report.file_bytes:,} bytes, header, "
        f"{len(report.sections)} sections and {len(report.tensors):,} tensors "
        f"({report.parameters:,} parameters) verified in {report.seconds:.2f} s"
    )
    say(f"weights sha256 {report.weights_sha256}")
    if report.errors is not None:
        say()
        _print_errors(report.errors, every)
    elif every:
        say()
        print_table(
            ["tensor", "method", "sha256 of its values"],
            [[plain(row.name, 80), row.method, row.sha256] for row in report.tensors],
            most=len(report.tensors),
        )


def _print_errors(errors: WeightErrors, every: bool) -> None:
    """The largest errors first, and no more than ten unless `every` one is asked for."""
    rows = sorted(errors.tensors, key=lambda row: -(row.relative or 0.0))
    shown = rows if every else rows[:10]
    print_table(
        ["tensor", "shape", "relative error", "largest difference"],
        [
            [
                plain(row.name, 80),
                " x ".join(map(str, row.shape)) or "scalar",
                "" if row.relative is None else f"{row.relative:.6f}",
                f"{row.largest:.3g}",
            ]
            for row in shown
        ],
        most=len(shown),
    )
    if len(rows) > len(shown):
        say(f"and {len(rows) - len(shown):,} tensors with smaller errors; see --all")
    if errors.relative is not None:
        say("", f"relative error of all weights: {errors.relative:.6f}")
    say(RELATIVE)
