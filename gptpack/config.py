"""Configuration as frozen values, checked where they are made; recipes in TOML load into them.

A recipe has the tables ``[model]``, ``[optimizer]``, ``[data]``, ``[training]`` and
``[compression]``; `load_recipe` also takes overrides such as ``model.layers=4``. Unknown keys and
values of the wrong type are errors.
"""

import dataclasses
import math
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from gptpack.errors import ConfigError

Activation = Literal["relu2", "leaky_relu2"]
MuonMethod = Literal["newton-schulz", "polar-express"]
StateDtype = Literal["float32", "bfloat16"]
QatMethod = Literal["straight-through", "noise"]
Loader = Literal["sequential", "coprime", "coprime-shards", "shuffled", "bos"]

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}

MOST_DIGITS = 18
"""Of a size: all of them fit into 64 bits."""
MOST_BITS = 63
"""Of an integer setting, without its sign."""


def parse_size(text: str) -> int:
    """Bytes that `text` stands for: ``16MB`` is 16,000,000 and ``16MiB`` is 16,777,216.

    Raises:
        ConfigError: not a number with one of the units, or not a whole number of bytes.
    """
    # a comma that parts no three digits is a decimal one, and would be read as ten times as much
    number = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]+)?"
    match = re.fullmatch(rf"\s*({number})\s*([A-Za-z]*)\s*", text)
    unit = UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"size '{text}': write a number and a unit, such as 16MB or 16MiB")
    whole, _, fraction = match[1].replace(",", "").replace("_", "").partition(".")
    if len(whole + fraction) > MOST_DIGITS:
        raise ConfigError(
            f"size of {len(whole + fraction):,} digits: write at most {MOST_DIGITS} and a unit, "
            "such as 16MB or 16MiB"
        )
    numerator = int(whole + fraction) * unit
    size_bytes, remainder = divmod(numerator, int(10 ** len(fraction)))
    if remainder:
        raise ConfigError(f"size '{text}' is not a whole number of bytes; write it in bytes")
    return size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape of a GPT. The defaults are the parameter-golf baseline."""

    vocab: int = 1024
    layers: int = 9
    width: int = 512
    heads: int = 8
    kv_heads: int = 4
    """Key/value heads; each serves ``heads // kv_heads`` query heads."""
    mlp_hidden: int = 1024
    activation: Activation = "relu2"
    """``relu(x)^2``, or ``leaky_relu(x, 0.5)^2``."""
    context: int = 1024
    """Tokens of a training sequence; evaluation uses the same unless told otherwise."""
    tied_embedding: bool = True
    rope_base: float = 10000.0
    rope_dims: int = 0
    """Rotated dimensions of each head; 0 rotates all of them."""
    rope_ntk_context: int = 0
    """Sequences longer than this stretch RoPE's base (NTK rule); 0 never does."""
    qk_gain: float = 1.5
    """Initial value of the learned per-head gain on normalised queries."""
    logit_softcap: float = 30.0
    xsa_layers: int = 0
    """The last n layers subtract from each head its projection on the token's own value."""
    bigram_rows: int = 0
    """Rows of the hashed bigram table; 0 leaves it out."""
    bigram_width: int = 0
    smear_gate: bool = False
    """Mix each token's embedding with its predecessor's, by a learned per-channel gate."""
    smear_across_documents: bool = False
    """Let the gate reach over a document's start, as the contest's first version did."""
    bos: int = 1
    """Token that starts each document."""
    value_embedding_layers: tuple[int, ...] = ()
    """Layers that add a shared token embedding to their values."""
    value_embedding_width: int = 0
    ln_scale: bool = False
    """Scale both norm outputs of layer l by ``1 / sqrt(l + 1)``."""
    orthogonal_init: bool = False
    """Start matrices that are not zero as orthogonal ones; else uniform in ``+-1/sqrt(inputs)``."""
    skip_gates: bool = False
    """Blend each U-Net skip in by a learned gate per channel instead of adding it."""
    attention_gate_inputs: int = 0
    """Gate each head's output by a linear function of the first n channels of the layer's input."""
    loop_start: int = 0
    loop_layers: int = 0
    """Depth recurrence: so many layers from `loop_start` on run `loops` times more, in turn."""
    loops: int = 0
    parallel_layers: int = 0
    """In the last n layers attention and MLP both start from the layer's input."""
    parallel_lanes: int = 1
    """1: they share one residual stream; 2: each has its own, and adds to both."""
    document_mask: bool = False
    """No position attends beyond the start of its document."""

    def __post_init__(self) -> None:
        for name in ("vocab", "layers", "width", "heads", "kv_heads", "mlp_hidden", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.width % self.heads:
            raise ConfigError(f"width={self.width} is not a multiple of heads={self.heads}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if self.head_width % 2:
            raise ConfigError(f"width / heads = {self.head_width} must be even for RoPE")
        if self.rope_dims % 2 or not 0 <= self.rope_dims <= self.head_width:
            raise ConfigError(
                f"rope_dims={self.rope_dims} must be even and at most {self.head_width}"
            )
        if not 0 <= self.xsa_layers <= self.layers:
            raise ConfigError(f"xsa_layers={self.xsa_layers} must be 0 to layers={self.layers}")
        if self.vocab > 65536:
            raise ConfigError(f"vocab={self.vocab} does not fit the shards' 16-bit tokens")
        for name in ("logit_softcap", "rope_base"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive")
        if not 0 <= self.bos < self.vocab:
            raise ConfigError(f"bos={self.bos} must lie in 0..{self.vocab - 1}")
        self._check_parts()
        self._check_order()

    def _check_parts(self) -> None:
        for name in ("bigram_rows", "bigram_width", "value_embedding_width"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if (self.bigram_rows > 0) != (self.bigram_width > 0) or self.bigram_rows == 1:
            raise ConfigError("bigram_rows (at least 2) and bigram_width go together")
        if bool(self.value_embedding_layers) != (self.value_embedding_width > 0):
            raise ConfigError("value_embedding_layers and value_embedding_width go together")
        if any(not 0 <= layer < self.layers for layer in self.value_embedding_layers):
            raise ConfigError(f"value_embedding_layers must lie in 0..{self.layers - 1}")
        if len(set(self.value_embedding_layers)) < len(self.value_embedding_layers):
            raise ConfigError("value_embedding_layers must not name a layer twice")
        if self.smear_across_documents and not self.smear_gate:
            raise ConfigError("smear_across_documents means nothing without smear_gate")
        if not 0 <= self.attention_gate_inputs <= self.width:
            raise ConfigError(
                f"attention_gate_inputs={self.attention_gate_inputs} must be 0 to "
                f"width={self.width}"
            )

    def _check_order(self) -> None:
        if (self.loop_layers > 0) != (self.loops > 0) or min(self.loop_layers, self.loops) < 0:
            raise ConfigError("loop_layers and loops go together; 0 and 0 are no recurrence")
        loop_end = self.loop_start + self.loop_layers
        if not 0 <= self.loop_start <= loop_end <= self.layers:
            raise ConfigError(
                f"loop_start={self.loop_start} and loop_layers={self.loop_layers} must lie within "
                f"layers={self.layers}"
            )
        if self.parallel_lanes not in (1, 2):
            raise ConfigError(f"parallel_lanes={self.parallel_lanes} must be 1 or 2")
        if self.parallel_lanes == 2 and not self.parallel_layers:
            raise ConfigError("parallel_lanes=2 means nothing without parallel_layers")
        if not 0 <= self.parallel_layers <= self.layers:
            raise ConfigError(
                f"parallel_layers={self.parallel_layers} must be 0 to layers={self.layers}"
            )
        if self.loop_start and not self.loops:
            raise ConfigError(f"loop_start={self.loop_start} means nothing without loops")
        if self.loops and loop_end > self.layers - self.parallel_layers:
            raise ConfigError(
                f"layers {self.loop_start}..{loop_end - 1} run several times, so they must come "
                f"before the last parallel_layers={self.parallel_layers}"
            )

    def layer_order(self, looped: bool = True) -> tuple[int, ...]:
        """The layers as they run; those of the recurrence once only unless `looped`."""
        end = self.loop_start + self.loop_layers
        again = tuple(range(self.loop_start, end)) * (self.loops if looped else 0)
        return (*range(end), *again, *range(end, self.layers))

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_width


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
class DataConfig:
    """In which order training sees the shards (docs/decisions/order-of-the-data.md)."""

    loader: Loader = "sequential"
    """``coprime`` mixes blocks of many shards, ``coprime-shards`` reorders whole shards,
    ``shuffled`` permutes all blocks, ``bos`` begins every window at a document's start."""
    mix_shards_start: int = 8
    mix_shards_end: int = 64
    """Shards that ``coprime`` mixes in the first step and from `mix_steps` on. The record's are
    ``max(8, ranks)`` and ``max(32, 8 ranks)``; these are its values on eight ranks."""
    mix_steps: int = 1800
    """Steps over which the mix goes linearly from its start to its end; 0 is there at once."""
    mix_power_start: float = 0.9
    mix_power_end: float = 0.5
    """A shard is drawn with a weight of the blocks it has left to this power."""

    def __post_init__(self) -> None:
        for name in ("mix_shards_start", "mix_shards_end"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.mix_steps < 0:
            raise ConfigError(f"mix_steps={self.mix_steps} must not be negative")
        # higher powers of a large shard's blocks are beyond floats, and mix nothing any more
        for name in ("mix_power_start", "mix_power_end"):
            if not 0 <= getattr(self, name) <= 10:
                raise ConfigError(f"{name}={getattr(self, name)} must lie in [0, 10]")


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
class TokenizerIdentity:
    """Which tokenizer a model's tokens belong to."""

    sha256: str
    """Hexadecimal digest of the SentencePiece model file."""
    vocab: int
    bos: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ConfigError(f"tokenizer sha256 '{self.sha256}' is not 64 hexadecimal digits")
        if not 1 <= self.vocab <= 65536:
            raise ConfigError(f"tokenizer vocab={self.vocab} must lie in 1..65536")
        if not 0 <= self.bos < self.vocab:
            raise ConfigError(f"tokenizer bos={self.bos} must lie in 0..{self.vocab - 1}")


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


Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """`config` as plain dictionaries, lists and scalars; `from_dict` reads it back."""
    plain = dataclasses.asdict(config)

    def listed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: listed(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return {key: listed(value) for key, value in plain.items()}


def non_default(config: Any) -> dict[str, Any]:
    """What of `to_dict` differs from the defaults of the configuration's class."""
    defaults = to_dict(type(config)())
    return {key: value for key, value in to_dict(config).items() if value != defaults[key]}


def from_dict(cls: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """Build `cls` from plain values; the types are checked against its annotations.

    Raises:
        ConfigError: an unknown key or a value of the wrong type; names its dotted path.
    """
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else key
        if key not in hints:
            raise ConfigError(f"unknown setting '{path}'; there are: {', '.join(sorted(hints))}")
        arguments[key] = _coerce(hints[key], value, path)
    return cls(**arguments)


def _coerce(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ConfigError(
            f"{path} is an integer of {value.bit_length()} bits; it may have {MOST_BITS} and a sign"
        )
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(typing.cast(type[Any], hint), value, path)
    if origin is Literal and value in typing.get_args(hint):
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_coerce(typing.get_args(hint)[0], item, path) for item in value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{path}={value!r} must be a finite number")
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    wanted = (
        "one of " + ", ".join(map(str, typing.get_args(hint)))
        if origin is Literal
        else getattr(hint, "__name__", hint)
    )
    raise ConfigError(f"{path}={value!r} must be {wanted}")


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
