"""The GitHub Action and this repository's workflow, as far as they run without GitHub."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import action
from strategies import MODEL, TOKENIZER, example_tensors, write_artifact

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
STEPS = {step.get("id") or step.get("name"): step for step in ACTION["runs"]["steps"]}


@pytest.fixture
def check(tmp_path):
    """Runs the action's check step with inputs: status and output."""

    def run(**inputs: str) -> tuple[int, str]:
        done = action(tmp_path, **inputs)
        return done.returncode, done.stdout + done.stderr

    return run


def artifact(path: Path, **pack: Any) -> int:
    write_artifact(
        path, model=MODEL, tokenizer=TOKENIZER, tensors=example_tensors(), pack=pack, codecs="zlib"
    )
    return path.stat().st_size


def test_the_action_checks_the_table_and_leaves_its_reports(check, tmp_path):
    artifact(tmp_path / "m.gptpack")
    table = "[[check.artifact]]\npath = 'm.gptpack'\nbudget = '1MB'\nmax_bytes_rise = '10B'\n"
    (tmp_path / "gptpack.toml").write_text(table)
    status, out = check(baseline="main.json", junit="junit.xml")
    assert status == 0, out
    assert "no baseline yet: main.json" in out
    assert (tmp_path / "output").read_text() == "report=gptpack-check.json\n"
    assert "1 passed" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "junit.xml").exists()
    (tmp_path / "gptpack-check.json").rename(tmp_path / "main.json")
    artifact(tmp_path / "m.gptpack", note="".join(str(i * i) for i in range(500)))
    status, out = check(baseline="main.json")
    assert status == 1
    assert "::error file=m.gptpack" in out


def test_files_and_options_may_be_given_in_place_of_a_table(check, tmp_path):
    size = artifact(tmp_path / "a model; echo pwned.gptpack")
    (tmp_path / "$(echo pwned).gptpack").write_bytes(b"")
    files = "a model; echo pwned.gptpack\n$(echo pwned).gptpack\n"
    status, out = check(files=files, options=f"--budget {size}")
    assert status == 3, out
    report = json.loads((tmp_path / "gptpack-check.json").read_text())
    assert [row["passed"] for row in report["artifacts"]] == [True, False]
    assert "\npwned" not in out
    assert check(options="--nosuch")[0] == 2


def test_no_text_of_an_input_is_part_of_a_script():
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        assert "run" not in step or step["shell"] == "bash"
    named = re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text())
    assert set(named) == set(ACTION["inputs"])
    for job in WORKFLOW["jobs"].values():
        for step in job["steps"]:
            assert "${{" not in step.get("run", "")


def test_the_light_installation_has_what_check_needs():
    # tests/test_check.py blocks every other package and runs the command.
    assert '"${pip[@]}" click numpy rich zstandard' in STEPS["Install gptpack"]["run"]


def test_this_repositorys_workflow_uses_the_action_on_the_demos_file():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in WORKFLOW[True]
    steps = WORKFLOW["jobs"]["gate"]["steps"]
    (action,) = [step for step in steps if step.get("uses") == "./"]
    assert set(action["with"]) <= set(ACTION["inputs"])
    uploaded = [s for s in WORKFLOW["jobs"]["demo"]["steps"] if "upload" in s.get("uses", "")]
    assert "demo/demo.gptpack" in uploaded[0]["with"]["path"]
    assert action["with"]["baseline"] in [s.get("with", {}).get("path") for s in steps]
