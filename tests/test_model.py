"""The model against a slow float64 twin, part by part and whole."""

import sys
import types

import numpy as np
import pytest
import reference_model
import torch
from golf import PARTS, SMALL, randomized

from gptpack import ops
from gptpack.errors import ConfigError, MissingDependencyError
from gptpack.families.golf.attention import choose_backend
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.families.golf.layers import BigramHash
from gptpack.families.golf.rotary import rotary_tables
from gptpack.families.language_model import state_problem


@pytest.mark.parametrize("part", PARTS)
def test_the_model_equals_its_slow_twin(part):
    config = ModelConfig(**{**SMALL, **PARTS[part]})
    model = randomized(config).double()
    model.compute_dtype = torch.float64
    tokens = torch.randint(2, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    tokens[0, 4] = config.bos
    losses = model.token_losses(tokens[:, :-1], tokens[:, 1:]).detach().numpy()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    for row in range(2):
        x, y = tokens[row, :-1].numpy(), tokens[row, 1:].numpy()
        slow = reference_model.token_losses(config, weights, x, y)
        # cosines are tabulated in float32; the losses themselves are float32
        np.testing.assert_allclose(losses[row], slow, rtol=2e-5)


def test_layers_of_a_recurrence_run_once_until_it_is_switched_on():
    config = ModelConfig(**{**SMALL, **PARTS["recurrence"]})
    assert config.layer_order() == (0, 1, 2, 1, 2, 1, 2, 3)
    assert config.layer_order(looped=False) == (0, 1, 2, 3)
    model = randomized(config).double()
    model.compute_dtype = torch.float64
    tokens = torch.randint(2, 40, (1, 9), generator=torch.Generator().manual_seed(1))
    x, y = tokens[:, :-1], tokens[:, 1:]
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    found = {}
    for looped in (True, False):
        model.looped = looped
        found[looped] = model.token_losses(x, y)[0].detach().numpy()
        slow = reference_model.token_losses(config, weights, x[0].numpy(), y[0].numpy(), looped)
        np.testing.assert_allclose(found[looped], slow, rtol=2e-5)
    assert np.abs(found[True] - found[False]).max() > 0.01


def test_switching_the_recurrence_on_reaches_a_compiled_model():
    """A switch that the compiler takes for a constant never turns: two records' QAT never ran."""
    model = randomized(ModelConfig(**{**SMALL, **PARTS["recurrence"]}))
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    tokens = torch.randint(2, 40, (1, 9), generator=torch.Generator().manual_seed(1))
    found = []
    for looped in (False, True, False):
        model.looped = looped
        with torch.no_grad():
            found.append(float(compiled(tokens[:, :-1], tokens[:, 1:])))
            assert found[-1] == pytest.approx(float(model(tokens[:, :-1], tokens[:, 1:])))
    assert found[0] == found[2] != found[1]


def test_a_document_sees_nothing_of_the_one_before_it():
    config = ModelConfig(**{**SMALL, **PARTS["all of the later parts"]})
    model = randomized(config)
    tokens = torch.tensor([[5, 6, 7, 1, 8, 9, 10, 11]])
    other = tokens.clone()
    other[0, :3] += 20
    after = (model.token_losses(t, torch.full_like(t, 3))[0] for t in (tokens, other))
    one, two = after
    assert torch.equal(one[3:], two[3:])
    assert not torch.equal(one[:3], two[:3])


def test_orthogonal_weights_are_orthogonal_and_follow_from_the_seed():
    config = ModelConfig(**SMALL, orthogonal_init=True)
    one, two = (GPT(config, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for name in ("blocks.0.attn.c_q.weight", "blocks.1.mlp.fc.weight", "blocks.2.attn.c_k.weight"):
        matrix = one[name] if one[name].shape[0] <= one[name].shape[1] else one[name].T
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5, rtol=0)
    assert not one["blocks.0.mlp.proj.weight"].any()


@pytest.mark.parametrize("part", ["baseline", "all", "all of the later parts"])
def test_a_loss_does_not_depend_on_later_tokens(part):
    model = randomized(ModelConfig(**{**SMALL, **PARTS[part]}))
    tokens = torch.randint(2, 40, (1, 9), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[0, 6:] = (tokens[0, 6:] + 7) % 40
    before = model.token_losses(tokens[:, :-1], tokens[:, 1:])
    after = model.token_losses(changed[:, :-1], changed[:, 1:])
    assert torch.equal(before[0, :5], after[0, :5])
    assert not torch.equal(before[0, 6:], after[0, 6:])


def test_the_smear_gate_does_not_reach_over_a_documents_start():
    for across in (False, True):
        config = ModelConfig(**SMALL, smear_gate=True, smear_across_documents=across)
        smear = randomized(config).smear
        tokens = torch.tensor([[1, 5, 1, 6]])
        x = torch.randn(1, 4, 24)
        other = x.clone()
        other[0, 1] += 1
        moved = smear(other, tokens)[0, 2] - smear(x, tokens)[0, 2]
        assert bool(moved.abs().max() > 0) is across


def test_bigram_rows_are_the_formula_for_every_pair_of_tokens():
    table = BigramHash(2816, 4, 4)
    tokens = torch.randint(0, 1024, (1, 500))
    pairs = zip(tokens[0, :-1].tolist(), tokens[0, 1:].tolist(), strict=True)
    rows = [2815] + [((36313 * b) ^ (27191 * a)) % 2815 for a, b in pairs]
    assert table.hashes(tokens)[0].tolist() == rows


def test_xsa_leaves_nothing_along_the_own_value():
    y, v = torch.randn(2, 5, 6, 8), torch.randn(2, 5, 3, 8)
    left = ops.remove_own_value(y, v, kernels=False).view(2, 5, 3, 2, 8)
    assert (left * v.unsqueeze(3)).sum(-1).abs().max() < 1e-5


def test_initial_weights_follow_from_the_seed_alone():
    a, b, c = (GPT(ModelConfig(**SMALL), seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["tok_emb.weight"], c["tok_emb.weight"])


def test_an_untrained_model_predicts_uniformly():
    model = GPT(ModelConfig(**SMALL, tied_embedding=False))
    tokens = torch.randint(0, 40, (2, 9))
    losses = model.token_losses(tokens[:, :-1], tokens[:, 1:])
    assert torch.allclose(losses, torch.full_like(losses, np.log(40)))


def test_every_problem_of_a_state_is_named():
    model = GPT(ModelConfig(**SMALL))
    good = model.state_dict()
    assert state_problem(model, good) == ""
    assert "missing skip_weights" in state_problem(
        model, {name: value for name, value in good.items() if name != "skip_weights"}
    )
    assert "unexpected more" in state_problem(model, {**good, "more": torch.ones(1)})
    assert "has shape (2,), needed (1, 24)" in state_problem(
        model, {**good, "skip_weights": torch.ones(2)}
    )
    broken = {**good, "skip_weights": torch.full((1, 24), torch.nan)}
    assert "not finite: skip_weights" in state_problem(model, broken)


def test_a_named_backend_that_is_missing_raises():
    with pytest.raises(MissingDependencyError, match="needs a CUDA device"):
        choose_backend("cudnn", torch.device("cpu"))
    with pytest.raises(ConfigError, match="attention backend 'fast'"):
        choose_backend("fast", torch.device("cpu"))
    assert choose_backend("auto", torch.device("cpu")) == "flash"
    with pytest.raises(ConfigError, match=r"document_mask is FlexAttention's on CUDA; use flex"):
        choose_backend("fa3", torch.device("cuda"), masked=True)
    with pytest.raises(ConfigError, match=r"for model\.document_mask"):
        choose_backend("flex", torch.device("cuda"))
    assert choose_backend("auto", torch.device("cuda"), masked=True) == "flex"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("last", [None, 3])
@pytest.mark.parametrize("name", ["flash", "math"])
def test_the_backend_that_is_named_is_the_one_that_runs(name, last, masked):
    model = GPT(ModelConfig(**SMALL, document_mask=masked))
    assert model.use_attention(name) == (f"{name}, documents masked" if masked else name)
    with torch.profiler.profile() as profile:
        model.hidden(torch.randint(0, 40, (2, 9)), last=last)
    ran = {event.key for event in profile.key_averages()}
    assert ("aten::_scaled_dot_product_attention_math" in ran) is (name == "math")
    assert ("aten::_scaled_dot_product_flash_attention_for_cpu" in ran) is (name == "flash")


def test_flash_attention_3_comes_from_the_hub_only_by_name(monkeypatch):
    from gptpack.families.golf import attention

    def attend_slowly(q, k, v, causal):
        assert causal
        return attention.attend(q, k, v, "math")

    calls = []

    def get_kernel(name, version):
        calls.append((name, version))
        return types.SimpleNamespace(flash_attn_func=attend_slowly)

    cuda = types.SimpleNamespace(type="cuda")
    attention.flash_attention_3.cache_clear()
    monkeypatch.setitem(sys.modules, "kernels", types.SimpleNamespace(get_kernel=get_kernel))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert choose_backend("auto", cuda) in ("cudnn", "flash")
    assert calls == []
    assert choose_backend("fa3", cuda) == "fa3"
    assert calls == [(attention.FA3_KERNEL, 1)]
    q, k, v = torch.randn(1, 5, 4, 6), torch.randn(1, 5, 2, 6), torch.randn(1, 5, 2, 6)
    torch.testing.assert_close(
        attention.attend(q, k, v, "fa3", fa3=attention.flash_attention_3()),
        attention.attend(q, k, v, "flash"),
        rtol=1e-4,
        atol=1e-5,
    )
    attention.flash_attention_3.cache_clear()


def test_flash_attention_3_is_found_before_anything_is_compiled(monkeypatch):
    from gptpack.families.golf import attention

    torch._dynamo.reset()
    model = randomized(ModelConfig(**SMALL))
    tokens = torch.randint(0, 40, (2, 9))
    usual = model(tokens[:, :-1], tokens[:, 1:])

    def found():
        assert not torch.compiler.is_compiling()
        return lambda q, k, v, causal: attention.attend(q, k, v, "math")

    backend = "gptpack.families.golf.gpt.choose_backend"
    monkeypatch.setattr(backend, lambda *_args, **_keywords: "fa3")
    monkeypatch.setattr("gptpack.families.golf.gpt.flash_attention_3", found)
    assert model.use_attention("fa3") == "fa3"
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(tokens[:, :-1], tokens[:, 1:]), usual)


@pytest.mark.parametrize("what", ["no package", "no build"])
def test_flash_attention_3_that_cannot_be_had_is_one_line(monkeypatch, what):
    from gptpack.families.golf import attention

    def get_kernel(name, version):
        raise FileNotFoundError(f"no build variant of {name}")

    absent = None if what == "no package" else types.SimpleNamespace(get_kernel=get_kernel)
    attention.flash_attention_3.cache_clear()
    monkeypatch.setitem(sys.modules, "kernels", absent)
    with pytest.raises(MissingDependencyError, match=r"'fa3': .*use auto$"):
        choose_backend("fa3", types.SimpleNamespace(type="cuda"))


@pytest.mark.parametrize("what", ["no package", "not ours", "another version"])
def test_flash_attention_4_that_cannot_be_had_is_one_line(monkeypatch, what):
    from gptpack.families.golf import flash4

    cuda = types.SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    flash4.flash_attention_4.cache_clear()
    if what == "another version":
        name = "flash_attn.cute.interface"
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        with pytest.raises(MissingDependencyError, match=r"'fa4': .*does not load: .*use auto$"):
            choose_backend("fa4", cuda)
        return
    # FlashAttention-2 has the name flash_attn too
    older = None if what == "no package" else types.ModuleType("flash_attn")
    monkeypatch.setitem(sys.modules, "flash_attn", older)
    with pytest.raises(MissingDependencyError, match=r"'fa4': .*pip install 'gptpack\[fa4\]'"):
        choose_backend("fa4", cuda)
    with pytest.raises(MissingDependencyError, match="needs a CUDA device"):
        choose_backend("fa4", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 9))
    with pytest.raises(MissingDependencyError, match=r"capability 8\.9, needed 9\.0"):
        choose_backend("fa4", cuda)


@pytest.fixture
def slow_flash_attention_4(monkeypatch):
    """FlashAttention-4's two passes as plain float32 sums; returns what they were asked for."""
    from gptpack.families.golf import attention, flash4

    asked = []

    def scores(q, k):
        queries, keys, heads = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
        k = k.repeat_interleave(heads, dim=2)
        products = torch.einsum("bshd,bthd->bhst", q, k) * q.shape[-1] ** -0.5
        sees = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        return products.masked_fill(~sees, -torch.inf)

    def forward(q, k, v, *, causal, return_lse):
        assert causal
        assert return_lse
        sums = scores(q, k).logsumexp(-1)
        return attention.attend(q, k, v, "math").contiguous(), sums, None, None, None

    def backward(q, k, v, y, dy, sums, *, causal, deterministic, dq, dk, dv):
        assert causal
        asked.append(deterministic)
        heads = q.shape[2] // k.shape[2]
        share = (scores(q, k) - sums.unsqueeze(-1)).exp()
        values = v.repeat_interleave(heads, dim=2)
        dshare = torch.einsum("bshd,bthd->bhst", dy, values)
        change = share * (dshare - torch.einsum("bshd,bshd->bhs", dy, y).unsqueeze(-1))
        change = change * q.shape[-1] ** -0.5
        dq.copy_(torch.einsum("bhst,bthd->bshd", change, k.repeat_interleave(heads, dim=2)))
        for out, left, right in ((dk, change, q), (dv, share, dy)):
            each = torch.einsum("bhst,bshd->bthd", left, right)
            out.copy_(each.unflatten(2, (-1, heads)).sum(3))

    found = "flash_attn.cute.interface"
    interface = types.SimpleNamespace(_flash_attn_fwd=forward, _flash_attn_bwd=backward)
    flash4.flash_attention_4.cache_clear()
    monkeypatch.setitem(sys.modules, found, interface)
    yield asked
    flash4.flash_attention_4.cache_clear()


@pytest.mark.parametrize("queries", [1, 3, 5])
@pytest.mark.parametrize("whole", [True, False])
def test_flash_attention_4_is_an_operator_that_torch_can_check(
    slow_flash_attention_4, queries, whole
):
    generator = torch.Generator().manual_seed(1)
    sizes = [(2, queries, 4, 6), (2, 5, 2, 6), (2, 5, 2, 6)]
    # whole tensors, or every second head of larger ones
    step = 1 if whole else 2
    q, k, v = (
        torch.randn(b, t, h * step, d, generator=generator)[:, :, ::step].requires_grad_()
        for b, t, h, d in sizes
    )
    torch.library.opcheck(torch.ops.gptpack.fa4.default, (q, k, v))
    y, sums = torch.ops.gptpack.fa4(q, k, v)
    assert sums.shape == (2, 4, queries)
    assert not sums.requires_grad
    dy = torch.randn(y.shape, generator=generator)
    saved = [x.detach() for x in (dy, q, k, v, y, sums)]
    torch.library.opcheck(torch.ops.gptpack.fa4_backward.default, saved)


def test_flash_attention_4_is_the_same_attention_and_one_graph(slow_flash_attention_4, monkeypatch):
    torch._dynamo.reset()
    model = randomized(ModelConfig(**SMALL))
    tokens = torch.randint(0, 40, (2, 9))
    found = []
    for name in ("math", "fa4", "compiled"):
        if name != "math":
            # as if there were a device for it
            backend = "gptpack.families.golf.gpt.choose_backend"
            monkeypatch.setattr(backend, lambda *_args, **_keywords: "fa4")
        assert model.use_attention(name) == ("math" if name == "math" else "fa4")
        loss = model
        if name == "compiled":
            loss = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
        model.zero_grad()
        value = loss(tokens[:, :-1], tokens[:, 1:])
        value.backward()
        found.append([value.detach(), *(p.grad for p in model.parameters())])
    assert slow_flash_attention_4 == [False] * 2 * SMALL["layers"]
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_halved_contexts_are_those_of_windows_that_much_shorter():
    model = randomized(ModelConfig(**{**SMALL, "xsa_layers": 1}))
    tokens = torch.randint(0, SMALL["vocab"], (3, 32))
    whole = model.hidden(tokens)
    model.use_halvings(2)
    blocks = model.hidden(tokens)
    model.use_halvings(0)
    alone = model.hidden(tokens.view(12, 8)).view_as(blocks)
    torch.testing.assert_close(blocks, alone)
    torch.testing.assert_close(blocks[:, :8], whole[:, :8])
    assert not torch.allclose(blocks[:, 8:], whole[:, 8:])


def test_attention_backends_agree():
    model = randomized(ModelConfig(**SMALL))
    tokens = torch.randint(0, 40, (2, 9))
    losses = []
    for backend in ("flash", "math"):
        model.use_attention(backend)
        losses.append(model.token_losses(tokens[:, :-1], tokens[:, 1:]))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("last", [1, 3, 8, 9])
@pytest.mark.parametrize("part", PARTS)
def test_the_last_positions_alone_are_what_they_are_among_all(part, last):
    config = ModelConfig(**{**SMALL, **PARTS[part]})
    model = randomized(config).double()
    model.compute_dtype = torch.float64
    tokens = torch.randint(2, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    targets = torch.randint(2, 40, (2, 9), generator=torch.Generator().manual_seed(2))
    whole = model.hidden(tokens)
    torch.testing.assert_close(model.hidden(tokens, last=last), whole[:, -last:])
    losses = model.token_losses(tokens, targets)
    torch.testing.assert_close(model.token_losses(tokens, targets[:, -last:]), losses[:, -last:])


def test_the_last_positions_have_the_same_gradients():
    model = randomized(ModelConfig(**{**SMALL, **PARTS["all"]})).double()
    model.compute_dtype = torch.float64
    tokens = torch.randint(2, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    model.hidden(tokens)[:, -3:].square().sum().backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.hidden(tokens, last=3).square().sum().backward()
    for name, p in model.named_parameters():
        if name in whole:
            torch.testing.assert_close(p.grad, whole[name])


@pytest.mark.gpu
@pytest.mark.parametrize("part", ["baseline", "all"])
def test_the_last_positions_alone_are_as_good_in_bfloat16(part):
    model = randomized(ModelConfig(**{**SMALL, "width": 128, "context": 256, **PARTS[part]}))
    tokens = torch.randint(2, 40, (4, 256), generator=torch.Generator().manual_seed(1)).cuda()
    model.double().compute_dtype = torch.float64
    exact = model.cuda().hidden(tokens)[:, -64:]
    model.float().compute_dtype = None
    with torch.inference_mode():
        whole = (model.hidden(tokens)[:, -64:] - exact).abs().mean()
        alone = (model.hidden(tokens, last=64) - exact).abs().mean()
    assert alone < 2 * whole


def rotated(rope, length, dims):
    """Angles ``[T, dims / 2]`` of the tables, from their cosines and sines."""
    cos, sin = rotary_tables(length, dims, rope=rope, like=torch.zeros(1, dtype=torch.float64))
    return torch.atan2(sin, cos)[0, :, 0], torch.hypot(sin, cos)[0, :, 0]


@pytest.mark.parametrize("length", [4, 8, 32])
def test_the_models_own_rule_is_what_it_does_unasked(length):
    model = randomized(ModelConfig(**{**SMALL, **PARTS["ntk rope"]}))
    tokens = torch.randint(2, 40, (1, length), generator=torch.Generator().manual_seed(1))
    unasked = model.hidden(tokens)
    assert model.use_rope("model", length) == "model (ntk from 4)"
    assert torch.equal(model.hidden(tokens), unasked)
    # Asked for longer sequences, it no longer depends on the length of this one.
    model.use_rope("model", 64)
    assert not torch.allclose(model.hidden(tokens), unasked)


def test_positions_within_the_trained_context_are_as_trained():
    model = randomized(ModelConfig(**{**SMALL, **PARTS["ntk rope"]}))
    tokens = torch.randint(2, 40, (1, 8), generator=torch.Generator().manual_seed(1))
    trained = model.hidden(tokens)
    for scaling in ("none", "ntk", "yarn"):
        assert model.use_rope(scaling, 5) == "as trained"
        assert torch.equal(model.hidden(tokens), trained)


def test_longer_contexts_are_left_stretched_or_interpolated():
    config = ModelConfig(**{**SMALL, "width": 64, "heads": 1, "kv_heads": 1, "context": 64})
    model = GPT(config)
    assert model.use_rope("none", 256) == "none, trained at 64"
    plain, _ = rotated(model.rope, 2, 64)
    assert model.use_rope("ntk", 256) == "ntk, trained at 64"
    stretched, size = rotated(model.rope, 2, 64)
    # The fastest channel keeps its speed, the slowest is slowed by the whole factor.
    ratio = stretched[1] / plain[1]
    assert ratio[0] == pytest.approx(1)
    assert ratio[-1] == pytest.approx(1 / 4, rel=1e-4)
    assert torch.allclose(size, torch.ones(1, dtype=torch.float64))
    model.use_rope("yarn", 256)
    interpolated, size = rotated(model.rope, 2, 64)
    ratio = interpolated[1] / plain[1]
    # Even the fastest channel turns only 10 times in 64 positions.
    turns = 64 * 10000 ** (-torch.arange(0, 64, 2) / 64) / (2 * np.pi)
    kept = ((turns - 1) / 31).clamp(0, 1)
    torch.testing.assert_close(ratio, (kept + (1 - kept) / 4).double(), rtol=1e-4, atol=0)
    assert ratio[-1] == pytest.approx(1 / 4)
    assert size[1, 0] == pytest.approx(0.1 * np.log(4) + 1)


def test_another_scaling_is_an_error():
    with pytest.raises(ConfigError, match="choose model, none, ntk, yarn"):
        GPT(ModelConfig(**SMALL)).use_rope("linear", 16)


@pytest.mark.parametrize("last", [3, 9])
def test_the_model_is_one_graph_whatever_is_asked(last):
    model = randomized(ModelConfig(**{**SMALL, **PARTS["all"]}))
    tokens = torch.randint(2, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    losses = torch.compile(model.token_losses, backend="eager", fullgraph=True, dynamic=False)
    targets = tokens[:, -last:]
    with torch.inference_mode():
        torch.testing.assert_close(losses(tokens, targets), model.token_losses(tokens, targets))
