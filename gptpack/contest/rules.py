"""A submission, and what running its script showed -> an outcome for each of the contest's rules.

The rules on files stand in shipped.py; those on logs and figures here. Nothing is run here: what
running the script offline and on changed text showed comes as `Proved` from whoever calls.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from gptpack.contest import shipped
from gptpack.contest.folder import FIGURES, README, About, figures, figures_block, log_name
from gptpack.contest.logs import decisive_score, plain_score
from gptpack.contest.shipped import Verdict
from gptpack.contest.submitted import Submitted, text_of
from gptpack.errors import ConfigError
from gptpack.gate.outcomes import Outcome, State
from gptpack.runs.log_checks import TOLERANCE
from gptpack.runs.logged import MOST_SECONDS, TEXT_BYTES
from gptpack.runs.significance import t_test

LEAST_SEEDS = 3
"""Seeds that a record needs."""
MARGIN_NATS = 0.005
"""Gain in nats per token by which a record must be beaten, with a p below `MOST_P`."""
MOST_P = 0.01
NOT_RUN = "give --data to run the script"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """What running the script showed, in processes that cannot open a connection."""

    error: str = ""
    """What it said if it failed."""
    bpb: float | None = None
    """Bits per byte of the shipped artifact; None where fewer tokens were scored than in the log.
    """
    tolerance: float = 0.0
    """How far `bpb` may be from the log's figure: other devices round differently."""
    later_tokens: str | None = None
    """How scores depend on later tokens: empty if they do not, None if it was not tried."""


def check_submitted(
    folder: Submitted, *, record: Sequence[float] = (), proved: Proved | None = None
) -> list[Outcome]:
    """The outcome of every rule, in order.

    Args:
        record: losses in nats per token that are to be beaten; empty if none was named.
        proved: what running the script showed; None if it was not run.
    """
    outcomes = [_outcome(rule, check(folder)) for rule, check in (*shipped.RULES, *LOGGED)]
    outcomes.append(_outcome("significance", _significance(folder, record)))
    return [*outcomes, *(_outcome(rule, check(folder, proved)) for rule, check in PROVED)]


def _outcome(rule: str, verdict: Verdict) -> Outcome:
    held, text = verdict
    state: State = "skip" if held is None else "pass" if held else "fail"
    return Outcome(rule=rule, state=state, text=text, exit_status=int(held is False))


def _logs(folder: Submitted) -> Verdict:
    if folder.problems:
        return False, "; ".join(folder.problems[:3])
    for log, seed in zip(folder.logs, folder.seeds, strict=True):
        total = log.sizes["total"]
        if log.facts["seed"] != seed:
            return False, f"{log_name(seed)} is of seed {log.facts['seed']}"
        if total != log.sizes["model"] + log.sizes["code"]:
            return False, f"{log_name(seed)}: {total:,} is not code and model together"
    if not folder.logs:
        there = sum(name.endswith(".log") for name in folder.files)
        return False, f"{FIGURES} has no seeds, so none of the {there} logs here was read"
    return True, f"{len(folder.logs)} logs read"


def _agree(folder: Submitted) -> Verdict:
    """submission.json and the README say what the logs say."""
    if folder.problems or not folder.logs:
        return None, "not all logs could be read"
    values = folder.values
    about = About(**{key.name: str(values.get(key.name) or "") for key in fields(About)})
    expected = figures(about, folder.logs)
    for key, value in expected.items():
        if values.get(key) != value:
            return False, f"{FIGURES} says {key} {values.get(key)!r}, the logs say {value!r}"
    if figures_block(expected) not in text_of(folder.path / README):
        return False, f"the figures in {README} are not those of the logs"
    return True, f"{FIGURES} and {README} have the logs' figures"


def _seeds(folder: Submitted) -> Verdict:
    seeds = folder.seeds
    if seeds != folder.values.get("seeds") or len(set(map(str, seeds))) != len(seeds):
        return False, "seeds must be a list of numbers without repeats"
    results = folder.values.get("seed_results")
    if not isinstance(results, dict) or sorted(results) != sorted(map(str, seeds)):
        return False, "seed_results must have one entry for each seed"
    files = {log.words["artifact_sha256"] for log in folder.logs}
    if len(files) < len(folder.logs):
        return False, "two seeds have one artifact"
    if not folder.is_record:
        return None, f"{len(seeds)} seeds; track {folder.values.get('track')!r} asks for no number"
    return len(seeds) >= LEAST_SEEDS, f"{len(seeds)} seeds, {LEAST_SEEDS} are needed"


def _times(folder: Submitted) -> Verdict:
    """Training with packing, and evaluation, each within ten minutes."""
    if not folder.is_record:
        return None, f"track {folder.values.get('track')!r} has no limit"
    unknown = []
    for log in folder.logs:
        seed, packing, spent = log.facts["seed"], log.seconds.get("pack"), log.seconds["eval_total"]
        made = log.train_seconds + (packing or 0.0)
        if made > MOST_SECONDS:
            return False, f"seed {seed}: training and packing took {made:,.1f} s"
        if spent > MOST_SECONDS:
            return False, f"seed {seed}: evaluation took {spent:,.1f} s"
        if packing is None or not log.train_seconds:
            unknown.append(seed)
    if not folder.logs or unknown:
        return None, f"logs of seeds {unknown} do not say how long training and packing took"
    return True, f"training with packing, and evaluation, within {MOST_SECONDS:.0f} s each"


def _hardware(folder: Submitted) -> Verdict:
    found = folder.values.get("hardware")
    if not folder.is_record:
        return None, f"trained on {found or 'unknown hardware'}"
    words = re.sub(r"[\W_]+", "", str(found or "")).lower()
    return "8xh100" in words, f"trained on {found or 'unknown hardware'}; the track is for 8xH100"


def _bytes(folder: Submitted) -> Verdict:
    """Loss, bits per byte, tokens and bytes belong together, and to the contest's text."""
    if not folder.logs:
        return None, "no log could be read"
    for log in folder.logs:
        for score in (plain_score(log), decisive_score(log)):
            implied = score.implied_bytes or 0.0
            if not math.isclose(implied, score.bytes or 0, rel_tol=1e-6):
                return False, (
                    f"seed {log.facts['seed']}: {score.label} implies {implied:,.0f} bytes of "
                    f"text, the log says {score.bytes:,}"
                )
    found = plain_score(folder.logs[0]).bytes or 0
    share = abs(found / TEXT_BYTES - 1)
    if share <= TOLERANCE:
        return True, f"{found:,} bytes of text, the contest's within {share:.1e}"
    words = f"{found:,} bytes of text; the contest's has {TEXT_BYTES:,}"
    return (False if folder.is_record else None), words


def _adaptation(folder: Submitted) -> Verdict:
    found = {log.words["adaptation"] for log in folder.logs}
    if found == {"none"}:
        return True, "the model is fixed while it is scored"
    return None, f"adaptation {', '.join(sorted(found)) or 'unknown'}: see score-first"


LOGGED: tuple[tuple[str, Callable[[Submitted], Verdict]], ...] = (
    ("logs", _logs),
    ("figures", _agree),
    ("byte accounting", _bytes),
    ("adaptation", _adaptation),
    ("seeds", _seeds),
    ("times", _times),
    ("hardware", _hardware),
)
"""Rules on logs and figures, in the order in which they are told."""


def _significance(folder: Submitted, record: Sequence[float]) -> Verdict:
    if not record:
        return None, "name the loss that is to be beaten with --record-loss"
    losses = [decisive_score(log).nats for log in folder.logs]
    if len(losses) < 2:
        return False if folder.is_record else None, f"{len(losses)} runs show no spread"
    try:
        found = t_test(losses, record, margin=MARGIN_NATS)
    except ConfigError as error:
        return False, str(error)
    words = (
        f"gain {found.gain:+.5f} nats, {MARGIN_NATS} is asked for; t {-found.t:.2f}, "
        f"p {found.p:.4f}, {MOST_P} at most"
    )
    return found.p < MOST_P, words


def _runs(folder: Submitted, proved: Proved | None) -> Verdict:
    if proved is None:
        return None, NOT_RUN
    return not proved.error, proved.error or "with every connection refused"


def _reproduced(folder: Submitted, proved: Proved | None) -> Verdict:
    if proved is None or proved.bpb is None or not folder.logs:
        return None, NOT_RUN if proved is None else "not all of the text was scored"
    stated = decisive_score(folder.logs[0]).bpb
    words = f"{proved.bpb:.6f} bpb, the log says {stated:.6f}; {proved.tolerance} apart at most"
    return abs(proved.bpb - stated) <= proved.tolerance, words


def _score_first(folder: Submitted, proved: Proved | None) -> Verdict:
    if proved is None or proved.later_tokens is None:
        return None, NOT_RUN if proved is None else "the text has no two documents to exchange"
    return not proved.later_tokens, (
        proved.later_tokens or "no score changes with the tokens after it, bit for bit"
    )


PROVED: tuple[tuple[str, Callable[[Submitted, Proved | None], Verdict]], ...] = (
    ("runs offline", _runs),
    ("reproduced", _reproduced),
    ("score-first", _score_first),
)
"""Rules on what running the script showed."""
