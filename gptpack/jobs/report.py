"""`gptpack report`: runs and packed files -> one HTML page that fetches nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptpack.atomic import check_target, replacing
from gptpack.errors import GptpackError
from gptpack.progress import Progress, silent
from gptpack.runs.figures import graph_objects
from gptpack.runs.gather import PackedFile, gather
from gptpack.runs.page import render

if TYPE_CHECKING:
    from gptpack.inspection.compare import TensorError


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportMade:
    """A page that was written."""

    page_bytes: int
    notes: tuple[str, ...]
    """Why no errors are shown for a file with a checkpoint beside it."""


def make_report(
    paths: Sequence[Path], output: Path, *, title: str = "", progress: Progress = silent
) -> ReportMade:
    """Write the page about `paths`, which are runs' folders or files of runs, to `output`.

    Raises:
        MissingDependencyError: plotly is not installed.
        ConfigError: a path has nothing to show, or `output` is a file of another kind.
        GptpackError: a file cannot be read, or `output` not be written.
    """
    graph_objects()
    check_target(output, "page", b"<!doctype html>", b"<!DOCTYPE html>")
    progress("read and decode", 0, 0)
    sources = gather(paths)
    packed = [file for source in sources for file in source.packed]
    errors: list[Sequence[TensorError]] = []
    notes = []
    for number, file in enumerate(packed):
        errors.append([])
        if file.checkpoint is None:
            continue
        progress("compare with checkpoints", number, len(packed))
        try:
            errors[-1] = _errors(file, file.checkpoint)
        except GptpackError as error:
            notes.append(f"{file.name}: {error}; no errors shown")
    progress("draw", 0, 0)
    page = render(sources, errors, title=title)
    with replacing(output) as handle:
        page_bytes = handle.write(page.encode())
    return ReportMade(page_bytes=page_bytes, notes=tuple(notes))


def _errors(file: PackedFile, checkpoint: Path) -> "Sequence[TensorError]":
    """Errors of a packed file's tensors against the checkpoint that it was made of.

    Raises:
        GptpackError: it was made of another one, or one of the two cannot be read.
    """
    from gptpack.inspection.compare import read_weights
    from gptpack.jobs.verify import checkpoint_errors

    (found,) = checkpoint_errors([read_weights(file.report.path)], checkpoint)
    if found.caution:
        raise GptpackError(found.caution)
    return found.tensors
