"""Operations with a kernel: what they take, with and without it, and how their error is judged.

Shape legend: B = sequences, T = positions, W = model width, H = query heads, G = key/value heads,
D = width of a head, E = rotated pairs, F = hidden width, V = vocabulary.

Importing this module puts Triton into its interpreter where there is no CUDA device; that has to
happen before Triton is imported. Benchmarks and the tuning script use the same cases.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gptpack import ops
from gptpack.families.golf.rotary import Rope, rotary_tables

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

Result = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """An operation at a shape.

    `run(inputs, kernels=...)` gives its results. Inputs that require gradients come from `make`.
    `exact` takes the place of `run` where that would not stay in float64. `stages` are the kernels
    that forward and backward come to at least, as (bytes moved, operations) in 16-bit precision."""

    name: str
    shape: str
    make: Callable[[torch.Generator, torch.dtype], list[Tensor]]
    run: Callable[..., Result]
    stages: tuple[tuple[int, int], ...]
    exact: Callable[..., Result] | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.shape}"

    def inputs(
        self, dtype: torch.dtype, device: str, drawn_on: str = "cpu", seed: int = 0
    ) -> list[Tensor]:
        """Random inputs; activations in `dtype`, parameters as the model keeps them."""
        made = self.make(torch.Generator(drawn_on).manual_seed(seed), dtype)
        return [t.detach().to(device).requires_grad_(t.requires_grad) for t in made]


def normal(generator: torch.Generator, dtype: torch.dtype, *shape: int, scale: float = 1.0):
    """A leaf of random numbers, rounded to `dtype`."""
    drawn = torch.randn(shape, generator=generator, device=generator.device) * scale
    return drawn.to(dtype).requires_grad_()


def split_heads(
    batch: int, length: int, heads: int, kv_heads: int, width: int, dims: int, *, extra: bool
) -> Case:
    channels = (heads + 2 * kv_heads) * width

    def make(generator, dtype):
        x = normal(generator, dtype, batch, length, channels)
        tables = rotary_tables(length, dims, rope=Rope(100.0), like=x.detach())
        inputs = [x, normal(generator, torch.float32, heads), *tables]
        if extra:
            inputs.append(normal(generator, dtype, batch, length, kv_heads * width))
        return inputs

    def run(inputs, *, kernels):
        x, gain, cos, sin, *rest = inputs
        return ops.split_heads(
            [x],
            gain,
            (cos, sin),
            rest[0] if rest else None,
            heads=heads,
            kv_heads=kv_heads,
            kernels=kernels,
        )

    added = " + values" if extra else ""
    shape = f"{batch * length:,} x ({heads} + 2 x {kv_heads}) x {width}, {dims} turn{added}"
    head = 2 * batch * length * width
    extras = head * kv_heads if extra else 0
    forward = 2 * head * (heads + 2 * kv_heads) + extras
    stages = ((forward, 0), (head * (3 * (heads + kv_heads) + 2 * kv_heads), 0))
    return Case("split_heads", shape, make, run, stages)


def remove_own_value(batch: int, length: int, heads: int, kv_heads: int, width: int) -> Case:
    def make(generator, dtype):
        shapes = ((batch, length, heads, width), (batch, length, kv_heads, width))
        return [normal(generator, dtype, *shape) for shape in shapes]

    def run(inputs, *, kernels):
        return (ops.remove_own_value(*inputs, kernels=kernels),)

    head = 2 * batch * length * width
    stages = ((head * (2 * heads + kv_heads), 0), (head * (3 * heads + 2 * kv_heads), 0))
    shape = f"{batch * length:,} x ({heads} over {kv_heads}) x {width}"
    return Case("remove_own_value", shape, make, run, stages)


def mlp(batch: int, length: int, width: int, hidden: int, slope: float) -> Case:
    def make(generator, dtype):
        return [
            normal(generator, dtype, batch, length, width),
            normal(generator, dtype, hidden, width, scale=width**-0.5),
            normal(generator, dtype, width, hidden, scale=hidden**-0.5),
        ]

    def run(inputs, *, kernels):
        return (ops.mlp(*inputs, slope, kernels=kernels),)

    tokens = batch * length
    narrow, wide, weight = 2 * tokens * width, 2 * tokens * hidden, 2 * width * hidden
    product = 2 * tokens * width * hidden
    stages = (
        (narrow + weight + (2 if slope else 1) * wide, product),
        (wide + weight + narrow, product),
        (narrow + weight + 2 * wide, product),
        *[(narrow + weight + wide, product)] * 3,
    )
    return Case("mlp", f"{tokens:,} x {width} x {hidden}, slope {slope:g}", make, run, stages)


def head_losses(batch: int, length: int, width: int, vocab: int) -> Case:
    def make(generator, dtype):
        shape, device = (batch, length), generator.device
        targets = torch.randint(vocab, shape, generator=generator, device=device)
        hidden = normal(generator, dtype, batch, length, width)
        return [hidden, normal(generator, dtype, vocab, width, scale=8 * width**-0.5), targets]

    def run(inputs, *, kernels):
        return (ops.head_losses(*inputs, 30.0, kernels=kernels),)

    def exact(inputs, *, kernels):
        hidden, head, targets = inputs
        logits = 30.0 * torch.tanh(hidden @ head.T / 30.0)
        return (F.cross_entropy(logits.mT, targets, reduction="none"),)

    tokens = batch * length
    narrow, wide, weight = 2 * tokens * width, 2 * tokens * vocab, 2 * width * vocab
    product = (narrow + weight + wide, 2 * tokens * width * vocab)
    stages = (product, (2 * wide, 0), product, product)
    return Case("head_losses", f"{tokens:,} x {width} x {vocab:,}", make, run, stages, exact)


def small_cases() -> list[Case]:
    """Sizes of 1, and sizes that are no multiple of a block on each axis."""
    return [
        split_heads(1, 1, 1, 1, 2, 2, extra=False),
        split_heads(2, 5, 4, 2, 16, 16, extra=True),
        split_heads(1, 11, 6, 3, 20, 6, extra=False),
        split_heads(2, 9, 8, 4, 64, 16, extra=True),
        remove_own_value(1, 1, 1, 1, 2),
        remove_own_value(2, 5, 6, 2, 20),
        remove_own_value(1, 33, 4, 4, 64),
        mlp(1, 1, 1, 1, 0.5),
        mlp(1, 35, 24, 72, 0.5),
        mlp(2, 35, 24, 72, 0.0),
        mlp(3, 11, 20, 37, 0.5),
        mlp(3, 11, 20, 37, 0.0),
        head_losses(1, 1, 8, 3),
        head_losses(2, 17, 24, 1000),
        head_losses(1, 3, 16, 5000),
    ]


def golf_cases(tokens: int = 4096) -> list[Case]:
    """The shapes of the recipe `golf-1060`, and the vocabularies around it."""
    batch = max(1, tokens // 2048)
    length = min(tokens, 2048)
    return [
        split_heads(batch, length, 8, 4, 64, 16, extra=False),
        split_heads(batch, length, 8, 4, 64, 64, extra=True),
        remove_own_value(batch, length, 8, 4, 64),
        remove_own_value(batch, length, 4, 2, 128),
        mlp(batch, length, 512, 1536, 0.5),
        mlp(batch, length, 512, 2048, 0.0),
        head_losses(batch, length, 512, 1024),
        head_losses(batch, length, 512, 8192),
    ]


def strided(x: Tensor) -> Tensor:
    """The same values, with a gap after each of them in memory."""
    spread = torch.stack((x.detach(), torch.full_like(x, 7)), dim=-1)[..., 0]
    return spread.requires_grad_(x.requires_grad)


def run_both_ways(
    case: Case, inputs: Sequence[Tensor], *, kernels: bool, run: Callable[..., Result] | None = None
) -> list[Tensor]:
    """Results and gradients of `inputs`, for gradients of the results that depend on the case."""
    results = (run or case.run)(list(inputs), kernels=kernels)
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(r.shape, generator=generator).to(r) for r in results]
    wanted = [x for x in inputs if x.requires_grad]
    gradients = torch.autograd.grad(results, wanted, given) if wanted else ()
    return [*(r.detach() for r in results), *gradients]


def in_float64(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [
        x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x
        for x in inputs
    ]


def relative_error(found: Tensor, exact: Tensor) -> float:
    """``|found - exact| / |exact|``; nan if anything is."""
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def errors(case: Case, *draws: Sequence[Tensor]) -> list[tuple[float, float]]:
    """(with the kernel, without) for each result and each gradient, against float64.

    Each of `draws` is a set of inputs; their results count as one long result.
    """
    found: list[list[list[Tensor]]] = [[], [], []]
    for inputs in draws:
        exact = run_both_ways(case, in_float64(inputs), kernels=False, run=case.exact)
        plain = run_both_ways(case, inputs, kernels=False)
        ours = run_both_ways(case, inputs, kernels=True)
        assert [t.dtype for t in ours] == [t.dtype for t in plain]
        assert [t.shape for t in ours] == [t.shape for t in plain]
        for kind, results in zip(found, (ours, plain, exact), strict=True):
            kind.append([t.flatten() for t in results])
    together = [[torch.cat(parts) for parts in zip(*kind, strict=True)] for kind in found]
    return [(relative_error(a, c), relative_error(b, c)) for a, b, c in zip(*together, strict=True)]
