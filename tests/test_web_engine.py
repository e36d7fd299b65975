"""The browser's engine takes the tokens that the library takes, and computes nearly its logits."""

import json

import numpy as np
import pytest
import torch
from node import ask, needs_node
from strategies import TOKENIZER, write_artifact

from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.quant.types import PackedTensor

pytestmark = needs_node

COUNT = 24
SMALL = {"vocab": 97, "layers": 4, "width": 48, "heads": 4, "kv_heads": 2, "mlp_hidden": 80}
RECIPE = {
    "activation": "leaky_relu2",
    "rope_dims": 4,
    "xsa_layers": 3,
    "bigram_rows": 41,
    "bigram_width": 20,
    "smear_gate": True,
    "value_embedding_layers": (1, 3),
    "value_embedding_width": 12,
    "ln_scale": True,
}
"""Parts of the golf recipes."""
CONFIGS = {
    "baseline": {},
    "recipe": RECIPE,
    "untied": {"tied_embedding": False, "logit_softcap": 8.0},
    "across documents": {**RECIPE, "smear_across_documents": True},
    "looped": {"loop_start": 1, "loop_layers": 2, "loops": 2, "skip_gates": True},
    "one layer": {"layers": 1},
    "gates in parallel": {"attention_gate_inputs": 7, "parallel_layers": 2, "heads": 2},
    "documents apart": {**RECIPE, "document_mask": True},
    "stretched": {"rope_ntk_context": 16, "context": 64},
}
PROMPT = [1, 5, 9, 13, 60, 61, 62, 5, 9, 2, 3]


def packed(weights: dict[str, torch.Tensor]) -> list[PackedTensor]:
    return [
        PackedTensor(
            name=name,
            shape=tuple(value.shape),
            method="float32",
            arrays={"values": value.detach().float().numpy()},
        )
        for name, value in weights.items()
    ]


def willed(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model with weights of which each matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.25 if parameter.ndim > 1 else 0.1))
    return model.eval()


@torch.inference_mode()
def expected(logits, tokens: list[int], count: int = COUNT) -> tuple[list[int], np.ndarray]:
    """The likeliest tokens that follow, by whole passes, and the logits of the first."""
    first, tokens, start = None, list(tokens), len(tokens)
    for _ in range(count):
        found = logits(torch.tensor([tokens]))
        first = found.numpy() if first is None else first
        tokens.append(int(found.argmax()))
    return tokens[start:], first


def agree(path, logits, tokens=PROMPT, count=COUNT) -> None:
    wanted, first = expected(logits, tokens, count)
    whole = {"task": "generate", "path": path, "tokens": tokens, "count": count}
    for answer in ask([whole, {**whole, "split": 1}]):
        assert "tokens" in answer, answer
        np.testing.assert_allclose(answer["logits"], first, rtol=1e-4, atol=1e-4)
        assert answer["tokens"] == wanted


def write_golf(path, **settings) -> GPT:
    config = ModelConfig(**{**SMALL, "context": 128, **settings})
    model = willed(GPT(config))
    write_artifact(path, tensors=packed(model.state_dict()), model=config, pack={})
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_each_part_of_golf(name, tmp_path):
    path = tmp_path / "m.gptpack"
    model = write_golf(path, **CONFIGS[name])
    prompt = [*PROMPT, 1, 7, 9] if name in ("documents apart", "across documents") else PROMPT
    if name == "stretched":
        # beyond the stretch the page takes the angles of the whole window
        model.use_rope("model", 64)
        prompt = list(range(1, 20))
    agree(path, lambda tokens: model.logits(model.hidden(tokens, last=1))[0, -1], prompt)


def test_tokens_are_drawn_by_their_probabilities():
    # at temperature 1 of 1/8, 5/8 and 2/8, at 1/2 of their squares
    logits = np.log([1, 5, 2]).tolist()
    randoms = [0, 0.124, 0.126, 0.74, 0.76, 0.999]
    ask_for = {"task": "draw", "logits": logits, "randoms": randoms}
    requests = [{**ask_for, "temperature": heat} for heat in (0, 1, 0.5)]
    assert ask(requests) == [[1] * 6, [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 2]]


def test_a_part_that_the_engine_does_not_know_is_a_sentence(tmp_path):
    path = tmp_path / "m.gptpack"
    write_golf(path, parallel_layers=2, parallel_lanes=2)
    (answer,) = ask([{"task": "generate", "path": path, "tokens": PROMPT, "count": 1}])
    assert "parallel_lanes=2" in answer["error"]


LLAMAS = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
}


def write_hugging(path, family: str, **more):
    """A packed file of a random model, and the model."""
    transformers = pytest.importorskip("transformers")
    from hugging import FAMILIES, VOCAB

    from gptpack.families.transformers.config import TransformersConfig, portable

    torch.manual_seed(0)
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "vocab_size": VOCAB}
    config = transformers.AutoConfig.for_model(family, **{**FAMILIES[family], **tokens, **more})
    model = willed(transformers.AutoModelForCausalLM.from_config(config))
    weights = dict(model.state_dict())
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    values = portable(json.loads(config.to_json_string(use_diff=False)))
    write_artifact(
        path, tensors=packed(weights), model=TransformersConfig(values=values), pack={}, files={}
    )
    return model


@pytest.mark.parametrize("name", LLAMAS)
def test_models_shaped_like_llama(name, tmp_path):
    path = tmp_path / "m.gptpack"
    model = write_hugging(path, name.split()[0], **LLAMAS[name])
    agree(path, lambda tokens: model(tokens).logits[0, -1], list(range(3, 40)))


@pytest.mark.parametrize(
    ("family", "more", "said"),
    [
        ("mistral", {"sliding_window": 8}, "sliding_window"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("gpt2", {}, "of type"),
        ("gemma2", {}, "of type"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type",
        ),
    ],
)
def test_models_that_the_engine_does_not_know_are_a_sentence(family, more, said, tmp_path):
    path = tmp_path / "m.gptpack"
    write_hugging(path, family, **more)
    (answer,) = ask([{"task": "generate", "path": path, "tokens": [1], "count": 1}])
    assert said in answer["error"]


def test_tensors_that_are_not_the_models_and_texts_that_do_not_fit_are_a_sentence(tmp_path):
    path, other = tmp_path / "m.gptpack", tmp_path / "other.gptpack"
    model = write_golf(path)
    weights = dict(model.state_dict())
    short = {name: value for name, value in weights.items() if name != "blocks.3.attn.proj.weight"}
    request = {"task": "generate", "path": path, "tokens": PROMPT, "count": 1}
    write_artifact(other, tensors=packed(short), model=model.config, pack={}, tokenizer=TOKENIZER)
    requests = [
        {**request, "path": other},
        {**request, "tokens": [1] * 129},
        {**request, "tokens": [97]},
        {**request, "tokens": []},
    ]
    said = ("no tensor blocks.3.attn.proj.weight", "longer than the 128", "beyond", "empty prompt")
    for answer, words in zip(ask(requests), said, strict=True):
        assert words in answer["error"]


def test_shapes_that_claim_more_than_the_file_holds_are_a_sentence(tmp_path):
    path = tmp_path / "m.gptpack"
    model = GPT(ModelConfig(**SMALL))
    request = {"task": "generate", "path": path, "tokens": [1], "count": 1}
    for more in ({"layers": 4096}, {"loop_layers": 1, "loops": 4000}, {"width": 2**40}):
        config = ModelConfig(**{**SMALL, **more})
        write_artifact(path, tensors=packed(model.state_dict()), model=config, pack={})
        (answer,) = ask([request])
        assert "error" in answer
