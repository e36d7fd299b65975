"""README.md and docs/tutorial-huggingface.md, run as they are written, on a tiny model.

Two things on the pages are anybody's choice: the folder, which stands here under the name that they
have, and the size.
"""

import re
import shlex
from pathlib import Path

import pytest
from hugging import SAID, make_folder
from worlds import invoke

ROOT = Path(__file__).parent.parent
README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial-huggingface.md"
FOLDER = "SmolLM2-135M-Instruct"
SIZE, OURS = "50MB", "40KB"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
ELSEWHERE = ("make", "pip")
"""Programs whose lines other tests run, or the machine that runs this one."""


def steps(text: str) -> list[tuple[str, str]]:
    """The kind and the text of each block, in order."""
    found = re.findall(r"```python\n(.*?)```|((?:^    [^\n]*\n)+)", text, re.M | re.S)
    return [("python", python) if python else ("shell", shell) for python, shell in found]


def run(page: Path, capfd: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    """Run all blocks of a page here; returns what each command printed when it ran last."""
    make_folder(Path(FOLDER), "llama", TEMPLATE)
    Path("train.txt").write_text(SAID * 30, encoding="utf-8")
    Path("val.txt").write_text(SAID.upper() * 10, encoding="utf-8")
    printed = {}
    for kind, block in steps(page.read_text(encoding="utf-8").replace(SIZE, OURS)):
        if kind == "python":
            exec(compile(block, page.name, "exec"), {})
            printed["python"] = capfd.readouterr()
            continue
        for line in block.splitlines():
            program, *words = shlex.split(line)
            if program == "demo":
                break  # what the demo prints
            assert program in ("gptpack", *ELSEWHERE), line
            if program == "gptpack":
                assert invoke(*words) == 0, line
                printed[words[0]] = capfd.readouterr()
    return printed


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(tmp_path, monkeypatch, capfd):
    text = TUTORIAL.read_text(encoding="utf-8")
    for said in (FOLDER, SIZE):
        assert f"`{said}`" in text  # the page says what may be exchanged
    monkeypatch.chdir(tmp_path)
    printed = run(TUTORIAL, capfd)
    assert Path("smol.gptpack").stat().st_size <= 40_000
    assert "same top token" in printed["eval"].out
    assert "smol.gguf is unpacked: " in printed["unpack"].err
    made = {path.name for path in Path().iterdir()}
    assert {"smol-packed", "smol-plain", "smol.gguf"} <= made


@pytest.mark.slow
def test_the_readme_runs_as_it_is_written(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    printed = run(README, capfd)
    assert "sliding, stride 16" in printed["python"].out
    assert "LlamaForCausalLM" in printed["python"].out
    made = {path.name for path in Path().iterdir()}
    assert {"smol.gptpack", "small.gptpack", "folder", "plain", "smol.gguf", "site"} <= made
