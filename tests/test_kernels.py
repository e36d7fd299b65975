"""Kernels against float64, beside plain torch at the same precision.

On a CPU they run in Triton's interpreter, which is right for float32 and float16 only; on CUDA the
tests marked `gpu` run them as compiled, in bfloat16 as well.
"""

import sys

import kernel_cases
import pytest
import reference_kernels
import torch
from kernel_cases import Case, run_both_ways

from gptpack import kernel_choice
from gptpack.errors import ConfigError, MissingDependencyError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import model_of
from gptpack.kernel_choice import choose_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")
SETTINGS = [
    pytest.param("cpu", torch.float32, marks=interpreted, id="cpu-float32"),
    pytest.param("cpu", torch.float16, marks=interpreted, id="cpu-float16"),
    pytest.param("cuda", torch.float32, marks=pytest.mark.gpu, id="cuda-float32"),
    pytest.param("cuda", torch.float16, marks=pytest.mark.gpu, id="cuda-float16"),
    pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu, id="cuda-bfloat16"),
]
SMALL = kernel_cases.small_cases()
GOLF = kernel_cases.golf_cases()
EACH = list({case.name: case for case in SMALL}.values())


@pytest.fixture(autouse=True)
def kernels():
    """Their operators are registered by asking for them."""
    pytest.importorskip("triton")
    choose_kernels("on", CUDA if torch.cuda.is_available() else CPU)


FEW, DRAWS = 500, 32


def assert_accurate(case: Case, dtype: torch.dtype, device: str) -> None:
    """At most twice the error of torch.

    The error of a few numbers is luck: torch's of one number may well be 0. Such a case is drawn
    many times over, which makes one result of many numbers, and may be off by one unit in the last
    place: where the right answer is always a number of the format, torch's is always right.
    """
    few = max(x.numel() for x in case.inputs(dtype, device)) < FEW
    draws = [case.inputs(dtype, device, seed=seed) for seed in range(DRAWS if few else 1)]
    slack = torch.finfo(dtype).eps if few else 0.0
    for index, (ours, plain) in enumerate(kernel_cases.errors(case, *draws)):
        assert ours <= 2 * plain + slack, f"result {index} is off by {ours:.2e}, torch {plain:.2e}"


@pytest.mark.parametrize(("device", "dtype"), SETTINGS)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_results_and_gradients_are_as_accurate_as_torchs(case, device, dtype):
    assert_accurate(case, dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", GOLF, ids=str)
def test_results_at_the_shapes_of_training_are_as_accurate_as_torchs(case, dtype):
    assert_accurate(case, dtype, "cuda")


@pytest.mark.parametrize(("device", "dtype"), SETTINGS)
@pytest.mark.parametrize("case", EACH, ids=str)
def test_gaps_between_the_inputs_numbers_do_not_matter(case, device, dtype):
    inputs = case.inputs(dtype, device)
    dense = run_both_ways(case, inputs, kernels=True)
    spread = run_both_ways(case, [kernel_cases.strided(x) for x in inputs], kernels=True)
    for a, b in zip(dense, spread, strict=True):
        # torch's products of such inputs may add up in another order
        assert kernel_cases.relative_error(a, b.double()) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("device", "dtype"), SETTINGS)
@pytest.mark.parametrize("case", EACH, ids=str)
def test_inputs_are_not_modified_and_gradients_may_be_broadcast(case, device, dtype):
    inputs = case.inputs(dtype, device)
    before = [x.detach().clone() for x in inputs]
    results = case.run(inputs, kernels=True)
    if wanted := [x for x in inputs if x.requires_grad]:
        one = sum(r.float().sum() for r in case.run(inputs, kernels=True))
        gradients = torch.autograd.grad(one, wanted)
        ones = [torch.ones_like(r) for r in results]
        again = torch.autograd.grad(results, wanted, ones)
        for found, expected in zip(gradients, again, strict=True):
            torch.testing.assert_close(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))


TWINS = [
    (
        kernel_cases.split_heads(2, 3, 4, 2, 6, 4, extra=True),
        lambda x, gain, cos, sin, extra: reference_kernels.split_heads(
            x, gain, cos, sin, extra, 4, 2
        ),
    ),
    (kernel_cases.remove_own_value(2, 3, 4, 2, 6), reference_kernels.remove_own_value),
    (
        kernel_cases.mlp(2, 3, 4, 5, 0.5),
        lambda x, up, down: reference_kernels.mlp(x, up, down, 0.5),
    ),
    (
        kernel_cases.mlp(2, 3, 4, 5, 0.0),
        lambda x, up, down: reference_kernels.mlp(x, up, down, 0.0),
    ),
    (
        kernel_cases.head_losses(2, 3, 4, 7),
        lambda hidden, head, targets: reference_kernels.head_losses(hidden, head, targets, 30.0),
    ),
]


@pytest.mark.parametrize(("case", "slow"), TWINS, ids=lambda value: str(value)[:20])
def test_what_kernels_are_measured_against_is_the_slow_twin(case, slow):
    inputs = kernel_cases.in_float64(case.inputs(torch.float32, "cpu"))
    fast = run_both_ways(case, inputs, kernels=False, run=case.exact)
    exact = run_both_ways(case, inputs, kernels=False, run=lambda xs, kernels: slow(*xs))
    for a, b in zip(fast, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("device", "dtype"), SETTINGS)
def test_an_ignored_target_has_no_loss_and_one_beyond_the_vocabulary_is_not_a_number(device, dtype):
    case = kernel_cases.head_losses(1, 6, 8, 12)
    hidden, head, targets = case.inputs(dtype, device)
    targets[0, 2], targets[0, 4] = -100, 12
    (losses,) = case.run([hidden, head, targets], kernels=True)
    assert losses[0, 2] == 0
    assert losses.isnan().tolist() == [[False] * 4 + [True, False]]
    (gradient,) = torch.autograd.grad(losses[0, :4].sum(), hidden)
    assert gradient[0, 2].abs().max() == 0
    assert gradient[0, 3].abs().max() > 0


@pytest.mark.parametrize(("device", "dtype"), SETTINGS)
def test_a_value_of_zeros_takes_nothing_away_and_has_no_gradient(device, dtype):
    case = kernel_cases.remove_own_value(1, 3, 4, 2, 8)
    y, v = case.inputs(dtype, device)
    with torch.no_grad():
        v[0, 1] = 0
    (left,) = case.run([y, v], kernels=True)
    assert torch.equal(left[0, 1], y[0, 1])
    for inputs, kernels in (([y, v], True), (kernel_cases.in_float64([y, v]), False)):
        gradient = run_both_ways(case, inputs, kernels=kernels)[2]
        assert gradient[0, 1].abs().max() == 0
        assert gradient[0, 0].abs().max() > 0


@pytest.mark.parametrize(("device", "dtype"), SETTINGS)
def test_without_gradients_losses_and_mlp_are_the_same(device, dtype):
    for case in (kernel_cases.head_losses(2, 5, 8, 12), kernel_cases.mlp(2, 5, 8, 12, 0.5)):
        inputs = case.inputs(dtype, device)
        with torch.no_grad():
            (alone,) = case.run(inputs, kernels=True)
        (recorded,) = case.run(inputs, kernels=True)
        assert torch.equal(alone, recorded)
        assert not alone.requires_grad


@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
@pytest.mark.parametrize(("device", "dtype"), SETTINGS)
@pytest.mark.parametrize("case", EACH, ids=str)
def test_torch_compile_takes_an_operation_as_one_graph(case, device, dtype):
    inputs = case.inputs(dtype, device)
    backend = "aot_eager" if device == "cpu" else "inductor"
    torch.compiler.reset()

    @torch.compile(fullgraph=True, dynamic=False, backend=backend)
    def run(inputs, kernels):
        return tuple(2 * result for result in case.run(inputs, kernels=kernels))

    def eager(inputs, kernels):
        return tuple(2 * result for result in case.run(inputs, kernels=kernels))

    found = run_both_ways(case, inputs, kernels=True, run=run)
    expected = run_both_ways(case, inputs, kernels=True, run=eager)
    for a, b in zip(found, expected, strict=True):
        # products may be rounded elsewhere when compiled
        torch.testing.assert_close(a, b, rtol=4 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("case", GOLF, ids=str)
def test_ten_runs_agree_to_the_bit(case):
    inputs = case.inputs(torch.bfloat16, "cuda")
    first = run_both_ways(case, inputs, kernels=True)
    for _ in range(9):
        again = run_both_ways(case, inputs, kernels=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


EVERYTHING = {
    "vocab": 40,
    "layers": 3,
    "width": 24,
    "heads": 4,
    "kv_heads": 2,
    "mlp_hidden": 40,
    "context": 8,
    "activation": "leaky_relu2",
    "xsa_layers": 3,
    "rope_dims": 4,
    "ln_scale": True,
    "value_embedding_layers": (1,),
    "value_embedding_width": 6,
}
SPEEDRUN = {
    "architecture": "speedrun",
    "vocab": 60,
    "layers": 2,
    "width": 24,
    "heads": 4,
    "kv_heads": 4,
    "mlp_hidden": 40,
    "context": 8,
    "tied_embedding": False,
    "document_mask": True,
    "rope_dims": 4,
    "windows": (5,),
    "short_windows": (3,),
    "long_window_layers": (1,),
    "value_tables": 1,
    "attention_gate_inputs": 6,
    "window_yarn": True,
}


def trained(config: ModelConfig, device: str, dtype: torch.dtype, kernels: str) -> list:
    """Token losses and gradients of a model none of whose parts is zero or the identity."""
    model = model_of(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model = model.to(device)
    if dtype == torch.float64:
        model = model.double()
        model.use_attention("math")
    model.compute_dtype = dtype
    model.use_kernels(kernels)
    tokens = torch.randint(config.vocab, (2, config.context + 1), generator=generator).to(device)
    losses = model.token_losses(tokens[:, :-1], tokens[:, 1:])
    (losses.mean() * 10).backward()
    return [losses.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
@pytest.mark.parametrize(("device", "dtype"), [SETTINGS[0], SETTINGS[2], SETTINGS[4]])
@pytest.mark.parametrize(
    "settings",
    [{**EVERYTHING, "activation": "relu2"}, EVERYTHING, SPEEDRUN],
    ids=["relu2", "leaky_relu2", "speedrun"],
)
def test_a_model_trains_as_accurately_with_kernels_as_without(settings, device, dtype):
    larger = {"width": 256, "context": 64, "mlp_hidden": 384} if device == "cuda" else {}
    config = ModelConfig(**{**settings, **larger})
    exact = trained(config, device, torch.float64, "off")
    plain = trained(config, device, dtype, "off")
    ours = trained(config, device, dtype, "on")
    total = [
        sum(float((a.double() - b.double()).square().sum()) for a, b in zip(x, exact, strict=True))
        for x in (ours, plain)
    ]
    assert total[0] <= 4 * total[1]
    for found, usual, right in zip(ours, plain, exact, strict=True):
        off = kernel_cases.relative_error(found, right.double())
        slack = 8 * torch.finfo(dtype).eps if right.numel() < 500 else 0.0
        assert off <= 3 * kernel_cases.relative_error(usual, right.double()) + slack


def test_kernels_are_chosen_by_name_or_not_at_all(monkeypatch):
    import triton

    with pytest.raises(ConfigError, match="kernels 'fast': choose auto, on, off"):
        choose_kernels("fast", CPU)
    assert choose_kernels("off", CUDA) == "off"
    assert choose_kernels("auto", CPU) == "off"
    if not torch.cuda.is_available():
        assert choose_kernels("on", CPU) == "on (Triton's interpreter)"
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(MissingDependencyError, match="a cpu device has no Triton; use auto or off"):
        choose_kernels("on", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(MissingDependencyError, match=r"compute capability 7\.5, needed 8\.0"):
        choose_kernels("on", CUDA)
    assert "compute capability 7.5" in choose_kernels("auto", CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernel_choice, "MODULES", ("nosuchmodule",))
    assert choose_kernels("auto", CUDA).startswith("off (they cannot be imported: No module")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gptpack\[triton\]'"):
        choose_kernels("on", CUDA)
    assert choose_kernels("auto", CUDA).startswith("off (Triton is not installed")


@pytest.mark.gpu
def test_auto_takes_kernels_on_cuda_and_says_what_they_run_by():
    assert choose_kernels("auto", CUDA).startswith("on (Triton ")
