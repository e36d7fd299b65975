"""Text that a packed model goes on with: what is drawn, how it is given out, what is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hugging import CONTEXT, SAID, make_folder
from worlds import corpus, invoke

import gptpack
from gptpack.cli.sample import CONTROLS
from gptpack.errors import ConfigError, TokenizerError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.families.language_model import LanguageModel
from gptpack.jobs.load import Loaded
from gptpack.jobs.sample import Tally
from gptpack.values import TokenizerIdentity

TEMPLATE = (
    "{% for m in messages %}<|end|>user: {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|end|>answer: {% endif %}"
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A packed Llama that never ends a text by itself."""
    root = tmp_path_factory.mktemp("sample")
    folder = make_folder(root / "llama", "llama", eos_token_id=None)
    text = root / "train.txt"
    text.write_text(SAID * 30, encoding="utf-8")
    path = root / "m.gptpack"
    gptpack.pack(folder, delta=1e-3, text=(text,), calibration_tokens=8 * CONTEXT, output=path)
    return path


def test_at_temperature_0_the_likeliest_token_follows_each_time(packed):
    loaded = gptpack.load(packed)
    found = "".join(loaded.generate("The river", max_tokens=20, temperature=0))
    assert found == "".join(loaded.generate("The river", max_tokens=20, temperature=1e-300))
    (ids,) = loaded.tokenizer.encode(["The river"])
    tokens = torch.from_numpy(ids)[None]
    with torch.no_grad():
        for _ in range(20):
            likeliest = loaded.model(tokens).logits[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat((tokens, likeliest), 1)
    wanted = loaded.tokenizer.decode(tokens[0].numpy()).removeprefix("The river")
    assert found == wanted != ""


def test_a_seed_gives_the_same_text_and_another_one_another(packed):
    loaded = gptpack.load(packed)
    said = ["".join(loaded.generate("It", max_tokens=25, seed=seed)) for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]
    # of no share of the probability, the likeliest token alone is left
    narrow = "".join(loaded.generate("It", max_tokens=25, seed=1, top_p=0))
    assert narrow == "".join(loaded.generate("It", max_tokens=25, temperature=0))


def test_a_text_ends_where_the_model_ends_it(tmp_path):
    folder = make_folder(tmp_path / "llama", "llama")
    loaded = gptpack.load(folder)
    with torch.no_grad():
        loaded.model.model.embed_tokens.weight.zero_()
    # all logits are equal, so the likeliest is token 0, which is EOS
    assert list(loaded.generate("It", temperature=0)) == []


def test_a_chat_template_is_put_around_the_prompt_unless_told_otherwise(tmp_path):
    loaded = gptpack.load(make_folder(tmp_path / "chat", "llama", template=TEMPLATE))
    ids = loaded.tokenizer.chat_prompt("hello")
    assert (ids[0], ids.count(0)) == (0, 2)  # here they are special tokens
    assert loaded.tokenizer.decode(torch.tensor(ids).numpy()) == "user: helloanswer: "
    settings = {"max_tokens": 12, "temperature": 0}
    with_template = "".join(loaded.generate("hello", **settings))
    assert with_template != "".join(loaded.generate("hello", chat=False, **settings))


def test_a_model_of_ours_is_given_its_tokenizer(packed, capsys):
    world = corpus()
    config = ModelConfig(
        vocab=world.tokenizer.vocab, layers=2, width=16, heads=2, kv_heads=1, mlp_hidden=32,
        context=32, bos=world.tokenizer.bos,
    )  # fmt: skip
    loaded = Loaded(language_model=GPT(config).eval(), kind="checkpoint")
    tokenizer = world.data / "tokenizer.model"
    said = [list(loaded.generate("the cat", max_tokens=8, tokenizer=tokenizer)) for _ in range(2)]
    assert said[0] == said[1]
    with pytest.raises(TokenizerError, match="brings no tokenizer"):
        next(loaded.generate("the cat"))
    with pytest.raises(ConfigError, match="brings its tokenizer"):
        next(gptpack.load(packed).generate("the cat", tokenizer=tokenizer))


@pytest.mark.parametrize(
    "settings", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 1.5}, {"temperature": 1e999}]
)
def test_settings_that_mean_nothing_are_refused(packed, settings):
    with pytest.raises(ConfigError, match="must"):
        next(gptpack.load(packed).generate("It", **settings))


def test_an_empty_prompt_needs_a_token_to_begin_with(packed):
    with pytest.raises(TokenizerError, match="write a word"):
        next(gptpack.load(packed).generate(""))


def test_the_command_writes_what_python_gives(packed, capsys):
    arguments = ("--prompt", "The mill", "--tokens", "15", "--seed", "3", "--device", "cpu")
    assert invoke("sample", str(packed), *arguments) == 0
    out, err = capsys.readouterr()
    said = "".join(gptpack.load(packed).generate("The mill", max_tokens=15, seed=3))
    assert out == CONTROLS.sub("\ufffd", said) + "\n"
    assert CONTROLS.sub("?", "a\x1b[31m\r\n\tb\x9b") == "a?[31m?\n\tb?"
    (prompt,) = gptpack.load(packed).tokenizer.encode(["The mill"])
    rate = r", [\d,]+\.\d a second"
    assert re.fullmatch(rf"{len(prompt)} prompt tokens{rate}; 15 tokens{rate}\n", err)
    assert invoke("sample", str(packed), "--top-p", "2") == 2
    assert invoke("sample", str(packed.parent / "absent")) == 2


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (("--temperature", "0"), {"temperature": 0}),
        (("--temperature", "2.5", "--seed", "4"), {"temperature": 2.5, "seed": 4}),
        (("--top-p", "0.1", "--seed", "4"), {"top_p": 0.1, "seed": 4}),
        (("--raw",), {"chat": False}),
    ],
)
def test_each_option_of_the_command_is_pythons(options, settings, tmp_path, capsys):
    folder = make_folder(tmp_path / "chat", "llama", template=TEMPLATE, eos_token_id=None)
    assert invoke("sample", str(folder), "--prompt", "hello", "--tokens", "9", *options) == 0
    out = capsys.readouterr().out
    loaded = gptpack.load(folder)
    assert (
        out
        == CONTROLS.sub("\ufffd", "".join(loaded.generate("hello", max_tokens=9, **settings)))
        + "\n"
    )
    assert out != "".join(loaded.generate("hello", max_tokens=9)) + "\n"


def test_a_text_goes_on_beyond_the_context_as_a_model_without_a_cache_says_it():
    world = corpus()
    config = ModelConfig(
        vocab=world.tokenizer.vocab, layers=2, width=16, heads=2, kv_heads=1, mlp_hidden=32,
        context=8, bos=world.tokenizer.bos, smear_gate=True, bigram_rows=9, bigram_width=4,
    )  # fmt: skip
    model = GPT(config).eval()
    with torch.no_grad():
        for block in model.blocks:
            torch.nn.init.normal_(block.attn.proj.weight)
    loaded = Loaded(language_model=model, kind="checkpoint")
    asked = {"max_tokens": 40, "temperature": 0, "tokenizer": world.data / "tokenizer.model"}
    tally = Tally()
    found = "".join(loaded.generate("the cat sat on", tally=tally, **asked))
    model._reader = lambda: LanguageModel._reader(model)
    assert found == "".join(loaded.generate("the cat sat on", **asked)) != ""
    assert tally.prompt_tokens == 1 + len(world.tokenizer.encode("the cat sat on"))
    assert tally.tokens == 40
    assert min(tally.prompt_seconds, tally.seconds) > 0


def test_another_tokenizer_than_the_models_is_refused():
    world = corpus()
    tokenizer = world.data / "tokenizer.model"
    shape = {"layers": 1, "width": 8, "heads": 1, "kv_heads": 1, "mlp_hidden": 8, "context": 8}
    smaller = Loaded(language_model=GPT(ModelConfig(vocab=64, **shape)), kind="checkpoint")
    with pytest.raises(TokenizerError, match="pieces, but the model has a vocabulary of 64"):
        next(smaller.generate("the cat", tokenizer=tokenizer))
    identity = TokenizerIdentity(sha256="ab" * 32, vocab=300, bos=1)
    model = GPT(ModelConfig(vocab=300, **shape))
    other = Loaded(language_model=model, kind="checkpoint", tokenizer_identity=identity)
    with pytest.raises(TokenizerError, match=f"was trained with the tokenizer {'ab' * 32}; give"):
        next(other.generate("the cat", tokenizer=tokenizer))


def test_an_interrupt_ends_the_line_and_says_how_far_it_came(packed, capsys, monkeypatch):
    reader = LanguageModel.reader

    def interrupted(model):
        read, left = reader(model), iter(range(5))

        def read_on(tokens):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return read(tokens)

        return read_on

    monkeypatch.setattr(LanguageModel, "reader", interrupted)
    assert invoke("sample", str(packed), "--prompt", "The mill", "--tokens", "400") == 130
    out, err = capsys.readouterr()
    assert out.endswith("\n")
    assert "; 5 tokens" in err
    assert err.splitlines()[-1].startswith("gptpack: interrupted")
    assert len(err.splitlines()) == 2


def test_a_reader_that_leaves_ends_the_text_without_a_word(packed):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "gptpack", "sample", str(packed), "--prompt", "It"],
        cwd=Path(__file__).parent.parent,
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has it")
def test_a_device_that_is_not_there_is_one_line(packed, capsys):
    assert invoke("sample", str(packed), "--prompt", "It", "--device", "mps") == 4
    assert capsys.readouterr().err == (
        "gptpack: device 'mps': torch sees no GPU of Apple's; use --device cpu\n"
    )
