"""A packed file, and perhaps a checkpoint -> everything verified, and the error of each tensor."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gptpack.errors import CheckpointError
from gptpack.escape import plain
from gptpack.families.golf.config import ModelConfig
from gptpack.inspection.compare import WeightErrors, Weights, read_weights, weight_errors
from gptpack.inspection.verify import VerifyReport, report_on_weights
from gptpack.progress import Progress, silent


def verify(
    path: str | Path,
    checkpoint: str | Path | None = None,
    *,
    limit_bytes: int | None = None,
    progress: Progress = silent,
) -> VerifyReport:
    """Verify all of a packed file: every checksum, a full decode, the hash of its weights.

    Needs no torch, unless there is a checkpoint to compare the weights with.

    Args:
        limit_bytes: memory that decoding a packed file may take, see
            `gptpack.artifact.reader.read_artifact`; None takes what is free on this machine.

        >>> report = gptpack.verify("model.gptpack", checkpoint="checkpoint.pt")
        >>> report.errors.relative < 0.5
        True

    Raises:
        GptpackError: there is no regular file that can be read, or the checkpoint has other
            tensors.
        ArtifactError: something in it is not what a checksum, the format or its header says.
        CheckpointError: the checkpoint is unreadable, or some of its weights are not finite.
        MissingDependencyError: a section's codec is not installed, or memory does not suffice.
    """
    progress("verify and decode", 0, 0)
    began = time.perf_counter()
    file = read_weights(path, limit_bytes)
    report = report_on_weights(file, time.perf_counter() - began)
    if checkpoint is None:
        return report
    progress("compare", 0, 0)
    (errors,) = checkpoint_errors([file], Path(checkpoint))
    return replace(report, errors=errors)


def checkpoint_errors(files: Sequence[Weights], checkpoint: Path) -> list[WeightErrors]:
    """The errors of each file's weights against a checkpoint that it may have been made of.

    Raises:
        GptpackError: the checkpoint has other tensors than a file.
        CheckpointError: it is unreadable, or some of its weights are not finite.
    """
    from gptpack.jobs.load import is_packed, load

    if is_packed(checkpoint):
        raise CheckpointError(f"{checkpoint}: a packed file; give the checkpoint it was made of")
    told = files[0].header.model if files[0].header.family == "golf" else None
    loaded = load(checkpoint, model=told if isinstance(told, ModelConfig) else None)
    reference = {name: tensor.numpy() for name, tensor in loaded.runnable().weights().items()}
    found = []
    for file in files:
        made_of = file.header.record.checkpoint_sha256
        caution = ""
        if made_of is not None and made_of != loaded.sha256:
            caution = (
                f"{file.path}: made of another checkpoint than {checkpoint}, the one with SHA-256 "
                f"{plain(made_of, 16)}..."
            )
        found.append(weight_errors(file, reference, checkpoint, caution))
    return found
