"""A recipe -> what its run will take and what its file will weigh, before it is made."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gptpack.data.shards import Tokens
from gptpack.data.splits import split_tokens
from gptpack.errors import ConfigError
from gptpack.jobs.train import check_memory, packer_foresight
from gptpack.packing.apart import on_grid
from gptpack.quant.steps import Foresight
from gptpack.ranks import Ranks, ranks
from gptpack.training.plan import (
    artifact_bytes,
    bits_allowed,
    expected_steps,
    flops_per_token,
    memory,
    time_from_rate,
    time_look,
    time_steps,
)
from gptpack.training.recipe import Recipe, load_recipe
from gptpack.training.stepper import Stepper
from gptpack.values import parse_size

BITS = 3.0
"""Bits of a weight in the file if neither bits nor a budget are given."""


def plan_training(
    recipe: str | Path | Recipe,
    data: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    device: str = "auto",
    **how: Any,
) -> dict[str, Any]:
    """The plan of a run by `recipe`, on the train shards in `data` or on random tokens.

    Args:
        overrides: settings of the recipe, ``table.key=value``.
        how: options of `plan`; its errors are raised here as well.
    """
    settings = load_recipe(recipe, overrides)
    shards = None if data is None else split_tokens(data, "train", settings.model.vocab)
    with ranks(device) as here:
        check_memory(settings.model, here.device)
        foresight = packer_foresight(settings, shards, None, here) if shards else None
        return plan(settings, shards, here, foresight=foresight, **how)


def plan(
    settings: Recipe,
    shards: Sequence[Tokens] | None,
    here: Ranks,
    *,
    attention: str = "auto",
    kernels: str = "auto",
    compiled: bool | None = None,
    flops: float | None = None,
    bits: float | None = None,
    budget: str | None = None,
    foresight: Foresight | None = None,
) -> dict[str, Any]:
    """The figures of the plan by name; nothing is written.

    Args:
        shards: train shards; None times the steps on random tokens.
        flops: operations per second of a rank, from which the time of a step follows; None times
            steps, and the looks of the foresight as well.
        bits: bits of a weight in the file.
        budget: size of the file, such as ``"16MB"``, which gives the bits.

    Raises:
        ConfigError: a setting that makes no sense, or a step that the device's memory cannot hold.
        BudgetError: what stays in floats already fills the budget.
    """
    if bits is not None and budget is not None:
        raise ConfigError("--bits and --budget exclude each other: a budget gives the bits")
    budget_bytes = None if budget is None else parse_size(budget)
    compression, training = settings.compression, settings.training
    if bits is None and budget is None:
        budget_bytes = compression.target_bytes or None
    data = _random_shards(settings) if shards is None else shards
    stepper = Stepper(
        settings,
        data,
        here,
        attention=attention,
        compiled=compiled,
        kernels=kernels,
        foresight=foresight,
    )
    try:
        sizes = [(on_grid(n, p.shape), p.numel()) for n, p in stepper.model.named_parameters()]
        coded = sum(size for grid, size in sizes if grid)
        kept = sum(size for grid, size in sizes if not grid)
        weight_bits = bits or BITS
        if budget_bytes is not None:
            weight_bits = bits_allowed(coded, kept, budget_bytes)
        needs = memory(stepper)
        step = time_from_rate(stepper, flops, "as stated") if flops else time_steps(stepper)
        look_seconds = time_look(stepper) if step.timed else 0.0
    finally:
        stepper.batches.close()
    looks = compression.looks if compression.target_bytes else 0
    steps = expected_steps(stepper, step.seconds, lost_seconds=looks * look_seconds)
    tokens = steps * training.batch_tokens
    return {
        "parameters": coded + kept,
        "coded_parameters": coded,
        "flops_per_token": flops_per_token(settings.model),
        "memory": {**asdict(needs), "total_bytes": needs.total_bytes},
        "micro_batch_tokens": stepper.micro_batch() * settings.model.context,
        "attention": stepper.attention,
        "kernels": stepper.kernels,
        "batch_tokens": training.batch_tokens,
        "seconds_per_step": step.seconds,
        "seconds_source": step.source,
        "training_seconds": training.clock_seconds,
        "reserve_seconds": training.reserve_seconds if training.seconds else 0.0,
        "steps": steps,
        "tokens": tokens,
        "loader": settings.data.loader,
        "looks": looks,
        "seconds_per_look": look_seconds or None,
        "epochs": shards and tokens / stepper.batches.batches.order.epoch_tokens,
        "bits_per_weight": weight_bits,
        "artifact_bytes": artifact_bytes(coded, kept, weight_bits),
        "budget_bytes": budget_bytes,
    }


def _random_shards(settings: Recipe) -> list[Tokens]:
    """One shard to time steps on, with a document in each of its windows."""
    context = settings.model.context
    rng = np.random.default_rng(settings.training.seed & (2**64 - 1))
    tokens = rng.integers(0, settings.model.vocab, 256 * context + 1).astype(np.uint32)
    tokens[::context] = settings.model.bos
    return [tokens]
