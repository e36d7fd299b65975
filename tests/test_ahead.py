"""Learning the tokens after the next: the losses stay, and training drops the matrix."""

import pytest
import torch
import torch.nn.functional as F
from worlds import CPU, shards, tiny

from gptpack.errors import ConfigError
from gptpack.families.golf.ahead import Ahead
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT, build
from gptpack.ops import rms_norm
from gptpack.training.checkpoint import load_checkpoint
from gptpack.training.loop import train
from gptpack.training.recipe import load_recipe
from gptpack.training.schedules import ahead_at, phases
from gptpack.training.stepper import Stepper

AHEAD = ("training.ahead_weight=0.3", "training.ahead_end=0.5", "training.steps=12")


def model() -> GPT:
    shape = {"vocab": 40, "layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "mlp_hidden": 24}
    made = GPT(ModelConfig(**shape, context=8))
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return made


def test_losses_stay_and_gradients_are_those_of_both_losses():
    tokens = torch.arange(27).view(3, 9) * 5 % 40
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    plain, learning = model(), model()
    learning.ahead = Ahead(16, seed=7, device=torch.device("cpu"))
    learning.ahead.use(0.25)
    matrix = learning.ahead.matrix
    losses = learning.token_losses(inputs, targets)
    assert torch.equal(losses, plain.token_losses(inputs, targets))
    losses.sum().backward()
    own = matrix.detach().clone().requires_grad_()
    hidden = plain.hidden(inputs)
    later = plain.logits(rms_norm(F.linear(hidden[:, :-1], own))).flatten(0, 1)
    ahead = F.cross_entropy(later, targets[:, 1:].flatten(), reduction="sum")
    (plain.token_losses(inputs, targets).sum() + 0.25 * ahead).backward()
    torch.testing.assert_close(matrix.grad, own.grad)
    for (name, one), two in zip(plain.named_parameters(), learning.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, msg=name)


def test_the_weight_falls_to_nothing_where_the_recipe_says():
    recipe = tiny(*AHEAD)
    weights = [ahead_at(done, recipe.training) for done in (0.0, 0.25, 0.5, 0.75)]
    assert weights == pytest.approx([0.3, 0.15, 0.0, 0.0])
    assert [phase.ahead for phase in phases(recipe)] == [True, False]
    stepper = Stepper(recipe, shards(), CPU)
    moved = []
    for _ in range(12):
        before = stepper.ahead.matrix.detach().clone()
        stepper.update(0.0)
        moved.append(not torch.equal(before, stepper.ahead.matrix))
    stepper.batches.close()
    assert moved == [True] * 6 + [False] * 6


def test_the_matrix_is_in_no_checkpoints_weights_and_a_resumed_run_has_it_again(tmp_path):
    recipe = tiny(*AHEAD)
    checkpoint = load_checkpoint(train(recipe, shards(), tmp_path, CPU).checkpoint)
    build(recipe.model, checkpoint.weights, torch.device("cpu"))
    going, resumed = (Stepper(recipe, shards(), CPU) for _ in range(2))
    for _ in range(4):
        going.update(0.0)
    weights, rest = going.state()
    resumed.load_state(weights, rest, going.step)
    for stepper in (going, resumed):
        for _ in range(4):
            stepper.update(0.0)
        stepper.batches.close()
    assert torch.equal(going.ahead.matrix, resumed.ahead.matrix)
    for one, two in zip(going.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_weight_without_an_end_is_refused():
    with pytest.raises(ConfigError, match="set both or none"):
        tiny("training.ahead_weight=0.3")
    with pytest.raises(ConfigError, match=r"ahead_weight is not of architecture='speedrun'"):
        load_recipe("speedrun-2025-07", list(AHEAD[:2]))
