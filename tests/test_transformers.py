"""Models of Hugging Face's transformers: in, packed, out again, and what is refused."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hugging import CONTEXT, FAMILIES, SAID, make_folder, make_gguf
from worlds import invoke

import gptpack
from gptpack.artifact.front import decode_header
from gptpack.artifact.reader import read_artifact
from gptpack.errors import ArtifactError, CheckpointError, ConfigError
from gptpack.families.transformers.folder import build, read_source
from gptpack.inspection.diff import diff_reports
from gptpack.quant.types import dequantize

CALIBRATION = 8 * CONTEXT


@pytest.fixture(scope="session")
def hf(tmp_path_factory):
    """A function that makes the folder of a family once."""
    root = tmp_path_factory.mktemp("hf")
    text = root / "train.txt"
    text.write_text(SAID * 30, encoding="utf-8")
    made = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = make_folder(root / family, family)
        return made[family]

    folder.text = text
    folder.root = root
    return folder


def packed(hf, family: str, **settings):
    asked = {"delta": 1e-3, "text": (hf.text,), "calibration_tokens": CALIBRATION, **settings}
    return gptpack.pack(hf(family), **asked)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_comes_back_as_its_own_class_with_the_coded_weights(hf, tmp_path, family):
    done = packed(hf, family, output=tmp_path / "m.gptpack", device="cpu")
    loaded = gptpack.load(tmp_path / "m.gptpack")
    original = read_source(hf(family)).model
    assert type(loaded.model) is type(original.module)
    # every Linear but the output layer, which is tied or one of them, is found and coded
    linears = [n for n, m in original.module.named_modules() if isinstance(m, torch.nn.Linear)]
    head = original.head_name
    tied = {"lm_head.weight", "embed_out.weight"} - {head}
    assert {*original.layers()} == {f"{name}.weight" for name in linears} - tied
    header = decode_header(done.data)
    assert (header.version, header.family) == (2, "transformers")
    methods = {t.name: t.method for t in header.tensors}
    large = [n for n, layer in original.layers().items() if layer.module.weight.numel() >= 4096]
    assert {methods[name] for name in large} == {"trellis"}
    assert methods[original.embedding_name] == "trellis"
    assert not any("fallback" in t.record for t in header.tensors), done.notes
    # the model computes what its coded weights say
    values = {t.name: torch.from_numpy(dequantize(t)) for t in read_artifact(done.path).tensors}
    state = loaded.model.state_dict()
    for name, value in values.items():
        assert torch.equal(state[name], value.T if name in original.transposed else value)
    tokens = torch.from_numpy(loaded.tokenizer.encode([SAID])[0])[None, :CONTEXT]
    with torch.no_grad():
        own = loaded.model(tokens).logits
        ours = loaded.runnable().logits(loaded.runnable().hidden(tokens))
        before = original.module(tokens).logits
    assert torch.allclose(own, ours, atol=1e-5 * float(own.abs().max()))
    assert 0 < (own - before).square().mean() < 0.1 * before.var()


@pytest.mark.parametrize(
    ("family", "groups"),
    [
        ("llama", [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]]),
        ("gpt_neox", []),
        ("phi3", []),
    ],
)
def test_layers_that_get_the_same_tensor_share_its_moments(hf, family, groups):
    layers = read_source(hf(family)).model.layers()
    shared = {}
    for name, layer in layers.items():
        if ".1." in name:
            shared.setdefault(layer.shares_input_of, []).append(name.split(".")[-2])
    assert [names for names in shared.values() if len(names) > 1] == groups


def test_what_a_folder_does_not_say_is_taken_for_granted_aloud(hf, tmp_path):
    assert gptpack.load(hf("llama")).assumed == ()
    folder = shutil.copytree(hf("llama"), tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    config["bos_token_id"] = None
    (folder / "config.json").write_text(json.dumps(config))
    assert gptpack.load(folder).assumed == ("bos=0",)


def test_a_conv1d_is_coded_as_a_linear_layer_and_comes_back_turned(hf):
    source = read_source(hf("gpt2")).model
    name = "transformer.h.0.mlp.c_fc.weight"
    assert name in source.transposed
    done = packed(hf, "gpt2")
    rows = {t.name: t for t in decode_header(done.data).tensors}
    assert rows[name].shape == (256, 64)
    assert rows[name].parameters["transposed"] == 1
    assert "transposed" not in rows["transformer.wte.weight"].parameters
    assert gptpack.load(hf("gpt2")).model.state_dict()[name].shape == (256, 64)


def test_the_file_holds_what_running_it_needs_within_the_budget(hf, tmp_path):
    folder = shutil.copytree(hf("llama"), tmp_path / "folder")
    (folder / "README.md").write_text("A model.\n")
    (folder / "LICENSE").write_text("Do what you like.\n")
    (folder / "notes.txt").write_text("not shipped")
    target = tmp_path / "m.gptpack"
    asked = {"text": (hf.text,), "calibration_tokens": CALIBRATION}
    done = gptpack.pack(folder, budget=30_000, output=target, **asked)
    assert 25_000 < target.stat().st_size <= 30_000
    kept = read_artifact(target).files
    wanted = {"LICENSE", "README.md", "generation_config.json", "tokenizer.json"}
    assert wanted <= kept.keys()
    assert "notes.txt" not in kept
    for name in kept:
        assert kept[name] == (folder / name).read_bytes()
    report = gptpack.inspect(target)
    tensors = sum(tensor.stored_bytes for tensor in report.tensors)
    assert report.header_bytes + tensors + report.files_bytes == report.file_bytes
    assert gptpack.verify(target, folder).errors is not None
    again = gptpack.pack(folder, budget=30_000, **asked)
    assert again.data == done.data
    with pytest.raises(gptpack.GptpackError, match="are enough"):
        gptpack.pack(folder, budget=3_000, **asked)


def test_experts_in_one_tensor_stay_in_floats_and_are_named(tmp_path, hf):
    sizes = {"num_local_experts": 8, "num_experts_per_tok": 2}
    FAMILIES["mixtral"] = {**FAMILIES["llama"], **sizes}
    try:
        folder = make_folder(tmp_path / "mixtral", "mixtral")
    finally:
        del FAMILIES["mixtral"]
    asked = {"delta": 1e-3, "text": (hf.text,), "calibration_tokens": CALIBRATION}
    done = gptpack.pack(folder, output=tmp_path / "m.gptpack", **asked)
    fused = {t.name for t in decode_header(done.data).tensors if len(t.shape) == 3}
    assert fused
    named = {note.split(":")[0] for note in done.notes if "kept in" in note}
    assert named == {name for name in fused if "gate_up" in name}  # the others are small
    assert gptpack.load(tmp_path / "m.gptpack").record.method == "gptq-trellis"


AWKWARD = (
    " \u00e9t\u00e9 \U0001f600\r\n\tnot\u00a0normal: e\u0301, \u212b, \ufb01\n\n\n"
    "<|end|> 1,234.50  "
)


def test_every_byte_of_a_text_is_charged_once(hf, tmp_path):
    loaded = gptpack.load(hf("llama"))
    ids, each = loaded.tokenizer.encode_with_bytes(AWKWARD)
    assert each.sum() == len(AWKWARD.encode())
    assert 0 not in ids  # what looks like a special token is text
    text = tmp_path / "awkward.txt"
    text.write_bytes((AWKWARD * 8).encode())
    found = gptpack.evaluate(loaded, text=text, tail="score")
    first = len(loaded.tokenizer.pieces()[int(ids[0])])
    assert found.plain.bytes == 8 * len(AWKWARD.encode()) - first
    # by hand, from the library's own loss
    stream = torch.from_numpy(loaded.tokenizer.encode([AWKWARD * 8])[0])
    nats = 0.0
    for start in range(0, len(stream) - 1, CONTEXT):
        window = stream[start : start + CONTEXT + 1][None]
        with torch.no_grad():
            logits = loaded.model(window[:, :-1]).logits[0]
        nats += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
    assert found.plain.nats == pytest.approx(nats, rel=1e-5)
    assert found.plain.bpb == pytest.approx(nats / math.log(2) / found.plain.bytes, rel=1e-5)


def test_a_tokenizer_that_normalises_is_charged_for_what_was_written(hf):
    from tokenizers import normalizers

    found = gptpack.load(hf("llama")).tokenizer
    found.backend.normalizer = normalizers.NFC()
    written = "cafe\u0301 \u212b, and the mill ground on"
    ids, each = found.encode_with_bytes(written)
    spelled = b"".join(found.pieces()[token] for token in ids.tolist())
    assert spelled.decode() == "caf\u00e9 \u00c5, and the mill ground on"
    assert each.sum() == len(written.encode()) != len(spelled)
    assert (each >= 0).all()
    found.backend.normalizer = normalizers.Strip()
    with pytest.raises(gptpack.GptpackError, match="bits per byte would be wrong"):
        found.encode_with_bytes("the mill   ")


def test_a_pack_is_proved_on_other_text_in_a_fresh_process(hf, tmp_path):
    text = tmp_path / "val.txt"
    text.write_text(SAID * 4, encoding="utf-8")
    done = packed(
        hf, "qwen3", output=tmp_path / "m.gptpack", eval_text=(text,), stride=CONTEXT // 2
    )
    assert done.before.plain.tokens == done.after.plain.tokens > CONTEXT
    assert done.after.sliding.tokens >= done.after.plain.tokens
    again = gptpack.evaluate(done.path, text=text)
    assert again.plain.bpb == pytest.approx(done.after.plain.bpb, rel=1e-6)
    assert again.difference_bpb == pytest.approx(0, abs=1e-5)
    # before anything is calibrated
    short, phases = tmp_path / "short.txt", []
    short.write_text("The mill")
    for text, said in ((tmp_path / "absent.txt", "absent.txt"), (short, "fewer than the model")):
        with pytest.raises(gptpack.GptpackError, match=said):
            packed(hf, "qwen3", eval_text=(text,), progress=lambda name, *_: phases.append(name))
    assert phases == []
    with pytest.raises(ConfigError, match="must be different files"):
        packed(hf, "qwen3", eval_text=(hf.text,))


def test_tuning_makes_up_for_codes(hf, tmp_path, monkeypatch):
    from functools import partial

    from gptpack.jobs import prepare

    quick = partial(prepare.ProgressiveConfig, final_steps=12, group_steps=2, tokens=8 * CONTEXT)
    monkeypatch.setattr(prepare, "ProgressiveConfig", quick)
    asked = {"delta": 0.03, "text": (hf.text,), "calibration_tokens": CALIBRATION}
    errors = {}
    loaded = gptpack.load(hf("gpt2"))
    tokens = torch.from_numpy(loaded.tokenizer.encode([SAID])[0])[None, :CONTEXT]
    with torch.no_grad():
        wanted = loaded.model(tokens).logits.log_softmax(-1)
        for tune in ("none", "floats", "deep"):
            path = tmp_path / f"{tune}.gptpack"
            gptpack.pack(hf("gpt2"), output=path, tune=tune, **asked)
            found = gptpack.load(path).model(tokens).logits.log_softmax(-1)
            errors[tune] = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    assert errors["floats"] < errors["none"]
    assert errors["deep"] < errors["none"]


def test_without_text_a_chat_model_writes_its_own_after_the_template(hf, tmp_path):
    template = "{% for m in messages %}<|end|>user: {{ m['content'] }}{% endfor %}"
    folder = make_folder(tmp_path / "chat", "llama", template=template)
    loaded = gptpack.load(folder)
    start = loaded.tokenizer.chat_start()
    assert start[0] == 0  # here it is the special token
    assert loaded.tokenizer.decode(start) == "user: "
    done = gptpack.pack(folder, delta=0.01, calibration_tokens=CALIBRATION)
    assert done.record.calibration == "self"
    read = loaded.runnable().reader()
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        read(tokens[:, :5])
        last = read(tokens[:, 5:])
        whole = loaded.model(tokens).logits[:, -1]
    assert torch.allclose(last, whole, atol=1e-4)


def test_sharded_safetensors_and_pickles_of_tensors_are_the_same_model(hf, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(hf("llama"))
    shards, pickled = tmp_path / "shards", tmp_path / "pickled"
    model.save_pretrained(shards, max_shard_size="100KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    pickled.mkdir()
    shutil.copy(hf("llama") / "config.json", pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    state = gptpack.load(hf("llama")).language_model.weights()
    for folder in (shards, pickled):
        AutoTokenizer.from_pretrained(hf("llama")).save_pretrained(folder)
        found = gptpack.load(folder).language_model.weights()
        assert state.keys() == found.keys()
        assert all(torch.equal(state[name], found[name]) for name in state)


def test_a_gguf_file_is_the_same_model(hf, tmp_path):
    path = make_gguf(tmp_path / "model.gguf", hf("llama"))
    found, folder = gptpack.load(path), gptpack.load(hf("llama"))
    assert type(found.model) is type(folder.model)
    state = folder.language_model.weights()
    assert state.keys() == found.language_model.weights().keys()
    for name, value in found.language_model.weights().items():
        assert torch.equal(value, state[name]), name
    assert found.tokenizer.encode([SAID])[0].tolist() == folder.tokenizer.encode([SAID])[0].tolist()
    tokens = torch.from_numpy(folder.tokenizer.encode([SAID])[0])[None, :CONTEXT]
    with torch.no_grad():
        assert torch.allclose(found.model(tokens).logits, folder.model(tokens).logits, atol=1e-5)
    asked = {"delta": 4e-3, "text": (hf.text,), "calibration_tokens": CALIBRATION}
    gptpack.pack(path, output=tmp_path / "m.gptpack", **asked)
    assert gptpack.load(tmp_path / "m.gptpack").tokenizer.chat_start() is None


class Malicious:
    """What a pickle would write to `target`, if it were run."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (self.target.write_text, ("run",))


def test_folders_that_are_none_are_refused_in_one_line(hf, tmp_path):
    def changed(**values):
        folder = tmp_path / f"f{len(list(tmp_path.iterdir()))}"
        shutil.copytree(hf("llama"), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))
        return folder

    empty = changed()
    (empty / "model.safetensors").unlink()
    short = changed(num_hidden_layers=3)
    broken = changed()
    (broken / "config.json").write_text("{")
    pickled = changed()
    (pickled / "model.safetensors").unlink()
    room = torch.zeros(1 << 16)
    torch.save(
        {"weight": Malicious(tmp_path / "never"), "room": room}, pickled / "pytorch_model.bin"
    )
    for folder, said in (
        (empty, "a config.json and no weights"),
        (short, "are not in its files, such as model.layers.2"),
        (broken, "not a configuration in JSON"),
        (changed(quantization_config={"quant_method": "gptq"}), "give the folder of the original"),
        (changed(quantization_config={"quant_method": "gptpack"}), "give the packed file that"),
        (changed(model_type=None), "does not say its model_type"),
        (changed(model_type="nonesuch"), "transformers cannot load it"),
        (pickled, "transformers cannot load it"),
    ):
        with pytest.raises(CheckpointError) as raised:
            gptpack.load(folder)
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "never").exists()
    with pytest.raises(ConfigError, match="bare state dicts"):
        gptpack.load(hf("llama"), model="golf-1060")


def test_a_configuration_that_its_tensors_do_not_fill_is_refused_before_allocation(hf):
    source = read_source(hf("llama")).model
    weights = source.weights()
    for change, said in (
        ({"num_hidden_layers": 10**9}, "layers cannot be made of"),
        ({"intermediate_size": 10**9}, "but the file holds"),
        ({"intermediate_size": 10**6}, "a model of"),
        ({"intermediate_size": 112}, "has shape"),
        ({"model_type": "nonesuch"}, "cannot make a nonesuch"),
        ({"tie_word_embeddings": False}, "missing lm_head.weight"),
        ({"hidden_size": "wide"}, "cannot make a llama"),
    ):
        values = {**source.config.values, **change}
        config = type(source.config)(values=values, context=CONTEXT)
        with pytest.raises(ArtifactError, match=said):
            build(config, weights, ArtifactError)


def test_nothing_is_fetched_and_no_code_is_loaded(hf, tmp_path):
    """In a process where every connection fails, and with a configuration that names code."""
    folder = shutil.copytree(hf("llama"), tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "someone/model--code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    code = (
        "import socket, sys, gptpack\n"
        "def refuse(*_): raise SystemExit('connected')\n"
        "socket.socket.connect = refuse\n"
        "done = gptpack.pack(sys.argv[1], delta=0.01, calibration_tokens=512)\n"
        "assert b'auto_map' not in done.data\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_missing_library_is_one_line_and_status_4(hf):
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from gptpack.cli.main import run\n"
        "sys.argv = ['gptpack', 'pack', sys.argv[1], '--budget', '1MB']; run()\n"
    )
    command = [sys.executable, "-c", code, str(hf("llama"))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 4
    assert "pip install 'gptpack[hf]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_inspect_needs_neither_torch_nor_transformers(hf, tmp_path):
    target = tmp_path / "m.gptpack"
    packed(hf, "llama", output=target)
    code = (
        "import sys, gptpack; gptpack.inspect(sys.argv[1]); gptpack.check(sys.argv[1])\n"
        "gptpack.verify(sys.argv[1])\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(target)], check=False).returncode == 0


def test_diff_report_and_check_take_such_files(hf, tmp_path):
    files = [tmp_path / "a.gptpack", tmp_path / "b.gptpack"]
    for path, delta in zip(files, (1e-3, 4e-3), strict=True):
        packed(hf, "llama", delta=delta, output=path)
    a, b = map(str, files)
    assert invoke("check", a, "--budget", "100KB") == 0
    assert invoke("report", a, b, "-o", str(tmp_path / "r.html")) == 0
    assert "transformers llama, vocab 320, context 64" in (tmp_path / "r.html").read_text()
    found = diff_reports(*map(gptpack.inspect, files))
    sizes = {group.name: group.before.stored_bytes for group in found.groups}
    assert sizes["(files)"] > 1000
    assert sum(sizes.values()) == files[0].stat().st_size
    assert {setting.name for setting in found.settings} >= {"pack.delta"}


def test_check_and_diff_measure_such_files_on_plain_text(hf, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("val.txt").write_text(SAID * 4, encoding="utf-8")
    Path("table").mkdir()
    for name, delta in (("a", 1e-3), ("b", 0.05)):
        packed(hf, "llama", delta=delta, output=f"{name}.gptpack")
    scores = [gptpack.evaluate(f"{name}.gptpack", text="val.txt").plain.bpb for name in "ab"]
    assert invoke("check", "a.gptpack", "b.gptpack", "--bpb", "--text", "val.txt", "--json") == 0
    found = [row["bpb"] for row in json.loads(capsys.readouterr().out)["artifacts"]]
    assert [row["value"] for row in found] == pytest.approx(scores)
    assert {row["source"] for row in found} == {"measured"}
    assert found[0]["text_sha256"] == found[1]["text_sha256"]
    assert invoke("diff", "a.gptpack", "b.gptpack", "--bpb", "--text", "val.txt", "--json") == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert measured["after"]["bpb"] - measured["before"]["bpb"] == pytest.approx(
        scores[1] - scores[0]
    )
    # text of an artifact's own, beside a folder of shards for the others
    table = "[check]\ndata = 'shards'\n[[check.artifact]]\npath = '../a.gptpack'\n"
    Path("table/gptpack.toml").write_text(f"{table}text = ['../val.txt']\nmax_bpb = 1e-9\n")
    assert invoke("check", "--bpb", "--config", "table/gptpack.toml") == 1
    assert "above the limit of 1e-09" in capsys.readouterr().out


def test_agreement_is_that_of_the_two_models_own_predictions(hf, tmp_path):
    text = tmp_path / "val.txt"
    text.write_text(SAID * 4, encoding="utf-8")
    packed(hf, "llama", delta=0.05, output=tmp_path / "m.gptpack")
    found = gptpack.evaluate(tmp_path / "m.gptpack", text=text, against=hf("llama")).agreement
    file, reference = gptpack.load(tmp_path / "m.gptpack"), gptpack.load(hf("llama"))
    ids = torch.from_numpy(file.tokenizer.encode([SAID * 4])[0])
    windows = ids[: (len(ids) - 1) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    with torch.no_grad():
        wanted = reference.model(windows).logits.log_softmax(-1)
        ours = file.model(windows).logits.log_softmax(-1)
    each = (wanted.exp() * (wanted - ours)).sum(-1).flatten()
    assert found["positions"] == len(each)
    assert found["kl_mean"] == pytest.approx(float(each.mean()), rel=1e-4)
    assert found["kl_median"] == pytest.approx(float(each.median()), rel=2e-2)
    assert found["same_top"] == pytest.approx(
        float((wanted.argmax(-1) == ours.argmax(-1)).float().mean())
    )
    assert 0 < found["noise_kl_mean"] < found["kl_mean"]
    same = gptpack.evaluate(file, text=text, against=file).agreement
    assert same["kl_mean"] == pytest.approx(0, abs=1e-9)
    assert same["same_top"] == 1
    assert same["noise_kl_mean"] > 0
