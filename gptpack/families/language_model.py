"""A model as every part but its own family sees it: tokens -> logits, losses and layers.

Shape legend: B = sequences, T = positions, S = the last positions, R = outputs, C = inputs,
W = width of the hidden state, V = vocabulary.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Predict: TypeAlias = Callable[[Tensor], Tensor]
"""Tokens ``[B, T]`` -> float32 logits ``[B, T, V]``."""
Losses: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Inputs ``[B, T]`` and targets ``[B, S]`` -> losses in nats, ``[B, S]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A linear layer, ``y = x W^T``, whose weight ``[R, C]`` may be packed."""

    module: nn.Module
    """The module, which has `weight` and is called with x."""
    shares_input_of: str
    """Name of the weight of the first layer that is given the same x, perhaps the layer's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """An embedding beside that of the tokens, whose rows ``[C]`` a linear layer projects."""

    weight: str
    """Name of the table's weight."""
    projection: str
    """Name of the projection's weight."""
    rows: int
    ids: Callable[[Tensor], Tensor]
    """Function from tokens ``[B, T]`` to the rows that they look up, ``[B, T]``."""


class LanguageModel(nn.Module):
    """All that calibration, packing, tuning, evaluation and sampling ask of a model.

    A family's model is a subclass. Names of weights are those of its state dict.
    """

    config: Any
    """The family's own configuration, which the header of a packed file keeps. It has `vocab`,
    `context` (tokens) and `bos` (the token that begins a document)."""

    @property
    @abstractmethod
    def embedding_name(self) -> str:
        """Name of the weight ``[V, W]`` that tokens are looked up in."""

    @property
    @abstractmethod
    def head_name(self) -> str:
        """Name of the weight ``[V, W]`` of the output layer; that of the embedding if tied."""

    @property
    def embedding(self) -> nn.Module:
        """The module that looks tokens up."""
        return self.get_submodule(self.embedding_name.removesuffix(".weight"))

    @property
    def module(self) -> nn.Module:
        """The module that users know: the model itself, or what it wraps."""
        return self

    @property
    def transposed(self) -> frozenset[str]:
        """Names of the weights that the module has as ``[C, R]``, and this model as ``[R, C]``."""
        return frozenset()

    def weights(self) -> dict[str, Tensor]:
        """The state by name, in its own order; of several names of one tensor, the first."""
        state = self.state_dict()
        return {names[0]: state[names[0]] for names in by_tensor(state)}

    def further_names(self) -> dict[str, list[str]]:
        """The names that `weights` leaves out, by the first one, where no configuration says it."""
        return {}

    def stacks(self) -> list[nn.ModuleList]:
        """The outermost lists of modules: a transformer's layers."""
        lists = {n: m for n, m in self.named_modules() if isinstance(m, nn.ModuleList)}
        return [m for n, m in lists.items() if not any(n.startswith(f"{o}.") for o in lists)]

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        return weight_of(self.embedding).device

    def window(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` of windows as the model is to see them; some begin all alike."""
        return tokens

    @abstractmethod
    def hidden(self, tokens: Tensor, *, last: int | None = None) -> Tensor:
        """The state that the output layer reads, ``[B, T, W]``, for tokens ``[B, T]`` (int64).

        With `last`, the state of the last so many positions alone, ``[B, last, W]``.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits ``[..., V]`` of `hidden` ``[..., W]``."""

    def predictions(self, tokens: Tensor) -> Tensor:
        """float32 logits ``[B, T, V]`` of what follows each of the tokens ``[B, T]``."""
        return self.logits(self.hidden(tokens))

    @contextmanager
    def compiled_predictions(self, compiler: Callable[..., Any] | None) -> Iterator[Predict]:
        """Inside, `predictions` as a function whose layers `compiler` may compile for fixed shapes.

        Where it is None, or where a family has no layers that are alike, nothing is compiled.
        """
        yield self.predictions

    def next_logits(self, tokens: Tensor) -> Tensor:
        """float32 logits ``[B, V]`` of what follows the last of the tokens ``[B, T]``."""
        return self.logits(self.hidden(tokens)[:, -1])

    @abstractmethod
    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats of each target, float32 ``[B, S]``.

        `inputs` is ``[B, T]``; `targets` ``[B, S]`` belong to its last S positions.
        """

    def compiled_losses(self, compiler: Callable[..., Any], *, training: bool = False) -> Losses:
        """`token_losses`, compiled for fixed shapes by `compiler`, torch's or a test's stand-in.

        In `training` thousands of steps follow, and all of it is compiled. Else some hundreds of
        passes do, and what saves less of them than it takes to compile may be left as it is.
        """
        found: Losses = compiler(self.token_losses, fullgraph=True, dynamic=False)
        return found

    @contextmanager
    def by_kernels(self) -> Iterator[None]:
        """Run by kernels inside, where there are some for this model and its device.

        Hooks on modules may see nothing of what kernels compute.
        """
        yield

    @abstractmethod
    def layers(self) -> Mapping[str, Layer]:
        """Linear layers by the name of their weight, in the order in which they were made.

        An output layer that is not tied is among them. Its input is the hidden state, and nothing
        need call its module.
        """

    def feeds(self) -> Mapping[str, str]:
        """Names of layers' weights, each with that of the one layer that takes its outputs.

        Output r of the first comes to nothing where column r of the second is 0.
        """
        return {}

    @abstractmethod
    def tables(self) -> Sequence[Table]:
        """Embeddings beside that of the tokens, which a linear layer projects."""

    def lookups(self) -> Mapping[str, nn.Module]:
        """Embeddings that nothing projects, the tokens' among them, by their weight's name."""
        return {self.embedding_name: self.embedding}

    def lookup_gain(self, name: str) -> float:
        """How many times its row an embedding of `lookups` gives out."""
        return 1.0

    def convert(self, dtype: torch.dtype) -> None:
        """Give all real numbers of the state the type `dtype`, in which the model then computes."""
        # what is not in the state, such as rotary frequencies, needs its digits
        for value in self.state_dict(keep_vars=True).values():
            if value.is_floating_point():
                value.data = value.data.to(dtype)

    @property
    def reach(self) -> int:
        """Most tokens of a text that the model reads at once; that of `reader` goes on beyond."""
        reach: int = self.config.context
        return reach

    def reader(self) -> Callable[[Tensor], Tensor]:
        """A function that takes the next tokens ``[B, n]`` of B texts, as often as it is called.

        It returns the float32 logits ``[B, V]`` of what follows, after all that it was given. Of
        texts longer than `reach`, the model begins anew at the token that `first_read` says: it
        reads the last `reach` tokens at most, and about half of them at least.
        """
        text: Tensor | None = None
        begun, read = 0, self._reader()

        def read_on(tokens: Tensor) -> Tensor:
            nonlocal text, begun, read
            text = tokens if text is None else torch.cat((text, tokens), 1)
            first = first_read(text.shape[1], self.reach)
            if first != begun:
                begun, read = first, self._reader()
                tokens = self.window(text[:, first:])
            return read(tokens)

        return read_on

    def _reader(self) -> Callable[[Tensor], Tensor]:
        """A function like that of `reader`, for `reach` tokens in all; here, it reads them anew."""
        texts: list[Tensor] = []

        def read(tokens: Tensor) -> Tensor:
            texts.append(tokens)
            return self.next_logits(torch.cat(texts, 1))

        return read

    @abstractmethod
    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """The named weights in the order in which `--tune deep` codes them, group by group."""

    @abstractmethod
    def use_attention(self, name: str) -> str:
        """Choose the attention of all layers, ``auto`` or by name; returns what was chosen.

        Raises:
            ConfigError: there is no attention of this name.
            MissingDependencyError: this machine or installation has not got it.
        """

    @abstractmethod
    def use_rope(self, scaling: str, length: int) -> str:
        """Fix the positions' angles for sequences of up to `length`; returns them in words.

        Raises:
            ConfigError: there is no scaling of this name.
        """


def by_tensor(state: Mapping[str, Tensor]) -> list[list[str]]:
    """The names in `state`, in its own order; those of one tensor are together."""
    found: dict[Any, list[str]] = {}
    for name, value in state.items():
        place = (value.data_ptr(), value.shape, value.stride())
        known = value.numel() and not value.is_meta
        found.setdefault(place if known else name, []).append(name)
    return list(found.values())


def first_read(length: int, reach: int) -> int:
    """The token at which a model begins to read a text of `length`, which may exceed its `reach`.

    It moves by half the reach at a time, so that a text that grows is seldom read anew.
    """
    half = max(1, reach // 2)
    return max(0, -(-(length - reach) // half) * half)


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a layer or a table."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def most_logits(device: torch.device) -> int:
    """Most logits to make at once: as float32 a sixteenth of a GPU's memory, or 256 MiB."""
    if device.type != "cuda":
        return 1 << 26
    return max(1 << 28, torch.cuda.get_device_properties(device).total_memory // 64)


def state_problem(model: LanguageModel, weights: Mapping[str, Tensor]) -> str:
    """How `weights` differ from a state of `model`, in one line; empty if they do not."""
    wanted = model.weights()
    problems = []
    if missing := sorted(wanted.keys() - weights.keys()):
        problems.append(f"missing {_some(missing)}")
    if extra := sorted(weights.keys() - wanted.keys()):
        problems.append(f"unexpected {_some(extra)}")
    shared = [name for name in wanted if name in weights]
    for name in shared:
        if weights[name].shape != wanted[name].shape:
            found, needed = tuple(weights[name].shape), tuple(wanted[name].shape)
            problems.append(f"{name} has shape {found}, needed {needed}")
    if broken := not_finite({name: weights[name] for name in shared}):
        problems.append(f"not finite: {_some(broken)}")
    return "; ".join(problems[:6])


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of those `weights` that hold infinities or NaN."""
    return [name for name, value in weights.items() if not value.isfinite().all()]


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
