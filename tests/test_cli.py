"""The command line's frame: help, version, exit statuses, and where output goes."""

import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from worlds import invoke

from gptpack import errors
from gptpack.cli import bars, console, main
from gptpack.escape import first_line
from gptpack.version import VERSION

ROOT = Path(__file__).parent.parent


@pytest.fixture
def failing(monkeypatch):
    """A function that makes `gptpack inspect` raise what it is given."""

    def install(error: BaseException) -> None:
        @click.command()
        def command() -> None:
            raise error

        module = types.ModuleType("gptpack.cli.inspect")
        module.command = command
        monkeypatch.setitem(sys.modules, "gptpack.cli.inspect", module)

    return install


def test_the_version_is_printed(capsys):
    assert invoke("--version") == 0
    assert VERSION in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command(flag, capsys):
    assert invoke(flag) == 0
    out = capsys.readouterr().out
    for name, summary in main.COMMANDS.items():
        assert name in out
        assert summary.split()[0] in out


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_commands_help_has_an_example(name, capsys):
    command = importlib.import_module(f"gptpack.cli.{name}").command
    below = list(command.commands) if isinstance(command, click.Group) else []
    for words in [[name, word] for word in below] or [[name]]:
        assert invoke(*words, "--help") == 0
        usage, *rest = capsys.readouterr().out.splitlines()
        assert usage.startswith(f"Usage: gptpack {' '.join(words)}")
        assert any(f"gptpack {' '.join(words)}" in line for line in rest)


@pytest.mark.parametrize("arguments", [["nosuch"], ["--nosuch"], ["train", "--nosuch"]])
def test_usage_errors_are_one_line_on_stderr_and_status_2(arguments, capsys):
    assert invoke(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert "nosuch" in line
    command = " ".join(["gptpack", *arguments[:-1]])
    assert line.startswith(f"{command}: ")
    assert line.endswith(f"; see: {command} --help")


def test_a_group_alone_shows_its_help_with_status_2(capsys):
    assert invoke("data") == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ConfigError, 2),
        (errors.DataError, 2),
        (errors.ShardError, 2),
        (errors.TokenizerError, 2),
        (errors.AccountingError, 2),
        (errors.CheckpointError, 2),
        (errors.QuantError, 2),
        (errors.TrainingError, 1),
        (errors.BudgetError, 1),
        (errors.LimitError, 1),
        (errors.ArtifactError, 3),
        (errors.MissingDependencyError, 4),
        (errors.InternalError, 70),
    ],
)
def test_an_error_of_the_family_is_one_line_and_its_status(error, status, failing, capsys):
    failing(error("file.gptpack: what was wrong"))
    assert invoke("inspect") == status
    captured = capsys.readouterr()
    assert captured.err == "gptpack: file.gptpack: what was wrong\n"
    assert captured.out == ""


def test_what_the_file_system_refuses_is_one_line(failing, capsys):
    failing(PermissionError(13, "Permission denied", "/somewhere/x"))
    assert invoke("inspect") == 2
    assert capsys.readouterr().err == "gptpack: /somewhere/x: Permission denied\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--bits", "nan"), "'nan' is not a finite number"),
        (("--delta", "inf"), "'inf' is not a finite number"),
        (("--delta", "0"), "0 is not in the range x>0"),
        (("--step", "3e-4"), "--step is now --delta"),
        (("--step-factor", "*=2"), "--step-factor is now --delta-factor"),
        (("--budget", "1MB", "--seed", "-1"), "-1 is not in the range"),
        (("--budget", "1MB", "--tune-labels", "1.5"), "1.5 is not in the range"),
        (("--budget", "1MB", "--device", "foo"), "'foo' is not one of"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_anything_is_done(words, said, capsys):
    assert invoke("pack", "absent.pt", *words) == 2
    assert said in capsys.readouterr().err


def test_the_documented_statuses_are_the_ones_in_use():
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    family = [item for item in vars(errors).values() if isinstance(item, type)]
    for error in family:
        row = next(x for x in text.splitlines() if x.startswith(f"| {error.exit_status} |"))
        assert f"`{error.__name__}`" in row


@pytest.mark.parametrize(
    "bug",
    [
        RuntimeError("a bug\n::error::obeyed"),
        ModuleNotFoundError("No module named 'gptpack.nosuch'", name="gptpack.nosuch"),
        ModuleNotFoundError("No module named 'json.nosuch'", name="json.nosuch"),
        RecursionError("too deep"),
        KeyError("x"),
    ],
)
def test_a_bug_of_ours_is_status_70_with_its_traceback_and_where_to_report_it(bug, failing, capsys):
    failing(bug)
    assert invoke("inspect") == 70
    first, *rest, last = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert any(line.startswith(f"{type(bug).__name__}: ") for line in rest)
    assert not any(line.lstrip().startswith("::") for line in rest)
    assert last.startswith(f"gptpack: this is a bug of gptpack {VERSION}; please report it")


@pytest.mark.parametrize("error", [MemoryError(), type("OutOfMemoryError", (RuntimeError,), {})()])
def test_too_little_memory_is_one_line_and_status_4(error, failing, capsys):
    failing(error)
    assert invoke("inspect") == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "too little memory" in line


def test_a_package_that_is_not_installed_is_named_with_status_4(failing, capsys):
    failing(ModuleNotFoundError("No module named 'torch'", name="torch.nn"))
    assert invoke("inspect") == 4
    captured = capsys.readouterr()
    assert captured.err == (
        "gptpack: this needs torch, which is not installed; see: gptpack doctor\n"
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_ends_with_130(error, failing, capsys):
    failing(error)
    assert invoke("inspect") == 130
    assert "interrupted" in capsys.readouterr().err


def test_the_command_of_a_door_comes_before_its_arguments(failing):
    failing(errors.BudgetError("over"))
    assert invoke(command="inspect") == 1


@pytest.mark.parametrize("name", ["train", "pack", "eval"])
def test_a_door_is_its_command(name):
    door = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    assert f'run(command="{name}")' in door
    assert 'if __name__ == "__main__":' in door
    assert name in main.COMMANDS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "pack", "eval"])
def test_a_door_works_from_another_folder(name, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / f"{name}.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"Usage: gptpack {name}" in done.stdout


def test_python_m_gptpack_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "gptpack", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert VERSION in done.stdout


def test_help_does_not_load_torch():
    code = (
        "import sys\n"
        "from gptpack.cli.main import run\n"
        "try: run(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("--help", 141),
        ("inspect GOLDEN", 0),
        ("inspect GOLDEN --json", 0),
        ("check GOLDEN", 0),
        ("check GOLDEN --format markdown", 0),
        ("check GOLDEN --budget 1B", 1),
        ("check GOLDEN --budget 1B --json", 1),
        ("verify GOLDEN", 0),
        ("inspect absent", 2),
    ],
)
@pytest.mark.parametrize("streams", ["stdout", "both"])
def test_a_reader_that_goes_changes_no_verdict(words, status, streams):
    read, write = os.pipe()
    os.close(read)
    golden = str(ROOT / "tests" / "golden" / "tiny-v1.artifact")
    done = subprocess.run(
        [sys.executable, "-m", "gptpack", *words.replace("GOLDEN", golden).split()],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE if streams == "stdout" else write,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.returncode == status
    assert "Traceback" not in (done.stderr or "")


def test_names_are_escaped_wherever_they_are_printed(tmp_path, monkeypatch, capsys):
    golden = ROOT / "tests" / "golden" / "tiny-v1.artifact"
    names = ["a\n::error::x", "::error::x", "\x1b[31mred", "\u202eback", " ##[error]x"]
    monkeypatch.chdir(tmp_path)
    for name in names:
        shutil.copy(golden, tmp_path / name)
        (tmp_path / f"{name}.log").write_text("step:1/1 val_loss:2.0\n")
        for words in (
            ["inspect", name],
            ["verify", name],
            ["verify", name, "--checkpoint", name],
            ["diff", name, name],
            ["check", name, "--budget", "1B"],
            ["log", f"{name}.log"],
            ["stats", f"{name}.log", "--below", "1"],
            ["inspect", f"absent {name}"],
            ["eval", name, "--data", name],
            ["pack", name, "--budget", "1MB"],
            ["train", "--recipe", name, "--data", name, "--output", "out"],
            ["data", "info", name],
            ["data", "tokenize", "--train", name, "--tokenizer", name, "--output", name],
            ["report", name, f"{name}.log", "--output", "out"],
            ["submission", "check", name],
            [name],
        ):
            invoke(*words)
            captured = capsys.readouterr()
            for said in (captured.out + captured.err).split("\n"):
                assert said.isprintable(), (words, said)
                assert not said.lstrip().startswith(("::", "##")), (words, said)


def test_letters_of_all_scripts_are_shown_as_they_are(tmp_path, capsys):
    name = "m\u00fcller \u732b"
    assert invoke("inspect", str(tmp_path / name)) == 2
    assert name in capsys.readouterr().err


def test_every_command_module_has_its_command():
    for name in main.COMMANDS:
        module = importlib.import_module(f"gptpack.cli.{name}")
        assert isinstance(module.command, click.Command)


def test_json_goes_to_stdout_and_refuses_what_json_has_not(capsys):
    console.print_json({"bytes": 3, "text": "a"})
    assert json.loads(capsys.readouterr().out) == {"bytes": 3, "text": "a"}
    with pytest.raises(ValueError, match="JSON"):
        console.print_json({"loss": float("nan")})


def test_a_table_is_aligned_and_plain_where_there_is_no_terminal(capsys):
    console.print_table(["what", "bytes"], [["file", "1,234"], ["budget", "20,000"]])
    lines = capsys.readouterr().out.splitlines()
    assert [len(line) for line in lines] == [len("budget") + 2 + len("20,000")] * 3
    assert "\x1b" not in "".join(lines)


def test_progress_without_a_terminal_is_one_line_per_phase(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with bars.progress_bars() as report:
        for done in range(3):
            report("train", done, 2)
        report("pack", 0, 0)
    assert stream.getvalue() == "train ...\npack ...\n"


def test_without_a_terminal_long_phases_say_what_is_left(monkeypatch):
    said: list[str] = []
    told = threading.Event()

    def hear(text):
        said.append(text)
        told.set()

    monkeypatch.setattr(bars, "NOTE_SECONDS", 0.01)
    monkeypatch.setattr(bars, "note", hear)
    with bars.progress_bars() as report:
        report("train", 0, 4)
        while not re.fullmatch(r"train: \d+ s so far", said[-1]):  # though nothing is reported
            told.clear()
            assert told.wait(60), said


def test_an_estimate_goes_by_the_pace_since_a_phase_began(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(bars, "time", SimpleNamespace(monotonic=lambda: clock.now))
    heard: list[bars._Phase] = []
    monkeypatch.setattr(bars.threading.Thread, "start", lambda _: None)
    monkeypatch.setattr(bars.threading.Thread, "join", lambda _: None)
    make = bars._Phase
    monkeypatch.setattr(bars, "_Phase", lambda *given: heard.append(make(*given)) or heard[-1])

    def said(after: float) -> str:
        clock.now += after
        return heard[-1].estimate()

    with bars.progress_bars() as report:
        report("score", 0, 100)
        assert said(10) == "score: 10 s so far"
        report("score", 20, 100)
        assert said(0) == "score: 20%, about 40 s left"
        assert said(10) == "score: 20%, about 30 s left"
        assert said(40) == "score: 60 s so far"  # longer than the pace promised
        report("score", 0, 100)  # the next file
        assert said(5) == "score: 5 s so far"
        report("score", 50, 100)
        assert said(0) == "score: 50%, about 5 s left"
    assert len(heard) == 2  # and the start


def test_an_interrupt_says_what_was_reached(failing, capsys):
    def interrupted():
        with bars.progress_bars(quiet=True) as report:
            report("hessians", 3, 32)
            report("search delta", 2, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        interrupted()
    failing(stopped.value)
    assert invoke("inspect") == 130
    assert "interrupted at: search delta, 2; nothing unfinished" in capsys.readouterr().err


def test_sigterm_cleans_up_as_an_interrupt_does_and_ends_with_143(monkeypatch, capsys):
    left = []

    @click.command()
    def command() -> None:
        try:
            with bars.progress_bars(quiet=True) as report:
                report("search delta", 2, 0)
                signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # a second one does not end this
            left.append("cleaned up")

    module = types.ModuleType("gptpack.cli.inspect")
    module.command = command
    monkeypatch.setitem(sys.modules, "gptpack.cli.inspect", module)
    assert invoke("inspect") == 143
    assert left == ["cleaned up"]
    assert "gptpack: terminated at: search delta, 2; nothing unfinished" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_later_sigterm_ends_what_lost_the_first(tmp_path):
    script = """
import signal, sys, time
from gptpack.cli.exits import exit_statuses
with exit_statuses():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("lost", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "lost\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1.5)
        process.terminate()
        assert process.wait(timeout=30) == 143


def test_quiet_progress_says_nothing(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with bars.progress_bars(quiet=True) as report:
        report("train", 1, 2)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("\n404 Client Error\n\nNot found: x", "404 Client Error"),
        (
            "Unrecognized configuration:\n  caf\u00e9 \x1b[31m\nfor",
            r"Unrecognized configuration: caf\xe9 \x1b[31m",
        ),
        ("", "KeyError"),
        ("x" * 900, "x" * 300),
    ],
)
def test_of_a_librarys_error_one_line_is_shown_in_printable_ascii(said, line):
    error = KeyError() if not said else ValueError(said)
    assert first_line(error) == line


def test_a_table_of_a_hostile_file_has_an_end_and_its_last_rows(capsys):
    rows = [[f"tensor {i}", "1"] for i in range(20_000)] + [["file", "20,000"]]
    console.print_table(["what", "bytes"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == console.MOST_ROWS + 2
    assert lines[-1].split() == ["file", "20,000"]
    assert any("(19,501 more; --json has all)" in line for line in lines)
