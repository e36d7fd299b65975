"""A transformers causal language model -> the `LanguageModel` that the rest of gptpack sees.

Shape legend: B = sequences, T = positions, R = outputs, C = inputs, W = width, V = vocabulary.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import MethodType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptpack.errors import CheckpointError
from gptpack.families.language_model import Predict
from gptpack.families.transformers.config import TransformersConfig
from gptpack.families.transformers.library import quiet
from gptpack.families.transformers.room import running
from gptpack.families.wrapped import PROBE_TOKENS, Wrapped

CLOSE = 1e-3
"""Largest difference of logits by our path and by the model's own, as a share of their size."""
MOST_GRAPHS = 64
"""Graphs that torch may compile of one kind of layer: coded or not, first or later, trained or not,
of windows of one reach or another."""


@cache
def _compiled(kind: type[nn.Module], compiler: Callable[..., Any]) -> Callable[..., Any]:
    """The forward pass of all layers of a kind: one function, so that its graphs are kept."""
    function: Callable[..., Any] = compiler(kind.forward, dynamic=False)
    return function


class TransformersModel(Wrapped):
    """A causal language model of transformers; `module` is that model.

    Raises:
        CheckpointError: the model's logits are not those of its output layer, as `logits` makes
            them of the body's output.
    """

    def __init__(
        self, inner: nn.Module, config: TransformersConfig, transposed: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(inner, config, transposed)
        head = cast(Any, inner).get_output_embeddings()
        tokens = cast(Any, inner).get_input_embeddings()
        if not isinstance(head, nn.Linear) or not isinstance(tokens, nn.Embedding):
            raise CheckpointError(
                f"{type(inner).__name__}: its output layer is a {type(head).__name__} and its "
                f"embedding a {type(tokens).__name__}; needed Linear and Embedding"
            )
        self._embedding_name = f"{self._path(tokens)}.weight"
        # asked once: tuning puts something else in the place of a coded embedding
        self._tied = head.weight is tokens.weight
        self._head = (head,)  # in a tuple, as it is the inner model's and no part of this one
        self._softcap = config.values.get("final_logit_softcapping")
        self._check_logits()

    @property
    def embedding_name(self) -> str:
        return self._embedding_name

    @property
    def head_name(self) -> str:
        return self._embedding_name if self._tied else f"{self._path(self._head[0])}.weight"

    @property
    def head_module(self) -> nn.Module | None:
        return self._head[0]

    def window(self, tokens: Tensor) -> Tensor:
        if not self.config.begins:
            return tokens
        # such models are lost without the token that every text of their training began with
        return torch.cat((torch.full_like(tokens[:, :1], self.config.bos), tokens[:, 1:]), 1)

    def hidden(self, tokens: Tensor, *, last: int | None = None) -> Tensor:
        with self.computing():
            body = cast(Any, self.module).base_model
            found: Tensor = body(input_ids=tokens, use_cache=False)[0]
        return found if last is None else found[:, -last:]

    def logits(self, hidden: Tensor) -> Tensor:
        head = self._head[0]
        weight = cast(Tensor, self.embedding.weight if self._tied else head.weight)
        with self.computing():
            found = F.linear(hidden, weight.to(hidden.dtype), head.bias).float()
        if self._softcap is not None:
            found = self._softcap * torch.tanh(found / self._softcap)
        return found

    @contextmanager
    def compiled_predictions(self, compiler: Callable[..., Any] | None) -> Iterator[Predict]:
        layers: list[nn.Module] = []
        if compiler is not None:
            alike = [s for s in self.stacks() if len(s) > 1 and len({*map(type, s)}) == 1]
            layers = [layer for stack in alike for layer in stack]
        config: Any = torch._dynamo.config
        # a model that torch cannot compile runs as it is
        with config.patch(suppress_errors=True, recompile_limit=MOST_GRAPHS):
            for layer in layers:
                layer.forward = MethodType(_compiled(cast(Any, type(layer)), compiler), layer)
            try:
                yield self.predictions
            finally:
                for layer in layers:
                    del layer.forward

    @property
    def reach(self) -> int:
        reach: int = self.config.reach
        return reach

    def _reader(self) -> Callable[[Tensor], Tensor]:
        inner = cast(Any, self.module)
        with quiet() as library:
            cache = library.DynamicCache(config=inner.config)
        takes = inspect.signature(inner.base_model.forward).parameters
        kept = {"cache" if "cache" in takes else "past_key_values": cache, "use_cache": True}

        def read(tokens: Tensor) -> Tensor:
            with self.computing():
                found: Tensor = inner.base_model(input_ids=tokens, **kept)[0]
            return self.logits(found[:, -1])

        return read

    def _check_logits(self) -> None:
        """Compare `logits` with the model's own on a few tokens: some models scale theirs."""
        tokens = torch.arange(PROBE_TOKENS, device=self.device)[None] % self.config.vocab
        if self.embedding.weight.is_meta:
            return
        held = self.weights().values()
        seen: list[Tensor] = []

        def see(_body: nn.Module, args: Any, named: dict[str, Any], made: Any) -> None:
            # as `hidden` calls it, with nothing in the tokens' place
            if any(given is tokens for given in (*args[:1], named.get("input_ids"))):
                seen.append(made[0])

        hook = cast(Any, self.module).base_model.register_forward_hook(see, with_kwargs=True)
        try:
            with torch.no_grad(), running(len(held), sum(value.numel() for value in held)):
                own = self.module(input_ids=tokens, use_cache=False).logits.float()
                same = len(seen) == 1 and self._close(self.logits(seen[0]), own)
        finally:
            hook.remove()
        if not same:
            raise CheckpointError(
                f"{type(self.module).__name__}: its logits are not its output layer's, so it "
                "cannot be packed as a transformers model; wrap it in gptpack.Module"
            )

    @staticmethod
    def _close(ours: Tensor, own: Tensor) -> bool:
        return bool((own - ours).abs().max() <= CLOSE * own.abs().max().clamp(min=1e-6))
