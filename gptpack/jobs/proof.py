"""Scores of a checkpoint and of the file made of it, each by a process that has nothing else."""

import secrets
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from gptpack.errors import ConfigError
from gptpack.families.golf.config import ModelConfig
from gptpack.jobs.fresh import FreshEvaluation, fresh_evaluation
from gptpack.progress import Progress


def check_proof(
    data: Path | None, model: ModelConfig, *, stride: int | None, limit_tokens: int
) -> None:
    """Whether a file can be proved on `data`, asked before it is made; None proves nothing.

    Raises:
        GptpackError: it cannot.
    """
    from gptpack.data.shards import Shard, find_shards
    from gptpack.evaluation.windows import plan_windows

    if data is None:
        return
    context = model.context
    if 0 < limit_tokens < context:
        raise ConfigError(
            f"--eval-tokens {limit_tokens:,}: whole contexts of {context:,} tokens are scored; "
            "ask for that many at least, or 0 for all"
        )
    tokens = sum(len(Shard.open(path, model.vocab).tokens) for path in find_shards(data, "val"))
    for step in {None, stride}:
        plan_windows(tokens, context=context, stride=step, limit_tokens=limit_tokens)


class Proof:
    """The checkpoint is scored once, on CUDA while the packer works; files as they are made.

    The process for the first file then starts early too, and has everything but the file when that
    is there. On a CPU all would want the same cores, so they wait until the first file is there.
    """

    def __init__(
        self,
        checkpoint: Path,
        data: Path | None,
        target: Path,
        *,
        model: str | None,
        stride: int | None,
        early: bool,
        **settings: Any,
    ) -> None:
        """Files are scored next to where `target` will be.

        `data` None proves nothing; `settings` are those of `fresh_evaluation`.
        """
        self.checkpoint, self.data, self.model = checkpoint, data, model
        # a name of its own: two packs to one target must not prove each other's file
        self.candidate = target.with_name(f".gptpack-{secrets.token_hex(8)}.unproved")
        self.stride, self.settings, self.early = stride, settings, early
        self.stack = ExitStack()
        self.running: FreshEvaluation | None = None
        self.waiting: FreshEvaluation | None = None
        self.found: dict[str, Any] | None = None

    def _start(self, data: Path) -> FreshEvaluation:
        return self.stack.enter_context(
            fresh_evaluation(self.checkpoint, data, model=self.model, quiet=True, **self.settings)
        )

    def __enter__(self) -> "Proof":
        if self.early and self.data is not None:
            self.running = self._start(self.data)
            self.waiting = self._of_file(self.data, wait=True)
        return self

    def _of_file(self, data: Path, *, wait: bool) -> FreshEvaluation:
        return self.stack.enter_context(
            fresh_evaluation(
                self.candidate, data, stride=self.stride, quiet=True, wait=wait, **self.settings
            )
        )

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

    def of(self, file: bytes, *, progress: Progress) -> dict[str, Any]:
        """Scores ``before`` and ``after`` of a file that does not have its final name yet.

        Nothing where there is no data to prove it on.
        """
        from gptpack.artifact.writer import write_atomic

        if self.data is None:
            return {}
        before = self.before(progress)
        candidate = self.candidate
        made = [folder for folder in candidate.parents if not folder.exists()]
        try:
            write_atomic(candidate, file)
            progress("score the file", 0, 0)
            after = (self.waiting or self._of_file(self.data, wait=False)).result()
            self.waiting = None
        finally:
            with suppress(OSError):
                candidate.unlink()
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
        return {"before": before, "after": after}
