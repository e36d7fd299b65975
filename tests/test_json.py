"""What each command prints with --json is what docs/json.md says of it."""

import contextlib
import io
import json
import shlex

import pytest
from json_page import agrees, documented
from worlds import TINY, folder, invoke

from gptpack.cli.main import COMMANDS

SETTINGS = [*TINY, "model.vocab=290", "model.width=96", "model.mlp_hidden=192", "training.steps=4"]


def run(*words: object) -> str:
    """Standard output of a command that ends well."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert invoke(*map(str, words)) == 0
    return out.getvalue()


def printed(*words: object):
    return json.loads(run(*words, "--json"))


@pytest.fixture(scope="module")
def place():
    """A folder with text, a tokenizer and shards; a run; and a packed file, with its reports."""
    here = folder("json")
    rows = [{"text": f"the cat sat on a mat {i} and the dog ate it at noon"} for i in range(300)]
    (here / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = {
        "data tokenizer": printed(
            *("data", "tokenizer", here / "t.jsonl", "--vocab", 290, "-o", here / "t.model")
        ),
        "data tokenize": printed(
            *("data", "tokenize", "--train", here / "t.jsonl", "--val-documents", 60),
            *("--tokenizer", here / "t.model", "--workers", 1, "-o", here / "data"),
        ),
    }
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    train = ("train", "--recipe", "tiny", *sets, "--data", here / "data", "--output", here / "run")
    said["train"] = printed(*train)
    said["train --plan"] = printed(*train[:-4], "--plan", "--flops", "1e9")
    pack = ("pack", here / "run" / "checkpoint.pt", "--data", here / "data", "--states", 8)
    said["pack"] = printed(*pack, "--budget", "60KB", "-o", here / "a.gptpack")
    return here, said, pack


def test_each_command_that_has_json_is_on_the_page():
    heads = {name.split(" -")[0].split()[0] for name in documented()} & set(COMMANDS)
    without = {"sample", "web", "report", "completion"}  # no --json
    others = {"log", "submission"}  # named at the end of the page
    assert heads == set(COMMANDS) - without - others


@pytest.mark.parametrize(
    "name", ["data tokenizer", "data tokenize", "train", "train --plan", "pack"]
)
def test_what_makes_a_file_prints_what_the_page_says(place, name):
    agrees(name, place[1][name])


def test_a_curve_prints_what_the_page_says(place):
    here, _, pack = place
    agrees("pack --curve", printed(*pack, "--curve", here / "c.csv", "--curve-bits", "3"))


def test_what_looks_at_files_prints_what_the_page_says(place):
    here, _, _ = place
    one, checkpoint = here / "a.gptpack", here / "run" / "checkpoint.pt"
    scoring = ("--data", here / "data", "--stride", 8, "--against", checkpoint)
    agrees("eval", printed("eval", one, *scoring, "--ttt", "sgd:lr=0.001"))
    agrees("inspect", printed("inspect", one))
    agrees("check", printed("check", one, "--budget", "60KB"))
    agrees("verify", printed("verify", one))
    agrees("verify", printed("verify", one, "--checkpoint", checkpoint))
    agrees("diff", printed("diff", one, one, "--weights", "--checkpoint", checkpoint))
    agrees("unpack", printed("unpack", one, "--to", "safetensors", "-o", here / "s.safetensors"))
    agrees("data info", printed("data", "info", here / "data"))
    agrees("stats", printed("stats", 1.201, 1.199, 1.203, "--below", 1.211))
    agrees("doctor", printed("doctor"))


def test_shards_without_a_manifest_print_what_the_page_says(place, tmp_path):
    for shard in (place[0] / "data").glob("*.bin"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    agrees("data info without a manifest", printed("data", "info", tmp_path))


def test_a_pack_ends_with_what_it_is_worth_and_commands_that_run(place, monkeypatch):
    here, said, pack = place
    monkeypatch.chdir(here)
    *_, blank, verdict, _, title, sample, check, load = run(
        *pack, "--budget", "60KB", "-o", "b.gptpack"
    ).splitlines()
    assert (blank, title) == ("", "Next:")
    report = said["pack"]
    before, after = (report[when]["plain"] for when in ("before", "after"))
    assert verdict.startswith(f"b.gptpack has {report['bytes']:,} bytes, ")
    assert f"{after['bpb'] - before['bpb']:+.5f} bits per byte" in verdict
    assert verdict.endswith(
        f"on {after['tokens']:,} tokens ({after['bytes']:,} bytes) of data_val_000000.bin"
    )
    for line in (sample, check):
        program, *words = shlex.split(line)
        assert program == "gptpack"
        run(*words)
    program, flag, code = shlex.split(load)
    assert (program, flag) == ("python", "-c")
    exec(code)
    # where nothing was proved there is no tokenizer to name, and the file brings none
    words = ("--budget", "1MB", "--method", "int8", "-o", "c.gptpack")
    *_, sample, _, _ = run("pack", here / "run" / "checkpoint.pt", *words).splitlines()
    assert sample == "  gptpack sample c.gptpack --tokenizer TOKENIZER --prompt The"
