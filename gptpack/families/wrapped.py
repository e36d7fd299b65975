"""Any module that maps tokens to logits -> the `LanguageModel` that packs it, layer by layer.

What can be packed is found by running the module once: every `nn.Linear` and `nn.Embedding` that is
called. Layers share an input where the very same tensor comes in, and weights are tied where their
storage is the same.

Shape legend: B = sequences, T = positions, S = the last positions, R = outputs, C = inputs,
W = width of the hidden state, V = vocabulary.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptpack.errors import ConfigError
from gptpack.families.coded import is_coded
from gptpack.families.language_model import LanguageModel, Layer, Table, most_logits

PROBE_TOKENS = 8
"""Tokens of the run that finds the layers."""


class Wrapped(LanguageModel):
    """A module seen as a language model; both hold the same tensors.

    A subclass says how to get from tokens to the state that the output layer reads, and on.
    """

    def __init__(self, inner: nn.Module, config: Any, transposed: frozenset[str]) -> None:
        super().__init__()
        # outside the registry of modules, and with the registries shared, so that names are the
        # inner module's own
        object.__setattr__(self, "inner", inner)
        self._parameters, self._buffers = inner._parameters, inner._buffers
        self._modules = inner._modules
        self._non_persistent_buffers_set = inner._non_persistent_buffers_set
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        """Type that products are made in on CUDA; None leaves the weights' own."""
        self._transposed = transposed
        self._found: dict[str, str] | None = None

    @property
    def module(self) -> nn.Module:
        found: nn.Module = self.__dict__["inner"]
        return found

    @property
    def transposed(self) -> frozenset[str]:
        return self._transposed

    def get_submodule(self, target: str) -> nn.Module:
        return self.module.get_submodule(target)

    def train(self, mode: bool = True) -> "Wrapped":
        self.module.training = mode
        super().train(mode)
        return self

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Products inside are made in `compute_dtype`."""
        dtype = self.compute_dtype
        on = dtype is not None and self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=on):
            yield

    @property
    def head_module(self) -> nn.Module | None:
        """The output layer, where it is a module of its own; its weight may be the embedding's."""
        return None

    def _path(self, module: nn.Module) -> str:
        return next(path for path, found in self.module.named_modules() if found is module)

    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden = self.hidden(self.window(inputs), last=targets.shape[1])
        flat, wanted = hidden.flatten(0, 1), targets.flatten()
        # cross entropy holds logits, their logarithms and a copy at once
        rows = max(1, most_logits(self.device) // (4 * self.config.vocab))
        losses = [
            F.cross_entropy(self.logits(part), labels, reduction="none")
            for part, labels in zip(torch.split(flat, rows), torch.split(wanted, rows), strict=True)
        ]
        return torch.cat(losses).view_as(targets)

    def layers(self) -> dict[str, Layer]:
        """Linear layers by the name of their weight, in the order in which they were made."""
        sources = self._sources()
        found = {}
        for path, module in self.module.named_modules():
            name = f"{path}.weight"
            # a layer whose codes tuning has fixed is no longer packed
            if name in sources and not is_coded(module):
                found[name] = Layer(module=module, shares_input_of=sources[name])
        first = {layer.shares_input_of: name for name, layer in reversed(found.items())}
        return {
            name: Layer(module=layer.module, shares_input_of=first[layer.shares_input_of])
            for name, layer in found.items()
        }

    def _sources(self) -> dict[str, str]:
        """For each linear layer that is called, the first one that was given the same input."""
        if self._found is not None:
            return self._found
        head = self.head_module
        linears = {
            path: module
            for path, module in self.module.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
        first: dict[tuple[Any, ...], str] = {}
        found: dict[str, str] = {}
        kept = []  # an input that is freed could leave its place to another

        def see(name: str, x: Tensor) -> None:
            kept.append(x)
            version = 0 if x.is_inference() else x._version
            place = (x.untyped_storage().data_ptr(), x.storage_offset(), x.numel(), version)
            found.setdefault(name, first.setdefault(place, name))

        with torch.no_grad(), ExitStack() as hooks:
            for path, module in linears.items():
                hook = module.register_forward_pre_hook(
                    lambda _module, inputs, name=f"{path}.weight": see(name, inputs[0])
                )
                hooks.callback(hook.remove)
            self.hidden(torch.zeros(1, PROBE_TOKENS, dtype=torch.int64, device=self.device))
        if head is not None and self.head_name != self.embedding_name:
            found[self.head_name] = self.head_name
        self._found = found
        return found

    def tables(self) -> Sequence[Table]:
        return ()

    def lookups(self) -> Mapping[str, nn.Module]:
        return {
            self.embedding_name if module is self.embedding else f"{path}.weight": module
            for path, module in self.module.named_modules()
            if isinstance(module, nn.Embedding)
        }

    def lookup_gain(self, name: str) -> float:
        module = self.lookups()[name]
        if type(module).forward is nn.Embedding.forward:
            return 1.0
        assert isinstance(module, nn.Embedding)
        rows = torch.arange(min(PROBE_TOKENS, module.num_embeddings), device=self.device)
        with torch.no_grad():
            given, kept = module(rows).float(), module.weight[rows].float()
        return float(given.norm() / kept.norm()) if kept.any() else 1.0

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """What belongs to no layer, then layers from the last to the first."""
        layers: dict[int, list[str]] = {}
        others: list[str] = []
        for name in names:
            number = re.search(r"\.(\d+)\.", name)
            (others if number is None else layers.setdefault(int(number[1]), [])).append(name)
        found = [layers[layer] for layer in sorted(layers, reverse=True)]
        return [others, *found] if others else found

    def use_attention(self, name: str) -> str:
        if name != "auto":
            raise ConfigError(f"attention '{name}': this model brings its own; leave it at auto")
        return "the model's own"

    def use_rope(self, scaling: str, length: int) -> str:
        if scaling != "model":
            raise ConfigError(f"--rope {scaling}: this model has its own positions; leave it out")
        return "model"
