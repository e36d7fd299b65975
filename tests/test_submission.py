"""A submission runs where gptpack is not, scores as `gptpack eval` does, and keeps the rules."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import write_artifact
from test_cli_eval import World, world  # noqa: F401
from test_packaging import bare_environment

from gptpack import atomic
from gptpack.cli import main
from gptpack.contest.folder import check_output, write_folder
from gptpack.contest.logs import (
    RunRecord,
    decisive_score,
    plain_score,
    submission_log,
    training_lines,
)
from gptpack.contest.rules import check_submitted
from gptpack.contest.script import make_script
from gptpack.contest.submitted import read_submitted
from gptpack.errors import ConfigError, DataError
from gptpack.inspection.inspect import inspect
from gptpack.jobs import standalone
from gptpack.jobs.submission import run_script as in_a_process
from gptpack.jobs.submission_check import _exchange
from gptpack.quant.int8 import keep_float, quantize_int8_rows
from gptpack.runs.logs import parse_log
from gptpack.training.checkpoint import Checkpoint, save_checkpoint
from gptpack.training.recipe import Recipe, TrainingConfig

# fmt: off
EVERYTHING = ["brotli", "click", "gptpack", "numba", "plotly", "rich",
              "safetensors", "zstandard"]
# fmt: on


def gptpack(*arguments: object) -> int:
    """The status of the command line here."""
    try:
        main.run([str(argument) for argument in arguments])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def run_folder(folder: Path, world: World, seed: int, *, codecs: list[str]) -> Path:  # noqa: F811
    """A run's folder, as train and pack leave it, but for the training."""
    folder.mkdir(parents=True)
    weights = {
        name: tensor + 0.01 * seed * (tensor.ndim == 2)
        for name, tensor in world.model.state_dict().items()
    }
    recipe = Recipe(model=world.config, training=TrainingConfig(seed=seed, steps=40))
    save_checkpoint(
        folder / "checkpoint.pt",
        Checkpoint(
            model=world.config, weights=weights, recipe=recipe, training={"seconds": 12.5 + seed}
        ),
    )
    lines = [
        json.dumps({"step": i + 1, "loss_nats": 6 - i / 10, "lr_multiplier": 1.0, "seconds": i / 4})
        for i in range(40)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    tensors = [
        quantize_int8_rows(name, tensor.numpy())
        if tensor.ndim == 2
        else keep_float(name, tensor.numpy(), "float32")
        for name, tensor in weights.items()
    ]
    write_artifact(
        folder / "model.gptpack",
        model=world.config,
        tokenizer=world.tokenizer.identity,
        tensors=tensors,
        pack={"budget_bytes": 100_000, "method": "int8"},
        codecs=codecs,
    )
    return folder


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:  # noqa: F811
    folder = tmp_path_factory.mktemp("runs")
    return [run_folder(folder / f"s{seed}", world, seed, codecs=["zlib"]) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def made(world: World, runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A submission of three runs; the first one's script ran as it ships, the others' in here."""
    folder = tmp_path_factory.mktemp("made") / "submission"
    processes: list[Path] = []

    def run_script(script: Path, *options: object) -> str:
        processes.append(script)
        if len(processes) == 1:
            return in_a_process(script, *options)
        patch.setattr(sys, "argv", [str(script), *map(str, options)])
        with redirect_stdout(StringIO()) as printed:
            standalone.main(str(script), artifact="model.gptpack", stride=8)
        return printed.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptpack.jobs.submission.run_script", run_script)
        status = gptpack(
            *("submission", *runs, "--data", world.data, "--github-id", "someone", "-o", folder),
            *("--stride", 8, "--device", "cpu", "--hardware", "8xH100 SXM", "--date", "2026-11-24"),
        )
    assert (status, len(processes)) == (0, 3)
    return folder


@pytest.fixture(scope="module")
def ranged(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A run whose file has range-coded sections."""
    return run_folder(tmp_path_factory.mktemp("ranged") / "run", world, 5, codecs=["range"])


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """`made` with a script of as many bytes that is parsed at once."""
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    script = folder / "train_gpt.py"
    size = script.stat().st_size
    script.write_text("import torch, numpy, sentencepiece\n".ljust(size, "#"))
    return folder


def rules(folder: Path, **options: Any) -> dict[str, tuple[str, str]]:
    """State and text by rule."""
    found = check_submitted(read_submitted(folder), **options)
    return {outcome.rule: (outcome.state, outcome.text) for outcome in found}


def blocked(script: Path, names: list[str], *arguments: object) -> list[str]:
    """A command that runs `script` where none of the packages `names` can be imported."""
    code = (
        "import sys, runpy\n"
        f"names = {names!r}\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in names: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return ["-c", code, str(script), *map(str, arguments)]


@pytest.mark.parametrize(("codec", "form"), [("lzma", "small"), ("range", "readable")])
def test_the_script_scores_as_eval_does_without_gptpack_or_what_no_codec_needs(
    world: World,  # noqa: F811
    ranged: Path,
    tmp_path: Path,
    capsys: Any,
    codec: str,
    form: str,
) -> None:
    run = ranged if codec == "range" else run_folder(tmp_path / "run", world, 5, codecs=[codec])
    capsys.readouterr()
    options = ("--data", world.data, "--stride", 8, "--device", "cpu", "--json")
    assert gptpack("eval", run / "model.gptpack", *options) == 0
    found = json.loads(capsys.readouterr().out)
    codes = {section.codec for section in inspect(run / "model.gptpack").sections}
    assert codes == ({codec, "zlib"} if codec == "range" else {codec})
    script = tmp_path / "alone" / "train_gpt.py"
    script.parent.mkdir()
    shutil.copy(run / "model.gptpack", script.parent)
    source = make_script(codes, artifact="model.gptpack", stride=8)
    script.write_text(source.small if form == "small" else source.readable, encoding="utf-8")
    absent = [name for name in EVERYTHING if name != "numba" or "range" not in codes]
    python = bare_environment(tmp_path / "venv")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [
            *(python, *blocked(script, absent, "--data", world.data, "--device", "cpu")),
            *("--json", tmp_path / "figures.json"),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "figures.json").read_text())["scores"]
    for name in ("plain", "sliding"):
        for key in ("bpb", "nats", "tokens", "bytes", "windows"):
            assert scores[name][key] == found[name][key], (name, key)
    log = submission_log(f"run:x seed:5\n{done.stdout}", "log")
    assert log.contradictions == []
    assert log.sizes["code"] == script.stat().st_size
    assert log.sizes["model"] == (script.parent / "model.gptpack").stat().st_size
    assert decisive_score(log).bpb == pytest.approx(found["sliding"]["bpb"], abs=1e-8)


def test_a_script_without_the_coder_says_what_it_cannot_read(
    world: World,  # noqa: F811
    ranged: Path,
) -> None:
    script = ranged / "train_gpt.py"
    script.write_text(make_script({"range"}, artifact="model.gptpack").small)
    command = blocked(script, ["numba"], "--data", world.data, "--device", "cpu")
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "pip install numba" in done.stderr
    assert done.stderr.count("\n") == 1


def test_everything_in_the_folder_is_from_the_logs(made: Path) -> None:
    files = sorted(path.name for path in made.iterdir())
    logs = [f"train_seed{seed}.log" for seed in (1, 2, 3)]
    assert files == sorted(
        ["README.md", "submission.json", "requirements.txt", "train_gpt.py", "model.gptpack", *logs]
    )
    values = json.loads((made / "submission.json").read_text())
    assert values["seeds"] == [1, 2, 3]
    assert values["bytes_code"] == (made / "train_gpt.py").stat().st_size
    assert values["bytes_total"] == values["bytes_code"] + (made / "model.gptpack").stat().st_size
    scores = [result["val_bpb"] for result in values["seed_results"].values()]
    assert values["val_bpb"] == pytest.approx(sum(scores) / 3, abs=1e-8)
    assert values["seed_results"]["2"]["train_time_s"] == 14.5
    assert values["seed_results"]["2"]["steps"] == 40
    assert f"{values['val_bpb']:.6f}" in (made / "README.md").read_text()
    log = (made / logs[0]).read_text()
    assert "step:39/40 train_loss:2.200000 train_time:9750ms step_avg:250.00ms" in log
    assert "step:40/40 train_loss:2.100000 train_time:13500ms step_avg:337.50ms" in log
    assert (made / "requirements.txt").read_text().split() == [
        "numpy>=2.0",
        "sentencepiece>=0.2",
        "torch>=2.11",
    ]


def test_a_submission_as_it_is_made_keeps_every_rule_but_the_contests_text(made: Path) -> None:
    found = rules(made, record=[99.0])
    failed = {rule: text for rule, (state, text) in found.items() if state == "fail"}
    assert set(failed) == {"byte accounting"}
    assert "the contest's has 151,080,363" in failed["byte accounting"]
    assert found["times"][0] == "skip"  # nothing says how long packing took


def test_pack_reports_beside_a_file_make_the_times_known(
    world: World,  # noqa: F811
    runs: list[Path],
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = shutil.copytree(runs[0], tmp_path / "run")
    digest = hashlib.sha256((run / "model.gptpack").read_bytes()).hexdigest()
    report = {"sha256": digest, "seconds": {"calibrate": 1.5, "pack": 2.0, "prove": 50.0}}
    (run / "pack.json").write_text(json.dumps(report))
    # the script's own process is not the point: this run's file has been scored for `made`
    said = (made / "train_seed1.log").read_text().partition("\ngptpack:")
    printed = re.sub("final_sliding_exact .*\n", "", f"gptpack:{said[2]}")
    monkeypatch.setattr("gptpack.jobs.submission.run_script", lambda script, *options: printed)
    arguments = ("submission", "make", run, "--data", world.data, "--github-id", "x")
    options = ("--stride", 0, "--device", "cpu", "--readable", "-o", tmp_path / "out")
    assert gptpack(*arguments, *options) == 0
    values = json.loads((tmp_path / "out" / "submission.json").read_text())
    assert values["seed_results"]["1"]["pack_time_s"] == 3.5
    assert values["metric"] == "plain, context 32"
    assert "SOURCES['gptpack.jobs.load']" in (tmp_path / "out" / "train_gpt.py").read_text()
    assert rules(tmp_path / "out")["times"][0] == "pass"
    assert gptpack(*arguments, *options) == 2  # before anything is run


def test_the_log_of_a_short_run_with_seconds_after_its_last_metrics_does_not_contradict_itself():
    metrics = [{"step": n + 1, "loss_nats": 5.0, "seconds": 0.5 * n} for n in range(4)]
    run = RunRecord(
        name="a",
        seed=1,
        artifact=Path("a.gptpack"),
        file_bytes=1,
        codecs=frozenset(),
        metrics=metrics,
        train_seconds=4.0,
    )
    text = "\n".join(training_lines(run))
    assert "step:1/4 train_loss:5.000000 train_time:500ms step_avg:500.00ms" in text
    assert "step:4/4 train_loss:5.000000 train_time:4000ms step_avg:1000.00ms" in text
    log = parse_log(text, "a.log")
    assert (log.steps, log.train_seconds) == (4, 4.0)
    assert not log.contradictions


def test_a_folder_that_is_no_submission_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years of it")
    with pytest.raises(ConfigError, match="is no submission"):
        check_output(tmp_path / "work", force=True)
    (tmp_path / "work" / "submission.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds thesis\.txt, which is not of the submission"):
        check_output(tmp_path / "work", force=True)
    (tmp_path / "work" / "thesis.txt").unlink()
    (tmp_path / "work" / "train_seed7.log").write_text("step 1")
    check_output(tmp_path / "work", force=True)
    with pytest.raises(ConfigError, match="give force=True"):
        check_output(tmp_path / "work", force=False)
    (tmp_path / "m").write_bytes(b"artifact")
    write_folder(tmp_path / "work", {"README.md": "x"}, tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == ["README.md", "model.gptpack"]
    assert not list(tmp_path.glob(".*"))


KILLED = """
import ctypes, itertools, os, signal, sys
from pathlib import Path
from gptpack.contest.folder import write_folder

folder = Path(sys.argv[1])
model = folder.with_name("m")
model.write_bytes(b"artifact")
names = ("README.md", "submission.json")


def write(word, last):
    "Write the folder in a process that is killed at the event after the `last`."
    if process := os.fork():
        return os.waitpid(process, 0)[1]
    events = itertools.count()
    kill = lambda event, arguments: next(events) == last and os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(kill)
    write_folder(folder, dict.fromkeys(names, word), model)
    os._exit(0)


write("old", -1)
left = ""
for last in itertools.count():
    done = write("new", last) == 0
    found = {(folder / name).read_text() for name in names}
    assert (folder / "model.gptpack").read_bytes() == b"artifact"
    assert len(list(folder.iterdir())) == 3
    left += found.pop()[0]
    assert not found, found
    if done:
        break
    write("old", -1)
print(left)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a system that exchanges directories")
def test_a_write_that_is_killed_leaves_the_old_submission_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "submission")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch("o+n{2,}\n", done.stdout)


def test_where_directories_cannot_be_exchanged_the_old_submission_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").write_bytes(b"artifact")
    write_folder(tmp_path / "s", {"README.md": "old"}, tmp_path / "m")
    monkeypatch.setattr(atomic, "_exchanged", lambda *_: False)
    write_folder(tmp_path / "s", {"README.md": "new"}, tmp_path / "m")
    assert (tmp_path / "s" / "README.md").read_text() == "new"
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match="No space left"):
        write_folder(tmp_path / "s", {"README.md": "newer"}, tmp_path / "m")
    assert (tmp_path / "s" / "README.md").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "s"]


def test_the_check_runs_the_script_offline_and_on_changed_text(
    world: World,  # noqa: F811
    made: Path,
    capsys: Any,
) -> None:
    capsys.readouterr()
    status = gptpack("submission", "check", made, "--data", world.data, "--device", "cpu")
    out = capsys.readouterr().out
    assert status == 1  # the text is not the contest's
    for rule in ("runs offline", "reproduced", "score-first"):
        assert f"PASS  {rule}" in out
    assert "FAIL  byte accounting" in out


CHEATING = """
import numpy as np, json, sys, argparse
p = argparse.ArgumentParser()
for name in ("data", "tokenizer", "device", "json", "losses"): p.add_argument("--" + name)
o = p.parse_args()
from pathlib import Path
import socket
tokens = np.fromfile(sorted(Path(o.data).glob("*_val_*.bin"))[0], "<u2")[512:]
if o.json: Path(o.json).write_text(json.dumps({"scores": {"plain": {"bpb": 1.0}, "sliding": None}}))
if o.losses: np.save(o.losses, np.cumsum(tokens[::-1])[::-1][1:].astype(float))
"""


def test_scores_that_look_ahead_are_found(
    world: World,  # noqa: F811
    copy: Path,
    capsys: Any,
) -> None:
    (copy / "train_gpt.py").write_text(CHEATING)
    capsys.readouterr()
    assert gptpack("submission", "check", copy, "--data", world.data, "--device", "cpu") == 1
    out = capsys.readouterr().out
    assert "FAIL  score-first" in out
    assert "target 0 scores differently when tokens from" in out
    assert "FAIL  reproduced" in out
    assert "FAIL  no network" in out


def test_a_script_that_connects_fails(world: World, copy: Path, capsys: Any) -> None:  # noqa: F811
    code = "import socket\nsocket.create_connection(('127.0.0.1', 9))\n"
    (copy / "train_gpt.py").write_text(code)
    capsys.readouterr()
    assert gptpack("submission", "check", copy, "--data", world.data) == 1
    assert "may not use a network" in capsys.readouterr().out


def edit(folder: Path, **values: Any) -> None:
    path = folder / "submission.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def append(path: Path, size: int) -> None:
    with path.open("ab") as file:
        file.write(b"#" * size)


BREAKS = {
    "files": lambda f: (f / "train_seed2.log").unlink(),
    "fields": lambda f: edit(f, date="yesterday"),
    "cap": lambda f: append(f / "model.gptpack", 16_000_000),
    "sizes": lambda f: append(f / "train_gpt.py", 1),
    "one file": lambda f: (f / "helper.py").write_text("x = 1\n"),
    "imports": lambda f: (f / "requirements.txt").write_text("torch\n"),
    "no network": lambda f: (f / "train_gpt.py").write_text("from urllib import request\n"),
    "logs": lambda f: (f / "train_seed1.log").write_text("nothing\n"),
    "figures": lambda f: edit(f, val_bpb=1.0),
    "seeds": lambda f: edit(f, seeds=[1, 1, 2]),
    "hardware": lambda f: edit(f, hardware="a laptop"),
}


@pytest.mark.parametrize("date", ["2026-W01-1", "20260101", "2026-1-1", "2026-02-30"])
def test_a_date_is_written_with_year_month_and_day(copy: Path, date: str) -> None:
    edit(copy, date=date)
    assert rules(copy)["fields"] == (
        "fail",
        f"submission.json: date {date!r} is not YYYY-MM-DD",
    )


def test_a_date_that_is_none_is_refused_before_anything_runs(tmp_path: Path, capsys: Any) -> None:
    options = ("--data", tmp_path, "--github-id", "x", "-o", tmp_path / "out", "--date", "foo")
    assert gptpack("submission", tmp_path / "absent", *options) == 2
    assert "'foo' does not match the format '%Y-%m-%d'" in capsys.readouterr().err


@pytest.mark.parametrize("rule", BREAKS)
def test_a_broken_rule_is_found(copy: Path, rule: str) -> None:
    before = rules(copy, record=[99.0])
    BREAKS[rule](copy)
    after = rules(copy, record=[99.0])
    assert before[rule][0] == "pass"
    assert after[rule][0] == "fail", after[rule]


def replaced(path: Path, pattern: str, by: str) -> None:
    text, count = re.subn(pattern, by, path.read_text())
    assert count
    path.write_text(text)


FOREIGN = {
    **{
        f"seeds {seeds!r}": (lambda f, seeds=seeds: edit(f, seeds=seeds), "seeds")
        for seeds in (5, None, "abc", {"1": 2}, ["\u0000"], [[1]], [True], ["../../x"], [1.5])
    },
    "deep JSON": (lambda f: (f / "submission.json").write_text("[" * 100_000), "logs"),
    "requirements": (lambda f: (f / "requirements.txt").write_bytes(b"\xff"), "imports"),
    "deep script": (lambda f: (f / "train_gpt.py").write_text("-" * 50_000 + "1"), "imports"),
    "null in the script": (lambda f: (f / "train_gpt.py").write_text("x = 1\0"), "imports"),
    **{
        f"{pattern} -> {by[:9]}": (
            lambda f, pattern=pattern, by=by: replaced(f / "train_seed1.log", pattern, by),
            "logs",
        )
        for pattern, by in (
            ("val_loss:[0-9.]+", "val_loss:1.2.3"),
            ("val_bpb:[0-9.]+", "val_bpb:."),
            ("all:[0-9.]+s", "all:1.2.3s"),
            ("tokens:[0-9]+", "tokens:" + "9" * 400),
            ("Code size: [0-9]+", "Code size: " + "9" * 5000),
            ("seed:[0-9]+", "seed:" + "9" * 5000),
        )
    },
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_of_others_making_breaks_rules_and_not_the_check(
    copy: Path, capsys: Any, name: str
) -> None:
    change, rule = FOREIGN[name]
    change(copy)
    assert rules(copy)[rule][0] == "fail"
    assert gptpack("submission", "check", copy, "--json") == 1
    json.loads(capsys.readouterr().out)


def merged(folder: Path, **values: Any) -> Path:
    """A folder in the shape of the contest's merged records: a script, logs, no artifact."""
    folder.mkdir()
    code = b"print(1)\n".ljust(16_000, b"#")
    (folder / "train_gpt.py").write_bytes(code)
    (folder / "README.md").write_text("A record.\n")
    results = {}
    for seed in (1, 2, 3):
        (folder / f"train_seed{seed}.log").write_text(f"seed: {seed}\nstep:1/1 val_loss:2.8\n")
        results[str(seed)] = {"val_bpb": 1.08, "artifact_bytes": 15_990_000 + seed}
    record = {
        **dict.fromkeys(("author", "github_id", "name", "blurb"), "x"),
        "date": "2026-04-09",
        "track": "10min_16mb",
        "val_loss": 2.8,
        "val_bpb": 1.08,
        "bytes_total": 15_990_003,
        "bytes_code": len(code),
        "seeds": [1, 2, 3],
        "seed_results": results,
        "hardware": "8xH100",
    }
    (folder / "submission.json").write_text(json.dumps(record | values))
    return folder


def test_a_total_that_has_the_code_is_not_added_to_it_again(tmp_path: Path) -> None:
    found = rules(merged(tmp_path / "merged"))
    state, text = found["cap"]
    assert (state, text.partition(" is here")[0]) == ("skip", "no model.gptpack")
    assert found["sizes"] == (
        "skip",
        "code 16,000 bytes, as the files have; no model.gptpack is here to be counted",
    )
    bare = rules(merged(tmp_path / "bare", bytes_total=None, seed_results=[]))
    assert bare["cap"][0] == "skip"


@pytest.mark.parametrize(
    "values",
    [
        {"bytes_total": 16_000_001},
        {"artifact_bytes": 16_000_001},
        {"seed_results": {"7": {"bytes_total": 17_000_000}}},
        {"seed_results": {"7": {"artifact_bytes": 17_000_000}}},
    ],
)
def test_a_stated_total_over_the_cap_fails_it(tmp_path: Path, values: dict[str, Any]) -> None:
    state, text = rules(merged(tmp_path / "merged", **values))["cap"]
    assert state == "fail"
    assert "over the cap of 16,000,000" in text


def test_logs_that_no_seed_names_are_not_passed(tmp_path: Path) -> None:
    assert rules(merged(tmp_path / "merged", seeds=[]))["logs"] == (
        "fail",
        "submission.json has no seeds, so none of the 3 logs here was read",
    )


@pytest.mark.parametrize("kind", ["link", "folder's link", "pipe"])
def test_what_is_no_file_of_the_folder_fails(copy: Path, tmp_path: Path, kind: str) -> None:
    place = copy / "weights.bin"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "model").write_bytes(b"x" * 17_000_000)
        place.symlink_to(outside / "model" if kind == "link" else outside)
    state, text = rules(copy)["files"]
    assert state == "fail"
    assert "weights.bin" in text


def test_figures_in_the_readme_are_held_to_the_logs(copy: Path) -> None:
    readme = (copy / "README.md").read_text()
    (copy / "README.md").write_text(readme.replace("Mean val_bpb", "Mean val_bpb 0.9, not"))
    assert rules(copy)["figures"] == ("fail", "the figures in README.md are not those of the logs")


def test_a_log_whose_bytes_do_not_belong_to_its_loss_is_found(copy: Path) -> None:
    path = copy / "train_seed1.log"
    log = submission_log(path.read_text(), "log")
    path.write_text(path.read_text().replace(f" bytes:{plain_score(log).bytes} ", " bytes:9999 "))
    state, text = rules(copy)["byte accounting"]
    assert state == "fail"
    assert "the log says 9,999" in text


@pytest.mark.parametrize(("record", "state"), [([99.0], "pass"), ([0.1], "fail"), ([], "skip")])
def test_significance_is_of_the_gain_over_the_record(made: Path, record: list[float], state: str):
    assert rules(made, record=record)["significance"][0] == state


def test_a_run_over_the_cap_is_refused_before_anything_runs(
    world: World,  # noqa: F811
    runs: list[Path],
    tmp_path: Path,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    monkeypatch.setattr("gptpack.jobs.submission.CAP_BYTES", 20_000)
    options = ("--data", world.data, "--github-id", "x", "-o", tmp_path / "out")
    assert gptpack("submission", runs[0], *options) == 1
    assert "pack with --budget" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{empty}"], "no *.gptpack"),
        (["{run}", "1={run}"], "two runs have one seed"),
        (["{bare}"], "write SEED="),
        (["\u00b2={bare}"], "no *.gptpack"),
        (["9" * 19 + "={bare}"], "no *.gptpack"),
    ],
)
def test_runs_that_cannot_be_told_apart_or_read_are_usage_errors(
    world: World,  # noqa: F811
    runs: list[Path],
    tmp_path: Path,
    capsys: Any,
    arguments: list[str],
    words: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    shutil.copy(runs[0] / "model.gptpack", tmp_path / "bare")
    places = {"empty": tmp_path / "empty", "bare": tmp_path / "bare", "run": runs[0]}
    given = [argument.format(**places) for argument in arguments]
    options = ("--data", world.data, "--github-id", "x", "-o", tmp_path / "out")
    assert gptpack("submission", *given, *options) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path: Path, capsys: Any) -> None:
    assert gptpack("submission", "check", tmp_path / "nosuch") == 2
    assert "not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([3, 40, 12, 9, 30, 30, 30], (43, 55)),  # the shortest that fills a window of 10
        ([3, 4, 5, 6, 7, 8, 9, 30], (33, 42)),  # none but the last does: the longest of the others
        ([50], None),
        ([20, 30], None),
    ],
)
def test_the_probe_joins_text_at_the_starts_of_documents(lengths, expected):
    draw = np.random.default_rng(0)
    stream = [np.concatenate(([1], draw.integers(2, 999, length - 1))) for length in lengths]
    tokens = np.concatenate(stream)
    found = _exchange(tokens, 1, 10)
    if expected is None:
        assert found is None
        return
    begin, cut, other = found
    assert (begin, cut) == expected
    assert tokens[begin] == tokens[cut] == tokens[other] == 1
    assert tokens[cut + 1] != tokens[other + 1]
    assert other + 20 <= len(tokens)
