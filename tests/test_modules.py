"""Modules of their caller's own: packed by the layers that they call, and given back by name."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gptpack
from gptpack.artifact.front import decode_header
from gptpack.errors import CheckpointError, ConfigError, DataError
from gptpack.jobs import prepare
from gptpack.jobs.curve import make_curve
from gptpack.jobs.request import PackRequest

VOCAB, WIDTH, CONTEXT = 96, 64, 32


def draw(model: nn.Module) -> None:
    """Give the model's matrices random values, the same in every test."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3, generator=generator)


class CastedLinear(nn.Linear):
    """As contest scripts have it: weights are cast to the type of what comes in."""

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


class Script(nn.Module):
    """A model in the manner of a contest's script: tied by a product, gated, soft-capped."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(VOCAB, WIDTH)
        self.skip_weights = nn.Parameter(torch.ones(2, WIDTH))
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "fc": CastedLinear(WIDTH, 2 * WIDTH, bias=False),
                    "gate": CastedLinear(WIDTH, 2 * WIDTH, bias=False),
                    "proj": CastedLinear(2 * WIDTH, WIDTH, bias=False),
                }
            )
            for _ in range(2)
        )
        self.lm_head = None if tied else CastedLinear(WIDTH, VOCAB, bias=False)
        draw(self)

    def forward_logits(self, tokens):
        x = self.tok_emb(tokens)
        mean = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        for layer, skip in zip(self.layers, self.skip_weights, strict=True):
            h = F.rms_norm(x + mean, (WIDTH,))
            x = x * skip + layer["proj"](layer["fc"](h).relu() * layer["gate"](h))
        x = F.rms_norm(x, (WIDTH,)).reshape(-1, WIDTH)
        out = F.linear(x, self.tok_emb.weight) if self.lm_head is None else self.lm_head(x)
        return (30 * torch.tanh(out / 30)).view(*tokens.shape, VOCAB)


def tokens(count: int = 4096) -> torch.Tensor:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(1))


def wrapped(model: Script) -> gptpack.Module:
    return gptpack.Module(model, logits=model.forward_logits, context=CONTEXT)


@pytest.mark.parametrize("tied", [True, False])
def test_a_script_packs_its_module_and_gets_its_state_back(tmp_path, tied):
    model = Script(tied=tied)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    text = tokens().view(8, -1)
    with torch.no_grad():
        before = model.forward_logits(text[:, :CONTEXT])
    target = tmp_path / "m.gptpack"
    done = gptpack.pack(wrapped(model), calibration=text, budget="40KB", output=target)
    assert 30_000 < target.stat().st_size <= 40_000
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    header = decode_header(done.data)
    assert (header.family, header.tokenizer, done.record.calibration) == ("module", None, "given")
    methods = {tensor.name: tensor.method for tensor in header.tensors}
    assert methods.keys() == state.keys()
    floats = {name for name, method in methods.items() if method != "trellis"}
    assert floats == {"skip_weights"}
    found = gptpack.load(target)
    halves = gptpack.load(target, dtype="float16").state_dict()
    assert all(
        torch.equal(halves[name], value.half()) for name, value in found.state_dict().items()
    )
    model.load_state_dict(found.state_dict())
    with torch.no_grad():
        after = model.forward_logits(text[:, :CONTEXT])
    assert 0 < (after - before).square().mean() < 0.02 * before.var()
    with pytest.raises(ConfigError, match="not how to run it"):
        found.model.eval()
    said = tmp_path / "t.txt"
    said.write_text("The mill stood still.")
    with pytest.raises(ConfigError, match="not how to run it"):
        gptpack.evaluate(target, text=said)


def test_its_layers_are_those_that_it_calls_and_share_what_comes_in():
    model = wrapped(Script(tied=False))
    layers = model.layers()
    assert len(layers) == 7
    assert layers["layers.1.gate.weight"].shares_input_of == "layers.1.fc.weight"
    assert (model.embedding_name, model.head_name) == ("tok_emb.weight", "lm_head.weight")
    assert wrapped(Script()).head_name == "tok_emb.weight"
    assert model.get_submodule("layers.0.fc") is model.module.layers[0]["fc"]


def test_the_callers_configuration_is_kept(tmp_path):
    model = Script()
    said = {"name": "script", "layers": [2, {"width": WIDTH}]}
    module = gptpack.Module(model, logits=model.forward_logits, context=CONTEXT, config=said)
    gptpack.pack(module, calibration=tokens(), delta=1e-3, output=tmp_path / "m.gptpack")
    report = gptpack.inspect(tmp_path / "m.gptpack")
    assert (report.family, report.model["values"]) == ("module", said)
    code = "import sys, gptpack; gptpack.verify(sys.argv[1]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path / "m.gptpack")]
    assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("value", [Path("x"), float("nan"), {1, 2}])
def test_a_configuration_that_is_no_json_is_refused_at_once(value):
    model = Script()
    with pytest.raises(
        gptpack.GptpackError, match=r"config=.*: not plain values for JSON"
    ) as error:
        gptpack.Module(model, logits=model.forward_logits, context=CONTEXT, config={"place": value})
    assert error.value.exit_status == 2


@pytest.fixture
def quickly(monkeypatch):
    """Tuning takes few steps."""
    quick = partial(prepare.ProgressiveConfig, final_steps=15, group_steps=2, tokens=8 * CONTEXT)
    monkeypatch.setattr(prepare, "ProgressiveConfig", quick)


def test_tuning_trains_a_copy_that_the_caller_can_call(tmp_path, quickly):
    model = Script()
    text = tokens()
    module = gptpack.Module(
        model, logits=lambda own, given: own.forward_logits(given), context=CONTEXT
    )
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        wanted = model.forward_logits(text.view(-1, CONTEXT)).log_softmax(-1)
    errors = {}
    for tune in ("none", "floats"):
        done = gptpack.pack(module, calibration=text, delta=0.01, tune=tune)
        path = tmp_path / "m.gptpack"
        path.write_bytes(done.data)
        copy = Script()
        copy.load_state_dict(gptpack.load(path).state_dict())
        with torch.no_grad():
            found = copy.forward_logits(text.view(-1, CONTEXT)).log_softmax(-1)
        errors[tune] = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    assert errors["floats"] < errors["none"]
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="works on a copy"):
        gptpack.pack(wrapped(model), calibration=text, delta=0.05, tune="floats")


def test_modules_and_tokens_that_cannot_be_used_are_refused_in_one_line(tmp_path):
    model = Script()
    with pytest.raises(CheckpointError, match=r"no nn\.Embedding"):
        gptpack.Module(nn.Linear(2, 2), logits=lambda t: t, context=8)
    with pytest.raises(ConfigError, match=r"have shape \(1, 8\)"):
        gptpack.Module(model, logits=lambda t: t, context=8)
    with pytest.raises(CheckpointError, match=r"come from no nn\.Linear"):
        gptpack.Module(model, logits=lambda t: model.forward_logits(t)[..., :5], context=8)
    for given in (tokens(8), torch.full((4096,), VOCAB), -torch.ones(4096, dtype=torch.int64)):
        with pytest.raises(DataError, match="needed at least the model's window"):
            gptpack.pack(wrapped(model), calibration=given, delta=1e-3)
    with pytest.raises(ConfigError, match="proved by its caller"):
        gptpack.pack(wrapped(model), calibration=tokens(), delta=1e-3, data=tmp_path)
    with pytest.raises(ConfigError, match=r"weights in torch\.bfloat16 cannot be packed"):
        gptpack.pack(wrapped(model.bfloat16()), calibration=tokens(), delta=1e-3)


class Tied(nn.Module):
    """A model whose output layer is the embedding by assignment, and made before or after it."""

    def __init__(self, first: str = "wte") -> None:
        super().__init__()
        layers = {
            "wte": nn.Embedding(VOCAB, WIDTH),
            "lm_head": nn.Linear(WIDTH, VOCAB, bias=False),
        }
        for name in sorted(layers, key=lambda name: name != first):
            self.add_module(name, layers[name])
        self.lm_head.weight = self.wte.weight
        self.up = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.drop = nn.Dropout(0.2)
        self.norm = nn.BatchNorm1d(2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        draw(self)

    def forward(self, tokens):
        x = self.wte(tokens)
        h = self.norm(self.drop(self.up(x)).transpose(1, 2)).transpose(1, 2)
        return self.lm_head(F.rms_norm(x + self.down(h.relu()), (WIDTH,)))


def tied(model: nn.Module) -> gptpack.Module:
    return gptpack.Module(model, logits=lambda own, given: own(given), context=CONTEXT)


@pytest.mark.parametrize("tune", ["none", "deep"])
@pytest.mark.parametrize("first", ["wte", "lm_head"])
def test_a_weight_of_two_names_is_coded_once_and_given_back_under_both(
    tmp_path, quickly, first, tune
):
    model = Tied(first).eval()
    text = tokens()
    windows = text.view(-1, CONTEXT)
    with torch.no_grad():
        wanted = model(windows).log_softmax(-1)
    path = tmp_path / "m.gptpack"
    done = gptpack.pack(tied(model), calibration=text, bits=4, output=path, tune=tune)
    methods = {tensor.name: tensor.method for tensor in decode_header(done.data).tensors}
    assert methods[f"{first}.weight"] == "trellis"
    assert len(methods) == len(model.state_dict()) - 1
    copy = Tied(first).eval()
    copy.load_state_dict(gptpack.load(path).state_dict())
    with torch.no_grad():
        found = copy(windows).log_softmax(-1)
    assert 0 < (wanted.exp() * (wanted - found)).sum(-1).mean() < 0.1
    gptpack.unpack(path, tmp_path / "m.safetensors", to="safetensors")


def test_what_a_tuned_file_gives_is_the_model_that_was_tuned():
    from gptpack.packing.tuning import freeze, gains

    model = Tied()
    student = tied(model.eval())
    value = model.wte.weight.detach() * 2
    windows = tokens().view(-1, CONTEXT)[:2]
    freeze(student, {"wte.weight": value})
    assert model.lm_head.weight.equal(value)
    student.predictions(windows).sum().backward()
    assert [*gains(student)] == ["wte.weight"]
    assert model.lm_head.coded_gain is model.wte.coded_gain


class Attentive(nn.Module):
    """A model with a matrix that is no module's weight."""

    def __init__(self) -> None:
        super().__init__()
        width = 160  # smaller matrices of no module stay floats
        self.emb = nn.Embedding(VOCAB, width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(width, VOCAB)
        draw(self)

    def forward(self, tokens):
        x = self.emb(tokens)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.head(x + self.attn(x, x, x, attn_mask=later, need_weights=False)[0])


def test_tuning_leaves_a_matrix_in_int8_as_the_file_holds_it(tmp_path, quickly):
    packed = {}
    for tune in ("none", "floats"):
        methods = ("*in_proj*=int8",)
        model = Attentive()
        module = gptpack.Module(model, logits=model, context=CONTEXT)
        done = gptpack.pack(module, calibration=tokens(), bits=4, methods=methods, tune=tune)
        assert [*dict(model.named_modules())] == ["", "emb", "attn", "attn.out_proj", "head"]
        path = tmp_path / f"{tune}.gptpack"
        path.write_bytes(done.data)
        packed[tune] = gptpack.load(path).state_dict()
    names = ("attn.in_proj_weight", "emb.weight")
    same = {name: torch.equal(*(each[name] for each in packed.values())) for name in names}
    assert same == {"attn.in_proj_weight": True, "emb.weight": False}


def test_logits_that_are_no_tensor_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"logits gave tuple; needed a tensor \[B, T, voc"):
        gptpack.Module(Attentive(), logits=lambda own, given: (own(given), None), context=CONTEXT)


def test_a_curve_says_what_the_packer_could_not_do_as_asked(tmp_path):
    model = Attentive()
    module = gptpack.Module(model, logits=model, context=CONTEXT)
    request = PackRequest(calibration=tokens(), keep=False)
    curve = make_curve(module, request, tmp_path / "c.csv", [4.0])
    assert any("attn.out_proj.weight: no calibration input" in note for note in curve.notes)


def test_a_name_in_a_record_never_hides_a_tensor():
    from gptpack.artifact.plan import TensorEntry
    from gptpack.artifact.tables import FURTHER_NAMES, further_names

    def entry(name: str, said: object) -> TensorEntry:
        return TensorEntry(
            name=name, shape=(1,), method="float32", parameters={}, record={FURTHER_NAMES: said}
        )

    said = {"a": ["b", "c", 7, ["d"]], "b": "xyz", "e": {"f": 1}, "g": ["c", "h"]}
    entries = [entry(name, names) for name, names in said.items()]
    assert further_names(entries) == {"c": "a", "h": "g"}


def test_wrapping_a_model_in_training_leaves_it_and_the_generator_as_they_were():
    model = Tied()
    model.norm.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    tied(model)
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert (model.training, model.drop.training, model.norm.training) == (True, True, False)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.tensor([2**24 + 1]), "int64 that float32 does not hold"),
        (torch.ones(3, dtype=torch.complex64), "complex64 that float32 does not hold"),
        (
            torch.full((4, 4), -torch.inf).triu(1),
            "not finite: held; give a mask to register_buffer",
        ),
        (torch.empty(0), r"has shape \[0\]"),
        (torch.ones(1, 1, 1, 1, 1), r"has shape \[1, 1, 1, 1, 1\]"),
    ],
)
def test_a_state_that_no_file_holds_is_refused_before_any_work(value, said):
    model = Script()
    model.register_buffer("held", value)
    phases = []
    with pytest.raises(CheckpointError, match=said):
        gptpack.pack(
            wrapped(model),
            calibration=tokens(),
            delta=1e-3,
            progress=lambda phase, *_: phases.append(phase),
        )
    assert not phases


def test_a_module_that_gradients_cannot_go_through_or_that_is_no_tensors_is_refused():
    with torch.inference_mode():
        model = Script()
    with pytest.raises(CheckpointError, match="make it outside"):
        gptpack.pack(wrapped(model), calibration=tokens(), delta=1e-3)

    class Extra(CastedLinear):
        def get_extra_state(self):
            return {"scale": 1}

    model = Script(tied=False)
    model.lm_head.__class__ = Extra
    with pytest.raises(CheckpointError, match=r"lm_head\._extra_state: a dict in the state"):
        gptpack.pack(wrapped(model), calibration=tokens(), delta=1e-3)


def test_weights_of_64_bits_are_tuned_in_them(quickly):
    text = tokens()
    model = tied(Tied().double())
    done = gptpack.pack(model, calibration=text, bits=4, tune="deep")
    assert done.record.tuned_steps
