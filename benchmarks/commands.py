"""Seconds and memory of each command as a user runs it, by parameters, tokens and cores.

    python benchmarks/commands.py [--sizes 8 27 135] [--starts 11]

The text is the documentation of Python's standard library, which every machine has, the models are
golf's with random weights, and each command is a process of its own, from its start to its end.
What commands take without torch is compared with `import numpy`, in turns, by medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from gptpack.cores import usable_cores
from gptpack.data.tokenizer import TokenizerConfig, train_tokenizer
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.jobs.demo_text import SEPARATOR, documents, standard_library
from gptpack.training.checkpoint import Checkpoint, save_checkpoint

GPTPACK = Path(sys.executable).with_name("gptpack")
DOCUMENTS = 400
"""Documents of text: some 1.2 MB."""
SHAPES = {
    8: {"layers": 6, "width": 320, "heads": 5, "kv_heads": 5, "mlp_hidden": 1280},
    27: {"layers": 11, "width": 512, "heads": 8, "kv_heads": 4, "mlp_hidden": 1536},
    135: {"layers": 18, "width": 960, "heads": 15, "kv_heads": 5, "mlp_hidden": 2560},
}
"""Shapes of models, by millions of parameters."""
TOKENS = 4096
MORE = 4
"""Times as many tokens in the column that says what they cost."""
STEPS = 2


@dataclass(frozen=True)
class Setting:
    """A column of the table."""

    size: int
    """Millions of parameters."""
    tokens: int
    cores: int

    def __str__(self) -> str:
        return f"{self.size} M, {self.tokens:,} tokens, {self.cores} cores"


LAUNCH = """
import json, os, subprocess, sys, time
words, cores = json.load(sys.stdin)
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
began = time.perf_counter()
process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
said = process.stderr.read()
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - began
print(json.dumps([seconds, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status), said]))
"""
"""A small process that starts the one that is measured, whose memory would count as that one's."""


def measured(words: Sequence[object], cores: int) -> tuple[float, int]:
    """Seconds and the peak of resident bytes of a process on so many cores."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCH],
        input=json.dumps([[str(word) for word in words], cores]),
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, peak, status, said = json.loads(done.stdout)
    if status:
        sys.exit(f"commands: {' '.join(map(str, words[:4]))} ... ended with {status}: {said}")
    return seconds, peak


def save_model(path: Path, size: int) -> None:
    """A checkpoint of so many million random weights."""
    config = ModelConfig(vocab=1024, context=1024, **SHAPES[size])
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.02)
    save_checkpoint(path, Checkpoint(model=config, weights=model.state_dict()))


def commands(place: Path, at: Setting) -> dict[str, list[object]]:
    """The words of each command by its name, in an order in which each finds its files."""
    data, tokenizer = ["--data", place / "shards"], place / "tokenizer.model"
    checkpoint, packed = place / f"{at.size}.pt", place / f"{at.size}.gptpack"
    shape = [f"--set=model.{name}={value}" for name, value in SHAPES[at.size].items()]
    training = {"steps": STEPS, "batch_tokens": at.tokens // 4, "seconds": 0}
    sets = [*shape, *(f"--set=training.{name}={value}" for name, value in training.items())]
    run = place / f"run-{time.monotonic_ns()}"
    to, forced = ["-o", packed, "--force"], ["-o", place / "out", "--force"]
    seen = ["--calibration-tokens", at.tokens, "--eval-tokens", at.tokens]
    words: dict[str, list[object]] = {
        f"train, {STEPS} steps of a quarter of the tokens": [
            *("train", "--recipe", "baseline", *data, *sets, "--no-eval", "-o", run),
        ],
        "pack and prove": ["pack", checkpoint, *data, "--bits", 3.5, "--no-keep", *seen, *to],
        "eval": ["eval", packed, *data, "--eval-tokens", at.tokens],
        "verify": ["verify", packed],
        "sample, 64 tokens": [
            *("sample", packed, "--tokenizer", tokenizer, "--prompt", "The", "--tokens", 64),
        ],
        "unpack": ["unpack", packed, "--to", "safetensors", *forced],
        "inspect": ["inspect", packed],
        "check": ["check", packed, "--budget", "1GB"],
    }
    return {name: [GPTPACK, *more] for name, more in words.items()}


def starting(place: Path, size: int, turns: int) -> None:
    """What commands without torch take beside `import numpy`: medians of processes in turns."""
    packed = place / f"{size}.gptpack"
    there = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import numpy": [sys.executable, "-c", "import numpy"],
        "gptpack --help": [GPTPACK, "--help"],
        "gptpack inspect": [GPTPACK, "inspect", packed],
        "gptpack check": [GPTPACK, "check", packed, "--budget", "1GB"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in there}
    for _ in range(turns):
        for name, words in there.items():
            seconds[name].append(measured(words, usable_cores())[0])
    unit = statistics.median(seconds["import numpy"])
    print(f"\n{'whole process':24} {'s':>7} {'of import numpy':>16}")
    for name, found in seconds.items():
        middle = statistics.median(found)
        print(f"{name:24} {middle:7.3f} {middle / unit:16.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--starts", type=int, default=11)
    options = parser.parse_args()
    cores, middle = usable_cores(), sorted(options.sizes)[len(options.sizes) // 2]
    settings = [Setting(size, TOKENS, cores) for size in options.sizes]
    settings.append(Setting(middle, MORE * TOKENS, cores))
    if cores > 1:
        settings.append(Setting(middle, TOKENS, 1))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        text, tokenizer = place / "text.txt", place / "tokenizer.model"
        read = list(islice(documents(standard_library()), DOCUMENTS))
        text.write_text(SEPARATOR.join(read), encoding="utf-8")
        train_tokenizer(read, tokenizer, TokenizerConfig(vocab=1024))
        words = [GPTPACK, "data", "tokenize", "--train", text]
        words += ["--val-fraction", 0.2, "--tokenizer", tokenizer, "-o", place / "shards"]
        seconds, _ = measured(words, cores)
        print(f"data tokenize, {text.stat().st_size / 1e6:.1f} MB: {seconds:.1f} s", flush=True)
        for size in options.sizes:
            save_model(place / f"{size}.pt", size)
        columns: dict[str, list[tuple[float, int]]] = {}
        for at in settings:
            print(f"{at} ...", file=sys.stderr, flush=True)
            for name, words in commands(place, at).items():
                columns.setdefault(name, []).append(measured(words, at.cores))
        for index, at in enumerate(settings, 1):
            print(f"[{index}] {at}")
        heads = "".join(f"{f'[{index}] s':>9}{'MB':>7}" for index in range(1, len(settings) + 1))
        print(f"{'command':42}{heads}")
        for name, found in columns.items():
            cells = "".join(f"{taken:9.2f}{peak / 1e6:7,.0f}" for taken, peak in found)
            print(f"{name:42}{cells}", flush=True)
        starting(place, middle, options.starts)


if __name__ == "__main__":
    main()
