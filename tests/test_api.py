"""The public surface: what `import gptpack` offers, as its docstrings and the README use it."""

import dataclasses
import doctest
import inspect
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from worlds import corpus

import gptpack
from gptpack.artifact.reader import decode_artifact
from gptpack.cli.main import run
from gptpack.families.golf.gpt import GPT

FUNCTIONS = ["check", "evaluate", "inspect", "load", "pack", "train", "unpack", "verify"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the examples name: shards, a checkpoint, and a file made of it."""
    folder = tmp_path_factory.mktemp("api")
    shutil.copytree(corpus().data, folder / "shards")
    few = ["training.steps=30", "training.seconds=0"]
    trained = gptpack.train("tiny", folder / "shards", folder / "run", overrides=few)
    shutil.copy(trained.checkpoint, folder / "checkpoint.pt")
    settings = {"data": folder / "shards", "states": 8, "device": "cpu"}
    gptpack.pack(
        folder / "checkpoint.pt", budget="100KB", output=folder / "model.gptpack", **settings
    )
    return folder


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_each_function_runs(place, monkeypatch, capsys, name):
    monkeypatch.chdir(place)
    function = getattr(gptpack, name)
    (example,) = doctest.DocTestFinder().find(function, name, globs={"gptpack": gptpack})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0, capsys.readouterr().out


def test_importing_it_loads_no_torch_and_using_headers_neither(place):
    code = (
        "import sys, gptpack; gptpack.inspect(sys.argv[1]); gptpack.check(sys.argv[1])\n"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(place / "model.gptpack")]
    assert subprocess.run(command, check=False).returncode == 0


def test_every_name_is_there_and_documented():
    for name in gptpack.__all__:
        value = getattr(gptpack, name)
        assert name == "__version__" or inspect.getdoc(value)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gptpack.nothing  # noqa: B018


def test_help_on_pack_names_every_setting():
    said = inspect.getdoc(gptpack.pack)
    missing = [
        each.name
        for each in dataclasses.fields(gptpack.PackRequest)
        if f"`{each.name}`" not in said
    ]
    assert not missing


def test_the_library_and_the_command_make_the_same_file(place, tmp_path):
    made = gptpack.pack(place / "checkpoint.pt", budget="60KB", data=place / "shards", states=8)
    words = ["--budget", "60KB", "--data", str(place / "shards"), "--states", "8", "--json"]
    run(["pack", str(place / "checkpoint.pt"), *words, "-o", str(tmp_path / "m.gptpack")])
    assert (tmp_path / "m.gptpack").read_bytes() == made.data
    assert made.path is None


def test_a_model_in_memory_is_packed_and_proved_like_its_checkpoint(place):
    loaded = gptpack.load(place / "checkpoint.pt")
    tokenizer = place / "shards/tokenizer.model"
    settings = {"bits": 3, "data": place / "shards", "states": 8, "tokenizer": tokenizer}
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    of_module = gptpack.pack(loaded.model, **settings)
    of_loaded = gptpack.pack(loaded, **settings)
    assert all(torch.equal(before[n], v) for n, v in loaded.model.state_dict().items())
    tensors = [decode_artifact(made.data).tensors for made in (of_module, of_loaded)]
    for one, other in zip(*tensors, strict=True):
        assert all(np.array_equal(one.arrays[key], other.arrays[key]) for key in one.arrays)
    assert of_module.before.plain.nats == pytest.approx(of_loaded.before.plain.nats, rel=1e-6)
    assert of_module.after.plain.nats == of_loaded.after.plain.nats
    assert of_module.record.checkpoint_sha256 is None


def test_progress_goes_to_the_callback_and_nothing_is_printed(place, capfd):
    phases = []
    gptpack.pack(
        place / "checkpoint.pt",
        bits=2,
        states=8,
        calibration="random",
        calibration_tokens=256,
        progress=lambda phase, _done, _total: phases.append(phase),
    )
    assert {"factor", "search delta"} <= set(phases)
    assert capfd.readouterr() == ("", "")


def test_training_by_no_recipe_is_refused(tmp_path):
    with pytest.raises(gptpack.GptpackError, match="training needs recipe: baseline"):
        gptpack.train(None, tmp_path, tmp_path / "run")


def test_a_request_that_makes_no_sense_is_of_the_one_family(place):
    with pytest.raises(gptpack.GptpackError, match="budget and bits exclude"):
        gptpack.pack(place / "checkpoint.pt", budget="1MB", bits=3)
    with pytest.raises(gptpack.GptpackError, match="a packed file; give the checkpoint"):
        gptpack.pack(place / "model.gptpack", bits=3)
    with pytest.raises(TypeError, match="no argument 'bugdet'; did you mean budget"):
        gptpack.pack(place / "checkpoint.pt", bugdet="1MB")
    for tokens in ([5] * 9999, torch.ones(4), torch.ones(2, 2, 2, dtype=torch.int64)):
        with pytest.raises(
            gptpack.GptpackError, match=r"calibration: a .*; needed one of"
        ) as error:
            gptpack.pack(place / "checkpoint.pt", budget="1MB", calibration=tokens)
        assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tune": "depp"}, "tune='depp': choose none, floats, deep"),
        ({"calibration": "texts"}, "calibration='texts': choose shards, text, self, random"),
        ({"device": "gpu"}, "device='gpu': choose auto, cpu, cuda"),
        ({"bits": -1.0}, r"bits=-1\.0 must be a number above 0"),
        ({"delta": "3e-4"}, "delta=3e-4 must be a number of 1e-12 to 1e12"),
        ({"methods": "int8"}, "methods=int8 must be a tuple or list"),
        ({"stride": 0}, "stride=0 must be a whole number above 0"),
        ({"seed": -1}, "seed=-1 must be a whole number below"),
        ({"tune_labels": 2}, "tune_labels=2 must lie in"),
        ({"states": 8.0}, r"states=8\.0 must be a whole number above 0"),
        ({"keep": "no"}, "keep=no must be True or False"),
        ({"states": 7}, "states=7: the trellis has"),
        ({"budget": "16 apples"}, "write a number and a unit"),
        ({"budget": 1.5}, "budget=1.5 must be text such as 16MB"),
        ({"budget": 0}, "budget=0 must be text such as 16MB"),
        ({"request": gptpack.PackRequest(bits=3), "seed": 1}, "seed: set them in the request"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_any_work(settings, said):
    with pytest.raises(gptpack.GptpackError, match=said):
        gptpack.pack(
            "absent.pt",
            **({"bits": 3} if not settings.keys() & {"bits", "delta", "budget", "request"} else {}),
            **settings,
        )


def test_numbers_of_numpy_are_numbers():
    given = {"seed": np.int64(3), "states": np.uint16(8), "keep": np.bool_(False)}
    plain = {"seed": 3, "states": 8, "keep": False}
    for name, value in {"bits": np.float32(3), "budget": np.int64(60_000)}.items():
        found = gptpack.PackRequest(**given, **{name: value})
        assert found == gptpack.PackRequest(**plain, **{name: value.item()})
        assert type(found.seed) is int


def test_what_is_altered_in_memory_is_scored_as_it_is(place):
    loaded = gptpack.load(place / "checkpoint.pt")
    with torch.no_grad():
        loaded.model.get_parameter(loaded.model.embedding_name).mul_(0.5)
    before = gptpack.evaluate(loaded, place / "shards").plain
    with torch.inference_mode():
        made = gptpack.pack(loaded, bits=6, states=8, data=place / "shards")
    assert made.before.plain.bpb == pytest.approx(before.bpb, rel=1e-6)
    assert made.after.plain.bpb == pytest.approx(before.bpb, rel=1e-2)
    assert made.after.plain.tokens == before.tokens


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda f: gptpack.pack(torch.nn.Linear(2, 2), bits=3), "a Linear cannot be packed"),
        (lambda f: gptpack.pack({}, bits=3), "a dict cannot be packed"),
        (
            lambda f: gptpack.evaluate(f / "model.gptpack", f / "shards", device="tpu"),
            "choose auto",
        ),
        (
            lambda f: gptpack.evaluate(f / "model.gptpack", f / "shards", tail="x"),
            "tail='x': choose",
        ),
        (lambda f: gptpack.evaluate(f / "model.gptpack", f / "none"), "no such folder"),
        (lambda f: gptpack.verify(f / "model.gptpack", f / "model.gptpack"), "a packed file; give"),
    ],
)
def test_what_cannot_be_meant_is_one_error_of_the_family(place, call, said):
    with pytest.raises(gptpack.GptpackError, match=said):
        call(place)


def test_a_lone_file_of_code_is_one_file(place):
    result = gptpack.check(place / "model.gptpack", code=place / "checkpoint.pt", data=None)
    assert result.artifacts[0].code_bytes == (place / "checkpoint.pt").stat().st_size


def test_a_model_without_a_tokenizer_says_how_to_name_one():
    model = GPT(gptpack.ModelConfig(vocab=64, layers=1, width=16, heads=2, kv_heads=1, context=16))
    with pytest.raises(gptpack.GptpackError, match="does not say which tokenizer"):
        gptpack.pack(model, bits=3)
