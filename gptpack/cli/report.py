"""`gptpack report`: what runs left -> one HTML page that fetches nothing."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptpack.cli.console import note, progress_bars
from gptpack.errors import GptpackError

if TYPE_CHECKING:
    from gptpack.inspection.compare import TensorError
    from gptpack.runs.gather import Packed

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="RUN_OR_FILE...")
@click.option("--output", "-o", default=Path("report.html"), show_default=True, type=PATH)
@click.option("--title", default="", help="Of the page. [default: the names of what is shown]")
def command(paths: tuple[Path, ...], output: Path, title: str) -> None:
    """Make one page about runs and packed files, side by side: where the bytes go, bits per
    parameter and error by layer, size against score, curves of training, ledgers of bytes and time.

    A run is a folder with metrics.jsonl (from `gptpack train`), packed files, curves (.csv) or
    reports that `--json` printed into .json files there; a file is any of them. Errors are measured
    where the checkpoint that a file was made of lies beside it. The page needs no network and no
    other file. Needs plotly: pip install 'gptpack[report]'.

    \b
    Examples:
      gptpack report runs/a -o report.html
      gptpack report runs/a runs/b other.gptpack -o compared.html
    """
    from gptpack.atomic import check_target, replacing
    from gptpack.runs.figures import graph_objects
    from gptpack.runs.gather import gather
    from gptpack.runs.page import render

    graph_objects()
    check_target(output, "page", b"<!doctype html>", b"<!DOCTYPE html>")
    with progress_bars() as progress:
        progress("read and decode", 0, 0)
        sources = gather(paths)
        packed = [file for source in sources for file in source.packed]
        errors: list[list[TensorError]] = []
        for file in packed:
            if file.checkpoint is not None:
                progress("compare with checkpoints", len(errors), len(packed))
            errors.append(_errors(file))
        progress("draw", 0, 0)
        page = render(sources, errors, title=title)
    with replacing(output) as handle:
        size = handle.write(page.encode())
    note(f"wrote {output}, {size:,} bytes")


def _errors(packed: "Packed") -> "list[TensorError]":
    """Against the checkpoint beside the file, if the file was made of that one."""
    from gptpack.artifact.reader import read_artifact
    from gptpack.data.shards import file_sha256
    from gptpack.inspection.compare import tensor_errors, values_of

    path, made_of = packed.checkpoint, packed.report.pack.get("checkpoint_sha256")
    if path is None:
        return []
    if file_sha256(path) != made_of:
        note(f"{packed.name}: {path} is not the checkpoint that it was made of; no errors shown")
        return []
    from gptpack.training.checkpoint import load_checkpoint

    try:
        artifact = read_artifact(packed.report.path)
        loaded = load_checkpoint(path, artifact.header.model)
        reference = {name: tensor.numpy() for name, tensor in loaded.weights.items()}
        return tensor_errors(reference, values_of(artifact), where=packed.name)
    except GptpackError as error:
        note(f"{packed.name}: {error}; no errors shown")
        return []
