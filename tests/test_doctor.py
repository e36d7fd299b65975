"""`gptpack doctor` and completion: what this machine has, tried and not believed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptpack.cli import main
from gptpack.jobs import environment
from gptpack.jobs.environment import REMEDIES, TASKS, Finding, abilities, survey

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> int:
    try:
        main.run(list(arguments))
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in survey(ROOT)}


def test_what_the_tests_need_works_here(findings):
    for name in ("python", "numpy", "torch", "numba", "codec zlib", "codec zstd"):
        assert findings[name].works, findings[name]
    able = {ability.task: ability for ability in abilities(findings.values())}
    for task in ("check", "inspect", "verify", "train", "pack", "eval"):
        assert able[task].works, able[task]


def test_the_help_names_every_task(capsys):
    assert run("doctor", "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    named = said.partition("exit status is 4: ")[2].partition(".")[0].split(", ")
    assert sorted(named) == sorted(TASKS)


def test_every_task_needs_things_that_are_looked_for_and_can_be_mended(findings):
    for needed in TASKS.values():
        for name in needed:
            assert name in findings
            assert name in REMEDIES


def test_what_does_not_work_says_why_and_what_to_do(monkeypatch):
    monkeypatch.setattr(environment, "MODULES", ("nosuchmodule", "numpy"))
    monkeypatch.setitem(environment.REMEDIES, "nosuchmodule", "pip install nosuchmodule")
    found = {finding.name: finding for finding in survey(ROOT)}
    assert not found["nosuchmodule"].works
    assert found["nosuchmodule"].found == "not installed; pip install nosuchmodule"
    assert found["numpy"].works


def test_a_broken_module_is_no_crash(monkeypatch, tmp_path):
    (tmp_path / "brokenmodule.py").write_text("raise OSError('libbroken.so: no such file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(environment, "MODULES", ("brokenmodule",))
    found = {finding.name: finding for finding in survey(ROOT)}
    assert found["brokenmodule"].found == "OSError: libbroken.so: no such file"


def test_a_codec_that_does_not_give_back_its_bytes_does_not_work(monkeypatch):
    class Lossy:
        name = "lossy"

        def encode(self, raw: bytes) -> bytes:
            return raw[1:]

        def decode(self, stored: bytes, raw_bytes: int) -> bytes:
            return stored

    monkeypatch.setattr(environment, "BYTE_CODECS", (Lossy(),))
    found = {finding.name: finding for finding in survey(ROOT)}
    assert found["codec lossy"].found == "does not give back what it coded"


def test_what_was_asked_for_and_cannot_run_ends_with_status_4(monkeypatch, capsys):
    lacking = [
        Finding(name=name, works=name != "plotly", found="x", remedy=REMEDIES.get(name, ""))
        for name in {need for needs in TASKS.values() for need in needs}
    ]
    monkeypatch.setattr("gptpack.cli.doctor.survey", lambda folder: lacking)
    assert run("doctor", "pack") == 0
    assert run("doctor") == 0
    capsys.readouterr()
    assert run("doctor", "pack", "report") == 4
    captured = capsys.readouterr()
    assert captured.err == (
        "try what is here ...\n"
        "gptpack: this machine cannot run report; it needs plotly: pip install 'gptpack[report]'\n"
    )
    assert "report" in captured.out
    assert run("doctor", "nosuchtask") == 2


def test_json_has_findings_and_tasks(capsys):
    assert run("doctor", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in values["findings"]} >= {"python", "disk", "torch", "cuda"}
    assert {row["task"] for row in values["tasks"]} == set(TASKS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_names_the_variable_it_asks_through(shell, capsys):
    assert run("completion", shell) == 0
    assert f"{main.COMPLETE}={shell}_complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("gptpack ver", {"verify"}), ("gptpack check --max-b", {"--max-bpb", "--max-bytes-rise"})],
)
def test_completion_answers_what_could_come_next_without_torch(words, wanted):
    code = (
        "import sys\nfrom gptpack.cli.main import run\n"
        "try: run([])\nfinally: sys.exit('torch' in sys.modules)"
    )
    environment = {
        **os.environ,
        main.COMPLETE: "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert wanted <= {line.partition(",")[2] for line in done.stdout.splitlines()}
