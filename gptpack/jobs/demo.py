"""The demo's packed file -> figures that prove it, and lines that its model writes."""

from pathlib import Path
from typing import Any

STRIDE = 64
PROMPTS = ("This module provides", "The method returns", "If the argument is")
"""What the model goes on from."""


def prove(packed: Path, data: Path, device: str) -> dict[str, Any]:
    """Figures of the file's header, and the scores that a process finds which has only the file."""
    from gptpack.inspection.inspect import inspect
    from gptpack.jobs.fresh import evaluate_in_fresh_process

    found = evaluate_in_fresh_process(packed, data, stride=STRIDE, device=device)
    header = inspect(str(packed))
    return {
        "file": str(packed),
        "parameters": header.parameters,
        "budget_bytes": header.budget_bytes,
        "bytes": packed.stat().st_size,
        "headroom_bytes": header.headroom_bytes,
        "bpb_before": header.record.quality.bpb_before,
        "bpb": found.plain.bpb,
        "sliding_bpb": found.best.bpb,
        "stride": STRIDE,
    }


def speak(packed: Path, tokenizer: Path, device: str) -> list[str]:
    """Three lines that the model in the file goes on with, the same each time."""
    from gptpack.jobs.load import load
    from gptpack.ranks import ranks

    asked: dict[str, Any] = {"max_tokens": 20, "temperature": 0.5, "tokenizer": tokenizer}
    with ranks(device) as here:
        loaded = load(packed, device=here.device)
        return [prompt + "".join(loaded.generate(prompt, **asked)) for prompt in PROMPTS]
