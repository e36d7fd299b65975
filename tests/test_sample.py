"""Text that a packed model goes on with: what is drawn, how it is given out, what is refused."""

import pytest
import torch
from hugging import CONTEXT, SAID, make_folder
from worlds import corpus, invoke

import gptpack
from gptpack.cli.sample import CONTROLS
from gptpack.errors import ConfigError, TokenizerError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.jobs.load import Loaded

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
    assert "a second" in err
    assert invoke("sample", str(packed), "--top-p", "2") == 2
    assert invoke("sample", str(packed.parent / "absent")) == 2
