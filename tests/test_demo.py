"""The demo, whole, with a few seconds of training: what `make demo` promises its first reader."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run_demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`gptpack demo` as a process of its own, without a terminal."""
    command = [sys.executable, "-m", "gptpack", "demo", "--output", str(folder), *options]
    return subprocess.run(
        command,
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_the_demo_ends_with_a_file_within_its_budget_and_proves_it(tmp_path):
    folder = tmp_path / "demo"
    done = run_demo(folder, "--seconds", "5", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    packed = Path(result["file"])
    assert packed.stat().st_size == result["bytes"] <= result["budget_bytes"]
    assert result["headroom_bytes"] == result["budget_bytes"] - result["bytes"]
    # Chance is log2(1024) bits for about 2.4 bytes, 4.1; a busy machine learns little in 5 seconds.
    assert 0 < result["bpb"] < 6
    assert abs(result["bpb"] - result["bpb_before"]) < 0.1
    assert result["sliding_bpb"] > 0
    for command in ("data tokenizer", "data tokenize", "train", "pack"):
        assert f"$ gptpack {command} " in done.stderr
    assert "$ python -m gptpack eval" in done.stderr
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("options", [("--seconds", "many"), ("--budget", "many")])
def test_the_demo_says_what_is_wrong_with_its_options_before_it_starts(tmp_path, options):
    done = run_demo(tmp_path / "demo", *options)
    assert done.returncode == 2
    assert "many" in done.stderr
    assert not (tmp_path / "demo").exists()
