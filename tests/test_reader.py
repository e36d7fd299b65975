"""A text read token by token, with keys and values kept, against the same text read anew."""

import copy
from dataclasses import replace

import pytest
import torch
from golf import PARTS, SMALL, randomized
from hugging import FAMILIES, make_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask

from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.families.golf.masks import document_mask
from gptpack.families.language_model import first_read
from gptpack.jobs.load import load
from gptpack.training.recipe import load_recipe, recipe_names

CONTEXT = 12
TINY = {**SMALL, "context": CONTEXT}


def small_recipe(name: str) -> ModelConfig:
    """The recipe's model with all of its switches and layers, in small."""
    model = load_recipe(name).model
    few = {"vocab": 40, "width": 8 * model.heads, "mlp_hidden": 20, "context": CONTEXT, "bos": 1}
    few |= {"windows": (3, 5), "short_windows": (2, 4)} if model.windows else {}
    few |= {"rope_dims": 4 if model.rope_dims else 0}
    few |= {"rope_ntk_context": CONTEXT // 2 if model.rope_ntk_context else 0}
    few |= {"bigram_rows": 11, "bigram_width": 5} if model.bigram_rows else {}
    few |= {"value_embedding_width": 6} if model.value_embedding_layers else {}
    return replace(model, **few)


MODELS = {name: ModelConfig(**{**TINY, **part}) for name, part in PARTS.items()}
MODELS |= {f"recipe {name}": small_recipe(name) for name in recipe_names()}


def exact(config: ModelConfig, seed: int = 0) -> GPT:
    """A model that computes in float64, so that what differs is no rounding."""
    model = randomized(config, seed).double()
    model.compute_dtype = torch.float64
    return model


def anew(model: GPT, text: torch.Tensor) -> torch.Tensor:
    """The logits after `text`, of which the model reads what it reaches, without a cache."""
    twin = copy.deepcopy(model)
    if twin.rope is None:
        twin.use_rope("none", model.config.context)
    return twin.next_logits(text[:, first_read(text.shape[1], model.config.context) :])


def said(model: GPT, prompt: torch.Tensor, steps: int) -> None:
    """Let the reader go on from `prompt` at temperature 0, and compare it with its twin."""
    read, text, given = model.reader(), prompt, prompt
    with torch.no_grad():
        for _ in range(steps):
            found, wanted = read(given), anew(model, text)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
            given = found.argmax(-1, keepdim=True)
            assert torch.equal(given, wanted.argmax(-1, keepdim=True))
            # documents end now and then, wherever the model would not end them
            given = torch.where(torch.tensor(text.shape[1] % 7 == 4), model.config.bos, given)
            text = torch.cat((text, given), 1)


@pytest.mark.parametrize("name", MODELS)
def test_every_part_of_the_model_reads_on_as_if_it_read_anew(name):
    model = exact(MODELS[name])
    prompt = torch.randint(2, 40, (2, 3), generator=torch.Generator().manual_seed(1))
    prompt[:, 0] = model.config.bos
    said(model, prompt, 3 * CONTEXT)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Any combination of the switches."""
    flag = st.booleans()
    layers = draw(st.integers(1, 5))
    last = st.integers(0, layers)
    settings = {"layers": layers, "kv_heads": draw(st.sampled_from([1, 2, 4]))}
    names = ("ln_scale", "skip_gates", "document_mask", "tied_embedding")
    settings |= {name: draw(flag) for name in names}
    settings["activation"] = draw(st.sampled_from(["relu2", "leaky_relu2"]))
    settings |= {"xsa_layers": draw(last), "parallel_layers": draw(last)}
    settings["rope_dims"] = draw(st.sampled_from([0, 2, 4]))
    settings["rope_ntk_context"] = draw(st.sampled_from([0, 5]))
    settings["attention_gate_inputs"] = draw(st.sampled_from([0, 7]))
    settings["context"] = draw(st.sampled_from([1, 2, 5, 8]))
    if draw(flag):
        settings |= {"bigram_rows": 11, "bigram_width": 5}
    if draw(flag):
        settings |= {"smear_gate": True, "smear_across_documents": draw(flag)}
    if draw(flag):
        settings |= {"value_embedding_layers": (layers - 1,), "value_embedding_width": 6}
    if settings["parallel_layers"]:
        settings["parallel_lanes"] = draw(st.sampled_from([1, 2]))
    free = layers - settings["parallel_layers"]
    if free and draw(flag):
        settings["loop_start"] = draw(st.integers(0, free - 1))
        settings["loop_layers"] = draw(st.integers(1, free - settings["loop_start"]))
        settings["loops"] = draw(st.integers(1, 2))
    return ModelConfig(**{**SMALL, **settings})


@settings(max_examples=60)
@given(configs(), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 1000))
def test_however_a_text_is_cut_its_reader_says_the_same(config, lengths, seed):
    model = exact(config, seed)
    tokens = torch.randint(0, 40, (2, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    read, ends = model.reader(), torch.tensor(lengths).cumsum(0).tolist()
    with torch.no_grad():
        for part, end in zip(tokens.split(lengths, 1), ends, strict=True):
            torch.testing.assert_close(
                read(part), anew(model, tokens[:, :end]), rtol=1e-5, atol=1e-6
            )


@given(st.integers(1, 400), st.integers(1, 60))
def test_beyond_its_reach_a_model_reads_the_later_half_at_least(length, reach):
    first = first_read(length, reach)
    assert 0 <= first < length
    assert length - first <= reach
    assert first == 0 if length <= reach else length - first > reach - max(1, reach // 2)
    assert first_read(length + 1, reach) - first in (0, max(1, reach // 2))


def test_only_the_new_tokens_go_through_the_layers():
    model = exact(MODELS["all of the later parts"])
    seen = []
    model.blocks[0].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    read = model.reader()
    with torch.no_grad():
        for length in (CONTEXT - 2, 1, 1, 1, 1):
            read(torch.ones(1, length, dtype=torch.int64))
    # beyond the context half of it is forgotten, and what is left read once
    assert seen == [CONTEXT - 2, 1, 1, CONTEXT // 2 + 1, 1]


def test_angles_that_were_fixed_are_those_of_the_reader():
    model = exact(MODELS["ntk rope"])
    assert model.use_rope("yarn", 4 * CONTEXT) == f"yarn, trained at {CONTEXT}"
    said(model, torch.tensor([[1, 5]]), 2 * CONTEXT)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_transformers_read_on_beyond_what_their_positions_reach(family, tmp_path):
    model = load(make_folder(tmp_path / family, family)).runnable()
    reach = model.reach
    tokens = torch.randint(0, 320, (1, reach + 40), generator=torch.Generator().manual_seed(1))
    read = model.reader()
    begin = reach - 3
    with torch.no_grad():
        read(tokens[:, :begin])
        for end in range(begin + 1, reach + 41):
            found = read(tokens[:, end - 1 : end])
            wanted = model.next_logits(tokens[:, first_read(end, reach) : end])
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_a_mask_of_the_last_positions_is_the_end_of_that_of_all():
    tokens = torch.tensor([[5, 1, 6, 7, 1, 8], [1, 2, 3, 1, 1, 4]])
    whole = document_mask(tokens, 1)
    assert not isinstance(whole, BlockMask)
    for last in range(1, 7):
        assert torch.equal(document_mask(tokens, 1, last=last), whole[:, :, -last:])


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
@pytest.mark.parametrize("name", ["baseline", "all", "all of the later parts"])
def test_a_text_read_token_by_token_is_as_good_in_bfloat16(name):
    config = replace(MODELS[name], width=128, attention_gate_inputs=0, context=64)
    model = exact(config)
    tokens = torch.randint(2, 40, (2, 60), generator=torch.Generator().manual_seed(1))
    tokens[:, 20] = config.bos
    with torch.inference_mode():
        wanted = anew(model, tokens)
        model.float().cuda().compute_dtype = None
        model.use_attention("auto")
        whole = (anew(model, tokens.cuda()).cpu() - wanted).abs().mean()
        read = model.reader()
        *_, last = (read(part) for part in tokens.cuda().split([40, *[1] * 20], 1))
        alone = (last.cpu() - wanted).abs().mean()
    assert alone < 2 * whole
