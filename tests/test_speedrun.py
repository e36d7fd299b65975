"""The speedrun's model, its windows and its recipes, and one that is trained, packed and read."""

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import reference_speedrun
import torch
from golf import randomized
from torch.nn.attention.flex_attention import flex_attention
from worlds import CPU, corpus, folder, invoke, shards, tiny

import gptpack
from gptpack.calibration.collect import collect
from gptpack.contest.script import make_script
from gptpack.errors import ConfigError
from gptpack.families.golf import windows
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT, model_of
from gptpack.families.golf.masks import document_ids
from gptpack.families.golf.speedrun import Speedrun
from gptpack.families.golf.stages import stages
from gptpack.training.checkpoint import load_checkpoint
from gptpack.training.loop import Run, train
from gptpack.training.optimizers import _roles
from gptpack.training.recipe import load_recipe
from gptpack.training.schedules import scheduled, stage_at
from gptpack.training.stepper import Stepper

SMALL = {
    "architecture": "speedrun",
    "vocab": 40,
    "layers": 4,
    "width": 24,
    "heads": 4,
    "kv_heads": 4,
    "mlp_hidden": 20,
    "context": 16,
    "tied_embedding": False,
    "document_mask": True,
    "rope_dims": 4,
    "windows": (2, 5),
    "short_windows": (1, 3),
    "long_window_layers": (0, 3),
}
LATER = {
    "attention_free_layers": (0,),
    "mlp_free_layers": (0,),
    "attention_gate_inputs": 7,
    "smear_gate": True,
    "skip_gates": True,
    "window_yarn": True,
    "value_tables": 2,
}
PARTS = {
    "plain": {},
    "value tables": {"value_tables": 2},
    "a table for all": {"value_tables": 1, "layers": 2, "long_window_layers": (1,)},
    "no attention": {"attention_free_layers": (2,)},
    "no first MLP": {"mlp_free_layers": (0,)},
    "attention gate": {"attention_gate_inputs": 7},
    "smear": {"smear_gate": True},
    "skip gates": {"skip_gates": True},
    "yarn": {"window_yarn": True},
    "short windows that shrink": {"short_windows": (2, 1)},
    "shared heads": {"kv_heads": 2, "value_tables": 1},
    "all channels turn": {"rope_dims": 0},
    "later": LATER,
}


def some(**settings) -> Speedrun:
    """A model none of whose parts is zero or the identity."""
    model = randomized(ModelConfig(**{**SMALL, **settings}))
    assert isinstance(model, Speedrun)
    return model


def some_tokens(length: int = 12) -> torch.Tensor:
    tokens = torch.randint(2, 40, (2, length + 1), generator=torch.Generator().manual_seed(1))
    tokens[0, 4] = tokens[1, 0] = tokens[1, 9] = 1
    return tokens


# the model


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("stage", [0, 1])
def test_the_model_equals_its_slow_twin_in_each_stage(part, stage):
    model = some(**PARTS[part]).double()
    model.compute_dtype = torch.float64
    model.use_stage(stage)
    tokens = some_tokens()
    losses = model.token_losses(tokens[:, :-1], tokens[:, 1:]).detach().numpy()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    for row, found in zip(tokens.numpy(), losses, strict=True):
        slow = reference_speedrun.token_losses(
            model.config, stages(model.config)[stage], weights, row[:-1], row[1:]
        )
        np.testing.assert_allclose(found, slow, rtol=2e-5)


@pytest.mark.parametrize("backend", ["math", "flex"])
def test_a_stage_reaches_a_compiled_model_and_compiles_nothing_anew(backend):
    model = some(**LATER)
    graphs = []

    def counting(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=counting)
    tokens, found = torch.cat([some_tokens(149)] * 2, 1), []
    with torch.no_grad():
        for stage in (0, 1, 0):
            model.use_stage(stage)
            wanted = model(tokens[:, :-1], tokens[:, 1:])
            model.backend = backend
            found.append(float(compiled(tokens[:, :-1], tokens[:, 1:])))
            model.backend = "math"
            assert found[-1] == pytest.approx(float(wanted))
    assert found[0] == found[2] != found[1]
    assert len(graphs) == 1


def test_a_document_sees_nothing_of_the_one_before_it():
    model = some(**LATER)
    tokens = torch.tensor([[5, 6, 7, 1, 8, 9, 10, 11]])
    other = tokens.clone()
    other[0, :3] += 20
    one, two = (model.token_losses(t, torch.full_like(t, 3))[0] for t in (tokens, other))
    assert torch.equal(one[3:], two[3:])
    assert not torch.equal(one[:3], two[:3])


def test_what_a_prompt_is_read_in_pieces_for_is_what_it_is_read_at_once_for():
    model = some(**LATER).eval()
    tokens = some_tokens()[:, :12]
    with torch.no_grad():
        whole = model.logits(model.hidden(tokens))
        read = model.reader()
        for start, stop in ((0, 5), (5, 6), (6, 9), (9, 10), (10, 12)):
            torch.testing.assert_close(read(tokens[:, start:stop]), whole[:, stop - 1])


def test_losses_without_gradients_are_the_same_in_pieces(monkeypatch):
    model = some()
    tokens = some_tokens()
    whole = model.token_losses(tokens[:, :-1], tokens[:, 1:])
    monkeypatch.setattr("gptpack.families.golf.speedrun.MOST_LOGITS", 5 * 2 * 40)
    with torch.no_grad():
        parts = model.token_losses(tokens[:, :-1], tokens[:, 1:])
        few = model.token_losses(tokens[:, :-1], tokens[:, -3:])
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(few, whole[:, -3:])


def test_a_model_begins_with_uniform_logits_and_half_the_usual_matrices():
    model = model_of(ModelConfig(**SMALL), seed=0)
    tokens = some_tokens()
    losses = model.token_losses(tokens[:, :-1], tokens[:, 1:])
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(40)))
    matrix = model.blocks[1].mlp.fc.weight.detach()
    assert float(matrix.abs().max()) <= 0.5 * 3**0.5 * 24**-0.5
    assert float(matrix.std()) == pytest.approx(0.5 * 24**-0.5, rel=0.1)


def test_tables_learn_as_embeddings_do():
    model = some(value_tables=2)
    matrices, embeddings, head, scalars = _roles(dict(model.named_parameters()))
    assert [*embeddings] == ["tok_emb.weight", "value_tables.0.weight", "value_tables.1.weight"]
    assert [*head] == ["lm_head.weight"]
    assert len(matrices) == 4 * 6
    assert all(each.ndim < 2 for each in scalars.values())
    assert [*model.lookups()] == [*embeddings]
    assert model.tables() == []


def test_rows_of_tables_are_counted_in_all_windows_like_the_embeddings():
    model = some(value_tables=2)
    tokens = torch.cat([some_tokens(15), some_tokens(15) + 5]) % 40
    found = collect(model, tokens, CPU, fisher_windows=4, batch=2, seed=0).sensitivities
    used = torch.bincount(tokens.flatten(), minlength=40) / tokens.numel()
    for name in model.lookups():
        np.testing.assert_allclose(found[name].row_weight, used)


# attention within windows


def dense(q, k, v, ids, window):
    """Softmax attention by one mask of all pairs."""
    place = torch.arange(k.shape[1])
    apart = place[-q.shape[1] :, None] - place[None, :]
    allowed = (apart >= 0) & (apart < window)
    allowed = allowed & (ids[:, -q.shape[1] :, None] == ids[:, None, :])
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[3] ** 0.5
    p = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", p, v)


def heads_and_documents(length, heads=2, kv_heads=2):
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(0, 60, (2, length), generator=generator)
    shapes = ((2, length, n, 16) for n in (heads, kv_heads, kv_heads))
    return tokens, [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("length", [1, 5, 128, 300])
@pytest.mark.parametrize("window", [1, 7, 129, 500])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_chunks_of_queries_attend_as_all_at_once(monkeypatch, length, window, kv_heads):
    monkeypatch.setattr(windows, "CHUNK", 64)
    tokens, (q, k, v) = heads_and_documents(length, kv_heads=kv_heads)
    tensors = [x.double().requires_grad_() for x in (q, k, v)]
    # a stage's window is smaller than the bound that the chunks are cut by
    over = windows.Window(document_ids(tokens, 0), torch.tensor(window), window + 50)
    found, wanted = windows.attend_within(*tensors, over), dense(*tensors, over.ids, window)
    torch.testing.assert_close(found, wanted)
    dy = torch.randn_like(wanted)
    for one, two in zip(
        torch.autograd.grad(found, tensors, dy),
        torch.autograd.grad(wanted, tensors, dy),
        strict=True,
    ):
        torch.testing.assert_close(one, two)
    if length > 5:
        late = windows.attend_within(q[:, -3:], k, v, over)
        torch.testing.assert_close(late, wanted[:, -3:].float())


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("length", [100, 128, 300, 1280])
@pytest.mark.parametrize("window", [1, 127, 128, 129, 257, 400, 2000])
def test_blocks_for_flex_attention_are_the_same_mask(length, window):
    """Uncompiled, FlexAttention asks the mask alone; its kernels read the listed blocks alone."""
    tokens, (q, k, v) = heads_and_documents(length)
    if length == 1280:
        # long documents, so that there are whole blocks within one
        tokens[tokens == 0] = 1
        tokens[:, [0, 300, 1024]] = 0
    ids = document_ids(tokens, 0)
    over = windows.Window(ids, torch.tensor(window), window)
    over = over._replace(blocks=windows.block_mask(ids, over.tokens))
    y = flex_attention(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=over.blocks)
    torch.testing.assert_close(y.transpose(1, 2), dense(q, k, v, over.ids, window))
    count = -(-length // 128)
    apart = torch.arange(length)[:, None] - torch.arange(length)[None]
    allowed = torch.zeros(2, 128 * count, 128 * count, dtype=torch.bool)
    allowed[:, :length, :length] = (apart >= 0) & (apart < window)
    allowed[:, :length, :length] &= over.ids[:, :, None] == over.ids[:, None, :]
    pairs = allowed.view(2, count, 128, count, 128).sum((2, 4))
    blocks = over.blocks
    full = listed(blocks.full_kv_num_blocks, blocks.full_kv_indices)
    partial = listed(blocks.kv_num_blocks, blocks.kv_indices)
    assert torch.equal(full, pairs == 128 * 128)
    assert torch.equal(partial, (pairs > 0) & ~full)
    assert full.any() == (length == 1280 and window > 255)
    for_keys = listed(blocks.full_q_num_blocks, blocks.full_q_indices)
    assert torch.equal(for_keys.mT, full)


def listed(counts, indices):
    """Whether each row of blocks lists each column, ``[B, N, N]``."""
    found = torch.zeros(indices[:, 0].shape, dtype=torch.bool)
    for batch, row in np.ndindex(*found.shape[:2]):
        found[batch, row, indices[batch, 0, row, : counts[batch, 0, row]].long()] = True
    return found


def test_documents_begin_where_flash_kernels_are_told():
    tokens = some_tokens(12)[:, :12]
    starts, over = windows.document_starts(tokens, 1)
    assert starts.tolist() == [0, 4, 12][: len(starts)]
    assert bool(over)
    tokens = torch.full((2, 200), 3)
    tokens[0, [0, 70]] = tokens[1, 199] = 1
    starts, over = windows.document_starts(tokens, 1)
    assert starts.dtype == torch.int32
    assert starts.tolist() == [0, 70, 200, 399, *[400] * 5]
    assert not over


def shares(q, k, starts, left):
    """Softmax of scores under the mask that flash kernels have, ``[H, Q, K]``; and their sums."""
    place = torch.arange(len(q))[:, None]
    document = (starts[None] <= place).sum(1)
    apart = place - place.T
    allowed = (apart >= 0) & (apart <= left) & (document[:, None] == document[None])
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1), scores.logsumexp(-1)


def as_fa4():
    """FlashAttention-4's two functions, which autograd does not look into."""

    def forward(q, k, v, *, cu_seqlens_q, window_size_left, window_size_right, **options):
        assert window_size_right == 0
        assert options["causal"]
        p, sums = shares(q, k, cu_seqlens_q, window_size_left)
        return torch.einsum("hqk,khd->qhd", p, v).contiguous(), sums

    def backward(q, k, v, y, dy, sums, *, cu_seqlens_q, window_size_left, dq, dk, dv, **options):
        p, again = shares(q, k, cu_seqlens_q, window_size_left)
        torch.testing.assert_close(again, sums)
        ds = p * (torch.einsum("qhd,khd->hqk", dy, v) - (dy * y).sum(-1).T[..., None])
        dq.copy_(torch.einsum("hqk,khd->qhd", ds, k) / q.shape[-1] ** 0.5)
        dk.copy_(torch.einsum("hqk,qhd->khd", ds, q) / q.shape[-1] ** 0.5)
        dv.copy_(torch.einsum("hqk,qhd->khd", p, dy))

    return forward, backward


def as_fa3(q, k, v, *, cu_seqlens_q, window_size, **options):
    """FlashAttention-3's function for documents in a row."""
    assert window_size[1] == 0
    assert options["max_seqlen_q"] == 100
    p, _ = shares(q, k, cu_seqlens_q, window_size[0])
    return torch.einsum("hqk,khd->qhd", p, v).contiguous()


@pytest.mark.parametrize("backend", ["fa4", "fa3"])
def test_flash_kernels_are_given_documents_and_windows(monkeypatch, backend):
    flash4 = pytest.importorskip("gptpack.families.golf.flash4")
    monkeypatch.setattr(flash4, "flash_attention_4", as_fa4)
    model = some(value_tables=1)
    tokens = torch.randint(2, 40, (2, 101), generator=torch.Generator().manual_seed(1))
    tokens[0, 50] = tokens[1, 0] = 1
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    found = {}
    for name in ("math", backend):
        model.backend, model.flash3 = name, as_fa3
        for stage in (0, 1, 0):
            model.use_stage(stage)
            model.zero_grad()
            loss = (model if name == "math" else compiled)(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
            found[name, stage] = {"loss": loss.detach(), **gradients}
    for stage in (0, 1):
        for name, wanted in found["math", stage].items():
            torch.testing.assert_close(found[backend, stage][name], wanted, rtol=1e-3, atol=1e-6)
    assert found["math", 0]["loss"] != found["math", 1]["loss"]
    crowded = torch.ones_like(tokens)
    assert model(crowded[:, :-1], crowded[:, 1:]).isnan()


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
@pytest.mark.parametrize("backend", ["flex", "fa4"])
def test_backends_agree_on_a_gpu(backend):
    if backend == "fa4":
        pytest.importorskip("flash_attn.cute.interface")
    settings = {"width": 256, "heads": 2, "kv_heads": 2, "rope_dims": 64, "context": 4096}
    settings |= {"windows": (200, 600), "short_windows": (128, 300), "value_tables": 1}
    model = some(**settings).to("cuda")
    tokens = torch.randint(2, 40, (1, 4097), generator=torch.Generator().manual_seed(1))
    tokens[0, [0, 100, 1500]] = 1
    tokens = tokens.to("cuda")
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    for stage in (0, 1):
        found = []
        model.use_stage(stage)
        for name in ("math", backend):
            model.use_attention(name)
            model.zero_grad()
            loss = (model if name == "math" else compiled)(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
            found.append((loss.detach(), gradient))
        (loss, gradient), (other, others) = found
        torch.testing.assert_close(other, loss, rtol=2e-2, atol=0)
        assert (others - gradient).norm() < 0.1 * gradient.norm()


# stages and schedules


def test_frequencies_and_gains_are_those_of_the_records():
    july, september = (load_recipe(f"speedrun-2025-{month}").model for month in ("07", "09"))
    wanted = [1024 ** (-i / 31) for i in range(32)]
    for config in (july, september):
        np.testing.assert_allclose(stages(config)[0].frequencies, wanted, rtol=1e-5)
    assert {stage.gain for stage in stages(july)} == {july.qk_gain}
    assert july.qk_gain / 128**0.5 == pytest.approx(0.12, abs=1e-6)
    # attention's scale before and after windows of 3, 7, 11 and 13 blocks
    scales = [stage.gain / 128**0.5 for stage in stages(september)]
    assert scales == pytest.approx([0.1, 0.1169, 0.1275, 0.1318], abs=5e-5)
    first, last = stages(september)[0].frequencies, stages(september)[-1].frequencies
    # a pair that turns 61 times within the first window keeps its pace, the slowest is interpolated
    assert last[0] == first[0]
    assert last[-1] == pytest.approx(first[-1] * 384 / 1664)


def test_windows_grow_in_blocks_as_in_the_record_of_july():
    recipe = load_recipe("speedrun-2025-07")
    for step in range(1, 1750):
        now = scheduled(step, 0.0, recipe.training, recipe.optimizer)
        blocks = math.ceil(1728 * step / 1750 / 128)
        exact = 1728 * step % (1750 * 128) == 0
        assert recipe.model.windows[now.window_stage] == 128 * (blocks + exact)
    assert all(
        short == max(128, long // 256 * 128)
        for long, short in zip(recipe.model.windows, recipe.model.short_windows, strict=True)
    )


def test_windows_of_september_have_three_stages_and_one_more_for_validation():
    recipe = load_recipe("speedrun-2025-09")
    found = [
        scheduled(step, 0.0, recipe.training, recipe.optimizer).window_stage
        for step in range(recipe.training.steps)
    ]
    assert [found.count(stage) for stage in range(4)] == [557, 557, 556, 0]
    assert some(**LATER).spans.tolist() == [5, 3]


def test_without_stages_and_at_the_end_windows_are_the_last_ones():
    assert stage_at(0.5, 0) == -1
    assert stage_at(1.0, 13.5) == 13
    assert stage_at(1.0, 3) == 2


@pytest.mark.parametrize(("month", "cooldown", "floor"), [("07", 0.45, 0.05), ("09", 0.5, 0.1)])
def test_rates_are_those_of_the_records(month, cooldown, floor):
    recipe = load_recipe(f"speedrun-2025-{month}")
    steps = recipe.training.steps
    for step in range(0, steps, 7):
        now = scheduled(step, 0.0, recipe.training, recipe.optimizer)
        left = min(1.0, (1 - step / steps) / cooldown)
        assert now.lr_multiplier == pytest.approx(left + (1 - left) * floor)
        warm = min(1.0, step / 300)
        assert now.momentum == pytest.approx((1 - warm) * 0.85 + warm * 0.95)


# recipes


@pytest.mark.parametrize(("month", "parameters"), [("07", 275_742_772), ("09", 268_665_615)])
def test_a_recipe_has_the_parameters_that_it_states(month, parameters):
    recipe = load_recipe(f"speedrun-2025-{month}")
    with torch.device("meta"):
        model = model_of(recipe.model, seed=None)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert recipe.model.least_weights() <= parameters
    text = (gptpack.training.recipe.FOLDER / f"speedrun-2025-{month}.toml").read_text()
    assert f"{parameters:,}" in text
    assert recipe.training.batch_tokens == 8 * recipe.model.context


WRONG = {
    "windows": {"windows": ()},
    "more short": {"short_windows": (1, 2, 3)},
    "short above long": {"short_windows": (3, 3)},
    "shrinking": {"windows": (5, 4)},
    "no window": {"short_windows": (0, 1)},
    "tied": {"tied_embedding": True},
    "unmasked": {"document_mask": False},
    "odd": {"layers": 3, "long_window_layers": (0,)},
    "tables": {"value_tables": 3},
    "twice": {"attention_free_layers": (1, 1)},
    "beyond": {"mlp_free_layers": (4,)},
    "not rising": {"long_window_layers": (3, 0)},
    "golf's parts": {"xsa_layers": 1},
    "golf's loops": {"loop_layers": 1, "loops": 1},
    "golf with windows": {"architecture": "golf"},
    "a narrow smear": {"width": 8, "heads": 2, "kv_heads": 2, "smear_gate": True},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_shape_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"speedrun|windows|layers|value_tables|smear"):
        ModelConfig(**{**SMALL, **WRONG[wrong]})


def test_settings_that_would_do_nothing_are_refused():
    with pytest.raises(ConfigError, match="window_stages=1 of the 0"):
        load_recipe(None, ["training.window_stages=1"])
    with pytest.raises(ConfigError, match="dropout"):
        load_recipe("speedrun-2025-07", ["training.dropout=0.1"])
    model = some()
    with pytest.raises(ConfigError, match="choose model"):
        model.use_rope("yarn", 64)
    assert model.use_rope("model", 64) == "as trained"
    assert model.use_attention("auto") == "math, windows and documents masked"


def test_golfs_models_and_their_headers_know_nothing_of_it():
    assert type(model_of(ModelConfig())) is GPT
    source = make_script({"lzma"}, artifact="model.gptpack").readable
    assert "golf.gpt'" in source
    assert "golf.speedrun'" not in source
    assert "golf.windows'" not in source


# a run


def as_overrides(settings) -> list[str]:
    """Settings of a model as --set has them."""
    return [
        f"model.{name}={json.dumps([*value] if isinstance(value, tuple) else value)}"
        for name, value in settings.items()
    ]


TRAINED = [
    *as_overrides({**SMALL, **LATER, "vocab": 64}),
    "training.batch_tokens=128",
    "training.window_stages=1.5",
    "training.lr_final=0.1",
    "data.loader=bos",
    "optimizer.adam_eps=1e-3",
]


def test_a_step_is_the_same_whatever_goes_through_at_once():
    recipe = tiny(*TRAINED, "training.steps=4")
    found = {}
    for tokens in (16, 32, 128):
        settings = replace(recipe.training, micro_batch_tokens=tokens)
        stepper = Stepper(replace(recipe, training=settings), shards(), CPU)
        assert stepper.micro_batch() == tokens // 16
        stepper.gradients(scheduled(0, 0.0, recipe.training, recipe.optimizer))
        found[tokens] = {name: p.grad for name, p in stepper.model.named_parameters()}
        stepper.batches.close()
    for name, gradient in found[128].items():
        for tokens in (16, 32):
            torch.testing.assert_close(found[tokens][name], gradient, rtol=1e-4, atol=1e-7)


def test_a_run_that_is_taken_up_again_ends_with_the_same_bits(tmp_path, monkeypatch):
    recipe = tiny(*TRAINED)
    whole = load_checkpoint(train(recipe, shards(), tmp_path / "whole", CPU).checkpoint)
    run = Run(Stepper(recipe, shards(), CPU), tmp_path / "cut")
    (tmp_path / "cut").mkdir()
    seen = []
    use_stage = Speedrun.use_stage
    monkeypatch.setattr(
        Speedrun, "use_stage", lambda model, index: (seen.append(index), use_stage(model, index))
    )
    for _ in range(5):
        run.stepper.update(0.0)
    run.save(0.0)
    run.stepper.batches.close()
    train(recipe, shards(), tmp_path / "cut", CPU, resume=True)
    found = load_checkpoint(tmp_path / "cut/checkpoint.pt").weights
    assert all(torch.equal(found[name], value) for name, value in whole.weights.items())
    # the model that goes on begins, as any, with the last stage
    assert seen == [0] * 5 + [-1] + [0] * 3 + [1] * 4


@cache
def trained():
    """A run on the small corpus, of a model with more rows than there are tokens."""
    output = folder("speedrun")
    overrides = [*TRAINED, "model.vocab=284", "training.steps=40", "training.warmdown_steps=20"]
    options = [word for each in overrides for word in ("--set", each)]
    recipe = output / "recipe.toml"
    recipe.write_text("[training]\nseconds = 0\nwarmdown_steps = 20\n", encoding="utf-8")
    words = ["--data", str(corpus().data), "--output", str(output / "run"), "--device", "cpu"]
    assert invoke("train", "--recipe", str(recipe), *words, *options) == 0
    packed = output / "m.gptpack"
    words = ["--delta", "3e-3", "--data", str(corpus().data), "-o", str(packed)]
    assert invoke("pack", str(output / "run/checkpoint.pt"), *words) == 0
    return output / "run", packed


def test_a_trained_model_packs_loads_and_scores_like_any_other(tmp_path, capsys):
    run, packed = trained()
    capsys.readouterr()
    scores = []
    for source in (run / "checkpoint.pt", packed):
        for more in ((), ("--context", "32"), ("--stride", "4")):
            words = ["--data", str(corpus().data), "--device", "cpu", "--json", *more]
            assert invoke("eval", str(source), *words) == 0
            scores.append(json.loads(capsys.readouterr().out)["plain"])
    exact, _, _, coarse, _, _ = scores
    assert exact["nats_per_token"] < math.log(280) - 1
    assert abs(coarse["bpb"] - exact["bpb"]) < 0.02 * exact["bpb"]
    loaded = gptpack.load(packed)
    assert isinstance(loaded.language_model, Speedrun)
    assert loaded.runnable().config.window_yarn
    methods = {tensor.name: tensor.method for tensor in gptpack.inspect(packed).tensors}
    assert methods["value_tables.0.weight"] == methods["tok_emb.weight"]


def test_a_packed_model_goes_on_with_a_text(capsys):
    _, packed = trained()
    words = ["--tokenizer", str(corpus().data / "tokenizer.model"), "--tokens", "12"]
    said = []
    for seed in ("1", "1", "2"):
        assert invoke("sample", str(packed), "--prompt", "the cat", "--seed", seed, *words) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_a_page_and_a_submission_say_that_they_cannot_take_it(tmp_path, capsys):
    run, packed = trained()
    tokenizer = str(corpus().data / "tokenizer.model")
    assert invoke("web", str(packed), "--tokenizer", tokenizer, "-o", str(tmp_path / "site")) == 2
    assert "architecture=speedrun, which the page cannot run" in capsys.readouterr().err
    words = ["--data", str(corpus().data), "--output", str(tmp_path / "sub")]
    about = ["--author", "a", "--github-id", "b", "--name", "c", "--date", "2026-11-30"]
    assert invoke("submission", f"1={packed}", *words, *about) == 2
    assert "not of architecture='golf'" in capsys.readouterr().err
    assert run.is_dir()
