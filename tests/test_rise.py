"""`--max-rise`: the smallest file found that costs no more, by measured points and few of them."""

import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
from worlds import corpus, folder, invoke

from gptpack.artifact.front import decode_header
from gptpack.errors import ConfigError, LimitError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.jobs import proof
from gptpack.jobs.evaluate import evaluate
from gptpack.jobs.pack import pack
from gptpack.jobs.rise import CLOSE, MOST_POINTS, next_delta
from gptpack.training.checkpoint import Checkpoint, save_checkpoint

CONFIG = ModelConfig(vocab=300, layers=1, width=96, heads=4, kv_heads=2, mlp_hidden=192, context=32)
QUICK = {"states": 8, "calibration_tokens": 512}


@pytest.fixture(scope="module")
def checkpoint():
    path = folder("rise") / "c.pt"
    weights = dict(GPT(CONFIG, seed=1).state_dict())
    save_checkpoint(path, Checkpoint(model=CONFIG, weights=weights))
    return path


def proving(monkeypatch, law):
    """Let a file's proof be that of the model, but for a rise by `law` of the file's delta.

    A tiny model loses nothing that could be searched for; all but the figure is as it is.
    """

    class Known:
        def __init__(self, path, data, settings):
            self.path, self.data, self.settings = path, data, settings

        def result(self, progress, phase):
            progress(f"{phase}: plain", 1, 1)
            found = evaluate(self.path, self.data)
            if found.source == "checkpoint":
                return found
            delta = decode_header(self.path.read_bytes()).record.delta
            before = evaluate(self.path.parent / "c.pt", self.data).plain
            nats = before.nats + law(delta) * math.log(2) * before.bytes
            return replace(found, scores={"plain": replace(found.plain, nats=nats)})

    @contextmanager
    def fresh(path, data, **settings):
        yield Known(path, data, settings)

    monkeypatch.setattr(proof, "fresh_evaluation", fresh)


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("limit", [1e-3, 1e-2, 0.3])
def test_few_points_lead_to_the_limit_and_never_over_it(limit, power):
    delta, tried = 1e-4, []
    while delta is not None:
        tried.append((delta, (delta / 3e-3) ** power))
        delta = next_delta(tried, limit)
    assert len(tried) <= MOST_POINTS
    best = max(delta for delta, rise in tried if rise <= limit)
    true = 3e-3 * limit ** (1 / power)
    assert true / CLOSE**2 < best <= true


@pytest.mark.parametrize("first", [2e-6, 1e-4, 0.4])
def test_a_search_ends_where_every_rise_is_within_the_limit_or_none_is(first):
    for rise in (-1.0, 0.0, 1.0):
        delta, tried = first, []
        while delta is not None:
            tried.append((delta, rise))
            assert len({delta for delta, _ in tried}) == len(tried)
            delta = next_delta(tried, 0.5 if rise < 1 else 0.1)
        assert len(tried) < 16


def test_the_smallest_measured_file_within_the_rise_is_made(checkpoint, monkeypatch):
    proving(monkeypatch, lambda delta: (delta / 0.02) ** 2)
    output = checkpoint.with_name("m.gptpack")
    told = []
    packed = pack(
        checkpoint,
        max_rise=0.01,
        data=corpus().data,
        output=output,
        progress=lambda phase, done, total: told.append((phase, done, total)),
        **QUICK,
    )
    assert packed.path is not None
    assert 2 <= len(packed.search) <= MOST_POINTS
    rises = [point.rise for point in packed.search]
    assert packed.after.plain.bpb - packed.before.plain.bpb <= 0.01
    within = [p for p, rise in zip(packed.search, rises, strict=True) if rise <= 0.01]
    least = min(within, key=lambda point: point.bytes)
    assert (packed.record.delta, len(packed.data)) == (least.delta, least.bytes)
    assert 0.002 / CLOSE**2 < packed.record.delta <= 0.002 * 1.0001
    header = decode_header(output.read_bytes())
    assert header.record.quality.bpb_after == pytest.approx(packed.after.plain.bpb, abs=1e-6)
    assert header.record.budget_bytes is None
    assert [row["delta"] for row in packed.to_dict()["search"]] == [p.delta for p in packed.search]
    assert ("search for the rise", 1, MOST_POINTS) in told


def test_a_rise_that_no_file_keeps_leaves_none(checkpoint, monkeypatch):
    proving(monkeypatch, lambda _: 1.0)
    output = checkpoint.with_name("none.gptpack")
    with pytest.raises(LimitError, match=r"the best costs 1\.00000: give a larger max_rise"):
        pack(checkpoint, max_rise=0.01, data=corpus().data, output=output, **QUICK)
    assert not output.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "measured on text"),
        ({"data": "d", "plan": True}, "plan=True measures nothing"),
        ({"data": "d", "bits": 3.0}, "exclude each other"),
    ],
)
def test_a_rise_that_cannot_be_measured_is_refused_at_once(more, said):
    with pytest.raises(ConfigError, match=said):
        pack("absent.pt", max_rise=0.01, **more)


def test_methods_without_a_delta_have_no_rise_to_search(checkpoint):
    with pytest.raises(ConfigError, match="needs a method with a delta"):
        pack(checkpoint, max_rise=0.01, data=corpus().data, methods=("int8",), **QUICK)


def test_a_rise_of_nothing_is_no_limit(capsys):
    assert invoke("pack", "x.pt", "--max-rise", "0", "--data", "d") == 2
    assert "--max-rise" in capsys.readouterr().err
