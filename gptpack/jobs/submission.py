"""`gptpack submission make`: runs -> a contest folder whose figures the shipped script printed."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptpack.contest.folder import (
    ARTIFACT,
    FIGURES,
    README,
    REQUIREMENTS,
    SCRIPT,
    About,
    check_output,
    figures,
    log_name,
    readme,
    write_folder,
)
from gptpack.contest.logs import RunRecord, submission_log, training_lines
from gptpack.contest.script import make_script
from gptpack.errors import BudgetError, ConfigError, DataError, error_of
from gptpack.families.golf.config import ModelConfig
from gptpack.jobs.fresh import alone
from gptpack.progress import Progress, silent
from gptpack.runs.gather import CHECKPOINT, METRICS, reports
from gptpack.runs.logged import CAP_BYTES
from gptpack.runs.metrics import read_metrics

GUARD = """
import runpy, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"):
        raise OSError(f"{event}: the script may not use a network")
sys.addaudithook(refuse)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Program that runs a script and refuses its connections."""
MOST_DIGITS = 18
"""Digits of a seed; what has more is taken for a file's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A submission that was written."""

    figures: Mapping[str, Any]
    """Content of submission.json."""
    readable_bytes: int
    """Bytes of the script in its readable form."""
    small_bytes: int
    """Bytes of the script in its small form."""


def make_submission(
    runs: Sequence[str],
    output: Path,
    about: About,
    *,
    data: Path,
    tokenizer: Path | None = None,
    stride: int = 64,
    readable: bool = False,
    device: str = "auto",
    force: bool = False,
    progress: Progress = silent,
) -> Made:
    """Write a submission of `runs` to the folder `output`; the first run's artifact ships.

    Args:
        runs: ``[SEED=]FOLDER`` or ``[SEED=]FILE`` of each run.
        data: folder of validation shards.
        tokenizer: the tokenizer's file; None takes the one in `data`.
        stride: stride of the sliding window that the script scores; 0 for none.
        readable: whether the script ships in its readable form.
        force: whether a submission that stands at `output` is replaced.

    Raises:
        BudgetError: an artifact with the script is over the contest's cap.
        GptpackError: a run cannot be read, the script failed, or `output` is not to be written.
    """
    check_output(output, force=force)
    found = [read_run(run) for run in runs]
    seeds = [run.seed for run in found]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {seeds}: two runs have one seed; name each SEED=RUN")
    codecs = frozenset().union(*(run.codecs for run in found))
    script = make_script(codecs, artifact=ARTIFACT, stride=stride)
    source = script.readable if readable else script.small
    for run in found:
        _check_cap(run, len(source.encode()))
    options: list[object] = ["--data", data.resolve(), "--device", device]
    options += ["--tokenizer", tokenizer_of(data, tokenizer)]
    texts = {}
    for run in found:
        progress(f"seed {run.seed}: run {SCRIPT} on {run.artifact}", 0, 0)
        texts[log_name(run.seed)] = _log(run, source, options)
    values = figures(about, [submission_log(text, name) for name, text in texts.items()])
    first = found[0]
    files = {
        README: readme(values, recipe=first.recipe, pack=first.pack),
        FIGURES: json.dumps(values, indent=2, allow_nan=False) + "\n",
        REQUIREMENTS: "".join(f"{line}\n" for line in script.packages),
        SCRIPT: source,
        **texts,
    }
    write_folder(output, files, first.artifact)
    return Made(
        figures=values,
        readable_bytes=len(script.readable.encode()),
        small_bytes=len(script.small.encode()),
    )


def _check_cap(run: RunRecord, code_bytes: int) -> None:
    total = run.file_bytes + code_bytes
    if total > CAP_BYTES:
        raise BudgetError(
            f"{run.artifact}: {run.file_bytes:,} bytes and {code_bytes:,} of code are "
            f"{total:,}, over {CAP_BYTES:,}; pack with --budget {CAP_BYTES - code_bytes}"
        )


def _log(run: RunRecord, source: str, options: list[object]) -> str:
    """A run's log: what the run left, and what the script prints of its artifact."""
    with tempfile.TemporaryDirectory(prefix="gptpack-") as temporary:
        script = Path(temporary) / SCRIPT
        script.write_text(source, encoding="utf-8")
        shutil.copyfile(run.artifact, script.with_name(ARTIFACT))
        printed = run_script(script, *options)
    return "\n".join([*training_lines(run), printed])


def read_run(argument: str) -> RunRecord:
    """The run that ``[SEED=]FOLDER`` or ``[SEED=]FILE`` names.

    Raises:
        ConfigError: there is no packed file, or more than one, or nothing says the seed.
        GptpackError: something in the folder cannot be read.
    """
    from gptpack.artifact.front import read_header
    from gptpack.inputs import file_sha256
    from gptpack.training.checkpoint import load_checkpoint
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
    if not isinstance(header.model, ModelConfig) or header.model.architecture != "golf":
        raise ConfigError(
            f"{artifact}: not of architecture='golf', the only models that the contest's script "
            "runs; choose another run"
        )
    return RunRecord(
        name=folder.resolve().name,
        seed=seed,
        artifact=artifact,
        file_bytes=header.file_bytes,
        codecs=frozenset(section.codec for section in header.sections),
        metrics=read_metrics(metrics) if metrics.exists() else (),
        recipe=recipe,
        train_seconds=seconds,
        pack=header.pack,
        pack_seconds=_pack_seconds(folder, file_sha256(artifact)),
    )


def _packed(path: Path) -> Path:
    """The one packed file of a run."""
    if path.is_file():
        return path
    found = sorted(path.glob("[!.]*.gptpack"))
    if len(found) != 1:
        what = ", ".join(file.name for file in found) or "no *.gptpack"
        raise ConfigError(f"{path}: holds {what}; name the run's one packed file")
    return found[0]


def _pack_seconds(folder: Path, sha256: str) -> float | None:
    """Seconds of packing, if a report of ``gptpack pack --json`` in the folder says them."""
    for report in reports(folder):
        seconds = report.get("seconds")
        if report.get("sha256") == sha256 and isinstance(seconds, dict):
            return sum(float(seconds.get(phase, 0.0)) for phase in ("calibrate", "pack"))
    return None


def run_script(script: Path, *options: object) -> str:
    """The output of a script in a clean process that refuses connections.

    Raises:
        GptpackError: the script failed; says what it said.
    """
    command = [sys.executable, "-I", "-c", GUARD, script, *options]
    done = subprocess.run(
        [str(word) for word in command],
        cwd=script.parent,
        env=alone(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        status = done.returncode
        raise error_of(status)(f"{script.name} ended with status {status} and said: {said}")
    return done.stdout


def tokenizer_of(data: Path, tokenizer: Path | None) -> Path:
    """The tokenizer's file: `tokenizer`, or the one in `data`."""
    from gptpack.data.manifest import TOKENIZER

    path = (tokenizer or data / TOKENIZER).resolve()
    if not path.is_file():
        raise DataError(f"{path}: no tokenizer; name its file with --tokenizer")
    return path
