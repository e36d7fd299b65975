"""What `gptpack plan` needs besides the law: runs from a file, and shapes to ask it about."""

import csv
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gptpack.config import ModelConfig, load_recipe
from gptpack.errors import BudgetError, ConfigError, DataError, GptpackError
from gptpack.model.gpt import GPT
from gptpack.packing.packer import on_grid
from gptpack.recipe_files import find_recipe
from gptpack.report.law import Law, RunFigures
from gptpack.training.plan import bits_allowed

COLUMNS = ("recipe", "set", "tokens", "seconds", "gpus", "bpb_before", "bytes", "bpb_after")
REACH = 2.0
"""Parameters and tokens may lie beyond those of the runs by this factor."""
REACH_BITS = 0.5
"""Bits a weight may lie below those of the runs by so many: penalties triple within a bit."""
LARGEST_FIGURE = 1e18
"""No column of a run is above, or below its inverse."""


def read_runs(path: Path, recipe: str | None = None) -> list[RunFigures]:
    """The runs of a CSV, or those of `recipe` alone.

    Raises:
        DataError: unreadable, columns missing, or a value that is no positive number.
        ConfigError: a recipe that is not there, or a setting that makes no sense.
        BudgetError: a file of fewer bytes than the model's floats take.
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot read the runs: {error}") from error
    if missing := [name for name in COLUMNS if rows and name not in rows[0]]:
        raise DataError(f"{path}: no column {', '.join(missing)}; needed are {','.join(COLUMNS)}")
    found = []
    for number, row in enumerate(rows, 2):
        if recipe not in (None, row["recipe"]):
            continue
        try:
            found.append(_run(row))
        except GptpackError as error:
            raise type(error)(f"{path}, line {number}: {error}") from error
    return found


def _run(row: dict[str, str]) -> RunFigures:
    model = load_recipe(find_recipe(row["recipe"] or ""), (row["set"] or "").split()).model
    coded, kept = numbers_of(model)
    packed = bool(row["bytes"])
    return RunFigures(
        name=f"{row['recipe']} {row['set'] or ''}".strip(),
        parameters=coded + kept,
        vocab=model.vocab,
        tokens=_whole(row, "tokens"),
        gpu_seconds=_positive(row, "seconds") * _positive(row, "gpus"),
        bpb_before=_positive(row, "bpb_before"),
        bits=bits_allowed(coded, kept, _whole(row, "bytes")) if packed else 0.0,
        bpb_after=_positive(row, "bpb_after") if packed else 0.0,
    )


def _positive(row: dict[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = 0.0
    if not 0 < value < float("inf"):
        raise DataError(f"{name} '{row[name]}' is not a positive number")
    if not 1 / LARGEST_FIGURE <= value <= LARGEST_FIGURE:
        raise DataError(f"{name} '{row[name]}' is no figure of a run")
    return value


def _whole(row: dict[str, str], name: str) -> int:
    if not (value := round(_positive(row, name))):
        raise DataError(f"{name} '{row[name]}' is less than one")
    return value


@functools.cache
def numbers_of(config: ModelConfig) -> tuple[int, int]:
    """Weights that are coded on a grid when packed, and all others."""
    with torch.device("meta"):
        sizes = [(on_grid(n, p.shape), p.numel()) for n, p in GPT(config).named_parameters()]
    coded = sum(size for grid, size in sizes if grid)
    return coded, sum(size for _, size in sizes) - coded


def shapes(base: ModelConfig) -> Iterator[ModelConfig]:
    """Models of the proportions of `base`: for each depth, the widths that are next to them."""
    unit = base.head_width * (base.heads // base.kv_heads)
    sizes = []
    for layers in range(1, 4 * base.layers + 1):
        below, rest = divmod(base.width * layers, base.layers * unit)
        above = below + (rest > 0)
        sizes += [(layers, units * unit) for units in sorted({max(1, below), above})]
    for layers, width in sizes:
        heads = width // base.head_width
        try:
            yield replace(
                base,
                layers=layers,
                width=width,
                heads=heads,
                kv_heads=heads * base.kv_heads // base.heads,
                mlp_hidden=round(base.mlp_hidden * width / base.width),
                xsa_layers=min(base.xsa_layers, layers),
                value_embedding_layers=tuple(
                    layer + layers - base.layers for layer in base.value_embedding_layers
                ),
            )
        except ConfigError:
            continue  # its parts do not fit so few layers


def proposals(
    law: Law, base: ModelConfig, *, budget_bytes: int, gpu_seconds: float
) -> list[dict[str, Any]]:
    """Shapes with what the law expects of each, the best first.

    Raises:
        BudgetError: none of them is within reach of the runs.
        DataError: all runs have one vocabulary, and `base` another.
    """
    if not law.with_vocab and (known := law.runs[0].vocab) != base.vocab:
        raise DataError(
            f"the runs have a vocabulary of {known}, the recipe one of {base.vocab}; add runs with "
            "that and another one, or name the runs' recipe"
        )
    packed = [run.bits for run in law.runs if run.bits]
    vocabularies = sorted({run.vocab for run in law.runs}) if law.with_vocab else [base.vocab]
    found = []
    for shape in shapes(base):
        for vocab in vocabularies:
            config = replace(shape, vocab=vocab)
            coded, kept = numbers_of(config)
            if not _near(coded + kept, [run.parameters for run in law.runs]):
                continue
            try:
                bits = bits_allowed(coded, kept, budget_bytes)
            except BudgetError:
                continue
            tokens = round(gpu_seconds * law.tokens_per_second(coded + kept))
            # more bits than the runs have gain next to nothing: only fewer are beyond them
            if bits < min(packed) - REACH_BITS or not _near(
                tokens, [run.tokens for run in law.runs]
            ):
                continue
            expected = law.expect(
                parameters=coded + kept, tokens=tokens, vocab=vocab, bits=min(bits, max(packed))
            )
            found.append(
                {
                    "layers": config.layers,
                    "width": config.width,
                    "mlp_hidden": config.mlp_hidden,
                    "vocab": vocab,
                    "parameters": coded + kept,
                    "bits": bits,
                    "tokens": tokens,
                    "bpb_before": expected.bpb_before,
                    "penalty_bpb": expected.penalty_bpb,
                    "bpb_after": expected.bpb_after,
                    "error_bpb": expected.error_bpb,
                }
            )
    if not found:
        raise BudgetError(
            f"no shape for {budget_bytes:,} bytes and {gpu_seconds:,.0f} GPU seconds lies within a "
            f"factor of {REACH:g} of the runs' parameters and tokens, and {REACH_BITS:g} of their "
            "bits a weight; add runs nearer to it"
        )
    return sorted(found, key=lambda one: one["bpb_after"])


def _near(value: float, known: list[int]) -> bool:
    return min(known) / REACH <= value <= max(known) * REACH
