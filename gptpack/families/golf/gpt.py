"""Tokens -> losses: the GPT of the parameter-golf baseline, with the parts its records added.

Shape legend: B = sequences, T = positions, S = the last positions, those with targets,
W = model width, V = vocabulary.

Each block mixes the embedding back in, attends, and applies its MLP. The first half of the layers
leaves its outputs as skips, which the second half takes up in reverse (U-Net). Names of weights are
those of the reference, so that its checkpoints load (gptpack/training/checkpoint.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from gptpack import ops
from gptpack.families.coded import is_coded
from gptpack.families.golf.attention import choose_backend, flash_attention_3
from gptpack.families.golf.blocks import MLP, Block, Lanes
from gptpack.families.golf.cache import LOOKS_BACK, Cache
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.dropout import Dropout
from gptpack.families.golf.layers import BigramHash, Embedding, Linear, SmearGate, ValueEmbedding
from gptpack.families.golf.masks import document_mask
from gptpack.families.golf.parts import ALL, PLAIN, REPEATED, Parts, compiled
from gptpack.families.golf.rotary import Rope, own_rope, rope_for, rotary_tables
from gptpack.families.language_model import LanguageModel, Layer, Losses, Predict, Table
from gptpack.ops import rms_norm

if TYPE_CHECKING:
    from gptpack.families.golf.ahead import Ahead

TIED_EMBEDDING_STD = 0.005
"""Standard deviation of an embedding that is the output layer too: it starts with nearly equal
logits (parameter-golf baseline)."""


class GPT(LanguageModel):
    """A GPT of the shape `config`, with weights drawn from `seed`; None leaves them to be loaded.

    Weights are float32. Activations are bfloat16 on CUDA and float32 elsewhere, unless
    `compute_dtype` is set. `looped` says whether the layers of a depth recurrence run more than
    once; in training they may not do so from the start.
    """

    block_type: type[nn.Module] = Block

    def __init__(self, config: ModelConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.rope: Rope | None = None
        """Angles that `use_rope` fixed; None follows configuration and length of each sequence."""
        self.looped = True
        self.kernels = False
        self.dropout: Dropout | None = None
        self.ahead: Ahead | None = None
        """What learns the tokens after the next as well, in training."""
        std = TIED_EMBEDDING_STD if config.tied_embedding else 1.0
        self.tok_emb = Embedding(config.vocab, config.width, std=std)
        self.bigram = (
            BigramHash(
                config.bigram_rows,
                config.bigram_width,
                config.width,
                bos=config.bos if config.document_mask else None,
            )
            if config.bigram_rows
            else None
        )
        self.smear = (
            SmearGate(config.width, bos=config.bos, across_documents=config.smear_across_documents)
            if config.smear_gate
            else None
        )
        self.ve_shared: ValueEmbedding | None = None
        if config.value_embedding_layers:
            self.ve_shared = ValueEmbedding(
                config.vocab, config.value_embedding_width, config.kv_width
            )
            self.ve_layer_scales = nn.ParameterList(
                nn.Parameter(torch.ones(1)) for _ in config.value_embedding_layers
            )
        skips = len(config.layer_order()) // 2
        self.skip_weights = nn.Parameter(torch.ones(skips, config.width)) if skips else None
        self.skip_gates = (
            nn.Parameter(torch.zeros(skips, config.width)) if skips and config.skip_gates else None
        )
        self.blocks = nn.ModuleList(
            self.block_type(config, layer) for layer in range(config.layers)
        )
        self.lm_head = (
            None if config.tied_embedding else Linear(config.width, config.vocab, zero=True)
        )
        if seed is not None:
            self.reset(seed)

    def reset(self, seed: int) -> None:
        """Draw the weights; the same `seed` gives the same weights on every machine.

        Orthogonal weights are the same where LAPACK computes alike.
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, Linear):
                module.reset(generator, orthogonal=self.config.orthogonal_init)
            elif isinstance(module, Embedding):
                module.reset(generator)

    @property
    def embedding_name(self) -> str:
        return "tok_emb.weight"

    @property
    def head_name(self) -> str:
        return "tok_emb.weight" if self.lm_head is None else "lm_head.weight"

    def layers(self) -> dict[str, Layer]:
        """Linear layers by the name of their weight; queries, keys and values share an input."""
        found = {}
        first: dict[str, str] = {}
        for path, module in self.named_modules():
            # a layer whose codes tuning has fixed is no longer packed
            if not isinstance(module, Linear) or is_coded(module):
                continue
            name = f"{path}.weight"
            shared = name.replace("attn.c_k", "attn.c_q").replace("attn.c_v", "attn.c_q")
            found[name] = Layer(module=module, shares_input_of=first.setdefault(shared, name))
        return found

    def feeds(self) -> dict[str, str]:
        """The two matrices of each MLP."""
        paths = [path for path, module in self.named_modules() if isinstance(module, MLP)]
        return {f"{path}.fc.weight": f"{path}.proj.weight" for path in paths}

    def tables(self) -> list[Table]:
        """The hashed bigrams, and the embedding that several layers add to their values."""
        found = []
        if self.bigram is not None:
            found.append(_table("bigram", self.bigram.rows, self.bigram.hashes))
        if self.ve_shared is not None:
            found.append(_table("ve_shared", self.config.vocab, lambda tokens: tokens))
        return found

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """Embeddings and their projections, then layers from the last to the first."""
        layers: dict[int, list[str]] = {}
        tables = []
        for name in names:
            if name.startswith("blocks."):
                layers.setdefault(int(name.split(".")[1]), []).append(name)
            else:
                tables.append(name)
        found = [layers[layer] for layer in sorted(layers, reverse=True)]
        return [tables, *found] if tables else found

    def use_attention(self, name: str) -> str:
        """Choose the attention backend of all layers; returns what was chosen.

        Raises:
            ConfigError: there is no backend of this name, or it cannot keep documents apart.
            MissingDependencyError: this machine or installation has not got it.
        """
        device, masked = self.tok_emb.weight.device, self.config.document_mask
        chosen = choose_backend(name, device, masked=masked)
        function = flash_attention_3() if chosen == "fa3" else None
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attn.backend, block.attn.fa3 = chosen, function
        return f"{chosen}, documents masked" if masked else chosen

    def use_kernels(self, name: str) -> str:
        """Choose whether to run by Triton kernels: ``auto``, ``on`` or ``off``; returns what was
        chosen.

        Kernels take the weights from their modules, so that hooks on those see no activations.

        Raises:
            ConfigError, MissingDependencyError: see `gptpack.kernel_choice.choose_kernels`.
        """
        from gptpack.kernel_choice import choose_kernels

        chosen = choose_kernels(name, self.tok_emb.weight.device)
        self._switch_kernels(chosen.startswith("on"))
        return chosen

    def _switch_kernels(self, on: bool) -> None:
        for module in self.modules():
            if hasattr(module, "kernels"):
                cast(Any, module).kernels = on

    @contextmanager
    def by_kernels(self) -> Iterator[None]:
        before = self.kernels
        with suppress(ImportError):  # the script of a submission has no kernels
            self.use_kernels("auto")
        try:
            yield
        finally:
            self._switch_kernels(before)

    def use_dropout(self, share: float) -> "Dropout | None":
        """Leave out this share of what layers add, in either mode; returns what draws it.

        A share of 0 leaves out nothing, and returns None.
        """
        layers, device = len(self.config.layer_order()), self.tok_emb.weight.device
        self.dropout = Dropout(layers, device) if share else None
        for block in self.blocks:
            assert isinstance(block, Block)
            block.dropout = share
        return self.dropout

    def use_halvings(self, halvings: int) -> None:
        """Keep attention within blocks: the positions, halved so many times."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attn.halvings = halvings

    def use_rope(self, scaling: str, length: int) -> str:
        """Fix the rotary angles for sequences of up to `length`; returns them in words.

        ``model`` applies the configuration's own rule to `length`. The others take the angles that
        the model was trained with, those of sequences of ``config.context``. Where `length` is
        beyond that, they leave them (``none``), stretch the base (``ntk``), or interpolate
        (``yarn``).

        Raises:
            ConfigError: there is no scaling of this name.
        """
        self.rope, said = rope_for(self.config, scaling, length)
        return said

    def hidden(
        self, tokens: Tensor, *, last: int | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Normalised output of the last layer, ``[B, T, W]``, for tokens ``[B, T]`` (int64).

        With `last`, that of the last so many positions: ``[B, last, W]``. The last layer then
        computes only keys and values for all positions, and everything else for those alone.

        With a `cache` the tokens go on from those that it has read. The rotary angles are then
        those of sequences of ``config.context``, however many there will be.
        """
        return rms_norm(self._through(tokens, last=last, cache=cache).mean())

    def _through(
        self,
        tokens: Tensor,
        *,
        last: int | None = None,
        cache: Cache | None = None,
        parts: Parts = PLAIN,
    ) -> Lanes:
        """What the last layer gives out; arguments as in `hidden`."""
        device_dtype = torch.bfloat16 if tokens.device.type == "cuda" else torch.float32
        dtype = self.compute_dtype or device_dtype
        config, new = self.config, tokens.shape[1]
        text = tokens if cache is None else cache.read(tokens)
        length = text.shape[1]
        seen = length - new
        if seen:
            back = min(seen, LOOKS_BACK)
            x = self.embedded(text[:, -new - back :], dtype)[:, back:]
            values = self.value_embeddings(tokens, dtype)
        else:
            x, values = parts.begin(self, tokens, dtype)
        x0 = _renamed(x, x)
        rope = self.rope or own_rope(config, length if cache is None else config.context)
        tables = rotary_tables(length, config.turning, rope=rope, like=x, first=seen)
        mask = None
        if config.document_mask:
            mask = document_mask(text, config.bos, last=None if cache is None else new)
        order = config.layer_order(self.looped)
        encoders = len(order) // 2
        lanes = Lanes(x)
        skips: list[Lanes] = []
        for position, layer in enumerate(order):
            if position >= encoders and skips:
                lanes = self._take_up(skips.pop(), lanes, position - encoders, parts)
            asking = last if position == len(order) - 1 and last != new else None
            if isinstance(mask, BlockMask):
                # FlexAttention's blocks are made for all queries
                asking = None
            elif asking is not None and mask is not None:
                mask = mask[:, :, -asking:]
            seeds = self.dropout.seeds[position] if self.dropout is not None else None
            extend = partial(cache.extend, position) if cache is not None else None
            more = {"last": asking, "seeds": seeds, "extend": extend}
            value = values.get(layer)
            # few positions are not worth a graph of their own
            run = parts.layer if asking is None else PLAIN.layer
            lanes = run(self.blocks[layer], lanes, x0, tables, value, mask, **more)
            if position < encoders:
                skips.append(lanes.map(lanes, _renamed))
        if last is None or lanes.first.shape[1] == last:
            return lanes
        return lanes.map(lanes, lambda x, _: x[:, -last:])

    def embedded(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """What the first layer is given, ``[B, T, W]``."""
        x = self.tok_emb(tokens, dtype)
        if self.bigram is not None:
            x = x + self.bigram(tokens, dtype)
        x = rms_norm(x)
        return x if self.smear is None else self.smear(x, tokens)

    def _take_up(self, skip: Lanes, lanes: Lanes, index: int, parts: Parts) -> Lanes:
        """`lanes` with a skip of the first half."""
        assert self.skip_weights is not None
        gate = None if self.skip_gates is None else self.skip_gates[index]
        return parts.take_up(skip, lanes, self.skip_weights[index], gate)

    def value_embeddings(self, tokens: Tensor, dtype: torch.dtype) -> dict[int, Tensor]:
        """What each layer that has one is given to add to its values, by layer."""
        if self.ve_shared is None:
            return {}
        shared = self.ve_shared(tokens, dtype)
        layers = self.config.value_embedding_layers
        scales = [scale.to(dtype) for scale in self.ve_layer_scales]
        return {layer: shared * scale for layer, scale in zip(layers, scales, strict=True)}

    @property
    def head(self) -> Tensor:
        """Weight ``[V, W]`` of the output layer."""
        return self.tok_emb.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Soft-capped float32 logits ``[..., V]`` of `hidden` ``[..., W]``."""
        return ops.softcapped(hidden, self.head, self.config.logit_softcap)

    def convert(self, dtype: torch.dtype) -> None:
        super().convert(dtype)
        self.compute_dtype = dtype

    def _reader(self) -> Callable[[Tensor], Tensor]:
        cache = Cache()
        return lambda tokens: self.logits(self.hidden(tokens, last=1, cache=cache)[:, -1])

    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats of each target, float32 ``[B, S]``.

        `inputs` is ``[B, T]``; `targets` ``[B, S]`` belong to its last S positions.
        """
        return self._all_losses(self.hidden(inputs, last=targets.shape[1]), targets)

    def _all_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        losses = self._head_losses(hidden, targets)
        if self.ahead is None or not self.ahead.on:
            return losses
        return self.ahead.added(losses, hidden, targets, self._head_losses)

    def _head_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        cap = self.config.logit_softcap
        return ops.head_losses(hidden, self.head, targets, cap, kernels=self.kernels)

    def end(self, lanes: Lanes, targets: Tensor) -> Tensor:
        """The losses of `token_losses`, from what the last layer gives out."""
        return self._all_losses(rms_norm(lanes.mean()), targets)

    def _in_parts(self, parts: Parts, inputs: Tensor, targets: Tensor) -> Tensor:
        """The losses of `token_losses`."""
        return parts.end(self, self._through(inputs, last=targets.shape[1], parts=parts), targets)

    def compiled_losses(self, compiler: Callable[..., Any], *, training: bool = False) -> Losses:
        # blocks of a mask are made in the graph that uses them; without recurrence the steps of
        # the whole are 3 % faster
        if self.config.document_mask or (training and not self.config.loops):
            return super().compiled_losses(compiler, training=training)
        return partial(self._in_parts, compiled(compiler, ALL if training else REPEATED))

    @property
    def recordable(self) -> bool:
        """Whether training may record its passes; not with documents apart, fa3 or fa4, which
        were not tried."""
        backends = {cast(Block, block).attn.backend for block in self.blocks}
        return not self.config.document_mask and not backends & {"fa3", "fa4"}

    @contextmanager
    def compiled_predictions(self, compiler: Callable[..., Any] | None) -> Iterator[Predict]:
        if compiler is None or self.config.document_mask:
            yield self.predictions
            return
        parts = compiled(compiler)
        yield lambda tokens: self.logits(rms_norm(self._through(tokens, parts=parts).mean()))

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats over all targets."""
        return self.token_losses(inputs, targets).mean()


def model_of(config: ModelConfig, *, seed: int | None = 0) -> GPT:
    """The model of the shape `config`, golf's or a speedrun's; `seed` is as in `GPT`."""
    if config.architecture == "speedrun":
        from gptpack.families.golf.speedrun import Speedrun

        return Speedrun(config, seed=seed)
    return GPT(config, seed=seed)


def build(config: ModelConfig, weights: Mapping[str, Tensor], device: torch.device) -> GPT:
    """The model of these weights on `device`; tensors that are there already are not copied."""
    with torch.device("meta"):
        model = model_of(config, seed=None)
    on_device = {name: value.detach().to(device) for name, value in weights.items()}
    model.load_state_dict(on_device, assign=True)
    return model.to(device)


def _renamed(x: Tensor, _: Tensor) -> Tensor:
    """The same numbers by another name: what is given one tensor twice is a graph of its own."""
    return x.view_as(x)


def _table(name: str, rows: int, ids: Callable[[Tensor], Tensor]) -> Table:
    return Table(
        weight=f"{name}.embed.weight", projection=f"{name}.proj.weight", rows=rows, ids=ids
    )
