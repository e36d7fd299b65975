"""What a packed file becomes for others: a plain folder, one safetensors file, a GGUF."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hugging import CONTEXT, SAID, make_folder, sentencepiece_tokenizer, train_folder
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from worlds import corpus, invoke

import gptpack
from gptpack.artifact.front import decode_header
from gptpack.errors import ConfigError, MissingDependencyError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.quant.methods import GRID_METHODS

FAST = {"calibration": "random", "calibration_tokens": 256, "states": 8}
READABLE = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    # what transformers takes where a GGUF of these says nothing that it reads
    "qwen3": {"head_dim": 128},
    "gpt2": {"n_positions": 1024},
}
"""Families that become a GGUF, with settings by which transformers reads it back."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A function that packs a family's tiny model once, and gives its file."""
    root = tmp_path_factory.mktemp("unpack")

    def make(family: str, name: str = "", **settings) -> Path:
        file = root / f"{name or family}.gptpack"
        if not file.exists():
            folder = make_folder(root / (name or family), family, **settings)
            gptpack.pack(folder, delta=1e-3, output=file, **FAST)
        return file

    return make


@pytest.fixture(scope="module")
def golf(tmp_path_factory):
    """A packed file of a golf model, and the model."""
    torch.manual_seed(0)
    model = GPT(gptpack.ModelConfig(vocab=280, layers=1, width=16, heads=2, kv_heads=1, context=16))
    file = tmp_path_factory.mktemp("golf") / "m.gptpack"
    gptpack.pack(
        model, delta=1e-3, tokenizer=corpus().data / "tokenizer.model", output=file, **FAST
    )
    return file


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(CONTEXT)[None]).logits


# a plain folder


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_a_plain_folder_has_bit_for_bit_what_was_evaluated(packed, tmp_path, family):
    file = packed(family)
    made = gptpack.unpack(file, tmp_path / "out", to="transformers")
    loaded = gptpack.load(file)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model) is type(loaded.model)
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(logits(model), logits(loaded.model))
    for name, content in loaded.files.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    assert made.bytes == sum(f.stat().st_size for f in (tmp_path / "out").iterdir())
    assert made.packed_bytes == file.stat().st_size


def test_it_needs_nothing_of_ours(packed, tmp_path):
    gptpack.unpack(packed("llama"), tmp_path / "out", to="transformers")
    code = (
        "import sys, transformers\n"
        "transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "transformers.AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "sys.exit(any(name.startswith('gptpack') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_smaller_type_is_the_weights_rounded(packed, tmp_path, dtype):
    gptpack.unpack(packed("llama"), tmp_path / "out", to="transformers", dtype=dtype)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    state = gptpack.load(packed("llama")).runnable().weights()
    kind = getattr(torch, dtype)
    assert weights.keys() == state.keys()
    assert all(torch.equal(value, state[name].to(kind)) for name, value in weights.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_a_large_model_is_sharded(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("gptpack.families.transformers.export.SHARD_BYTES", 100_000)
    gptpack.unpack(packed("llama"), tmp_path / "out", to="transformers")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(model), logits(gptpack.load(packed("llama")).model))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A trained model's packed file, and with what it was packed."""
    root = tmp_path_factory.mktemp("first")
    text = root / "text.txt"
    text.write_text(SAID * 30, encoding="utf-8")
    asked = {"text": (text,), "calibration_tokens": 8 * CONTEXT}
    folder = train_folder(make_folder(root / "llama", "llama"))
    made = gptpack.pack(folder, budget=30_000, output=root / "1.gptpack", **asked)
    gptpack.unpack(made.path, root / "out", to="transformers")
    return made, root / "out", asked


def test_packing_it_again_at_the_same_budget_is_no_worse(first):
    made, folder, asked = first
    again = gptpack.pack(folder, budget=30_000, **asked)
    assert len(again.data) <= 30_000
    before, after = (decode_header(each.data) for each in (made, again))
    assert before.weights_sha256 == after.weights_sha256
    assert (before.model, before.files) == (after.model, after.files)
    count = sum(tensor.method in GRID_METHODS for tensor in before.tensors)
    note = f"{count} of {count} matrices were unpacked from a file and keep their codes"
    assert note in again.coded.notes


def test_what_was_trained_on_is_rounded_again_and_the_rest_is_not(first, tmp_path):
    made, folder, asked = first
    shutil.copytree(folder, tmp_path / "out")
    model = gptpack.load(made.path).model
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    model.save_pretrained(tmp_path / "out")
    again = gptpack.pack(tmp_path / "out", budget=32_000, output=tmp_path / "2.gptpack", **asked)
    before, after = (gptpack.load(each.path).state_dict() for each in (made, again))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"model.layers.0.mlp.up_proj.weight"}


def test_a_smaller_budget_rounds_all_of_it_again(first):
    _, folder, asked = first
    again = gptpack.pack(folder, budget=25_000, **asked)
    assert len(again.data) <= 25_000
    assert not any("keep their codes" in note for note in again.coded.notes)


# one safetensors file


def test_one_safetensors_file_of_a_golf_model(golf, tmp_path):
    gptpack.unpack(golf, tmp_path / "m.safetensors", to="safetensors")
    weights = load_file(tmp_path / "m.safetensors")
    state = gptpack.load(golf).model.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], value) for name, value in state.items())
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        said = json.loads(file.metadata()["gptpack"])
    assert said["family"] == "golf"
    assert ModelConfig(**said["model"]) == gptpack.load(golf).model.config
    again = gptpack.load(tmp_path / "m.safetensors", model=ModelConfig(**said["model"]))
    assert all(torch.equal(again.model.state_dict()[name], value) for name, value in state.items())


def test_one_safetensors_file_of_a_users_module(tmp_path):
    torch.manual_seed(0)
    inner = torch.nn.Sequential(torch.nn.Embedding(64, 32), torch.nn.Linear(32, 64))
    module = gptpack.Module(inner, logits=lambda model, tokens: model(tokens), context=16)
    gptpack.pack(module, delta=1e-3, output=tmp_path / "m.gptpack", **FAST)
    made = gptpack.unpack(
        tmp_path / "m.gptpack", tmp_path / "m.safetensors", to="safetensors", dtype="bfloat16"
    )
    inner.bfloat16().load_state_dict(load_file(tmp_path / "m.safetensors"))
    state = gptpack.load(tmp_path / "m.gptpack").state_dict()
    for name, value in inner.state_dict().items():
        assert torch.equal(value, state[name].bfloat16())
    assert made.dtype == "bfloat16"


def test_one_safetensors_file_of_a_transformers_model_has_tied_weights_once(packed, tmp_path):
    gptpack.unpack(packed("llama"), tmp_path / "m.safetensors", to="safetensors")
    weights = load_file(tmp_path / "m.safetensors")
    assert "lm_head.weight" not in weights
    model = AutoModelForCausalLM.from_config(gptpack.load(packed("llama")).model.config)
    model.load_state_dict(weights, strict=False)
    model.eval()
    assert torch.equal(logits(model), logits(gptpack.load(packed("llama")).model))


# GGUF


def q8_0(values: np.ndarray) -> np.ndarray:
    """Values as Q8_0 has them: 32 in a row share a float16 scale, 1/127 of the largest."""
    blocks = values.reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    ratio = blocks * (1 / np.where(scale, scale, 1))  # not divided: grids make ties
    codes = np.trunc(ratio + np.copysign(np.float32(0.5), ratio))
    return (codes * scale.astype(np.float16)).astype(np.float32).reshape(values.shape)


ROUND = {
    "float32": lambda values: values,
    "float16": lambda values: values.half().float(),
    "bfloat16": lambda values: values.bfloat16().float(),
    "q8_0": lambda values: torch.from_numpy(q8_0(values.numpy())),
}


def rounded(model, dtype: str):
    """The model with its matrices rounded; a Conv1D's are stored turned, and vectors exactly."""
    conv1d = "attn.c_", "mlp.c_"
    for name, value in model.named_parameters():
        if value.ndim > 1 and "wpe" not in name:
            turned = any(part in name for part in conv1d)
            held = value.data.T.contiguous() if turned else value.data
            held = ROUND[dtype](held)
            value.data = held.T.contiguous() if turned else held
    return model


@pytest.mark.parametrize("dtype", ROUND)
@pytest.mark.parametrize("family", READABLE)
def test_a_gguf_is_read_back_by_transformers_with_equal_logits(packed, tmp_path, family, dtype):
    file = packed(family, f"{family}-readable", **READABLE[family])
    gptpack.unpack(file, tmp_path / "m.gguf", to="gguf", dtype=dtype)
    loaded = gptpack.load(file)
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    ).eval()
    before = logits(loaded.model)
    wanted, found = logits(rounded(loaded.model, dtype)), logits(read)
    size = float(wanted.abs().max())
    assert torch.allclose(found, wanted, atol=1e-5 * size, rtol=0)
    # and the rounding is of the size that it should have
    share = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1, "q8_0": 1e-1}[dtype]
    assert float((found - before).abs().max()) <= share * size
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    (ids,) = loaded.tokenizer.encode([SAID])
    assert tokenizer.encode(SAID, add_special_tokens=False) == ids.tolist()
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds == {
        "F32",
        {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(dtype, "Q8_0"),
    }


def fields(path: Path) -> dict:
    return {key: value.contents() for key, value in gguf.GGUFReader(path).fields.items()}


def test_a_gguf_says_how_its_tokenizer_cuts_text_and_talks(packed, tmp_path):
    file = packed("llama", "chat", template="{{ messages[0]['content'] }}")
    gptpack.unpack(file, tmp_path / "m.gguf", to="gguf")
    said = fields(tmp_path / "m.gguf")
    assert said["tokenizer.ggml.model"] == "gpt2"
    assert said["tokenizer.ggml.pre"] == "gpt-2"
    assert said["tokenizer.chat_template"] == "{{ messages[0]['content'] }}"
    assert said["tokenizer.ggml.eos_token_id"] == 0
    assert said["tokenizer.ggml.add_bos_token"] is False
    assert said["tokenizer.ggml.token_type"][:2] == [3, 1]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_gguf_has_sentencepiece_tokenizers(packed, tmp_path, kind):
    pieces, tokenizer = sentencepiece_tokenizer(kind, tmp_path)
    folder = make_folder(tmp_path / "llama", "llama", vocab_size=400, bos_token_id=1)
    tokenizer.save_pretrained(folder)
    gptpack.pack(folder, delta=1e-3, output=tmp_path / "m.gptpack", **FAST)
    made = gptpack.unpack(tmp_path / "m.gptpack", tmp_path / "m.gguf", to="gguf")
    said = fields(tmp_path / "m.gguf")
    count = pieces.get_piece_size()
    assert said["tokenizer.ggml.tokens"][:count] == [pieces.id_to_piece(i) for i in range(count)]
    assert said["tokenizer.ggml.tokens"][count] == f"[PAD{count}]"
    types = said["tokenizer.ggml.token_type"]
    assert types[:4] == [2, 3, 3, 6]
    assert {types[i] for i in range(count) if pieces.is_byte(i)} == {6}
    assert set(types[count:]) == {5}
    assert said["tokenizer.ggml.add_bos_token"] is True
    assert said["tokenizer.ggml.add_space_prefix"] is True
    scores = said["tokenizer.ggml.scores"]
    if kind == "unigram":
        assert said["tokenizer.ggml.model"] == "t5"
        assert np.allclose(scores[:count], [pieces.get_score(i) for i in range(count)])
        assert any("Unigram" in note for note in made.notes)
        return
    assert said["tokenizer.ggml.model"] == "llama"
    # which of two pieces is merged first is what SentencePiece says, too
    merged = [i for i in range(count) if types[i] == 1 and len(pieces.id_to_piece(i)) > 1]
    by_ours = sorted(merged, key=lambda i: -scores[i])
    assert by_ours == sorted(merged, key=lambda i: -pieces.get_score(i))
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert read.encode(SAID, add_special_tokens=False) == pieces.encode(SAID)


def test_positions_scaled_as_llama_3_has_them_go_into_a_tensor(packed, tmp_path):
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    file = packed("llama", "llama3", rope_parameters=scaling)
    gptpack.unpack(file, tmp_path / "m.gguf", to="gguf")
    (found,) = (t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if "rope" in t.name)
    # by the formula of the paper's code: long waves are stretched, short ones stay
    waves = 2 * np.pi * 10000.0 ** (np.arange(0, 16, 2) / 16)
    smooth = np.clip((32 / waves - 1.0) / (4.0 - 1.0), 0, 1)
    assert np.allclose(found.data, 1 / ((1 - smooth) / 8 + smooth), rtol=1e-5)
    assert [found.data[0], found.data[-1]] == pytest.approx([1, 8])


def test_rows_that_make_no_blocks_are_said(packed, tmp_path):
    file = packed("llama", "odd", intermediate_size=80)
    made = gptpack.unpack(file, tmp_path / "m.gguf", to="gguf", dtype="q8_0")
    assert made.notes == ("2 tensors whose rows are no multiple of 32 are F16",)


# what is refused


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("olmo2", {}, "no GGUF architecture is known for model_type=olmo2, only for llama"),
        ("mistral", {}, "sliding window of 32"),
        ("qwen3", {"attention_bias": True}, "attention_bias=True of a qwen3"),
        ("llama", {"hidden_act": "relu"}, "hidden_act='relu' of a llama"),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "positions scaled by 'linear'",
        ),
    ],
)
def test_what_a_gguf_cannot_say_is_refused(packed, tmp_path, capsys, family, settings, said):
    file = packed(family, f"{family}-{len(settings)}-refused", **settings)
    assert invoke("unpack", str(file), "--to", "gguf", "-o", str(tmp_path / "m.gguf")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("gptpack: ")
    assert said in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["transformers", "gguf"])
def test_a_family_that_is_not_of_transformers_is_refused(golf, tmp_path, to, capsys):
    assert invoke("unpack", str(golf), "--to", to, "-o", str(tmp_path / "out")) == 2
    assert "of the family golf" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "onnx"), "'onnx' is not one of"),
        (("--to", "transformers", "--dtype", "q8_0"), "--to transformers takes float32"),
        (("--to", "gguf", "--keep-packed"), "--keep-packed goes with --to transformers"),
        (("--to", "transformers", "--keep-packed", "--dtype", "float16"), "--keep-packed goes"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(packed, tmp_path, words, said, capsys):
    assert invoke("unpack", str(packed("llama")), *words, "-o", str(tmp_path / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_what_stands_there_stays_unless_it_is_of_the_kind_and_force_is_given(packed, tmp_path):
    file, out = packed("llama"), tmp_path / "out"
    mine = out / "mine.txt"
    out.mkdir()
    mine.write_text("mine")
    for force in (False, True):
        with pytest.raises(ConfigError, match="exists"):
            gptpack.unpack(file, out, to="transformers", force=force)
    with pytest.raises(ConfigError, match="exists and is no gguf"):
        gptpack.unpack(file, mine, to="gguf", force=True)
    with pytest.raises(ConfigError, match="exists and is no safetensors"):
        gptpack.unpack(file, mine, to="safetensors", force=True)
    assert mine.read_text() == "mine"
    for to in ("transformers", "gguf", "safetensors"):
        gptpack.unpack(file, tmp_path / to, to=to)
        with pytest.raises(ConfigError, match="exists; give force=True"):
            gptpack.unpack(file, tmp_path / to, to=to)
        gptpack.unpack(file, tmp_path / to, to=to, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "gguf",
        "out",
        "safetensors",
        "transformers",
    ]


def test_a_full_disk_is_one_line_and_leaves_nothing(packed, tmp_path, monkeypatch, capsys):
    from safetensors import SafetensorError
    from transformers import PreTrainedModel

    def full(self, folder, **how):
        (Path(folder) / "config.json").write_text("{}")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    file, place = packed("llama"), tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    words = ("unpack", str(file), "--to", "transformers", "-o", str(place / "out"))
    assert invoke(*words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "cannot write: I/O error: No space left on device" in last
    assert not list(place.iterdir())


def test_whoever_may_read_one_file_of_a_folder_may_read_all(packed, tmp_path):
    gptpack.unpack(packed("llama"), tmp_path / "out", to="transformers")
    files = list((tmp_path / "out").iterdir())
    assert any(file.suffix == ".safetensors" for file in files)
    assert len({file.stat().st_mode for file in files}) == 1


@pytest.mark.parametrize("other", ["thesis.tex", "src/main.py", ".git/HEAD", "model.gptpack"])
def test_a_folder_that_holds_anything_else_stays_whole(packed, tmp_path, other):
    out = tmp_path / "out"
    gptpack.unpack(packed("llama"), out, to="transformers")
    (out / other).parent.mkdir(exist_ok=True)
    (out / other).write_bytes(packed("llama").read_bytes())
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    file = out / other if other.endswith("gptpack") else packed("llama")
    for keep in (False, True):
        with pytest.raises(ConfigError, match="which is not of the unpacked model and would be"):
            gptpack.unpack(file, out, to="transformers", force=True, keep_packed=keep)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_a_missing_extra_is_status_4(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    words = ("unpack", str(packed("llama")), "--to", "gguf", "-o", str(tmp_path / "m.gguf"))
    assert invoke(*words) == MissingDependencyError.exit_status == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("pip install 'gptpack[gguf]'")


def test_a_checkpoint_is_no_packed_file(packed, tmp_path, capsys):
    (tmp_path / "x.bin").write_bytes(b"nothing")
    words = ("--to", "transformers", "-o", str(tmp_path / "out"))
    assert invoke("unpack", str(tmp_path / "x.bin"), *words) == 3
    assert invoke("unpack", str(packed("llama").with_suffix("")), *words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_values_beyond_a_type_are_refused(tmp_path):
    folder = make_folder(tmp_path / "llama", "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0] *= 1e6
    model.save_pretrained(folder)
    gptpack.pack(folder, delta=1e-3, output=tmp_path / "m.gptpack", **FAST)
    for to in ("transformers", "gguf"):
        with pytest.raises(ConfigError, match="take dtype bfloat16"):
            gptpack.unpack(tmp_path / "m.gptpack", tmp_path / "out", to=to, dtype="float16")
    assert not (tmp_path / "out").exists()


def test_a_killed_unpack_leaves_nothing_under_the_final_name(packed, tmp_path):
    code = (
        "import sys, time, gptpack.families.transformers.export as export\n"
        "def slow(files, folder):\n"
        "    print('writing', flush=True); time.sleep(60)\n"
        "export._write_files = slow\n"
        "import gptpack\n"
        "gptpack.unpack(sys.argv[1], sys.argv[2], to='transformers')"
    )
    command = [sys.executable, "-c", code, str(packed("llama")), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()


def test_files_that_no_packer_of_ours_ships_stay_out(packed, tmp_path, monkeypatch):
    from gptpack.families.transformers.export import write_packed

    loaded = gptpack.load(packed("llama"))
    files = {"LICENSE": b"free", "adapter_config.json": b"{}", "model.py": b"", "config.json": b""}
    notes = write_packed(loaded.runnable(), files, b"packed", tmp_path)
    assert [note.split(":")[0] for note in notes] == [
        "adapter_config.json",
        "model.py",
        "config.json",
    ]
    assert (tmp_path / "LICENSE").read_bytes() == b"free"
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


def test_the_command_says_what_it_costs(packed, tmp_path, capsys):
    words = ["unpack", str(packed("llama")), "--to", "gguf", "-o", str(tmp_path / "m.gguf")]
    assert invoke(*words) == 0
    captured = capsys.readouterr()
    size = (tmp_path / "m.gguf").stat().st_size
    assert f"{size:,}" in captured.out
    times = size / packed("llama").stat().st_size
    assert f"m.gguf is unpacked: {times:.1f} times the bytes" in captured.err
    assert invoke(*words, "--force", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["bytes"], said["dtype"]) == (size, "float16")
