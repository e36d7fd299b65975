"""Where nothing can be written but the output, or not even that: it works, or one line says why."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from worlds import corpus, invoke, tiny

from gptpack.data import encode
from gptpack.families.golf.gpt import GPT
from gptpack.training.checkpoint import Checkpoint, save_checkpoint

ROOT = Path(__file__).parent.parent
SCRIPT = """\
import resource, sys
from gptpack.compiled import compiled
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
@compiled()
def double(x):
    return 2 * x
print(double(21))
"""


@pytest.mark.parametrize("disk", ["full", "no place"])
def test_what_is_compiled_needs_no_place_on_the_disk(disk: str, tmp_path: Path) -> None:
    script, home = tmp_path / "script.py", tmp_path / "home"
    script.write_text(SCRIPT)
    if disk == "full":
        home.mkdir()
    else:  # no folder can be made below a file, for the user or beside the script
        home.touch()
        (tmp_path / "__pycache__").touch()
    done = subprocess.run(
        [sys.executable, "-B", str(script), disk],
        env={"PYTHONPATH": str(ROOT), "HOME": str(home), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file"), NotImplementedError(), ImportError()]
)
def test_without_semaphores_one_process_tokenizes(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat\n\x1e\nthe dog ate it")
    words = ["data", "tokenize", "--val", str(text), "--tokenizer", str(corpus().tokenizer.path)]
    assert invoke(*words, "--output", str(tmp_path / "one"), "--workers", "1") == 0

    def none(*_: object) -> None:
        raise error

    monkeypatch.setattr(encode, "ProcessPoolExecutor", none)
    assert invoke(*words, "--output", str(tmp_path / "two"), "--workers", "2") == 0
    one, two = ({f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two


def test_without_a_temporary_folder_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("model.vocab=280").model
    source = tmp_path / "c.pt"
    save_checkpoint(source, Checkpoint(model=config, weights=GPT(config, seed=0).state_dict()))

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    output = tmp_path / "m.gptpack"
    words = ["--budget", "1MB", "--data", str(corpus().data), "-o", str(output), "--device", "cpu"]
    assert invoke("pack", str(source), *words) == 2
    assert "No usable temporary directory" in capsys.readouterr().err.splitlines()[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]
