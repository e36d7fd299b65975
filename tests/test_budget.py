"""The budget is a contract, as a user runs it: what is proved, and what a failed pack leaves."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from gptpack.artifact.layout import MAGIC
from gptpack.artifact.reader import decode_artifact
from gptpack.cli.main import run
from gptpack.data.shards import write_shard
from gptpack.data.tokenizer import TokenizerConfig, train_tokenizer
from gptpack.errors import ConfigError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.jobs.fresh import evaluate_in_fresh_process
from gptpack.jobs.load import Loaded, load
from gptpack.jobs.pack import pack
from gptpack.jobs.proof import Proof
from gptpack.jobs.request import PackRequest
from gptpack.packing import search
from gptpack.progress import silent
from gptpack.training.checkpoint import Checkpoint, save_checkpoint
from gptpack.values import TokenizerIdentity

QUICK = ("--states", "8", "--calibration-tokens", "512", "--eval-tokens", "640")
CONFIG = ModelConfig(vocab=300, layers=2, width=96, heads=4, kv_heads=2, mlp_hidden=256, context=32)
IDENTITY = TokenizerIdentity(sha256="ab" * 32, vocab=300, bos=1)


def checkpoint() -> Checkpoint:
    model = GPT(CONFIG, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return Checkpoint(model=CONFIG, weights=dict(model.state_dict()))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, a tokenizer and shards as a user has them."""
    folder = tmp_path_factory.mktemp("place")
    words = ["the cat sat on the mat", "a dog ran over the hill", "two birds flew by the sea"]
    text = [" ".join(words[(i * 7 + j) % 3] for j in range(30)) + f" {i}" for i in range(200)]
    config = TokenizerConfig(vocab=290)
    tokenizer = train_tokenizer(text, folder / "tokenizer.model", config)
    tokens = [token for line in text for token in (tokenizer.bos, *tokenizer.encode(line))]
    half = len(tokens) // 2
    half += next(i for i, token in enumerate(tokens[half:]) if token == tokenizer.bos)
    write_shard(folder / "x_train_000000.bin", np.array(tokens[:half]))
    write_shard(folder / "x_val_000000.bin", np.array(tokens[half:]))
    saved = checkpoint()
    save_checkpoint(
        folder / "c.pt",
        Checkpoint(model=CONFIG, weights=saved.weights, tokenizer=tokenizer.identity),
    )
    return folder


def command(place, *words: str) -> list[str]:
    return [sys.executable, "-m", "gptpack", "pack", str(place / "c.pt"), *words]


def gptpack(place, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(place, *words), capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_proves_in_a_fresh_process_what_it_reports(place, tmp_path):
    output = tmp_path / "m.gptpack"
    code = tmp_path / "code.py"
    code.write_bytes(b"#" * 1234)
    words = ["--budget", "100KB", "--data", str(place), "-o", str(output), "--stride", "16"]
    options = [*words, "--states", "8", "--calibration-tokens", "1024", "--code", str(code)]
    done = gptpack(place, *options, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    size = output.stat().st_size
    assert report["bytes"] == size <= 100_000 - 1234
    assert report["headroom_bytes"] == 100_000 - 1234 - size
    sections = sum(section["bytes"] for section in report["sections"].values())
    assert report["header_bytes"] + sections == size
    check = [sys.executable, "-m", "gptpack", "eval", str(output), "--data", str(place), "--json"]
    found = json.loads(subprocess.run(check, capture_output=True, check=True).stdout)
    assert found["plain"]["bpb"] == report["after"]["plain"]["bpb"]
    assert found["recorded"]["bpb"] == pytest.approx(found["plain"]["bpb"], abs=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code.py", "m.gptpack"]


@pytest.mark.slow
def test_a_proof_that_was_got_ready_early_is_that_of_the_file(place, tmp_path):
    # a model in memory is scored here, so that the only processes are those of the files
    loaded = Loaded(language_model=load(place / "c.pt").model, kind="checkpoint")
    request = PackRequest(data=place, eval_tokens=640, device="cpu")
    target = tmp_path / "m.gptpack"
    file = pack(place / "c.pt", budget="400KB", methods=("int8",), data=place, plan=True).data
    found = []
    for early in (True, False):
        proof = Proof(loaded, request, target, torch.device("cpu"))
        proof.early = early
        with proof:
            assert (proof.waiting is not None) is early
            # a second file has no process waiting for it
            count = 2 if early else 1
            found += [proof.of(file, progress=silent)[1].plain.bpb for _ in range(count)]
    assert len(set(found)) == 1
    assert list(tmp_path.iterdir()) == []
    proof = Proof(loaded, request, target, torch.device("cpu"))
    proof.early = True
    with proof:
        waiting = proof.waiting.process
    assert waiting.returncode == -signal.SIGKILL


@pytest.mark.parametrize("name", ["m.gptpack", "m" * 240 + ".gptpack"])
def test_two_proofs_for_one_target_have_files_of_their_own(tmp_path, name):
    loaded, request = (
        Loaded(language_model=GPT(CONFIG), kind="checkpoint"),
        PackRequest(data=tmp_path),
    )
    for _ in range(2):
        with Proof(loaded, request, tmp_path / name, torch.device("cpu")) as proof:
            proof.candidate.write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == 2


def test_the_folder_itself_is_no_checkpoint(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert "is a directory; name a checkpoint" in refused(capsys, ".", "--bits", "3")


@pytest.mark.slow
def test_a_checkpoint_may_have_a_name_that_begins_with_a_dash(place, tmp_path, monkeypatch):
    shutil.copy(place / "c.pt", tmp_path / "-c.pt")
    monkeypatch.chdir(tmp_path)
    found = evaluate_in_fresh_process(Path("-c.pt"), place, eval_tokens=64, quiet=True)
    assert found.plain.tokens == 64


@pytest.mark.slow
def test_a_process_that_waits_for_a_file_ends_when_nobody_can_send_it(place):
    words = ["eval", "none.gptpack", "--data", str(place), "--wait", "--device", "cpu"]
    command = [sys.executable, "-m", "gptpack", *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr == b""


@pytest.mark.slow
def test_without_data_the_model_writes_its_own_calibration_text(place, tmp_path):
    output = tmp_path / "m.gptpack"
    options = ["--budget", "100KB", "--states", "8", "--calibration-tokens", "512"]
    done = gptpack(place, *options, "-o", str(output), "--json")
    assert done.returncode == 0, done.stderr
    header = decode_artifact(output.read_bytes()).header
    assert (header.pack["calibration"], header.pack["calibration_tokens"]) == ("self", 512)
    assert output.stat().st_size <= 100_000


@pytest.mark.slow
def test_data_without_train_shards_proves_and_does_not_calibrate(place, tmp_path, capsys):
    for name in ("tokenizer.model", "x_val_000000.bin"):
        shutil.copy(place / name, tmp_path / name)
    output = tmp_path / "m.gptpack"
    words = ["pack", str(place / "c.pt"), "--bits", "3", *QUICK, "--data", str(tmp_path)]
    with suppress(SystemExit):
        run([*words, "-o", str(output)])
    capsys.readouterr()
    pack = decode_artifact(output.read_bytes()).header.pack
    assert pack["calibration"] == "self"
    assert "quality" in pack


def refused(capsys, *words: str) -> str:
    """What `gptpack pack` says before it ends with status 2 and has not calibrated."""
    with pytest.raises(SystemExit) as stopped:
        run(["pack", *map(str, words)])
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    (line,) = said.splitlines()
    return line


def test_text_too_short_for_one_window_of_tuning_is_refused(place, tmp_path, capsys):
    for name in ("tokenizer.model", "x_val_000000.bin"):
        shutil.copy(place / name, tmp_path / name)
    write_shard(tmp_path / "x_train_000000.bin", np.ones(20))
    words = ["--bits", "3", "--states", "8", "--calibration", "random", "--calibration-tokens"]
    output = ("-o", tmp_path / "m.gptpack", "--json")
    data = ("512", "--tune", "floats", "--data", tmp_path)
    said = refused(capsys, place / "c.pt", *words, *data, *output)
    assert "0 windows of 32 training tokens, 1 are needed" in said


def test_a_recipe_for_a_checkpoint_that_says_its_own_model_is_refused(place, capsys):
    said = refused(capsys, place / "c.pt", "--bits", "3", "--model", "tiny")
    assert "--model tiny is for bare state dicts" in said


def test_data_that_no_proof_can_use_is_refused_before_any_work(place, tmp_path, capsys):
    shutil.copy(place / "tokenizer.model", tmp_path)
    said = refused(capsys, place / "c.pt", "--bits", "3", "--data", tmp_path)
    assert "no shards named *_val_*.bin" in said


@pytest.mark.slow
def test_a_pack_that_fails_leaves_nothing_and_what_stood_there_stays(place, tmp_path):
    output = tmp_path / "m.gptpack"
    done = gptpack(place, "--budget", "2KB", "--method", "int8", "--data", str(place), "-o", output)
    assert done.returncode == 1
    assert "bytes are enough" in done.stderr
    assert list(tmp_path.iterdir()) == []
    output.write_bytes(MAGIC + b"old")
    words = ["--budget", "2KB", "--method", "int8", "--data", str(place), "-o", output, "--force"]
    assert gptpack(place, *words).returncode == 1
    assert output.read_bytes() == MAGIC + b"old"
    done = gptpack(place, "--data", str(place))
    assert done.returncode == 2
    assert "give one of --budget" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["factor", "score the checkpoint", "score the file"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_whoever_kills_a_pack_finds_no_part_of_a_file_under_its_name(place, tmp_path, phase, how):
    output = tmp_path / "m.gptpack"
    options = ["--budget", "400KB", "--method", "int8", "--data", str(place), "-o", str(output)]
    with subprocess.Popen(
        command(place, *options, *QUICK), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert any(line.decode() == f"{phase} ...\n" for line in process.stderr)
        process.send_signal(how)
        process.stderr.read()
        status = process.wait()
    if how == signal.SIGKILL:
        # what a killed process leaves beside the target has a name that nobody takes for a file
        assert all(path.name.startswith(".gptpack-") for path in tmp_path.iterdir())
        return
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143}[how]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_curve_has_a_measured_file_at_each_point_and_leaves_none(place, tmp_path):
    output = tmp_path / "curve.csv"
    words = ["--data", str(place), *QUICK, "--curve", str(output), "--curve-bits", "2,4"]
    done = gptpack(place, *words, "--json")
    assert done.returncode == 0, done.stderr
    with output.open(newline="") as file:
        rows = [{key: float(text) for key, text in row.items()} for row in csv.DictReader(file)]
    assert json.loads(done.stdout)["curve"] == rows
    fine, coarse = rows
    assert 3.9 < fine["bits"] <= 4.0
    assert 1.5 < coarse["bits"] < 2.5
    assert fine["bytes"] > coarse["bytes"]
    assert coarse["delta"] == pytest.approx(2 ** (fine["bits"] - 2) * fine["delta"], rel=1e-5)
    # rounding makes a random model better as often as worse
    assert fine["bpb_before"] == coarse["bpb_before"]
    assert len({fine["bpb_before"], fine["bpb_measured"], coarse["bpb_measured"]}) == 3
    assert not any("predicted" in key for key in fine)
    plots = {"curve.png"} if json.loads(done.stdout)["plot"] else set()
    assert {path.name for path in tmp_path.iterdir()} == {"curve.csv"} | plots


def test_points_beyond_the_finest_steps_are_left_out_and_do_not_move_others(
    place, tmp_path, monkeypatch, capsys
):
    words = ["--calibration", "random", "--states", "8", "--calibration-tokens", "512"]
    curve = ["--curve", str(tmp_path / "c.csv"), "--curve-bits", "16,15,3", "--json"]
    monkeypatch.setattr(search, "FINEST_DELTA", 1e-4)
    run(["pack", str(place / "c.pt"), *words, *curve])
    captured = capsys.readouterr()
    finest, coarse = (row["bits"] for row in json.loads(captured.out)["curve"])
    assert 3.5 < finest < 15
    assert abs(coarse - 3) < 0.25
    assert f"--curve-bits 15: left out, the finest grids take {finest:.3f}" in captured.err


@pytest.mark.slow
def test_two_ranks_pack_one_file_together(place, tmp_path):
    output = tmp_path / "m.gptpack"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = ["--bits", "3", "--data", str(place), *QUICK, "-o", str(output), "--json"]
    done = subprocess.run(
        [*launch, "-m", "gptpack", "pack", str(place / "c.pt"), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["bytes"] == output.stat().st_size
    assert 2.9 < report["bits"] <= 3.0
    assert decode_artifact(output.read_bytes()).header.pack["calibration_tokens"] == 512
    assert "after" in report


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((), 2, "give one of --budget"),
        (("--budget", "1MB", "--bits", "3"), 2, "--budget and --bits exclude each other"),
        (("--bits", "3", "--delta-factor", "blocks.0.*"), 2, "write PATTERN=FACTOR"),
        (("--bits", "3", "--delta-factor", "blocks.0.*=0"), 2, "must be positive"),
        (("--delta", "1e300"), 2, "--delta 1e+300 must be a number of 1e-12 to 1e12"),
        (("--curve", "c.csv", "--curve-bits", "a"), 2, "write positive numbers"),
        (("--budget", "1MB", "--tokenizer", "absent.model"), 2, "absent.model"),
        (("--budget", "1MB", "--tokenizer", "{other}"), 2, "was trained with"),
        (("--budget", "1MB", "-o", "{place}/c.pt/x", "--method", "int8"), 2, "c.pt/x"),
        (("--budget", "1MB", "-o", "{place}/c.pt"), 2, "no packed file; it stays as it is"),
        (("--budget", "1MB", "-o", "{place}"), 2, "is a directory"),
        (("--bits", "3", "--method", "zz*=int8"), 2, "'zz*' matches no tensor"),
        (("--bits", "3", "--delta-factor", "zz=2"), 2, "'zz' matches no tensor"),
        (("--bits", "3", "--method", "int8", "--method", "float16"), 2, "several methods"),
        (("--curve", "c.csv", "--plan"), 2, "writes no --curve"),
        (("--curve", "c.csv", "--curve-bits", "17,3"), 2, "positive numbers up to 16"),
        (("--curve", "{place}/c.pt"), 2, "c.pt exists and is no curve"),
        (("--curve", "{place}"), 2, "is a directory"),
        (("--curve", "plot.png"), 2, "name the CSV"),
        (("--curve", "other.csv", "--data", "{place}"), 2, "other.png exists and is no plot"),
        (("--budget", "60000xx"), 2, "write a number and a unit"),
        (("--bits", "3", "--code", "absent.py"), 2, "absent.py: no such file"),
        (("--bits", "3", "--codec", "bogus"), 2, "codec 'bogus': there are auto, raw"),
        (("--bits", "3", "--data", "{place}", "--eval-tokens", "31"), 2, "one context of 32"),
        (("--bits", "3", "--data", "{place}", "--stride", "33"), 2, "--stride 33 must be 1 to"),
        (("--bits", "3", "-o", "/dev/null"), 2, "/dev/null exists and is not a regular file"),
        (("--bits", "3", "--tune-seconds", "5"), 2, "--tune-seconds does nothing without --tune"),
        (("--bits", "3", "--tune-labels", "0.5"), 2, "--tune-labels does nothing without --tune"),
        (("--bits", "3", "--curve-bits", "3"), 2, "--curve-bits does nothing without --curve"),
        (("--curve", "c.csv", "-o", "m.gptpack"), 2, "--output does nothing with --curve"),
        (("--bits", "3", "--stride", "8"), 2, "--stride does nothing without --data"),
    ],
)
def test_what_cannot_be_done_is_one_line(place, tmp_path, monkeypatch, capsys, words, status, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.png").write_bytes(b"a picture of a cat")
    other = tmp_path / "other.model"
    if "{other}" in words:
        train_tokenizer(["one two three four five six"] * 50, other, TokenizerConfig(vocab=280))
    words = [word.format(place=place, other=other) for word in words]
    with pytest.raises(SystemExit) as ended:
        run(["pack", str(place / "c.pt"), *words])
    assert ended.value.code == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gptpack: ")
    assert said in line


def test_a_full_disk_is_one_line_and_leaves_nothing(place, tmp_path, capsys):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    output = str(tmp_path / "m.gptpack")
    words = ["pack", str(place / "c.pt"), "--budget", "1MB", "--method", "int8", "-o", output]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(SystemExit) as ended:
            run(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert ended.value.code == 2
    assert "cannot write: File too large" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_rise_is_printed_that_was_not_measured(place, capsys):
    words = ["--calibration", "random", "--states", "8", "--calibration-tokens", "512"]
    run(["pack", str(place / "c.pt"), "--bits", "3", "--plan", *words])
    out = capsys.readouterr().out
    assert "coded bits per weight" in out
    assert "rise" not in out
    assert "predicted" not in out


def test_a_packed_file_is_replaced_by_force_alone(place, tmp_path, capsys):
    output = tmp_path / "m.gptpack"
    output.write_bytes(MAGIC + b"old")
    words = ["--delta", "0.01", "--calibration", "random", "--states", "8"]
    words += ["--calibration-tokens", "512", "--output", str(output)]
    said = refused(capsys, place / "c.pt", *words)
    assert said == f"gptpack: {output} exists; give --force, or another --output"
    with pytest.raises(ConfigError, match="exists; give force=True"):
        pack(place / "c.pt", delta=0.01, output=output)
    assert output.read_bytes() == MAGIC + b"old"
    run(["pack", str(place / "c.pt"), *words, "--plan"])
    run(["pack", str(place / "c.pt"), *words, "--force"])
    assert decode_artifact(output.read_bytes()).header.pack["delta"] == 0.01
    output.write_text("notes")
    capsys.readouterr()
    assert "is no packed file" in refused(capsys, place / "c.pt", *words, "--force")
