"""`gptpack pack`: a checkpoint -> one file that fits the budget, proved before it gets its name."""

import hashlib
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptpack.cli.console import note, print_json, print_table, progress_bars
from gptpack.cli.pack_job import Job, Request, code_size, identity_of

if TYPE_CHECKING:
    from gptpack.packing import Packed

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--budget", help="Most bytes, such as 16MB or 16MiB.")
@click.option("--step", type=float, help="Use this step (delta) instead of searching a budget's.")
@click.option("--output", "-o", type=PATH, help="[default: the checkpoint's name, .gptpack]")
@click.option("--data", type=PATH, help="Folder of shards: train calibrates, val proves.")
@click.option("--tokenizer", type=PATH, help="SentencePiece model. [default: that in --data]")
@click.option("--model", help="Recipe (file or name) whose [model] a bare state dict has.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="METHOD, or PATTERN=METHOD for tensors by name; repeatable. int8, gptq-int4 to gptq-int8, "
    "gptq-uniform, gptq-trellis, float16. [default: gptq-trellis]",
)
@click.option("--states", default=256, show_default=True, help="Of the trellis: 4 to 256.")
@click.option(
    "--tune",
    type=click.Choice(["none", "floats", "deep"]),
    default="none",
    show_default=True,
    help="Train what is not coded against the unpacked model: after coding, or layer by layer.",
)
@click.option(
    "--calibration",
    type=click.Choice(["shards", "self", "random"]),
    help="Text for the Hessians. [default: shards if --data has train, else self]",
)
@click.option("--calibration-tokens", default=0, help="0: 524,288 on CUDA, 65,536 on CPU.")
@click.option("--seed", default=0, show_default=True, help="Of the calibration text.")
@click.option("--strict", is_flag=True, help="A tensor that falls back to int8 is an error.")
@click.option("--code", type=PATH, multiple=True, help="File whose bytes count too; repeatable.")
@click.option("--codec", multiple=True, help="raw, zlib, zstd, lzma, range, brotli; repeatable.")
@click.option("--eval-tokens", default=0, help="Prove on the first so many targets; 0: all.")
@click.option("--stride", type=int, help="Also measure a sliding window that moves by so many.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--plan", is_flag=True, help="Say what would be done, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    checkpoint: Path,
    budget: str | None,
    step: float | None,
    output: Path | None,
    data: Path | None,
    tokenizer: Path | None,
    model: str | None,
    methods: tuple[str, ...],
    states: int,
    tune: str,
    calibration: str | None,
    calibration_tokens: int,
    seed: int,
    strict: bool,
    code: tuple[Path, ...],
    codec: tuple[str, ...],
    eval_tokens: int,
    stride: int | None,
    device: str,
    plan: bool,
    as_json: bool,
) -> None:
    """Pack a CHECKPOINT into one file that is never a byte over the budget.

    With --data the file is reloaded in a fresh process and its bits per byte are measured, beside
    those of the checkpoint, before it gets its name. Files given by --code count into the budget.
    Hessians are kept beside the checkpoint and used again.

    \b
    Examples:
      gptpack pack runs/a/checkpoint.pt --budget 16MB --data shards/
      gptpack pack checkpoint.pt --budget 8MB --data shards/ --tune deep
      gptpack pack checkpoint.pt --budget 16MB --method int8 --code train.py --data shards/
      gptpack pack final_model.pt --model golf-1060 --tokenizer tok.model --budget 16MiB
    """
    from gptpack.artifact.writer import write_atomic
    from gptpack.checkpoint import load_checkpoint
    from gptpack.config import load_recipe, parse_size
    from gptpack.data.shards import file_sha256
    from gptpack.errors import ConfigError
    from gptpack.packing import NO_BUDGET, PackConfig, take_apart
    from gptpack.recipe_files import find_recipe

    if (budget is None) == (step is None):
        raise ConfigError("give either --budget, such as --budget 16MB, or --step")
    budget_bytes = parse_size(budget) if budget is not None else NO_BUDGET
    target = output or checkpoint.with_suffix(".gptpack")
    shape = load_recipe(find_recipe(model)).model if model else None
    config = PackConfig(
        methods=_methods(methods),
        states=states,
        strict=strict,
        codecs=codec or PackConfig().codecs,
    )
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    loaded = load_checkpoint(checkpoint, shape)
    identity = identity_of(loaded, tokenizer, data)
    provenance: dict[str, Any] = {
        "checkpoint_sha256": file_sha256(checkpoint),
        "step": loaded.step,
    }
    with progress_bars(quiet=as_json) as progress:
        request = Request(
            data=data,
            source=calibration,
            tokens=calibration_tokens,
            seed=seed,
            device=device,
            tune=tune,
            cache=None if plan else checkpoint.parent,
        )
        job = Job(loaded, config, request, progress)
        if config.calibrated:
            provenance |= job.calibrate()
            seconds["calibrate"] = time.perf_counter() - began
            began = time.perf_counter()
        packer = take_apart(
            loaded,
            identity,
            config,
            job.sensitivities,
            budget_bytes=budget_bytes,
            code_bytes=sum(code_size(path) for path in code),
            provenance=provenance,
            progress=progress,
        )
        packed = job.pack(packer, step)
    seconds["pack"] = time.perf_counter() - began
    for remark in packed.notes:
        note(remark)
    file = packed.file()
    scores: dict[str, Any] = {}
    if data is not None and not plan:
        began = time.perf_counter()
        scores = _prove(
            checkpoint,
            file,
            target,
            data,
            stride=stride,
            model=model,
            tokenizer=tokenizer,
            limit_tokens=eval_tokens,
            device=device,
            quiet=as_json,
        )
        seconds["prove"] = time.perf_counter() - began
        before, after = (scores[when]["plain"] for when in ("before", "after"))
        file = packed.file(
            {
                "bpb_before": round(before["bpb"], 6),
                "bpb_after": round(after["bpb"], 6),
                "context": after["context"],
                "tokens": after["tokens"],
            }
        )
    if not plan:
        write_atomic(target, file)
    report = _report(packed, file, None if plan else target, budget is not None)
    report |= {"seconds": seconds, **scores}
    if as_json:
        print_json(report)
        return
    _print(report)


def _prove(
    checkpoint: Path,
    file: bytes,
    target: Path,
    data: Path,
    *,
    stride: int | None,
    model: str | None,
    **settings: Any,
) -> dict[str, Any]:
    """Scores before and after, each by a fresh process; the file has no final name meanwhile."""
    from gptpack.artifact.writer import write_atomic
    from gptpack.cli.fresh import evaluate_in_fresh_process

    before = evaluate_in_fresh_process(checkpoint, data, model=model, **settings)
    candidate = target.with_name(f".{target.name}.unproved")
    made = [folder for folder in candidate.parents if not folder.exists()]
    try:
        write_atomic(candidate, file)
        after = evaluate_in_fresh_process(candidate, data, stride=stride, **settings)
    finally:
        with suppress(OSError):
            candidate.unlink()
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
    return {"before": before, "after": after}


def _report(packed: "Packed", file: bytes, path: Path | None, limited: bool) -> dict[str, Any]:
    """Everything about the file but its scores; `limited` says that there was a budget."""
    from gptpack.artifact.writer import summarize

    summary = summarize(path or "", file)
    tensors = packed.encoded.tensors
    left = packed.budget_bytes - packed.code_bytes - len(file)
    return {
        "file": None if path is None else str(path),
        "bytes": len(file),
        "sha256": hashlib.sha256(file).hexdigest(),
        "budget_bytes": packed.budget_bytes if limited else None,
        "code_bytes": packed.code_bytes,
        "headroom_bytes": left if limited else None,
        "parameters": sum(tensor.numel for tensor in tensors),
        "delta": packed.pack.get("delta"),
        "predicted_nats": packed.predicted_nats,
        "methods": dict(Counter(tensor.method for tensor in tensors)),
        "fallbacks": [tensor.name for tensor in tensors if "fallback" in tensor.record],
        "notes": list(packed.notes),
        "header_bytes": summary.header_bytes,
        "sections": {
            section.name: {"codec": section.codec, "bytes": section.stored_bytes}
            for section in summary.sections
        },
    }


def _methods(options: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(pattern, method) pairs, the one for all tensors first."""
    pairs = [tuple(option.split("=", 1)) if "=" in option else ("*", option) for option in options]
    if not any(pattern == "*" for pattern, _ in pairs):
        pairs.insert(0, ("*", "gptq-trellis"))
    return tuple(sorted(((p, m) for p, m in pairs), key=lambda pair: pair[0] != "*"))


def _print(report: dict[str, Any]) -> None:
    rows = [
        ["parameters", f"{report['parameters']:,}"],
        ["code, bytes", f"{report['code_bytes']:,}"],
        ["file, bytes", f"{report['bytes']:,}"],
        ["bits per parameter", f"{8 * report['bytes'] / report['parameters']:.3f}"],
    ]
    if report["budget_bytes"] is not None:
        rows.insert(1, ["budget, bytes", f"{report['budget_bytes']:,}"])
        rows.insert(4, ["headroom, bytes", f"{report['headroom_bytes']:,}"])
    if report["delta"] is not None:
        rows.append(["step (delta)", f"{report['delta']:.4g}"])
        rows.append(["predicted rise, nats per token", f"{report['predicted_nats']:.5f}"])
    counts = ", ".join(f"{method} {count}" for method, count in report["methods"].items())
    rows.append(["tensors", f"{counts}; fallback {len(report['fallbacks'])}"])
    if "after" in report:
        before, after = (report[when]["plain"]["bpb"] for when in ("before", "after"))
        rows += [
            ["bpb before packing", f"{before:.5f}"],
            ["bpb of the reloaded file", f"{after:.5f}"],
            ["penalty", f"{after - before:+.5f}"],
        ]
        if sliding := report["after"]["sliding"]:
            rows.append([f"sliding bpb, stride {sliding['stride']}", f"{sliding['bpb']:.5f}"])
    rows += [[f"seconds to {phase}", f"{spent:.1f}"] for phase, spent in report["seconds"].items()]
    print_table(["packed", ""], rows)
    print_table(
        ["section", "codec", "bytes"],
        [["header", "", f"{report['header_bytes']:,}"]]
        + [
            [name, section["codec"], f"{section['bytes']:,}"]
            for name, section in report["sections"].items()
        ],
    )
    note(f"wrote {report['file']}" if report["file"] else "nothing was written (--plan)")
