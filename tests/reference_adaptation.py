"""Test-time training once more, slowly: one target at a time, plain loops, straight from the rules.

And the tiny model, text and byte table that its tests share.
"""

import copy
import math
from contextlib import contextmanager

import numpy as np
import torch
from reference_scoring import slow_context
from torch import nn

from gptpack.data.accounting import PieceBytes
from gptpack.evaluation.settings import LoraSettings, SgdSettings
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT

VOCAB, BOS, CONTEXT = 16, 1, 12
CONFIG = ModelConfig(
    vocab=VOCAB,
    layers=2,
    width=16,
    heads=2,
    kv_heads=1,
    mlp_hidden=16,
    context=CONTEXT,
    smear_gate=True,
    value_embedding_layers=(1,),
    value_embedding_width=4,
)


def tiny_gpt(
    dtype: torch.dtype = torch.float64, seed: int = 0, config: ModelConfig = CONFIG
) -> GPT:
    """A GPT none of whose parts is zero."""
    model = GPT(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.compute_dtype = dtype
    return model.to(dtype)


def text_of_documents(lengths: list[int], seed: int = 0) -> np.ndarray:
    """Random tokens, BOS before each document of `lengths` tokens, which do not hold it."""
    draw = np.random.default_rng(seed)
    parts = [np.concatenate(([BOS], draw.integers(2, VOCAB, length))) for length in lengths]
    return np.concatenate(parts).astype(np.uint16)


def byte_table() -> PieceBytes:
    ids = np.arange(VOCAB, dtype=np.int32)
    return PieceBytes(base=ids % 5 + 1, leading_space=ids % 3 == 2, boundary=ids == BOS)


def loss_of(model: nn.Module, seen: np.ndarray, target: int) -> float:
    """Nats of one target after the tokens `seen`, from a forward pass of its own."""
    inputs = torch.from_numpy(seen.astype(np.int64))[None]
    with torch.no_grad():
        logits = model.logits(model.hidden(inputs))[0, -1].double()
        return float(torch.logsumexp(logits, 0) - logits[target])


def slow_sgd(
    model: nn.Module, tokens: np.ndarray, settings: SgdSettings, *, context: int, stride: int
) -> np.ndarray:
    """Nats of every target, with SGD by hand on each chunk after its targets were scored."""
    model = copy.deepcopy(model)
    origin = copy.deepcopy(model.state_dict())
    targets = len(tokens) - 1
    chunks = math.ceil(targets / settings.chunk)
    losses: list[float] = []
    velocity: dict[str, torch.Tensor] = {}
    for chunk in range(chunks):
        if settings.reset and chunk and chunk % settings.reset == 0:
            model.load_state_dict(origin)
            velocity = {}
        # Windows belong to the chunk of their first scored target, so a chunk may score beyond.
        stop = (chunk + 1) * settings.chunk
        while len(losses) < targets and _window_begins(len(losses), context, stride) < stop:
            at = len(losses)
            seen = slow_context(at, context, stride)
            losses.append(loss_of(model, tokens[at + 1 - seen : at + 1], int(tokens[at + 1])))
        if chunk == chunks - 1:
            break
        rows = [
            tokens[start : start + context + 1].astype(np.int64)
            for start in range(chunk * settings.chunk, stop - context + 1, context)
        ]
        lr = settings.lr * 0.5 * (1 + math.cos(math.pi * chunk / max(chunks - 1, 1)))
        for _ in range(settings.epochs):
            for first in range(0, len(rows), settings.rows):
                batch = torch.from_numpy(np.stack(rows[first : first + settings.rows]))
                model.zero_grad()
                model.token_losses(batch[:, :-1], batch[:, 1:]).mean().backward()
                _sgd_step(model, velocity, lr, settings)
    return np.array(losses)


def _window_begins(target: int, context: int, stride: int) -> int:
    """The first target that is scored together with `target`."""
    return 0 if target < context else context + (target - context) // stride * stride


def _sgd_step(model, velocity, lr, settings) -> None:
    moving = {
        name: p
        for name, p in model.named_parameters()
        if not any(name.startswith(f"blocks.{i}.") for i in range(settings.freeze))
    }
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in moving.values()))
    scale = min(1.0, settings.clip / (norm + 1e-6)) if settings.clip else 1.0
    with torch.no_grad():
        for name, p in moving.items():
            before = velocity.get(name, torch.zeros_like(p))
            velocity[name] = settings.momentum * before + scale * p.grad
            p.sub_(lr * velocity[name])


def slow_lora(
    model: nn.Module,
    tokens: np.ndarray,
    settings: LoraSettings,
    *,
    context: int,
    factors: dict[str, torch.Tensor],
) -> np.ndarray:
    """Nats of every target: each document alone, with factors merged into a copy of the weights.

    `factors` holds each layer's A ``[rank, inputs]`` at the start.
    """
    starts = np.flatnonzero(tokens[:-1] == BOS).tolist()
    losses: list[float] = []
    for start, stop in zip(starts, [*starts[1:], len(tokens) - 1], strict=True):
        losses += _slow_document(
            model, tokens[start : stop + 1], settings, context=context, factors=factors
        )
    return np.array(losses)


def _slow_document(model, tokens, settings, *, context, factors) -> list[float]:
    a = {name: value.clone().requires_grad_() for name, value in factors.items()}
    weights = dict(model.named_parameters())
    b = {
        name: torch.zeros(
            weights[f"{name}.weight"].shape[0], settings.rank, dtype=torch.float64
        ).requires_grad_()
        for name in factors
    }
    state = {id(p): (torch.zeros_like(p), torch.zeros_like(p)) for p in [*a.values(), *b.values()]}
    losses: list[float] = []
    targets = len(tokens) - 1
    updates = 0
    for begin in range(0, targets, settings.chunk):
        end = min(begin + settings.chunk, targets)
        start = max(0, begin + settings.chunk - context)
        for at in range(begin, end):
            with _merged(model, a, b, settings):
                losses.append(loss_of(model, tokens[start : at + 1], int(tokens[at + 1])))
        if end == targets:
            break
        for _ in range(settings.steps):
            window = torch.from_numpy(tokens[start : end + 1].astype(np.int64))[None]
            merged = {
                f"{name}.weight": weights[f"{name}.weight"].detach()
                + settings.scale * b[name] @ a[name]
                for name in factors
            }
            inputs, wanted = window[:, :-1], window[:, 1:][:, -settings.chunk :]
            loss = torch.func.functional_call(
                _Losses(model), {f"model.{k}": v for k, v in merged.items()}, (inputs, wanted)
            ).mean()
            parameters = [*a.values(), *b.values()]
            gradients = torch.autograd.grad(loss, parameters)
            updates += 1
            for p, g in zip(parameters, gradients, strict=True):
                _adamw_step(p, g, state[id(p)], updates, settings)
    return losses


class _Losses(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.model.token_losses(inputs, targets)


@contextmanager
def _merged(model, a, b, settings):
    """The model with the products of the factors added to its weights."""
    weights = dict(model.named_parameters())
    before = {name: weights[f"{name}.weight"].detach().clone() for name in a}
    with torch.no_grad():
        for name in a:
            weights[f"{name}.weight"].add_(settings.scale * b[name] @ a[name])
    yield
    with torch.no_grad():
        for name in a:
            weights[f"{name}.weight"].copy_(before[name])


def _adamw_step(p, g, state, step, settings) -> None:
    """Loshchilov and Hutter 2019, Algorithm 2, with decoupled decay."""
    first, second = state
    with torch.no_grad():
        p.mul_(1 - settings.lr * settings.decay)
        first.mul_(settings.beta1).add_((1 - settings.beta1) * g)
        second.mul_(settings.beta2).add_((1 - settings.beta2) * g * g)
        m = first / (1 - settings.beta1**step)
        v = second / (1 - settings.beta2**step)
        p.sub_(settings.lr * m / (v.sqrt() + 1e-8))
