"""What gzip, xz and zstd make of a text, beside what a model makes of it."""

import gzip
import json
import lzma
import random
from pathlib import Path

import pytest
import zstandard
from hugging import make_folder
from json_page import agrees
from worlds import corpus, invoke

from gptpack.data import compressors
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.jobs.fresh import fresh_evaluation
from gptpack.training.checkpoint import Checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def text() -> bytes:
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "noon", "and", "the", "dog"]
    return " ".join(draw.choice(words) for _ in range(20_000)).encode()


def test_the_figures_are_those_of_whole_outputs_that_decode_to_the_text(text):
    found = compressors.compressed(text)
    assert found["bytes"] == len(text)
    decoders = {
        "gzip -9": gzip.decompress,
        "xz -9e": lzma.decompress,
        "zstd -19": zstandard.ZstdDecompressor().decompress,
    }
    assert set(found["bpb"]) == set(decoders)
    for name, decode in decoders.items():
        packed = compressors.COMPRESSORS[name](text)
        assert decode(packed) == text
        assert found["bpb"][name] == 8 * len(packed) / len(text)
        assert 0 < found["bpb"][name] < 8


def test_a_dictionary_as_long_as_the_text_costs_no_bytes(text):
    whole = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
    assert len(compressors.COMPRESSORS["xz -9e"](text)) <= len(whole)


def test_a_long_text_is_cut(text, monkeypatch):
    monkeypatch.setattr(compressors, "MOST_BYTES", 1000)
    assert compressors.compressed(text) == compressors.compressed(text[:1000])
    assert compressors.compressed(b"x")["bytes"] == 1


def saved(path: Path) -> Path:
    """A checkpoint of a tiny model for the tokens of `corpus`."""
    config = ModelConfig(
        vocab=300, layers=1, width=16, heads=2, kv_heads=1, mlp_hidden=16, context=8
    )
    weights = dict(GPT(config, seed=1).state_dict())
    save_checkpoint(path, Checkpoint(model=config, weights=weights))
    return path


def test_eval_shows_them_beside_the_model_where_the_text_is_at_hand(tmp_path, text, capsys):
    model = make_folder(tmp_path / "model", "llama")
    (tmp_path / "val.txt").write_bytes(text[:3000])
    words = ("eval", str(model), "--text", str(tmp_path / "val.txt"))
    assert invoke(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    agrees("eval", found)
    scored = found["plain"]["bytes"]
    assert found["compressors"] == compressors.compressed(text[:scored])
    assert invoke(*words) == 0
    out = capsys.readouterr().out
    assert f"the same text, {scored:,} bytes" in out
    for name, bpb in found["compressors"]["bpb"].items():
        assert [name, f"{bpb:.6f}"] in [line.rsplit(maxsplit=1) for line in out.splitlines()]
    assert invoke(*words, "--no-compressors", "--json") == 0
    assert json.loads(capsys.readouterr().out)["compressors"] is None


def test_eval_of_shards_says_why_there_are_none(tmp_path, capsys):
    checkpoint = saved(tmp_path / "c.pt")
    assert invoke("eval", str(checkpoint), "--data", str(corpus().data)) == 0
    assert "no gzip, xz and zstd beside it: shards are no text" in capsys.readouterr().err


def test_a_fresh_process_says_where_it_is_to_whoever_waits_for_it(tmp_path):
    checkpoint = saved(tmp_path / "c.pt")
    told = []
    with fresh_evaluation(checkpoint, corpus().data, quiet=True) as running:
        found = running.result(lambda *where: told.append(where), "score the file")
    assert found.compressors is None
    plain = [(done, total) for phase, done, total in told if phase == "score the file: plain"]
    done, total = plain[-1]
    assert done == total > 0
