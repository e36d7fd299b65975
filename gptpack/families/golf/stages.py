"""The shape of a speedrun model -> whether it is one, and how each stage of training attends.

A stage has a window in tokens, the position itself among them; the last stage's is what the model
runs with. Without torch, because every configuration is checked by this.
"""

import math
from dataclasses import fields
from typing import NamedTuple

from gptpack.errors import ConfigError
from gptpack.families.golf.config import SPEEDRUN, ModelConfig

SHARED = (
    *("vocab", "layers", "width", "heads", "kv_heads", "mlp_hidden", "context", "bos"),
    *("tied_embedding", "rope_base", "rope_dims", "qk_gain", "logit_softcap", "document_mask"),
    *("smear_gate", "skip_gates", "attention_gate_inputs"),
)
"""Fields that a golf and a speedrun model both have."""
YARN_TURNS = (1.0, 32.0)
"""Turns over the old window: frequencies with fewer than the first are interpolated in full, those
with more than the second stay."""
SMEAR_INPUTS = 12
"""Channels, the first ones, that the smear gate is a linear function of."""


class Stage(NamedTuple):
    """What attention of one stage is made with."""

    long: int
    """Tokens of the window of the layers ``long_window_layers``."""
    short: int
    """Tokens of the window of all other layers."""
    frequencies: tuple[float, ...]
    """Radians by which each pair of channels turns from one position to the next."""
    gain: float
    """Factor on queries that have a root mean square of 1."""


def check(config: ModelConfig) -> None:
    """Hold a configuration with any setting of a speedrun model to what such a model can have.

    Raises:
        ConfigError: names the setting, and what it must be.
    """
    if config.architecture != "speedrun":
        raise ConfigError(f"{', '.join(SPEEDRUN)} are of architecture='speedrun' alone")
    plain = type(config)()
    golfs = {field.name for field in fields(config)} - {*SHARED, *SPEEDRUN, "architecture"}
    for name in sorted(golfs):
        if getattr(config, name) != getattr(plain, name):
            raise ConfigError(f"{name}={getattr(config, name)} is not of architecture='speedrun'")
    if config.tied_embedding or not config.document_mask or config.layers % 2:
        raise ConfigError(
            "architecture='speedrun' needs tied_embedding=false, document_mask=true and an even "
            f"number of layers (layers={config.layers})"
        )
    if not 0 <= 2 * config.value_tables <= config.layers:
        raise ConfigError(
            f"value_tables={config.value_tables} must be 0 to half of layers={config.layers}"
        )
    if config.smear_gate and config.width < SMEAR_INPUTS:
        raise ConfigError(f"width={config.width} must be {SMEAR_INPUTS} or more for a smear gate")
    for name in ("attention_free_layers", "mlp_free_layers", "long_window_layers"):
        layers = getattr(config, name)
        if sorted({*layers} & {*range(config.layers)}) != [*layers]:
            raise ConfigError(f"{name}={[*layers]} must rise and lie in 0..{config.layers - 1}")
    pairs = [*zip(config.windows, config.short_windows, strict=False)]
    if (
        not pairs
        or len(config.windows) != len(config.short_windows)
        or any(not 1 <= short <= long for long, short in pairs)
        or list(config.windows) != sorted(config.windows)
    ):
        raise ConfigError(
            f"windows={[*config.windows]} and short_windows={[*config.short_windows]} must have a "
            "number for each stage, at least one; long ones never shrink, and short ones are 1 or "
            "more and no longer than they"
        )


def stages(config: ModelConfig) -> list[Stage]:
    """All stages of a speedrun model, in the order of training.

    With `window_yarn` each longer window slows down frequencies that turn seldom within the old
    one, and sharpens attention: ``f <- f (s + w (1 - s))`` with ``s = old / new`` and w rising from
    0 to 1 over `YARN_TURNS`, and ``gain <- gain (1 + 0.2 ln(new / old))``. modded-nanogpt, record
    of 2025-09-10, after Peng et al. 2023.
    """
    dims = config.turning
    frequencies = [config.rope_base ** (-2 * pair / dims) for pair in range(dims // 2)]
    gain = config.qk_gain
    found: list[Stage] = []
    for long, short in zip(config.windows, config.short_windows, strict=True):
        if found and config.window_yarn:
            old = found[-1].long
            frequencies = [
                each * _slowed(each * old / (2 * math.pi), old / long) for each in frequencies
            ]
            gain *= 1 + 0.2 * math.log(long / old)
        found.append(Stage(long, short, tuple(frequencies), gain))
    return found


def _slowed(turns: float, scale: float) -> float:
    """Factor on a frequency that makes so many turns over the old window."""
    low, high = YARN_TURNS
    kept = min(max((turns - low) / (high - low), 0.0), 1.0)
    return scale + kept * (1 - scale)
