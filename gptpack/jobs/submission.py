"""What `gptpack submission` runs and reads: a run's folder, the shipped script, changed text."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptpack.contest.folder import ARTIFACT, SCRIPT
from gptpack.contest.logs import RunRecord
from gptpack.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    GptpackError,
    MissingDependencyError,
)
from gptpack.jobs.fresh import TORCHRUN
from gptpack.runs.metrics import read_metrics

if TYPE_CHECKING:
    from gptpack.artifact.header import ArtifactHeader

GUARD = """
import runpy, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"):
        raise OSError(f"{event}: the script may not use a network")
sys.addaudithook(refuse)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script in a process that refuses connections."""
MOST_DIGITS = 18
"""Of a seed; what has more is a file's name."""
PROBE_CONTEXTS = 2
"""Windows of text that are exchanged to see whether scores depend on later tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run: its packed file and what else it left."""

    artifact: Path
    header: "ArtifactHeader"
    record: RunRecord


def read_run(argument: str) -> Run:
    """The run that ``[SEED=]FOLDER`` or ``[SEED=]FILE`` names.

    Raises:
        ConfigError: no packed file, or more than one, or no seed.
        GptpackError: something in the folder cannot be read.
    """
    from gptpack.artifact.reader import read_header
    from gptpack.data.shards import file_sha256
    from gptpack.training.checkpoint import load_checkpoint
    from gptpack.training.loop import CHECKPOINT, METRICS
    from gptpack.values import to_dict

    given, equals, rest = argument.partition("=")
    named = bool(equals) and given.isdecimal() and len(given) <= MOST_DIGITS
    path = Path(rest) if named else Path(argument)
    folder = path if path.is_dir() else path.parent
    artifact = _packed(path)
    recipe: dict[str, Any] = {}
    seed, seconds = (int(given) if named else None), None
    if (folder / CHECKPOINT).exists():
        checkpoint = load_checkpoint(folder / CHECKPOINT)
        recipe = to_dict(checkpoint.recipe) if checkpoint.recipe else {}
        if checkpoint.training is not None:
            seconds = float(checkpoint.training["seconds"])
        if seed is None and recipe:
            seed = int(recipe["training"]["seed"])
    if seed is None:
        raise ConfigError(f"{argument}: no {CHECKPOINT} says its seed; write SEED={argument}")
    metrics = folder / METRICS
    header = read_header(artifact)
    return Run(
        artifact=artifact,
        header=header,
        record=RunRecord(
            name=folder.resolve().name,
            seed=seed,
            metrics=read_metrics(metrics) if metrics.exists() else (),
            recipe=recipe,
            train_seconds=seconds,
            pack=header.pack,
            pack_seconds=_pack_seconds(folder, file_sha256(artifact)),
        ),
    )


def _packed(path: Path) -> Path:
    """The one packed file of a run."""
    if path.is_file():
        return path
    found = sorted(path.glob("*.gptpack"))
    if len(found) != 1:
        what = ", ".join(file.name for file in found) or "no *.gptpack"
        raise ConfigError(f"{path}: holds {what}; name the run's one packed file")
    return found[0]


def _pack_seconds(folder: Path, sha256: str) -> float | None:
    """How long packing took, by a report of ``gptpack pack --json`` in the folder."""
    for path in sorted(folder.glob("*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(report, dict) and report.get("sha256") == sha256:
            seconds = report.get("seconds")
            if isinstance(seconds, dict):
                return sum(float(seconds.get(phase, 0.0)) for phase in ("calibrate", "pack"))
    return None


def run_script(script: Path, *options: object) -> str:
    """What a script prints in a clean process that refuses connections.

    Raises:
        GptpackError: it failed; says what it said.
    """
    command = [sys.executable, "-I", "-c", GUARD, script, *options]
    environment = {name: text for name, text in os.environ.items() if name not in TORCHRUN}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=script.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        errors: dict[int, type[GptpackError]] = {3: ArtifactError, 4: MissingDependencyError}
        error = errors.get(done.returncode, GptpackError)
        raise error(f"{script.name} ended with status {done.returncode} and said: {said}")
    return done.stdout


def depends_on_later_tokens(folder: Path, options: list[object], data: Path) -> str | None:
    """How the script's scores depend on tokens after them; empty if they do not.

    It scores two texts that are the same up to the start of a document and go on differently, and
    every score before that place must be the same, bit for bit. None if `data` has no two documents
    that can be exchanged.

    Raises:
        GptpackError: the script failed.
    """
    import numpy as np

    from gptpack.artifact.reader import read_header
    from gptpack.data.shards import load_tokens, write_shard

    header = read_header(folder / ARTIFACT)
    context = header.model.context
    tokens = load_tokens(data, "val", header.model.vocab, 0)
    places = _exchange(np.asarray(tokens), header.tokenizer.bos, context)
    if places is None:
        return None
    begin, cut, other = places
    tail = PROBE_CONTEXTS * context
    first = tokens[begin:cut]
    texts = [np.concatenate([first, tokens[at : at + tail]]) for at in (cut, other)]
    same_until = cut - begin
    losses = []
    with tempfile.TemporaryDirectory(prefix="gptpack-") as temporary:
        for index, text in enumerate(texts):
            place = Path(temporary) / str(index)
            place.mkdir()
            write_shard(place / "text_val_000000.bin", text)
            output = place / "losses.npy"
            # the later --data wins over one among the options
            run_script(folder / SCRIPT, *options, "--data", place, "--losses", output)
            losses.append(np.load(output))
    same = losses[0][:same_until] == losses[1][:same_until]
    if bool(same.all()):
        return ""
    return (
        f"target {int(np.argmin(same))} scores differently when tokens from {same_until + 1} on "
        "change"
    )


def _exchange(tokens: Any, bos: int, context: int) -> tuple[int, int, int] | None:
    """A document's start and end, and where else there is text that could follow it.

    The document fills a window, if one does, and is the shortest of those; both continuations begin
    with a document, so that tokens still decode to text wherever they are joined.
    """
    import numpy as np

    tail = PROBE_CONTEXTS * context
    starts = np.flatnonzero(tokens == bos)
    starts = starts[starts <= len(tokens) - tail]
    if starts.size < 3:
        return None
    lengths = np.diff(starts)
    order = np.argsort(np.where(lengths >= context, lengths, len(tokens) - lengths), kind="stable")
    index = int(order[0])
    begin, cut = int(starts[index]), int(starts[index + 1])
    for other in starts:
        # the token after BOS differs: whoever looks one token ahead is found as well
        if (tokens[other : other + 2] != tokens[cut : cut + 2]).any():
            return begin, cut, int(other)
    return None


def tokenizer_of(data: Path, tokenizer: Path | None) -> Path:
    """The tokenizer's file, which changed text needs a path to."""
    from gptpack.data.manifest import TOKENIZER

    path = (tokenizer or data / TOKENIZER).resolve()
    if not path.is_file():
        raise DataError(f"{path}: no tokenizer; name its file with --tokenizer")
    return path
