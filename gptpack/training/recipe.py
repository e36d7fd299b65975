"""A TOML file, and overrides such as ``model.layers=4`` -> a training run's whole configuration.

A recipe has the tables ``[model]``, ``[optimizer]``, ``[data]``, ``[training]`` and
``[compression]``. Unknown keys and values of the wrong type are errors. Recipes that come with the
package are found by bare name: `gptpack/recipes` is a link to the folder `recipes` at the top of
the checkout; a wheel holds the files themselves.
"""

import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gptpack.data.orders import DataConfig
from gptpack.errors import ConfigError
from gptpack.families.golf.config import ModelConfig
from gptpack.inputs import read_text
from gptpack.values import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    check_fields,
    from_dict,
    nearest,
    to_dict,
)

MuonMethod = Literal["newton-schulz", "polar-express"]
StateDtype = Literal["float32", "bfloat16"]

FOLDER = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Muon for the matrices of the blocks, Adam for everything else."""

    matrix_lr: float = 0.04
    """Learning rate of the blocks' matrices, by Muon."""
    scalar_lr: float = 0.04
    """Learning rate of vectors and scalars, by Adam."""
    embed_lr: float = 0.05
    """Learning rate of an embedding that input and output share, and of the side tables."""
    untied_embed_lr: float = 0.6
    """Learning rate of an input embedding beside a separate output head."""
    head_lr: float = 0.008
    """Learning rate of a separate output head."""
    muon_momentum: float = 0.95
    """Muon's momentum, once it is warm."""
    muon_momentum_start: float = 0.85
    """Muon's momentum at the first step."""
    muon_momentum_warmup_steps: int = 500
    """Steps over which the momentum rises linearly from its start."""
    muon_momentum_cooldown_steps: int = 0
    """Momentum falls back to its start over the last so many steps (as wall-clock time)."""
    muon_method: MuonMethod = "newton-schulz"
    """How matrices are orthogonalised: one polynomial throughout, or the best of each iteration."""
    muon_steps: int = 5
    """Iterations of the orthogonalisation; ``polar-express`` has at most 5."""
    muon_row_norm: bool = False
    """Bring the rows of an update to one length before it is orthogonalised (MuonEq-R)."""
    muon_variance_beta2: float = 0.0
    """Even out the rows (or columns, the longer side) of an orthogonalised update by a running
    mean of their squares with this decay (NorMuon; speedruns have 0.9); 0 does not."""
    muon_momentum_dtype: StateDtype = "float32"
    """Dtype in which momentum is kept between steps."""
    matrix_weight_decay: float = 0.0
    """Decoupled decay of Muon's matrices: they shrink by ``lr * decay`` before each update."""
    adam_weight_decay: float = 0.0
    """Decoupled decay of everything that Adam trains, by ``lr * decay`` as well."""
    cautious_weight_decay: bool = False
    """Both optimizers decay only weights that the update shrinks as well."""
    weight_decay_taper_start: float = 1.0
    """Share of the run from which both weight decays fall linearly; at 1 they never do."""
    weight_decay_final: float = 0.5
    """Weight decay at the end of such a fall, as a share of the full one."""
    adam_beta1: float = 0.9
    """Decay of Adam's mean of gradients."""
    adam_beta2: float = 0.95
    """Decay of Adam's mean of their squares."""
    adam_eps: float = 1e-8
    """What is added to Adam's denominator."""
    grad_clip: float = 0.0
    """Gradients are scaled down to this global norm; 0 does not clip."""
    ema_decay: float = 0.0
    """Per-step decay of the exponential average of weights that gets packed; 0 keeps none."""
    swa_every: int = 0
    """The plain mean of the weights after every so many steps gets packed (SWA); 0 keeps none."""
    swa_start: float = 0.75
    """Share of the run from which SWA takes weights into its mean."""

    def __post_init__(self) -> None:
        check_fields(self, BELOW_ONE, "muon_momentum muon_momentum_start muon_variance_beta2")
        check_fields(self, BELOW_ONE, "adam_beta1 adam_beta2 ema_decay swa_start")
        check_fields(self, SHARE, "weight_decay_taper_start weight_decay_final")
        check_fields(self, NOT_NEGATIVE, "matrix_lr scalar_lr embed_lr untied_embed_lr head_lr")
        check_fields(self, NOT_NEGATIVE, "muon_momentum_warmup_steps muon_momentum_cooldown_steps")
        check_fields(self, NOT_NEGATIVE, "matrix_weight_decay adam_weight_decay adam_eps")
        check_fields(self, NOT_NEGATIVE, "grad_clip swa_every")
        check_fields(self, POSITIVE, "muon_steps")
        if self.muon_method == "polar-express" and self.muon_steps > 5:
            raise ConfigError(f"muon_steps={self.muon_steps}: polar-express has 5 iterations")
        if self.ema_decay and self.swa_every:
            raise ConfigError(
                f"ema_decay={self.ema_decay} and swa_every={self.swa_every} exclude each other: "
                "one average is packed; set one of them to 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Length of a run, tokens of its steps, and its schedules."""

    batch_tokens: int = 524288
    """Tokens of one optimizer step, over all ranks and micro batches."""
    micro_batch_tokens: int = 0
    """Tokens, at most, that a rank puts through the model at once; 0 chooses by device."""
    seconds: float = 600.0
    """Wall-clock budget of training without compilation; 0 goes by `steps` alone."""
    reserve_seconds: float = 0.0
    """Seconds of the budget that are left for packing; training ends so much earlier."""
    steps: int = 20000
    """Optimizer steps after which training ends at the latest."""
    warmdown_steps: int = 1200
    """The learning rate falls linearly to 0 over the last so many steps (as wall-clock time)."""
    warmdown_fraction: float = 0.0
    """The rate falls over this last share of the run instead; 0 goes by `warmdown_steps`."""
    lr_floor: float = 0.0
    """The learning rate stays at this share of its peak or above."""
    lr_final: float = 0.0
    """Share of its peak to which the learning rate falls linearly, in place of 0."""
    window_stages: float = 0.0
    """Stages of a speedrun model's windows in a run, each as long as the others; a number that is
    not whole cuts the last one short. Windows beyond them are for evaluation; 0 trains with those
    of the last stage."""
    context_halvings: int = 0
    """Times that the context of attention is halved at the start of a run: nothing is seen beyond
    blocks of so many tokens. They double in equal parts of the run up to ``full_context_start``,
    which goes with it.
    Press et al. 2021 train on shorter inputs first, https://arxiv.org/abs/2012.15832."""
    full_context_start: float = 0.0
    """Share of the run from which attention has the model's whole context."""
    recurrence_start: float = 0.0
    """Share of the run from which recurrent layers run more than once; at 1 they never do."""
    dropout: float = 0.0
    """Share of the numbers of each layer's attention and MLP outputs that training leaves out, anew
    in each step; the others grow in turn. Srivastava et al. 2014."""
    ahead_weight: float = 0.0
    """Weight at the start of the loss of the token after the next, which each position learns to
    predict as well, by a matrix that is not packed. It falls linearly to 0 at ``ahead_end``.
    Gloeckle et al. 2024, https://arxiv.org/abs/2404.19737."""
    ahead_end: float = 0.0
    """Share of the run from which there is no such loss; goes with ``ahead_weight``."""
    compile_warmup_steps: int = 3
    """Steps made before the clock starts, and undone, so that everything is compiled by then."""
    seed: int = 1337
    """Seed of the weights, of the order of the data and of dropout."""
    checkpoint_seconds: float = 300.0
    """A checkpoint is written every so many seconds; 0 writes one at the end only."""

    def __post_init__(self) -> None:
        check_fields(self, POSITIVE, "batch_tokens steps")
        check_fields(self, NOT_NEGATIVE, "micro_batch_tokens seconds reserve_seconds")
        check_fields(self, NOT_NEGATIVE, "warmdown_steps checkpoint_seconds window_stages")
        check_fields(self, NOT_NEGATIVE, "context_halvings")
        check_fields(self, SHARE, "warmdown_fraction lr_floor lr_final recurrence_start")
        check_fields(self, SHARE, "full_context_start ahead_weight ahead_end")
        check_fields(self, BELOW_ONE, "dropout")
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
        """Seconds after which training ends; 0 without a clock, whatever is reserved."""
        return self.seconds and self.seconds - self.reserve_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionConfig:
    """Training for the size of the packed file (docs/decisions/pressure.md)."""

    target_bytes: int = 0
    """Bytes that the packed file will have; 0 trains without regard to its size."""
    start: float = 0.5
    """Share of the run from which coded bits are part of the loss; at 1 they never are."""
    pressure: float = 1.0
    """Price of a bit, as a multiple of what the packer would give for it; 0 only predicts."""
    looks: int = 4
    """Times that the packer's grid is measured, evenly from where it is first needed."""

    def __post_init__(self) -> None:
        check_fields(self, NOT_NEGATIVE, "target_bytes")
        check_fields(self, SHARE, "start")
        if not 0 <= self.pressure < float("inf"):
            raise ConfigError(f"pressure={self.pressure} must be a number, and not negative")
        check_fields(self, POSITIVE, "looks")


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
                "training.recurrence_start=1 trains the model without its loops, but packing and "
                "evaluation run it with them; set model.loops=0"
            )
        if self.training.window_stages > len(self.model.windows):
            raise ConfigError(
                f"training.window_stages={self.training.window_stages:g} of the "
                f"{len(self.model.windows)} in model.windows; set it to at most that"
            )
        for name in ("dropout", "ahead_weight"):
            if self.model.architecture == "speedrun" and getattr(self.training, name):
                raise ConfigError(f"training.{name} is not of architecture='speedrun'; set it to 0")
        for pair in ("context_halvings full_context_start", "ahead_weight ahead_end"):
            values = {name: getattr(self.training, name) for name in pair.split()}
            if any(values.values()) != all(values.values()):
                said = " and ".join(f"training.{name}={each:g}" for name, each in values.items())
                raise ConfigError(f"{said} do nothing without each other; set both or none")
        halvings = self.training.context_halvings
        if halvings and (self.model.architecture == "speedrun" or self.model.document_mask):
            raise ConfigError(
                f"training.context_halvings={halvings} goes with causal attention alone; set it to "
                "0 for architecture='speedrun' and for document_mask"
            )
        if self.model.context >> halvings << halvings != self.model.context:
            raise ConfigError(
                f"training.context_halvings={halvings}: model.context={self.model.context} cannot "
                "be halved so often"
            )


def recipe_names() -> list[str]:
    """Bare names of the packaged recipes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_recipe(recipe: str | Path) -> Path:
    """The recipe's file: `recipe` itself where it is a file, else the packaged one so named.

    Raises:
        ConfigError: neither a file nor the name of a packaged recipe.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    packaged = FOLDER / f"{path.name}.toml"
    if len(path.parts) == 1 and packaged.is_file():
        return packaged
    names = recipe_names()
    raise ConfigError(
        f"recipe '{recipe}' is not a file, and the packaged recipes are: "
        f"{', '.join(names)}{nearest(str(recipe), names)}"
    )


def load_recipe(recipe: "str | Path | Recipe | None", overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a TOML file or of a packaged name (None: the defaults), with overrides.

    Args:
        overrides: each ``table.key=value``, the value in TOML; what is no TOML is text.

    Raises:
        ConfigError: no such recipe, an unreadable file, unknown keys, values out of range.
    """
    values: dict[str, Any] = {}
    if isinstance(recipe, Recipe):
        values = to_dict(recipe)
    elif recipe is not None:
        path = find_recipe(recipe)
        try:
            values = tomllib.loads(read_text(path))
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
    _check_tables(values)
    return from_dict(Recipe, values)


def _check_tables(values: Mapping[str, Any]) -> None:
    """Raise the `ConfigError` of a key that another table has; `from_dict` says of other keys."""
    keys = {name: {*typing.get_type_hints(kind)} for name, kind in _tables().items()}
    for table in keys.keys() & values.keys():
        for key in values[table] if isinstance(values[table], Mapping) else ():
            right = next((name for name, has in keys.items() if key in has), None)
            if key not in keys[table] and right is not None:
                raise ConfigError(
                    f"unknown setting '{table}.{key}'; did you mean '{right}.{key}'? "
                    "docs/recipe.md has all"
                )


def _tables() -> Mapping[str, type[Any]]:
    return typing.get_type_hints(Recipe)
