"""`gptpack train --plan`: what a run will take and what its file will weigh, before it is made."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gptpack.data.batches import Tokens
from gptpack.errors import ConfigError
from gptpack.packing.apart import on_grid
from gptpack.quant.steps import Foresight
from gptpack.ranks import Ranks
from gptpack.training.loop import Run
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
from gptpack.training.recipe import Recipe
from gptpack.values import parse_size

BITS = 3.0
"""A weight's bits in a file where neither bits nor a budget are given."""


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
        shards: what will be trained on; None times the steps on random tokens.
        foresight: who knows the packer; a target's looks at it are timed where steps are.
        flops: operations per second of a rank to go by; None times steps.

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
    run = Run(settings, data, Path(), here, None, attention, compiled, kernels, foresight)
    try:
        sizes = [(on_grid(n, p.shape), p.numel()) for n, p in run.model.named_parameters()]
        coded = sum(size for grid, size in sizes if grid)
        kept = sum(size for grid, size in sizes if not grid)
        weight_bits = bits or BITS
        if budget_bytes is not None:
            weight_bits = bits_allowed(coded, kept, budget_bytes)
        needs = memory(run)
        step = time_from_rate(run, flops, "as stated") if flops else time_steps(run)
        look_seconds = time_look(run) if step.timed else 0.0
    finally:
        run.batches.close()
    looks = compression.looks if compression.target_bytes else 0
    steps = expected_steps(run, step.seconds, lost_seconds=looks * look_seconds)
    tokens = steps * training.batch_tokens
    return {
        "parameters": coded + kept,
        "coded_parameters": coded,
        "flops_per_token": flops_per_token(settings.model),
        "memory": {**asdict(needs), "total_bytes": needs.total_bytes},
        "micro_batch_tokens": run.micro_batch() * settings.model.context,
        "attention": run.attention,
        "kernels": run.kernels,
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
        "epochs": shards and tokens / run.batches.batches.order.epoch_tokens,
        "bits_per_weight": weight_bits,
        "artifact_bytes": artifact_bytes(coded, kept, weight_bits),
        "budget_bytes": budget_bytes,
    }


def _random_shards(settings: Recipe) -> list[Tokens]:
    """One shard to time steps on, with a document in each of its windows."""
    context = settings.model.context
    rng = np.random.default_rng(settings.training.seed & (2**64 - 1))
    tokens = rng.integers(0, settings.model.vocab, 256 * context + 1).astype(np.uint16)
    tokens[::context] = settings.model.bos
    return [tokens]


def plan_rows(result: dict[str, Any]) -> list[list[str]]:
    """The plan as a table's rows."""
    needs = result["memory"]
    table = [
        ["parameters", f"{result['parameters']:,}"],
        ["of them on a grid when packed", f"{result['coded_parameters']:,}"],
        ["MFLOP a token, forward and backward", f"{result['flops_per_token'] / 1e6:.1f}"],
    ]
    for part in ("weights", "gradients", "optimizer", "average", "activations", "total"):
        label = {
            "average": "averaged weights",
            "activations": f"activations of {result['micro_batch_tokens']:,} tokens, at most",
            "optimizer": "optimizer state",
        }.get(part, part)
        table.append([f"memory, GB: {label}", f"{needs[f'{part}_bytes'] / 1e9:.3f}"])
    limit = f"{result['training_seconds']:g}" if result["training_seconds"] else "no limit"
    table += [
        ["tokens a step", f"{result['batch_tokens']:,}"],
        ["milliseconds a step", f"{1000 * result['seconds_per_step']:.1f}"],
        ["  from", result["seconds_source"]],
        ["training seconds", limit],
    ]
    if result["reserve_seconds"]:
        table.append(["seconds kept for packing", f"{result['reserve_seconds']:g}"])
    if result["looks"]:
        each = result["seconds_per_look"]
        told = "seconds not known, not counted" if each is None else f"of {each:.1f} s"
        table.append(["looks at the packer, in the clock", f"{result['looks']}, {told}"])
    table += [["steps", f"{result['steps']:,}"], ["tokens", f"{result['tokens']:,}"]]
    if result["epochs"] is not None:
        table.append([f"epochs of the data, {result['loader']}", f"{result['epochs']:.3f}"])
    if result["budget_bytes"] is not None:
        table.append(["budget, bytes", f"{result['budget_bytes']:,}"])
    table += [
        ["bits a weight", f"{result['bits_per_weight']:.3f}"],
        ["expected file, bytes", f"{result['artifact_bytes']:,}"],
    ]
    return table
