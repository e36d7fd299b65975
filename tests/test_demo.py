"""The demo, whole, with two seconds of training: what `make demo` promises its first reader."""

import json
import shutil
from pathlib import Path

import pytest
from pages import OURS, SIZE, hugging_face, page, run
from worlds import invoke

from gptpack.jobs import demo_text
from gptpack.jobs.demo import PROMPTS

PAGE = page("docs/tutorial-web.md")


@pytest.mark.slow
def test_the_demo_ends_with_a_file_within_its_budget_and_proves_it(tmp_path, monkeypatch, capfd):
    # it tokenizes, trains, packs and proves in three processes; a part of the text is enough
    library = tmp_path / "library"
    (library / "pydoc_data").mkdir(parents=True)
    shutil.copy(demo_text.standard_library() / demo_text.TOPICS, library / demo_text.TOPICS)
    monkeypatch.setattr(demo_text, "standard_library", lambda: library)
    monkeypatch.chdir(tmp_path)
    assert invoke("demo", "--seconds", "2", "--json") == 0
    out, err = capfd.readouterr()
    assert "gzip" not in err  # of a comparison that it does not ask for
    result = json.loads(out)
    packed = Path(result["file"])
    assert packed.stat().st_size == result["bytes"] <= result["budget_bytes"]
    assert result["headroom_bytes"] == result["budget_bytes"] - result["bytes"]
    # Chance is log2(1024) bits for about 2.4 bytes, 4.1; a busy machine learns little in 2 seconds.
    assert 0 < result["bpb"] < 6
    assert abs(result["bpb"] - result["bpb_before"]) < 0.1
    assert result["sliding_bpb"] > 0
    assert [line.startswith(PROMPTS[i]) for i, line in enumerate(result["samples"])] == [True] * 3
    for command in ("data tokenizer", "data tokenize", "train", "pack"):
        assert f"$ gptpack {command} " in err
    assert "$ python -m gptpack eval" in err
    # the tutorial for the web goes on from here, as it is written
    first = "    gptpack demo\n"
    assert PAGE.count(first) == 1
    hugging_face()
    printed = run(PAGE.replace(first, "").replace(SIZE, OURS), capfd)
    assert "SmolLM2, 135 M parameters in 50 MB" in Path("site/site.json").read_text()
    assert Path("site/model.gptpack").read_bytes() == Path("smol.gptpack").read_bytes()
    assert "-m" in printed  # a visitor came


@pytest.mark.parametrize("options", [("--seconds", "many"), ("--budget", "many")])
def test_the_demo_says_what_is_wrong_with_its_options_before_it_starts(tmp_path, capsys, options):
    folder = tmp_path / "demo"
    assert invoke("demo", "--output", str(folder), *options) == 2
    assert "many" in capsys.readouterr().err
    assert not folder.exists()
