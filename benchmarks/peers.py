"""A Hugging Face folder -> what other tools make of it, beside gptpack's files, in one table.

    python benchmarks/peers.py FOLDER --eval-text a.txt --calibration-text train.txt \
        --gptpack small.gptpack large.gptpack --published peers.csv \
        --output rows.jsonl --markdown table.md --plot plot.png --plot plot.svg

All are scored on the same text in the same windows: every tool's weights are dequantized to
float32, put back into the transformers model, and scored by `gptpack.evaluate` with the folder's
own tokenizer. In the same pass each distribution is compared with the unquantized model's.

Bytes are those of all files that a tool saves but the tokenizer's, which are the same for each.
Tools calibrate on the first windows of --calibration-text, but for EXL3, which has a text of its
own. Each tool is at its own defaults but for the bits; a group of 128 becomes 64 or 32 where it
does not divide a layer's inputs (576 = 4.5 x 128 in SmolLM2-135M).

Each tool runs in a process of its own. One that is not installed, crashes or takes too long becomes
a row that says so. What the processes print goes to a file beside --output. No tool is needed for
anything else of gptpack:

    pip install hqq bitsandbytes torchao gptqmodel auto-round exllamav3

--rows adds those of an earlier run, on another machine, say. Rows of --published are of tools that
did not run here. Their rises were measured on another text, as the column "text" says, and their
bytes are of whole files: llama.cpp's hold the tokenizer, which is 1.8 MB in SmolLM2's.
"""

import argparse
import csv
import dataclasses
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from peer_tools import PACKAGES, REFERENCE, Request, Row, absent, settings_of

TITLES = {
    REFERENCE: "unquantized",
    "hqq": "HQQ",
    "bnb": "bitsandbytes",
    "torchao": "torchao",
    "gptqmodel": "GPTQModel",
    "autoround": "AutoRound",
    "exl3": "EXL3",
    "llamacpp": "llama.cpp",
    "gptpack": "gptpack",
}
"""Names of the tools as their authors write them."""
TUNED = "gptpack, tuned"
"""What the line of tuned files is called."""
NO_TOOL = ("transformers", "ESTIMATE")
"""How rows of a published table begin that are no tool's files."""
MARKERS = "sv^D<>pPX*h"
COLORS = ("#3b82c4", "#c77700", "#2f9e58", "#a05cc0", "#c94f7c", "#8a7a2c", "#4a9aa5", "#a0653c")
"""Colours with about the same contrast to white as to black."""
INK, OURS = "#808080", "#e0443a"


class Runner:
    """Tools in processes of their own; `log` gets what they print."""

    def __init__(self, request: Request, timeout_seconds: float, log: Path) -> None:
        self.request, self.timeout_seconds, self.log = request, timeout_seconds, log
        self._lock = Lock()
        log.write_text("")

    def rows(self, tool: str) -> list[Row]:
        """A row for each setting of `tool`."""
        if problem := absent(tool):
            return self._without(tool, [], problem)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="peers-") as folder:
            request, found = Path(folder) / "request.json", Path(folder) / "rows.jsonl"
            printed = Path(folder) / "log"
            request.write_text(json.dumps(dataclasses.asdict(self.request)))
            program = str(Path(__file__).with_name("peer_tools.py"))
            problem, status = self._run([program, tool, str(request), str(found)], printed)
            lines = found.read_text().splitlines() if found.exists() else []
            rows = [Row(**json.loads(line)) for line in lines]
            text = printed.read_text(errors="replace")
        if status and (last := text.strip().splitlines()[-1:]):
            problem = f"{problem}: {ascii(last[0])[1:-1]:.200}"
        with self._lock:
            with self.log.open("a") as file:
                file.write(f"== {tool}\n{text}\n")
            print(f"{tool}: {time.perf_counter() - began:.0f} s", flush=True)
        return self._without(tool, rows, problem or "its process wrote no row")

    def _run(self, command: Sequence[str], printed: Path) -> tuple[str, int]:
        """Run Python; returns how it failed, if it did, and its exit status if it ended itself."""
        # what a process that is killed leaves behind goes with the folder of what it printed
        own = {
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TMPDIR": str(printed.parent),
        }
        with printed.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **own},
                start_new_session=True,
            )
            try:
                status = process.wait(self.timeout_seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return f"stopped after {self.timeout_seconds:.0f} s", 0
        return (f"its process ended with status {status}" if status else ""), status

    def _without(self, tool: str, rows: list[Row], problem: str) -> list[Row]:
        """`rows`, and one that says `problem` for each setting that has none."""
        done = {row.setting for row in rows}
        missing = [name for name in settings_of(tool, self.request) if name not in done]
        return rows + [Row(tool=tool, setting=name, note=f"not run: {problem}") for name in missing]


def with_rise(rows: Iterable[Row], reference_bpb: float) -> list[Row]:
    """The rows, each with its rise above the unquantized model."""
    return [
        row if row.bpb is None else dataclasses.replace(row, rise_bpb=row.bpb - reference_bpb)
        for row in rows
    ]


def published(path: Path, measured: set[str]) -> list[Row]:
    """Rows of a table that was measured elsewhere, but for tools that were `measured` here."""
    titles = {title: tool for tool, title in TITLES.items()}
    rows = []
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            tool = titles.get(line["tool"], line["tool"])
            whole = line["file_bytes"] and line["delta_bpb"]
            if not whole or tool in measured or tool.startswith(NO_TOOL):
                continue
            rows.append(
                Row(
                    tool=tool,
                    setting=line["setting"],
                    sample=f"published, windows {line['windows']}",
                    size_bytes=int(line["file_bytes"]),
                    bits_per_parameter=float(line["bits_per_param"]),
                    bpb=float(line["bpb"]),
                    rise_bpb=float(line["delta_bpb"]),
                    note=line["note"],
                )
            )
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table, smallest first; what was not run is listed below it."""
    columns: dict[str, Any] = {
        "tool": lambda r: TITLES.get(r.tool, r.tool),
        "setting": lambda r: r.setting,
        "bytes": lambda r: f"{r.size_bytes:,}",
        "bits a parameter": lambda r: _number(r.bits_per_parameter, ".2f"),
        "bits per byte": lambda r: _number(r.bpb, ".5f"),
        "rise": lambda r: _number(r.rise_bpb, "+.5f"),
        "KL mean": lambda r: _number(r.kl_mean_nats, ".5f"),
        "KL median": lambda r: _number(r.kl_median_nats, ".5f"),
        "KL 99 %": lambda r: _number(r.kl_p99_nats, ".4f"),
        "same top token": lambda r: _number(r.same_top, ".2%"),
        "seconds": lambda r: _number(r.quantize_seconds, ".1f"),
        "text": lambda r: r.sample,
        "notes": lambda r: r.note,
    }
    words = ("tool", "setting", "text", "notes")
    lines = [
        f"| {' | '.join(columns)} |",
        f"| {' | '.join('---' if name in words else '---:' for name in columns)} |",
    ]
    done = [row for row in rows if row.size_bytes is not None]
    for row in sorted(done, key=lambda row: row.size_bytes or 0):
        cells = (str(show(row)).replace("|", "/") for show in columns.values())
        lines.append(f"| {' | '.join(cells)} |")
    failed = [row for row in rows if row.size_bytes is None]
    if failed:
        lines += ["", "Not run:", ""]
        lines += [
            f"* {TITLES.get(row.tool, row.tool)} {row.setting}: "
            f"{row.note.removeprefix('not run: ')}"
            for row in failed
        ]
    return "\n".join(lines) + "\n"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _tuned(row: Row) -> bool:
    return row.tool == "gptpack" and row.setting.startswith("tuned")


def plot(rows: Sequence[Row], paths: Sequence[Path]) -> None:
    """Bytes against rise, a marker for each tool; gptpack's points are joined.

    The background is transparent, and all ink can be read on white and on black.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    shown = [r for r in rows if r.size_bytes and r.rise_bpb is not None and r.rise_bpb > 0]
    figure = Figure(figsize=(8, 5), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_yscale("log")
    shown = [dataclasses.replace(row, tool=TUNED) if _tuned(row) else row for row in shown]
    tools = list(dict.fromkeys(row.tool for row in shown))
    for place, tool in enumerate(sorted(tools, key=lambda tool: tool.startswith("gptpack"))):
        ours = tool.startswith("gptpack")
        points = sorted(
            ((row.size_bytes or 0) / 1e6, row.rise_bpb) for row in shown if row.tool == tool
        )
        elsewhere = all(row.sample != "this run" for row in shown if row.tool == tool)
        axes.plot(
            *zip(*points, strict=True),
            linestyle="" if not ours else "-" if "," not in tool else "--",
            linewidth=2,
            marker="o" if ours else MARKERS[place % len(MARKERS)],
            markersize=7,
            color=OURS if ours else COLORS[place % len(COLORS)],
            markerfacecolor="none" if elsewhere else None,
            label=TITLES.get(tool, tool) + (" (other text)" if elsewhere else ""),
        )
    axes.set_xlabel("bytes to ship, without the tokenizer (MB)", color=INK)
    axes.set_ylabel("rise in bits per byte (log)", color=INK)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(True, which="major", color=INK, alpha=0.25, linewidth=0.6)
    axes.tick_params(which="both", colors=INK)
    for name, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(name in ("left", "bottom"))
    if tools:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9, handlelength=3)
    for path in paths:
        figure.savefig(path, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=inspect.cleandoc(__doc__ or "").splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--eval-text", action="append", required=True)
    parser.add_argument("--calibration-text", action="append", default=[])
    parser.add_argument("--tool", action="append", choices=sorted(PACKAGES), help="default: all")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--published", type=Path, help="table of other tools, measured elsewhere")
    parser.add_argument("--rows", type=Path, help="rows of an earlier run, as JSON lines")
    parser.add_argument("--gptpack", nargs="+", action="extend", default=[], help="packed files")
    parser.add_argument("--gguf", help="the model as a GGUF file of 16 bits, for llama.cpp")
    parser.add_argument("--imatrix", help="importance matrix for llama.cpp")
    parser.add_argument("--limit-tokens", type=int, default=0)
    parser.add_argument("--calibration-windows", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=200, help="AutoRound's steps a block")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for each tool")
    parser.add_argument("--jobs", type=int, default=1, help="tools at once; disturbs their times")
    parser.add_argument("--output", type=Path, required=True, help="rows as JSON lines")
    parser.add_argument("--plot", type=Path, action="append", default=[])
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = "cuda:0"  # not every tool takes a device without a number
    request = Request(
        folder=options.folder,
        eval_text=tuple(options.eval_text),
        calibration_text=tuple(options.calibration_text),
        device=device,
        limit_tokens=options.limit_tokens,
        calibration_windows=options.calibration_windows,
        iterations=options.iterations,
        gptpack=tuple(options.gptpack),
        gguf=options.gguf,
        imatrix=options.imatrix,
    )
    tools = options.tool or list(PACKAGES)
    if options.published and absent("llamacpp") and not options.tool:
        tools.remove("llamacpp")
    runner = Runner(request, options.timeout, options.output.with_suffix(".log"))
    rows = runner.rows(REFERENCE)
    reference = rows[0].bpb
    if reference is None:
        raise SystemExit(f"the unquantized model was not scored; {rows[0].note}")
    options.output.write_text("")

    def run(tool: str) -> list[Row]:
        return with_rise(runner.rows(tool), reference)

    rows = with_rise(rows, reference)
    with ThreadPoolExecutor(options.jobs) as pool:
        for found in pool.map(run, [*(["gptpack"] if options.gptpack else []), *tools]):
            rows += found
            _write(rows, options.output)
    if options.rows:
        rows += [Row(**json.loads(line)) for line in options.rows.read_text().splitlines()]
    if options.published:
        rows += published(options.published, {row.tool for row in rows if row.size_bytes})
    _write(rows, options.output)
    print(table := markdown(rows))
    if options.markdown:
        options.markdown.write_text(table)
    if options.plot:
        plot(rows, options.plot)


def _write(rows: Iterable[Row], path: Path) -> None:
    path.write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))


if __name__ == "__main__":
    main()
