"""Each kernel beside torch.compile, eager torch, and the floor of bandwidth and arithmetic.

    python benchmarks/bench_kernels.py --csv kernels.csv
    python benchmarks/bench_kernels.py --only mlp head_losses --tokens 32768

Forward and backward together, in bfloat16, as CUDA graphs with a cold cache (gpu_timing.py). `ours`
and `compile` are both compiled, with and without kernels; `eager` is neither. The floor is that of
the kernels which the operation comes to, at the bandwidth and the rate of products measured in the
same run. `error` is the largest ratio of our error to torch's over all results and gradients, each
against float64, at 4,096 tokens. `ratio` is the better of `compile` and `eager` over `ours`: a
kernel is worth keeping at 1.15.
"""

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_timing import Ceilings, ceilings, milliseconds
from torch import Tensor

from gptpack.kernel_choice import choose_kernels

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from kernel_cases import Case, errors, golf_cases

ERROR_TOKENS = 4096
COLUMNS = ("case", "ours ms", "compile ms", "eager ms", "floor ms", "of floor", "error", "ratio")


def step(
    case: Case, inputs: list[Tensor], *, kernels: bool, compiled: bool
) -> Callable[[], object]:
    """Forward and backward of `case` on `inputs`."""

    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        return case.run(list(inputs), kernels=kernels)

    run = torch.compile(forward, fullgraph=True, dynamic=False) if compiled else forward
    wanted = [x for x in inputs if x.requires_grad]
    given = [torch.randn_like(result) for result in forward(*inputs)]
    return lambda: torch.autograd.grad(run(*inputs), wanted, given)


def measured(case: Case, small: Case, reached: Ceilings) -> dict[str, str | float]:
    """The row of `case`; `small` is the same with fewer tokens."""
    pairs = errors(small, small.inputs(torch.bfloat16, "cuda"))
    inputs = case.inputs(torch.bfloat16, "cuda", drawn_on="cuda")
    row: dict[str, str | float] = {"case": str(case)}
    for name, kernels, compiled in (
        ("ours ms", True, True),
        ("compile ms", False, True),
        ("eager ms", False, False),
    ):
        torch.compiler.reset()
        row[name] = milliseconds(step(case, inputs, kernels=kernels, compiled=compiled))
        torch.cuda.empty_cache()
    row["floor ms"] = reached.floor_milliseconds(case.stages)
    row["of floor"] = row["floor ms"] / row["ours ms"]
    row["error"] = max(ours / max(plain, 1e-12) for ours, plain in pairs)
    row["ratio"] = min(row["compile ms"], row["eager ms"]) / row["ours ms"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="operations; all by default")
    parser.add_argument("--tokens", type=int, default=131072, help="multiple of 2,048")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("needs a CUDA device")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", end=", kernels ")
    print(choose_kernels("on", torch.device("cuda")))
    reached = ceilings()
    print(
        f"copy {reached.bytes_per_second / 1e12:.2f} TB/s, "
        f"bfloat16 products {reached.flops_per_second / 1e12:.0f} TFLOP/s"
    )
    rows = []
    print(f"{'case':62}" + "".join(f"{name:>11}" for name in COLUMNS[1:]))
    for case, small in zip(golf_cases(options.tokens), golf_cases(ERROR_TOKENS), strict=True):
        if options.only and case.name not in options.only:
            continue
        row = measured(case, small, reached)
        rows.append(row)
        shown = [f"{row[name]:11.3f}" for name in COLUMNS[1:5]]
        shown += [f"{row['of floor']:11.0%}", f"{row['error']:11.2f}", f"{row['ratio']:11.2f}"]
        print(f"{row['case']:62}" + "".join(shown), flush=True)
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
