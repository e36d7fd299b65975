"""A training run's whole configuration, in TOML or as overrides such as ``model.layers=4``.

A recipe has the tables ``[model]``, ``[optimizer]``, ``[data]``, ``[training]`` and
``[compression]``. Unknown keys and values of the wrong type are errors.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gptpack.data.orders import DataConfig
from gptpack.errors import ConfigError
from gptpack.families.golf.config import ModelConfig
from gptpack.values import from_dict

MuonMethod = Literal["newton-schulz", "polar-express"]
StateDtype = Literal["float32", "bfloat16"]
QatMethod = Literal["straight-through", "noise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Muon for the matrices of the blocks, Adam for everything else."""

    matrix_lr: float = 0.04
    scalar_lr: float = 0.04
    embed_lr: float = 0.05
    """Learning rate of the embeddings when input and output share one, and of the side tables."""
    untied_embed_lr: float = 0.6
    head_lr: float = 0.008
    """Learning rates of an input embedding and an output head that are separate."""
    muon_momentum: float = 0.95
    muon_momentum_start: float = 0.85
    muon_momentum_warmup_steps: int = 500
    muon_momentum_cooldown_steps: int = 0
    """Momentum goes back to its start over the last so many steps (as wall-clock time)."""
    muon_method: MuonMethod = "newton-schulz"
    """How matrices are orthogonalised: one polynomial throughout, or the best of each iteration."""
    muon_steps: int = 5
    """Iterations of it; ``polar-express`` has 5."""
    muon_row_norm: bool = False
    """Bring the rows of an update to one length before it is orthogonalised (MuonEq-R)."""
    muon_variance_beta2: float = 0.0
    """Even out the rows (or columns, the longer side) of an orthogonalised update by a running
    mean of their squares with this decay (NorMuon; speedruns have 0.9); 0 does not."""
    muon_momentum_dtype: StateDtype = "float32"
    """What momentum is kept in between steps."""
    matrix_weight_decay: float = 0.0
    """Decoupled: weights shrink by ``lr * decay`` before each update."""
    adam_weight_decay: float = 0.0
    cautious_weight_decay: bool = False
    """Decay only weights that the update shrinks as well, for Muon and Adam."""
    weight_decay_taper_start: float = 1.0
    """Share of the run from which both weight decays fall linearly; 1: they do not."""
    weight_decay_final: float = 0.5
    """What they fall to, as a share of themselves."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    grad_clip: float = 0.0
    """Largest global gradient norm; 0 does not clip."""
    ema_decay: float = 0.0
    """Per-step decay of the averaged weights that get packed; 0 packs the last ones."""
    swa_every: int = 0
    """Pack the plain mean of the weights after every so many steps (SWA); 0 does not."""
    swa_start: float = 0.75
    """Share of the run from which that mean is taken."""

    def __post_init__(self) -> None:
        for name in (
            "muon_momentum",
            "muon_momentum_start",
            "muon_variance_beta2",
            "adam_beta1",
            "adam_beta2",
            "ema_decay",
            "swa_start",
        ):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must lie in [0, 1)")
        for name in ("weight_decay_taper_start", "weight_decay_final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must lie in [0, 1]")
        for name in (
            "matrix_lr",
            "scalar_lr",
            "embed_lr",
            "untied_embed_lr",
            "head_lr",
            "muon_momentum_warmup_steps",
            "muon_momentum_cooldown_steps",
            "matrix_weight_decay",
            "adam_weight_decay",
            "adam_eps",
            "grad_clip",
            "swa_every",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if self.muon_steps < 1:
            raise ConfigError(f"muon_steps={self.muon_steps} must be at least 1")
        if self.muon_method == "polar-express" and self.muon_steps > 5:
            raise ConfigError(f"muon_steps={self.muon_steps}: polar-express has 5 iterations")
        if self.ema_decay and self.swa_every:
            raise ConfigError(
                f"ema_decay={self.ema_decay} and swa_every={self.swa_every} exclude each other: "
                "one average is packed; set one of them to 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How long, on how much at a time, and how it is watched."""

    batch_tokens: int = 524288
    """Tokens of one optimizer step over all ranks and accumulation steps."""
    micro_batch_tokens: int = 0
    """Tokens one rank puts through the model at once; 0 chooses by device."""
    seconds: float = 600.0
    """Wall-clock budget of training, compile time excluded; 0 goes by `steps` alone."""
    reserve_seconds: float = 0.0
    """Seconds of the budget that are kept for packing; training ends so much earlier."""
    steps: int = 20000
    """Most steps."""
    warmdown_steps: int = 1200
    """The learning rate falls linearly to 0 over the last so many steps (as wall-clock time)."""
    warmdown_fraction: float = 0.0
    """The same over the last share of the run, in place of `warmdown_steps`; 0 goes by those."""
    lr_floor: float = 0.0
    """The learning rate stays at this share of its peak or above."""
    recurrence_start: float = 0.0
    """Share of the run from which the model's recurrent layers run more than once; 1: never."""
    dropout: float = 0.0
    """Share of the numbers of each layer's attention and MLP outputs that training leaves out, anew
    in each step; the others grow in turn. Srivastava et al. 2014."""
    qat_start: float = 1.0
    """Share of the run from which the forward pass sees quantized weights; 1: never."""
    compile_warmup_steps: int = 3
    """Steps whose weights are thrown away, outside the clock, so that compilation is done."""
    seed: int = 1337
    checkpoint_seconds: float = 300.0
    """Save every so many seconds; 0 saves at the end only."""

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in (
            "micro_batch_tokens",
            "seconds",
            "reserve_seconds",
            "warmdown_steps",
            "checkpoint_seconds",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("warmdown_fraction", "lr_floor", "recurrence_start", "qat_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must lie in [0, 1]")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must lie in [0, 1)")
        if self.warmdown_fraction and self.warmdown_steps:
            raise ConfigError(
                f"warmdown_fraction={self.warmdown_fraction} and "
                f"warmdown_steps={self.warmdown_steps} exclude each other; set one of them to 0"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed} must lie in 0..2^63 - 1")
        if self.seconds and self.reserve_seconds >= self.seconds:
            raise ConfigError(
                f"reserve_seconds={self.reserve_seconds} leaves nothing of seconds={self.seconds}"
            )

    @property
    def clock_seconds(self) -> float:
        """Seconds after which training ends; 0 where there is no clock, whatever is reserved."""
        return self.seconds and self.seconds - self.reserve_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionConfig:
    """Training for the size of the packed file (docs/decisions/pressure.md)."""

    target_bytes: int = 0
    """Bytes that the packed file will have; 0 trains without a thought of it."""
    start: float = 0.5
    """Share of the run from which coded bits are part of the loss; 1: never."""
    pressure: float = 1.0
    """Price of a bit, as a multiple of what the packer would give for it; 0 only predicts."""
    looks: int = 4
    """How often the packer's steps are measured, evenly from the first time they are needed."""
    qat: QatMethod = "straight-through"
    """What passes see from `training.qat_start` on: rounded weights, or such with uniform noise."""

    def __post_init__(self) -> None:
        if self.target_bytes < 0:
            raise ConfigError(f"target_bytes={self.target_bytes} must not be negative")
        if not 0 <= self.start <= 1:
            raise ConfigError(f"start={self.start} must lie in [0, 1]")
        if not 0 <= self.pressure < float("inf"):
            raise ConfigError(f"pressure={self.pressure} must be a number, and not negative")
        if self.looks < 1:
            raise ConfigError(f"looks={self.looks} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run's whole configuration."""

    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig)

    def __post_init__(self) -> None:
        if self.model.loops and self.training.recurrence_start == 1:
            raise ConfigError(
                "training.recurrence_start=1 trains the model without its loops, and everybody "
                "else would run it with them; set model.loops=0"
            )
        if self.training.qat_start < 1 and not self.compression.target_bytes:
            raise ConfigError(
                f"training.qat_start={self.training.qat_start} needs compression.target_bytes "
                "(gptpack train --target-bytes): the grid is that of a file of so many bytes"
            )


def load_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe (None: the defaults) and apply ``table.key=value`` overrides.

    Raises:
        ConfigError: unreadable file, unknown keys, values out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot read the recipe: {error.strerror}") from error
        # besides what is no TOML: integers of thousands of digits, and tables within tables
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not TOML: {error}") from error
    for override in overrides:
        dotted, found, text = override.partition("=")
        table, _, key = dotted.strip().partition(".")
        if not found or not key or "." in key:
            raise ConfigError(f"--set {override}: write table.key=value, such as model.layers=4")
        try:
            parsed = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            parsed = text.strip()
        section = values.setdefault(table, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: '{table}' is not a table of the recipe")
        section[key] = parsed
    return from_dict(Recipe, values)
