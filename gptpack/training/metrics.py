"""Figures of each step -> ``metrics.jsonl``."""

import json
from pathlib import Path

from gptpack.atomic import replacing
from gptpack.errors import TrainingError
from gptpack.inputs import read_text


class Metrics:
    """A file with one JSON line per step, flushed as it is written."""

    def __init__(self, path: Path, step: int) -> None:
        """Keep the lines up to `step` of a run that is resumed; start anew at step 0.

        Raises:
            TrainingError: the file cannot be written.
        """
        kept = []
        if step and path.exists():
            for line in read_text(path, "replace").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    # a process that was killed wrote this line, and no further one
                    break
        with replacing(path, TrainingError) as file:
            file.write("".join(kept).encode())
        self.file = path.open("a", encoding="utf-8")

    def write(self, **values: float) -> None:
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()
