"""Dropout by a hash: what is left out, how evenly, and that it is the same under torch.compile."""

import numpy as np
import pytest
import torch
from torch.nn.functional import rms_norm

from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.dropout import WORD, Dropout, hashed, thinned
from gptpack.families.golf.gpt import GPT

CPU = torch.device("cpu")


def lowbias32(index: int, seeds: tuple[int, int]) -> int:
    word = index ^ seeds[0]
    word = (word ^ word >> 16) * 0x7FEB352D % 2**32
    word = (word ^ word >> 15) * 0x846CA68B % 2**32
    return (word ^ word >> 16 ^ seeds[1]) % 2**31


def test_words_are_those_of_the_hash():
    for seeds in ((0, 0), (123456789, 987654321), (WORD, WORD)):
        found = hashed(300, torch.tensor(seeds, dtype=torch.int32))
        assert found.tolist() == [lowbias32(index, seeds) for index in range(300)]


def test_bits_are_even_and_know_nothing_of_their_neighbours_or_of_other_draws():
    count = 1 << 16
    dropout = Dropout(3, CPU)
    dropout.draw(5)
    streams = [hashed(count, seeds) for seeds in dropout.seeds.flatten(0, 1)]
    streams += [streams[0].roll(shift) for shift in (1, 2, 64, 512, 1024)]
    bits = torch.stack([(words[:, None] >> torch.arange(31)) & 1 for words in streams])
    # 5 standard deviations of a mean of so many fair coins
    assert (bits.double().mean(1) - 0.5).abs().max() < 5 * 0.5 / count**0.5
    signs = 2.0 * bits[:, :, 20:].double() - 1
    first = signs[0]
    for other in signs[1:]:
        assert (first * other).mean(0).abs().max() < 5 / count**0.5


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_is_left_out_and_the_rest_grows(share):
    dropout = Dropout(2, CPU)
    dropout.draw(7)
    kept = thinned(torch.ones(64, 1024), dropout.seeds[1, 0], share)
    left_out = (kept == 0).double().mean().item()
    assert left_out == pytest.approx(share, abs=5 * (share * (1 - share) / kept.numel()) ** 0.5)
    assert torch.equal(kept[kept != 0], torch.full_like(kept[kept != 0], 1 / (1 - share)))


def test_a_draw_can_be_repeated_and_no_two_branches_share_one():
    dropout = Dropout(2, CPU)

    def masks(seed: int) -> list[torch.Tensor]:
        dropout.draw(seed)
        return [thinned(torch.ones(500), seeds, 0.3) for seeds in dropout.seeds.flatten(0, 1)]

    first, again, other = masks(1), masks(1), masks(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    different = [*first, *other]
    for i, a in enumerate(different):
        assert not any(torch.equal(a, b) for b in different[i + 1 :])


def test_gradients_pass_where_numbers_do():
    dropout = Dropout(1, CPU)
    dropout.draw(3)
    branch = torch.randn(4, 50, requires_grad=True, generator=torch.Generator().manual_seed(0))
    kept = thinned(branch, dropout.seeds[0, 1], 0.4)
    kept.sum().backward()
    expected = (kept != 0).float() / 0.6
    assert torch.equal(branch.grad, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
def test_torch_compile_leaves_out_the_same(monkeypatch):
    from torch._inductor import config

    # without vectors: else torch compiles six programs to see which instructions there are
    monkeypatch.setattr(config.cpp, "vec_isa_ok", False)
    dropout = Dropout(1, CPU)
    compiled = torch.compile(thinned, fullgraph=True, dynamic=False)
    for seed in range(3):
        dropout.draw(seed)
        ones = torch.ones(3, 7, 129)
        seeds = dropout.seeds[0, 0]
        assert torch.equal(compiled(ones, seeds, 0.2), thinned(ones, seeds, 0.2))


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
def test_a_gpu_leaves_out_what_a_cpu_does():
    masks = []
    for device in ("cpu", "cuda"):
        dropout = Dropout(1, torch.device(device))
        dropout.draw(11)
        leave_out = torch.compile(thinned, fullgraph=True) if device == "cuda" else thinned
        branch = torch.ones(16, 2048, 512, device=device)
        masks.append(leave_out(branch, dropout.seeds[0, 1], 0.2).cpu() != 0)
    assert torch.equal(*masks)


def test_a_model_with_dropout_adds_on_average_what_it_adds_without():
    shape = {"vocab": 40, "layers": 1, "width": 24, "heads": 4, "kv_heads": 2, "mlp_hidden": 20}
    model = GPT(ModelConfig(**shape, context=8, parallel_layers=1))
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    tokens = torch.arange(8).view(1, 8)
    added = []
    model.blocks[0].register_forward_hook(lambda block, inputs, lanes: added.append(lanes.first))

    def layer() -> torch.Tensor:
        model.hidden(tokens)
        return added.pop()

    def drawn(seed: int) -> torch.Tensor:
        dropout.draw(seed)
        return layer()

    with torch.no_grad():
        whole = layer()
        dropout = model.use_dropout(0.25)
        draws = torch.stack([drawn(seed) for seed in range(2000)])
        # both branches left out: what was there before the layer
        mix = model.blocks[0].resid_mix
        before = (mix[0] + mix[1]) * rms_norm(model.tok_emb.weight[tokens], (24,))
        assert model.use_dropout(0.0) is None
        assert torch.equal(layer(), whole)
    assert ((draws.mean(0) - whole).abs() < 5 * draws.std(0) / 2000**0.5).all()
    untouched = torch.isclose(draws, before, atol=1e-6).double().mean().item()
    deviation = np.sqrt(0.25**2 * (1 - 0.25**2) / draws.numel())
    assert untouched == pytest.approx(0.25**2, abs=5 * deviation)
