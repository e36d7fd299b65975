"""A law through runs: it finds what made them, says how far it is off, and refuses when it must."""

import csv
import io
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gptpack.cli.main import group
from gptpack.cli.plan_shapes import COLUMNS, numbers_of, proposals, read_runs, shapes
from gptpack.config import ModelConfig, load_recipe
from gptpack.errors import BudgetError, ConfigError, DataError
from gptpack.recipe_files import RUNS, find_recipe
from gptpack.report.law import Law, RunFigures
from gptpack.training.plan import artifact_bytes

BASE = ModelConfig(vocab=256, layers=4, width=64, heads=4, kv_heads=2, mlp_hidden=128, context=64)
SPEED = 1e12
"""Tokens times parameters a second."""
SECONDS = 5.0


def bpb(parameters: float, tokens: float) -> float:
    return 12 * parameters**-0.05 * tokens**-0.08


def penalty(bits: float) -> float:
    return 2 * math.exp(-1.6 * bits)


def made(noise: float = 0.0, vocabularies: Iterable[int] = (256,)) -> list[RunFigures]:
    """Runs of three sizes and three lengths, packed to three rates."""
    rng = np.random.default_rng(0)
    found = []
    for vocab in vocabularies:
        for layers in (2, 4, 8):
            shape = next(s for s in shapes(BASE) if s.layers == layers)
            shape = replace(shape, vocab=vocab)
            parameters = sum(numbers_of(shape))
            for tokens in (10**7, 3 * 10**7, 10**8):
                before = bpb(parameters, tokens) * vocab**-0.02 * math.exp(noise * rng.normal())
                for bits in (2.0, 3.0, 4.0):
                    found.append(
                        RunFigures(
                            name=f"{layers} layers",
                            parameters=parameters,
                            vocab=vocab,
                            tokens=tokens,
                            gpu_seconds=tokens * parameters / SPEED,
                            bpb_before=before,
                            bits=bits,
                            bpb_after=before + penalty(bits) * math.exp(noise * rng.normal()),
                        )
                    )
    return found


@pytest.mark.parametrize("vocabularies", [(256,), (256, 512, 1024)])
def test_the_law_finds_what_made_the_runs(vocabularies):
    law = Law(made(vocabularies=vocabularies))
    _, parameters, tokens, *vocab = law.before.coefficients
    assert (parameters, tokens) == pytest.approx((-0.05, -0.08))
    assert vocab == pytest.approx([-0.02] if len(vocabularies) > 1 else [])
    assert law.penalty.coefficients[1] == pytest.approx(-1.6)
    assert law.tokens_per_second(1000) == pytest.approx(SPEED / 1000)
    expected = law.expect(parameters=300_000, tokens=2e7, vocab=256, bits=2.5)
    assert expected.bpb_before == pytest.approx(bpb(300_000, 2e7) * 256**-0.02)
    assert expected.penalty_bpb == pytest.approx(penalty(2.5))
    assert not law.implausible()
    misses = law.misses()
    assert len(misses) > 0
    assert max(map(abs, misses.values())) < 1e-9


def test_noise_in_the_runs_is_in_the_error_and_in_what_was_left_out():
    law = Law(made(noise=0.01))
    expected = law.expect(parameters=300_000, tokens=2e7, vocab=256, bits=2.5)
    truth = bpb(300_000, 2e7) * 256**-0.02 + penalty(2.5)
    assert abs(expected.bpb_after - truth) < expected.error_bpb < 0.1 * truth
    assert 1e-4 < max(map(abs, law.misses().values())) < 0.3


def test_few_runs_are_left_out_in_turn_too_and_named_apart():
    # six models: a law has three to spare, and without one of them still two
    keep = {(2, 0), (2, 1), (4, 1), (4, 2), (8, 0), (8, 2)}
    lengths = (10**7, 3 * 10**7, 10**8)
    runs = [r for r in made() if (int(r.name.split()[0]), lengths.index(r.tokens)) in keep]
    law = Law(runs)
    misses = law.misses()
    assert len(misses) == len(runs) == 18
    assert max(map(abs, misses.values())) < 1e-9
    assert "2 layers, 30 M tokens, 2.00 bits" in misses


def test_seeds_of_one_setting_are_files_of_their_own():
    runs = made(noise=0.01)
    seeds = [replace(r, bpb_before=1.002 * r.bpb_before) for r in runs]
    assert len(Law([*runs, *seeds]).misses()) == len(runs) + len(seeds)


def test_two_vocabularies_are_not_mixed():
    with pytest.raises(DataError, match=r"vocabularies of 256 and 512: a law takes one, or 3"):
        Law(made(vocabularies=(256, 512)))


def test_a_law_with_no_points_to_spare_knows_no_error():
    keep = {("2 layers", 10**7), ("4 layers", 10**7), ("2 layers", 10**8)}
    exact = [r for r in made() if (r.name, r.tokens) in keep]
    law = Law(exact, spare=0)
    expected = law.expect(parameters=300_000, tokens=2e7, vocab=256, bits=2.5)
    assert expected.bpb_before == pytest.approx(bpb(300_000, 2e7) * 256**-0.02)
    assert math.isinf(expected.error_bpb)


def test_parameters_that_always_change_with_tokens_are_refused():
    runs = [replace(r, tokens=100 * r.parameters) for r in made()]
    with pytest.raises(DataError, match="do not tell what parameters, tokens"):
        Law(runs, spare=0)


def test_runs_that_contradict_everything_known_are_called_so():
    runs = [replace(r, bpb_before=1 / r.bpb_before, bpb_after=2 / r.bpb_before) for r in made()]
    flaws = Law(runs).implausible()
    assert any("more parameters" in flaw for flaw in flaws)
    assert any("more tokens" in flaw for flaw in flaws)


@pytest.mark.parametrize(
    ("keep", "wanted"),
    [
        (lambda r: r.tokens == 10**7, "3 different numbers of parameters and of tokens"),
        (lambda r: r.parameters < 50_000, "takes at least 6 trained models"),
        (lambda r: r.bits == 3.0, "at 3 different bits a weight; there are 9, at 1"),
    ],
)
def test_too_few_runs_are_refused_with_what_is_missing(keep, wanted):
    with pytest.raises(DataError, match=wanted):
        Law([run for run in made() if keep(run)])


def test_proposals_fit_the_budget_and_stay_near_the_runs():
    runs = made()
    law = Law(runs)
    budget = 150_000
    found = proposals(law, BASE, budget_bytes=budget, gpu_seconds=SECONDS)
    assert [p["bpb_after"] for p in found] == sorted(p["bpb_after"] for p in found)
    most = 2 * max(run.parameters for run in runs)
    for p in found:
        shape = next(s for s in shapes(BASE) if (s.layers, s.width) == (p["layers"], p["width"]))
        coded, kept = numbers_of(shape)
        assert p["parameters"] == coded + kept <= most
        assert artifact_bytes(coded, kept, p["bits"]) <= budget + 1
        assert p["tokens"] == pytest.approx(SECONDS * SPEED / (coded + kept))
    # with the same law, no other size of these proportions would be better
    best = min(
        bpb(p["parameters"], p["tokens"]) * 256**-0.02 + penalty(min(p["bits"], 4.0)) for p in found
    )
    assert found[0]["bpb_after"] == pytest.approx(best)


def test_nothing_is_proposed_far_from_the_runs():
    with pytest.raises(BudgetError, match="within a factor of 2"):
        proposals(Law(made()), BASE, budget_bytes=10**9, gpu_seconds=1e9)


def test_shapes_keep_the_proportions_of_every_recipe():
    for name in ("baseline", "golf-1060", "seq4096", "tiny"):
        base = load_recipe(find_recipe(name)).model
        found = list(shapes(base))
        assert base in found
        assert all(s.width / s.heads == base.width / base.heads for s in found)


def written(path: Path, runs: list[dict[str, object]]) -> Path:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS)
    table.writeheader()
    table.writerows(runs)
    path.write_text(text.getvalue())
    return path


def rows() -> list[dict[str, object]]:
    """Runs of the recipe tiny, as a file has them."""
    found = []
    for layers in (1, 2, 4):
        setting = f"model.layers={layers}"
        model = load_recipe(find_recipe("tiny"), [setting]).model
        coded, kept = numbers_of(model)
        for tokens in (10**6, 2 * 10**6, 4 * 10**6):
            before = bpb(coded + kept, tokens)
            seconds = tokens * (coded + kept) / SPEED
            for bits in (2.0, 3.0, 4.0):
                found.append(
                    {
                        "recipe": "tiny",
                        "set": setting,
                        "tokens": tokens,
                        "seconds": seconds,
                        "gpus": 1,
                        "bpb_before": before,
                        "bytes": artifact_bytes(coded, kept, bits),
                        "bpb_after": before + penalty(bits),
                    }
                )
    return found


def test_the_command_reads_a_file_proposes_and_says_how_far_off_it_was(tmp_path):
    path = written(tmp_path / "runs.csv", rows())
    command = ["plan", "--budget", "60KB", "--seconds", "0.3", "--recipe", "tiny", "--no-own"]
    done = CliRunner().invoke(group, [*command, "--runs", str(path), "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["runs"] == 27
    assert 1 <= len(result["proposals"]) <= 5
    assert result["largest_miss_bpb"] < 1e-3
    done = CliRunner().invoke(group, [*command, "--runs", str(path)])
    assert "+- (95 %)" in done.output
    assert "each run left out in turn" in done.output


def test_the_projects_own_runs_can_be_read():
    runs = read_runs(RUNS)
    assert all(run.bpb_after >= run.bpb_before for run in runs if run.bits)
    of_one = read_runs(RUNS, "golf-best")
    assert {run.name.split()[0] for run in of_one} == {"golf-best"}
    assert len(of_one) < len(runs)


@pytest.mark.parametrize("seconds", ["300", "600"])
def test_the_command_proposes_from_the_projects_own_runs_and_says_what_they_do_not_bear_out(
    seconds,
):
    done = CliRunner().invoke(group, ["plan", "--budget", "16MB", "--seconds", seconds, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert {p["vocab"] for p in result["proposals"]} == {8192}
    assert 0 < result["median_miss_bpb"] <= result["largest_miss_bpb"]
    assert all(p["error_bpb"] >= result["median_miss_bpb"] for p in result["proposals"])
    assert any("more parameters" in flaw for flaw in result["implausible"])


def test_few_runs_of_a_recipe_are_refused():
    command = ["plan", "--budget", "16MB", "--seconds", "300", "--recipe", "seq4096"]
    with pytest.raises(DataError, match="takes at least 6 trained models"):
        CliRunner().invoke(group, command, catch_exceptions=False)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"tokens": "many"}, r"line 2: tokens 'many' is not a positive number"),
        ({"bpb_before": -1}, r"line 2: bpb_before '-1' is not a positive number"),
        ({"tokens": "inf"}, r"line 2: tokens 'inf' is not a positive number"),
        ({"tokens": 1e308}, r"line 2: tokens '1e\+308' is no figure of a run"),
        ({"tokens": 0.4}, r"line 2: tokens '0.4' is less than one"),
        ({"bytes": 1e200}, r"line 2: bytes '1e\+200' is no figure of a run"),
        ({"seconds": 1e-308, "gpus": 1e-308}, r"line 2: seconds '1e-308' is no figure of a run"),
        ({"gpus": 1e200}, r"line 2: gpus '1e\+200' is no figure of a run"),
    ],
)
def test_a_value_that_is_no_number_is_named_with_its_line(tmp_path, change, wanted):
    with pytest.raises(DataError, match=wanted):
        read_runs(written(tmp_path / "runs.csv", [{**rows()[0], **change}]))


@pytest.mark.parametrize(
    ("change", "error", "wanted"),
    [
        ({"recipe": "none"}, ConfigError, r"runs\.csv, line 2: .*none"),
        ({"set": "model.value_embedding_layers=[9, 10]"}, ConfigError, r"runs\.csv, line 2: "),
        ({"bytes": 100}, BudgetError, r"runs\.csv, line 2: .* nothing is left"),
    ],
)
def test_a_run_that_cannot_be_is_named_with_its_line(tmp_path, change, error, wanted):
    with pytest.raises(error, match=wanted):
        read_runs(written(tmp_path / "runs.csv", [{**rows()[0], **change}]))


def test_a_law_beyond_everything_that_can_be_is_an_error():
    steep = [replace(r, gpu_seconds=r.tokens * (r.parameters / 1e5) ** 100) for r in made()]
    with pytest.raises(DataError, match=r"a figure of e\^\d+; one of the runs' own figures"):
        Law(steep).tokens_per_second(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seconds", "nan"], "'nan' is not a finite number"),
        (["--seconds", "inf"], "inf is not in the range"),
        (["--seconds", "1e308", "--gpus", "9"], "is not in the range 0<x<=1000000000"),
        (["--seconds", "9", "--gpus", "9" * 400], "is not in the range 1<=x<=1000000"),
    ],
)
def test_times_beyond_any_run_are_refused(options, message):
    done = CliRunner().invoke(group, ["plan", "--budget", "60KB", *options])
    assert done.exit_code == 2
    assert message in done.output


def test_a_file_without_the_columns_is_refused(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("recipe,tokens\ntiny,3\n")
    with pytest.raises(DataError, match="no column set, seconds"):
        read_runs(path)
    with pytest.raises(DataError, match="cannot read the runs"):
        read_runs(tmp_path / "none.csv")
