"""The pages of the documentation -> their blocks, run here as they are written.

Commands of gptpack run in this process; what spreads over processes, or waits for visitors, runs in
its own.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hugging import SAID, make_folder
from worlds import invoke

ROOT = Path(__file__).parent.parent
ELSEWHERE = ("make", "pip", "gptpack data download")
"""Beginnings of lines that other tests run, or the machine that runs this one."""
FOLDER = "SmolLM2-135M-Instruct"
"""The model that the pages name."""
SIZE, OURS = "50MB", "40KB"
"""The size that the pages name, and what it is here."""
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """The kind and the text of each block, in order."""
    found = re.findall(r"```(python|toml|yaml)\n(.*?)```|((?:^    [^\n]*\n)+)", text, re.M | re.S)
    return [(kind or "shell", fenced or shell) for kind, fenced, shell in found]


def lines(shell: str) -> list[str]:
    """The commands of a block of shell, loops written out."""

    def unrolled(loop: re.Match[str]) -> str:
        name, words, body = loop.groups()
        return "".join(body.replace(f"${name}", word) for word in words.split())

    joined = re.sub(r"^    ", "", shell.replace("\\\n", " "), flags=re.M)
    joined = re.sub(r"^for (\w+) in ([^;]*); do\n(.*?)^done$", unrolled, joined, flags=re.M | re.S)
    return [line.strip() for line in joined.splitlines() if line.strip()]


def run(
    text: str,
    capfd: Any,
    *,
    names: dict[str, Any] | None = None,
    statuses: Mapping[str, int] | None = None,
) -> dict[str, tuple[str, str]]:
    """Run all blocks of a page here; returns what each command printed when it ran last.

    Args:
        names: what blocks of Python find, and leave.
        statuses: exit statuses of commands that do not end with 0, by how their lines begin.
    """
    printed = {}
    names = {} if names is None else names
    for kind, block in blocks(text):
        if kind == "python":
            exec(compile(block, "a block of the page", "exec"), names)
            printed["python"] = capfd.readouterr()
        elif kind == "toml":
            Path("gptpack.toml").write_text(block, encoding="utf-8")
        elif kind == "shell":
            for line in lines(block):
                if line == "demo" or line.startswith("parameters  "):
                    break  # what the demo prints
                wanted = [s for start, s in (statuses or {}).items() if line.startswith(start)]
                assert command(line) == sum(wanted), line
                printed[line.split()[0 if line.startswith("torchrun") else 1]] = capfd.readouterr()
    return printed


def command(line: str) -> int:
    """The exit status of a line of shell: one program, perhaps with a file for what it prints."""
    if line.startswith(ELSEWHERE):
        return 0
    line, _, output = line.partition(" > ")
    program, *words = shlex.split(line)
    if program == "python" and words[0] == "-c":
        exec(compile(words[1], line, "exec"), {})
        return 0
    if program == "python" and words[:2] == ["-m", "http.server"]:
        return served(words)
    if program == "torchrun":
        paths = (str(ROOT), os.environ.get("PYTHONPATH"))
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return done.returncode
    assert program == "gptpack", line
    if not output:
        return invoke(*words)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = invoke(*words)
    Path(output).write_text(printed.getvalue(), encoding="utf-8")
    return status


def served(words: list[str]) -> int:
    """Start a server that says its address, and visit it."""
    process = subprocess.Popen(
        [sys.executable, "-u", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        (address,) = re.findall(r"\((http://.*?/)\)", process.stdout.readline())
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b"<title>" in answer.read()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    return 0


def hugging_face() -> None:
    """Put the folder and the texts here that the pages name."""
    make_folder(Path(FOLDER), "llama", TEMPLATE)
    Path("train.txt").write_text(SAID * 30, encoding="utf-8")
    Path("val.txt").write_text(SAID.upper() * 10, encoding="utf-8")


def shell(folder: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script as GitHub's runners do, in `folder`, with our `python` and `gptpack`."""
    binary = folder / "bin"
    binary.mkdir(exist_ok=True)
    for name, what in (("python", ""), ("gptpack", "-m gptpack")):
        # a link to Python would not be of the environment that the tests are in
        (binary / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {what} "$@"\n')
        (binary / name).chmod(0o755)
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env={
            **os.environ,
            **environment,
            "PATH": f"{binary}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def action(folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run the check step of our GitHub action in `folder`, as a workflow with these inputs does."""
    found = yaml.safe_load(page("action.yml"))
    values = {name: entry["default"] for name, entry in found["inputs"].items()} | inputs
    (step,) = [step for step in found["runs"]["steps"] if step.get("id") == "check"]
    environment = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: values[match[1]], text)
        for name, text in step["env"].items()
    }
    return shell(
        folder,
        step["run"],
        **environment,
        GITHUB_ACTIONS="true",
        GITHUB_OUTPUT=str(folder / "output"),
        GITHUB_STEP_SUMMARY=str(folder / "summary.md"),
    )
