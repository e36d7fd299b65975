"""Checkpoints: what loads, what is refused, and the reference's own files."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from worlds import CPU, shards, tiny

from gptpack.errors import CheckpointError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.families.language_model import state_problem
from gptpack.jobs.load import load
from gptpack.training import loop
from gptpack.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gptpack.training.recipe import Recipe
from gptpack.values import TokenizerIdentity

CONFIG = ModelConfig(vocab=40, layers=3, width=24, heads=4, kv_heads=2, mlp_hidden=20, context=8)


def state() -> dict[str, torch.Tensor]:
    return dict(GPT(CONFIG, seed=1).state_dict())


def banked(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The reference's banks: all layers of one role, then all of the next."""

    def stack(*roles: str) -> torch.Tensor:
        return torch.stack(
            [weights.pop(f"blocks.{layer}.{role}.weight") for role in roles for layer in range(3)]
        )

    return {
        "qo_bank": stack("attn.c_q", "attn.proj"),
        "kv_bank": stack("attn.c_k", "attn.c_v"),
        "mlp_up_bank": stack("mlp.fc"),
        "mlp_down_bank": stack("mlp.proj"),
        **weights,
    }


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = tmp_path / "c.pt"
    identity = TokenizerIdentity(sha256="ab" * 32, vocab=40, bos=1)
    saved = Checkpoint(
        model=CONFIG, weights=state(), tokenizer=identity, recipe=Recipe(model=CONFIG), step=7
    )
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path)
    assert (loaded.model, loaded.tokenizer, loaded.recipe, loaded.step) == (
        CONFIG,
        identity,
        Recipe(model=CONFIG),
        7,
    )
    assert all(torch.equal(loaded.weights[name], value) for name, value in state().items())
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_the_references_state_dict_loads_without_being_told_its_shape(tmp_path, prefix):
    path = tmp_path / "final_model.pt"
    torch.save({prefix + name: value.bfloat16() for name, value in state().items()}, path)
    loaded = load_checkpoint(path)
    assert loaded.model == ModelConfig(
        vocab=40, layers=3, width=24, heads=4, kv_heads=2, mlp_hidden=20
    )
    assert state_problem(GPT(loaded.model), loaded.weights) == ""


def test_banks_are_taken_apart(tmp_path):
    path = tmp_path / "banked.pt"
    torch.save(banked(state()), path)
    loaded = load_checkpoint(path, CONFIG)
    assert loaded.weights.keys() == state().keys()
    assert all(torch.equal(loaded.weights[name], value) for name, value in state().items())


def legacy_save(weights: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(weights, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.ckpt", "a.safetensors", "a.pt", "model"])
@pytest.mark.parametrize("save", [torch.save, legacy_save, save_file])
def test_a_files_kind_shows_in_its_bytes_whatever_its_name_is(tmp_path, save, name):
    save(state(), tmp_path / name)
    loaded = load_checkpoint(tmp_path / name, CONFIG)
    assert all(torch.equal(loaded.weights[name], value) for name, value in state().items())


def test_a_newer_state_dict_has_to_be_told_its_shape(tmp_path):
    torch.save({**state(), "smear.gate": torch.zeros(24)}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match=r"smear.gate does not show .* model"):
        load_checkpoint(tmp_path / "new.pt")


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_are_never_run(tmp_path, capsys, protocol):
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"x": Evil()}, protocol))
    with pytest.raises(CheckpointError, match="not a checkpoint that torch's weights-only"):
        load_checkpoint(path)
    torch.save({"tok_emb.weight": Evil()}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint that torch's weights-only"):
        load_checkpoint(path)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "'a' is a int"),
        ([1, 2], "holds a list"),
        ({"x": torch.ones(2)}, "not a checkpoint of gptpack or of the reference"),
        ({"qo_bank": torch.ones(2, 2)}, "qo_bank has shape"),
        ({"gptpack_checkpoint": 9}, "version 9, needed 1"),
        ({"gptpack_checkpoint": 1, "model": {"layers": -1}}, "damaged checkpoint"),
    ],
)
def test_what_is_not_a_checkpoint_says_what_it_is(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "x.pt")


def test_damaged_values_are_one_line(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, Checkpoint(model=CONFIG, weights=state()))
    good = torch.load(path, weights_only=True)
    table = good["weights"]["tok_emb.weight"]
    for changes, message in (
        ({"step": "abc"}, "damaged checkpoint"),
        ({"step": float("inf")}, "damaged checkpoint"),
        ({"gptpack_checkpoint": torch.ones(2)}, "checkpoint version"),
        ({"weights": {"tok_emb.weight": table.to(torch.complex64)}}, "complex64.*needed real"),
        ({"weights": {"tok_emb.weight": table.to_sparse()}}, "sparse_coo.*needed real"),
        ({"weights": {"tok_emb.weight": table.to("meta")}}, "on meta; needed real"),
    ):
        torch.save({**good, **changes}, path)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)
    torch.save({**good["weights"], "blocks.0.attn.q_gain": torch.tensor(1.0)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of gptpack or of the reference"):
        load_checkpoint(path)


def test_a_damaged_pickle_is_one_line(tmp_path):
    path = tmp_path / "c.pt"
    content = {"gptpack_checkpoint": 1, "a": torch.ones(3), "b": {"c": [1, 2, "x"]}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    good = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(1000):
        bad = bytearray(good)
        for position in generator.integers(0, len(good), 2):
            bad[position] = generator.integers(256)
        path.write_bytes(bad)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_missing_truncated_and_foreign_files_are_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        load_checkpoint(tmp_path / "none.pt")
    whole = tmp_path / "whole.pt"
    torch.save(state(), whole)
    for length in (0, 10, 1000, whole.stat().st_size - 1):
        (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:length])
        with pytest.raises(CheckpointError, match=r"cut.pt") as caught:
            load_checkpoint(tmp_path / "cut.pt")
        assert "\n" not in str(caught.value)
    save_file(state(), whole)
    for length in (9, 1000, whole.stat().st_size - 1):
        (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:length])
        with pytest.raises(CheckpointError, match="damaged safetensors file"):
            load_checkpoint(tmp_path / "cut.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense" * 10)
    with pytest.raises(CheckpointError, match=r"needed a file that torch.save or safetensors"):
        load_checkpoint(tmp_path / "bad.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(path, Checkpoint(model=CONFIG, weights=state()))
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


def test_a_recipe_of_another_version_keeps_no_weights_from_being_read(tmp_path):
    loop.train(tiny(), shards(), tmp_path, CPU)
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["recipe"]["training"]["later_setting"] = 0.5
    torch.save(content, path)
    found = load_checkpoint(path)
    assert found.recipe is None
    assert found.weights.keys() == content["weights"].keys()
    with pytest.raises(CheckpointError, match=r"another version.*later_setting.*can be packed"):
        loop.train(tiny(), shards(), tmp_path, CPU, resume=True)
    content["model"]["later_part"] = True
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"does not know its model.*later_part"):
        load_checkpoint(path)


SHARED = torch.zeros(16, 64)
HOSTILE = {
    "widths": ({"model.width": 1 << 40}, "weights in its matrices alone"),
    "a vocabulary": ({"model.vocab": 1 << 20}, "weights in its matrices alone"),
    "layers": ({"model.layers": 4000}, "4,000 layers cannot be made of"),
    "recurrence": ({"model.loops": 1 << 62, "model.loop_layers": 1}, "4,096 are the most"),
    "a context": ({"model.context": 1 << 40}, "must be at most 1048576"),
    "a float": ({"model.qk_gain": 1.7e308}, "as float32 does"),
    "a float near 0": ({"model.logit_softcap": 1e-300}, "as float32 does"),
    "a step": ({"step": -1}, "is no number of steps"),
    "steps": ({"step": 10**400}, "damaged checkpoint"),
    "no weights": ({"weights": None}, "damaged checkpoint"),
    "a view of one number": (
        {"weights": {"a": torch.zeros(1).expand(1 << 40)}},
        "needed real numbers, all of them in the file",
    ),
    "one tensor under many names": (
        {"weights": {f"{i}": SHARED for i in range(1000)}},
        "1,000 tensors of 4,096,000 bytes on 4,096 bytes of numbers",
    ),
    "a tensor on no device": (
        {"weights": {"a": torch.zeros(1 << 40, device="meta")}},
        "needed real numbers, all of them in the file",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_model_is_made_that_the_file_does_not_fill(name, tmp_path):
    changes, message = HOSTILE[name]
    path = tmp_path / "c.pt"
    save_checkpoint(path, Checkpoint(model=CONFIG, weights=state()))
    content = torch.load(path, weights_only=True)
    for key, value in changes.items():
        place, _, inner = key.partition(".")
        if inner:
            content[place][inner] = value
        else:
            content[place] = value
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_a_training_state_that_is_none_is_one_line(tmp_path):
    recipe = tiny()
    loop.train(recipe, shards(), tmp_path, CPU)
    path = tmp_path / "checkpoint.pt"
    whole = torch.load(path, weights_only=True)
    for damage in (
        {},
        {"optimizers": None, "raw": None, "seconds": 0.0},
        whole["training"] | {"seconds": "x"},
        whole["training"] | {"optimizers": {"a": torch.zeros(1)}},
        whole["training"] | {"raw": {"a": 1}},
    ):
        torch.save(whole | {"training": damage}, path)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            loop.train(recipe, shards(), tmp_path, CPU, resume=True)
    torch.save(whole | {"recipe": None}, path)
    with pytest.raises(CheckpointError, match="does not say its recipe"):
        loop.train(recipe, shards(), tmp_path, CPU, resume=True)
