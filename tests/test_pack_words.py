"""What `gptpack pack` says at once, and at its end, to whoever asks for what cannot be or for more
than is needed."""

import json
import re
import shutil

import pytest
from hugging import SAID, make_folder
from worlds import folder, invoke

import gptpack
from gptpack.artifact.front import decode_header
from gptpack.errors import BudgetError
from gptpack.packing.search import FINEST


@pytest.fixture(scope="module")
def model():
    return make_folder(folder("pack words") / "m", "llama")


@pytest.fixture
def here(model, tmp_path, monkeypatch):
    """The working folder: a model `m`, a text, and a file that has none."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "m")
    (tmp_path / "train.txt").write_text(SAID * 30, encoding="utf-8")
    (tmp_path / "empty.txt").touch()
    return tmp_path


def said(capsys, *words: str) -> tuple[int, list[str]]:
    """Status and lines on stderr of `gptpack pack`."""
    status = invoke("pack", *words)
    return status, capsys.readouterr().err.splitlines()


CALIBRATED = ("m", "--budget", "40KB", "--text", "train.txt", "--calibration-tokens", "512")


@pytest.mark.parametrize("option", ["--text", "--eval-text"])
@pytest.mark.parametrize(
    ("name", "what"),
    [("none.txt", "cannot read: No such file or directory"), ("empty.txt", "the file is empty")],
)
def test_text_that_is_none_is_told_before_the_model_is_opened(here, capsys, option, name, what):
    # there is no model: whoever looked for one first would say so
    for more in (("--budget", "1MB"), ("--budget", "1MB", "--plan"), ("--curve", "c.csv")):
        status, lines = said(capsys, "absent", option, name, *more)
        assert status == 2
        assert lines[-1].startswith(f"gptpack: {option} {name}: {what}")


def test_text_for_both_uses_is_told_before_the_model_is_opened(here, capsys):
    both = ("--text", "train.txt", "--eval-text", "./train.txt")
    for more in (("--budget", "1MB"), ("--curve", "c.csv")):
        status, lines = said(capsys, "absent", *both, *more)
        assert (status, len(lines)) == (2, 1)
        assert "--text and --eval-text must be different files" in lines[0]


def test_a_packed_file_is_not_packed_again_whatever_stands_at_the_output(here, capsys):
    done = gptpack.pack("m", delta=0.01, text=("train.txt",), calibration_tokens=512, keep=False)
    (here / "m.gptpack").write_bytes(done.data)
    for more in (("--budget", "1MB"), ("--budget", "1MB", "-o", "m.gptpack"), ("--curve", "c.csv")):
        status, lines = said(capsys, "m.gptpack", *more)
        assert status == 2
        assert lines == [
            "gptpack: m.gptpack: already a packed file; give the checkpoint or folder that it was "
            "made of"
        ]


def test_files_over_the_budget_are_told_before_calibration_with_one_that_works(here, capsys):
    status, lines = said(capsys, "m", "--budget", "1KB", "--text", "train.txt")
    assert (status, len(lines)) == (1, 1)  # no line of progress
    assert "of tokenizer.json and 2 other files leave nothing of the budget of 1,000" in lines[0]
    for method in ("gptq-trellis", "int8", "float16"):
        asked = {"text": ("train.txt",), "calibration_tokens": 512, "methods": (method,)}
        with pytest.raises(BudgetError, match="fewer may be") as caught:
            gptpack.pack("m", budget="1KB", **asked)
        enough = str(caught.value).partition("for the weights; ")[2].partition(" bytes")[0]
        budget = int(enough.replace(",", ""))
        assert len(gptpack.pack("m", budget=budget, **asked).data) <= budget


def test_a_budget_that_is_too_small_names_the_files_in_pack_and_in_check(here, capsys, monkeypatch):
    done = gptpack.pack("m", delta=0.05, text=("train.txt",), calibration_tokens=512)
    files_bytes = decode_header(done.data).files_bytes
    (here / "m.gptpack").write_bytes(done.data)
    status, lines = said(capsys, *CALIBRATED, "--budget", "3KB", "-o", "o.gptpack")
    assert status == 1
    named = f"({files_bytes:,} of tokenizer.json and 2 other files), over the budget of 3,000"
    assert named in lines[-1]
    monkeypatch.setattr("gptpack.gate.check.LARGEST_SHOWN", 99)
    assert invoke("check", "m.gptpack", "--budget", "3KB") == 1
    largest = capsys.readouterr().out.partition("largest: ")[2]
    assert f"tokenizer.json and 2 other files {files_bytes:,}, " in largest
    sizes = [int(size.replace(",", "")) for size in re.findall(r" ([\d,]+)(?=[,;] )", largest)]
    assert sizes == sorted(sizes, reverse=True)


def test_a_plan_says_at_once_that_it_packs_in_memory(here, capsys):
    status, lines = said(capsys, *CALIBRATED, "--plan")
    assert status == 0
    assert lines[0].startswith("--plan packs in memory: it takes as long as the pack itself")
    assert lines[-1] == "nothing was written (--plan)"
    assert {path.name for path in here.iterdir()} == {"m", "train.txt", "empty.txt"}


def test_hessians_that_are_kept_are_named_and_may_be_left_out(here, capsys, monkeypatch):
    assert said(capsys, *CALIBRATED, "--no-keep", "-o", "a.gptpack")[0] == 0
    assert list(here.glob(".*")) == []
    status, lines = said(capsys, *CALIBRATED, "-o", "b.gptpack")
    (kept,) = here.glob(".gptpack-hessians-*.safetensors")
    size = kept.stat().st_size
    told = f"{kept.name}: {size:,} bytes, kept for the next pack of this model; it may be deleted"
    assert [line for line in lines if line.startswith(told)]
    # what is there is read, whether or not more is to be kept
    monkeypatch.setattr("gptpack.calibration.text.collect", None)
    for more in ((), ("--no-keep",)):
        status, lines = said(capsys, *CALIBRATED, *more, "--force", "-o", "b.gptpack")
        assert status == 0
        assert not [line for line in lines if "kept for the next" in line]
    assert (here / "a.gptpack").read_bytes() == (here / "b.gptpack").read_bytes()


def test_a_budget_that_no_grid_can_fill_is_remarked_on(here, capsys):
    words = ("m", "--text", "train.txt", "--calibration-tokens", "512", "--force", "--json")
    invoke("pack", *words, "--budget", "400KB", "-o", "o.gptpack")
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert FINEST in err.splitlines()
    assert report["headroom_bytes"] > 100_000
    assert 0 < report["predicted_nats"] < 1e-5  # there is nothing left to gain
    for other in (("--budget", "40KB"), ("--budget", "400KB", "--method", "int8")):
        invoke("pack", *words, *other, "-o", "o.gptpack")
        assert FINEST not in capsys.readouterr().err
