"""`gptpack check`: what it looks at, what it ends with, and what it can do without."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from strategies import MODEL, TOKENIZER, example_tensors, write_artifact
from test_cli_eval import World, world  # noqa: F401

import gptpack
from gptpack.cli import main
from gptpack.errors import ConfigError
from gptpack.gate.formats import SUMMARY_BYTES, to_markdown
from gptpack.gate.limits import CheckConfig, Limits, expanded, load_check
from gptpack.inspection.inspect import inspect
from gptpack.jobs.check import check
from gptpack.quant.int8 import keep_float
from gptpack.values import TokenizerIdentity

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "tiny-v1.artifact"
POINTER = """version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 149868
"""


@pytest.fixture(autouse=True)
def no_github(monkeypatch):
    """Whatever runs the tests, the commands here run nowhere in particular."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs `gptpack check` in a folder of its own: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> tuple[int, str, str]:
        status = 0
        try:
            main.run(["check", *map(str, arguments)])
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return invoke


def artifact(path: Path, bpb: float | None = None, **pack: Any) -> Path:
    if bpb is not None:
        pack["quality"] = {"bpb_after": bpb, "bpb_before": bpb, "tokens": 96, "context": 32}
    write_artifact(
        path, model=MODEL, tokenizer=TOKENIZER, tensors=example_tensors(), pack=pack, codecs="zlib"
    )
    return path


def outcomes(text: str) -> dict[str, tuple[str, str]]:
    """State and text by rule of the one artifact of a JSON report."""
    (found,) = json.loads(text)["artifacts"]
    return {row["rule"]: (row["state"], row["text"]) for row in found["outcomes"]}


def test_a_file_over_its_budget_names_its_largest_tensors_where_it_records_their_bytes(
    run, tmp_path
):
    made = {"model": MODEL, "tokenizer": TOKENIZER, "tensors": example_tensors(), "pack": {}}
    write_artifact(tmp_path / "m.gptpack", **made, codecs="zlib", recorded=True)
    groups = inspect(tmp_path / "m.gptpack", decode=True).groups
    first = max(groups, key=lambda group: group.stored_bytes)
    status, out, _ = run("m.gptpack", "--budget", 100)
    assert status == 1
    assert f"largest: {first.name} {first.stored_bytes:,}" in out


@pytest.mark.parametrize(("over", "status"), [(-1, 0), (0, 0), (1, 1)])
def test_the_budget_is_held_to_the_byte_with_the_code(run, tmp_path, over, status):
    size = artifact(tmp_path / "m.gptpack").stat().st_size
    (tmp_path / "code.py").write_bytes(b"x" * 100)
    budget = size + 100 - over
    found, out, err = run("m.gptpack", "--budget", budget, "--code", "code.py")
    assert found == status
    if status:
        assert f"{size + 100:,} bytes (100 of code), over the budget of {budget:,} by 1 " in out
        assert f"pack again with --budget {budget - 100}" in out
        assert "largest: " not in out  # the file does not say what its tensors take
        assert err == "gptpack: check: 1 of 1 failed: m.gptpack\n"
    else:
        assert f"{-over:,}" in out
        assert err == ""


def test_units_are_decimal_or_binary_as_written(run, tmp_path):
    artifact(tmp_path / "m.gptpack")
    _, out, _ = run("m.gptpack", "--budget", "16MiB", "--json")
    assert json.loads(out)["artifacts"][0]["budget_bytes"] == 16_777_216
    _, out, _ = run("m.gptpack", "--budget", "16MB", "--json")
    assert json.loads(out)["artifacts"][0]["budget_bytes"] == 16_000_000


def test_without_a_budget_the_files_own_counts(run, tmp_path):
    artifact(tmp_path / "m.gptpack", budget_bytes=100)
    status, out, _ = run("m.gptpack", "--json")
    assert status == 1
    assert "which the file itself names" in outcomes(out)["budget"][1]
    artifact(tmp_path / "n.gptpack")
    status, out, _ = run("n.gptpack", "--json")
    assert status == 0
    assert outcomes(out)["budget"][0] == "skip"


def test_a_missing_file_fails_and_is_no_pass(run):
    status, out, _ = run("nosuch.gptpack", "--budget", "1MB")
    assert status == 1
    assert "no such file" in out


def test_a_git_lfs_pointer_is_told_from_a_corrupt_file(run, tmp_path):
    (tmp_path / "m.gptpack").write_text(POINTER)
    status, out, _ = run("m.gptpack", "--budget", "1MB")
    assert status == 1
    assert "a git-lfs pointer to a file of 149,868 bytes" in out
    assert "git lfs pull" in out


@pytest.mark.parametrize("place", [0, 70, -1])
def test_a_damaged_bit_anywhere_ends_with_status_3(run, tmp_path, place):
    path = artifact(tmp_path / "m.gptpack")
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    status, out, err = run("m.gptpack", "--budget", "1MB", "--json")
    assert status == 3
    assert outcomes(out)["format"][0] == "fail"
    assert outcomes(out)["budget"][0] == "pass"
    assert err.count("\n") == 1


def test_a_corrupt_file_weighs_more_than_a_large_one(run, tmp_path):
    artifact(tmp_path / "large.gptpack")
    artifact(tmp_path / "bad.gptpack").write_bytes(b"not an artifact at all" * 5)
    status, out, _ = run("large.gptpack", "bad.gptpack", "--budget", "10B")
    assert status == 3
    assert out.count("FAIL ") >= 2


def test_a_limit_of_nothing_is_a_limit(tmp_path):
    path = artifact(tmp_path / "m.gptpack")
    assert not gptpack.check(path, budget=0).passed
    (looked,) = gptpack.check(path, baseline=path, max_bytes_rise=0).artifacts
    assert ("bytes rise", "pass") in [(each.rule, each.state) for each in looked.outcomes]


def test_a_check_of_no_files_is_no_pass():
    for none in ([], (), iter([])):
        with pytest.raises(ConfigError, match="no files; name at least one"):
            gptpack.check(none)
    with pytest.raises(ConfigError, match="no files; name at least one"):
        CheckConfig(artifacts=())


def test_code_that_is_not_there_fails(run, tmp_path):
    artifact(tmp_path / "m.gptpack")
    status, out, _ = run("m.gptpack", "--budget", "1MB", "--code", "gone.py")
    assert status == 1
    assert "gone.py: no such file; its bytes count into the budget" in out


@pytest.mark.parametrize(("limit", "status"), [(1.5, 0), (1.4999, 1)])
def test_the_recorded_score_is_held_to_the_limit(run, tmp_path, limit, status):
    artifact(tmp_path / "m.gptpack", bpb=1.5)
    found, out, _ = run("m.gptpack", "--max-bpb", limit)
    assert found == status
    assert "1.5000 recorded" in out


def test_a_limit_on_a_score_that_is_not_there_fails(run, tmp_path):
    artifact(tmp_path / "m.gptpack")
    status, out, _ = run("m.gptpack", "--max-bpb", 2)
    assert status == 1
    assert "the file records none" in out


def test_a_report_serves_as_the_baseline_of_the_next_check(run, tmp_path):
    before = artifact(tmp_path / "m.gptpack", bpb=1.5).stat().st_size
    assert run("m.gptpack", "--output", "main.json")[0] == 0
    after = artifact(tmp_path / "m.gptpack", bpb=1.51, note="x" * 3000).stat().st_size
    status, out, _ = run("m.gptpack", "--baseline", "main.json", "--json")
    (found,) = json.loads(out)["artifacts"]
    assert status == 0
    assert found["change_bytes"] == after - before
    assert found["change_bpb"] == pytest.approx(0.01)
    status, out, _ = run("m.gptpack", "--baseline", "main.json", "--max-bpb-rise", 0.005)
    assert status == 1
    assert "bpb rise: +0.010000 bits per byte against the baseline" in out
    assert f"{after - before:+,} bytes, +0.0100 bpb" in out
    rise = ("--max-bytes-rise", after - before - 1)
    assert run("m.gptpack", "--baseline", "main.json", *rise)[0] == 1
    rise = ("--max-bytes-rise", after - before)
    assert run("m.gptpack", "--baseline", "main.json", *rise)[0] == 0


def test_an_artifact_serves_as_a_baseline_too(run, tmp_path):
    artifact(tmp_path / "main.gptpack", bpb=1.4)
    artifact(tmp_path / "m.gptpack", bpb=1.5)
    status, out, _ = run("m.gptpack", "--baseline", "main.gptpack", "--max-bpb-rise", 0.05)
    assert status == 1
    assert "+0.1000 bpb" in out


def test_figures_of_different_texts_are_not_compared(run, tmp_path):
    artifact(tmp_path / "main.gptpack", quality={"bpb_after": 1.4, "tokens": 7, "context": 32})
    artifact(tmp_path / "m.gptpack", bpb=1.4)
    status, out, _ = run("m.gptpack", "--baseline", "main.gptpack", "--max-bpb-rise", 0.05)
    assert status == 1
    assert "not comparable: tokens 96 here, 7 in the baseline" in out
    assert run("m.gptpack", "--baseline", "main.gptpack")[0] == 0


def test_a_new_artifact_has_nothing_to_rise_above(run, tmp_path):
    artifact(tmp_path / "m.gptpack", bpb=1.5)
    run("m.gptpack", "--output", "main.json")
    artifact(tmp_path / "new.gptpack", bpb=9.5)
    status, out, _ = run("new.gptpack", "--baseline", "main.json", "--max-bpb-rise", 0.1)
    assert status == 0
    assert "skipped new.gptpack: bpb rise: it is not in the baseline" in out
    assert run("new.gptpack", "--max-bpb-rise", 0.1)[0] == 0


@pytest.mark.parametrize("text", ["{}", "{", '{"schema_version": 2, "artifacts": []}', "hello"])
def test_a_baseline_that_is_none_is_a_usage_error(run, tmp_path, text):
    artifact(tmp_path / "m.gptpack")
    (tmp_path / "main.json").write_text(text)
    status, out, err = run("m.gptpack", "--baseline", "main.json")
    assert (status, out) == (2, "")
    assert "main.json" in err
    status, _, err = run("m.gptpack", "--baseline", "gone.json")
    assert status == 2
    assert "--output main.json" in err


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("value", '"1.0"'),
        ("value", "null"),
        ("value", "[1]"),
        ("value", "true"),
        ("value", "1" + "0" * 400),
        ("value", "9" * 5000),
        ("value", "NaN"),
        ("value", "Infinity"),
        ("total_bytes", "Infinity"),
        ("total_bytes", "NaN"),
        ("total_bytes", '"many"'),
        ("total_bytes", "1" + "0" * 400),
        ("context", "[" * 100_000),
    ],
)
def test_a_baseline_whose_figures_are_none_is_a_usage_error(run, tmp_path, place, text):
    artifact(tmp_path / "m.gptpack", bpb=1.5)
    assert run("m.gptpack", "--output", "main.json")[0] == 0
    report, count = re.subn(
        rf'"{place}": [\d.]+', f'"{place}": {text}', Path("main.json").read_text()
    )
    assert count
    Path("main.json").write_text(report)
    status, out, err = run("m.gptpack", "--baseline", "main.json", "--max-bpb-rise", 1, "--json")
    assert (status, out) == (2, "")
    assert "baseline main.json: not the JSON of 'gptpack check'" in err
    assert err.count("\n") == 1


CONFIG = """
[check]
max_bpb = 2.0
code = ["*.py"]

[[check.artifact]]
name = "small"
path = "small.gptpack"
budget = "500B"
message = "Ask the model's owners."

[[check.artifact]]
path = "more/*.gptpack"
budget = "1MB"
max_bpb = 3.0
"""


def test_the_table_names_several_artifacts_with_defaults_and_wildcards(run, tmp_path):
    (tmp_path / "gptpack.toml").write_text(CONFIG)
    (tmp_path / "a.py").write_text("x" * 10)
    (tmp_path / "b.py").write_text("x" * 20)
    (tmp_path / "more").mkdir()
    artifact(tmp_path / "small.gptpack", bpb=1.5)
    artifact(tmp_path / "more" / "x.gptpack", bpb=2.5)
    artifact(tmp_path / "more" / "y.gptpack", bpb=3.5)
    status, out, _ = run("--json")
    assert status == 1
    found = {row["name"]: row for row in json.loads(out)["artifacts"]}
    assert list(found) == ["small", "more/x.gptpack", "more/y.gptpack"]
    assert [row["code_bytes"] for row in found.values()] == [30, 30, 30]
    assert [row["passed"] for row in found.values()] == [False, True, False]
    _, out, _ = run()
    assert "FAIL small: budget: " in out
    assert "Ask the model's owners." in out
    assert run("--config", "gptpack.toml")[0] == 1
    (tmp_path / "elsewhere").mkdir()
    os.chdir("elsewhere")
    assert "FAIL small: budget: " in run("--config", "../gptpack.toml")[1]


def test_a_wildcard_that_finds_nothing_is_a_missing_file(tmp_path):
    config = CheckConfig(artifacts=(Limits(path="*.gptpack"),), folder=tmp_path)
    assert [limits.path for limits in expanded(config)] == ["*.gptpack"]
    assert check(config).exit_status == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needs a table [check]"),
        ("[check]\n", "needs a table [check]"),
        ("[check]\nartifact = []\n", "needs [[check.artifact]]"),
        ("[[check.artifact]]\nbudget = '1MB'\n", "needs a path"),
        ("[[check.artifact]]\npath = 'm'\nbudgets = '1MB'\n", "unknown setting"),
        ("[check]\nbudgets = 3\n[[check.artifact]]\npath = 'm'\n", "check.budgets"),
        ("[[check.artifact]]\npath = 'm'\nbudget = 16\n", "check.artifact.budget=16"),
        ("[[check.artifact]]\npath = 'm'\nbudget = '16 MX'\n", "16MB or 16MiB"),
        ("[[check.artifact]]\npath = 'm'\ntext = 'val.txt'\n", "text='val.txt' must be a list"),
        ("[[check.artifact]]\npath = 'm'\nmax_bpb = nan\n", "must be a finite number"),
        ("[[check.artifact]]\npath = 'm'\neval_tokens = -1\n", "must not be negative"),
        ("[[check.artifact]]\npath='m'\n[[check.artifact]]\npath='m'\n", "two artifacts"),
        ("[check\n", "not TOML"),
    ],
)
def test_a_table_that_makes_no_sense_is_a_usage_error(tmp_path, text, words):
    path = tmp_path / "gptpack.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_check(path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "gptpack.toml"),
        (("--budget", "1MB"), "--budget is for files that are named"),
        (("m", "--config", "x.toml"), "either FILE or --config"),
        (("m", "--bpb"), "give --data with shards, or --text"),
        (("m", "--output", "report.pdf"), ".json, .md, .xml"),
        (("m", "m"), "two artifacts are called"),
        (("m", "--max-bpb", "inf"), "'inf' is not a finite number"),
        (("m", "--max-bpb", "nan"), "'nan' is not a finite number"),
        (("m", "--max-bpb-rise", "-inf"), "'-inf' is not a finite number"),
        (("m", "--max-bpb-rise", "nan"), "'nan' is not a finite number"),
        (("m", "--max-bpb", "-1"), "--max-bpb -1.0 must be positive"),
    ],
)
def test_options_that_make_no_sense_end_with_status_2(run, arguments, words):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert words in err


def test_every_format_says_the_same(run, tmp_path):
    artifact(tmp_path / "m.gptpack", bpb=1.5)
    options = ("m.gptpack", "gone.gptpack", "--budget", "1MB", "--max-bpb", "1.4")
    status, out, _ = run(*options, "-o", "r.json", "-o", "r.md", "-o", "r.xml")
    assert status == 1
    assert out.count("FAIL") == 4  # a column and a line each
    values = json.loads((tmp_path / "r.json").read_text())
    assert values["passed"] is False
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()[0]
    failed = {
        (case.get("classname"), case.get("name")) for case in suite if len(case.findall("failure"))
    }
    assert failed == {("m.gptpack", "bpb"), ("gone.gptpack", "exists")}
    assert suite.get("failures") == "2"
    assert suite.get("tests") == str(len(suite))
    markdown = (tmp_path / "r.md").read_text()
    assert markdown.count("| FAIL |") == 2
    for form, name in (("json", "r.json"), ("junit", "r.xml"), ("markdown", "r.md")):
        assert run(*options, "--format", form)[1] == (tmp_path / name).read_text()


def test_github_gets_a_summary_and_annotations(run, tmp_path, monkeypatch):
    artifact(tmp_path / "m.gptpack")
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    status, out, _ = run("m.gptpack", "--budget", "10B")
    assert status == 1
    assert summary.read_text().startswith("before\n### gptpack check: 1 of 1 failed")
    (line,) = [line for line in out.splitlines() if line.startswith("::error")]
    assert line.startswith("::error file=m.gptpack,title=gptpack check::m.gptpack: budget: ")


def test_a_summary_stays_below_githubs_limit():
    for name, message in (("gone", "m" * 1000), ("___\N{LATIN SMALL LETTER E WITH ACUTE}", "")):
        limits = [Limits(path=f"{name * 50}{i}", message=message) for i in range(3000)]
        text = to_markdown(check(CheckConfig(artifacts=tuple(limits))))
        assert SUMMARY_BYTES / 4 < len(text.encode()) < SUMMARY_BYTES
        assert "gptpack check: 3000 of 3000 failed" in text


def test_names_of_files_write_into_no_report(run, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    name = "a\n::set-env name=X::1\x1b[2J|<b>@all"
    artifact(tmp_path / "m.gptpack").rename(tmp_path / f"{name}.gptpack")
    status, out, _ = run(f"{name}.gptpack", "--budget", "1B", "-o", "r.md", "-o", "r.xml")
    assert status == 1
    assert "\x1b" not in out
    assert not [line for line in out.splitlines() if line.startswith("::set-env")]
    markdown = (tmp_path / "r.md").read_text()
    assert "<b>" not in markdown
    assert "@all" not in markdown
    ElementTree.parse(tmp_path / "r.xml")


def test_it_needs_neither_torch_nor_the_network():
    blocked = "torch numba sentencepiece safetensors plotly scipy huggingface_hub"
    code = (
        "import sys\n"
        f"blocked = {blocked.split()!r}\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in blocked: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "def refuse(event, arguments):\n"
        "    if event.startswith('socket.'): raise RuntimeError(event)\n"
        "sys.addaudithook(refuse)\n"
        "from gptpack.cli.main import run\n"
        f"run(['check', {str(GOLDEN)!r}, '--budget', '1MB'])\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_program_checks_paths_or_a_table_by_one_function(tmp_path):
    one, two = artifact(tmp_path / "a.gptpack", bpb=1.5), artifact(tmp_path / "b.gptpack", bpb=1.7)
    size = one.stat().st_size
    assert check(one, budget=size).passed
    assert check(str(one), budget=str(size)).artifacts[0].headroom_bytes == 0
    result = check([one, two], max_bpb=1.6, baseline=one, max_bpb_rise=0.1)
    assert [[outcome.rule for outcome in row.failures] for row in result.artifacts] == [
        [],
        ["bpb", "bpb rise"],
    ]
    table = CheckConfig(artifacts=(Limits(path="*.gptpack", max_bpb=1.6),), folder=tmp_path)
    assert [not row.failures for row in check(table).artifacts] == [True, False]
    with pytest.raises(ConfigError, match="has its own limits"):
        check(table, budget="1MB")
    with pytest.raises(ConfigError, match="no text to measure bits per byte on"):
        check(one, prove=True)


def test_without_torch_a_score_cannot_be_proved_and_the_status_says_so(run, tmp_path, monkeypatch):
    artifact(tmp_path / "m.gptpack")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = run("m.gptpack", "--bpb", "--data", "shards")
    assert status == 4
    assert "torch, which is not installed" in err


def test_a_score_is_proved_in_a_process_of_its_own(run, tmp_path, world: World):  # noqa: F811
    table = (
        f"[check]\ndata = '{world.data}'\neval_tokens = 64\nbudget = '1MB'\n[[check.artifact]]\n"
    )
    (tmp_path / "gptpack.toml").write_text(f"{table}path = '{world.artifact}'\nname = 'm'\n")
    status, out, err = run("--bpb", "--json", "-o", "main.json")
    assert status == 0, err
    assert "m: scoring 64 tokens of" in err
    (found,) = json.loads(out)["artifacts"]
    assert found["bpb"]["source"] == "measured"
    assert (found["bpb"]["tokens"], found["bpb"]["context"]) == (64, 32)
    limit = found["bpb"]["value"] - 0.001
    (tmp_path / "gptpack.toml").write_text(
        f"{table}path = '{world.artifact}'\nname = 'm'\nmax_bpb = {limit}\nmax_bpb_rise = 0.0\n"
    )
    status, out, _ = run("--bpb", "--baseline", "main.json")
    assert status == 1
    assert f"0.001000 above the limit of {limit}" in out
    assert "+0 bytes, +0.0000 bpb" in out
    assert "bpb rise" not in out


def test_no_limit_on_tokens_scores_all(run, world: World):  # noqa: F811
    status, out, err = run(
        world.artifact,
        "--bpb",
        "--data",
        world.data,
        "--eval-tokens",
        0,
        "--budget",
        "1MB",
        "--json",
    )
    assert status == 0, err
    assert "scoring all tokens of" in err
    whole = (len(world.tokens) - 1) // 32 * 32
    assert json.loads(out)["artifacts"][0]["bpb"]["tokens"] == whole


def test_a_file_that_is_damaged_is_not_scored(run, tmp_path, world: World):  # noqa: F811
    data = bytearray(world.artifact.read_bytes())
    data[-1] ^= 1
    (tmp_path / "m.gptpack").write_bytes(data)
    status, _, err = run("m.gptpack", "--bpb", "--data", world.data)
    assert status == 3
    assert "scoring" not in err


def test_a_file_of_another_tokenizer_fails_its_line_and_no_other(
    run,
    tmp_path,
    world: World,  # noqa: F811
):
    model, other = world.model, TOKENIZER.sha256
    identity = TokenizerIdentity(sha256=other, vocab=world.tokenizer.vocab, bos=1)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    tensors = [keep_float(name, value, "float32") for name, value in state.items()]
    path = tmp_path / "other.gptpack"
    write_artifact(
        path, model=model.config, tokenizer=identity, tensors=tensors, pack={}, codecs="zlib"
    )
    rows = "".join(
        f"[[check.artifact]]\npath = '{each}'\nname = '{name}'\n"
        for name, each in (("a", path), ("b", world.artifact))
    )
    text = f"[check]\ndata = '{world.data}'\neval_tokens = 64\nbudget = '1MB'\n{rows}"
    (tmp_path / "gptpack.toml").write_text(text)
    status, out, err = run("--bpb", "--json")
    assert status == 2
    assert err.splitlines()[-1] == "gptpack: check: 1 of 2 failed: a"
    first, second = json.loads(out)["artifacts"]
    (failed,) = [row for row in first["outcomes"] if row["state"] == "fail"]
    assert failed["rule"] == "bpb"
    assert other[:8] in failed["text"]
    assert second["passed"]
    assert second["bpb"]["source"] == "measured"
