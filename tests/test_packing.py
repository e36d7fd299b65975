"""The packer: its budget is a contract, and every tensor says how it was made."""

import copy
import dataclasses
import functools
import math
import re
import types

import numpy as np
import pytest
import torch
from worlds import CPU

from gptpack.artifact.front import decode_header
from gptpack.artifact.reader import decode_artifact
from gptpack.artifact.record import PackRecord, Quality
from gptpack.calibration.collect import collect
from gptpack.calibration.text import random_tokens
from gptpack.errors import BudgetError, CheckpointError, ConfigError, QuantError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.inspection.inspect import inspect
from gptpack.packing.apart import LEAST_CODED, keep_smallest_float, take_apart
from gptpack.packing.config import METHODS, PackConfig
from gptpack.packing.packer import MARGIN_BYTES, CodedFile, Packer, check_budget, grid_bits
from gptpack.packing.search import Goal, Search, pack_to_budget
from gptpack.progress import silent
from gptpack.quant.allocation import Sensitivity
from gptpack.quant.int8 import keep_float, quantize_int8_rows, quantize_reference
from gptpack.quant.types import dequantize
from gptpack.values import TokenizerIdentity

QUALITY = Quality(bpb_before=1.234567, bpb_after=1.345678, context=32, tokens=123456)
PLENTY = 2**40
SMALL = PackConfig(states=8, codecs=("raw", "range"))
UNIFORM = dataclasses.replace(SMALL, methods=(("*", "gptq-uniform"),))


@dataclasses.dataclass(frozen=True)
class Case:
    """A model without zero matrices, and its sensitivities."""

    model: GPT
    tokenizer: TokenizerIdentity
    sensitivities: dict[str, Sensitivity]

    def packer(self, config: PackConfig = SMALL, budget: int = PLENTY, **more) -> Packer:
        return take_apart(
            more.pop("model", self.model),
            self.tokenizer,
            config,
            more.pop("sensitivities", self.sensitivities),
            budget_bytes=budget,
            **more,
        )

    def pack(self, budget: int = PLENTY, config: PackConfig = SMALL, **more) -> CodedFile:
        search = {name: more.pop(name, None) for name in ("delta", "bits")}
        return pack_to_budget(self.packer(config, budget, **more), **search)


@functools.cache
def case(width: int = 64, layers: int = 2, vocab: int = 64) -> Case:
    config = ModelConfig(
        vocab=vocab,
        layers=layers,
        width=width,
        heads=2,
        kv_heads=1,
        mlp_hidden=width,
        context=32,
    )
    model = GPT(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2, generator=generator)
    windows = random_tokens(vocab, windows=32, context=32, seed=0)
    found = collect(model, windows, CPU, fisher_windows=8, batch=16, seed=0)
    return Case(
        model=model,
        tokenizer=TokenizerIdentity(sha256="ab" * 32, vocab=vocab, bos=1),
        # random weights are far more sensitive than trained ones
        sensitivities={
            name: dataclasses.replace(one, row_weight=one.row_weight / 1e4)
            for name, one in found.sensitivities.items()
        },
    )


def weights_of(chosen: Case) -> dict[str, torch.Tensor]:
    return chosen.model.state_dict()


def named_budget(error: BudgetError) -> int:
    found = re.search(r"([\d,]+) bytes are enough", str(error))
    assert found, error
    return int(found[1].replace(",", ""))


@functools.cache
def largest_file() -> int:
    """Bytes at the finest step whose codes can be stored."""
    return len(case().pack(10**9).assemble(QUALITY))


def size_at(chosen: Case, delta: float, config: PackConfig = SMALL) -> int:
    packer = chosen.packer(config)
    return packer.size(packer.encode(packer.quantize(delta)[0]))


# the budget


@pytest.mark.parametrize(("config", "code"), [(SMALL, 0), (UNIFORM, 777)])
def test_no_budget_is_ever_passed_by_a_byte(config, code):
    """Fifteen budgets, half of them each, from below the smallest file to above the largest."""
    smallest, largest = size_at(case(), 0.4096, config) + code, largest_file() + code
    works = None
    budgets = np.geomspace(smallest * 0.6, largest * 1.3, 15).astype(int).tolist()
    for budget in budgets[::2] if code else budgets[1::2]:
        try:
            packed = case().pack(budget, config, code_bytes=code)
        except BudgetError as error:
            works = named_budget(error)
            assert budget < works <= smallest + 64
            continue
        assert works is None or budget >= works - 64
        for quality in (None, QUALITY):
            file = packed.assemble(quality)
            assert len(file) + code <= budget
            header = decode_header(file)
            assert header.pack["budget_bytes"] == budget
            assert header.pack["code_bytes"] == code
    assert works is not None


@pytest.mark.parametrize("budget", [1, 3000])
@pytest.mark.parametrize("proved", [False, True])
def test_the_budget_that_an_error_names_works_and_is_the_smallest(budget, proved):
    for code in (0, 500):
        with pytest.raises(BudgetError) as raised:
            case().pack(budget, code_bytes=code, proved=proved)
        named = named_budget(raised.value)
        quality = QUALITY if proved else Quality()
        for room in (0, 1, 40, 100):  # what is kept free for later figures refuses none of these
            file = case().pack(named + room, code_bytes=code, proved=proved).assemble(quality)
            assert len(file) + code <= named + room
            # figures that are measured later may be shorter than those that were allowed for
            assert len(file) + code >= named - (24 if proved else 1) or room
        if not proved:
            # another delta may deflate to a header some bytes shorter
            with pytest.raises(BudgetError, match="bytes are enough"):
                case().pack(named - 4, code_bytes=code, proved=False)


def test_a_model_of_some_size_lands_within_a_thousandth():
    """340,000 weights; what is kept free for later figures comes on top, some 40 bytes, and a
    channel, of which a finer delta would keep one more, some 60."""
    chosen = case(width=144, layers=3, vocab=256)
    packer = chosen.packer()
    assert packer.weights > 300_000
    for bits in (1.5, 4.0):
        budget = int(packer.weights * bits / 8)
        file = chosen.pack(budget).assemble(QUALITY)
        assert 0 <= budget - len(file) <= budget // 1000 + 128


def test_a_larger_budget_never_predicts_a_worse_loss():
    smallest = size_at(case(), 2e-3)
    losses = [
        case().pack(int(budget)).predicted_nats
        for budget in np.linspace(smallest, largest_file() * 1.1, 6)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 10 * losses[-1]


@pytest.mark.parametrize("delta", [3e-5, 1e-3])
def test_a_draft_is_as_large_as_the_file_or_a_few_bytes_larger(delta):
    packer = case(width=144, layers=3, vocab=256).packer()
    coded, _ = packer.quantize(delta)
    assert 0 <= packer.size(packer.draft(coded)) - packer.size(packer.encode(coded)) <= 64


def test_drafts_that_are_wrong_cost_time_and_no_bytes(monkeypatch):
    chosen = case()
    budget = size_at(chosen, 1e-3)
    right = len(chosen.pack(budget).assemble(QUALITY))
    with pytest.raises(BudgetError) as raised:
        chosen.pack(1000)
    least = named_budget(raised.value)
    for error in (-2000, 10**6):
        monkeypatch.setattr(
            "gptpack.codec.range.estimate_bits", lambda *_, error=error, **__: 8 * (budget + error)
        )
        assert budget // 1000 + 64 > budget - len(chosen.pack(budget).assemble(QUALITY)) >= 0
        assert len(chosen.pack(least).assemble(QUALITY)) <= least
    assert budget // 1000 + 64 > budget - right >= 0


def test_the_search_of_a_large_model_begins_where_a_sample_of_its_rows_fits(monkeypatch):
    chosen = case(width=256, layers=2, vocab=512)
    budget = size_at(chosen, 1e-4)
    quantized: list[tuple[int, float]] = []
    quantize = Packer.quantize

    def counted(packer, delta):
        quantized.append((packer.weights, delta))
        return quantize(packer, delta)

    monkeypatch.setattr(Packer, "quantize", counted)
    plain = chosen.pack(budget)
    whole = chosen.packer().weights
    assert {weights for weights, _ in quantized} == {whole}
    quantized.clear()
    monkeypatch.setattr("gptpack.packing.search.LARGE", 1)
    begun = chosen.pack(budget)
    few = [weights for weights, _ in quantized if weights < whole]
    assert len(few) >= 2
    assert all(weights < whole / 7 for weights in few)
    # tables, which do not grow with the rows, take a large share of so small a sample
    assert quantized[len(few)] == (whole, pytest.approx(plain.delta, rel=0.15))
    assert begun.delta == pytest.approx(plain.delta, rel=5e-3)
    assert len(begun.assemble(QUALITY)) <= budget


def test_code_takes_its_bytes_from_the_file():
    budget = size_at(case(), 1e-4)
    alone, with_code = case().pack(budget), case().pack(budget, code_bytes=1500)
    assert len(with_code.assemble()) <= budget - 1500
    assert len(alone.assemble()) > budget - 1500
    assert with_code.predicted_nats > alone.predicted_nats
    assert with_code.record.code_bytes == 1500


def test_code_larger_than_the_budget_is_an_error_that_says_so():
    with pytest.raises(BudgetError, match="and 9,000 bytes of code, over the budget of 8,000"):
        case().pack(8000, code_bytes=9000)


def test_a_budget_beyond_all_use_ends_at_the_finest_step():
    packed = case().pack(10**9)
    assert packed.record.delta == pytest.approx(2e-6)
    assert len(packed.assemble()) < 10**6


def test_a_budget_beyond_what_codes_can_hold_still_packs():
    """At the finest step a weight so large has no 16-bit code; some step is the finest with one."""
    chosen = case()
    large = dataclasses.replace(chosen, model=copy.deepcopy(chosen.model))
    with torch.no_grad():
        large.model.get_parameter("blocks.0.mlp.fc.weight")[0, 0] = 500.0
    with pytest.raises(QuantError, match=r"blocks.0.mlp.fc.weight: .*larger delta"):
        large.pack(delta=2e-6)
    packed = large.pack(10**9)
    finest = packed.record.delta
    with pytest.raises(QuantError, match="larger delta"):
        large.pack(delta=finest / 1.1)
    artifact = decode_artifact(packed.assemble())
    assert all(np.isfinite(dequantize(tensor)).all() for tensor in artifact.tensors)


def test_a_chosen_step_is_used_whatever_it_takes():
    packed = case().pack(delta=1e-4)
    assert packed.record.delta == 1e-4
    with pytest.raises(BudgetError):
        case().pack(2000, delta=1e-4)


@pytest.mark.parametrize("bits", [1.75, 3.0])
def test_bits_are_kept_and_used(bits):
    packed = case().pack(bits=bits)
    found = grid_bits(packed.encoded)
    assert 0.99 * bits < found <= bits
    assert grid_bits(case().pack(config=PackConfig(methods=(("*", "int8"),))).encoded) is None


def test_bits_that_no_step_reaches_are_an_error_that_says_what_is_reached():
    with pytest.raises(BudgetError) as caught:
        case().pack(bits=0.001)
    found = re.search(r"0\.001 bits a weight: the fewest found are ([\d.]+);", str(caught.value))
    assert found
    assert case().pack(bits=float(found[1])).delta > 0.1


def test_the_smallest_file_that_was_seen_is_kept_whatever_its_step():
    sizes = []

    def measure(delta: float) -> int:
        sizes.append(1000 + round(100 * abs(math.log2(delta / 1e-3))))
        return sizes[-1]

    config = types.SimpleNamespace(tolerance=1e-3)
    packer = types.SimpleNamespace(
        quantize=lambda delta: (delta, 0.0), draft=lambda coded: coded, config=config
    )
    looking = Search(packer=packer, goal=Goal(measure, 1), progress=silent)
    assert looking.run(1e-3, 1000.0) is None
    assert looking.smallest.size == min(sizes) < sizes[-1]
    assert looking.smallest.delta == looking.smallest.coded


def test_room_for_measured_figures_is_kept_only_where_they_will_be():
    proved, unproved = (case().packer(proved=proved) for proved in (True, False))
    encoded = proved.encode(proved.quantize(1e-3)[0])
    assert unproved.size(encoded) < proved.size(encoded) - 30
    budget = unproved.size(encoded)
    packed = pack_to_budget(case().packer(budget=budget, proved=False))
    assert budget - 3 * MARGIN_BYTES < len(packed.assemble()) <= budget


def test_delta_factors_make_matrices_finer_and_coarser_than_equal_slope_says():
    fine, coarse = "blocks.0.mlp.fc.weight", "blocks.1.mlp.fc.weight"
    factors = (("blocks.*.fc.weight", 2.0), (fine, 0.5))
    config = dataclasses.replace(SMALL, delta_factors=factors)
    plain, other = case().pack(delta=1e-3), case().pack(config=config, delta=1e-3)
    assert other.record.step_factors == factors
    assert plain.record.step_factors is None
    before, after = (
        {t.name: t.arrays for t in decode_artifact(packed.assemble()).tensors}
        for packed in (plain, other)
    )
    spread = {name: np.abs(after[name]["codes"]).mean() for name in (fine, coarse)}
    assert spread[fine] > 1.8 * np.abs(before[fine]["codes"]).mean()
    assert spread[coarse] < 0.7 * np.abs(before[coarse]["codes"]).mean()
    same = "blocks.0.attn.c_q.weight"
    assert np.array_equal(before[same]["codes"], after[same]["codes"])


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_delta_factors_must_be_positive(factor):
    with pytest.raises(ConfigError, match="must be positive"):
        PackConfig(delta_factors=(("*", factor),))


def test_a_size_has_room_for_whatever_figures_a_header_may_get():
    packer = case().packer()
    encoded = packer.encode(packer.quantize(1e-3)[0])
    generator = np.random.default_rng(0)
    excess = []
    for _ in range(500):
        sha256 = generator.bytes(32).hex()
        packer.record = dataclasses.replace(packer.record, checkpoint_sha256=sha256, step=1234)
        nats, before, after = (float(x) for x in generator.uniform(1e-5, 1e-2, 3))
        delta = float(generator.uniform(1e-5, 1e-2))
        quality = Quality(
            bpb_before=round(100 * before + 1, 6),
            bpb_after=round(100 * after + 1, 6),
            context=int(generator.choice([64, 1024, 2048])),
            tokens=int(generator.integers(10**5, 10**8)),
        )
        packed = packer.seal(encoded, delta=delta, predicted_nats=nats)
        excess.append(len(packed.assemble(quality)) - packer.size(encoded))
    assert -MARGIN_BYTES < max(excess) <= 0


def test_the_file_itself_is_checked_again():
    packed = case().pack(size_at(case(), 1e-4))
    noise = np.random.default_rng(0).integers(33, 127, 500).astype(np.uint8)
    long = dataclasses.replace(packed.record, calibration=noise.tobytes().decode())
    with pytest.raises(BudgetError):
        dataclasses.replace(packed, record=long).assemble(QUALITY)
    check_budget(10, 10, 0)
    with pytest.raises(BudgetError, match="11 bytes are enough"):
        check_budget(10, 10, 1)


# the same bytes


def test_two_packs_give_identical_bytes():
    budget = size_at(case(), 1e-4)
    first, second = (case().pack(budget).assemble(QUALITY) for _ in range(2))
    assert first == second


def test_what_the_file_holds_is_what_was_predicted():
    packed = case().pack(size_at(case(), 1e-4))
    artifact = decode_artifact(packed.assemble(QUALITY), verify_weights=True)
    assert artifact.header.record.quality == QUALITY
    assert artifact.header.model == case().model.config
    assert [tensor.name for tensor in artifact.tensors] == list(weights_of(case()))
    packer = case().packer()
    row_weights = {matrix.name: matrix.row_weight for matrix in packer.matrices}
    loss = 0.0
    for tensor in artifact.tensors:
        if tensor.name not in row_weights:
            continue
        error_RC = dequantize(tensor).astype(np.float64)
        error_RC -= weights_of(case())[tensor.name].numpy()
        hessian = np.asarray(case().sensitivities[tensor.name].hessian, np.float64)
        row_loss_R = np.einsum("rc,cd,rd->r", error_RC, hessian, error_RC)
        loss += row_weights[tensor.name] @ row_loss_R / 2
    assert packed.predicted_nats == pytest.approx(loss, rel=1e-3)


def test_provenance_is_in_the_header():
    packed = case().pack(record=PackRecord(checkpoint_sha256="12" * 32, step=5))
    pack = decode_header(packed.assemble()).pack
    assert pack["checkpoint_sha256"] == "12" * 32
    assert pack["step"] == 5
    assert pack["method"] == "gptq-trellis"


# methods


def methods(*pairs: tuple[str, str]) -> PackConfig:
    return dataclasses.replace(SMALL, methods=(("*", "gptq-trellis"), *pairs))


def test_the_last_pattern_that_matches_counts():
    config = methods(
        ("blocks.*", "gptq-uniform"),
        ("*.mlp.*", "gptq-int6"),
        ("blocks.1.mlp.fc.weight", "float16"),
        ("tok_emb.*", "int8"),
    )
    packed = case(vocab=1200).pack(config=config, delta=1e-4)
    found = {tensor.name: tensor for tensor in packed.encoded.tensors}
    wanted = {
        "tok_emb.weight": "int8",
        "blocks.0.attn.c_q.weight": "uniform",
        "blocks.0.mlp.fc.weight": "int8",
        "blocks.1.mlp.proj.weight": "int8",
        "blocks.1.mlp.fc.weight": "float16",
    }
    assert {name: found[name].method for name in wanted} == wanted
    assert found["blocks.0.mlp.fc.weight"].record["method"] == "gptq-int6"
    assert packed.record.method == config.methods
    assert "fallback" not in {key for tensor in found.values() for key in tensor.record}


def test_int6_codes_stay_within_their_range_and_have_a_record():
    config = PackConfig(methods=(("*", "gptq-int6"),))
    artifact = decode_artifact(case().pack(config=config).assemble())
    coded = [tensor for tensor in artifact.tensors if tensor.record.get("method") == "gptq-int6"]
    assert coded
    for tensor in coded:
        assert tensor.method == "int8"
        assert np.abs(tensor.arrays["codes"]).max() <= 31
        error_RC = dequantize(tensor) - weights_of(case())[tensor.name].numpy()
        hessian = np.asarray(case().sensitivities[tensor.name].hessian)
        rows = case().sensitivities[tensor.name].row_weight
        loss = float(rows @ np.einsum("rc,cd,rd->r", error_RC, hessian, error_RC)) / 2
        assert tensor.record["loss_nats"] == pytest.approx(loss, rel=0.02)
        assert tensor.record["damp"] == pytest.approx(0.03)


def test_methods_that_do_not_depend_on_the_budget_still_keep_it():
    for method in ("int8", "gptq-int4", "float16"):
        config = PackConfig(methods=(("*", method),))
        packed = case().pack(config=config)
        assert packed.record.delta is None
        needed = len(packed.assemble(QUALITY))
        with pytest.raises(BudgetError) as raised:
            case().pack(needed - 100, config)
        assert (
            len(case().pack(named_budget(raised.value), config).assemble(QUALITY)) <= needed + 100
        )


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((("*", "gptq-int9"),), "method 'gptq-int9' for '\\*': there are int8, gptq-int4"),
        ((("blocks.*", "int8"),), "the first method must be for all tensors"),
        ((), "the first method must be for all tensors"),
    ],
)
def test_methods_that_there_are_not_are_refused(pairs, message):
    with pytest.raises(ConfigError, match=message):
        PackConfig(methods=pairs)


def test_only_methods_with_hessians_ask_for_calibration():
    for method in METHODS:
        wanted = method not in ("int8", "float16")
        assert PackConfig(methods=(("*", method),)).calibrated is wanted
    assert PackConfig(methods=(("*", "int8"), ("a", "gptq-int4"))).calibrated


def test_int8_is_the_references_rule_for_every_tensor():
    chosen = case(vocab=1200)  # one table of more than 65,536 numbers
    packed = chosen.pack(config=PackConfig(methods=(("*", "int8"),), codecs=("zlib", "zstd")))
    artifact = decode_artifact(packed.assemble(QUALITY), verify_weights=True)
    kinds = set()
    for tensor in artifact.tensors:
        wanted = quantize_reference(tensor.name, weights_of(chosen)[tensor.name].numpy())
        kinds.add(wanted.method)
        assert tensor.method == wanted.method
        assert tensor.arrays.keys() == wanted.arrays.keys()
        for key, array in wanted.arrays.items():
            assert np.array_equal(tensor.arrays[key], array), (tensor.name, key)
    assert kinds == {"int8", "float16", "float32"}
    assert packed.record.method == "int8"


# fallbacks


def without(name: str) -> dict[str, Sensitivity]:
    return {key: value for key, value in case().sensitivities.items() if key != name}


@pytest.mark.parametrize("what", ["missing", "zero", "nan", "singular shape"])
def test_a_fallback_is_recorded_and_noted_and_everything_else_is_not_touched(what):
    name = "blocks.1.mlp.fc.weight"
    good = case().sensitivities[name]
    sensitivities = without(name)
    if what == "zero":
        sensitivities[name] = dataclasses.replace(good, hessian=np.zeros_like(good.hessian))
    if what == "nan":
        sensitivities[name] = dataclasses.replace(good, row_weight=good.row_weight * np.nan)
    if what == "singular shape":
        sensitivities[name] = dataclasses.replace(good, hessian=np.asarray(good.hessian)[:3, :3])
    packed = case().pack(delta=1e-4, sensitivities=sensitivities)
    fallen = [tensor for tensor in packed.encoded.tensors if "fallback" in tensor.record]
    assert [tensor.name for tensor in fallen] == [name]
    assert fallen[0].record["fallback"] == "gptq-trellis"
    assert fallen[0].method == "int8"
    (note,) = (note for note in packed.notes if "int8" in note)
    assert note.startswith(f"{name}: ")
    assert note.endswith("; packed as int8 rows instead")
    (tensor,) = (t for t in decode_artifact(packed.assemble()).tensors if t.name == name)
    wanted = quantize_int8_rows(name, weights_of(case())[name].numpy())
    assert np.array_equal(tensor.arrays["codes"], wanted.arrays["codes"])
    # strict does not fall back
    with pytest.raises(QuantError, match=name):
        case().packer(dataclasses.replace(SMALL, strict=True), sensitivities=sensitivities)


def test_without_fallbacks_there_are_no_notes_and_every_record_says_its_damping():
    packed = case().pack(delta=1e-4, config=dataclasses.replace(SMALL, strict=True))
    assert packed.notes == ()
    for tensor in packed.encoded.tensors:
        if tensor.method == "trellis":
            assert tensor.record.keys() == {"damp", "coded_bytes"}
            assert tensor.record["damp"] == 0.03


def test_raised_damping_is_in_record_and_notes():
    name = "blocks.1.mlp.fc.weight"
    good = case().sensitivities[name]
    # of rank 1, with a negative eigenvalue that a little damping does not hide
    bad = np.ones_like(good.hessian) - 0.2 * np.eye(64, dtype=np.float32)
    sensitivities = without(name) | {name: dataclasses.replace(good, hessian=bad)}
    packed = case().pack(delta=1e-4, sensitivities=sensitivities)
    (tensor,) = (t for t in packed.encoded.tensors if t.name == name)
    assert tensor.method == "trellis"
    assert tensor.record["damp"] > 0.2
    assert any(note.startswith(name) and "damp raised" in note for note in packed.notes)


# what a checkpoint may hold


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["int8", "float16", "gptq-trellis"])
def test_weights_that_are_not_finite_are_named(value, method):
    name = "blocks.0.attn.c_q.weight"
    model = copy.deepcopy(case().model)
    with torch.no_grad():
        model.get_parameter(name)[3, 4] = value
    config = PackConfig(methods=(("*", method),))
    with pytest.raises(CheckpointError, match=f"not finite: {name}"):
        case().packer(config, model=model)


def test_the_checkpoint_is_not_modified():
    before = {name: value.clone() for name, value in weights_of(case()).items()}
    case().pack(20_000)
    assert all(torch.equal(before[n], value) for n, value in weights_of(case()).items())


# what stays in floats


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0.0, 1.0, -2.5, 2.0**127], "bfloat16"),  # eight bits of significand do
        ([1.0, 1.001], "float16"),
        ([65_503.3], "float16"),
        ([65_504.1], "float32"),
        ([1.001, 7e4], "float32"),
        ([1.1e-9, -3.3e-9, 0.0], "float32"),
        ([1.1e-9, 1e-5], "float16"),  # what is nothing beside the others may become 0
        ([], "bfloat16"),
    ],
)
def test_floats_take_the_smallest_type_that_holds_them(values, dtype):
    array = np.array(values, np.float32)
    kept = keep_smallest_float("a", array)
    assert kept.method == dtype
    found = dequantize(kept)
    assert np.isfinite(found).all()
    if dtype != "float16":
        assert np.array_equal(found, array)
    else:
        assert found == pytest.approx(array, rel=2**-11, abs=2**-25)


def test_small_matrices_and_vectors_stay_in_floats():
    for tensor in case().packer().fixed.values():
        assert tensor.method in ("bfloat16", "float16")
        assert len(tensor.shape) != 2 or tensor.numel < LEAST_CODED or "weight" not in tensor.name
    assert {m.weight.ndim for m in case().packer().matrices} == {2}
    assert keep_float("a", np.float32([1.5]), "bfloat16").arrays["values"].dtype == np.uint16


def test_the_file_says_what_each_tensor_takes_of_it(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(case().pack(30_000).assemble())
    told, found = inspect(path), inspect(path, decode=True)
    assert told.exact
    assert [t.stored_bytes for t in told.tensors] == [t.stored_bytes for t in found.tensors]


def test_a_draft_has_about_the_size_of_the_file():
    packer = case().packer()
    for delta in (1e-3, 1e-2, 0.1):
        coded, _ = packer.quantize(delta)
        draft, whole = packer.size(packer.draft(coded)), packer.size(packer.encode(coded))
        assert abs(draft - whole) < 100
