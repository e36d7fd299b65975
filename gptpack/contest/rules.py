"""The contest's rules for a submission's folder, each of them an outcome: pass, fail or skip.

Nothing of the folder is run here. What has to be run (the figures again, without a network; that no
score depends on later tokens) comes as `Proved` from whoever calls.
"""

import datetime
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptpack.contest.folder import (
    ARTIFACT,
    CAP_BYTES,
    FIGURES,
    README,
    REQUIREMENTS,
    SCRIPT,
    UNCOUNTED,
    About,
    figures,
    figures_block,
    log_name,
)
from gptpack.contest.imports import (
    NETWORK,
    PROCESSES,
    imported_modules,
    own_modules,
    reaching,
    third_party,
)
from gptpack.contest.logs import RunLog, read_log
from gptpack.contest.significance import compare
from gptpack.errors import ConfigError, DataError
from gptpack.gate.outcomes import Outcome, State

RECORD_TRACK = "10min_16mb"
"""Here times, seeds and significance are rules; on other tracks they are only reported."""
LEAST_SEEDS = 3
MOST_SECONDS = 600.0
MARGIN_NATS = 0.005
MOST_P = 0.01
CANONICAL_BYTES = 151_080_363
"""Validation text of the contest with its 1,024 pieces; other tokenizers are within 5e-5."""
CANONICAL_SHARE = 1e-3

FIELDS: dict[str, tuple[type, ...]] = {
    "author": (str,),
    "github_id": (str,),
    "name": (str,),
    "blurb": (str,),
    "date": (str,),
    "track": (str,),
    "val_loss": (float,),
    "val_bpb": (float,),
    "bytes_total": (int,),
    "bytes_code": (int,),
    "seeds": (list,),
    "seed_results": (dict,),
}
"""What submission.json must have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """What running the script showed, in processes that cannot open a connection."""

    error: str = ""
    """What it said if it failed."""
    bpb: float | None = None
    """Of the shipped artifact; None where another number of tokens was scored than in the log."""
    tolerance: float = 0.0
    """How far that may be from the log: other devices round differently."""
    later_tokens: str | None = None
    """How scores depend on later tokens: empty if they do not, None if it was not tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A submission as it lies on the disk."""

    path: Path
    files: Mapping[str, int]
    """Bytes by path below the folder."""
    values: Mapping[str, Any]
    logs: Sequence[RunLog]
    problems: Sequence[str]
    """What could not be read."""

    @property
    def counted(self) -> dict[str, int]:
        """Files whose bytes count."""
        return {
            name: size
            for name, size in self.files.items()
            if name not in UNCOUNTED and not name.endswith(".log")
        }

    @property
    def seeds(self) -> list[int | str]:
        """What the logs are named after; empty where submission.json has no list of seeds."""
        found = self.values.get("seeds")
        return found if isinstance(found, list) and all(map(_is_seed, found)) else []

    @property
    def is_record(self) -> bool:
        return self.values.get("track") == RECORD_TRACK


def _is_seed(value: Any) -> bool:
    return type(value) in (int, str) and bool(re.fullmatch(r"-?\w{1,20}", str(value)))


def read_folder(path: Path) -> Folder:
    """Everything that the rules look at.

    Raises:
        ConfigError: there is no such folder.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: not a folder; 'gptpack submission' makes one")
    files = {
        item.relative_to(path).as_posix(): item.lstat().st_size
        for item in sorted(path.rglob("*"))
        if item.is_symlink() or item.is_file()
    }
    problems: list[str] = []
    values: dict[str, Any] = {}
    try:
        found = json.loads((path / FIGURES).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            values = found
        else:
            problems.append(f"{FIGURES} is not an object")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{FIGURES}: {error}")
    logs: list[RunLog] = []
    folder = Folder(path=path, files=files, values=values, logs=logs, problems=problems)
    for seed in folder.seeds:
        try:
            logs.append(read_log(path / log_name(seed)))
        except DataError as error:
            problems.append(str(error))
    return folder


def check_folder(
    folder: Folder, *, record: Sequence[float] = (), proved: Proved | None = None
) -> list[Outcome]:
    """Every rule, in order.

    Args:
        record: losses in nats per token that are to be beaten; empty if none was named.
        proved: what running the script showed; None if it was not run.
    """
    outcomes = [_named(rule, check(folder)) for rule, check in STATIC]
    outcomes.append(_named("significance", _significance(folder, record)))
    return [*outcomes, *(_named(rule, check(folder, proved)) for rule, check in DYNAMIC)]


Verdict = tuple[bool | None, str]
"""Whether a rule holds (None: it cannot be told, or does not apply), and why."""


def _named(rule: str, verdict: Verdict) -> Outcome:
    held, text = verdict
    state: State = "skip" if held is None else "pass" if held else "fail"
    return Outcome(rule=rule, state=state, text=text, exit_status=int(held is False))


def _files(folder: Folder) -> Verdict:
    wanted = {README, FIGURES, SCRIPT, *map(log_name, folder.seeds)}
    if missing := sorted(wanted - folder.files.keys()):
        return False, f"missing: {', '.join(missing)}"
    if not any(name.endswith(".log") for name in folder.files):
        return False, "there is no log"
    return True, f"{len(folder.files)} files, {README}, {FIGURES}, {SCRIPT} and logs among them"


def _fields(folder: Folder) -> Verdict:
    values = folder.values
    wrong = [
        name
        for name, kinds in FIELDS.items()
        if type(values.get(name)) not in kinds or (name != "blurb" and not values[name])
    ]
    if wrong:
        return False, f"{FIGURES}: missing or of a wrong type: {', '.join(wrong)}"
    try:
        date = datetime.date.fromisoformat(values["date"]).isoformat()
    except ValueError:
        date = ""
    if date != values["date"]:  # weeks and dates without hyphens are ISO's too
        return False, f"{FIGURES}: date {values['date']!r} is not YYYY-MM-DD"
    return True, f"{FIGURES} has all {len(FIELDS)} fields"


def _cap(folder: Folder) -> Verdict:
    """Shipped bytes, and those of every seed's artifact with the same code."""
    counted = folder.counted
    total = sum(counted.values())
    ledger = ", ".join(f"{name} {size:,}" for name, size in counted.items())
    words = f"{total:,} of {CAP_BYTES:,} bytes (decimal): {ledger}"
    code = total - counted.get(ARTIFACT, 0)
    results = folder.values.get("seed_results")
    for seed, result in results.items() if isinstance(results, dict) else ():
        size = result.get("artifact_bytes") if isinstance(result, dict) else None
        if type(size) is int and code + size > CAP_BYTES:
            return False, f"seed {seed}: {code + size:,} bytes, over the cap of {CAP_BYTES:,}"
    if total > CAP_BYTES:
        return False, f"over the cap by {total - CAP_BYTES:,}: {words}"
    return True, words


def _sizes(folder: Folder) -> Verdict:
    """Stated sizes are those of the files that ship."""
    values, counted = folder.values, folder.counted
    code = sum(size for name, size in counted.items() if name != ARTIFACT)
    stated = {"bytes_code": code, "bytes_total": sum(counted.values())}
    for name, size in stated.items():
        if values.get(name) != size:
            return False, f"{FIGURES} says {name} {values.get(name)}, the files have {size:,}"
    try:
        digest = hashlib.sha256((folder.path / ARTIFACT).read_bytes()).hexdigest()
    except OSError as error:
        return False, f"{ARTIFACT}: {error.strerror}"
    if values.get("artifact_sha256") != digest:
        return False, f"{ARTIFACT} is not the artifact that {FIGURES} was measured on"
    return True, f"code {code:,} and total {sum(counted.values()):,} bytes, as the files have"


def _one_file(folder: Folder) -> Verdict:
    others = [name for name in folder.counted if name not in (SCRIPT, ARTIFACT)]
    if others:
        return False, f"code or data beside {SCRIPT}: {', '.join(others[:5])}"
    return True, f"all counted code is in {SCRIPT}"


OPTIONAL = frozenset({"brotli", "constriction", "kernels", "triton", "zstandard"})
"""Packages that our script imports where an artifact, or an option by name, asks for them."""


NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What Python's parser says to text that is none, or nested beyond what it can take."""


def _imports(folder: Folder) -> Verdict:
    """Packages that are imported are named in requirements.txt."""
    source = _source(folder)
    try:
        found = third_party(imported_modules(source)) - own_modules(source)
    except NO_PYTHON as error:
        return False, f"{SCRIPT} is not Python: {str(error) or type(error).__name__}"
    try:
        text = (folder.path / REQUIREMENTS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    listed = {match[0].lower().replace("-", "_") for match in re.finditer(r"^[\w.-]+", text, re.M)}
    if unlisted := sorted(found - listed - OPTIONAL):
        return False, f"{REQUIREMENTS} does not name {', '.join(unlisted)}"
    return True, f"needs {', '.join(sorted(listed)) or 'no package'}"


def _network(folder: Folder) -> Verdict:
    try:
        names = imported_modules(_source(folder))
    except NO_PYTHON as error:
        return False, f"{SCRIPT} is not Python: {str(error) or type(error).__name__}"
    if reached := sorted(reaching(names, NETWORK | PROCESSES)):
        return False, f"{SCRIPT} imports {', '.join(reached[:5])}"
    return True, f"{SCRIPT} imports nothing that reaches a network or starts a process"


def _source(folder: Folder) -> str:
    try:
        return (folder.path / SCRIPT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _logs(folder: Folder) -> Verdict:
    if folder.problems:
        return False, "; ".join(folder.problems[:3])
    for log, seed in zip(folder.logs, folder.seeds, strict=True):
        if log.seed != seed:
            return False, f"{log_name(seed)} is of seed {log.seed}"
        if log.total_bytes != log.model_bytes + log.code_bytes:
            return False, f"{log_name(seed)}: {log.total_bytes:,} is not code and model together"
    return True, f"{len(folder.logs)} logs read"


def _agree(folder: Folder) -> Verdict:
    """submission.json and the README say what the logs say."""
    if folder.problems or not folder.logs:
        return None, "not all logs could be read"
    values = folder.values
    about = About(
        **{key: str(values.get(key) or "") for key in ("name", "author", "github_id", "date")},
        blurb=str(values.get("blurb") or ""),
        track=str(values.get("track") or ""),
        hardware=str(values.get("hardware") or ""),
    )
    expected = figures(about, folder.logs)
    for key, value in expected.items():
        if values.get(key) != value:
            return False, f"{FIGURES} says {key} {values.get(key)!r}, the logs say {value!r}"
    try:
        text = (folder.path / README).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return False, f"{README}: {error}"
    if figures_block(expected) not in text:
        return False, f"the figures in {README} are not those of the logs"
    return True, f"{FIGURES} and {README} have the logs' figures"


def _seeds(folder: Folder) -> Verdict:
    seeds = folder.seeds
    if seeds != folder.values.get("seeds") or len(set(map(str, seeds))) != len(seeds):
        return False, "seeds must be a list of numbers without repeats"
    results = folder.values.get("seed_results")
    if not isinstance(results, dict) or sorted(results) != sorted(map(str, seeds)):
        return False, "seed_results must have one entry for each seed"
    files = {log.artifact_sha256 for log in folder.logs}
    if len(files) < len(folder.logs):
        return False, "two seeds have one artifact"
    if not folder.is_record:
        return None, f"{len(seeds)} seeds; track {folder.values.get('track')!r} asks for no number"
    return len(seeds) >= LEAST_SEEDS, f"{len(seeds)} seeds, {LEAST_SEEDS} are needed"


def _times(folder: Folder) -> Verdict:
    """Training with packing, and evaluation, each within ten minutes."""
    if not folder.is_record:
        return None, f"track {folder.values.get('track')!r} has no limit"
    unknown = [log.seed for log in folder.logs if None in (log.train_seconds, log.pack_seconds)]
    for log in folder.logs:
        made = (log.train_seconds or 0.0) + (log.pack_seconds or 0.0)
        if made > MOST_SECONDS:
            return False, f"seed {log.seed}: training and packing took {made:,.1f} s"
        if log.eval_seconds > MOST_SECONDS:
            return False, f"seed {log.seed}: evaluation took {log.eval_seconds:,.1f} s"
    if not folder.logs or unknown:
        return None, f"logs of seeds {unknown} do not say how long training and packing took"
    return True, f"training with packing, and evaluation, within {MOST_SECONDS:.0f} s each"


def _hardware(folder: Folder) -> Verdict:
    found = folder.values.get("hardware")
    if not folder.is_record:
        return None, f"trained on {found or 'unknown hardware'}"
    words = re.sub(r"[\W_]+", "", str(found or "")).lower()
    return "8xh100" in words, f"trained on {found or 'unknown hardware'}; the track is for 8xH100"


def _bytes(folder: Folder) -> Verdict:
    """Loss, bits per byte, tokens and bytes belong together, and to the contest's text."""
    if not folder.logs:
        return None, "no log could be read"
    for log in folder.logs:
        for name, score in log.scores.items():
            implied = score.loss / math.log(2) * score.tokens / score.bpb if score.bpb else 0.0
            if not math.isclose(implied, score.bytes, rel_tol=1e-6):
                return False, (
                    f"seed {log.seed}: {name} implies {implied:,.0f} bytes of text, "
                    f"the log says {score.bytes:,}"
                )
    found = folder.logs[0].scores["plain"]
    share = abs(found.bytes / CANONICAL_BYTES - 1)
    if share <= CANONICAL_SHARE:
        return True, f"{found.bytes:,} bytes of text, the contest's within {share:.1e}"
    words = f"{found.bytes:,} bytes of text; the contest's has {CANONICAL_BYTES:,}"
    return (False if folder.is_record else None), words


def _adaptation(folder: Folder) -> Verdict:
    found = {log.adaptation for log in folder.logs}
    if found == {"none"}:
        return True, "the model is fixed while it is scored"
    return None, f"adaptation {', '.join(sorted(found)) or 'unknown'}: see score-first"


STATIC: tuple[tuple[str, Callable[[Folder], Verdict]], ...] = (
    ("files", _files),
    ("fields", _fields),
    ("cap", _cap),
    ("sizes", _sizes),
    ("one file", _one_file),
    ("imports", _imports),
    ("no network", _network),
    ("logs", _logs),
    ("figures", _agree),
    ("byte accounting", _bytes),
    ("adaptation", _adaptation),
    ("seeds", _seeds),
    ("times", _times),
    ("hardware", _hardware),
)


def _significance(folder: Folder, record: Sequence[float]) -> Verdict:
    if not record:
        return None, "name the loss that is to be beaten with --record-loss"
    losses = [log.score.loss for log in folder.logs]
    if len(losses) < 2:
        return False if folder.is_record else None, f"{len(losses)} runs show no spread"
    found = compare(losses, record, margin=MARGIN_NATS)
    if found is None:
        return False, "the runs have one and the same loss; they are not separate runs"
    words = (
        f"gain {found.gain:+.5f} nats, {MARGIN_NATS} is asked for; t {found.t:.2f}, "
        f"p {found.p:.4f}, {MOST_P} at most"
    )
    return found.p < MOST_P, words


def _runs(folder: Folder, proved: Proved | None) -> Verdict:
    if proved is None:
        return None, NOT_RUN
    return not proved.error, proved.error or "with every connection refused"


def _reproduced(folder: Folder, proved: Proved | None) -> Verdict:
    if proved is None or proved.bpb is None or not folder.logs:
        return None, NOT_RUN if proved is None else "not all of the text was scored"
    stated = folder.logs[0].score.bpb
    words = f"{proved.bpb:.6f} bpb, the log says {stated:.6f}; {proved.tolerance} apart at most"
    return abs(proved.bpb - stated) <= proved.tolerance, words


def _score_first(folder: Folder, proved: Proved | None) -> Verdict:
    if proved is None or proved.later_tokens is None:
        return None, NOT_RUN if proved is None else "the text has no two documents to exchange"
    return not proved.later_tokens, (
        proved.later_tokens or "no score changes with the tokens after it, bit for bit"
    )


NOT_RUN = "give --data to run the script"
DYNAMIC: tuple[tuple[str, Callable[[Folder, Proved | None], Verdict]], ...] = (
    ("runs offline", _runs),
    ("reproduced", _reproduced),
    ("score-first", _score_first),
)
