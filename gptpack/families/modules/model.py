"""A module of its caller's own and a way to call it -> the `LanguageModel` that packs it.

Shape legend: B = sequences, T = positions, C = inputs, V = vocabulary.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptpack.errors import CheckpointError, ConfigError
from gptpack.families.language_model import by_tensor
from gptpack.families.modules.config import ModuleConfig
from gptpack.families.wrapped import PROBE_TOKENS, Wrapped


class _HeadInputs(TorchFunctionMode):
    """While active, keeps the input of each product with the weight of the output layer."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.inputs: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        weight = args[1] if len(args) > 1 else (kwargs or {}).get("weight")
        if func is F.linear and self._is_head(weight):
            self.inputs.append(args[0])
        return func(*args, **(kwargs or {}))

    def _is_head(self, weight: Any) -> bool:
        """Whether this is the weight of the output layer, perhaps in another type."""
        if weight is self.weight:
            return True
        same = isinstance(weight, Tensor) and weight.shape == self.weight.shape
        return same and torch.equal(weight, self.weight.to(weight.dtype))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, all of `module` is in evaluation mode: no dropout draws, no statistics move."""
    training = [each for each in module.modules() if each.training]
    module.eval()
    try:
        yield
    finally:
        for each in training:
            each.training = True


def _called(module: nn.Module, tokens: Tensor) -> Tensor:
    logits: Tensor = module(tokens)
    return logits


class Module(Wrapped):
    """Any module that turns tokens ``[B, T]`` (int64) into logits ``[B, T, V]``, to be packed.

        module = gptpack.Module(model, logits=lambda model, tokens: model(tokens), context=1024)
        packed = gptpack.pack(module, calibration=tokens, budget="16MB", output="m.gptpack")
        model.load_state_dict(gptpack.load("m.gptpack").state_dict())

    Every `nn.Linear` and `nn.Embedding` that is called is coded, subclasses too; all other tensors
    of the state stay in floats. The first embedding is the tokens'. The output layer is the linear
    layer, or the embedding, whose product gives the logits.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        logits: Callable[..., Tensor],
        context: int,
        bos: int = 0,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Run `module` once, on a few tokens, to see what it consists of.

        Args:
            logits: function from tokens ``[B, T]``, or from a module like `module` and tokens, to
                logits ``[B, T, V]``. Tuning works on a copy, and needs the latter. May be `module`
                itself, where that turns tokens into logits.
            context: tokens of a window.
            bos: token that a text begins with.
            config: the caller's own configuration, as plain values for JSON, which goes into the
                file.

        Raises:
            ConfigError: `config` is no JSON, or the logits have another shape.
            CheckpointError: the module calls no embedding, or its logits are not a product with
                the weight of a linear layer or of the embedding.
        """
        try:
            json.dumps(dict(config or {}), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"config={config!r}: not plain values for JSON: {error}") from error
        tables = [m for m in module.modules() if isinstance(m, nn.Embedding)]
        if not tables:
            raise CheckpointError(f"{type(module).__name__}: it has no nn.Embedding for its tokens")
        super().__init__(module, ModuleConfig(vocab=tables[0].num_embeddings), frozenset())
        function: Callable[..., Tensor] = _called if logits is module else logits
        forward = function.forward if isinstance(function, nn.Module) else function
        self.copies = len(inspect.signature(forward).parameters) > 1
        """Whether a copy of this model calls a copy of the module."""
        self._function = (function,)  # in a tuple: one that is a module would become a part of this
        self._table = (tables[0],)  # in a tuple, as it is the module's and no part of this one
        weight = tables[0].weight
        # a tied output layer that was made first gives the tensor its name
        self._table_name = next(
            (name for name, each in module.named_parameters() if each is weight),
            f"{self._path(tables[0])}.weight",
        )
        self._head: tuple[nn.Linear, ...] = ()
        # asked once: tuning puts something else in the place of a coded embedding
        self._tied = True
        tokens = torch.zeros(1, PROBE_TOKENS, dtype=torch.int64, device=self.device)
        with torch.no_grad(), _evaluating(module):
            found = self._run(tokens)
            if found.ndim != 3 or found.shape[:2] != tokens.shape:
                raise ConfigError(
                    f"logits of tokens [1, {PROBE_TOKENS}] have shape {tuple(found.shape)}, needed "
                    f"[1, {PROBE_TOKENS}, vocabulary]"
                )
            self.config = ModuleConfig(
                vocab=found.shape[-1], context=context, bos=bos, values=dict(config or {})
            )
            self._find_head(tokens)

    def _run(self, tokens: Tensor) -> Tensor:
        (function,) = self._function
        found = function(self.module, tokens) if self.copies else function(tokens)
        if not isinstance(found, Tensor):
            raise ConfigError(
                f"logits gave {type(found).__name__}; needed a tensor [B, T, vocabulary]"
            )
        return found

    def _find_head(self, tokens: Tensor) -> None:
        """The layer whose product the logits are: the last linear one of its size, or the table."""
        sized = [
            m
            for m in self.module.modules()
            if isinstance(m, nn.Linear) and m.weight.shape[0] == self.config.vocab
        ]
        table = cast(Tensor, self.embedding.weight)
        for head in reversed(sized):
            with _HeadInputs(head.weight) as seen:
                self._run(tokens)
            if seen.inputs:
                self._head = (head,)
                self._tied = head.weight is table
                return
        with _HeadInputs(table) as seen:
            self._run(tokens)
        if not seen.inputs or len(table) != self.config.vocab:
            raise CheckpointError(
                f"{type(self.module).__name__}: its logits come from no nn.Linear of "
                f"{self.config.vocab:,} outputs, nor from the embedding"
            )

    def further_names(self) -> dict[str, list[str]]:
        return {names[0]: names[1:] for names in by_tensor(self.state_dict()) if names[1:]}

    @property
    def embedding(self) -> nn.Module:
        return self._table[0]

    @property
    def embedding_name(self) -> str:
        return self._table_name

    @property
    def head_name(self) -> str:
        return self._table_name if self._tied else f"{self._path(self._head[0])}.weight"

    @property
    def head_module(self) -> nn.Module | None:
        return self._head[0] if self._head else None

    def hidden(self, tokens: Tensor, *, last: int | None = None) -> Tensor:
        """The input of the output layer, ``[B, T, C]``."""
        head = self.head_module or self.embedding
        with _HeadInputs(cast(Tensor, head.weight)) as seen, self.computing():
            self._run(tokens)
        found = seen.inputs[-1].view(*tokens.shape, -1)
        return found if last is None else found[:, -last:]

    def predictions(self, tokens: Tensor) -> Tensor:
        with self.computing():
            return self._run(tokens).float()

    def next_logits(self, tokens: Tensor) -> Tensor:
        return self.predictions(tokens)[:, -1]

    def logits(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError("a module's logits come from its tokens; see `predictions`")

    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        found = self.predictions(inputs)[:, -targets.shape[1] :]
        losses = F.cross_entropy(found.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view_as(targets)
