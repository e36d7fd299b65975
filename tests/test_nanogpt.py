"""A nanoGPT and the GPT-2 that it is turned into compute the same."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gptpack
from gptpack.errors import CheckpointError
from gptpack.families.transformers.nanogpt import from_nanogpt, is_nanochat, is_nanogpt

transformers = pytest.importorskip("transformers")

WIDTH, HEADS, LAYERS, CONTEXT, VOCAB = 32, 4, 2, 16, 50
ARGS = {
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_embd": WIDTH,
    "block_size": CONTEXT,
    "bias": True,
    "vocab_size": VOCAB,
    "dropout": 0.1,
}


class Block(nn.Module):
    """A block written from GPT-2's paper with nanoGPT's names."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(WIDTH, bias=bias) for _ in range(2))
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.c_attn = nn.Linear(WIDTH, 3 * WIDTH, bias=bias)
        self.attn.c_proj = nn.Linear(WIDTH, WIDTH, bias=bias)
        self.attn.register_buffer("bias", torch.ones(1, 1, CONTEXT, CONTEXT).tril())
        self.mlp.c_fc = nn.Linear(WIDTH, 4 * WIDTH, bias=bias)
        self.mlp.c_proj = nn.Linear(4 * WIDTH, WIDTH, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        heads = self.attn.c_attn(self.ln_1(x)).view(rows, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)
        hidden = self.attn.bias[:, :, :length, :length] == 0
        mixed = scores.masked_fill(hidden, -math.inf).softmax(3) @ v
        x = x + self.attn.c_proj(mixed.transpose(1, 2).reshape(rows, length, WIDTH))
        return x + self.mlp.c_proj(functional.gelu(self.mlp.c_fc(self.ln_2(x))))


class NanoGpt(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCAB, WIDTH),
                "wpe": nn.Embedding(CONTEXT, WIDTH),
                "h": nn.ModuleList(Block(bias) for _ in range(LAYERS)),
                "ln_f": nn.LayerNorm(WIDTH, bias=bias),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        generator = torch.Generator().manual_seed(0)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.3, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.transformer
        x = parts["wte"](tokens) + parts["wpe"](torch.arange(tokens.shape[1]))
        for block in parts["h"]:
            x = block(x)
        return self.lm_head(parts["ln_f"](x))


def as_gpt2(config: dict, weights: dict[str, Tensor]) -> nn.Module:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config.from_dict(config)).eval()
    left = model.load_state_dict(weights, strict=False)
    tied = ["lm_head.weight"] if config["tie_word_embeddings"] else []
    assert (list(left.missing_keys), list(left.unexpected_keys)) == (tied, [])
    return model


@pytest.mark.parametrize("args", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_the_converted_model_computes_what_nanogpt_does(bias, args):
    model = NanoGpt(bias).double()
    said = {**ARGS, "bias": bias} if args else {"n_head": HEADS}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = from_nanogpt("ckpt.pt", model.state_dict(), said)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    tokens = torch.randint(VOCAB, (3, CONTEXT), generator=torch.Generator().manual_seed(1))
    found = as_gpt2(made.config, made.weights).double()
    # load_state_dict rounded to float32, so the weights go in once more
    found.load_state_dict(made.weights, strict=False)
    assert torch.allclose(found(tokens).logits, model(tokens), rtol=1e-9, atol=1e-9)


def test_a_checkpoint_of_nanogpt_packs_as_the_gpt2_that_it_is(tmp_path):
    model = NanoGpt()
    path = tmp_path / "ckpt.pt"
    state = {f"_orig_mod.{name}": value for name, value in model.state_dict().items()}
    torch.save({"model": state, "optimizer": {}, "model_args": ARGS, "iter_num": 3}, path)
    asked = {"delta": 1e-3, "calibration": "random", "calibration_tokens": 512}
    gptpack.pack(path, output=tmp_path / "m.gptpack", **asked)
    loaded = gptpack.load(tmp_path / "m.gptpack")
    assert isinstance(loaded.model, transformers.GPT2LMHeadModel)
    assert loaded.tokenizer is None
    tokens = torch.randint(VOCAB, (3, CONTEXT), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, after = model(tokens), loaded.model(tokens).logits
    assert 0 < (after - before).square().mean() < 0.01 * before.var()


@torch.no_grad()
def test_a_head_of_its_own_stays_one():
    model = NanoGpt()
    model.lm_head.weight = nn.Parameter(torch.randn(VOCAB, WIDTH))
    made = from_nanogpt("ckpt.pt", model.state_dict(), ARGS)
    assert not made.config["tie_word_embeddings"]
    tokens = torch.arange(CONTEXT)[None]
    found = as_gpt2(made.config, made.weights)(tokens).logits
    assert torch.allclose(found, model(tokens), rtol=1e-4, atol=1e-4)


def test_the_configuration_is_that_of_model_args_and_shapes():
    config = from_nanogpt("ckpt.pt", NanoGpt().state_dict(), ARGS).config
    gpt2 = transformers.GPT2Config.from_dict(config)
    assert (gpt2.n_layer, gpt2.n_head, gpt2.n_embd) == (LAYERS, HEADS, WIDTH)
    assert (gpt2.n_positions, gpt2.vocab_size, gpt2.attn_pdrop) == (CONTEXT, VOCAB, 0.1)
    assert (gpt2.activation_function, gpt2.bos_token_id) == ("gelu", None)


def wide(vocab: int) -> dict[str, Tensor]:
    """A state dict of one layer of width 128, without biases."""
    layer = "transformer.h.0."
    shapes = {"attn.c_attn": (384, 128), "attn.c_proj": (128, 128)}
    shapes |= {"mlp.c_fc": (512, 128), "mlp.c_proj": (128, 512)}
    shapes |= {"ln_1": (128,), "ln_2": (128,)}
    state = {f"{layer}{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    state["transformer.wte.weight"] = torch.zeros(vocab, 128)
    state["transformer.wpe.weight"] = torch.zeros(8, 128)
    return {**state, "transformer.ln_f.weight": torch.ones(128)}


def test_what_neither_tensors_nor_model_args_say_is_named():
    made = from_nanogpt("ckpt.pt", wide(50304))
    assert made.assumed == ("activation_function=gelu", "n_head=2", "bos_token_id=50256")
    assert (made.config["n_head"], made.config["vocab_size"]) == (2, 50304)
    assert from_nanogpt("ckpt.pt", NanoGpt().state_dict(), ARGS).assumed == (
        "activation_function=gelu",
    )


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"n_layer": 3}, "model_args say n_layer=3, but its tensors 2"),
        ({"bias": False}, "model_args say bias=False, but its tensors True"),
        ({"vocab_size": "x"}, "model_args say vocab_size='x', but its tensors 50"),
        ({"n_embd": torch.ones(2)}, "model_args say n_embd=tensor.*, but its tensors 32"),
        ({"n_head": 5}, "n_head=5 does not divide n_embd=32"),
        ({"n_head": 0}, "n_head=0 does not divide"),
        ({"n_head": "4"}, "n_head='4' does not divide"),
    ],
)
def test_model_args_that_the_tensors_gainsay_are_refused(said, message):
    with pytest.raises(CheckpointError, match=message):
        from_nanogpt("ckpt.pt", NanoGpt().state_dict(), {**ARGS, **said})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("transformer.wpe.weight", None, "without a matrix transformer.wpe.weight"),
        ("transformer.wpe.weight", torch.ones(8, 3), r"wpe.weight has shape \(8, 3\)"),
        ("transformer.h.1.mlp.c_fc.weight", None, "without transformer.h.1.mlp.c_fc.weight"),
        ("transformer.h.1.mlp.c_fc.bias", None, "without transformer.h.1.mlp.c_fc.bias"),
        ("transformer.h.1.attn.c_proj.weight", torch.ones(3, 3), r"\(3, 3\), needed \(32, 32\)"),
        ("transformer.h.0.ln_1.gain", torch.ones(32), "ln_1.gain, which nanoGPT has not"),
        ("transformer.h.7.ln_1.weight", torch.ones(32), "without transformer.h.2."),
        ("lm_head.weight", torch.ones(3, 32), r"lm_head.weight has shape \(3, 32\)"),
    ],
)
def test_tensors_that_are_not_nanogpts_are_refused(name, value, message):
    state = dict(NanoGpt().state_dict())
    state.pop(name, None)
    if value is not None:
        state[name] = value
    with pytest.raises(CheckpointError, match=message):
        from_nanogpt("ckpt.pt", state)


def test_nanogpt_is_told_from_gpt2_and_nanochat_by_names_and_shapes():
    nano = NanoGpt().state_dict()
    gpt2 = from_nanogpt("ckpt.pt", nano, ARGS).weights
    chat = {"transformer.wte.weight": torch.ones(3, 3)}
    chat["transformer.h.0.attn.c_q.weight"] = torch.ones(3, 3)
    assert [is_nanogpt(each) for each in (nano, gpt2, chat)] == [True, False, False]
    assert [is_nanochat(each) for each in (nano, gpt2, chat)] == [False, False, True]
