"""Milliseconds of a training step: attention, kernels and micro batches beside each other.

    python benchmarks/bench_training.py --recipe seq4096 --set training.batch_tokens=196608
    python benchmarks/bench_training.py --recipe golf-1060 --attention cudnn --kernels on off
    python benchmarks/bench_training.py --recipe golf-1060 --attention cudnn \\
        --kernels on no-split_heads no-mlp on

`no-NAME+NAME` leaves these operations of gptpack/ops.py to torch and the others to kernels: a
kernel earns its place if the step is slower without it. `on` at both ends says how far the clock
drifts.

Random tokens; each variant compiles, warms up and is timed over `--steps` steps with the device
synchronised at both ends, in each phase of the run where a recipe has several.
`--compile whole` makes one graph of the model, `parts` one of each part, as training does.
`--profile` adds where the device's time goes, kernel by kernel. Without CUDA it runs a few steps of
the recipe `tiny`.
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from gptpack import ops
from gptpack.ranks import ranks
from gptpack.training.recipe import load_recipe
from gptpack.training.schedules import Phase, phases
from gptpack.training.stepper import Stepper

OPERATIONS = (
    "split_heads",
    "remove_own_value",
    "mlp",
    "head_losses",
)
"""What of gptpack.ops a step has kernels for."""
KERNELS = ("auto", "on", "off")


def kernels_argument(text: str) -> str:
    """One of `KERNELS`, or ``no-NAME+NAME`` with names of `OPERATIONS`."""
    names = text.removeprefix("no-").split("+")
    if text in KERNELS or (text.startswith("no-") and set(names) <= set(OPERATIONS)):
        return text
    raise argparse.ArgumentTypeError(f"'{text}': {', '.join(KERNELS)}, or no-NAME+NAME")


@contextmanager
def taken(kernels: str) -> Iterator[str]:
    """What to hand to `Stepper` for an argument; in the meantime its operations may be torch's."""
    if not kernels.startswith("no-"):
        yield kernels
        return
    whole = {name: getattr(ops, name) for name in kernels.removeprefix("no-").split("+")}

    def without(operation: Callable[..., Any]) -> Callable[..., Any]:
        def plain(*args: Any, kernels: bool, **rest: Any) -> Any:
            return operation(*args, kernels=False, **rest)

        return plain

    for name, operation in whole.items():
        setattr(ops, name, without(operation))
    try:
        yield "on"
    finally:
        for name, operation in whole.items():
            setattr(ops, name, operation)


def profile(stepper: Stepper, *, steps: int, rows: int) -> None:
    """Print what `steps` steps spend their time on, the largest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    cuda = stepper.ranks.device.type == "cuda"
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with recording(activities=[activity]) as found:
        for _ in range(steps):
            stepper.update(0.0)
        stepper.synchronize()
    events = found.key_averages()
    spent = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in events}
    calls = {event.key: event.count for event in events}
    total = sum(spent.values())
    print(f"{total / 1000 / steps:.1f} ms a step in {sum(calls.values()) / steps:.0f} launches")
    for key in sorted(spent, key=lambda key: -spent[key])[:rows]:
        milliseconds, share = spent[key] / 1000 / steps, spent[key] / total
        print(f"{milliseconds:8.2f} ms  {share:6.1%}  {calls[key] / steps:7.1f} x  {key[:110]}")


def told(phase: Phase) -> str:
    """What a step of `phase` computes otherwise than most."""
    halved = f"context / {2**phase.context_halvings}" if phase.context_halvings else ""
    return ", ".join(filter(None, ("recurrence" * phase.recurrence, halved)))


def measure(
    stepper: Stepper, attention: str, kernels: str, how: str, *, steps: int, rows: int
) -> None:
    """Print the lines of one variant, and its profile if that has `rows`."""
    cuda = stepper.ranks.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    compile_seconds = stepper.warm_up()
    # that of all phases: what a recorded graph holds is no longer counted when it is launched
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    size = stepper.micro_batch() * stepper.recipe.model.context
    parts = phases(stepper.recipe)
    for phase in parts:
        stepper.update(0.0, phase=phase)
        stepper.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            stepper.update(0.0, phase=phase)
        stepper.synchronize()
        milliseconds = 1000 * (time.perf_counter() - start) / steps
        print(
            f"{attention:9}  {kernels:18}  {how:7}  {size:11,}  {compile_seconds:9.1f}  "
            f"{milliseconds:7.1f}  {peak:7.2f}  {told(phase) if len(parts) > 1 else ''}",
            flush=True,
        )
    if rows:
        profile(stepper, steps=3, rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    cuda = torch.cuda.is_available()
    parser.add_argument("--recipe", default="seq4096" if cuda else "tiny")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--attention", nargs="+", default=["cudnn", "flash"] if cuda else ["flash"])
    parser.add_argument("--kernels", nargs="+", default=["auto"], type=kernels_argument)
    parser.add_argument("--micro", nargs="+", type=int, default=[0], help="tokens; 0: chosen")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--profile", type=int, default=0, help="rows of the profile to print")
    parser.add_argument("--compile", nargs="+", default=["parts"], choices=("parts", "whole"))
    parser.add_argument("--no-record", action="store_true", help="launch kernel by kernel")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.set)
    recorded = False if options.no_record else None
    tokens = np.random.default_rng(0).integers(0, recipe.model.vocab, 4_000_000).astype(np.uint16)
    print("attention  kernels             compile  micro batch  compile s  ms/step  peak GB")
    with ranks() as here:
        variants = itertools.product(
            options.attention, options.kernels, options.micro, options.compile
        )
        for attention, kernels, micro, how in variants:
            training = dataclasses.replace(recipe.training, micro_batch_tokens=micro)
            variant = dataclasses.replace(recipe, training=training)
            with taken(kernels) as choice:
                chosen = {"attention": attention, "kernels": choice}
                stepper = Stepper(variant, [tokens], here, **chosen, recorded=recorded)
                if how == "whole" and stepper.compiled:
                    whole = stepper.model.token_losses
                    stepper.losses = torch.compile(whole, fullgraph=True, dynamic=False)
                label = kernels if kernels != "auto" else stepper.kernels.split()[0]
                measure(stepper, attention, label, how, steps=options.steps, rows=options.profile)
            stepper.batches.close()
            del stepper
            torch.compiler.reset()


if __name__ == "__main__":
    main()
