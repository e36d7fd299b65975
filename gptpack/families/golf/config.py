"""The shape of a GPT of this family: one frozen value, checked where it is made."""

from dataclasses import dataclass
from typing import Literal

from gptpack.errors import ConfigError
from gptpack.values import MAX_CONTEXT, MAX_VOCAB

MOST_PASSES = 4096
"""Layers that a model may run, each counted as often as it does."""
MOST_GAIN = 1e6
"""Size of a gain of queries, which windows that grow multiply by 16 at most."""
Activation = Literal["relu2", "leaky_relu2"]
Architecture = Literal["golf", "speedrun"]
SPEEDRUN = (
    "value_tables",
    "attention_free_layers",
    "mlp_free_layers",
    "windows",
    "short_windows",
    "long_window_layers",
    "window_yarn",
)
"""Fields that only a speedrun model has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape of a GPT. The defaults are the parameter-golf baseline."""

    vocab: int = 1024
    """Tokens of the vocabulary."""
    layers: int = 9
    """Blocks of attention and MLP."""
    width: int = 512
    """Channels of the residual stream."""
    heads: int = 8
    """Query heads; each has `width // heads` channels."""
    kv_heads: int = 4
    """Key/value heads; each serves ``heads // kv_heads`` query heads."""
    mlp_hidden: int = 1024
    """Hidden channels of each MLP."""
    activation: Activation = "relu2"
    """``relu(x)^2``, or ``leaky_relu(x, 0.5)^2``."""
    context: int = 1024
    """Tokens of a training sequence, and of an evaluation's window by default."""
    tied_embedding: bool = True
    """Whether the output head is the input embedding."""
    rope_base: float = 10000.0
    """Base of RoPE's wavelengths."""
    rope_dims: int = 0
    """Rotated dimensions of each head; 0 rotates all of them."""
    rope_ntk_context: int = 0
    """Longest sequence that does not stretch RoPE's base (NTK rule); 0 never stretches it."""
    qk_gain: float = 1.5
    """Initial value of the learned per-head gain on normalised queries."""
    logit_softcap: float = 30.0
    """Bound c of the logits: they become ``c * tanh(logits / c)``."""
    xsa_layers: int = 0
    """Layers, the last ones, that subtract from each head its projection on the token's value."""
    bigram_rows: int = 0
    """Rows of the hashed bigram table; 0 leaves it out."""
    bigram_width: int = 0
    """Channels of that table."""
    smear_gate: bool = False
    """Whether a learned gate per channel mixes each token's embedding with its predecessor's."""
    smear_across_documents: bool = False
    """Whether that gate reaches over a document's start, as the contest's first version did."""
    bos: int = 1
    """Token that begins each document."""
    value_embedding_layers: tuple[int, ...] = ()
    """Layers that add a shared token embedding to their values."""
    value_embedding_width: int = 0
    """Channels of that embedding."""
    ln_scale: bool = False
    """Whether both norm outputs of layer l are scaled by ``1 / sqrt(l + 1)``."""
    orthogonal_init: bool = False
    """Whether matrices that do not start at zero start orthogonal; else they are uniform in
    ``+-1/sqrt(inputs)``."""
    skip_gates: bool = False
    """Whether each U-Net skip is blended in by a learned gate per channel instead of added."""
    attention_gate_inputs: int = 0
    """Channels of the layer's input, the first ones, that each head's gate is a linear function of;
    0 has no gates."""
    loop_start: int = 0
    """First layer of the depth recurrence."""
    loop_layers: int = 0
    """Number of layers in the depth recurrence; 0 has none."""
    loops: int = 0
    """Times that the layers of the depth recurrence run again, in turn."""
    parallel_layers: int = 0
    """Layers, the last ones, in which attention and MLP both start from the layer's input."""
    parallel_lanes: int = 1
    """Residual streams of those layers: 1 is shared; with 2, attention and MLP each read their own
    and add to both."""
    document_mask: bool = False
    """Whether attention ends at the start of each position's document."""
    architecture: Architecture = "golf"
    """Which model these settings are of: ``speedrun`` is that of modded-nanogpt's records, where
    scalars weigh what golf weighs by channel. The keys below are its own; of those above it has the
    sizes, those of RoPE, queries and logits, `smear_gate`, `skip_gates`, `attention_gate_inputs`
    and `document_mask`."""
    value_tables: int = 0
    """Token embeddings as wide as values; the i-th is for layer i and for the i-th of as many last
    layers."""
    attention_free_layers: tuple[int, ...] = ()
    """Layers without attention."""
    mlp_free_layers: tuple[int, ...] = ()
    """Layers without an MLP."""
    windows: tuple[int, ...] = ()
    """Tokens that a position attends to at most, itself among them, in `long_window_layers`: a
    number for each stage of training, of which the last is the model's."""
    short_windows: tuple[int, ...] = ()
    """The same in all other layers."""
    long_window_layers: tuple[int, ...] = ()
    """Layers with the long window."""
    window_yarn: bool = False
    """Whether RoPE's angles are rescaled where the long window grows (YaRN)."""

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
        for name, most in (("vocab", MAX_VOCAB), ("context", MAX_CONTEXT)):
            if getattr(self, name) > most:
                raise ConfigError(f"{name}={getattr(self, name)} must be at most {most}")
        for name in ("logit_softcap", "rope_base"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive")
        if not 0 <= self.bos < self.vocab:
            raise ConfigError(f"bos={self.bos} must lie in 0..{self.vocab - 1}")
        self._check_parts()
        self._check_order()
        self._check_speedrun()

    def _check_parts(self) -> None:
        if abs(self.qk_gain) > MOST_GAIN:
            raise ConfigError(f"qk_gain={self.qk_gain} must be at most {MOST_GAIN:g} in size")
        for name in ("bigram_rows", "bigram_width", "value_embedding_width", "rope_ntk_context"):
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
        if self.passes > MOST_PASSES:
            raise ConfigError(
                f"layers={self.layers} with loop_layers={self.loop_layers} and loops={self.loops} "
                f"run {self.passes:,} times in all; {MOST_PASSES:,} are the most"
            )
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

    def _check_speedrun(self) -> None:
        if self.architecture != "golf" or any(getattr(self, name) for name in SPEEDRUN):
            from gptpack.families.golf.stages import check

            check(self)

    def layer_order(self, looped: bool = True) -> tuple[int, ...]:
        """The layers in the order in which they run; without `looped`, each of them once."""
        end = self.loop_start + self.loop_layers
        again = tuple(range(self.loop_start, end)) * (self.loops if looped else 0)
        return (*range(end), *again, *range(end, self.layers))

    def least_weights(self) -> int:
        """Least number of weights of a model of this shape: those of its matrices and skips."""
        attention = 2 * self.width * (self.width + self.kv_width)
        mlp = 2 * self.width * self.mlp_hidden
        bigram = self.bigram_width * (self.bigram_rows + self.width)
        values = self.value_embedding_width * (self.vocab + self.kv_width)
        skips = self.passes // 2 * self.width * (2 if self.skip_gates else 1)
        if self.architecture == "speedrun":
            skips, values = 0, self.value_tables * self.vocab * self.kv_width
        return (
            (self.layers - len(self.attention_free_layers)) * attention
            + (self.layers - len(self.mlp_free_layers)) * mlp
            + self.vocab * self.width
            + bigram
            + values
            + skips
        )

    @property
    def passes(self) -> int:
        """How many layers run, each as often as it does."""
        return self.layers + self.loop_layers * self.loops

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def turning(self) -> int:
        """Channels of a head that rotary positions turn."""
        return self.rope_dims or self.head_width

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_width
