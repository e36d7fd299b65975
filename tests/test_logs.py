"""Logs are read into the JSON of an evaluation, and what contradicts itself in them is said."""

import json
import re
from pathlib import Path

import pytest
from test_cli import invoke

from gptpack.cli import main
from gptpack.errors import DataError
from gptpack.runs.logged import LoggedRun
from gptpack.runs.logs import parse_log, read_log

# The lines that matter of two logs of parameter-golf (its records of 2026-03-29 and 2026-03-17).
RECORD = """\
train_loader:dataset:fineweb10B_sp1024 train_shards:80
val_loader:shards pattern=data/fineweb_val_*.bin tokens:62021632
model_params:27038812
world_size:8 grad_accum_steps:1
train_batch_tokens:786432 train_seq_len:2048 iterations:20000 max_wallclock_seconds:600.000
seed:1337
gptq:reserving 14000ms from training budget, effective=586000ms
warmup_step:20/20
step:6500/20000 train_loss:1.9506 train_time:567914ms step_avg:87.37ms
step:6704/20000 val_loss:1.9125 val_bpb:1.1327 train_time:586081ms step_avg:87.42ms
stopping_early: wallclock_cap train_time:586081ms step:6704/20000
peak memory allocated: 22847 MiB reserved: 22894 MiB
DIAGNOSTIC post_ema val_loss:1.9110 val_bpb:1.1318 eval_time:2072ms
Serialized model: 106232246 bytes
Code size: 111130 bytes
gptq:calibrated 66 layers in 6.8s
gptq_quantize: 66 GPTQ layers, 0 naive layers
Serialized model int6+lzma: 15875980 bytes
Total submission size int6+lzma: 15987110 bytes
final_int6_roundtrip val_loss:1.9171 val_bpb:1.1354 eval_time:6442ms
final_int6_roundtrip_exact val_loss:1.91705823 val_bpb:1.13538987
final_int6_sliding_window val_loss:1.8773 val_bpb:1.1119 stride:64 eval_time:78513ms
final_int6_sliding_window_exact val_loss:1.87733676 val_bpb:1.11186751
"""
MISLABELLED = "final_int8_zlib_roundtrip_exact val_loss:1.87733676 val_bpb:1.11186751\n"
BASELINE = """\
step:13750/20000 train_loss:1.9910 train_time:598726ms step_avg:43.54ms
step:13780/20000 val_loss:2.0606 val_bpb:1.2172 train_time:600038ms step_avg:43.54ms
stopping_early: wallclock_cap train_time:600038ms step:13780/20000
Serialized model: 67224983 bytes
Code size: 47642 bytes
Total submission size: 67272625 bytes
Serialized model int8+zlib: 15815847 bytes (payload:17178912 raw_torch:17224025)
Total submission size int8+zlib: 15863489 bytes
final_int8_zlib_roundtrip val_loss:2.0727 val_bpb:1.2244 eval_time:1401ms
final_int8_zlib_roundtrip_exact val_loss:2.07269931 val_bpb:1.22436570
"""
LATER = """\
val_tokens: 47851520
4000/20000 train_loss: 2.4010 train_time: 8.1m tok/s: 6470000
4945/20000 val_loss: 2.3450 val_bpb: 1.0716
stopping_early: wallclock_cap train_time: 599592ms step: 4945/20000
diagnostic pre-quantization post-ema val_loss:2.32837260 val_bpb:1.06395931 eval_time:18334ms
Code size (uncompressed): 157868 bytes
Code size (compressed): 31999 bytes
Serialized model quantized+pergroup: 15865260 bytes
Total submission size quantized+pergroup: 15897259 bytes
diagnostic quantized val_loss:2.34714550 val_bpb:1.07253780 eval_time:31000ms
quantized_ttt_phased val_loss:2.31943280 val_bpb:1.05987430 eval_time:508800ms
total_eval_time:508.8s
"""
SPEEDRUN = """\
step:0/1750 val_loss:10.8258 train_time:0ms step_avg:0.01ms
step:1749/1750 train_time:173269ms step_avg:99.07ms
step:1750/1750 val_loss:3.2784 train_time:173368ms step_avg:99.07ms
peak memory allocated: 38763 MiB reserved: 39000 MiB
"""


def said(text: str) -> list[str]:
    return [f"{one.about}: {one.says}" for one in parse_log(text).contradictions]


def test_a_clean_log_becomes_a_result_without_contradictions() -> None:
    found = parse_log(RECORD, "x.log").to_dict()
    assert found["contradictions"] == []
    assert found["file"] == {"path": "x.log", "bytes": 15987110, "sha256": None}
    assert found["plain"]["bpb"] == 1.13538987
    # What the printed figures imply of the text, and what its bytes are known to be.
    assert found["plain"]["bytes"] == 151_080_363
    assert found["sliding"]["bytes"] == pytest.approx(151_079_963, abs=2)
    assert (found["sliding"]["stride"], found["sliding"]["seconds"]) == (64, 78.513)
    assert found["before"]["bpb"] == 1.1318
    assert found["rise_bpb"] == pytest.approx(0.00359, abs=1e-5)
    assert found["decisive"] == "sliding"
    assert found["adaptation"] == "none"
    assert found["training"]["steps"] == 6704
    assert found["training"]["parameters"] == 27038812
    assert found["training"]["train_shards"] == 80
    assert found["sizes"]["recomputed_total"] == 15987110
    assert found["seconds"]["train"] == 586.081
    assert found["seconds"]["total"] == pytest.approx(586.081 + 6.8 + 2.072 + 6.442 + 78.513)
    json.dumps(found, allow_nan=False)


def test_a_plain_label_on_the_sliding_figure_is_a_contradiction_and_no_figure() -> None:
    assert said(RECORD + MISLABELLED) == [
        "label: final_int8_zlib_roundtrip_exact is the figure of final_int6_sliding_window_exact",
        "label: final_int8_zlib_roundtrip_exact names int8+zlib, but the model is packed as "
        "int6+lzma",
    ]
    found = parse_log(RECORD + MISLABELLED).to_dict()
    assert found["plain"]["bpb"] == 1.13538987
    assert found["sliding"]["metric"] == "final_int6_sliding_window_exact (log)"


def test_the_baselines_log_is_read() -> None:
    log = parse_log(BASELINE)
    assert log.contradictions == []
    assert log.sizes == {
        "checkpoint": 67224983,
        "code": 47642,
        "checkpoint_total": 67272625,
        "model": 15815847,
        "total": 15863489,
    }
    found = log.to_dict()
    assert found["plain"]["bytes"] is None
    assert found["decisive"] == "plain"
    assert found["rise_bpb"] == pytest.approx(0.0072, abs=5e-5)


def test_later_logs_with_spaces_and_test_time_training_are_read() -> None:
    log = parse_log(LATER)
    assert log.contradictions == []
    assert (log.steps, log.train_seconds) == (4945, 599.592)
    assert log.sizes["code"] == 31999
    found = log.to_dict()
    assert found["ttt"]["ttt"]["bpb"] == 1.05987430
    assert found["decisive"] == "ttt"
    assert found["adaptation"].startswith("ttt")
    assert found["before"]["bpb"] == 1.06395931
    assert found["plain"]["bpb"] == 1.07253780


OWN = """\
run:a seed:1337
step:40/40 train_loss:5.200000 train_time:3000ms step_avg:75.00ms
training_done step:40 train_time:3010ms
pack {"method": "gptq"}
pack_time:1500ms
gptpack:0.1 python:3.11.7 torch:2.13.0 device:NVIDIA H100 80GB HBM3 ranks:8
model_params:50000
Serialized model: 140000 bytes
Code size: 21000 bytes
Total submission size: 161000 bytes
adaptation:none
final_plain_exact val_loss:2.00000000 val_bpb:1.15415603 tokens:4000 bytes:10000 context:64 \
stride:64 eval_time:500ms
final_sliding_exact val_loss:1.95000000 val_bpb:1.12530213 tokens:4000 bytes:10000 context:64 \
stride:16 eval_time:900ms
eval_seconds decode:0.20s build:0.15s plain:0.50s sliding:0.90s all:2.25s
"""


def test_a_text_of_one_window_has_one_score_by_both_ways() -> None:
    sliding = "final_sliding_exact val_loss:2.00000000 val_bpb:1.15415603"
    log = parse_log(re.sub("final_sliding_exact val_loss:.* val_bpb:[0-9.]+", sliding, OWN))
    assert log.contradictions == []
    assert log.best("plain") is not None


def test_the_log_of_our_own_submission_is_read() -> None:
    log = parse_log(OWN)
    assert log.contradictions == []
    assert log.sizes == {"model": 140000, "code": 21000, "total": 161000}
    assert log.facts == {"seed": 1337, "ranks": 8, "parameters": 50000}
    assert log.seconds == {"pack": 1.5, "eval_total": 2.25}
    assert (log.steps, log.train_seconds) == (40, 3.01)
    assert log.words == {
        "gptpack": "0.1",
        "torch": "2.13.0",
        "device": "NVIDIA H100 80GB HBM3",
        "adaptation": "none",
    }
    found = log.to_dict()
    assert (found["sliding"]["tokens"], found["sliding"]["bytes"]) == (4000, 10000)
    assert (found["sliding"]["stride"], found["sliding"]["seconds"]) == (16, 0.9)
    assert found["decisive"] == "sliding"
    wrong = OWN.replace("tokens:4000 bytes:10000 context:64 stride:16", "tokens:4000 bytes:9990")
    assert said(wrong) == [
        "bytes: final_sliding_exact: its loss and bits per byte do not belong to 4,000 targets of "
        "9,990 bytes"
    ]


def test_a_log_that_knows_no_bytes_is_read() -> None:
    log = parse_log(SPEEDRUN)
    assert log.contradictions == []
    found = log.to_dict()
    assert (found["plain"]["nats_per_token"], found["plain"]["bpb"]) == (3.2784, None)
    assert found["seconds"]["train"] == 173.368
    assert found["training"]["peak_memory_mib"] == 38763


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "size int6+lzma: 15987110",
            "size int6+lzma: 15977110",
            "size: model 15,875,980 and code 111,130 bytes are 15,987,110, not the stated total",
        ),
        (
            "Code size: 111130",
            "Code size: 211130",
            "size: 16,087,110 bytes are 87,110 over 16,000,000",
        ),
        (
            "val_bpb:1.13538987",
            "val_bpb:1.09005000",
            "bytes: final_int6_roundtrip_exact: its figures imply 157,364,4",
        ),
        (
            "val_loss:1.91705823 val_bpb:1.13538987",
            "val_loss:1.90705823 val_bpb:1.12946734",
            "loss: the packed model scores 0.00233 bits per byte better than the unpacked",
        ),
        ("0 naive layers", "3 naive layers", "fallback: 3 layers were not quantized by GPTQ"),
        (
            "train_time:586081ms",
            "train_time:600081ms",
            "time: training took 600.1 s of 586.0 s",
        ),
        ("step_avg:87.42ms", "step_avg:80.00ms", "time: 6,704 steps of 80.00 ms are 536.3 s"),
        ("eval_time:78513ms", "eval_time:617000ms", "time: evaluation took 623.4 s of 600 s"),
        ("val_loss:1.9125 val_bpb:1.1327", "val_loss:nan val_bpb:nan", "step 6704: the loss is"),
    ],
)
def test_what_does_not_fit_together_is_said(old: str, new: str, message: str) -> None:
    assert old in RECORD
    assert any(message in one for one in said(RECORD.replace(old, new))), said(
        RECORD.replace(old, new)
    )


TWICE = """\
seed: 1
step:500/500 val_loss:2.8260 val_bpb:1.0900 train_time:60000ms step_avg:120.00ms
quantized val_loss:2.84000000 val_bpb:1.09542857 eval_time:8000ms
quantized_sliding_window val_loss:2.80000000 val_bpb:1.08000000 eval_time:80000ms
ttt_sliding:done val_loss=2.700000 val_bpb=1.041429 elapsed=300.0s
quantized_ttt val_loss:2.70000000 val_bpb:1.04142857 eval_time:300400ms
"""


def test_a_pass_that_is_printed_twice_takes_its_time_once() -> None:
    log = parse_log(TWICE)
    assert log.contradictions == []
    assert log.to_dict()["seconds"] == {
        "train": 60.0,
        "quantized": 8.0,
        "quantized_sliding_window": 80.0,
        "quantized_ttt": 300.4,
        "total": pytest.approx(448.4),
    }
    again = parse_log(TWICE + TWICE)  # a log that was shown and kept, and caught both
    assert again.to_dict()["seconds"]["total"] == pytest.approx(448.4)


@pytest.mark.parametrize(
    "figures",
    [
        "val_loss:2.6999 val_bpb:1.0413 eval_time:300400ms",
        "val_loss:2.7000 val_bpb:1.0414 eval_time:340000ms",
    ],
)
def test_passes_of_another_score_or_time_count_each(figures: str) -> None:
    log = parse_log(TWICE[: TWICE.index("quantized_ttt")] + f"quantized_ttt {figures}\n")
    assert [one.about for one in log.contradictions] == ["time"]


def test_a_run_ends_with_the_step_that_crosses_its_limit_if_no_line_has_its_time() -> None:
    capped = """\
max_wallclock_seconds: 600.0
4500/20000 train_loss: 2.7634 train_time: 9.7m tok/s: 6106541
stopping_early: wallclock_cap train_time: {}ms step: 4557/20000
quantized val_loss:2.80000000 val_bpb:1.08000000 eval_time:8000ms
"""
    assert said(capped.format(600_119)) == []
    assert said(capped.format(601_000)) == ["time: training took 601.0 s of 600.0 s"]


def test_figures_of_a_text_of_unknown_bytes_are_compared_with_each_other() -> None:
    text = "".join(line for line in RECORD.splitlines(True) if "val_loader" not in line)
    assert said(text) == []
    wrong = text.replace("val_bpb:1.11186751", "val_bpb:1.06186751")
    assert len(said(wrong)) == 1
    assert "against what final_int6_roundtrip_exact implies" in said(wrong)[0]


def test_rounded_figures_are_not_held_to_what_they_cannot_say() -> None:
    text = "step:1/1 val_loss:2.07 val_bpb:1.22\nfinal val_loss:2.06 val_bpb:1.22\n"
    assert said(text) == []


def test_what_is_no_log_is_an_error(tmp_path: Path) -> None:
    for content in ("", "hello\nstep by step\n", "model_params:3\n"):
        path = tmp_path / "x.log"
        path.write_text(content)
        with pytest.raises(DataError, match="no training step and no loss"):
            read_log(path)
    with pytest.raises(DataError, match="cannot read"):
        read_log(tmp_path / "nosuch.log")


def test_bytes_that_are_no_text_do_not_stop_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"\xff\xfe\x00" + BASELINE.encode() + b"\x80\n" * 3)
    assert read_log(path).best("plain") is not None


def test_the_command_prints_figures_and_ends_with_what_contradicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean, odd = tmp_path / "a.log", tmp_path / "b.log"
    clean.write_text(RECORD)
    odd.write_text(RECORD + MISLABELLED)
    main.run(["log", str(clean)])
    out = capsys.readouterr().out
    assert "6,704 of 20,000 steps in 586.1 s" in out
    assert "151,080,363" in out
    assert "12,890 below the cap" in out
    with pytest.raises(SystemExit) as stopped:
        main.run(["log", str(clean), str(odd), "--json"])
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    assert [len(result["contradictions"]) for result in json.loads(captured.out)] == [0, 2]
    assert "is the figure of final_int6_sliding_window_exact; and 1 more" in captured.err


def test_a_loss_that_is_no_number_is_said_and_written_as_null() -> None:
    log = parse_log("step:1/1 val_loss:nan val_bpb:nan train_time:5ms\n")
    assert [one.says for one in log.contradictions] == ["step 1: the loss is nan"]
    found = log.to_dict()
    assert (found["plain"]["bpb"], found["plain"]["nats_per_token"]) == (None, None)
    json.dumps(found, allow_nan=False)


FIGURES = "final_plain val_loss:2.0 val_bpb:1.2"


@pytest.mark.parametrize(
    "text",
    [
        f"{FIGURES} tokens:inf",
        f"{FIGURES} tokens:nan",
        f"{FIGURES} stride:1e999",
        "final_plain val_loss:1e300 val_bpb:1e-300",
        "val_tokens: 1000\nfinal_plain val_loss:1e300 val_bpb:1e-10",
        "val_tokens: 1000\nfinal_plain val_loss:1e-10 val_bpb:1e300",
        f"{FIGURES}\nstep:{'9' * 5000}/9 val_loss:1.0",
        f"val_tokens: {'9' * 400}\n{FIGURES}",
        f"Serialized model int8: {'9' * 5000} bytes\n{FIGURES}",
        f"step:{'9' * 400}/9 val_loss:1.0 train_time:9ms step_avg:9ms\n{FIGURES}",
        f"stopping_early: train_time: 9ms step: {'9' * 400}/9\n{FIGURES}",
        "step:1/9 val_loss:1.0 train_time:infms step_avg:infms",
        "step:1/9 val_loss:1.0 train_time:1e999ms step_avg:nanms",
        f"{FIGURES} eval_time:infs",
        f"total_eval_time: infms\n{FIGURES} eval_time:1e308s\n{FIGURES} eval_time:1e308s",
    ],
)
def test_figures_that_nothing_can_have_are_no_trouble(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.log"
    path.write_text(text)
    assert invoke("log", str(path)) in (0, 1)
    capsys.readouterr()
    assert invoke("log", str(path), "--json") in (0, 1)
    json.loads(capsys.readouterr().out)


def test_an_empty_log_has_nothing() -> None:
    assert LoggedRun("x").best("plain") is None
