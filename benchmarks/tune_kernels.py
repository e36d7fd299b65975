"""Which tile sizes are fastest on this GPU: tries each kernel's table and prints the best entries.

    python benchmarks/tune_kernels.py
    python benchmarks/tune_kernels.py --only mlp --tokens 131072

Every pass is timed alone (benchmarks/gpu_timing.py), in bfloat16, at the shapes of `golf-1060`. The
entry in use is marked; what wins by more than the spread of a few per cent goes into the table of
the kernel's file by hand.
"""

import argparse
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_timing import milliseconds

from gptpack import ops
from gptpack.kernel_choice import choose_kernels

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import kernel_cases
from kernel_cases import Case

Setting = tuple[Any, ...]
Trial = tuple[str, Setting, list[Setting], Callable[[Setting], None], Callable[[], object]]
"""Name of a pass, the setting in use, settings to try, what sets one, and the pass."""

EPS = ops.NORM_EPS


def kernel(name: str) -> Any:
    return importlib.import_module(f"gptpack.kernels.{name}")


def entry(table: dict[Any, Setting], key: Any) -> Callable[[Setting], None]:
    return lambda setting: table.__setitem__(key, setting)


def drawn(case: Case) -> list[torch.Tensor]:
    return [x.detach() for x in case.inputs(torch.bfloat16, "cuda", drawn_on="cuda")]


def heads(tokens: int) -> Iterator[Trial]:
    module, op = kernel("heads"), torch.ops.gptpack
    case = kernel_cases.split_heads(tokens // 2048, 2048, 8, 4, 64, 16, extra=False)
    qkv, gain, cos, sin = drawn(case)
    q, k, v = op.split_heads(qkv, gain, cos, sin, None, 8, 4, EPS)
    tiles = list(itertools.product((1, 2, 4, 8), (1, 2, 4, 8)))
    yield (
        "split_heads forward: tokens, warps",
        module.TILES["forward"],
        tiles,
        entry(module.TILES, "forward"),
        lambda: op.split_heads(qkv, gain, cos, sin, None, 8, 4, EPS),
    )

    def choose(setting: Setting) -> None:
        module.TILES["backward"], module.WAVES = setting[:2], setting[2]

    yield (
        "split_heads backward: tokens, warps, waves",
        (*module.TILES["backward"], module.WAVES),
        [(*tile, waves) for tile in tiles for waves in (4, 8, 16)],
        choose,
        lambda: op.split_heads_backward(q, k, v, qkv, gain, cos, sin, 8, 4, EPS),
    )


def mlp(tokens: int) -> Iterator[Trial]:
    module, op = kernel("mlp"), torch.ops.gptpack
    x, up, down = drawn(kernel_cases.mlp(tokens // 2048, 2048, 512, 1536, 0.5))
    flat = x.view(-1, 512)
    post, pre = torch.empty(2, tokens, 1536, dtype=x.dtype, device=x.device).unbind()
    sizes = [
        (rows, columns, depth, parts, stages, warps)
        for rows, columns, depth in ((128, 256, 64), (128, 128, 64), (256, 128, 64))
        for parts in (1, 2)
        for stages in (3, 4, 5)
        for warps in (4, 8)
        if warps == 8 or rows * columns < 2**15
    ]
    key = "tma" if module.by_tma(x.device) else "pointers"
    yield (
        "mlp forward: rows, columns, depth, parts, stages, warps",
        module.BLOCKS[key, "forward"],
        sizes,
        entry(module.BLOCKS, (key, "forward")),
        lambda: module._multiply(flat, up, None, post, pre, 0.5),
    )
    op.mlp(x, up, down, 0.5, True)
    yield (
        "mlp backward: rows, columns, depth, parts, stages, warps",
        module.BLOCKS[key, "backward"],
        sizes,
        entry(module.BLOCKS, (key, "backward")),
        lambda: module._multiply(flat, down, pre, post, None, 0.5),
    )


def cross_entropy(tokens: int) -> Iterator[Trial]:
    module = kernel("cross_entropy")
    for vocab in (1024, 8192):
        logits = torch.randn(tokens, vocab, dtype=torch.bfloat16, device="cuda")
        targets = torch.randint(vocab, (tokens,), device="cuda")

        def choose(setting: Setting) -> None:
            module.TILE, module.LOGITS_PER_WARP, module.REGISTERS = setting

        def run(logits: torch.Tensor = logits, targets: torch.Tensor = targets) -> object:
            return module._launch(logits, targets, 30.0, gradient=True)

        yield (
            f"cross entropy, {vocab:,}: logits of a tile, of a warp, registers",
            (module.TILE, module.LOGITS_PER_WARP, module.REGISTERS),
            list(itertools.product((1024, 2048, 4096), (256, 512, 1024), (64, 128))),
            choose,
            run,
        )


TRIALS = {
    "heads": heads,
    "mlp": mlp,
    "cross_entropy": cross_entropy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--tokens", type=int, default=131072, help="multiple of 2,048")
    parser.add_argument("--show", type=int, default=4, help="entries of a pass to print")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("needs a CUDA device")
        return
    print(f"{torch.cuda.get_device_name()}, {options.tokens:,} tokens", end=", kernels ")
    print(choose_kernels("on", torch.device("cuda")))
    for name in options.only:
        for title, current, settings, choose, run in TRIALS[name](options.tokens):
            print(title, flush=True)
            times = {}
            for setting in dict.fromkeys([current, *settings]):
                choose(setting)
                try:
                    times[setting] = milliseconds(run, replays=15)
                except Exception as error:  # a tile that the device has no room for
                    torch.cuda.synchronize()
                    print(f"    {setting}: {str(error).splitlines()[0][:90]}")
            choose(current)
            for setting in sorted(times, key=times.__getitem__)[: options.show]:
                print(f"    {times[setting]:8.4f} ms  {setting}")
            print(f"    {times.get(current, float('nan')):8.4f} ms  {current}, in use", flush=True)


if __name__ == "__main__":
    main()
