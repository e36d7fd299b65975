"""`gptpack stats` reads the figures of runs from whatever holds them, and ends with the verdict."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gptpack.cli import main
from gptpack.errors import ConfigError
from gptpack.runs.samples import RunFigure, margin_in_bpb, read_nearest, read_runs

SEEDS = [1.20143417, 1.19945102, 1.20319508]


def test_a_run_counts_once(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("1.0 1.1")
    with pytest.raises(ConfigError, match=r"a\.txt is given twice"):
        read_runs([str(tmp_path / "a.txt"), str(tmp_path / "." / "a.txt")])


# Where figures come from.


def result(bpb: float, *, nats: float = 2.0, stride: int = 64) -> dict[str, Any]:
    """What `gptpack eval --json` writes, as far as it matters here."""
    row = {"metric": "plain, context 8", "bpb": bpb + 0.1, "nats_per_token": nats + 0.2}
    sliding = {"metric": f"sliding, stride {stride}", "bpb": bpb, "nats_per_token": nats}
    return {
        "plain": row,
        "sliding": sliding,
        "decisive": "sliding",
        "seconds": {"start": 1.0, "total": 12.5},
    }


def write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_figures_come_from_results_lists_logs_and_arguments(tmp_path: Path) -> None:
    sources = [
        write(tmp_path / "a.json", result(1.20)),
        write(tmp_path / "b.json", [result(1.21), result(1.22)]),
    ]
    runs = read_runs(sources)
    assert [run.value for run in runs] == [1.20, 1.21, 1.22]
    assert [Path(run.name).name for run in runs] == ["a.json", "b.json:1", "b.json:2"]
    assert runs[0].tokens_per_byte == pytest.approx(1.20 * math.log(2) / 2.0)
    assert [run.value for run in read_runs(sources, "plain.nats_per_token")] == [2.2] * 3
    assert [run.value for run in read_runs(sources, "seconds")] == [12.5] * 3
    listed = write(tmp_path / "c.txt", "1.5, 1.25\n1.125\n")
    assert [run.value for run in read_runs([listed, "1.0"])] == [1.5, 1.25, 1.125, 1.0]
    assert [run.value for run in read_runs([write(tmp_path / "d.json", [1, 2.5])])] == [1.0, 2.5]
    log = "step:3/3 val_loss:3.2784 train_time:300ms step_avg:100.00ms\n"
    sped = write(tmp_path / "e.txt", log)
    assert [run.value for run in read_runs([sped], "nats")] == [3.2784]
    assert [run.value for run in read_runs([sped], "seconds")] == [0.3]


def test_one_way_of_test_time_training_is_the_figure_of_its_run(tmp_path: Path) -> None:
    adapted = result(1.2) | {"decisive": "ttt", "ttt": {"ttt": {"metric": "x", "bpb": 1.1}}}
    assert read_runs([write(tmp_path / "a.json", adapted)])[0].value == 1.1


def test_runs_that_measured_different_things_are_not_mixed(tmp_path: Path) -> None:
    one = write(tmp_path / "a.json", result(1.2))
    other = write(tmp_path / "b.json", result(1.2, stride=512))
    with pytest.raises(ConfigError, match=r"'sliding, stride 64', .* 'sliding, stride 512'"):
        read_runs([one, other])
    assert len(read_runs([one, other], "plain.bpb")) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"no figure 'bpb' \(plain.bpb\)"),
        ('["x"]', ":1: neither a number nor a result"),
        ("true", ":1: neither"),
        ("hello there", "no training step and no loss"),
        ('{"sliding": {"bpb": null}, "decisive": "sliding"}', "no figure 'bpb'"),
    ],
)
def test_files_without_figures_are_errors(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_runs([write(tmp_path / "x.json", content)])


@pytest.mark.parametrize("place", ["[1.5, {}]", '{{"plain": {{"bpb": {}}}}}'])
def test_an_integer_beyond_floats_is_no_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    file = write(tmp_path / "x.json", place.format("9" * 400))
    assert run(capsys, file, 1.5, "--below", 2)[::2] == (
        2,
        "gptpack: inf is no figure to test\n",
    )


def test_what_is_neither_file_nor_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="nosuch: no such file, and no number"):
        read_runs(["nosuch"])


def test_a_margin_in_nats_is_turned_by_the_runs_own_text() -> None:
    runs = [
        RunFigure(name="a", value=1.2, tokens_per_byte=0.41),
        RunFigure(name="b", value=1.2),
    ]
    assert margin_in_bpb(0.005, runs[:1]) == pytest.approx(0.005 * 0.41 / math.log(2))
    with pytest.raises(ConfigError, match="b does not say how many tokens a byte has"):
        margin_in_bpb(0.005, runs)
    other = RunFigure(name="c", value=1.2, tokens_per_byte=0.39)
    with pytest.raises(ConfigError, match=r"0\.390000 to 0\.410000 tokens per byte"):
        margin_in_bpb(0.005, [runs[0], other])


# The command.


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = 0
    try:
        main.run(["stats", *map(str, arguments)])
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 1
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_says_the_verdict_and_ends_with_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, err = run(capsys, *SEEDS, "--below", 1.21113611)
    assert (status, err) == (0, "")
    lines = {line.rsplit("  ", 1)[0].strip(): line.split()[-1] for line in out.splitlines() if line}
    assert lines["p, one-sided"] == "0.006009"
    assert lines["significant at 0.01"] == "yes"
    status, out, err = run(capsys, 3.2789, 3.2802, 3.28, "--below", 3.28, "--json")
    assert status == 1
    found = json.loads(out)
    assert found["significant"] is False
    assert found["more_runs"] == 55
    assert "3.2797 is not below 3.28 beyond chance: p = 0.2676" in err


def trained(nats: float) -> dict[str, Any]:
    """What `gptpack train --json` writes, as far as it matters here."""
    score = result(0.32 * nats, nats=nats)
    return {"seconds": 171.5, "loss_nats": 3.3, "validation": score}


def test_the_speedruns_tests_come_out_of_their_runs_own_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """modded-nanogpt, records of 2025-07-12 and 2025-09-29, with the p that they published."""
    july = """3.2784 3.2791 3.2819 3.2801 3.2788 3.2794 3.2782 3.277 3.2784 3.2773 3.2803 3.2792
        3.2792 3.2804 3.2817 3.2805 3.2783 3.2789 3.2779 3.2778"""
    september = "3.2789 3.2792 3.2796 3.2776 3.2797 3.2787 3.2792"
    for name, losses, p, margin, more in (
        ("july", july, "0.0049", 0.003846, 2),
        ("september", september, "0.0045", 0.002684, 9),
    ):
        files = [
            write(tmp_path / f"{name}{i}.json", trained(float(loss)))
            for i, loss in enumerate(losses.split())
        ]
        status, out, _ = run(capsys, *files, "--below", 3.28, "--json")
        found = json.loads(out)
        assert (status, found["metric"], f"{found['p']:.4f}") == (0, "nats", p)
        assert found["fixed_sigma"] == {
            "margin": pytest.approx(margin, abs=1e-6), "holds": False, "more_runs": more,
        }  # fmt: skip
        _, out, err = run(capsys, *files, "--below", 3.28)
        assert "which is 0.004 or more" in out
        assert err == "compared by nats; --metric chooses another figure\n"
    status, out, _ = run(capsys, *files, "--below", 1.05, "--json")
    assert json.loads(out)["metric"] == "bpb"
    assert json.loads(out)["fixed_sigma"] is None
    status, out, _ = run(capsys, files[0], 171.0, "--below", 180, "--metric", "seconds", "--json")
    assert json.loads(out)["mean"] == 171.25


def test_runs_that_say_one_figure_are_compared_by_it(tmp_path: Path) -> None:
    log = "step:3/3 val_loss:3.2784 train_time:300ms step_avg:100.00ms\n"
    runs = [write(tmp_path / "e.txt", log)]
    assert read_nearest(runs, 1.0)[0] == "nats"
    assert read_nearest(["1.5", "2.5"], 3.0)[0] == "bpb"
    with pytest.raises(ConfigError, match="no figure 'bpb'"):
        read_nearest([write(tmp_path / "x.json", {"sliding": {}})], 1.0)


def test_a_margin_may_be_in_nats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        write(tmp_path / f"{i}.json", result(bpb, nats=bpb * math.log(2) / 0.41))
        for i, bpb in enumerate(SEEDS)
    ]
    options = ("--beats", 1.2161, "--by", 0.005, "--json")
    _, out, _ = run(capsys, *files, *options)
    assert json.loads(out)["threshold"] == pytest.approx(1.2111)
    _, out, _ = run(capsys, *files, *options, "--unit", "nats")
    converted = 1.2161 - 0.005 * 0.41 / math.log(2)
    assert json.loads(out)["threshold"] == pytest.approx(converted)
    _, out, _ = run(capsys, *SEEDS, *options, "--unit", "nats", "--tokens-per-byte", 0.41)
    assert json.loads(out)["threshold"] == pytest.approx(converted)
    _, out, _ = run(capsys, *files, *options, "--unit", "nats", "--metric", "nats")
    assert json.loads(out)["threshold"] == pytest.approx(1.2111)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 2.0), "give a threshold: either --below, or --beats and --by"),
        ((1.0, 2.0, "--below", 1, "--beats", 1), "give a threshold"),
        ((1.0, "--below", 1), "1 run; a t-test needs at least 2"),
        ((1.0, 2.0, "--beats", 1, "--by", 0.1, "--unit", "nats"), "--tokens-per-byte"),
        (("nosuch.json", "--below", 1), "no such file"),
        ((1.2, 1.21, "--below", 1.5, "--by", 0.5), "give --beats in place of --below"),
        ((1.2, 1.21, "--below", 1.5, "--unit", "nats"), "give --beats in place of --below"),
        ((1.2, 1.21, "--beats", 1.5, "--by", -5), "-5.0 is not in the range x>=0"),
        ((1.2, 1.21, "--beats", 1.5, "--by", "nan"), "'nan' is not a finite number"),
        ((1.2, 1.21, "--beats", 1, "--tokens-per-byte", 0), "0.0 is not in the range x>0"),
        ((1.2, 1.21, "--beats", 1, "--tokens-per-byte", -3), "-3.0 is not in the range x>0"),
        (
            (3.27, 3.2701, "--metric", "nats", "--beats", 3.28, "--by", 0.005, "--unit", "bpb"),
            "a margin in bpb cannot be taken from a threshold of nats",
        ),
        (
            (179, 178, "--metric", "seconds", "--beats", 180, "--by", 1, "--unit", "nats"),
            "a margin in nats cannot be taken from a threshold of seconds",
        ),
    ],
)
def test_wrong_usage_ends_with_status_2(
    arguments: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err
