"""`gptpack submission check`: a submission -> outcomes of the rules; for some its script is run."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gptpack.contest.folder import ARTIFACT, SCRIPT
from gptpack.contest.rules import Proved, check_submitted
from gptpack.contest.submitted import read_submitted
from gptpack.errors import GptpackError
from gptpack.gate.outcomes import Outcome
from gptpack.jobs.submission import run_script, tokenizer_of
from gptpack.progress import Progress, silent
from gptpack.values import check_idle

PROBE_CONTEXTS = 2
"""Contexts of text that are exchanged to see whether scores depend on later tokens."""


def check_submission(
    folder: Path,
    *,
    data: Path | None = None,
    tokenizer: Path | None = None,
    eval_tokens: int = 0,
    tolerance: float = 0.001,
    record: Sequence[float] = (),
    device: str = "auto",
    progress: Progress = silent,
) -> list[Outcome]:
    """The outcome of each of the contest's rules for the submission in `folder`.

    Args:
        data: folder of validation shards; the script is run on them. None runs nothing.
        tokenizer: the tokenizer's file; None takes the one in `data`.
        eval_tokens: score the first so many targets; 0 scores all, as the log did.
        tolerance: bits per byte by which the script's figure may differ from the log's.
        record: losses in nats per token that are to be beaten; empty if none is named.

    Raises:
        ConfigError: there is no such folder, or settings of a run without `data`.
        DataError: there is no tokenizer.
    """
    check_idle("without --data", data is None, tokenizer=tokenizer, eval_tokens=eval_tokens)
    read = read_submitted(folder)
    proved = None
    if data is not None:
        options: list[object] = ["--device", device, "--tokenizer", tokenizer_of(data, tokenizer)]
        try:
            proved = _prove(folder.resolve(), options, data, eval_tokens, tolerance, progress)
        except GptpackError as error:
            proved = Proved(error=str(error))
    return check_submitted(read, record=record, proved=proved)


def _prove(
    folder: Path,
    options: list[object],
    data: Path,
    eval_tokens: int,
    tolerance: float,
    progress: Progress,
) -> Proved:
    """Run the script as it ships, and on changed text."""
    limit = ["--limit-tokens", eval_tokens] if eval_tokens else []
    with tempfile.TemporaryDirectory(prefix="gptpack-") as temporary:
        output = Path(temporary) / "figures.json"
        progress(f"run {SCRIPT}", 0, 0)
        given = [*options, "--data", data.resolve(), "--json", output, *limit]
        run_script(folder / SCRIPT, *given)
        bpb = _written(output, _decisive_bpb)
    progress(f"run {SCRIPT} on changed text", 0, 0)
    return Proved(
        bpb=None if eval_tokens else bpb,
        tolerance=tolerance,
        later_tokens=_later_tokens(folder, options, data),
    )


def _decisive_bpb(path: Path) -> float:
    scores = json.loads(path.read_text(encoding="utf-8"))["scores"]
    return float((scores.get("sliding") or scores["plain"])["bpb"])


def _written(path: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` makes of a file that the script was told to write."""
    try:
        return read(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise GptpackError(f"{SCRIPT} did not write {path.name} as ours does: {error!r}") from error


def _later_tokens(folder: Path, options: list[object], data: Path) -> str | None:
    """How the script's scores depend on tokens after them; empty if they do not.

    The script scores two texts that are the same up to the start of a document and go on
    differently; every score before that place must be the same, bit for bit. None if `data` has no
    two documents that can be exchanged.
    """
    import numpy as np

    from gptpack.artifact.front import read_header
    from gptpack.data.shards import write_shard
    from gptpack.data.splits import load_tokens

    header = read_header(folder / ARTIFACT)
    context = header.model.context
    tokens = load_tokens(data, "val", header.model.vocab, 0)
    places = _exchange(np.asarray(tokens), header.model.bos, context)
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
            write_shard(place / "text_val_000000.bin", text, vocab=header.model.vocab)
            output = place / "losses.npy"
            run_script(folder / SCRIPT, *options, "--data", place, "--losses", output)
            losses.append(_written(output, np.load)[:same_until])
    same = losses[0] == losses[1]
    if bool(same.all()):
        return ""
    return (
        f"target {int(np.argmin(same))} scores differently when tokens from {same_until + 1} on "
        "change"
    )


def _exchange(tokens: Any, bos: int, context: int) -> tuple[int, int, int] | None:
    """Start and end of a document, and the start of other text that could follow it.

    The document is the shortest of those that fill a window, or the longest if none does. Both
    continuations begin with a document, so that tokens still decode to text where they are joined.
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
