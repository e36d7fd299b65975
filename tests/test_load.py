"""A model that comes back from a file is the one that went in, or there is none."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hugging import make_folder
from strategies import write_artifact

from gptpack.artifact.weights import flushes_subnormals, weights_sha256
from gptpack.errors import ArtifactError, ConfigError, GptpackError, MissingDependencyError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.jobs.load import load
from gptpack.quant.int8 import keep_float, quantize_reference
from gptpack.quant.types import PackedTensor, dequantize
from gptpack.ranks import pick_device, ranks
from gptpack.values import TokenizerIdentity

CONFIG = ModelConfig(
    vocab=64,
    layers=2,
    width=32,
    heads=2,
    kv_heads=1,
    mlp_hidden=48,
    context=16,
    smear_gate=True,
    bigram_rows=20,
    bigram_width=4,
    value_embedding_layers=(1,),
    value_embedding_width=8,
)


def weights(config: ModelConfig = CONFIG) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(0, 0.2, tuple(tensor.shape)).astype(np.float32)
        for name, tensor in GPT(config).state_dict().items()
    }


def write(path: Path, tensors: list[PackedTensor], config: ModelConfig = CONFIG) -> Path:
    identity = TokenizerIdentity(sha256="0" * 64, vocab=64, bos=1)
    write_artifact(path, model=config, tokenizer=identity, tensors=tensors, pack={}, codecs="zlib")
    return path


def float32(values: dict[str, np.ndarray]) -> list[PackedTensor]:
    return [keep_float(name, value, "float32") for name, value in values.items()]


def test_float32_weights_come_back_bit_for_bit_and_give_the_same_losses(tmp_path: Path) -> None:
    values = weights()
    loaded = load(write(tmp_path / "m.gptpack", float32(values)))
    state = loaded.model.state_dict()
    assert state.keys() == values.keys()
    assert all(np.array_equal(state[name].numpy(), value) for name, value in values.items())

    original = GPT(CONFIG)
    original.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()})
    tokens = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = original.token_losses(tokens[:, :-1], tokens[:, 1:])
        assert torch.equal(loaded.model.token_losses(tokens[:, :-1], tokens[:, 1:]), expected)


def test_the_model_holds_what_the_packed_tensors_stand_for(tmp_path: Path) -> None:
    packed = [quantize_reference(name, value) for name, value in weights().items()]
    loaded = load(write(tmp_path / "m.gptpack", packed))
    state = loaded.model.state_dict()
    for tensor in packed:
        assert np.array_equal(state[tensor.name].numpy(), dequantize(tensor))
    assert not loaded.model.training
    assert loaded.model.config == CONFIG
    assert set(loaded.seconds) == {"decode", "build"}


def test_values_are_made_once_and_no_weights_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = float32(weights())
    path = write(tmp_path / "m.gptpack", packed)
    made = []

    def counted(tensor: PackedTensor) -> np.ndarray:
        made.append(tensor.name)
        return dequantize(tensor)

    monkeypatch.setattr("gptpack.artifact.weights.dequantize", counted)
    monkeypatch.setattr(GPT, "reset", lambda self, seed: pytest.fail("weights were drawn"))
    load(path)
    assert sorted(made) == sorted(tensor.name for tensor in packed)


def test_the_loaded_model_can_be_trained_further(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.gptpack", float32(weights()))).model
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = [t for t in float32(weights()) if t.name != "blocks.1.mlp.fc.weight"]
    with pytest.raises(ArtifactError, match=r"missing blocks\.1\.mlp\.fc\.weight"):
        load(write(tmp_path / "m.gptpack", tensors))


def test_an_extra_tensor_is_named(tmp_path: Path) -> None:
    extra = keep_float("blocks.2.attn_scale", np.ones(32, np.float32), "float32")
    with pytest.raises(ArtifactError, match=r"unexpected blocks\.2\.attn_scale"):
        load(write(tmp_path / "m.gptpack", [*float32(weights()), extra]))


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    values = weights()
    values["blocks.0.attn.c_k.weight"] = np.zeros((32, 16), np.float32)
    with pytest.raises(ArtifactError, match=re.escape("(32, 16), needed (16, 32)")):
        load(write(tmp_path / "m.gptpack", float32(values)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 4000}, "4,000 layers cannot be made"),
        ({"width": 2**40}, "but the file holds"),
        ({"mlp_hidden": 10**15}, "but the file holds"),
        ({"bigram_rows": 10**15}, "but the file holds"),
        ({"bigram_width": 10**15}, "but the file holds"),
        ({"value_embedding_width": 10**15}, "but the file holds"),
        ({"vocab": 65536}, "but the file holds"),
        ({"bigram_rows": 10**18, "bigram_width": 10**18}, "but the file holds"),
        ({"loop_layers": 1, "loops": 4000}, "but the file holds"),
        ({"loop_layers": 2, "loops": 2000, "skip_gates": True}, "but the file holds"),
        ({"layers": 1, "value_embedding_layers": (0,)}, r"unexpected blocks\.1"),
        ({"xsa_layers": 0, "smear_gate": False}, r"unexpected smear\.gate"),
    ],
)
def test_a_shape_that_the_tensors_do_not_justify_is_refused_before_memory_is_taken(
    changes: dict[str, int], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.gptpack", float32(weights()), replace(CONFIG, **changes))
    with pytest.raises(ArtifactError, match=message):
        load(path)


def test_a_flipped_bit_anywhere_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gptpack", float32(weights()))
    good = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(good), 25):
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bad)
        with pytest.raises(ArtifactError):
            load(path)


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(GptpackError, match="nosuch"):
        load(tmp_path / "nosuch")


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        ModelConfig(vocab=50, layers=3, width=16, heads=4, kv_heads=4, mlp_hidden=8, context=8),
        replace(CONFIG, tied_embedding=False, smear_gate=False, bigram_rows=0, bigram_width=0),
    ],
)
def test_models_of_other_shapes_come_back(config: ModelConfig, tmp_path: Path) -> None:
    values = weights(config)
    state = load(write(tmp_path / "m.gptpack", float32(values), config)).model.state_dict()
    assert all(np.array_equal(state[name].numpy(), value) for name, value in values.items())


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, "float32"])
def test_weights_are_converted_once_all_of_them_are_verified(dtype, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gptpack", float32(weights()))
    plain, found = load(path), load(path, dtype=dtype)
    kind = getattr(torch, str(dtype).removeprefix("torch."))
    assert found.weights_sha256 == plain.weights_sha256 is not None
    state = found.state_dict()
    for name, value in plain.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(state[name], value.to(kind))
        assert state[name].dtype == kind
    tokens = torch.arange(14)[None]
    with torch.inference_mode():
        assert found.model.hidden(tokens).dtype == kind
        read = found.model.reader()
        given = [read(part) for part in tokens.split([9, 1, 4], 1)]
        difference = given[-1] - plain.model.next_logits(tokens)
    assert given[-1].dtype == torch.float32
    # less than the type's rounding, of some fifty roundings in a row
    assert difference.abs().max() <= 50 * torch.finfo(kind).eps


def test_a_type_or_a_device_that_there_is_not_is_refused_before_the_file_is_read() -> None:
    with pytest.raises(ConfigError, match="dtype='int8': choose float32, bfloat16, float16"):
        load("absent", dtype="int8")
    with pytest.raises(ConfigError, match="device 'tpu': choose auto, cpu, cuda, mps"):
        load("absent", device="tpu")
    with pytest.raises(ConfigError, match="device 'cuda:x': choose"):
        load("absent", device="cuda:x")


def test_devices_are_those_that_torch_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, said in (("mps", "no GPU of Apple's"), ("cuda:1", "no CUDA device")):
        part = torch.backends.mps if name == "mps" else torch.cuda
        monkeypatch.setattr(part, "is_available", lambda: False)
        with pytest.raises(MissingDependencyError, match=said):
            pick_device(name)
        assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
        monkeypatch.setattr(part, "is_available", lambda: True)
        assert pick_device(name) == torch.device(name)
    assert pick_device("auto", local_rank=3) == torch.device("cuda", 3)
    with pytest.raises(ConfigError, match="only loaded and sampled"), ranks("mps"):
        pass


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_model_of_transformers_is_converted_but_for_its_angles(family, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / family, family)
    plain, found = load(folder), load(folder, dtype=torch.bfloat16)
    state, wanted = found.state_dict(), plain.state_dict()
    assert all(torch.equal(state[name], value.bfloat16()) for name, value in wanted.items())
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    # what is tied stays tied
    assert found.runnable().weights().keys() == plain.runnable().weights().keys()
    for name, buffer in found.model.named_buffers():
        if name not in state:
            assert torch.equal(buffer, dict(plain.model.named_buffers())[name])
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        logits = [loaded.model(tokens).logits.float() for loaded in (plain, found)]
        read = found.runnable().reader()
        torch.testing.assert_close(read(tokens)[0], logits[1][0, -1], rtol=0.05, atol=0.5)
    assert (logits[0] - logits[1]).norm() < 0.05 * logits[0].norm()
    assert "".join(found.generate("The mill", max_tokens=5, temperature=0))


def test_a_file_is_whole_where_subnormal_numbers_are_flushed_to_zero() -> None:
    # 3 times a scale that is no normal number
    codes = PackedTensor(
        name="a",
        shape=(1, 4),
        method="int8-tensor",
        arrays={"codes": np.full((1, 4), 3, np.int8), "scales": np.array(2.0**-127, np.float32)},
    )
    zero = replace(codes, arrays={**codes.arrays, "scales": np.array(0, np.float32)})
    expected = weights_sha256([codes])
    assert expected != weights_sha256([zero])
    if not torch.set_flush_denormal(True):
        pytest.skip("no such mode on this processor")
    try:
        assert flushes_subnormals()
        assert weights_sha256([codes]) == expected
        assert flushes_subnormals()  # the mode stays as its owner set it
    finally:
        torch.set_flush_denormal(False)
