"""`gptpack eval` proves a file's bits per byte, or says why it cannot."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_scoring import slow_losses
from strategies import write_artifact

from gptpack.cli import main
from gptpack.data.shards import write_shard
from gptpack.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.quant.int8 import keep_float
from gptpack.training.checkpoint import Checkpoint, save_checkpoint
from gptpack.values import TokenizerIdentity

ROOT = Path(__file__).parent.parent
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "the",
    "dog",
    "ate",
    "all",
    "of",
    "it",
    "at",
    "noon",
]


@dataclass(frozen=True)
class World:
    """A small model as artifact and checkpoint, and two validation shards."""

    artifact: Path
    checkpoint: Path
    data: Path
    config: ModelConfig
    tokenizer: Tokenizer
    tokens: np.ndarray
    documents: list[str]
    model: GPT


def pack(path: Path, world_model: GPT, tokenizer: Tokenizer, record: dict[str, Any]) -> Path:
    write_artifact(
        path,
        model=world_model.config,
        tokenizer=TokenizerIdentity(
            sha256=tokenizer.sha256, vocab=tokenizer.vocab, bos=tokenizer.bos
        ),
        tensors=[
            keep_float(name, tensor.numpy(), "float32")
            for name, tensor in world_model.state_dict().items()
        ],
        pack=record,
        codecs="zlib",
    )
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("eval")
    data = folder / "data"
    data.mkdir()
    draw = np.random.default_rng(0)
    documents = [" ".join(draw.choice(WORDS, draw.integers(1, 12))) for _ in range(60)]
    documents[9] += " \u20ac 5"  # too rare for a piece of its own: three byte tokens
    tokenizer = train_tokenizer(
        documents, data / "tokenizer.model", TokenizerConfig(vocab=300, character_coverage=0.98)
    )
    stream = [id for text in documents for id in (tokenizer.bos, *tokenizer.encode(text))]
    tokens = np.array(stream, np.uint16)
    cut = len(tokens) // 3
    write_shard(data / "x_val_000000.bin", tokens[:cut])
    write_shard(data / "x_val_000001.bin", tokens[cut:])

    config = ModelConfig(
        vocab=tokenizer.vocab, layers=2, width=16, heads=2, kv_heads=1, mlp_hidden=16, context=32
    )
    model = GPT(config, seed=3)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    save_checkpoint(folder / "c.pt", Checkpoint(model=config, weights=model.state_dict()))
    return World(
        artifact=pack(folder / "m.gptpack", model, tokenizer, {"budget_bytes": 1}),
        checkpoint=folder / "c.pt",
        data=data,
        config=config,
        tokenizer=tokenizer,
        tokens=tokens,
        documents=documents,
        model=model,
    )


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `gptpack eval` here: status, stdout, stderr."""

    def invoke(*arguments: object) -> tuple[int, str, str]:
        status = 0
        try:
            main.run(["eval", *map(str, arguments)])
        except SystemExit as stopped:
            status = stopped.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return invoke


def evaluated(run: Callable[..., tuple[int, str, str]], *arguments: object) -> dict[str, Any]:
    status, out, err = run(*arguments, "--json")
    assert status == 0, err
    return json.loads(out)


def test_plain_and_sliding_figures_are_those_of_the_slow_twin(world: World, run: Any) -> None:
    result = evaluated(run, world.artifact, "--data", world.data, "--stride", 8)
    total = len(world.tokens) - 1
    for name, stride, targets in [("plain", 32, total // 32 * 32), ("sliding", 8, total)]:
        slow = slow_losses(world.model, world.tokens, targets=targets, context=32, stride=stride)
        score = result[name]
        assert (score["tokens"], score["context"], score["stride"]) == (targets, 32, stride)
        assert score["nats"] == pytest.approx(slow.sum(), rel=1e-5)
        assert score["bpb"] == pytest.approx(score["nats"] / math.log(2) / score["bytes"])
    # A document's first leading space does not exist: nothing but the text itself is charged.
    assert result["sliding"]["bytes"] == sum(len(text.encode()) for text in world.documents)
    assert result["adaptation"] == "none"
    assert result["source"] == "artifact"


def test_every_input_is_named_by_its_hash(world: World, run: Any) -> None:
    result = evaluated(run, world.artifact, "--data", world.data)

    def sha256(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert result["file"]["sha256"] == sha256(world.artifact)
    assert result["file"]["bytes"] == world.artifact.stat().st_size
    assert result["tokenizer"]["sha256"] == sha256(world.data / "tokenizer.model")
    names = ["x_val_000000.bin", "x_val_000001.bin"]
    assert result["shards"] == [
        {"file": name, "sha256": sha256(world.data / name)} for name in names
    ]
    assert result["versions"]["torch"] == torch.__version__
    assert result["device"] == {"type": "cpu", "name": "cpu", "ranks": 1, "attention": "flash"}
    phases = ["start", "decode", "build", "audit", "plain", "other", "total"]
    assert list(result["seconds"]) == phases
    *parts, total = result["seconds"].values()
    assert sum(parts) == pytest.approx(total)
    assert result["accounting"] == {
        "kind": "pieces",
        "audited_against": "what the tokens decode to",
    }
    assert (result["decisive"], result["ttt"]) == ("plain", {})
    assert result["sliding"] is None


def test_a_stride_equal_to_the_context_is_the_plain_figure_exactly(world: World, run: Any) -> None:
    result = evaluated(run, world.artifact, "--data", world.data, "--stride", 32)
    timing = {"seconds", "tokens_per_second"}
    plain, sliding = (
        {key: value for key, value in result[name].items() if key not in timing}
        for name in ("plain", "sliding")
    )
    assert plain == sliding


def test_the_tail_can_be_scored_or_dropped_for_both(world: World, run: Any) -> None:
    for tail, targets in [("score", len(world.tokens) - 1), ("drop", None)]:
        result = evaluated(run, world.artifact, "--data", world.data, "--stride", 8, "--tail", tail)
        assert result["plain"]["tokens"] == result["sliding"]["tokens"]
        assert result["plain"]["bytes"] == result["sliding"]["bytes"]
        assert targets is None or result["plain"]["tokens"] == targets


def test_a_limit_that_cuts_a_document_and_a_character_is_still_audited(
    world: World, run: Any
) -> None:
    processor = world.tokenizer.processor
    euro = world.tokens.tolist().index(processor.piece_to_id("<0xE2>"))
    assert processor.is_byte(int(world.tokens[euro + 2]))
    for limit in range(euro - 2, euro + 4):
        result = evaluated(
            run, world.artifact, "--data", world.data, "--stride", 8, "--eval-tokens", limit
        )
        assert result["sliding"]["tokens"] == limit
        assert result["plain"]["tokens"] == limit // 32 * 32


def test_the_table_shows_each_metric_and_each_phase(world: World, run: Any) -> None:
    status, out, err = run(world.artifact, "--data", world.data, "--stride", 8)
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].split() == [
        *("metric", "bpb", "nats/token", "tokens", "bytes", "seconds", "tokens/s")
    ]
    assert lines[1].startswith("plain, context 32")
    assert lines[2].startswith("sliding, stride 8, context 32")
    phases = [line.split()[0] for line in lines[lines.index(lines[3]) + 2 :]]
    assert phases == ["start", "decode", "build", "audit", "plain", "sliding", "other", "total"]


def test_the_output_file_holds_what_json_prints(world: World, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    for again in (False, True):
        result = evaluated(run, world.artifact, "--data", world.data, "--output", file)
        assert file.exists(), again
    taken = tmp_path / "taken.txt"
    taken.write_text("a text")
    status, _, said = run(world.artifact, "--data", world.data, "--output", taken)
    assert (status, taken.read_text()) == (2, "a text")
    assert "taken.txt exists and is no report of an evaluation; it stays as it is" in said
    assert json.loads(file.read_text()) == result


def test_a_place_that_takes_no_file_is_told_before_anything_is_scored(
    world: World, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptpack.jobs.evaluate.evaluate", None)
    (tmp_path / "file").write_text("no folder")
    status, _, said = run(world.artifact, "--data", world.data, "-o", tmp_path / "file" / "x.json")
    assert status == 2
    assert "is not a directory; choose another name" in said


def test_a_checkpoint_scores_like_its_float32_artifact(world: World, run: Any) -> None:
    artifact = evaluated(run, world.artifact, "--data", world.data)
    checkpoint = evaluated(run, world.checkpoint, "--data", world.data)
    assert checkpoint["source"] == "checkpoint"
    assert checkpoint["plain"]["nats"] == artifact["plain"]["nats"]
    assert checkpoint["tokenizer"]["checked"] is False
    _, _, err = run(world.checkpoint, "--data", world.data)
    assert "it was not checked" in err


def test_an_artifact_is_one_whatever_its_name(world: World, run: Any, tmp_path: Path) -> None:
    renamed = shutil.copy(world.artifact, tmp_path / "model.pt")
    assert evaluated(run, renamed, "--data", world.data)["source"] == "artifact"


def test_the_figure_recorded_when_packed_is_compared(
    world: World, run: Any, tmp_path: Path
) -> None:
    quality = {"bpb_before": 9.0, "bpb_after": 5.25, "context": 32, "tokens": 96}
    path = pack(tmp_path / "m", world.model, world.tokenizer, {"quality": quality})
    result = evaluated(run, path, "--data", world.data)
    assert result["recorded"] == {"bpb": 5.25, "tokens": 96, "context": 32}
    assert result["difference_bpb"] == result["plain"]["bpb"] - 5.25
    _, out, _ = run(path, "--data", world.data)
    assert "recorded when packed: 5.250000 bpb (tokens 96, context 32); plain differs by" in out


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"quality": 3},
        {"quality": {"bpb_after": "low"}},
        {"quality": {"bpb_after": 10**4000}},
        {"quality": {"bpb_after": -1.5}},
    ],
)
def test_a_record_that_is_no_figure_is_left_out(
    record: dict[str, Any], world: World, run: Any, tmp_path: Path
) -> None:
    path = pack(tmp_path / "m", world.model, world.tokenizer, record)
    assert evaluated(run, path, "--data", world.data)["recorded"] is None


def test_a_limit_on_bits_per_byte_sets_the_status_and_still_reports(world: World, run: Any) -> None:
    result = evaluated(run, world.artifact, "--data", world.data, "--stride", 8)
    sliding = result["sliding"]["bpb"]
    allowed = ("--stride", 8, "--max-bpb", sliding * 1.0001)
    assert run(world.artifact, "--data", world.data, *allowed)[0] == 0
    refused = ("--stride", 8, "--max-bpb", sliding * 0.9999)
    status, out, err = run(world.artifact, "--data", world.data, *refused)
    assert status == 1
    assert "sliding, stride 8" in out
    assert "bits per byte (sliding, stride 8, context 32)" in err


def test_documents_can_be_masked_and_the_result_says_so(world: World, run: Any) -> None:
    packed = evaluated(run, world.artifact, "--data", world.data, "--tail", "score")["plain"]
    masked = evaluated(run, world.artifact, "--data", world.data, "--documents", "masked")["plain"]
    assert (packed["documents"], masked["documents"]) == ("packed", "masked")
    assert masked["metric"] == "plain, context 32, documents masked"
    assert (masked["tokens"], masked["bytes"]) == (packed["tokens"], packed["bytes"])
    assert masked["nats"] != packed["nats"]


@pytest.mark.parametrize("rope", ["model", "none", "ntk", "yarn"])
def test_longer_contexts_have_their_scaling_said(world: World, run: Any, rope: str) -> None:
    options = ("--context", 64, "--stride", 16, "--rope", rope)
    found = evaluated(run, world.artifact, "--data", world.data, *options)["sliding"]
    said = {"model": "model (unscaled)"}.get(rope, f"{rope}, trained at 32")
    assert (found["context"], found["rope"]) == (64, said)
    within = evaluated(run, world.artifact, "--data", world.data, "--rope", rope)["plain"]
    assert within["rope"] == ("model (unscaled)" if rope == "model" else "as trained")


def test_a_sweep_is_one_command_and_one_table(world: World, run: Any) -> None:
    options = ("--stride", 16, "--ttt", "sweep", "--ttt", "sgd:lr=0.1,epochs=1,chunk=64")
    chunks = ("--eval-tokens", 200)
    result = evaluated(run, world.artifact, "--data", world.data, *options, *chunks)
    assert list(result["ttt"]) == ["ttt A", "ttt B", "ttt C", "ttt D", "ttt 5"]
    own = result["ttt"]["ttt 5"]
    assert own["adaptation"] == "ttt-sgd(lr=0.1, epochs=1, chunk=64)"
    assert (own["chunks"], own["updates"], own["resets"]) == (4, 3, 0)
    assert own["tokens"] == result["sliding"]["tokens"]
    assert own["nats"] != result["sliding"]["nats"]
    # 200 targets are less than a chunk of 32,768: only scored.
    assert result["ttt"]["ttt D"]["nats"] == result["sliding"]["nats"]
    assert (result["decisive"], result["adaptation"]) == ("sliding", "none")
    assert result["seconds"]["adapt"] > 0
    _, out, _ = run(world.artifact, "--data", world.data, *options, *chunks)
    table = [line for line in out.splitlines() if ": ttt-" in line]
    assert [line.split(":")[0] for line in table] == list(result["ttt"])
    assert "reset=50" in table[3]


@pytest.mark.parametrize("settings", ["sgd:lr=0.1,chunk=64", "lora:rank=2,lr=0.1,chunk=8"])
def test_one_adaptation_is_the_decisive_figure(world: World, run: Any, settings: str) -> None:
    options = ("--data", world.data, "--ttt", settings)
    result = evaluated(run, world.artifact, *options)
    row = result["ttt"]["ttt"]
    assert result["decisive"] == "ttt"
    assert result["adaptation"] == row["adaptation"]
    assert row["adaptation"].startswith(f"ttt-{settings.partition(':')[0]}(")
    assert row["documents"] == ("masked" if settings.startswith("lora") else "packed")
    assert run(world.artifact, *options, "--max-bpb", row["bpb"] * 1.001)[0] == 0
    status, _, err = run(world.artifact, *options, "--max-bpb", row["bpb"] * 0.999)
    assert status == 1
    assert row["adaptation"] in err


def test_a_time_limit_reports_what_was_scored_and_ends_with_status_1(
    world: World, run: Any, tmp_path: Path
) -> None:
    # The process is older than that already.
    file = tmp_path / "result.json"
    options = ("--stride", 16, "--time-limit", 0.001, "--output", file)
    status, out, err = run(world.artifact, "--data", world.data, *options)
    assert status == 1
    assert f"came with 0 of {len(world.tokens) // 32 * 32:,} targets scored" in err
    result = json.loads(file.read_text())
    assert result["time_limit_seconds"] == 0.001
    assert [result[name]["share"] for name in ("plain", "sliding")] == [0, 0]
    assert result["plain"]["bpb"] is None
    assert "nan" in out
    options = ("--time-limit", 1e6)
    assert evaluated(run, world.artifact, "--data", world.data, *options)["plain"]["share"] == 1


def test_another_tokenizer_is_refused(world: World, run: Any, tmp_path: Path) -> None:
    other = train_tokenizer(
        [text[::-1] for text in world.documents],
        tmp_path / "other.model",
        TokenizerConfig(vocab=290, character_coverage=0.98),
    )
    status, out, err = run(world.artifact, "--data", world.data, "--tokenizer", other.path)
    assert (status, out) == (2, "")
    assert other.sha256 in err
    assert world.tokenizer.sha256 in err


def test_a_folder_without_tokenizer_says_to_name_one(
    world: World, run: Any, tmp_path: Path
) -> None:
    for shard in world.data.glob("*.bin"):
        shutil.copy(shard, tmp_path)
    status, _, err = run(world.artifact, "--data", tmp_path)
    assert status == 2
    assert "--tokenizer" in err
    named = ("--tokenizer", world.data / "tokenizer.model")
    assert run(world.artifact, "--data", tmp_path, *named)[0] == 0


def test_tokens_whose_bytes_are_not_their_texts_stop_the_evaluation(
    world: World, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptpack.data.accounting import PieceBytes

    from_tokenizer = PieceBytes.from_tokenizer

    def inflated(tokenizer: Tokenizer, vocab: int = 0) -> PieceBytes:
        table = from_tokenizer(tokenizer, vocab)
        return PieceBytes(table.base + 1, table.leading_space, table.boundary)

    monkeypatch.setattr(PieceBytes, "from_tokenizer", inflated)
    status, out, err = run(world.artifact, "--data", world.data)
    assert (status, out) == (2, "")
    assert "bytes" in err


def test_corrupt_missing_and_foreign_files_have_their_statuses(
    world: World, run: Any, tmp_path: Path
) -> None:
    data = bytearray(world.artifact.read_bytes())
    data[-1] ^= 1
    (tmp_path / "bad.gptpack").write_bytes(data)
    (tmp_path / "text.gptpack").write_text("hello " * 50)
    (tmp_path / "bad.pt").write_bytes(b"hello")
    for name, status in [
        ("bad.gptpack", 3),
        ("text.gptpack", 2),
        ("bad.pt", 2),
        ("nosuch.pt", 2),
        ("nosuch.gptpack", 2),
    ]:
        found, out, err = run(tmp_path / name, "--data", world.data)
        assert (found, out) == (status, ""), name
        assert len(err.splitlines()[-1]) > len(name)
        assert name in err


def test_a_recipe_is_for_bare_state_dicts_only(world: World, tmp_path: Path, run: Any) -> None:
    status, out, err = run(world.checkpoint, "--data", world.data, "--model", "golf-1060")
    assert (status, out) == (2, "")
    assert f"--model golf-1060 is for bare state dicts; {world.checkpoint} says its own" in err
    config = world.config
    names = ("vocab", "layers", "width", "heads", "kv_heads", "mlp_hidden", "context")
    lines = [f"{name} = {getattr(config, name)}" for name in names]
    (tmp_path / "r.toml").write_text("\n".join(["[model]", *lines]))
    torch.save(world.model.state_dict(), tmp_path / "bare.pt")
    options = ("--data", world.data, "--model", tmp_path / "r.toml", "--eval-tokens", 64)
    status, _, err = run(tmp_path / "bare.pt", *options)
    assert status == 0, err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stride", 33), "--stride 33 must not be above the context of 32"),
        (("--context", -1), "'--context': -1 is not in the range x>=0"),
        (("--eval-tokens", -5), "'--eval-tokens': -5 is not in the range x>=0"),
        (("--eval-tokens", 20), "do not fill one context"),
        (("--model", "tiny"), "says its own model"),
        (("--batch-tokens", -5), "'--batch-tokens': -5 is not in the range x>=0"),
        (("--time-limit", -1), "'--time-limit': -1.0 is not in the range x>=0"),
        (("--time-limit", "nan"), "'nan' is not a finite number"),
        (("--ttt", "adam"), "write sgd:key=value,... or lora:key=value,..., or sweep"),
        (("--ttt", "sgd:chunk=16"), "chunk=16 holds no row of context=32"),
        (("--ttt", "lora"), "chunk=256 is longer than context=32"),
        (("--ttt", "lora:chunk=8,targets=nosuch"), "no linear layer named nosuch"),
        (("--ttt", "lora:chunk=8,targets=tok_emb"), "no linear layer named tok_emb"),
        (("--ttt", "lora:chunk=8,rank=17"), "have 16 rows or columns at most"),
        (("--ttt", "lora:chunk=8,rank=1000000000"), "rank=1000000000 is no low rank"),
        (("--ttt", "sgd:freeze=3"), "freeze=3, but the model has 2 blocks"),
        (("--documents", "masked", "--tail", "drop"), "no common tail to drop"),
        (("--text", "x.txt"), "x.txt: cannot read"),
    ],
)
def test_settings_that_make_no_sense_end_with_status_2(
    options: tuple[object, ...], message: str, world: World, run: Any
) -> None:
    status, _, err = run(world.artifact, "--data", world.data, *options)
    assert status == 2
    assert message in err


def test_a_fresh_process_needs_the_artifact_tokenizer_and_shards_only(
    world: World, tmp_path: Path
) -> None:
    artifact = shutil.copy(world.artifact, tmp_path / "alone.gptpack")
    done = subprocess.run(
        [sys.executable, "-m", "gptpack", "eval", artifact, "--data", str(world.data), "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plain"]["bpb"] > 0
