"""A Hugging Face folder and texts -> bytes and rise of its files at several sizes, tuned or not.

    python benchmarks/hf_quality.py FOLDER --text train.txt --eval-text a.txt --eval-text b.txt \
        --budget 55.25MB --delta 1.2e-4 --tune none --tune floats

Each file is written, read back, and scored like any other. `bytes` are those of the whole file,
`without tokenizer` those of all but the files that came with the model.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from gptpack.artifact.front import decode_header
from gptpack.jobs import prepare
from gptpack.jobs.evaluate import evaluate
from gptpack.jobs.load import Loaded, load, load_packed
from gptpack.jobs.prepare import prepared
from gptpack.jobs.request import PackRequest
from gptpack.packing.packer import UNLIMITED
from gptpack.packing.progressive import ProgressiveConfig
from gptpack.values import parse_size

STARTED = time.perf_counter()


def scores(loaded: Loaded, texts: list[Path]) -> list[float]:
    loaded.runnable().compute_dtype = None
    return [evaluate(loaded, text=text).plain.bpb for text in texts]


def show(phase: str, done: int, total: int) -> None:
    if phase.startswith("tune") and done % 50 == 0:
        print(f"{phase}: {done}/{total}, {time.perf_counter() - STARTED:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--eval-text", type=Path, action="append", required=True)
    parser.add_argument("--budget", action="append", default=[], help="of the whole file")
    parser.add_argument("--delta", type=float, action="append", default=[])
    parser.add_argument("--tune", action="append", choices=("none", "floats", "deep"))
    parser.add_argument("--calibration-tokens", type=int, default=0)
    parser.add_argument("--steps", type=int, help="steps of tuning after the last group")
    parser.add_argument("--group-steps", type=int, help="steps of tuning after each other group")
    parser.add_argument("--seconds", type=float, help="most seconds of tuning")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep", type=Path, help="folder for the files")
    parser.add_argument("--output", type=Path, help="also write the rows as JSON lines")
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    request = PackRequest(
        delta=1e-4,
        text=tuple(options.text),
        calibration_tokens=options.calibration_tokens,
        tune="floats" if set(options.tune or ()) - {"none"} else "none",
        device=options.device,
    )
    sizes: list[tuple[int, float | None]] = [
        *((parse_size(budget), None) for budget in options.budget),
        *((UNLIMITED, delta) for delta in options.delta),
    ]
    rows = []
    given = {
        "final_steps": options.steps,
        "group_steps": options.group_steps,
        "seconds": options.seconds,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    prepare.ProgressiveConfig = partial(ProgressiveConfig, **chosen)  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        loaded = load(options.folder)
        with prepared(loaded, request, None, show) as ready:
            before = scores(loaded, options.eval_text)
            loaded.runnable().compute_dtype = torch.bfloat16
            print(f"prepared in {time.perf_counter() - began:.0f} s {ready.seconds}, bpb {before}")
            for tune in options.tune or ["none"]:
                asked = dataclasses.replace(request, tune=tune)
                for budget, delta in sizes:
                    began = time.perf_counter()
                    packer = dataclasses.replace(ready.packer, budget_bytes=budget)
                    coded = dataclasses.replace(ready, request=asked, packer=packer)
                    data = coded.fit(delta=delta).assemble()
                    seconds = time.perf_counter() - began
                    path = (options.keep or Path(folder)) / f"{tune}-{len(data)}.gptpack"
                    path.write_bytes(data)
                    after = scores(load_packed(path, ready.ranks.device), options.eval_text)
                    header = decode_header(data)
                    row = {
                        "tune": tune,
                        "budget or delta": delta or budget,
                        "bytes": len(data),
                        "without tokenizer": len(data) - header.files_bytes,
                        "rise": [a - b for a, b in zip(after, before, strict=True)],
                        "bpb": after,
                        "seconds": seconds,
                    }
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    if options.output is not None:
        options.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
