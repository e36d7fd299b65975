"""Tuning moves what is in floats towards the teacher, and nothing that is coded."""

import copy
import dataclasses
import functools
import itertools
import re
import types

import hugging
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_packing import Case
from worlds import CPU, shards, tiny

import gptpack
from gptpack.artifact.reader import decode_artifact
from gptpack.artifact.record import Quality
from gptpack.calibration.collect import collect
from gptpack.calibration.text import shard_windows
from gptpack.errors import BudgetError, ConfigError
from gptpack.families.golf.gpt import GPT, build
from gptpack.packing import progressive, tuning
from gptpack.packing.config import PackConfig
from gptpack.packing.packer import CodedFile, Packer, grid_bits
from gptpack.packing.progressive import ProgressiveConfig, _with_gain, pack_progressively
from gptpack.packing.tuning import (
    TuneConfig,
    Tuned,
    floats,
    freeze,
    gain_name,
    gains,
    tune,
)
from gptpack.quant.allocation import quantize_matrices
from gptpack.quant.types import ROW_SCALES_PER_OCTAVE, PackedTensor, dequantize
from gptpack.training.checkpoint import load_checkpoint
from gptpack.training.loop import train
from gptpack.values import TokenizerIdentity

SMALL = PackConfig(states=8, codecs=("raw", "range"))
UNIFORM = dataclasses.replace(SMALL, methods=(("*", "gptq-uniform"),))
QUICK = ProgressiveConfig(
    group_steps=6,
    final_steps=30,
    tokens=256,
    calibration_windows=16,
    matrix_lr=1e-3,
    scale_lr=5e-3,
    labels=0.0,
)
SHAPE = (
    "model.width=64",
    "model.kv_heads=2",
    "model.mlp_hidden=64",
    "model.vocab=64",
    "training.batch_tokens=512",
    "training.steps=60",
)
VARIANTS = {
    "tied": (),
    "everything": (
        "model.tied_embedding=false",
        "model.bigram_rows=70",
        "model.bigram_width=64",
        "model.value_embedding_layers=[1]",
        "model.value_embedding_width=64",
        "model.smear_gate=true",
    ),
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Trained models by variant: tuning has something to keep."""

    @functools.cache
    def made(variant: str) -> GPT:
        run = tmp_path_factory.mktemp("tuning") / variant
        recipe = tiny(*SHAPE, *VARIANTS[variant])
        found = load_checkpoint(train(recipe, shards(6000), run, CPU).checkpoint)
        return build(found.model, found.weights, torch.device("cpu")).eval()

    return made


def windows(count: int = 64) -> torch.Tensor:
    return shard_windows(shards(6000), windows=count, context=16, seed=0)


@pytest.fixture(scope="session")
def case(trained):
    @functools.cache
    def made(variant: str = "tied") -> Case:
        model = trained(variant)
        found = collect(model, windows(), CPU, fisher_windows=32, batch=32, seed=0)
        return Case(
            model=model,
            tokenizer=TokenizerIdentity(sha256="ab" * 32, vocab=64, bos=1),
            sensitivities=dict(found.sensitivities),
        )

    return made


def divergence(student: GPT, teacher: GPT, tokens: torch.Tensor) -> float:
    """Mean KL of the next-token distributions, nats per token."""
    with torch.no_grad():
        p, q = (F.log_softmax(m.logits(m.hidden(tokens)), -1) for m in (teacher, student))
        return float((p.exp() * (p - q)).sum(-1).mean())


def unpacked(packed: CodedFile) -> GPT:
    """The model in the file."""
    artifact = decode_artifact(packed.assemble(), verify_weights=True)
    model = GPT(artifact.header.model)
    model.load_state_dict(
        {t.name: torch.from_numpy(dequantize(t).copy()) for t in artifact.tensors}
    )
    return model.eval()


def coded_student(chosen: Case, delta: float) -> tuple[GPT, GPT, dict[str, PackedTensor]]:
    """A teacher, and a student with all its large matrices coded."""
    teacher = chosen.model
    student = copy.deepcopy(teacher)
    packer = chosen.packer(SMALL)
    tensors = {
        coded.tensor.name: coded.tensor
        for coded in quantize_matrices(packer.matrices, delta, states=8)
    }
    freeze(student, {n: torch.from_numpy(dequantize(t).copy()) for n, t in tensors.items()})
    return teacher, student, tensors


DELTA = 0.003


# freezing and tuning


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_frozen_student_computes_with_the_coded_values(case, variant):
    teacher, student, tensors = coded_student(case(variant), DELTA)
    plain = copy.deepcopy(teacher)
    values = {name: torch.from_numpy(dequantize(t).copy()) for name, t in tensors.items()}
    plain.load_state_dict({**teacher.state_dict(), **values})
    tokens = windows(4)
    with torch.no_grad():
        torch.testing.assert_close(student.hidden(tokens), plain.hidden(tokens))
        torch.testing.assert_close(
            student.logits(student.hidden(tokens)), plain.logits(plain.hidden(tokens))
        )
    assert gains(student).keys() == tensors.keys()
    assert floats(student).keys() == teacher.state_dict().keys() - tensors.keys()
    assert not gains(teacher)


@pytest.mark.parametrize("variant", VARIANTS)
def test_divergence_falls_and_codes_stay_as_they_are(case, variant):
    teacher, student, tensors = coded_student(case(variant), DELTA)
    held_out = windows(96)[64:]
    before = divergence(student, teacher, held_out)
    reported = tune(
        student,
        teacher,
        windows(64),
        TuneConfig(steps=40, tokens=256, scale_lr=5e-3, matrix_lr=1e-3),
        CPU,
    )
    after = divergence(student, teacher, held_out)
    assert after < 0.8 * before
    assert reported.steps == 40
    assert reported.loss_nats < before
    for name, tensor in tensors.items():
        module = student.get_submodule(name.removesuffix(".weight"))
        base = module.coded_base
        assert np.array_equal(base.numpy(), dequantize(tensor))
        torch.testing.assert_close(
            module.weight.detach(), base * gains(student)[name][:, None], rtol=0, atol=0
        )
    assert any((gain != 1).any() for gain in gains(student).values())


def test_the_teacher_and_the_windows_stay_as_they_are(case):
    teacher, student, _ = coded_student(case(), DELTA)
    state = {name: value.clone() for name, value in teacher.state_dict().items()}
    tokens = windows(8)
    kept = tokens.clone()
    tune(student, teacher, tokens, TuneConfig(steps=3, tokens=64), CPU)
    assert all(torch.equal(state[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert torch.equal(tokens, kept)


def test_fixed_parameters_do_not_move_and_others_do(case):
    teacher, student, _ = coded_student(case(), DELTA)
    fixed = ("blocks.0.attn_scale", gain_name("blocks.1.mlp.fc.weight"))
    before = {name: value.detach().clone() for name, value in student.named_parameters()}
    tune(student, teacher, windows(16), TuneConfig(steps=4, tokens=64), CPU, fixed=fixed)
    moved = {
        name for name, value in student.named_parameters() if not torch.equal(before[name], value)
    }
    assert not moved & set(fixed)
    assert moved >= {
        "blocks.1.attn_scale",
        gain_name("blocks.0.mlp.fc.weight"),
        "blocks.0.resid_mix",
    }


def test_no_steps_change_nothing(case):
    teacher, student, _ = coded_student(case(), DELTA)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    steps, loss = tune(student, teacher, windows(8), TuneConfig(steps=0), CPU)
    assert steps == 0
    assert np.isnan(loss)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_a_clock_ends_tuning_with_rates_near_zero(case, monkeypatch):
    """Each look at the clock takes a tenth of a second here."""
    _, student, _ = coded_student(case(), DELTA)
    looks = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: next(looks) / 10)
    monkeypatch.setattr(tuning, "time", clock)
    rates = []
    step = torch.optim.Adam.step

    def noted(adam: torch.optim.Adam, *arguments: object) -> None:
        rates.append(adam.param_groups[0]["lr"])
        step(adam, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    settings = TuneConfig(steps=4, seconds=1.05, tokens=64, warmup=0, scale_lr=1.0)
    result = tune(student, case().model, windows(16), settings, CPU)
    assert result.steps == len(rates) == 10
    assert rates == pytest.approx([1 - look / 10.5 for look in range(1, 11)])


def test_tuning_is_deterministic_and_shows_its_progress(case):
    seen, states = [], []
    for _ in range(2):
        teacher, student, _ = coded_student(case(), DELTA)
        seen.clear()
        tune(
            student,
            teacher,
            windows(8),
            TuneConfig(steps=5, tokens=64),
            CPU,
            progress=lambda phase, done, total: seen.append((phase, done, total)),
            phase="tune 1/2",
        )
        states.append(student.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert seen == [("tune 1/2", step, 5) for step in range(1, 6)]


def cross_entropy(model: GPT, tokens: torch.Tensor) -> float:
    """Of each window's tokens but the first, nats per token."""
    with torch.no_grad():
        logits = model.logits(model.hidden(tokens[:, :-1]))
        return float(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


def test_labels_bring_the_student_closer_to_the_text_than_the_teacher_alone(case):
    held_out = windows(96)[64:]
    found = {}
    for labels in (0.0, 1.0):
        teacher, student, _ = coded_student(case(), DELTA)
        settings = TuneConfig(steps=40, tokens=256, scale_lr=5e-3, matrix_lr=1e-3, labels=labels)
        tune(student, teacher, windows(64), settings, CPU)
        found[labels] = (cross_entropy(student, held_out), divergence(student, teacher, held_out))
    assert found[1.0][0] < found[0.0][0]
    assert found[1.0][1] > found[0.0][1]


def test_the_loss_is_the_weighted_sum_of_divergence_and_cross_entropy(case):
    teacher, student, _ = coded_student(case(), DELTA)
    tokens = windows(4)
    with torch.no_grad():
        guide = teacher.predictions(tokens)
        found = float(tuning._loss(student.predictions(tokens), guide, tokens, 0.25))
    of_teacher = divergence(student, teacher, tokens) * tokens.numel()
    of_text = cross_entropy(student, tokens) * tokens[:, 1:].numel()
    assert found == pytest.approx(0.75 * of_teacher + 0.25 * of_text, rel=1e-5)


@pytest.mark.parametrize("labels", [-0.1, 1.5])
def test_labels_are_a_share(labels):
    with pytest.raises(ConfigError, match="a share"):
        TuneConfig(labels=labels)


def test_gains_round_trip_into_row_scales(case):
    _, _, tensors = coded_student(case(), DELTA)
    tensor = tensors["blocks.0.mlp.fc.weight"]
    gain_R = torch.exp(torch.linspace(-1, 1, tensor.shape[0]))
    moved = _with_gain(tensor, gain_R)
    assert np.array_equal(moved.arrays["codes"], tensor.arrays["codes"])
    wanted_RC = dequantize(tensor) * gain_R.numpy()[:, None]
    found_RC = dequantize(moved)
    # to half a place of the grid of row scales
    np.testing.assert_allclose(found_RC, wanted_RC, rtol=2 ** (0.5 / ROW_SCALES_PER_OCTAVE) - 0.999)
    # gains that lie on the grid come back as they are
    shift_R = torch.arange(tensor.shape[0]) - 20
    exact = _with_gain(tensor, 2.0 ** (shift_R / ROW_SCALES_PER_OCTAVE))
    difference = exact.arrays["row_scales"] - tensor.arrays["row_scales"]
    assert np.array_equal(difference, shift_R.numpy())
    same = _with_gain(tensor, torch.ones(tensor.shape[0]))
    assert np.array_equal(dequantize(same), dequantize(tensor))


# group by group


def test_groups_are_tables_first_and_then_layers_from_the_last(case):
    matrices = case("everything").packer(SMALL).matrices
    names = [matrix.name for matrix in matrices]
    layers = case("everything").model.groups(names)
    assert [group[0].split(".")[0] for group in layers] == [
        layers[0][0].split(".")[0],
        "blocks",
        "blocks",
    ]
    assert not any(name.startswith("blocks.") for name in layers[0])
    assert all(name.startswith("blocks.1.") for name in layers[1])
    assert all(name.startswith("blocks.0.") for name in layers[2])
    assert sorted(name for group in layers for name in group) == sorted(names)


def progressively(
    chosen: Case, packer: Packer, settings: ProgressiveConfig = QUICK, **more
) -> CodedFile:
    return pack_progressively(
        packer,
        chosen.model,
        windows(64),
        CPU,
        chosen.sensitivities,
        settings,
        **more,
    )


@pytest.fixture(scope="session")
def tuned_file(case):
    """Files tuned at one delta, by variant and by whether layer by layer; each is made once."""

    @functools.cache
    def made(variant: str = "tied", by_layer: bool = True) -> CodedFile:
        settings = dataclasses.replace(QUICK, by_layer=by_layer)
        return progressively(case(variant), case(variant).packer(SMALL), settings, delta=DELTA)

    return made


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("by_layer", [True, False])
def test_tuning_brings_the_file_closer_to_the_teacher_at_the_same_delta(
    case, tuned_file, variant, by_layer
):
    chosen, tuned = case(variant), tuned_file(variant, by_layer)
    plain = chosen.pack(config=SMALL, delta=DELTA)
    teacher, held_out = chosen.model, windows(96)[64:]
    before = divergence(unpacked(plain), teacher, held_out)
    after = divergence(unpacked(tuned), teacher, held_out)
    assert after < 0.8 * before
    assert tuned.record.delta == plain.record.delta == DELTA
    assert tuned.record.tuned_steps == 30 + (12 if by_layer else 0)


@pytest.mark.parametrize("by_layer", [True, False])
def test_a_tuned_file_stays_within_its_budget_and_is_the_tuned_one(case, by_layer):
    chosen = case()
    budget = int(chosen.packer(SMALL).weights * 3 / 8) + 3000
    settings = dataclasses.replace(QUICK, by_layer=by_layer)
    tuned = progressively(chosen, chosen.packer(UNIFORM, budget, code_bytes=100), settings)
    assert len(tuned.assemble(Quality(bpb_before=1.234567, bpb_after=1.3))) + 100 <= budget
    assert tuned.record.tuned_steps is not None
    plain = chosen.pack(budget, UNIFORM, code_bytes=100)
    teacher, held_out = chosen.model, windows(96)[64:]
    after = divergence(unpacked(tuned), teacher, held_out)
    assert after < divergence(unpacked(plain), teacher, held_out)


def test_a_budget_that_is_too_small_is_found_before_any_tuning(case):
    phases = set()
    with pytest.raises(BudgetError, match="bytes are enough"):
        progressively(
            case(),
            case().packer(SMALL, 1000),
            progress=lambda phase, _done, _total: phases.add(phase),
        )
    assert phases == {"search delta"}


def test_matrices_of_other_methods_stay_as_they_were_coded(case, monkeypatch):
    """The rest learns to live with int8 and the like; nothing moves that the file cannot hold."""
    chosen = case()
    config = dataclasses.replace(
        SMALL, methods=(("*", "gptq-trellis"), ("blocks.0.mlp.*", "gptq-int4"))
    )
    students = []

    def watched(student: GPT, *arguments: object, **settings: object) -> Tuned:
        students.append(student)
        return tune(student, *arguments, **settings)

    monkeypatch.setattr(progressive, "tune", watched)
    settings = dataclasses.replace(QUICK, matrix_lr=1e-2)
    tuned = progressively(chosen, chosen.packer(config), settings, delta=DELTA)
    packed = unpacked(tuned)
    name = "blocks.0.mlp.fc.weight"
    plain = unpacked(chosen.pack(config=config, delta=DELTA)).state_dict()
    assert torch.equal(plain[name], packed.state_dict()[name])
    # the file is the student that was trained, but for the rounding of its gains and floats
    held_out = windows(96)[64:]
    teacher = chosen.model
    apart = divergence(packed, students[-1], held_out)
    assert apart < 0.1 * divergence(packed, teacher, held_out)


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_are_tuned_behind_an_embedding_of_another_method(case, variant):
    chosen = case(variant)
    config = dataclasses.replace(
        SMALL, methods=(("*", "gptq-trellis"), ("tok_emb.weight", "gptq-int8"))
    )
    packer = chosen.packer(config)
    tuned = unpacked(progressively(chosen, packer, delta=DELTA)).state_dict()
    held = torch.from_numpy(dequantize(packer.fixed["tok_emb.weight"]).copy())
    assert torch.equal(tuned["tok_emb.weight"], held)


@pytest.mark.parametrize("by_layer", [True, False])
def test_seconds_take_the_place_of_steps_and_the_file_says_how_many_there_were(
    case, by_layer, monkeypatch
):
    """Each look at the clock takes a tenth of a second here."""
    chosen = case()
    looks = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: next(looks) / 10)
    monkeypatch.setattr(tuning, "time", clock)
    monkeypatch.setattr(progressive, "time", clock)
    settings = dataclasses.replace(QUICK, by_layer=by_layer, final_steps=3, seconds=4.0)
    packed = progressively(chosen, chosen.packer(SMALL), settings, delta=DELTA)
    assert 15 < packed.record.tuned_steps < 40
    assert len(packed.assemble()) > 0


def test_two_progressive_packs_give_identical_bytes(case, tuned_file):
    again = progressively(case(), case().packer(SMALL), delta=DELTA)
    assert again.assemble() == tuned_file().assemble()


def test_tuning_that_does_not_fit_is_left_out_and_said_so(case, monkeypatch):
    chosen = case()
    budget = int(chosen.packer(SMALL).weights * 3 / 8) + 3000
    settings = dataclasses.replace(QUICK, by_layer=False, final_steps=1)
    monkeypatch.setattr(progressive, "HELD_BACK_BYTES", -(10**6))
    packed = progressively(chosen, chosen.packer(UNIFORM, budget), settings)
    assert packed.assemble() == chosen.pack(budget, UNIFORM).assemble()
    (note,) = packed.notes
    assert "tuning was left out" in note


@pytest.mark.parametrize("held_back", [progressive.HELD_BACK, -0.004])
def test_floats_that_tuning_makes_larger_are_tuned_within_the_budget(case, monkeypatch, held_back):
    """Floats all alike take no bytes, tuned ones do; where too little is held back, codes yield."""
    chosen = case()
    monkeypatch.setattr(progressive, "HELD_BACK", held_back)
    weights = {
        name: value if name.endswith(".weight") else value.bfloat16().float().round(decimals=1)
        for name, value in chosen.model.state_dict().items()
    }
    model = build(chosen.model.config, weights, torch.device("cpu")).eval()
    chosen = dataclasses.replace(chosen, model=model)
    config = dataclasses.replace(UNIFORM, codecs=("zlib", "range"))
    budget = int(chosen.packer(SMALL).weights * 3 / 8) + 3000
    settings = dataclasses.replace(QUICK, by_layer=False)
    tuned = progressively(chosen, chosen.packer(config, budget), settings)
    assert tuned.notes == ()
    assert tuned.record.tuned_steps == 30
    assert 0.98 * budget < len(tuned.assemble()) <= budget
    teacher, held_out = chosen.model, windows(96)[64:]
    after = divergence(unpacked(tuned), teacher, held_out)
    assert after < divergence(unpacked(chosen.pack(budget, config)), teacher, held_out)


def test_no_layer_pays_alone_for_tables_that_tuning_makes_larger(case):
    """A table of few different floats deflates well, and no more once it is tuned."""
    weights = {name: value.clone() for name, value in case().model.state_dict().items()}
    weights["tok_emb.weight"] = weights["tok_emb.weight"].round(decimals=1)
    model = build(case().model.config, weights, torch.device("cpu")).eval()
    chosen = dataclasses.replace(case(), model=model)
    methods = (("*", "gptq-trellis"), ("tok_emb.weight", "float16"))
    config = dataclasses.replace(SMALL, codecs=("zlib", "range"), methods=methods)
    budget = len(chosen.pack(config=config, delta=4 * DELTA).assemble()) + 7000
    tuned = progressively(chosen, chosen.packer(config, budget))
    assert tuned.notes == ()
    assert 0.98 * budget < len(tuned.assemble()) <= budget
    tensors = decode_artifact(tuned.assemble()).tensors
    spread = {0: [], 1: []}
    for tensor in tensors:
        if tensor.method == "trellis":
            spread[int(tensor.name.split(".")[1])].append(np.abs(tensor.arrays["codes"]).mean())
    last, first = (np.mean(spread[layer]) for layer in (0, 1))
    assert 0.4 < last / first < 2.5  # 0.07 where the last group alone pays


@pytest.mark.parametrize(("by_layer", "bits"), [(True, 1.5), (False, 3.0)])
def test_bits_are_the_most_that_a_tuned_file_has(case, by_layer, bits):
    chosen = case("everything")
    settings = dataclasses.replace(QUICK, by_layer=by_layer, scale_lr=1e-2)
    tuned = progressively(chosen, chosen.packer(SMALL), settings, bits=bits)
    assert tuned.record.tuned_steps > 0
    assert bits - 0.04 < grid_bits(tuned.encoded) <= bits


def test_what_is_kept_in_floats_is_what_tuning_made_of_it(case, tuned_file):
    tuned = unpacked(tuned_file()).state_dict()
    plain = unpacked(case().pack(config=SMALL, delta=DELTA)).state_dict()
    for name in ("blocks.0.attn_scale", "blocks.1.resid_mix", "skip_weights"):
        assert not torch.equal(tuned[name], plain[name]), name


@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_layers_of_a_hugging_face_model_share_graphs_and_learn_the_same(family, tmp_path):
    count = {"n_layer": 6} if family == "gpt2" else {"num_hidden_layers": 6}
    folder = hugging.make_folder(tmp_path / "model", family, **count)
    teacher = gptpack.load(folder, device="cpu").runnable()
    tokens = torch.arange(8 * 16).mul(7).remainder(hugging.VOCAB).view(8, 16)
    settings = TuneConfig(steps=2, tokens=128)
    graphs = []

    def compiler(function, **options):
        def count(module, _):
            graphs.append(function)
            return module.forward

        return torch.compile(function, backend=count, **options)

    found = []
    for how in (None, compiler):
        student = copy.deepcopy(teacher)
        # three of six layers are coded, as in the middle of a pack
        late = [name for name in student.layers() if re.search(r"\.[345]\.", name)]
        weights = floats(student)
        freeze(student, {name: (weights[name] * 16).round() / 16 for name in late})
        result = tune(student, teacher, tokens, settings, CPU, compiler=how)
        found.append((result.loss_nats, gains(student), floats(student)))
        assert not any("forward" in vars(module) for module in student.module.modules())
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
    # the teacher's, a coded and a plain layer's, each for every kind of attention; and the loss
    assert 4 <= len(graphs) <= 1 + 3 * (2 if family == "gemma3_text" else 1)


@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
def test_compiled_parts_learn_the_same(case):
    found = []
    for compiler in (None, functools.partial(torch.compile, backend="eager")):
        teacher, student, _ = coded_student(case(), DELTA)
        settings = TuneConfig(steps=2, tokens=128, labels=0.25)
        result = tune(student, teacher, windows(8), settings, CPU, compiler=compiler)
        found.append((result.loss_nats, gains(student), floats(student)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
