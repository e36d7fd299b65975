"""Orthogonalisation, Muon, Adam and weight decay, each against its slow twin; and their state."""

import dataclasses

import numpy as np
import pytest
import reference_optimizers as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import CPU, tiny

from gptpack.errors import CheckpointError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.ranks import Ranks
from gptpack.training.adam import Adam
from gptpack.training.decay import decay_cautiously
from gptpack.training.muon import Muon, even_out
from gptpack.training.optimizers import Optimizers
from gptpack.training.orthogonal import NEWTON_SCHULZ, POLAR_EXPRESS, orthogonalize, quintics
from gptpack.training.recipe import OptimizerConfig

SCALES = {"newton-schulz": (1.0, 1e-7), "polar-express": (1.02, 1e-6)}
"""What a matrix is divided by before the first iteration: a multiple of its norm, and a floor."""


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def twin(method: str, row_norm: bool = False):
    scale, floor = SCALES[method]
    return lambda matrix: reference.orthogonalized(
        matrix, quintics(method, 5), scale=scale, floor=floor, row_norm=row_norm
    )


# orthogonalisation


@pytest.mark.parametrize(
    ("method", "least", "wanted"),
    [
        # field notes on speedruns, section 2.2, where inputs are divided by 1.02
        ("newton-schulz", 1e-3, (0.462, 1.202)),
        ("newton-schulz", 1e-2, (0.682, 1.134)),
        ("polar-express", 1e-3, (0.847, 1.141)),
        ("polar-express", 1e-2, (0.859, 1.141)),
    ],
)
def test_singular_values_end_in_the_known_range(method, least, wanted):
    values = reference.mapped(np.geomspace(least, 1, 100_001) / 1.02, quintics(method, 5))
    assert (values.min(), values.max()) == pytest.approx(wanted, abs=6e-4)


@pytest.mark.parametrize("method", SCALES)
@pytest.mark.parametrize("row_norm", [False, True])
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 16), (1, 16, 4), (1, 1, 5), (2, 7, 1)])
def test_orthogonalising_maps_each_singular_value_and_nothing_else(method, row_norm, shape):
    matrices = drawn(*shape).double()
    kept = matrices.clone()
    found = orthogonalize(matrices, method=method, dtype=torch.float64, row_norm=row_norm)
    for matrix, result in zip(matrices, found, strict=True):
        wanted = twin(method, row_norm)(matrix.numpy())
        np.testing.assert_allclose(result.numpy(), wanted, rtol=1e-9, atol=1e-11)
    assert torch.equal(matrices, kept)


@pytest.mark.parametrize("method", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_near_the_twin(method, dtype):
    matrices = drawn(4, 24, 40)
    found = orthogonalize(matrices, method=method, dtype=dtype)
    assert found.dtype == dtype
    wanted = np.stack([twin(method)(matrix.numpy()) for matrix in matrices])
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    assert np.abs(found.float().numpy() - wanted).max() < tolerance


@pytest.mark.parametrize("method", SCALES)
@pytest.mark.parametrize("row_norm", [False, True])
def test_a_matrix_of_zeros_stays_one(method, row_norm):
    found = orthogonalize(torch.zeros(2, 4, 6), method=method, row_norm=row_norm)
    assert torch.equal(found, torch.zeros(2, 4, 6))


@pytest.mark.parametrize("method", SCALES)
@pytest.mark.parametrize("shape", [(3, 9, 20), (3, 20, 9), (5, 12, 12)])
def test_a_matrix_does_not_depend_on_its_batch(method, shape):
    matrices = drawn(*shape).double()
    together = orthogonalize(matrices, method=method, dtype=torch.float64)
    for index in range(len(matrices)):
        alone = orthogonalize(matrices[index : index + 1], method=method, dtype=torch.float64)
        torch.testing.assert_close(together[index], alone[0], rtol=1e-11, atol=1e-13)


def test_coefficients_are_one_polynomial_or_one_for_each_iteration():
    assert quintics("newton-schulz", 7) == (NEWTON_SCHULZ,) * 7
    assert quintics("polar-express", 5) == POLAR_EXPRESS
    assert quintics("polar-express", 2) == POLAR_EXPRESS[:2]


def test_polar_express_is_the_solution_of_its_minimax_problem():
    np.testing.assert_allclose(reference.polar_express(5), POLAR_EXPRESS, rtol=1e-13)


@settings(max_examples=50)
@given(low=st.floats(0.02, 0.8), shift=st.tuples(*[st.floats(-1e-2, 1e-2)] * 3))
def test_no_quintic_is_nearer_to_1_than_the_minimax_one(low, shift):
    values = np.linspace(low, 1, 20_001)
    best, error = reference.minimax_quintic(low, 1.0)
    assert np.abs(1 - reference.mapped(values, [best])).max() == pytest.approx(error, rel=1e-5)
    other = np.add(best, shift)
    assert np.abs(1 - reference.mapped(values, [other])).max() >= error * (1 - 1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(6, 4), (4, 6), (5, 5), (1, 7), (7, 1)])
def test_evening_out_equals_its_twin_and_keeps_the_norm(rows, columns):
    updates = drawn(3, rows, columns).double()
    shape = (3, rows, 1) if rows >= columns else (3, 1, columns)
    variance = torch.zeros(shape, dtype=torch.float64)
    wanted_variance = np.zeros((3, max(rows, columns)))
    for step in range(3):
        updates = drawn(3, rows, columns, seed=step).double()
        found = even_out(updates, variance, 0.9)
        for index in range(3):
            wanted, wanted_variance[index] = reference.evened_out(
                updates[index].numpy(), wanted_variance[index], 0.9
            )
            np.testing.assert_allclose(found[index], wanted, rtol=1e-12)
            np.testing.assert_allclose(variance[index].flatten(), wanted_variance[index], 1e-12)
    norms = torch.linalg.matrix_norm(torch.stack((found, updates)))
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-12, atol=0)


def test_evening_out_zeros_gives_zeros():
    variance = torch.zeros(2, 4, 1)
    assert torch.equal(even_out(torch.zeros(2, 4, 3), variance, 0.9), torch.zeros(2, 4, 3))


# weight decay


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(*[st.sampled_from([-2.0, -0.5, -0.0, 0.0, 0.25, 3.0])] * 2),
        min_size=1,
        max_size=9,
    ),
    st.booleans(),
)
def test_cautious_decay_is_a_mask(pairs, strict):
    weights, updates = (torch.tensor(numbers) for numbers in zip(*pairs, strict=True))
    mask = weights * updates > 0 if strict else weights * updates >= 0
    wanted = torch.where(mask, weights - 0.125 * weights, weights)
    kept = updates.clone()
    decay_cautiously([weights], [updates], 0.125, strict=strict)
    assert torch.equal(weights, wanted)
    assert torch.equal(updates, kept)


# Muon and Adam


SETTINGS = {
    "plain": {},
    "decay": {"matrix_weight_decay": 0.5},
    "cautious decay": {"matrix_weight_decay": 0.5, "cautious_weight_decay": True},
    "row norm": {"muon_row_norm": True},
    "polar express": {"muon_method": "polar-express"},
    "variance": {"muon_variance_beta2": 0.9},
    "all": {
        "matrix_weight_decay": 0.5,
        "cautious_weight_decay": True,
        "muon_row_norm": True,
        "muon_method": "polar-express",
        "muon_variance_beta2": 0.9,
    },
}
SHAPES = {"a": (6, 4), "b": (4, 6), "c": (6, 4), "d": (5, 5), "e": (6, 4)}


def muon_of(start: dict[str, torch.Tensor], config: OptimizerConfig) -> Muon:
    matrices = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    return Muon(matrices, config, CPU, compiled=False)


def matrices_of(muon: Muon) -> dict[str, torch.nn.Parameter]:
    return {n: m for bank in muon.banks for n, m in zip(bank.names, bank.matrices, strict=True)}


@pytest.mark.parametrize("name", SETTINGS)
def test_muon_equals_its_formula_one_matrix_at_a_time(name):
    config = OptimizerConfig(**SETTINGS[name])
    start = {key: drawn(*shape, seed=7 * ord(key)) for key, shape in SHAPES.items()}
    muon = muon_of(start, config)
    assert [len(bank.names) for bank in muon.banks] == [3, 1, 1]
    twins = {
        key: reference.Muon(
            value.numpy(),
            twin(config.muon_method, config.muon_row_norm),
            variance_beta2=config.muon_variance_beta2,
            cautious=config.cautious_weight_decay,
        )
        for key, value in start.items()
    }
    for step in range(4):
        now = {"lr": 0.1 / (step + 1), "momentum": 0.9 + 0.01 * step}
        now["weight_decay"] = config.matrix_weight_decay
        for index, (key, matrix) in enumerate(matrices_of(muon).items()):
            matrix.grad = drawn(*matrix.shape, seed=100 * step + index)
            twins[key].step(matrix.grad.numpy(), **now)
        muon.launch_gradients()
        muon.step(**now)
    for key, matrix in matrices_of(muon).items():
        assert matrix.grad is None
        np.testing.assert_allclose(matrix.detach(), twins[key].weight, rtol=1e-4, atol=1e-5)


def test_a_matrix_without_a_gradient_stays_as_it_is():
    config = OptimizerConfig(matrix_weight_decay=0.5)
    muon = muon_of({key: drawn(4, 4, seed=ord(key)) for key in "abc"}, config)
    matrices = matrices_of(muon)
    before = {key: matrix.detach().clone() for key, matrix in matrices.items()}
    matrices["b"].grad = drawn(4, 4)
    muon.launch_gradients()
    muon.step(lr=0.1, momentum=0.9, weight_decay=0.5)
    moved = [key for key in "abc" if not torch.equal(matrices[key], before[key])]
    assert moved == ["b"]
    muon.launch_gradients()
    muon.step(lr=0.1, momentum=0.9, weight_decay=0.5)
    assert torch.equal(matrices["a"], before["a"])


def test_momentum_in_bfloat16_is_half_as_large_and_nearly_as_good():
    start = {"a": drawn(8, 6), "b": drawn(8, 6, seed=1)}
    muons = [
        muon_of(start, OptimizerConfig(muon_momentum_dtype=dtype))
        for dtype in ("float32", "bfloat16")
    ]
    for step in range(5):
        for muon in muons:
            for index, matrix in enumerate(matrices_of(muon).values()):
                matrix.grad = drawn(8, 6, seed=10 * step + index)
            muon.launch_gradients()
            muon.step(lr=0.1, momentum=0.9, weight_decay=0.0)
    whole, half = (muon.banks[0].state["momentum"] for muon in muons)
    assert half.dtype == torch.bfloat16
    assert 2 * half.nbytes == whole.nbytes
    torch.testing.assert_close(half.float(), whole, rtol=0.02, atol=0.02)
    for a, b in zip(*(matrices_of(muon).values() for muon in muons), strict=True):
        assert 0 < (a - b).abs().max() < 0.02


@pytest.mark.parametrize("cautious", [False, True])
def test_adam_equals_its_formula_one_tensor_at_a_time(cautious):
    config = OptimizerConfig(cautious_weight_decay=cautious)
    start = {"table": drawn(9, 4), "vector": drawn(5, seed=1), "scalar": drawn(seed=2)}
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    rest = {name: parameters[name] for name in ("vector", "scalar")}
    adam = Adam([({"table": parameters["table"]}, 0.1), ({}, 9.0), (rest, 0.3)], config, CPU)
    twins = {
        name: reference.Adam(value.numpy(), beta1=0.9, beta2=0.95, eps=1e-8, cautious=cautious)
        for name, value in start.items()
    }
    for step in range(4):
        for index, (name, parameter) in enumerate(parameters.items()):
            parameter.grad = drawn(*parameter.shape, seed=100 * step + index)
            if name == "table":
                # rows of tokens that have not come yet
                parameter.grad[5:] = 0
            twins[name].step(
                parameter.grad.numpy(),
                lr=(0.1 if name == "table" else 0.3) / (step + 1),
                weight_decay=0.5,
            )
        adam.launch_gradients()
        adam.step(lr_multiplier=1 / (step + 1), weight_decay=0.5)
        adam.finish()
    for name, parameter in parameters.items():
        assert parameter.grad is None
        np.testing.assert_allclose(parameter.detach(), twins[name].weight, rtol=1e-5, atol=1e-6)
    assert torch.equal(parameters["table"][5:], start["table"][5:]) == cautious


class Counter(TorchDispatchMode):
    """Counts what is launched; making a view is free."""

    VIEWS = ("detach", "expand", "slice", "unbind", "view", "select", "alias", "transpose")

    def __init__(self):
        super().__init__()
        self.launched = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.partition(".")[0]
        self.launched += name not in self.VIEWS
        return function(*args, **(kwargs or {}))


def launches(layers: int, config: OptimizerConfig) -> int:
    start = {f"{layer}.{key}": drawn(4, 6) for layer in range(layers) for key in "ab"}
    muon = muon_of(start, config)
    # compiled where launches count
    muon.orthogonalize = lambda updates: updates
    for matrix in matrices_of(muon).values():
        matrix.grad = drawn(4, 6)
    with Counter() as counter:
        muon.launch_gradients()
        muon.step(lr=0.1, momentum=0.9, weight_decay=config.matrix_weight_decay)
    return counter.launched


@pytest.mark.parametrize("name", SETTINGS)
def test_more_matrices_of_a_shape_launch_no_more_operations(name):
    config = OptimizerConfig(**SETTINGS[name])
    assert launches(2, config) == launches(9, config) < 30


# both together


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_exactly_one_optimizer(tied):
    model_config = dataclasses.replace(
        tiny().model,
        tied_embedding=tied,
        bigram_rows=9,
        bigram_width=4,
        smear_gate=True,
        value_embedding_layers=(1,),
        value_embedding_width=4,
    )
    model = GPT(model_config)
    optimizers = Optimizers(model, OptimizerConfig(), CPU, compiled=False)
    muon = [name for bank in optimizers.muon.banks for name in bank.names]
    adam = list(optimizers.adam.owned)
    assert sorted(muon + adam) == sorted(dict(model.named_parameters()))
    assert set(muon) == {
        f"blocks.{layer}.{role}.weight"
        for layer in range(2)
        for role in ("attn.c_q", "attn.c_k", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj")
    }
    held = [tensor for group in optimizers.adam.adamw.param_groups for tensor in group["params"]]
    held += [matrix for bank in optimizers.muon.banks for matrix in bank.matrices]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))


def stepped(config: OptimizerConfig, model: ModelConfig | None = None) -> Optimizers:
    net = GPT(model or tiny().model)
    optimizers = Optimizers(net, config, CPU, compiled=False)
    for step in range(2):
        for index, parameter in enumerate(net.parameters()):
            parameter.grad = drawn(*parameter.shape, seed=100 * step + index)
        optimizers.step(lr_multiplier=1.0, momentum=0.9)
    return optimizers


EVERYTHING = OptimizerConfig(muon_momentum_dtype="bfloat16", muon_variance_beta2=0.9)


def test_state_is_named_by_parameter_and_comes_back():
    first = stepped(EVERYTHING)
    state = first.state()
    kinds = {name: set(values) for name, values in state.items()}
    assert kinds["blocks.0.mlp.fc.weight"] == {"momentum", "variance"}
    assert kinds["tok_emb.weight"] == {"step", "exp_avg", "exp_avg_sq"}
    second = Optimizers(GPT(tiny().model), EVERYTHING, CPU, compiled=False)
    second.load_state(state)
    for a, b in zip(first.tensors(), second.tensors(), strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype


@pytest.mark.parametrize(
    ("other", "model", "message"),
    [
        ({}, {"layers": 3}, r"of blocks\.2\.\S+ is missing, needed"),
        ({}, {"mlp_hidden": 48}, r"of blocks\.0\.mlp\.fc\.weight is .*32, 16.*48, 16"),
        ({"muon_variance_beta2": 0.9}, {}, r"'variance': \(16, 1\)"),
    ],
)
def test_state_that_does_not_fit_is_refused(other, model, message):
    state = stepped(OptimizerConfig()).state()
    net = GPT(dataclasses.replace(tiny().model, **model))
    optimizers = Optimizers(net, OptimizerConfig(**other), CPU, compiled=False)
    with pytest.raises(CheckpointError, match=message):
        optimizers.load_state(state)


@pytest.mark.parametrize("state", [{}, {"muon": {"state": {}}, "adam": 3}, [], None])
def test_what_is_no_state_is_refused(state):
    optimizers = Optimizers(GPT(tiny().model), OptimizerConfig(), CPU, compiled=False)
    with pytest.raises(CheckpointError, match="is missing, needed"):
        optimizers.load_state(state)


def test_clipping_scales_the_gradients_of_both_to_one_norm():
    seen = {}
    for clip in (0.0, 0.25):
        model = GPT(tiny().model)
        optimizers = Optimizers(model, OptimizerConfig(grad_clip=clip), CPU, compiled=False)
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = drawn(*parameter.shape, seed=index)
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        optimizers.step(lr_multiplier=1.0, momentum=0.9)
        seen[clip] = optimizers.state()
    for name, state in seen[0.25].items():
        kind = "momentum" if "momentum" in state else "exp_avg"
        torch.testing.assert_close(state[kind], seen[0.0][name][kind] * (0.25 / norm))


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_on_cuda_is_that_of_the_cpu_but_for_bfloat16(compiled):
    config = OptimizerConfig(
        muon_method="polar-express",
        muon_row_norm=True,
        muon_variance_beta2=0.9,
        matrix_weight_decay=0.1,
        adam_weight_decay=0.1,
        cautious_weight_decay=True,
        grad_clip=0.5,
    )
    models, states = {}, {}
    for device in ("cpu", "cuda"):
        ranks = Ranks(0, 1, torch.device(device))
        models[device] = GPT(tiny().model).to(device)
        on_cuda = compiled and device == "cuda"
        optimizers = Optimizers(models[device], config, ranks, compiled=on_cuda)
        for step in range(3):
            for index, parameter in enumerate(models[device].parameters()):
                gradient = drawn(*parameter.shape, seed=100 * step + index)
                parameter.grad = gradient.to(device)
            optimizers.step(lr_multiplier=1.0, momentum=0.9 + 0.01 * step)
        states[device] = optimizers.state()
        optimizers.load_state(states[device])
    for name, weight in models["cpu"].state_dict().items():
        other = models["cuda"].state_dict()[name].cpu()
        assert (other - weight).norm() <= 0.05 * weight.norm(), name
        for kind, kept in states["cpu"][name].items():
            torch.testing.assert_close(states["cuda"][name][kind], kept, rtol=0.05, atol=1e-3)
