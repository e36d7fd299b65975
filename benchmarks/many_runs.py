"""Many runs of commands, a GPU each, and the CSV file that their rows go to. No benchmark itself.

The benchmarks that train several models share it: what a command reports, a table that keeps what
it has from one call to the next, and jobs spread over the GPUs of a machine.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")


def gptpack(*arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a command reports by --json.

    Raises:
        subprocess.CalledProcessError: its exit status is not 0.
    """
    command = [sys.executable, "-m", "gptpack", *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def overrides(settings: Iterable[str]) -> list[str]:
    """``TABLE.KEY=VALUE`` settings as words of `gptpack train`."""
    return [word for setting in settings for word in ("--set", setting)]


class Table:
    """Rows of a CSV file: those that it holds already, and new ones as they are measured."""

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        self.path, self.fields = path, fields
        self.rows: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                self.rows = list(reader)
            if list(reader.fieldnames or []) != list(fields):
                sys.exit(f"{path} has other columns; move it away, or name another output")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow(fields)

    def add(self, row: dict[str, Any]) -> None:
        """Write a row and print it; threads may call this."""
        with self.lock:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.fields).writerow(row)
            self.rows.append(row)
            print("  ".join(f"{row[key]!s:>10}" for key in self.fields), flush=True)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of a benchmark that needs --data, with those of `spread` added."""
    gpus = list(range(torch.cuda.device_count()))
    parser.add_argument("--data", type=Path, help="folder of shards")
    parser.add_argument("--gpus", nargs="*", type=int, default=gpus, help="[default: all]")
    parser.add_argument("--at-once", type=int, default=1, help="runs on each GPU, or on the CPU")
    parser.add_argument("--start-within", type=float, default=0, help="seconds; 0: whenever")
    options = parser.parse_args()
    if options.data is None:
        parser.exit(0, f"{parser.prog}: give --data; see --help\n")
    return options


def spread(
    jobs: Iterable[Job], work: Callable[[Job, dict[str, str]], None], options: argparse.Namespace
) -> list[str]:
    """Do each job on a GPU of its own, in order as GPUs come free; returns what failed.

    Args:
        work: takes a job and the environment of its commands.
        options: those of `parse`. No job starts later than ``start_within`` seconds.
    """
    waiting = iter(jobs)
    lock = threading.Lock()
    failures: list[str] = []
    start = time.monotonic()

    def serve(gpu: int | None) -> None:
        chosen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
        while not options.start_within or time.monotonic() - start < options.start_within:
            with lock:
                job = next(waiting, None)
            if job is None:
                return
            try:
                work(job, {**os.environ, **chosen})
            except subprocess.CalledProcessError as error:
                failures.append(f"{job}: status {error.returncode} of {' '.join(error.cmd[2:])}")
            except Exception as error:  # the other jobs of this GPU go on
                failures.append(f"{job}: {type(error).__name__}: {error}")

    places = (options.gpus or [None]) * options.at_once
    threads = [threading.Thread(target=serve, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures
