"""State dicts as people have them: what each spelling means, what is refused, what is assumed."""

import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from worlds import corpus, invoke

from gptpack.artifact.front import read_header
from gptpack.errors import CheckpointError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.inspection.inspect import inspect
from gptpack.jobs.load import load
from gptpack.training.checkpoint import load_checkpoint

CONFIG = ModelConfig(vocab=280, layers=2, width=24, heads=4, kv_heads=2, mlp_hidden=20)
ASSUMED = (
    "context=1024",
    "rope_base=10000",
    "rope_dims=6",
    "activation=relu2",
    "logit_softcap=30",
    "bos=1",
)

State = dict[str, torch.Tensor]


def state(config: ModelConfig = CONFIG) -> State:
    """Random weights, none of them zero."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in GPT(config, seed=1).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def loaded(path: Path, content: Any, config: ModelConfig | None = None) -> State:
    torch.save(content, path / "x.pt")
    return dict(load_checkpoint(path / "x.pt", config).weights)


def same(found: State, wanted: State) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], value) for name, value in wanted.items()
    )


# where the state dict is


@pytest.mark.parametrize(
    "keys", [("model",), ("state_dict",), ("model_state_dict",), ("model",) * 2]
)
def test_a_state_dict_beside_an_optimizers_is_found(tmp_path, keys):
    content: Any = state()
    for key in keys:
        content = {key: content, "optimizer": {"state": {0: torch.ones(3)}}, "step": 3}
    assert same(loaded(tmp_path, content), state())


def test_a_configuration_under_model_is_no_state_dict(tmp_path):
    assert same(loaded(tmp_path, {"model": {"width": 24}, "state_dict": state()}), state())


def test_two_state_dicts_in_a_file_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="under 'model' and under 'state_dict'; save the one"):
        loaded(tmp_path, {"model": state(), "state_dict": state()})


def test_a_dictionary_that_holds_itself_is_one_line(tmp_path):
    content: dict[str, Any] = {"model_args": 1}
    content["model"] = content
    with pytest.raises(CheckpointError, match="'model_args' is a int"):
        loaded(tmp_path, content)


# what its names mean


@pytest.mark.parametrize(
    "prefix", ["module._orig_mod.", "_orig_mod.module.", "module.module.", "_orig_mod." * 3]
)
def test_prefixes_go_in_any_order_and_as_often_as_they_come(tmp_path, prefix):
    assert same(loaded(tmp_path, {prefix + name: v for name, v in state().items()}), state())


def test_blocks_that_were_compiled_one_by_one_have_the_same_names(tmp_path):
    spelled = {name.replace(".attn.", "._orig_mod.attn."): v for name, v in state().items()}
    assert spelled.keys() != state().keys()
    assert same(loaded(tmp_path, spelled), state())


def test_two_names_of_one_tensor_are_accepted_where_they_agree_and_refused_where_not(tmp_path):
    twice = {**state(), **{f"module.{name}": value for name, value in state().items()}}
    assert same(loaded(tmp_path, twice), state())
    twice["module.blocks.1.mlp.fc.weight"] = state()["blocks.1.mlp.fc.weight"] + 1
    with pytest.raises(CheckpointError, match=r"two different tensors for blocks\.1\.mlp\.fc"):
        loaded(tmp_path, twice)


def test_a_matrix_that_is_in_a_bank_and_beside_it_must_be_the_same(tmp_path):
    bank = {"mlp_up_bank": torch.stack([state()[f"blocks.{i}.mlp.fc.weight"] for i in (0, 1)])}
    assert same(loaded(tmp_path, {**state(), **bank}), state())
    with pytest.raises(CheckpointError, match=r"two different tensors for blocks\.0\.mlp\.fc"):
        loaded(tmp_path, {**state(), "mlp_up_bank": bank["mlp_up_bank"] + 1})


def test_masks_are_left_out(tmp_path):
    masks = {
        "blocks.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "blocks.0.attn.mask": torch.ones(8, 8, dtype=torch.int32),
        "module.position_ids": torch.arange(8),
    }
    assert same(loaded(tmp_path, {**state(), **masks}), state())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.int8])
def test_integers_among_the_weights_are_refused(tmp_path, dtype):
    bad = {**state(), "blocks.0.attn.c_q.weight": torch.ones(24, 24, dtype=dtype)}
    with pytest.raises(
        CheckpointError, match=r"c_q\.weight is a tensor of torch.*, which no weight"
    ):
        loaded(tmp_path, bad)


def test_a_tensor_that_repeats_one_number_is_refused_before_it_takes_memory(tmp_path):
    bad = {**state(), "blocks.0.attn.c_q.weight": torch.ones(1, 1).half().expand(1 << 30, 1 << 30)}
    with pytest.raises(CheckpointError, match=r"c_q\.weight .* all of them in the file"):
        loaded(tmp_path, bad)


def test_a_layer_number_makes_no_layers_that_are_not_there(tmp_path):
    bad = {**state(), "blocks.999999999.attn_scale": torch.ones(24)}
    torch.save(bad, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"missing blocks\.2\..*unexpected blocks\.999999999"):
        load(tmp_path / "x.pt")


# the head


@pytest.mark.parametrize("copied", [False, True])
def test_a_head_that_is_the_embedding_again_is_tied_and_that_is_said(tmp_path, copied):
    table = state()["tok_emb.weight"]
    torch.save({**state(), "lm_head.weight": table.clone() if copied else table}, tmp_path / "x.pt")
    found = load_checkpoint(tmp_path / "x.pt")
    assert same(dict(found.weights), state())
    assert found.model.tied_embedding
    assert found.assumed == (*ASSUMED, "tied_embedding=true")


def test_another_head_is_not_tied(tmp_path):
    untied = state(replace(CONFIG, tied_embedding=False))
    torch.save(untied, tmp_path / "x.pt")
    found = load_checkpoint(tmp_path / "x.pt")
    assert same(dict(found.weights), untied)
    assert not found.model.tied_embedding
    assert found.assumed == ASSUMED


def test_who_says_that_the_head_is_not_tied_has_it(tmp_path):
    table = state()["tok_emb.weight"]
    content = {**state(), "lm_head.weight": table}
    told = replace(CONFIG, tied_embedding=False)
    assert same(loaded(tmp_path, content, told), content)
    assert same(loaded(tmp_path, content, CONFIG), state())


# other people's layouts


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("part", "rows", "said"),
    [
        ("attn.c_attn", 192, "wpe.weight"),
        ("attn.c_q", 64, "nanochat's layout (transformer.h.*.attn.c_q)"),
    ],
)
def test_layouts_of_other_scripts_are_named(tmp_path, nested, part, rows, said):
    theirs = {f"_orig_mod.transformer.h.0.{part}.weight": torch.zeros(rows, 64)}
    theirs["_orig_mod.transformer.wte.weight"] = torch.zeros(400, 64)
    content = {"model": theirs, "model_args": {"n_layer": 1}, "iter_num": 3} if nested else theirs
    with pytest.raises(CheckpointError) as caught:
        loaded(tmp_path, content)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_other_architecture_is_one_line_that_says_what_is_read(tmp_path):
    with pytest.raises(CheckpointError, match=r"no tensor 'tok_emb\.weight'.*needed what gptpack"):
        loaded(tmp_path, {"model": {"embed.weight": torch.ones(3, 3)}, "step": 1})


# quantized dictionaries


def codes_of(weight: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes and fp16 scales, one a row of a matrix and one for anything else."""
    rows = weight.abs().amax(1) if weight.ndim == 2 else weight.abs().max()
    scale = (rows / most).half()
    wide = scale.float()[:, None] if weight.ndim == 2 else scale.float()
    return torch.round(weight / wide).clamp(-most, most).to(torch.int8), scale


def times(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Codes times scales, number by number."""
    made = codes.numpy().astype(np.float32)
    for index in np.ndindex(made.shape):
        made[index] *= np.float32(scale[index[0]] if scale.ndim else scale)
    return torch.from_numpy(made)


def of_the_baseline(weights: State) -> tuple[dict[str, Any], State]:
    """The baseline's dictionary, with one tensor in bfloat16, and what it stands for."""
    tables: dict[str, Any] = {"__quant_format__": "int8_clean_per_row_v1"}
    names = ("quantized", "scales", "dtypes", "passthrough", "qmeta", "passthrough_orig_dtypes")
    tables |= {name: {} for name in names}
    stands_for = {}
    for name, weight in weights.items():
        if name.endswith("q_gain"):
            tables["passthrough"][name] = weight.half()
            tables["passthrough_orig_dtypes"][name] = "bfloat16"
            stands_for[name] = weight.half().bfloat16().float()
            continue
        codes, scale = tables["quantized"][name], tables["scales"][name] = codes_of(weight, 127)
        if scale.ndim:
            tables["qmeta"][name] = {"scheme": "per_row", "axis": 0}
        stands_for[name] = times(codes, scale)
        tables["dtypes"][name] = "float32"
        if name == "tok_emb.weight":
            tables["dtypes"][name] = "bfloat16"
            stands_for[name] = stands_for[name].bfloat16().float()
    return tables, stands_for


def of_a_record(weights: State, word: Callable[[str], Any]) -> tuple[dict[str, Any], State]:
    """A later record's dictionary, whose `word` says how a tensor is kept."""
    tensors: State = {}
    said, stands_for = {}, {}
    for name, weight in weights.items():
        if name.endswith("q_gain"):
            tensors[name], said[name] = weight.half(), "passthrough (float16)"
            stands_for[name] = weight.half().float()
        else:
            tensors[f"{name}.q"], tensors[f"{name}.scale"] = codes_of(weight, 31)
            stands_for[name] = times(tensors[f"{name}.q"], tensors[f"{name}.scale"])
            said[name] = word(name)
    return {"w": tensors, "m": said}, stands_for


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "zlib": lambda raw: zlib.compress(raw, 9),
    "gzip": lambda raw: gzip.compress(raw, 9),
    "xz": lambda raw: lzma.compress(raw, preset=9),
    "zstd": lambda raw: zstandard.ZstdCompressor(level=22).compress(raw),
}


@pytest.mark.parametrize("name", ["final_model.int8.ptz", "model.pt"])
@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_the_baselines_quantized_file_is_its_codes_times_their_scales(tmp_path, compress, name):
    tables, stands_for = of_the_baseline(state())
    (tmp_path / name).write_bytes(compress(saved(tables)))
    found = load_checkpoint(tmp_path / name)
    assert found.model == CONFIG
    assert found.assumed == ASSUMED
    assert same(dict(found.weights), stands_for)


@pytest.mark.parametrize(
    "word",
    [
        lambda name: {"type": "int8" if "tok_emb" in name else "int6"},
        lambda name: {"type": "int6", "clip_range": 31, "method": "gptq"},
        lambda name: "gptq (int8)" if "tok_emb" in name else "gptq (int6)",
    ],
)
@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_a_records_quantized_file_is_its_codes_times_their_scales(tmp_path, compress, word):
    tables, stands_for = of_a_record(state(), word)
    (tmp_path / "final_model.int6.ptz").write_bytes(compress(saved(tables)))
    found = load_checkpoint(tmp_path / "final_model.int6.ptz")
    assert found.model == CONFIG
    assert same(dict(found.weights), stands_for)


def test_a_plain_state_dict_may_be_compressed_too(tmp_path):
    (tmp_path / "x.pt").write_bytes(zlib.compress(saved({"model": state()})))
    assert same(dict(load_checkpoint(tmp_path / "x.pt").weights), state())


Q = "blocks.0.attn.c_q.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"__quant_format__": "int6_packed_per_row_v1"}, "quantized as 'int6_packed_per_row_v1'"),
        ({"qmeta": {Q: {"scheme": "per_column"}}}, f"{Q} quantized by .*per_column"),
        ({"qmeta": {Q: {"scheme": "per_row", "axis": 1}}}, f"{Q} quantized by .*'axis': 1"),
        ({"qmeta": {Q: {"scheme": "per_row", "rotated": True}}}, f"{Q} quantized by .*rotated"),
        ({"dtypes": {Q: "int7"}}, f"{Q} of type 'int7'"),
        ({"scales": []}, "'scales' of its quantized weights is a list"),
        ({"scales": dict.fromkeys(state(), torch.ones(3))}, "codes of .*scales of .*needed int8"),
        ({"scales": {}}, "its quantized weights lack skip_weights"),
        ({"quantized": {Q: torch.ones(24, 12, dtype=torch.uint8)}}, "codes of torch.uint8"),
        ({"passthrough": {Q: torch.ones(24, 24)}}, f"{Q} is quantized and kept"),
        ({"rotations": {}}, "'rotations' beside its quantized weights"),
        (
            {"passthrough": {"a.b": torch.ones(2, dtype=torch.int64)}},
            "a.b is a tensor of torch.int",
        ),
    ],
)
def test_a_baselines_file_that_means_anything_else_is_refused(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        loaded(tmp_path, {**of_the_baseline(state())[0], **change})


@pytest.mark.parametrize(
    ("said", "tensors", "message"),
    [
        ({Q: {"type": "int6", "rotated": True}}, {}, f"{Q} quantized as .*rotated"),
        ({Q: "gptq (int6)+lqer_asym"}, {}, f"{Q} quantized as 'gptq .*lqer_asym'"),
        ({Q: "shared_with:tok_emb.weight"}, {}, f"{Q} quantized as 'shared_with"),
        ({Q: 6}, {}, f"{Q} quantized as 6"),
        ({}, {f"{Q}.lqA_a": torch.ones(3)}, r"c_q\.weight\.lqA_a beside its quantized weights"),
        ({"extra": "passthrough"}, {}, "lack extra"),
        ({"extra": {"type": "int6"}}, {}, "its quantized weights lack extra.q"),
    ],
)
def test_a_records_file_that_means_anything_else_is_refused(tmp_path, said, tensors, message):
    tables, _ = of_a_record(state(), lambda _: {"type": "int6"})
    tables["m"].update(said)
    tables["w"].update(tensors)
    with pytest.raises(CheckpointError, match=message):
        loaded(tmp_path, tables)


@pytest.mark.parametrize("name", ["zlib", "xz", "zstd"])
def test_a_stream_that_expands_beyond_what_weights_can_is_refused(tmp_path, name):
    (tmp_path / "x.ptz").write_bytes(COMPRESSORS[name](bytes(1 << 24)))
    with pytest.raises(CheckpointError, match=r"expand to more than \d"):
        load_checkpoint(tmp_path / "x.ptz")


def test_a_stream_that_looks_back_further_than_any_level_does_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}]
    far = zstandard.ZstdCompressionParameters(window_log=28)
    frame = zstandard.ZstdCompressor(compression_params=far).compressobj()
    for wide in (
        lzma.compress(saved(state()), filters=filters),
        frame.compress(saved(state())) + frame.flush(),
    ):
        (tmp_path / "x.ptz").write_bytes(wide)
        with pytest.raises(CheckpointError, match="with a window of more than 128 MiB"):
            load_checkpoint(tmp_path / "x.ptz")


@pytest.mark.parametrize("name", COMPRESSORS)
def test_what_lies_behind_a_stream_is_not_read(tmp_path, name):
    path = tmp_path / "x.ptz"
    path.write_bytes(COMPRESSORS[name](saved(state())))
    os.truncate(path, 40_000_000_000)  # none of it is on the disk
    if name in ("none", "zstd"):  # the file ends with an index, or may have another frame
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    else:
        assert load_checkpoint(path).weights.keys() == state().keys()


@pytest.mark.parametrize("name", ["zlib", "xz", "zstd"])
def test_a_compressed_file_that_is_cut_or_flipped_is_one_line(tmp_path, name):
    good = COMPRESSORS[name](saved(of_the_baseline(state())[0]))
    draw = np.random.default_rng(0)
    cut = [good[:size] for size in draw.integers(6, len(good), 20)]
    flipped = []
    if name != "zstd":  # whose frames need not have a checksum
        for position in draw.integers(0, len(good), 40):
            bad = bytearray(good)
            bad[position] ^= 1 << int(draw.integers(8))
            flipped.append(bytes(bad))
    for bad in (*cut, *flipped):
        (tmp_path / "x.ptz").write_bytes(bad)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(tmp_path / "x.ptz")
        assert "\n" not in str(caught.value)


def test_flipped_bytes_of_a_quantized_dictionary_are_other_weights_or_one_line(tmp_path):
    tables = [of_the_baseline(state())[0], of_a_record(state(), lambda _: {"type": "int6"})[0]]
    draw = np.random.default_rng(0)
    refused = []
    for content in tables:
        torch.save(content, tmp_path / "x.ptz", _use_new_zipfile_serialization=False)
        good = (tmp_path / "x.ptz").read_bytes()
        for position in draw.integers(0, 5000, 200):  # where the pickle is, before the numbers
            bad = bytearray(good)
            bad[position] = draw.integers(256)
            (tmp_path / "x.ptz").write_bytes(bad)
            try:
                load_checkpoint(tmp_path / "x.ptz")
            except CheckpointError as error:
                refused.append(str(error))
    assert len(refused) > 100
    assert not any("\n" in line for line in refused)


def test_a_compressed_pickle_is_never_run(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    (tmp_path / "x.ptz").write_bytes(zlib.compress(saved({"quantized": Evil()})))
    with pytest.raises(CheckpointError, match="weights-only loader"):
        load_checkpoint(tmp_path / "x.ptz")
    assert "ran" not in capsys.readouterr().out


# what is taken for granted


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    torch.save(state(), tmp_path / "bare.pt")
    return tmp_path / "bare.pt"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    shape = ("vocab", "layers", "width", "heads", "kv_heads", "mlp_hidden")
    lines = ["[model]", "context = 64", *(f"{key} = {getattr(CONFIG, key)}" for key in shape)]
    (tmp_path / "recipe.toml").write_text("\n".join(lines))
    return tmp_path / "recipe.toml"


LINE = f"the checkpoint does not say {', '.join(ASSUMED)}: taken for granted; --model names others"


def test_eval_says_what_a_bare_state_dict_does_not(bare, recipe, capfd):
    words = ["eval", str(bare), "--data", str(corpus().data), "--device", "cpu", "--context", "64"]
    assert invoke(*words) == 0
    assert capfd.readouterr().err.count(LINE) == 1
    assert invoke(*words, "--json") == 0
    said = capfd.readouterr()
    assert said.err.count(LINE) == 1
    assert tuple(json.loads(said.out)["assumed"]) == ASSUMED
    assert invoke(*words, "--json", "--model", str(recipe)) == 0
    said = capfd.readouterr()
    assert "taken for granted" not in said.err
    assert json.loads(said.out)["assumed"] == []


def test_pack_says_and_records_what_a_bare_state_dict_does_not(bare, recipe, tmp_path, capfd):
    words = ["pack", str(bare), "--method", "int8", "--budget", "1MB", "--device", "cpu", "--json"]
    words += ["--tokenizer", str(corpus().data / "tokenizer.model"), "-o", str(tmp_path / "m")]
    assert invoke(*words) == 0
    said = capfd.readouterr()
    assert said.err.count(LINE) == 1
    assert tuple(json.loads(said.out)["assumed"]) == ASSUMED
    assert read_header(tmp_path / "m").record.assumed == ASSUMED
    assert load(tmp_path / "m").record.assumed == ASSUMED
    assert invoke("inspect", str(tmp_path / "m")) == 0
    assert "context=1024" in capfd.readouterr().out
    assert invoke(*words, "--model", str(recipe), "--force") == 0
    said = capfd.readouterr()
    assert "taken for granted" not in said.err
    assert json.loads(said.out)["assumed"] == []
    assert "assumed" not in inspect(tmp_path / "m").pack


def test_the_curve_says_what_a_bare_state_dict_does_not(bare, tmp_path, capfd):
    words = ["pack", str(bare), "--curve", str(tmp_path / "c.csv"), "--curve-bits", "4"]
    words += ["--states", "4", "--calibration", "random", "--calibration-tokens", "1024"]
    words += ["--tokenizer", str(corpus().data / "tokenizer.model"), "--device", "cpu", "--json"]
    assert invoke(*words) == 0
    said = capfd.readouterr()
    assert said.err.count(LINE) == 1
    assert tuple(json.loads(said.out)["assumed"]) == ASSUMED
