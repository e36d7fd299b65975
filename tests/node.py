"""The browser's code, asked under node: what the tests of web/ share."""

import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

WEB = Path(__file__).parent.parent / "web"
SCRIPT = Path(__file__).parent / "web_node.mjs"
SECONDS = 300

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")


def ask(requests: Iterable[dict[str, Any]]) -> list[Any]:
    """The answers of web_node.mjs to `requests`, all by one process."""
    lines = "".join(json.dumps(request, default=str) + "\n" for request in requests)
    done = subprocess.run(
        ["node", str(SCRIPT)],
        input=lines,
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.split("\n")[:-1]]
    assert len(answers) == lines.count("\n"), done.stderr
    return answers
