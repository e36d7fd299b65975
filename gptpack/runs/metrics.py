"""A run's metrics.jsonl -> one dictionary of numbers for each step."""

import json
from pathlib import Path
from typing import Any

from gptpack.errors import DataError
from gptpack.inputs import read_text


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line that was cut is left out.

    Raises:
        DataError: it cannot be read, or a line of it is not a step's.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the run's metrics: {error}") from error
    steps: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise DataError(f"{path}: line {number} is not JSON") from error
        numbers = entry.values() if isinstance(entry, dict) else ("",)
        if not all(map(_is_finite, numbers)) or "step" not in entry:
            raise DataError(f"{path}: line {number} is not of a step: {line[:80]!r}")
        steps.append(entry)
    return steps


def _is_finite(value: Any) -> bool:
    """Whether a value is a number that fits into a float."""
    return type(value) in (int, float) and abs(value) < 1e300
