"""What `gptpack pack` needs besides the packer: the model, its calibration text, its tokenizer."""

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptpack.progress import Progress

if TYPE_CHECKING:
    from gptpack.data.batches import Tokens
    from gptpack.families.golf.gpt import GPT
    from gptpack.packing.packer import Packed, Packer
    from gptpack.quant.allocation import Sensitivity
    from gptpack.ranks import Ranks
    from gptpack.training.checkpoint import Checkpoint
    from gptpack.values import TokenizerIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line says about calibration, tuning, and how fine to be."""

    data: Path | None
    source: str | None
    tokens: int
    seed: int
    tune: str
    labels: float
    """Share of the text itself in what tuning aims at."""
    tune_seconds: float
    """Most seconds of tuning; 0 has no limit."""
    cache: Path | None
    """Folder where Hessians are kept; None keeps nothing."""


class Job:
    """The model that is packed, on its device, with what calibration and tuning need of it."""

    def __init__(
        self,
        checkpoint: "Checkpoint",
        request: Request,
        ranks: "Ranks",
        progress: Progress,
        background: Executor,
    ) -> None:
        """What nobody waits for, such as writing Hessians, is given to `background`."""
        self.checkpoint, self.request, self.ranks = checkpoint, request, ranks
        self.progress, self.background = progress, background
        self.sensitivities: Mapping[str, Sensitivity] = {}
        self.model: GPT | None = None

    def _shards(self) -> "list[Tokens]":
        from gptpack.data.shards import Shard, find_shards

        if self.request.data is None:
            return []
        paths = find_shards(self.request.data, "train")
        return [Shard.open(path, self.checkpoint.model.vocab).tokens for path in paths]

    def calibrate(self) -> dict[str, Any]:
        """Find the sensitivities; returns what the header says of their source."""
        from gptpack.calibration.text import (
            calibrate,
            random_tokens,
            self_generated,
            shard_windows,
        )
        from gptpack.data.shards import has_shards
        from gptpack.errors import CheckpointError, ConfigError
        from gptpack.families.golf.gpt import GPT, state_problem

        request, shape = self.request, self.checkpoint.model
        device = self.ranks.device
        model = GPT(shape, seed=None)
        if problem := state_problem(model, self.checkpoint.weights):
            raise CheckpointError(f"the checkpoint does not fit its model: {problem}")
        model.load_state_dict(self.checkpoint.weights)
        self.model = model.to(device).eval()
        self.model.use_attention("auto")
        context = shape.context
        tokens = request.tokens or (524288 if device.type == "cuda" else 65536)
        count = {"windows": max(1, tokens // context), "context": context, "seed": request.seed}
        there = request.data is not None and has_shards(request.data, "train")
        source = request.source or ("shards" if there else "self")
        if source == "shards" and request.data is None:
            raise ConfigError("--calibration shards needs --data with train shards")
        if source == "shards":
            windows = shard_windows(self._shards(), **count)
        elif source == "self":
            windows = self_generated(self.model, **count, progress=self.progress)
        else:
            windows = random_tokens(shape.vocab, **count)
        found = calibrate(
            self.model,
            windows,
            self.ranks,
            fisher_windows=max(1, len(windows) // 4),
            batch=max(1, (32768 if device.type == "cuda" else 2048) // context),
            seed=request.seed,
            cache=request.cache,
            background=self.background,
            progress=self.progress,
        )
        self.sensitivities = found.sensitivities
        return {"calibration": source, "calibration_tokens": found.hessian_tokens}

    def pack(
        self, packer: "Packer", *, delta: float | None = None, bits: float | None = None
    ) -> "Packed":
        """Search the step, with the tuning that was asked for."""
        from gptpack.calibration.text import shard_windows
        from gptpack.errors import ConfigError
        from gptpack.packing.progressive import ProgressiveConfig, pack_progressively
        from gptpack.packing.search import pack_to_budget

        if self.request.tune == "none":
            return pack_to_budget(packer, delta=delta, bits=bits, progress=self.progress)
        if self.model is None or self.request.data is None or not packer.matrices:
            raise ConfigError("--tune needs --data with train shards and a gptq-trellis method")
        context = self.checkpoint.model.context
        shards = self._shards()
        most = sum(len(shard) // context for shard in shards)
        windows = shard_windows(
            shards, windows=max(1, min(8192, most)), context=context, seed=self.request.seed + 1
        )
        return pack_progressively(
            packer,
            self.model,
            windows,
            self.ranks,
            self.sensitivities,
            ProgressiveConfig(
                by_layer=self.request.tune == "deep",
                labels=self.request.labels,
                seconds=self.request.tune_seconds,
            ),
            delta=delta,
            bits=bits,
            progress=self.progress,
        )


def code_size(path: Path) -> int:
    from gptpack.errors import ConfigError

    try:
        if not path.is_file():
            raise ConfigError(f"--code {path}: no such file; name each file of the code")
        return path.stat().st_size
    except OSError as error:
        raise ConfigError(f"--code {path}: {error.strerror}") from error


def identity_of(
    checkpoint: "Checkpoint", tokenizer: Path | None, data: Path | None
) -> "TokenizerIdentity":
    """The model's tokenizer: the checkpoint's word first, then the file that was given."""
    from gptpack.data.manifest import TOKENIZER
    from gptpack.data.tokenizer import Tokenizer
    from gptpack.errors import TokenizerError

    known, vocab = checkpoint.tokenizer, checkpoint.model.vocab
    path = tokenizer or (data / TOKENIZER if data is not None else None)
    if path is None or (known is not None and tokenizer is None):
        if known is None:
            raise TokenizerError(
                "the checkpoint does not say which tokenizer it belongs to; name its file with "
                "--tokenizer or give --data"
            )
        return known
    found = Tokenizer.load(path).identity
    if known is not None and found != known:
        raise TokenizerError(
            f"{path}: sha256 {found.sha256}, but the checkpoint was trained with {known.sha256}; "
            "give that tokenizer, and its shards"
        )
    if found.vocab > vocab:
        raise TokenizerError(
            f"{path}: {found.vocab:,} pieces, but the model has a vocabulary of {vocab:,}; "
            "give the tokenizer that the model was trained with"
        )
    return found
