"""Seconds and memory of packing a checkpoint, phase by phase, and of loading what it made.

    python benchmarks/bench_pack.py --checkpoint final_model.pt --model golf-1060 --data shards \
        --budget 10MB [--eval-tokens 65536] [--runs 2]

Each run is the command itself in a process of its own, with Hessians collected anew; its phases are
those of its report. Then a fresh process loads the file: header, verification of every checksum and
decoding, and building the model. Memory is the largest resident set of either process.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LOAD = """
import json, resource, sys
import gptpack
seconds = gptpack.load(sys.argv[1]).seconds
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({**seconds, "peak": peak}))
"""


def measured(command: list[str]) -> tuple[Any, float, int]:
    """JSON on stdout, wall-clock seconds, and the peak of resident bytes."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        sys.exit(f"bench_pack: {' '.join(command[:5])} ... ended with status {status >> 8}")
    return json.loads(text), seconds, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--model", help="recipe whose [model] a bare state dict has")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--budget", default="10MB")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("pack_options", nargs="*", help="after --: more options of gptpack pack")
    options = parser.parse_args()
    if options.checkpoint is None or options.data is None:
        print("bench_pack: give --checkpoint and --data; see --help")
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / options.checkpoint.name
        shutil.copyfile(options.checkpoint, checkpoint)
        packed = Path(folder) / "model.gptpack"
        command = [sys.executable, "-m", "gptpack", "pack", str(checkpoint), "--json"]
        command += ["--data", str(options.data), "--budget", options.budget, "-o", str(packed)]
        command += ["--model", options.model] if options.model else []
        for _ in range(options.runs):
            for cached in Path(folder).glob(".gptpack-hessians-*"):
                cached.unlink()
            report, seconds, peak = measured([*command, *options.pack_options])
            phases = ", ".join(f"{name} {spent:.1f}" for name, spent in report["seconds"].items())
            before, after = (report[when]["plain"]["bpb"] for when in ("before", "after"))
            size = checkpoint.stat().st_size
            print(
                f"pack: {seconds:.1f} s ({phases}; the rest is starting); peak {peak / 1e6:,.0f} MB"
                f" for a checkpoint of {size / 1e6:,.0f} MB; {report['bytes']:,} bytes, "
                f"{before:.5f} -> {after:.5f} bpb",
                flush=True,
            )
        for _ in range(options.runs):
            found, seconds, _ = measured([sys.executable, "-c", LOAD, str(packed)])
            print(
                f"load: {seconds:.1f} s (verify and decode {found['decode']:.1f}, build "
                f"{found['build']:.1f}; the rest is starting); peak {found['peak'] / 1e6:,.0f} MB"
            )


if __name__ == "__main__":
    main()
