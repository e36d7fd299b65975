"""Scores of a checkpoint and of the file made of it, each by a process that has nothing else."""

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from gptpack.cli.fresh import FreshEvaluation, evaluate_in_fresh_process, fresh_evaluation
from gptpack.progress import Progress


class Proof:
    """The checkpoint is scored once, on CUDA while the packer works; files as they are made.

    On a CPU both would want the same cores, so the checkpoint waits until the first file is there.
    """

    def __init__(
        self,
        checkpoint: Path,
        data: Path | None,
        *,
        model: str | None,
        early: bool,
        **settings: Any,
    ) -> None:
        """`data` None proves nothing; `settings` are those of `fresh_evaluation`."""
        self.checkpoint, self.data, self.model = checkpoint, data, model
        self.settings, self.early = settings, early
        self.stack = ExitStack()
        self.running: FreshEvaluation | None = None
        self.found: dict[str, Any] | None = None

    def _start(self, data: Path) -> FreshEvaluation:
        return self.stack.enter_context(
            fresh_evaluation(self.checkpoint, data, model=self.model, quiet=True, **self.settings)
        )

    def __enter__(self) -> "Proof":
        if self.early and self.data is not None:
            self.running = self._start(self.data)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def before(self, progress: Progress) -> dict[str, Any]:
        """What the checkpoint scores.

        Raises:
            GptpackError: the evaluation failed.
        """
        assert self.data is not None
        if self.found is None:
            progress("score the checkpoint", 0, 0)
            self.running = self.running or self._start(self.data)
            self.found = self.running.result()
        return self.found

    def of(
        self, file: bytes, target: Path, *, progress: Progress, stride: int | None = None
    ) -> dict[str, Any]:
        """Scores ``before`` and ``after`` of a file that does not have its final name `target` yet.

        Nothing where there is no data to prove it on.
        """
        from gptpack.artifact.writer import write_atomic

        if self.data is None:
            return {}
        before = self.before(progress)
        candidate = target.with_name(f".{target.name}.unproved")
        made = [folder for folder in candidate.parents if not folder.exists()]
        try:
            write_atomic(candidate, file)
            progress("score the file", 0, 0)
            after = evaluate_in_fresh_process(
                candidate, self.data, stride=stride, quiet=True, **self.settings
            )
        finally:
            with suppress(OSError):
                candidate.unlink()
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
        return {"before": before, "after": after}
