"""What many tests share: the command line in this process, tiny recipes, a small text on disk.

Whatever takes a second or more is made once a session, by a cached function.
"""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gptpack.calibration.text import shard_windows
from gptpack.cli import main
from gptpack.data.shards import write_shard
from gptpack.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from gptpack.families.golf.gpt import build
from gptpack.packing.config import PackConfig
from gptpack.packing.foresight import PackerForesight
from gptpack.ranks import Ranks
from gptpack.training.recipe import Recipe, load_recipe
from gptpack.values import TokenizerIdentity

CPU = Ranks(0, 1, torch.device("cpu"))


def invoke(*arguments: str, command: str | None = None) -> int:
    """The exit status of the command line with `arguments`."""
    try:
        main.run(list(arguments), command)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@functools.cache
def _session() -> tempfile.TemporaryDirectory[str]:
    """A folder that ends with the process."""
    return tempfile.TemporaryDirectory(prefix="gptpack-worlds-")


def folder(name: str) -> Path:
    """A new folder for what the whole session shares."""
    made = Path(_session().name) / name
    made.mkdir()
    return made


# a run of a second

TINY = [
    "model.layers=2",
    "model.width=16",
    "model.heads=2",
    "model.kv_heads=1",
    "model.mlp_hidden=32",
    "model.vocab=64",
    "model.context=16",
    "training.batch_tokens=96",
    "training.steps=12",
    "training.seconds=0",
    "training.warmdown_steps=5",
    "training.warmdown_fraction=0",
]


def tiny(*overrides: str) -> Recipe:
    """A recipe of twelve steps."""
    return load_recipe(None, [*TINY, *overrides])


def shards(tokens: int = 3000) -> list[np.ndarray]:
    """One shard of tokens below 64 that a tiny model can learn."""
    steps = np.random.default_rng(0).integers(0, 3, tokens)
    return [np.cumsum(steps).astype(np.uint16) % 64]


# a run with a target in bytes, and with matrices that are large enough for a grid

AWARE = [
    *TINY,
    "model.vocab=256",
    "model.width=32",
    "model.kv_heads=2",
    "model.mlp_hidden=128",
    "training.steps=40",
    "training.warmdown_steps=15",
]
TARGET = 23_000
IDENTITY = TokenizerIdentity(sha256="ab" * 32, vocab=256, bos=1)


def aware(*overrides: str, target: int = TARGET) -> Recipe:
    """A recipe of forty steps whose file is to have `target` bytes."""
    looks = "compression.looks=2"
    return load_recipe(None, [*AWARE, f"compression.target_bytes={target}", looks, *overrides])


@functools.cache
def text() -> list[np.ndarray]:
    """One shard of tokens below 256."""
    steps = np.random.default_rng(0).integers(0, 3, 40_000)
    return [np.cumsum(steps).astype(np.uint16) % 256]


def foresight(
    recipe: Recipe, config: PackConfig | None = None, here: Ranks = CPU
) -> PackerForesight:
    """The packer's foresight for runs on `text`."""
    return PackerForesight(
        build=functools.partial(build, recipe.model, device=torch.device("cpu")),
        windows=shard_windows(text(), windows=64, context=16, seed=1),
        ranks=here,
        tokenizer=IDENTITY,
        config=config or PackConfig(),
    )


# text on disk

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ate", "it", "at", "noon")


@dataclass(frozen=True)
class Corpus:
    """A folder with a tokenizer and shards of both splits; no test writes into it."""

    data: Path
    tokenizer: Tokenizer
    tokens: np.ndarray
    """The val split; train holds other documents of the same words."""


@functools.cache
def corpus() -> Corpus:
    data = folder("corpus")
    draw = np.random.default_rng(0)
    documents = [" ".join(draw.choice(WORDS, draw.integers(1, 12))) for _ in range(60)]
    others = [" ".join(draw.choice(WORDS, draw.integers(8, 12))) for _ in range(60)]
    tokenizer = train_tokenizer(
        documents, data / "tokenizer.model", TokenizerConfig(vocab=280, normalization="nmt_nfkc")
    )

    def encoded(texts: list[str]) -> np.ndarray:
        ids = [token for text in texts for token in (tokenizer.bos, *tokenizer.encode(text))]
        return np.array(ids, np.uint16)

    tokens = encoded(documents)
    write_shard(data / "x_val_000000.bin", tokens[:100])
    write_shard(data / "x_val_000001.bin", tokens[100:])
    write_shard(data / "x_train_000000.bin", np.resize(encoded(others), 3000))
    return Corpus(data, tokenizer, tokens)
