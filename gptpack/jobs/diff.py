"""Two packed files -> what differs between them, by their headers unless more is asked for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptpack.inspection.compare import read_weights, weight_errors
from gptpack.inspection.diff import DiffReport, diff_reports
from gptpack.inspection.inspect import inspect
from gptpack.jobs.verify import checkpoint_errors


def diff(
    before: str | Path,
    after: str | Path,
    *,
    weights: bool = False,
    checkpoint: str | Path | None = None,
    data: str | Path | None = None,
    text: Sequence[str | Path] = (),
    **settings: Any,
) -> DiffReport:
    """Show what differs between two packed files.

    Only headers are read, without torch, unless more is asked for.

        >>> report = diff("main.gptpack", "branch.gptpack")
        >>> report.change_bytes == report.after.file_bytes - report.before.file_bytes
        True

    Args:
        weights: decode both files and measure how far their weights are apart.
        checkpoint: decode both files and measure their errors against this checkpoint.
        data: folder of validation shards to score both files on, each in a fresh process.
        text: files of text to score them on, of models that bring their tokenizer.
        settings: settings of `gptpack.jobs.fresh.fresh_evaluation`.

    Raises:
        GptpackError: a file cannot be read, the tensors are not the same, or an evaluation failed.
        ArtifactError: a preamble or header is corrupt, or something that was decoded.
        CheckpointError: the checkpoint is unreadable, or some of its weights are not finite.
    """
    decode = weights or checkpoint is not None
    report = diff_reports(inspect(before, decode=decode), inspect(after, decode=decode))
    if decode:
        first, second = read_weights(before), read_weights(after)
        if weights:
            report = replace(report, weights=weight_errors(second, first.values, before))
        if checkpoint is not None:
            errors = checkpoint_errors([first, second], Path(checkpoint))
            report = replace(report, errors=(errors[0], errors[1]))
    if data is not None or text:
        from gptpack.jobs.fresh import evaluate_in_fresh_process

        paths = (Path(before), Path(after))
        settings |= {"data": None if data is None else Path(data), "text": text}
        scores = [evaluate_in_fresh_process(path, **settings).best for path in paths]
        report = replace(report, measured=(scores[0], scores[1]))
    return report
