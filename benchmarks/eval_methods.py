"""What each way of evaluating is worth on a checkpoint and its packed file, and what it costs.

    python benchmarks/eval_methods.py --checkpoint final_model.pt --model golf-1060 \
        --artifact model.gptpack --data shards --output eval_methods

Plain; a sliding window as it used to be done (eagerly, with logits for every position of every
window) and as it is done now, on the same targets; test-time training by the four known settings;
low-rank factors per document. The checkpoint is scored plainly and in a sliding
window, everything else is measured on the artifact where there is one. A setting whose reset comes
after the last chunk is not run: it is the same as without. Prints a table last; OUTPUT.json is
written after each row. Made for a GPU and about four minutes at three million tokens; the options
that limit tokens are for less.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gptpack.evaluation.clock import Clock
from gptpack.evaluation.forward import Forward, batch_tokens_for
from gptpack.evaluation.reading import Reading
from gptpack.evaluation.result import Score
from gptpack.evaluation.scoring import score
from gptpack.evaluation.settings import SWEEP, LoraSettings, SgdSettings, parse_settings
from gptpack.evaluation.text import Text
from gptpack.evaluation.ttt_lora import score_with_lora
from gptpack.evaluation.ttt_sgd import score_with_sgd
from gptpack.families.language_model import LanguageModel
from gptpack.jobs.load import load
from gptpack.ranks import pick_device


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    what: str
    model: str
    bpb: float
    tokens: int
    seconds: float
    """All of it, compilation and adaptation included."""
    compiling: float
    adapting: float
    resets: int | None
    note: str = ""


class Bench:
    """The models, the text, and the rows found so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = pick_device(options.device)
        loaded = load(options.checkpoint, model=options.model, device=self.device)
        self.config = loaded.runnable().config
        self.models = {"checkpoint": loaded.runnable()}
        if options.artifact:
            self.models["artifact"] = load(options.artifact, device=self.device).model
        self.shipped = "artifact" if options.artifact else "checkpoint"
        self.clock = Clock()
        self.context = options.context or self.config.context
        self.forwards = {}
        for name, one in self.models.items():
            one.use_attention("auto")
            self.rope = one.use_rope("model", self.context)
            self.forwards[name] = Forward(
                one, self.device, compiled=options.compile, clock=self.clock
            )
        self.text = Text.load(options.data, vocab=self.config.vocab, limit_tokens=options.tokens)
        self.reading = Reading(
            tokens=self.text.tokens,
            token_bytes=self.text.token_bytes,
            context=self.context,
            limit_tokens=options.tokens,
            batch_tokens=options.batch_tokens,
            rope=self.rope,
        )
        self.rows: list[Row] = []
        # Kernels are loaded and memory is reserved outside every measurement.
        inputs = torch.zeros(1, self.context, dtype=torch.int64, device=self.device)
        with torch.inference_mode():
            for one in self.models.values():
                one.token_losses(inputs, inputs)
        self.synchronize()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def limited(self, tokens: int, **changes: Any) -> Reading:
        """The reading with at most so many targets (0: as it is)."""
        limit = min(filter(None, (tokens, self.reading.limit_tokens)), default=0)
        return replace(self.reading, limit_tokens=limit, **changes)

    def add(
        self, what: str, model: str, found: Score, before: dict[str, float], **more: Any
    ) -> None:
        after = self.clock.ledger()

        def spent(phase: str) -> float:
            return after.get(phase, 0.0) - before.get(phase, 0.0)

        row = Row(
            what=what,
            model=model,
            bpb=found.bpb,
            tokens=found.tokens,
            seconds=spent("total"),
            compiling=spent("compile"),
            adapting=spent("adapt"),
            resets=found.details.get("resets"),
            **more,
        )
        self.rows.append(row)
        print(f"{what} ({model}): {row.bpb:.6f} bpb in {row.seconds:.1f} s", flush=True)
        self.write()

    def write(self) -> None:
        cuda = self.device.type == "cuda"
        report = {
            "options": {key: str(value) for key, value in vars(self.options).items()},
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
            "torch": torch.__version__,
            "rope": self.rope,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else 0,
            "rows": [asdict(row) for row in self.rows],
        }
        Path(f"{self.options.output}.json").write_text(json.dumps(report, indent=2) + "\n")


def eager_sliding(bench: Bench, model: LanguageModel, reading: Reading) -> Score:
    """A sliding window the old way: every window's logits, one batch after another, eagerly."""
    began = time.perf_counter()
    plan = reading.plan()
    windows = plan.select(np.arange(len(plan)))
    tokens = torch.from_numpy(reading.tokens[: plan.targets + 1].astype(np.int64))
    tokens = tokens.to(bench.device)
    rows = max(1, batch_tokens_for(bench.device, reading.batch_tokens) // plan.context)
    # The cut window at the end is run whole; nothing sees what fills it up.
    padded = F.pad(tokens, (0, plan.context))
    total = torch.zeros((), dtype=torch.float64, device=bench.device)
    with torch.inference_mode():
        for first in range(0, len(windows), rows):
            part = windows[first : first + rows]
            starts = torch.from_numpy(part.start).to(bench.device)
            at = starts[:, None] + torch.arange(plan.context + 1, device=bench.device)
            batch = padded[at]
            logits = model.logits(model.hidden(batch[:, :-1]))
            losses = F.cross_entropy(
                logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
            ).view(len(part), -1)
            position = at[:, :-1]
            scored = position >= torch.from_numpy(part.first_scored).to(bench.device)[:, None]
            scored &= position < plan.targets
            total += torch.where(scored, losses, 0).sum(dtype=torch.float64)
    nats = total.item()
    return Score(
        nats=nats,
        tokens=plan.targets,
        bytes=reading.token_bytes.charged(reading.tokens, 0, plan.targets),
        planned_tokens=plan.targets,
        context=plan.context,
        stride=plan.stride,
        tail="score",
        windows=len(plan),
        seconds=time.perf_counter() - began,
    )


def measure(bench: Bench) -> None:
    """Every row, the cheap and the telling ones first."""
    options = bench.options
    forward = bench.forwards[bench.shipped]
    for name, one in bench.forwards.items():
        before = bench.clock.ledger()
        bench.add("plain", name, score(one, bench.reading), before)
    sliding = replace(bench.reading, stride=options.stride)
    for name in sorted(bench.forwards, key=lambda name: name != bench.shipped):
        before = bench.clock.ledger()
        found = score(bench.forwards[name], sliding)
        bench.add(f"sliding, stride {options.stride}", name, found, before)
    part = bench.limited(options.eager_tokens, stride=options.stride)
    before = bench.clock.ledger()
    old = eager_sliding(bench, bench.models[bench.shipped], part)
    bench.add("sliding, eager, all logits", bench.shipped, old, before)
    before = bench.clock.ledger()
    new = score(forward, part)
    note = f"differs by {new.bpb - old.bpb:+.2e}"
    bench.add("sliding, the same targets", bench.shipped, new, before, note=note)
    lora(bench, forward)
    sgd(bench, forward, bench.limited(options.ttt_tokens, stride=options.ttt_stride))


def lora(bench: Bench, forward: Forward) -> None:
    settings = parse_settings(bench.options.lora)
    assert isinstance(settings, LoraSettings)
    reading = bench.limited(
        bench.options.lora_tokens,
        stride=settings.chunk,
        documents=bench.text.documents,
    )
    before = bench.clock.ledger()
    base = score(forward, reading)
    bench.add(f"masked, stride {settings.chunk}", bench.shipped, base, before)
    before = bench.clock.ledger()
    found = score_with_lora(forward, reading, settings)
    bench.add(bench.options.lora, bench.shipped, found, before, note=f"without {base.bpb:.6f}")


def sgd(bench: Bench, forward: Forward, reading: Reading) -> None:
    before = bench.clock.ledger()
    base = score(forward, reading)
    bench.add(f"no training, stride {reading.stride}", bench.shipped, base, before)
    for name, text in SWEEP.items():
        settings = parse_settings(text)
        assert isinstance(settings, SgdSettings)
        settings = replace(settings, chunk=bench.options.ttt_chunk or settings.chunk)
        chunks = -(-reading.plan().targets // settings.chunk)
        if settings.reset >= chunks:
            print(f"{name} ({text}): as without a reset, for there are {chunks} chunks")
            continue
        before = bench.clock.ledger()
        found = score_with_sgd(forward, reading, settings)
        note = f"against none {found.bpb - base.bpb:+.6f}, {chunks} chunks"
        bench.add(f"{name}: {text}", bench.shipped, found, before, note=note)


def print_table(rows: list[Row]) -> None:
    heads = ["what", "model", "bpb", "tokens", "s", "compiling", "adapting", "resets", "note"]
    cells = [
        [
            row.what,
            row.model,
            f"{row.bpb:.6f}",
            f"{row.tokens:,}",
            f"{row.seconds:.1f}",
            f"{row.compiling:.1f}",
            f"{row.adapting:.1f}",
            "" if row.resets is None else str(row.resets),
            row.note,
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    for line in [heads, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--model", help="recipe whose [model] a bare state dict has")
    parser.add_argument("--artifact", type=Path, help="the checkpoint, packed")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("eval_methods"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", default="auto", choices=["auto", "on", "off"])
    parser.add_argument("--context", type=int, default=0)
    parser.add_argument("--stride", type=int, default=64)
    parser.add_argument("--batch-tokens", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=0, help="of all rows; 0: the whole text")
    parser.add_argument("--eager-tokens", type=int, default=655360, help="of the old way")
    parser.add_argument("--ttt-tokens", type=int, default=0)
    parser.add_argument("--ttt-stride", type=int, default=64)
    parser.add_argument("--ttt-chunk", type=int, default=0, help="0: the settings' own")
    parser.add_argument("--lora", default="lora:rank=8,chunk=256")
    parser.add_argument("--lora-tokens", type=int, default=524288)
    options = parser.parse_args()
    if options.checkpoint is None or options.data is None:
        print("eval_methods: give --checkpoint and --data; see --help")
        return
    bench = Bench(options)
    measure(bench)
    print()
    print_table(bench.rows)
    print(f"{bench.clock.total:.0f} s in all, {options.output}.json")


if __name__ == "__main__":
    main()
