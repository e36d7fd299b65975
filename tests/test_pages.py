"""README.md and tutorials, run as they are written, on tiny models.

What the pages say is anybody's choice is chosen small here: the folder, which stands here under the
name that they have, the size, the text, and the seconds of training.
"""

import re
import shlex
from pathlib import Path

import pytest
from hugging import SAID, make_folder
from worlds import invoke

ROOT = Path(__file__).parent.parent
README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial-huggingface.md"
LAPTOP = ROOT / "docs" / "tutorial-laptop.md"
FOLDER = "SmolLM2-135M-Instruct"
SIZE, OURS = "50MB", "40KB"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
ELSEWHERE = ("make", "pip")
"""Programs whose lines other tests run, or the machine that runs this one."""


def steps(text: str) -> list[tuple[str, str]]:
    """The kind and the text of each block, in order."""
    found = re.findall(r"```(python|toml)\n(.*?)```|((?:^    [^\n]*\n)+)", text, re.M | re.S)
    return [(kind or "shell", fenced or shell) for kind, fenced, shell in found]


def run(text: str, capfd: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    """Run all blocks of a page here; returns what each command printed when it ran last."""
    printed = {}
    for kind, block in steps(text.replace("\\\n", "")):
        if kind == "python":
            exec(compile(block, "a block of the page", "exec"), {})
            printed["python"] = capfd.readouterr()
            continue
        if kind == "toml":
            Path("gptpack.toml").write_text(block, encoding="utf-8")
            continue
        for line in block.splitlines():
            program, *words = shlex.split(line)
            if program == "demo":
                break  # what the demo prints
            assert program in ("gptpack", "python", *ELSEWHERE), line
            if program == "python":
                exec(compile(words[1], line, "exec"), {})
            if program == "gptpack":
                assert invoke(*words) == 0, line
                printed[words[0]] = capfd.readouterr()
    return printed


def hugging_face() -> None:
    """Put the folder and the texts here that the pages name."""
    make_folder(Path(FOLDER), "llama", TEMPLATE)
    Path("train.txt").write_text(SAID * 30, encoding="utf-8")
    Path("val.txt").write_text(SAID.upper() * 10, encoding="utf-8")


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(tmp_path, monkeypatch, capfd):
    text = TUTORIAL.read_text(encoding="utf-8")
    for said in (FOLDER, SIZE):
        assert f"`{said}`" in text  # the page says what may be exchanged
    monkeypatch.chdir(tmp_path)
    hugging_face()
    printed = run(text.replace(SIZE, OURS), capfd)
    assert Path("smol.gptpack").stat().st_size <= 40_000
    assert "same top token" in printed["eval"].out
    assert "smol.gguf is unpacked: " in printed["unpack"].err
    made = {path.name for path in Path().iterdir()}
    assert {"smol-packed", "smol-plain", "smol.gguf"} <= made


@pytest.mark.slow
def test_the_readme_runs_as_it_is_written(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    hugging_face()
    printed = run(README.read_text(encoding="utf-8").replace(SIZE, OURS), capfd)
    assert "sliding, stride 16" in printed["python"].out
    assert "LlamaForCausalLM" in printed["python"].out
    made = {path.name for path in Path().iterdir()}
    assert {"smol.gptpack", "small.gptpack", "folder", "plain", "smol.gguf", "site"} <= made


@pytest.mark.slow
def test_the_tutorial_for_a_laptop_runs_as_it_is_written(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gptpack.jobs.demo_text.write_text", write_little)
    text = LAPTOP.read_text(encoding="utf-8")
    assert "`--set training.seconds=300`" in text  # the page says that the seconds may be others
    short = text.replace("--recipe demo ", "--recipe demo --set training.seconds=8 ")
    printed = run(short, capfd)
    assert Path("runs/first/model.gptpack").stat().st_size <= 150_000
    assert "pass" in printed["check"].out
    assert Path("report.html").stat().st_size > 100_000


def write_little(path: Path) -> None:
    """A text of 300 documents in the place of all that Python has."""
    documents = [f"{SAID} {number} {SAID.upper()}" for number in range(300)]
    path.write_text("\n\x1e\n".join(documents), encoding="utf-8")
