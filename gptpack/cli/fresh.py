"""Evaluation in a process of its own, which has nothing but the file."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gptpack.errors import ArtifactError, GptpackError, MissingDependencyError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
_ERRORS: dict[int, type[GptpackError]] = {3: ArtifactError, 4: MissingDependencyError}


def evaluate_in_fresh_process(
    path: Path,
    data: Path,
    *,
    tokenizer: Path | None = None,
    model: str | None = None,
    stride: int | None = None,
    limit_tokens: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """What ``gptpack eval PATH --data DATA ... --json`` finds, as its JSON.

    Raises:
        GptpackError: the evaluation failed; says what it said.
    """
    with tempfile.TemporaryDirectory(prefix="gptpack-") as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, "-m", "gptpack", "eval", str(path), "--data", str(data)]
        command += ["--device", device, "--output", str(output)]
        if tokenizer is not None:
            command += ["--tokenizer", str(tokenizer)]
        if model is not None:
            command += ["--model", model]
        if stride is not None:
            command += ["--stride", str(stride)]
        if limit_tokens:
            command += ["--limit-tokens", str(limit_tokens)]
        environment = {name: text for name, text in os.environ.items() if name not in TORCHRUN}
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if quiet else None,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stderr or "").strip().splitlines()
            error = _ERRORS.get(done.returncode, GptpackError)
            raise error(
                f"{path}: evaluation in a fresh process ended with status {done.returncode}"
                + (f": {said[-1]}" if said else "")
            )
        result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return result
