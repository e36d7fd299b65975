"""docs/tutorial-huggingface.md, run as it is written, on a tiny model.

Two things on the page are anybody's choice, and said to be: the folder, which stands here under the
name that the page has, and the size.
"""

import re
import shlex
from pathlib import Path

import pytest
from hugging import SAID, make_folder
from worlds import invoke

PAGE = Path(__file__).parent.parent / "docs" / "tutorial-huggingface.md"
FOLDER = "SmolLM2-135M-Instruct"
SIZE, OURS = "50MB", "40KB"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def steps(text: str) -> list[tuple[str, str]]:
    """The kind and the text of each block, in order."""
    found = re.findall(r"```python\n(.*?)```|((?:^    [^\n]*\n)+)", text, re.M | re.S)
    return [("python", python) if python else ("shell", shell) for python, shell in found]


@pytest.mark.slow
def test_the_page_runs_as_it_is_written(tmp_path, monkeypatch, capfd):
    text = PAGE.read_text(encoding="utf-8")
    for said in (FOLDER, SIZE):
        assert f"`{said}`" in text  # the page says what may be exchanged
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / FOLDER, "llama", TEMPLATE)
    Path("train.txt").write_text(SAID * 30, encoding="utf-8")
    Path("val.txt").write_text(SAID.upper() * 10, encoding="utf-8")
    printed = {}
    for kind, block in steps(text.replace(SIZE, OURS)):
        if kind == "python":
            exec(compile(block, PAGE.name, "exec"), {})
            continue
        for line in block.splitlines():
            program, *words = shlex.split(line)
            assert program in ("pip", "gptpack")
            if program == "gptpack":
                assert invoke(*words) == 0, line
                printed[words[0]] = capfd.readouterr()
    assert Path("smol.gptpack").stat().st_size <= 40_000
    assert "same top token" in printed["eval"].out
    assert "smol.gguf is unpacked: " in printed["unpack"].err
    made = {path.name for path in Path().iterdir()}
    assert {"smol-packed", "smol-plain", "smol.gguf"} <= made
