"""The logs of runs -> the files of a submission, whose every figure `figures` takes from them."""

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptpack.atomic import check_folder, replacing_directory
from gptpack.contest.logs import decisive_score, plain_score
from gptpack.errors import ConfigError
from gptpack.runs.logged import CAP_BYTES, LoggedRun

ARTIFACT = "model.gptpack"
SCRIPT = "train_gpt.py"
README = "README.md"
FIGURES = "submission.json"
REQUIREMENTS = "requirements.txt"
UNCOUNTED = (README, FIGURES, REQUIREMENTS)
"""Files whose bytes do not count; logs do not either, and all others do."""
BEGIN, END = "<!-- figures: generated from the logs -->", "<!-- end of figures -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a person says about a submission."""

    name: str
    author: str
    github_id: str
    date: str
    """YYYY-MM-DD."""
    blurb: str = ""
    track: str = "10min_16mb"
    hardware: str = ""
    """Hardware that training ran on, such as ``8xH100 SXM``."""


def log_name(seed: int | str) -> str:
    """Name of a seed's log in the folder."""
    return f"train_seed{seed}.log"


def figures(about: About, logs: Sequence[LoggedRun]) -> dict[str, Any]:
    """submission.json: the fields that the contest's submissions have, from the logs.

    The first log's artifact is the one that ships; means are over all logs.
    """
    shipped = logs[0]
    losses = [decisive_score(log).nats for log in logs]
    scores = [decisive_score(log).bpb for log in logs]
    spread = statistics.stdev(scores) if len(scores) > 1 else None
    return {
        "author": about.author,
        "github_id": about.github_id,
        "name": about.name,
        "blurb": about.blurb,
        "date": about.date,
        "track": about.track,
        "val_loss": round(statistics.fmean(losses), 8),
        "val_bpb": round(statistics.fmean(scores), 8),
        "val_bpb_std": None if spread is None else round(spread, 8),
        "metric": metric(shipped),
        "adaptation": shipped.words["adaptation"],
        "bytes_total": shipped.sizes["total"],
        "bytes_code": shipped.sizes["code"],
        "bytes_model": shipped.sizes["model"],
        "artifact_sha256": shipped.words["artifact_sha256"],
        "seeds": [log.facts["seed"] for log in logs],
        "seed_results": {str(log.facts["seed"]): _seed_result(log) for log in logs},
        "hardware": about.hardware or None,
        "eval_hardware": f"{shipped.facts['ranks']} x {shipped.words['device']}",
        "pytorch_version": shipped.words["torch"],
        "gptpack_version": shipped.words["gptpack"],
    }


def _seed_result(log: LoggedRun) -> dict[str, Any]:
    steps, spent = log.steps or None, log.train_seconds or None
    return {
        "val_loss": decisive_score(log).nats,
        "val_bpb": decisive_score(log).bpb,
        "plain_bpb": plain_score(log).bpb,
        "artifact_bytes": log.sizes["model"],
        "artifact_sha256": log.words["artifact_sha256"],
        "steps": steps,
        "train_time_s": spent,
        "pack_time_s": log.seconds.get("pack"),
        "step_avg_ms": round(1000 * spent / steps, 2) if steps and spent else None,
        "eval_time_s": log.seconds["eval_total"],
    }


def metric(log: LoggedRun) -> str:
    """What the decisive score is, in words."""
    score = decisive_score(log)
    kind = "plain" if score.kind == "plain" else f"sliding window, stride {score.stride}"
    return f"{kind}, context {score.context}"


def figures_block(values: Mapping[str, Any]) -> str:
    """The part of the README that is figures, between its marks."""
    rows = [
        "| seed | val_bpb | val_loss, nats | plain bpb | artifact, bytes | steps | train, s | "
        "pack, s | eval, s |",
        "| ---: " * 9 + "|",
    ]
    for seed, result in values["seed_results"].items():
        cells = [
            seed,
            f"{result['val_bpb']:.6f}",
            f"{result['val_loss']:.6f}",
            f"{result['plain_bpb']:.6f}",
            f"{result['artifact_bytes']:,}",
            _or_dash(result["steps"], ","),
            _or_dash(result["train_time_s"], ".1f"),
            _or_dash(result["pack_time_s"], ".1f"),
            f"{result['eval_time_s']:.1f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    spread = values["val_bpb_std"]
    mean = f"**Mean val_bpb {values['val_bpb']:.6f}**"
    mean += "" if spread is None else f", standard deviation {spread:.6f}"
    seeds = len(values["seeds"])
    lines = [
        BEGIN,
        "",
        f"{mean}, over {seeds} {'run' if seeds == 1 else 'runs'} ({values['metric']}; "
        f"adaptation: {values['adaptation']}).",
        "",
        *rows,
        "",
        f"Bytes that count: {values['bytes_code']:,} of code and {values['bytes_model']:,} of "
        f"model, {values['bytes_total']:,} of {CAP_BYTES:,}.",
        "",
        END,
    ]
    return "\n".join(lines)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def readme(values: Mapping[str, Any], *, recipe: Mapping[str, Any], pack: Mapping[str, Any]) -> str:
    """The README; nothing in it was typed that a log knows."""
    trained = f" on {values['hardware']}" if values["hardware"] else ""
    settings = json.dumps(recipe, indent=2, sort_keys=True)
    packing = json.dumps(pack, indent=2, sort_keys=True)
    first = values["seeds"][0]
    return f"""# {values["name"]}

{values["blurb"] or "A small GPT, trained and packed with gptpack."}

{figures_block(values)}

`{SCRIPT}` is one file: it decodes `{ARTIFACT}` (that of seed {first}) and measures its bits per
byte with no other code, and it fetches nothing. The logs end with what it printed for each seed's
artifact.

    pip install -r {REQUIREMENTS}
    python {SCRIPT} --data FOLDER_OF_SHARDS
    torchrun --standalone --nproc_per_node=8 {SCRIPT} --data FOLDER_OF_SHARDS

Training ran{trained} under gptpack {values["gptpack_version"]}; evaluation ran on
{values["eval_hardware"]}, PyTorch {values["pytorch_version"]}.

## Training

    gptpack train --recipe RECIPE.toml --data SHARDS --output RUN

The resolved recipe of seed {first}:

```json
{settings}
```

## Packing

    gptpack pack RUN/checkpoint.pt --budget BYTES --data SHARDS --output {ARTIFACT}

What the artifact says of it:

```json
{packing}
```
"""


def check_output(output: Path, *, force: bool) -> None:
    """Whether a submission may be written to `output`.

    Raises:
        ConfigError: something stands there that is no submission, or is not to be replaced.
    """
    shipped = (ARTIFACT, SCRIPT, README, REQUIREMENTS, log_name("*"))
    check_folder(output, "submission", FIGURES, *shipped)
    if not force and output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} exists; give --force, or another --output")


def write_folder(output: Path, files: Mapping[str, str], artifact: Path) -> None:
    """Put all files under `output`, at once; what is there is replaced (see `check_output`).

    Raises:
        DataError: it cannot be written.
    """
    with replacing_directory(output) as stage:
        for name, text in files.items():
            (stage / name).write_text(text, encoding="utf-8")
        shutil.copyfile(artifact, stage / ARTIFACT)
