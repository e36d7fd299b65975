"""A path and shards -> the `Evaluation` of a process of its own, which has nothing but those."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gptpack.errors import error_of
from gptpack.evaluation.result import Evaluation
from gptpack.progress import Progress, silent

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


def alone() -> dict[str, str]:
    """The environment without what torchrun set: of a process that is one rank of its own."""
    return {name: text for name, text in os.environ.items() if name not in TORCHRUN}


class FreshEvaluation:
    """A running ``gptpack eval``; `result` waits for it.

    One that waits for its file begins with it when its result is asked for.
    """

    def __init__(
        self, path: Path, process: "subprocess.Popen[str]", output: Path, *, waits: bool
    ) -> None:
        self.path, self.process, self.output, self.waits = path, process, output, waits
        self.progress: Progress = silent
        self.phase = ""
        self.telling = threading.Thread(target=self._relay, args=(process.stdout,), daemon=True)
        self.telling.start()
        process.stdout = None

    def _relay(self, lines: IO[str] | None) -> None:
        """Call whoever waits with what ``gptpack eval --tell`` says; a full pipe would stop it."""
        if lines is None:
            return
        with lines:
            for line in lines:
                if line.startswith('["'):
                    part, done, total = json.loads(line)
                    self.progress(f"{self.phase}: {part}", done, total)

    def result(self, progress: Progress = silent, phase: str = "score") -> Evaluation:
        """What it found.

        Args:
            progress: is called with what a process that is quiet says of where it is, each of its
                phases behind the name of `phase`.

        Raises:
            GptpackError: the evaluation failed; says what it said.
        """
        self.progress, self.phase = progress, phase
        errors = self.process.communicate("\n" if self.waits else None)[1]
        self.telling.join()
        said = (errors or "").strip().splitlines()
        if status := self.process.returncode:
            raise error_of(status)(
                f"{self.path}: evaluation in a fresh process ended with status {status}"
                + (f": {said[-1]}" if said else "")
            )
        return Evaluation.from_dict(json.loads(self.output.read_text(encoding="utf-8")))


@contextmanager
def fresh_evaluation(
    path: Path,
    data: Path | None,
    *,
    text: Sequence[str | Path] = (),
    tokenizer: Path | None = None,
    model: str | None = None,
    stride: int | None = None,
    eval_tokens: int = 0,
    device: str = "auto",
    quiet: bool = False,
    wait: bool = False,
) -> Iterator[FreshEvaluation]:
    """Start ``gptpack eval PATH --data DATA ...``; it ends with the block at the latest.

    Without `data` it scores the files of `text`.

    With `wait` it only gets ready until its result is asked for, and there need not be a PATH yet.
    Whatever torchrun set in the environment is left out: the process is one rank of its own.
    """
    with tempfile.TemporaryDirectory(prefix="gptpack-") as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, "-m", "gptpack", "eval"]
        command += ["--data", str(data)] if data is not None else []
        command += [part for each in text for part in ("--text", str(each))]
        command += ["--device", device, "--output", str(output), "--no-compressors"]
        if tokenizer is not None:
            command += ["--tokenizer", str(tokenizer)]
        if model is not None:
            command += ["--model", model]
        if stride is not None:
            command += ["--stride", str(stride)]
        if wait:
            command += ["--wait"]
        if quiet:
            command += ["--tell"]
        if eval_tokens:
            command += ["--eval-tokens", str(eval_tokens)]
        command += ["--", str(path)]  # whose name may begin with a dash
        process = subprocess.Popen(
            command,
            env=alone(),
            stdin=subprocess.PIPE if wait else subprocess.DEVNULL,
            stdout=subprocess.PIPE if quiet else subprocess.DEVNULL,
            stderr=subprocess.PIPE if quiet else None,
            text=True,
        )
        try:
            yield FreshEvaluation(path, process, output, waits=wait)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stderr):
                if stream is not None:
                    stream.close()


def evaluate_in_fresh_process(path: Path, data: Path | None, **settings: Any) -> Evaluation:
    """What ``gptpack eval PATH --data DATA`` finds; settings and errors as above."""
    with fresh_evaluation(path, data, **settings) as running:
        return running.result()
