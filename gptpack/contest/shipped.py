"""A submission -> verdicts on its files: which there are, their bytes, what the script imports."""

import datetime
import re
from collections.abc import Callable, Iterator

from gptpack.contest.folder import ARTIFACT, FIGURES, README, REQUIREMENTS, SCRIPT, log_name
from gptpack.contest.imports import NETWORK, PROCESSES
from gptpack.contest.submitted import Submitted, text_of
from gptpack.inputs import file_sha256
from gptpack.runs.logged import CAP_BYTES

FIELDS: dict[str, type] = {
    **dict.fromkeys(("author", "github_id", "name", "blurb", "date", "track"), str),
    **dict.fromkeys(("val_loss", "val_bpb"), float),
    **dict.fromkeys(("bytes_total", "bytes_code"), int),
    "seeds": list,
    "seed_results": dict,
}
"""Fields that submission.json must have, and their types."""
OPTIONAL = frozenset({"brotli", "kernels", "numba", "triton", "zstandard"})
"""Packages that our script imports only where an artifact or an option asks for them."""

Verdict = tuple[bool | None, str]
"""Whether a rule holds (None: it cannot be told, or does not apply), and why."""


def _files(folder: Submitted) -> Verdict:
    if folder.strange:
        return False, (
            f"neither files nor folders, so their bytes are not here: "
            f"{', '.join(folder.strange[:5])}; put the files themselves there"
        )
    wanted = {README, FIGURES, SCRIPT, *map(log_name, folder.seeds)}
    if missing := sorted(wanted - folder.files.keys()):
        return False, f"missing: {', '.join(missing)}"
    if not any(name.endswith(".log") for name in folder.files):
        return False, "there is no log"
    return True, f"{len(folder.files)} files, {README}, {FIGURES}, {SCRIPT} and logs among them"


def _fields(folder: Submitted) -> Verdict:
    values = folder.values
    wrong = [
        name
        for name, kind in FIELDS.items()
        if type(values.get(name)) is not kind or (name != "blurb" and not values[name])
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


def _cap(folder: Submitted) -> Verdict:
    """The cap holds for the files that ship, and for each seed's artifact with the same code."""
    counted = folder.counted
    total = sum(counted.values())
    ledger = ", ".join(f"{name} {size:,}" for name, size in counted.items())
    words = f"{total:,} of {CAP_BYTES:,} bytes (decimal): {ledger}"
    for what, size in _stated(folder):
        if size > CAP_BYTES:
            return False, f"{what}: {size:,} bytes, over the cap of {CAP_BYTES:,}"
    if total > CAP_BYTES:
        return False, f"over the cap by {total - CAP_BYTES:,}: {words}"
    if ARTIFACT not in counted:
        return None, f"no {ARTIFACT} is here to be counted; what is: {words}"
    return True, words


def _stated(folder: Submitted) -> Iterator[tuple[str, int]]:
    """What submission.json says of a total in bytes, and whose it is.

    ``artifact_bytes`` is of the model alone where that ships and its bytes are stated beside, as in
    our folders. In those of others it is the total that the log has, code included.
    """
    values, counted = folder.values, folder.counted
    code = 0
    if ARTIFACT in counted and "bytes_model" in values:
        code = sum(counted.values()) - counted[ARTIFACT]
    results = values.get("seed_results")
    rows = [(FIGURES, values)]
    rows += [(f"seed {s}", row) for s, row in results.items()] if isinstance(results, dict) else []
    for what, row in rows:
        for name, more in (("bytes_total", 0), ("artifact_bytes", code)):
            size = row.get(name) if isinstance(row, dict) else None
            if type(size) is int:
                yield what, size + more


def _sizes(folder: Submitted) -> Verdict:
    """The sizes that submission.json states are those of the files that ship."""
    values, counted = folder.values, folder.counted
    code = sum(size for name, size in counted.items() if name != ARTIFACT)
    stated = {"bytes_code": code, "bytes_total": sum(counted.values())}
    if ARTIFACT not in counted and "artifact_sha256" not in values:
        del stated["bytes_total"]
    for name, size in stated.items():
        if values.get(name) != size:
            return False, f"{FIGURES} says {name} {values.get(name)}, the files have {size:,}"
    if "bytes_total" not in stated:
        return None, f"code {code:,} bytes, as the files have; no {ARTIFACT} is here to be counted"
    try:
        digest = file_sha256(folder.path / ARTIFACT)
    except OSError as error:
        return False, f"{ARTIFACT}: {error.strerror}"
    if values.get("artifact_sha256") != digest:
        return False, f"{ARTIFACT} is not the artifact that {FIGURES} was measured on"
    return True, f"code {code:,} and total {sum(counted.values()):,} bytes, as the files have"


def _one_file(folder: Submitted) -> Verdict:
    others = [name for name in folder.counted if name not in (SCRIPT, ARTIFACT)]
    if others:
        return False, f"code or data beside {SCRIPT}: {', '.join(others[:5])}"
    return True, f"all counted code is in {SCRIPT}"


def _imports(folder: Submitted) -> Verdict:
    """The packages that the script imports are named in requirements.txt."""
    if isinstance(folder.imports, str):
        return False, folder.imports
    names = re.finditer(r"^[\w.-]+", text_of(folder.path / REQUIREMENTS), re.MULTILINE)
    listed = {match[0].lower().replace("-", "_") for match in names}
    if unlisted := sorted(folder.imports.third_party - listed - OPTIONAL):
        return False, f"{REQUIREMENTS} does not name {', '.join(unlisted)}"
    return True, f"needs {', '.join(sorted(listed)) or 'no package'}"


def _network(folder: Submitted) -> Verdict:
    if isinstance(folder.imports, str):
        return False, folder.imports
    if reached := sorted(folder.imports.reaching(NETWORK | PROCESSES)):
        return False, f"{SCRIPT} imports {', '.join(reached[:5])}"
    return True, f"{SCRIPT} imports nothing that reaches a network or starts a process"


RULES: tuple[tuple[str, Callable[[Submitted], Verdict]], ...] = (
    ("files", _files),
    ("fields", _fields),
    ("cap", _cap),
    ("sizes", _sizes),
    ("one file", _one_file),
    ("imports", _imports),
    ("no network", _network),
)
"""Rules on the files, in the order in which they are told."""
