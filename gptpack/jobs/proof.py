"""A model and a file made of it -> the scores of both, each by a process that has nothing else."""

import secrets
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptpack.artifact.record import Quality
from gptpack.artifact.writer import write_atomic
from gptpack.evaluation.result import Evaluation
from gptpack.jobs.evaluate import evaluate
from gptpack.jobs.fresh import FreshEvaluation, fresh_evaluation
from gptpack.jobs.load import Loaded
from gptpack.jobs.request import PackRequest
from gptpack.progress import Progress

if TYPE_CHECKING:
    import torch


class Proof:
    """The unpacked model is scored once, on CUDA while the packer works; files as they are made.

    The process for the first file then starts early too, and has everything but the file when that
    is there. On a CPU all would want the same cores, so they wait until the first file is there.
    """

    def __init__(
        self, loaded: Loaded, request: PackRequest, target: Path | None, device: "torch.device"
    ) -> None:
        """Files are scored next to where `target` will be, or among temporary files.

        A `loaded` without a path is scored in this process: no other one could make that model.
        """
        self.loaded, self.request, self.target = loaded, request, target
        self.data = None if request.data is None else Path(request.data)
        self.wanted = not request.plan and bool(self.data or request.eval_text)
        self.early = device.type == "cuda"
        self.stack = ExitStack()
        self.candidate = Path()
        self.running: FreshEvaluation | None = None
        self.waiting: FreshEvaluation | None = None
        self.found: Evaluation | None = None

    def _settings(self) -> dict[str, Any]:
        request = self.request
        return {
            "text": () if self.data else request.eval_text,
            "tokenizer": request.tokenizer,
            "eval_tokens": request.eval_tokens,
            "device": request.device,
        }

    def _start(self, path: Path, **more: Any) -> FreshEvaluation:
        settings = {**self._settings(), **more}
        return self.stack.enter_context(fresh_evaluation(path, self.data, quiet=True, **settings))

    def _of_model(self, path: Path) -> FreshEvaluation:
        return self._start(path, model=self.loaded.told)

    def _of_file(self, *, wait: bool) -> FreshEvaluation:
        return self._start(self.candidate, stride=self.request.stride, wait=wait)

    def __enter__(self) -> "Proof":
        if not self.wanted:
            return self
        tempfile.gettempdir()  # a machine without one should say so before the work, not after it
        if self.target is None:
            folder = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="gptpack-"))
            self.target = Path(folder) / "file"
        # a name of its own: two packs to one target must not prove each other's file
        self.candidate = self.target.with_name(f".gptpack-{secrets.token_hex(8)}.unproved")
        if self.early:
            if self.loaded.path is not None:
                self.running = self._of_model(self.loaded.path)
            self.waiting = self._of_file(wait=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def before(self, progress: Progress) -> Evaluation:
        """What the unpacked model scores; one that is in memory alone is scored in this process.

        Raises:
            GptpackError: the evaluation failed.
        """
        if self.found is None:
            progress("score the checkpoint", 0, 0)
            if self.loaded.path is None:
                settings = self._settings()
                settings.pop("device")
                self.found = evaluate(self.loaded, self.data, **settings)
            else:
                self.running = self.running or self._of_model(self.loaded.path)
                self.found = self.running.result(progress, "score the checkpoint")
        return self.found

    def of(self, file: bytes, *, progress: Progress) -> tuple[Evaluation, Evaluation] | None:
        """Scores before and after packing, of a file that does not have its final name yet.

        None where there is no text to prove it on.
        """
        if not self.wanted:
            return None
        before = self.before(progress)
        candidate = self.candidate
        made = [folder for folder in candidate.parents if not folder.exists()]
        try:
            write_atomic(candidate, file)
            progress("score the file", 0, 0)
            after = (self.waiting or self._of_file(wait=False)).result(progress, "score the file")
            self.waiting = None
        finally:
            with suppress(OSError):
                candidate.unlink()
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
        return before, after


def quality(before: Evaluation, after: Evaluation) -> Quality:
    """What the header says of the file's worth."""
    return Quality(
        bpb_before=round(before.plain.bpb, 6),
        bpb_after=round(after.plain.bpb, 6),
        context=after.plain.context,
        tokens=after.plain.tokens,
    )
