"""Values and recipes: sizes, tables, overrides, and what their errors say."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import invoke

from gptpack.data.orders import DataConfig
from gptpack.errors import ConfigError
from gptpack.families.golf.config import ModelConfig
from gptpack.jobs.train_plan import plan_training
from gptpack.training.recipe import (
    OptimizerConfig,
    Recipe,
    TrainingConfig,
    find_recipe,
    load_recipe,
    recipe_names,
)
from gptpack.values import from_dict, non_default, parse_size, to_dict


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("16MB", 16_000_000),
        ("16MiB", 16_777_216),
        ("16mb", 16_000_000),
        (" 16 MB ", 16_000_000),
        ("15.9MB", 15_900_000),
        ("1.5KiB", 1536),
        ("16_000_000", 16_000_000),
        ("16,000,000", 16_000_000),
        ("700B", 700),
        ("2GB", 2_000_000_000),
    ],
)
def test_a_size_is_decimal_unless_it_says_binary(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "16 MBit", "16M", "1e6", "0x10", "1.5", "1.0001KB", "1.2.3MB", "nan"]
)
def test_what_is_no_whole_number_of_bytes_is_refused_with_a_way_out(text):
    with pytest.raises(ConfigError, match=r"size '.*(such as 16MB|in bytes)"):
        parse_size(text)


@pytest.mark.parametrize("text", ["1,5MB", "1,50MB", "16,0000", "1234,567", "1,234,5KB", "1,,000"])
def test_a_comma_that_parts_no_three_digits_is_refused(text):
    with pytest.raises(ConfigError, match=r"such as 16MB or 16MiB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["9" * 5000, "9" * 400 + "MB", "0." + "1" * 18])
def test_a_size_of_more_digits_than_any_file_has_is_refused(text):
    with pytest.raises(ConfigError, match=r"^size of [\d,]+ digits: write at most 18 and a unit"):
        parse_size(text)


@given(st.integers(0, 10**15))
def test_a_plain_number_is_itself_with_and_without_separators(size_bytes):
    assert parse_size(str(size_bytes)) == parse_size(f"{size_bytes:,}B") == size_bytes


@given(st.integers(0, 10**9), st.integers(0, 999_999))
def test_decimal_fractions_are_exact(whole, fraction):
    assert parse_size(f"{whole}.{fraction:06}MB") == whole * 10**6 + fraction


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 7}, "width=512 is not a multiple of heads=7"),
        ({"kv_heads": 3}, "heads=8 is not a multiple of kv_heads=3"),
        ({"width": 24}, "must be even for RoPE"),
        ({"rope_dims": 3}, "rope_dims=3"),
        ({"rope_dims": 66}, "at most 64"),
        ({"layers": 0}, "layers=0 must be at least 1"),
        ({"xsa_layers": 10}, "0 to layers=9"),
        ({"vocab": (1 << 20) + 1}, "vocab=1048577 must be at most 1048576"),
        ({"logit_softcap": 0.0}, "logit_softcap"),
        ({"bigram_rows": 100}, "go together"),
        ({"bigram_rows": -5, "bigram_width": -5}, "bigram_rows=-5 must not be negative"),
        ({"value_embedding_width": -5}, "value_embedding_width=-5 must not be negative"),
        ({"value_embedding_layers": (1,)}, "go together"),
        ({"value_embedding_layers": (9,), "value_embedding_width": 64}, r"lie in 0\.\.8"),
        ({"attention_gate_inputs": 513}, "0 to width=512"),
        ({"bos": 1024}, r"bos=1024 must lie in 0\.\.1023"),
        ({"rope_base": 0.0}, "rope_base=0.0 must be positive"),
        ({"qk_gain": -3e38}, r"qk_gain=-3e\+38 must be at most 1e\+06 in size"),
        ({"rope_ntk_context": -1}, "rope_ntk_context=-1 must not be negative"),
        ({"loop_start": 1}, "means nothing without loops"),
        ({"loops": 2}, "go together"),
        ({"loop_layers": 2}, "go together"),
        ({"loop_start": 8, "loop_layers": 2, "loops": 1}, "within layers=9"),
        ({"loop_start": -1, "loop_layers": 2, "loops": 1}, "within layers=9"),
        ({"parallel_layers": 10}, "0 to layers=9"),
        ({"parallel_lanes": 3}, "must be 1 or 2"),
        ({"parallel_lanes": 2}, "means nothing without parallel_layers"),
        ({"smear_across_documents": True}, "means nothing without smear_gate"),
        (
            {"value_embedding_layers": (1, 1), "value_embedding_width": 4},
            "must not name a layer twice",
        ),
        (
            {"loop_start": 3, "loop_layers": 3, "loops": 2, "parallel_layers": 4},
            r"layers 3\.\.5 run several times",
        ),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        (OptimizerConfig, "muon_momentum", 1.0),
        (OptimizerConfig, "adam_beta2", -0.1),
        (OptimizerConfig, "ema_decay", 1.0),
        (OptimizerConfig, "muon_steps", 0),
        (OptimizerConfig, "muon_variance_beta2", 1.0),
        (OptimizerConfig, "grad_clip", -0.1),
        (OptimizerConfig, "matrix_lr", -0.1),
        (OptimizerConfig, "adam_eps", -1.0),
        (OptimizerConfig, "matrix_weight_decay", -0.1),
        (TrainingConfig, "seed", 2**63),
        (TrainingConfig, "seed", -1),
        (OptimizerConfig, "swa_every", -1),
        (OptimizerConfig, "swa_start", 1.0),
        (DataConfig, "mix_shards_start", 0),
        (DataConfig, "mix_shards_end", 0),
        (DataConfig, "mix_steps", -1),
        (DataConfig, "mix_power_start", -0.1),
        (DataConfig, "mix_power_start", 200.0),
        (TrainingConfig, "batch_tokens", 0),
        (TrainingConfig, "steps", 0),
        (TrainingConfig, "seconds", -1.0),
        (TrainingConfig, "warmdown_steps", -1),
        (TrainingConfig, "warmdown_fraction", 1.1),
        (TrainingConfig, "lr_floor", -0.1),
        (TrainingConfig, "recurrence_start", 2.0),
        (TrainingConfig, "reserve_seconds", -1.0),
        (TrainingConfig, "reserve_seconds", 600.0),
        (OptimizerConfig, "muon_momentum_cooldown_steps", -1),
        (OptimizerConfig, "weight_decay_taper_start", 1.5),
        (OptimizerConfig, "weight_decay_final", -0.5),
    ],
)
def test_settings_out_of_range_are_refused_by_name(table, key, value):
    with pytest.raises(ConfigError, match=f"{key}="):
        table(**{key: value})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_of_a_recipe_is_finite(value):
    with pytest.raises(ConfigError, match=r"^training\.seconds=.* must be a finite number$"):
        load_recipe(None, [f"training.seconds={value}"])


def test_loops_that_training_never_comes_to_are_refused():
    loops = {"layers": 4, "loop_start": 1, "loop_layers": 2, "loops": 1}
    late = TrainingConfig(recurrence_start=0.99)
    Recipe(model=ModelConfig(**loops), training=late)
    with pytest.raises(ConfigError, match="recurrence_start=1 trains the model without its loops"):
        Recipe(model=ModelConfig(**loops), training=replace(late, recurrence_start=1.0))


def test_a_context_that_cannot_be_halved_is_refused():
    halved = TrainingConfig(context_halvings=3, full_context_start=0.5)
    with pytest.raises(ConfigError, match=r"model\.context=1028 cannot be halved so often"):
        Recipe(model=ModelConfig(context=1028), training=halved)
    with pytest.raises(ConfigError, match="goes with causal attention alone"):
        Recipe(model=ModelConfig(document_mask=True), training=halved)
    with pytest.raises(ConfigError, match="context_halvings"):
        TrainingConfig(context_halvings=-1)
    for alone in (TrainingConfig(context_halvings=1), TrainingConfig(full_context_start=0.5)):
        with pytest.raises(ConfigError, match="do nothing without each other"):
            Recipe(training=alone)


def test_a_warmdown_is_in_steps_or_a_share_and_not_both():
    message = r"warmdown_fraction=0\.5 and warmdown_steps=1200 exclude each other; set one"
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(warmdown_fraction=0.5)
    assert TrainingConfig(warmdown_fraction=0.5, warmdown_steps=0).warmdown_fraction == 0.5


def test_what_packing_needs_comes_off_the_clock_where_there_is_one():
    assert TrainingConfig(seconds=300.0, reserve_seconds=8.5).clock_seconds == 291.5
    assert TrainingConfig(seconds=0.0, reserve_seconds=8.5).clock_seconds == 0.0


def test_polar_express_has_five_iterations():
    with pytest.raises(ConfigError, match="muon_steps=6: polar-express has 5 iterations"):
        OptimizerConfig(muon_method="polar-express", muon_steps=6)
    assert OptimizerConfig(muon_method="newton-schulz", muon_steps=6).muon_steps == 6


def test_one_average_is_packed_and_not_two():
    message = r"ema_decay=0\.9 and swa_every=50 exclude each other: .* set one of them to 0"
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(ema_decay=0.9, swa_every=50)


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_no_recipe_means_the_defaults():
    assert load_recipe(None) == Recipe()


def test_a_recipe_round_trips_through_plain_values():
    recipe = Recipe(model=ModelConfig(value_embedding_layers=(1, 2), value_embedding_width=32))
    assert from_dict(Recipe, to_dict(recipe)) == recipe


def test_overrides_win_over_the_file_and_parse_as_toml(tmp_path):
    path = write(tmp_path, '[model]\nlayers = 3\nactivation = "relu2"\n')
    recipe = load_recipe(
        path,
        [
            "model.layers=4",
            "model.activation=leaky_relu2",
            "model.tied_embedding=false",
            "model.value_embedding_layers=[0, 3]",
            "model.value_embedding_width=16",
            "training.seconds=5",
            "data.loader=coprime-shards",
        ],
    )
    assert recipe.model.layers == 4
    assert recipe.model.activation == "leaky_relu2"
    assert recipe.model.tied_embedding is False
    assert recipe.model.value_embedding_layers == (0, 3)
    assert recipe.training.seconds == 5.0
    assert recipe.data.loader == "coprime-shards"


def test_a_recipe_from_before_there_were_loaders_reads_its_shards_in_order():
    values = to_dict(Recipe())
    del values["data"]
    assert from_dict(Recipe, values) == Recipe()
    assert Recipe().data.loader == "sequential"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nlayer = 4\n", r"'model\.layer'; there are: .*; did you mean layers\?"),
        ("[modle]\n", r"unknown setting 'modle'; there are: .*; did you mean model\?"),
        ("[training]\nwarmdown = 3\n", r"did you mean warmdown_(steps|fraction)\?"),
        ("[training]\nwidth = 3\n", r"'training\.width'; did you mean 'model\.width'\?"),
        ("[model]\nlayers = 4.0\n", r"model\.layers=4\.0 must be int"),
        ("[model]\nlayers = true\n", r"model\.layers=True must be int"),
        ("[model]\nactivation = 'gelu'\n", r"model\.activation='gelu' must be one of relu2"),
        ("[model]\nvalue_embedding_layers = ['a']\n", r"value_embedding_layers='a' must be int"),
        ("[training]\nseconds = 'long'\n", r"training\.seconds='long' must be float"),
        ("[optimizer]\nmuon_method = 'svd'\n", r"muon_method='svd' must be one of newton-schulz"),
        ("[optimizer]\nmuon_momentum_dtype = 'int8'\n", r"must be one of float32, bfloat16"),
        ("[data]\nloader = 'random'\n", r"data\.loader='random' must be one of sequential"),
        ("model = 3\n", "model=3"),
        ("[model\n", "not TOML"),
        (f"[model]\nlayers = 1{'0' * 22}\n", r"model\.layers is an integer of 74 bits"),
        (f"[training]\nseconds = {'9' * 400}\n", r"training\.seconds is an integer of 1329 bits"),
        (f"[model]\nlayers = {'9' * 5000}\n", "not TOML"),
        (f"a = {'[' * 5000}\n", "not TOML"),
    ],
)
def test_a_wrong_recipe_names_the_setting(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, text))


@pytest.mark.parametrize("digits", [22, 400, 5000])
def test_an_override_of_many_digits_is_refused_by_name(digits):
    with pytest.raises(ConfigError, match=r"^training\.seconds"):
        load_recipe(None, [f"training.seconds={'9' * digits}"])


@pytest.mark.parametrize("override", ["model", "layers=4", "model.layers", "a.b.c=1", "=", ".=1"])
def test_a_malformed_override_says_how_to_write_one(override):
    with pytest.raises(ConfigError, match=r"model\.layers=4|unknown setting"):
        load_recipe(None, [override])


def test_an_override_below_a_plain_value_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a table"):
        load_recipe(write(tmp_path, "model = 3\n"), ["model.layers=4"])


def test_a_recipe_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"missing.toml' is not a file"):
        load_recipe(tmp_path / "missing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        load_recipe(tmp_path / "binary.toml")


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_loads(name):
    recipe = load_recipe(name)
    assert recipe.training.batch_tokens % recipe.model.context == 0


def test_the_baseline_is_the_defaults():
    assert load_recipe("baseline") == Recipe()


def test_seq4096_is_the_record_it_names():
    recipe = load_recipe("seq4096")
    model, optimizer, training = recipe.model, recipe.optimizer, recipe.training
    assert (model.vocab, model.layers, model.width) == (1024, 9, 512)
    assert (model.heads, model.kv_heads, model.mlp_hidden) == (8, 4, 2 * 512)
    assert model.tied_embedding
    assert model.context == 4096
    assert training.batch_tokens == 393216
    assert (optimizer.embed_lr, optimizer.matrix_lr, optimizer.scalar_lr) == (0.03, 0.02, 0.02)
    assert (optimizer.muon_momentum, optimizer.muon_momentum_start) == (0.99, 0.92)
    assert optimizer.muon_momentum_warmup_steps == 1500
    assert training.warmdown_steps == 3000
    assert (training.seconds, training.steps, training.seed) == (600.0, 20000, 1337)


@pytest.mark.parametrize("name", sorted({*recipe_names()} - {"baseline", "seq4096", "golf-1060"}))
def test_a_recipe_that_is_no_record_warms_down_over_a_share_of_the_run(name):
    training = load_recipe(name).training
    assert training.warmdown_steps == 0 < training.warmdown_fraction < 1


@pytest.mark.parametrize(
    ("name", "budget", "clock"),
    [("laptop-500kb", "500KB", 300), ("laptop-1mb", "1MB", 1200), ("gpu-hour", "16MB", 3600)],
)
def test_a_recipe_for_a_size_leaves_its_weights_two_to_four_bits(name, budget, clock):
    found = plan_training(name, device="cpu", flops=1e12, budget=budget)
    assert 2 < found["bits_per_weight"] < 4
    assert found["training_seconds"] == clock


def test_the_recipes_that_the_documents_name_are_packaged():
    assert {"baseline", "demo", "seq4096", "tiny"} <= set(recipe_names())


def test_a_recipe_is_found_by_name_and_by_path(tmp_path, monkeypatch):
    path = write(tmp_path, "")
    assert find_recipe(path) == path
    assert find_recipe("tiny").name == "tiny.toml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert find_recipe("tiny").is_file()


@pytest.mark.parametrize("name", ["nosuch", "recipes/nosuch.toml", "../recipes/tiny", ""])
def test_an_unknown_recipe_lists_the_known_ones(name):
    with pytest.raises(ConfigError, match=", ".join(recipe_names())):
        find_recipe(name)


def test_what_differs_from_the_defaults_is_enough_to_make_a_configuration_again():
    config = ModelConfig(layers=3, value_embedding_layers=(1,), value_embedding_width=8)
    assert non_default(ModelConfig()) == {}
    assert non_default(config) == {
        "layers": 3,
        "value_embedding_layers": [1],
        "value_embedding_width": 8,
    }
    assert from_dict(ModelConfig, non_default(config)) == config


@pytest.mark.parametrize(
    "text",
    ["[model]\nwidth=1099511627776", "[model]\nlayers=4000\nwidth=524288\nheads=8"],
)
def test_a_recipe_that_no_memory_holds_is_refused(text, tmp_path, capsys):
    path = tmp_path / "huge.toml"
    path.write_text(text)
    assert invoke("train", "--recipe", str(path), "--plan") == 2
    assert "bytes of weights in its matrices alone" in capsys.readouterr().err
    path.write_text("[model]\nloops=4611686018427387904\nloop_layers=1")
    assert invoke("train", "--recipe", str(path), "--plan") == 2
    assert "4,096 are the most" in capsys.readouterr().err


def test_the_page_of_all_keys_is_up_to_date():
    path = Path(__file__).parent.parent / "docs" / "recipe.py"
    spec = importlib.util.spec_from_file_location("recipe_page", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    page = made.page()
    assert made.PAGE.read_text(encoding="utf-8") == page, "run: python docs/recipe.py"
    for table, values in to_dict(Recipe()).items():
        assert f"## [{table}]" in page
        assert all(f"| `{key}` |" in page for key in values)
    assert all(f"| `{name}` |" in page for name in recipe_names())
    assert "|  |" not in page, "a key without a sentence"
