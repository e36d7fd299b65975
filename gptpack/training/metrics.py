"""What a run writes down while it trains."""

import json
from pathlib import Path


class Metrics:
    """One JSON line per step, flushed as it is written."""

    def __init__(self, path: Path, step: int) -> None:
        """Keep the lines up to `step` of a run that is resumed; start anew at step 0."""
        kept = []
        if step and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    break
                if entry["step"] <= step:
                    kept.append(line + "\n")
        self.file = path.open("w", encoding="utf-8")
        self.file.writelines(kept)

    def write(self, **values: float) -> None:
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()
