"""Damage, budgets, kills and repetition, as many as there is time for -> what did not hold.

    python benchmarks/soak.py                                           # about a minute
    python benchmarks/soak.py --mutations 100000 --budgets 300 --kills 200 --packs 50
    python benchmarks/soak.py --mutations 0 --budgets 0 --kills 0 --packs 500 --seed 7

Four parts, each of as many trials as its option says, none for 0. *Mutations* of packed files of
both format versions, every second one with right checksums: a file reads, or is refused with one
line. *Budgets* drawn over three models and all methods: no file is a byte over, each reads, and
the budget that a refusal names works. *Kills* of train, pack, data tokenize and unpack at any
moment: what stands at the final name is the old or the new result, whole, and the command can be
run again.
*Packs* in one process: memory, threads and open files do not grow.

Trial i of a part draws from the seed that is printed for it, so that one alone can be repeated
with --seed and --first. Ends with status 1 if anything did not hold.
"""

import argparse
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import gptpack
from gptpack.artifact.front import decode_header
from gptpack.artifact.layout import FIELDS, MAGIC, PREAMBLE_BYTES, digest, section_digest
from gptpack.artifact.reader import decode_artifact, read_sections
from gptpack.data.tokenizer import TokenizerConfig, train_tokenizer
from gptpack.errors import ArtifactError, BudgetError, GptpackError, MissingDependencyError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.packing.config import GRIDS, METHODS
from gptpack.values import parse_size

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
VOCAB, CONTEXT = 320, 32
SLOW_SECONDS = 20.0
"""A mutation that takes longer is told."""
MOST_GROWTH_BYTES = 8 << 20
"""Growth of memory between the second quarter of the packs and the last that is let pass."""
ODD: Sequence[Any] = (None, True, -1, 0, 1.5, 1e308, 5e-324, 2**53, 2**63, 10**30, "", "x", [], {})
TEXT = "the river ran past the mill and ground the corn of three villages in winter"


class Loop(nn.Module):
    """A module of a caller's own, for files of version 2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCAB, 48)
        self.layers = nn.ModuleList(nn.Linear(48, 48, bias=False) for _ in range(3))

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + layer(x.cumsum(1) / 8).tanh()
        return nn.functional.linear(x, self.embedding.weight)


def models() -> dict[str, Any]:
    """Three models of random weights: two of the contest's family, and a module."""
    shape = ModelConfig(
        vocab=VOCAB, layers=2, width=64, heads=4, kv_heads=2, mlp_hidden=96, context=CONTEXT
    )
    parts = {"tied_embedding": False, "bigram_rows": 64, "bigram_width": 16, "smear_gate": True}
    newer = ModelConfig(
        vocab=VOCAB, layers=3, width=48, heads=2, kv_heads=1, mlp_hidden=128, context=16, **parts
    )
    own = Loop()
    return {
        "baseline": GPT(shape, seed=0),
        "newer": GPT(newer, seed=1),
        "module": gptpack.Module(own, logits=own.logits, context=CONTEXT),
    }


def packed(model: Any, tokenizer: Path, **how: Any) -> bytes:
    """The file of a model, calibrated on few random tokens."""
    own = isinstance(model, gptpack.Module)
    text = torch.arange(4096).mul(7).remainder(VOCAB)
    more = {"calibration": text} if own else {"calibration": "random", "tokenizer": tokenizer}
    return gptpack.pack(model, calibration_tokens=1024, states=8, device="cpu", **more, **how).data


# mutations


def forged(values: Any, sections: Sequence[bytes], version: int) -> bytes:
    """A file of this header and these sections whose checksums are right."""
    raw = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    rest = b"".join(sections)
    size = PREAMBLE_BYTES + len(raw) + len(rest)
    fields = FIELDS.pack(MAGIC, version, 0, len(raw), len(raw), size)
    return fields + digest(fields, raw) + raw + rest


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes with some changed, removed or added."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(found) + 1)
        match draw.randrange(4):
            case 0 if at < len(found):
                found[at] ^= 1 << draw.randrange(8)
            case 1:
                del found[at : at + draw.randrange(1, 64)]
            case 2:
                found[at:at] = draw.randbytes(draw.randrange(1, 64))
            case _:
                found[at : at + 8] = draw.choice((bytes(8), b"\xff" * 8, draw.randbytes(8)))
    return bytes(found)


def changed(values: Any, draw: random.Random) -> Any:
    """Plain values with one of them, at any depth, replaced, removed, repeated or shifted."""
    values = {"": copy.deepcopy(values)}
    holder, key = values, ""
    while isinstance(holder[key], dict | list) and holder[key] and draw.random() < 0.85:
        holder = holder[key]
        key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    match draw.randrange(4):
        case 0 if type(holder[key]) is int:
            holder[key] += draw.choice((-1, 1, 255, -(10**6), 10**9))
        case 1 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(draw.choice(holder)))
        case 2 if holder is not values:
            del holder[key]
        case _:
            holder[key] = draw.choice(ODD)
    return values[""]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A packed file with damage, half of the time behind right checksums."""
    if draw.random() < 0.5:
        return damaged(data, draw)
    header = decode_header(data)
    stored = data[PREAMBLE_BYTES : header.header_bytes]
    values = json.loads(stored if stored.startswith(b"{") else zlib.decompress(stored))
    sections = [stream.data for stream in read_sections(data, header)]
    if draw.random() < 0.5:
        for _ in range(draw.choice((1, 1, 2, 3))):
            values = changed(values, draw)
        return forged(values, sections, header.version)
    at = draw.randrange(len(sections))
    sections[at] = damaged(sections[at], draw)
    row = values["sections"][at]
    row[3], row[5] = len(sections[at]), section_digest(sections[at])
    return forged(values, sections, header.version)


def mutations(tokenizer: Path) -> Callable[[random.Random], str]:
    """A trial: one mutation of one file is read; what is not refused as it should be is raised."""
    files = [(GOLDEN / f"tiny-v{version}.artifact").read_bytes() for version in (1, 2)]
    for model in models().values():
        for method, codec in (
            ("gptq-trellis", "range"),
            ("gptq-uniform", "zstd"),
            ("int8", "lzma"),
        ):
            how = {"delta": 0.02, "methods": (method,), "codecs": (codec,)}
            files.append(packed(model, tokenizer, **how))
    shifted = models()["baseline"]
    # a direction that all tokens share: offsets of columns are another method of the format
    shifted.get_parameter("tok_emb.weight").data += 1.0
    files.append(packed(shifted, tokenizer, delta=0.02))
    assert any("column_offsets" in each.arrays for each in decode_artifact(files[-1]).tensors)

    def trial(draw: random.Random) -> str:
        data = mutated(draw.choice(files), draw)
        began = time.perf_counter()
        try:
            decode_artifact(data, verify_weights=True)
            outcome = "read"
        except (ArtifactError, MissingDependencyError) as error:
            if not str(error).isprintable():
                raise AssertionError(f"not one line: {error!r}") from error
            outcome = "refused"
        if (seconds := time.perf_counter() - began) > SLOW_SECONDS:
            raise AssertionError(f"{len(data):,} bytes took {seconds:.0f} s")
        return outcome

    return trial


# budgets


def budgets(tokenizer: Path) -> Callable[[random.Random], str]:
    """A trial: one model by one method under one budget."""
    there = models()
    largest = {
        name: len(packed(model, tokenizer, methods=("float16",), delta=0.01))
        for name, model in there.items()
    }

    def within(model: Any, budget: int, **how: Any) -> bytes:
        data = packed(model, tokenizer, budget=budget, **how)
        assert len(data) <= budget, f"{len(data):,} bytes"
        decode_artifact(data, verify_weights=True)
        return data

    def trial(draw: random.Random) -> str:
        # the grids are what fits a budget, so every second trial has one
        name, method = draw.choice(list(there)), draw.choice((*METHODS, *GRIDS * 3))
        budget = int(largest[name] * 2 ** draw.uniform(-4, 0.5))
        print(f"    {name}, {method}, {budget:,} bytes", flush=True)
        try:
            data = within(there[name], budget, methods=(method,))
        except BudgetError as error:
            named = str(error).partition("; ")[2].partition(" bytes are enough")[0]
            within(there[name], parse_size(named), methods=(method,))
            return "refused, and the budget named works"
        if draw.random() < 0.2:
            again = within(there[name], budget, methods=(method,))
            assert data == again, "two packs differ"
        return "within"

    return trial


# kills


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "gptpack", *map(str, words)]


@dataclass(frozen=True, slots=True)
class Job:
    """A command whose result gets its name at once."""

    words: list[Any]
    """The command without the place of its result, which comes last."""
    whole: Callable[[Path], object]
    """Raises if the result at a place is not whole."""


def jobs(tokenizer: Path, place: Path) -> dict[str, Job]:
    """The commands that are killed, on data that is made here."""
    text, other, data = place / "text.txt", place / "other.txt", place / "shards"
    for path, river in ((text, "river"), (other, "brook")):
        documents = [f"{river} {i}: {TEXT[i % 40 :] * 9}" for i in range(300)]
        path.write_text("\n\x1e\n".join(documents))
    tokenize = ["data", "tokenize", "--train", text, "--val", other, "--tokenizer", tokenizer]
    tokenize += ["--workers", 1, "--force", "--output"]
    shape = {"vocab": VOCAB, "layers": 2, "width": 32, "heads": 2, "kv_heads": 1}
    recipe = {f"model.{k}": v for k, v in {**shape, "mlp_hidden": 64, "context": CONTEXT}.items()}
    recipe |= {"training.batch_tokens": 1024, "training.steps": 120, "training.seconds": 0}
    recipe |= {"training.checkpoint_seconds": 0.2}
    train = ["train", "--recipe", "tiny", "--data", data, "--device", "cpu", "--no-eval"]
    train += [word for key, value in recipe.items() for word in ("--set", f"{key}={value}")]
    source = place / "source"
    pack = ["pack", source / "checkpoint.pt", "--budget", "60KB", "--data", data]
    pack += ["--device", "cpu", "--states", 8, "--calibration-tokens", 2048, "--force", "--output"]
    _run(command(*tokenize, data))
    _run(command(*train, "--output", source))
    file = place / "model.gptpack"
    _run(command(*pack, file))
    unpack = ["unpack", file, "--to", "safetensors", "--force", "--output"]
    return {
        "train": Job([*train, "--output"], lambda path: gptpack.load(path / "checkpoint.pt")),
        "pack": Job(pack, gptpack.verify),
        "tokenize": Job(tokenize, lambda path: _run(command("data", "info", path))),
        "unpack": Job(unpack, load_file),
    }


def kills(tokenizer: Path, place: Path) -> Callable[[random.Random], str]:
    """A trial: one command is killed at a random moment, and then run to its end."""
    there = jobs(tokenizer, place)
    seconds: dict[str, float] = {}

    def trial(draw: random.Random) -> str:
        name = draw.choice(list(there))
        words, whole = there[name].words, there[name].whole
        folder = Path(tempfile.mkdtemp(dir=place))
        target = folder / "out"
        began = time.perf_counter()
        if name not in seconds or (name != "train" and draw.random() < 0.5):
            _run(command(*words, target))  # something stands there before
            seconds.setdefault(name, time.perf_counter() - began)
            if name == "train":
                shutil.rmtree(target)
        after = draw.uniform(0, 1.05 * seconds[name])
        print(f"    {name}, killed after {after:.2f} s", flush=True)
        stood = target.exists()
        process = subprocess.Popen(
            command(*words, target), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
        if name == "train":
            kept = (target / "checkpoint.pt").exists()
            if kept:
                whole(target)
            begun = kept or (target / "metrics.jsonl").exists()
            words = [*words[:-1], *(["--resume"] if begun else []), "--output"]
        elif target.exists():
            whole(target)
        else:
            assert not stood, "what stood there is gone"
        _run(command(*words, target))
        whole(target)
        shutil.rmtree(folder)
        return f"{name}: {'killed' if process.returncode else 'had ended'}"

    return trial


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not done.returncode, f"status {done.returncode}: {done.stderr[-400:]}"


# packs in one process


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(count: int, tokenizer: Path) -> Iterator[str]:
    """Pack `count` times in this process; yields what grew."""
    there = list(models().values())
    memory, files, threads = [], [], []
    for number in range(count):
        packed(there[number % len(there)], tokenizer, budget=60_000)
        memory.append(resident_bytes())
        files.append(len(os.listdir("/proc/self/fd")))
        threads.append(threading.active_count())
    quarter = max(1, count // 4)
    early, late = max(memory[quarter : 2 * quarter] or memory), max(memory[-quarter:])
    print(
        f"  {count} packs: {early:,} bytes at most in the second quarter, {late:,} in the last; "
        f"{files[0]} to {max(files)} open files, {threads[0]} to {max(threads)} threads"
    )
    if late - early > MOST_GROWTH_BYTES:
        yield f"memory grew by {late - early:,} bytes"
    if count > 1 and files[-1] > files[1]:
        yield f"open files grew from {files[1]} to {files[-1]}"
    if count > 1 and threads[-1] > threads[1]:
        yield f"threads grew from {threads[1]} to {threads[-1]}"


def run(
    part: str, trial: Callable[[random.Random], str], first: int, count: int, seed: int
) -> list[str]:
    """Run trials and print their outcomes; returns what did not hold, with its seed."""
    failed: list[str] = []
    outcomes: Counter[str] = Counter()
    began = time.perf_counter()
    for number in range(first, first + count):
        try:
            outcomes[trial(random.Random(f"{part} {seed} {number}"))] += 1
        except Exception as error:
            what = f"{part} --seed {seed} --first {number}: {type(error).__name__}: {error}"
            if isinstance(error, GptpackError):
                what += " (refused where it should not be)"
            print(f"  FAILED {what}", flush=True)
            failed.append(what)
    said = ", ".join(f"{n:,} {outcome}" for outcome, n in sorted(outcomes.items()))
    print(f"  {count:,} {part}: {said or 'none held'} ({time.perf_counter() - began:,.0f} s)")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--budgets", type=int, default=12)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--packs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of each part's first trial")
    given = parser.parse_args()
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gptpack-soak-") as folder:
        place = Path(folder)
        tokenizer = place / "tokenizer.model"
        train_tokenizer([TEXT] * 9, tokenizer, TokenizerConfig(vocab=VOCAB))
        parts = {
            "mutations": mutations,
            "budgets": budgets,
            "kills": lambda path: kills(path, place),
        }
        for part, make in parts.items():
            if count := getattr(given, part):
                print(f"{part}, seed {given.seed}, from trial {given.first}", flush=True)
                failed += run(part, make(tokenizer), given.first, count, given.seed)
        if given.packs:
            print("packs in one process", flush=True)
            failed += growth(given.packs, tokenizer)
    print(f"{len(failed)} did not hold" + "".join(f"\n  {what}" for what in failed))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
