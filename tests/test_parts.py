"""A model compiled in parts: one graph serves all layers, and losses and gradients are the same."""

from typing import Any

import pytest
import torch

from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.families.golf.parts import layer, take_up

SHAPE = {"vocab": 40, "width": 24, "heads": 4, "kv_heads": 2, "mlp_hidden": 20, "context": 8}
LOOPED = {"loop_start": 1, "loop_layers": 2, "loops": 2}
PARTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "looped": LOOPED,
    "scaled, gated, xsa": {**LOOPED, "ln_scale": True, "skip_gates": True, "xsa_layers": 8},
    "documents": {**LOOPED, "document_mask": True, "smear_gate": True},
}


def made(layers: int, parts: dict[str, Any]) -> GPT:
    """A model in which every parameter matters."""
    more = {**parts, "xsa_layers": layers} if "xsa_layers" in parts else parts
    model = GPT(ModelConfig(**SHAPE, layers=layers, **more))
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def gradients(model: GPT, losses: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    tokens = torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    found = losses(tokens[:, :-1], tokens[:, 1:])
    found.mean().backward()
    return found.detach(), [parameter.grad for parameter in model.parameters()]


def counting() -> tuple[Any, list[Any]]:
    """A compiler that compiles to what it was given, and what it made a graph of."""
    torch.compiler.reset()
    graphs: list[Any] = []

    def compiler(function: Any, **options: Any) -> Any:
        def count(module: Any, _: Any) -> Any:
            graphs.append(function)
            return module.forward

        return torch.compile(function, backend=count, **options)

    return compiler, graphs


@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_one_graph_serves_all_layers_and_says_the_same(parts: dict[str, Any]) -> None:
    counts = []
    for layers in (4, 6, 8):
        compiler, graphs = counting()
        model = made(layers, parts)
        dropout = model.use_dropout(0.2)
        assert dropout is not None
        dropout.draw(5)
        plain = gradients(model, model.token_losses)
        compiled = gradients(model, model.compiled_losses(compiler, training=True))
        counts.append(len(graphs))
        torch.testing.assert_close(plain, compiled)
    assert counts == [counts[0]] * 3
    assert counts[0] <= 4


@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
@pytest.mark.parametrize("layers", [4, 6])
@pytest.mark.parametrize("parts", ["whole", "scaled, gated, xsa"])
def test_scores_need_graphs_of_layers_and_skips_alone(parts: str, layers: int) -> None:
    compiler, graphs = counting()
    model = made(layers, PARTS[parts])
    tokens = torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    losses = model.compiled_losses(compiler)
    with torch.no_grad():
        for asked in (8, 2):
            targets = tokens[:, -asked:]
            found = losses(tokens[:, :-1], targets)
            torch.testing.assert_close(found, model.token_losses(tokens[:, :-1], targets))
    assert set(graphs) == {layer, take_up}
    assert len(graphs) == 2
