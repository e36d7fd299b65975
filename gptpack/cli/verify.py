"""`gptpack verify`: every checksum and a full decode; with a checkpoint, the error per tensor."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptpack.cli.console import note, print_json, print_table, progress_bars
from gptpack.escape import plain

if TYPE_CHECKING:
    from gptpack.artifact.header import ArtifactHeader
    from gptpack.inspection.compare import TensorError, Values
    from gptpack.inspection.verify import VerifyReport

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("path", metavar="FILE", type=PATH)
@click.option("--checkpoint", type=PATH, help="Also compare the weights with this checkpoint's.")
@click.option("--all", "every", is_flag=True, help="Show every tensor, not the worst ten only.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(path: Path, checkpoint: Path | None, every: bool, as_json: bool) -> None:
    """Verify all of the packed FILE: every checksum, a full decode, the hash of its weights.

    Ends with status 3 and says where if anything is not as it should be. Needs no torch, unless a
    checkpoint is given: then the relative error of each tensor is shown, the largest first. The
    header knows which checkpoint the file was made of, and a note says if it is another one.

    \b
    Examples:
      gptpack verify model.gptpack
      gptpack verify model.gptpack --checkpoint runs/a/checkpoint.pt
      gptpack verify model.gptpack --all --json
    """
    from gptpack.inspection.compare import overall, tensor_errors
    from gptpack.inspection.verify import verify

    with progress_bars(quiet=as_json) as progress:
        progress("verify and decode", 0, 0)
        report, artifact, values = verify(path)
        errors: list[TensorError] = []
        error = None
        if checkpoint is not None:
            progress("compare", 0, 0)
            reference = checkpoint_values(checkpoint, artifact.header)
            errors = tensor_errors(reference, values, where=f"{path} and {checkpoint}")
            error = overall(errors, reference)
    result: dict[str, Any] = report.to_dict()
    if checkpoint is not None:
        result |= {
            "checkpoint": str(checkpoint),
            "relative_error": error,
            "errors": [asdict(row) for row in errors],
        }
    if as_json:
        print_json(result)
        return
    _print(report, errors, error, every)


def checkpoint_values(path: Path, header: "ArtifactHeader") -> "Values":
    """The weights of a checkpoint that a file with this header may have been made of.

    Raises:
        CheckpointError: unreadable, or some are not finite and have no distance from anything.
    """
    from gptpack.data.shards import file_sha256
    from gptpack.errors import CheckpointError
    from gptpack.families.language_model import not_finite
    from gptpack.training.checkpoint import load_checkpoint

    loaded = load_checkpoint(path, header.model)
    made_of = header.pack.get("checkpoint_sha256")
    if isinstance(made_of, str) and file_sha256(path) != made_of:
        note(f"{path}: the file was made of another checkpoint, {plain(made_of, 16)}...")
    if broken := not_finite(loaded.weights):
        raise CheckpointError(
            f"{path}: not finite: {', '.join(broken[:4])}; compare with the checkpoint that the "
            "file was made of"
        )
    return {name: tensor.numpy() for name, tensor in loaded.weights.items()}


def _print(
    report: "VerifyReport", errors: "list[TensorError]", error: float | None, every: bool
) -> None:
    click.echo(
        f"{click.format_filename(report.path)}: {report.file_bytes:,} bytes, header, "
        f"{len(report.sections)} sections and {len(report.tensors):,} tensors "
        f"({report.parameters:,} parameters) verified in {report.seconds:.2f} s"
    )
    click.echo(f"weights sha256 {report.weights_sha256}")
    if errors:
        shown = sorted(errors, key=lambda row: -(row.relative or 0.0))
        shown = shown if every else shown[:10]
        click.echo()
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
        )
        if len(errors) > len(shown):
            click.echo(f"and {len(errors) - len(shown):,} tensors with smaller errors; see --all")
        if error is not None:
            click.echo(f"\nrelative error of all weights: {error:.6f}")
    elif every:
        click.echo()
        print_table(
            ["tensor", "method", "sha256 of its values"],
            [[plain(row.name, 80), row.method, row.sha256] for row in report.tensors],
        )
