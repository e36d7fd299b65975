"""`gptpack pack`: a checkpoint -> one file that fits the budget, proved before it gets its name."""

import hashlib
import time
from pathlib import Path
from typing import Any

import click

from gptpack.cli.console import note, print_json, print_table, progress_bars

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--budget", required=True, help="Most bytes, such as 16MB or 16MiB.")
@click.option("--output", "-o", type=PATH, help="[default: the checkpoint's name, .gptpack]")
@click.option("--data", type=PATH, help="Folder of shards; val proves the file.")
@click.option("--tokenizer", type=PATH, help="SentencePiece model. [default: that in --data]")
@click.option("--model", help="Recipe (file or name) whose [model] a bare state dict has.")
@click.option("--code", type=PATH, multiple=True, help="File whose bytes count too; repeatable.")
@click.option("--codec", multiple=True, help="raw, zlib, zstd, lzma; repeatable. [default: all]")
@click.option("--eval-tokens", default=0, help="Prove on the first so many targets; 0: all.")
@click.option("--stride", type=int, help="Also measure a sliding window that moves by so many.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    checkpoint: Path,
    budget: str,
    output: Path | None,
    data: Path | None,
    tokenizer: Path | None,
    model: str | None,
    code: tuple[Path, ...],
    codec: tuple[str, ...],
    eval_tokens: int,
    stride: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Pack a CHECKPOINT into one file that is never a byte over the budget.

    With --data the file is reloaded in a fresh process and its bits per byte are measured, beside
    those of the checkpoint, before it gets its name. Files given by --code count into the budget.

    \b
    Examples:
      gptpack pack runs/a/checkpoint.pt --budget 16MB --data shards/
      gptpack pack checkpoint.pt --budget 16MB --code train.py -o model.gptpack --data shards/
      gptpack pack final_model.pt --model golf-1060 --tokenizer tok.model --budget 16MiB
    """
    from gptpack.artifact.writer import summarize, write_atomic
    from gptpack.checkpoint import load_checkpoint
    from gptpack.cli.fresh import evaluate_in_fresh_process
    from gptpack.config import load_recipe, parse_size
    from gptpack.data.shards import file_sha256
    from gptpack.packing import pack_int8
    from gptpack.recipe_files import find_recipe

    budget_bytes = parse_size(budget)
    target = output or checkpoint.with_suffix(".gptpack")
    shape = load_recipe(find_recipe(model)).model if model else None
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    loaded = load_checkpoint(checkpoint, shape)
    identity = _identity(loaded.tokenizer, tokenizer, data)
    code_bytes = sum(_size(path) for path in code)
    with progress_bars(quiet=as_json) as progress:
        packed = pack_int8(
            loaded,
            identity,
            budget_bytes=budget_bytes,
            code_bytes=code_bytes,
            codecs=codec or ("zlib", "zstd"),
            provenance={"checkpoint_sha256": file_sha256(checkpoint), "step": loaded.step},
            progress=progress,
        )
    seconds["pack"] = time.perf_counter() - began
    file = packed.file()
    scores: dict[str, Any] = {}
    if data is not None:
        began = time.perf_counter()
        settings: dict[str, Any] = {
            "tokenizer": tokenizer,
            "limit_tokens": eval_tokens,
            "device": device,
            "quiet": as_json,
        }
        scores["before"] = evaluate_in_fresh_process(checkpoint, data, model=model, **settings)
        # Proved under a name that nobody takes for the result.
        candidate = target.with_name(f".{target.name}.unproved")
        write_atomic(candidate, file)
        try:
            scores["after"] = evaluate_in_fresh_process(candidate, data, stride=stride, **settings)
        finally:
            candidate.unlink(missing_ok=True)
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
    write_atomic(target, file)
    summary = summarize(target, file)
    report = {
        "file": str(target),
        "bytes": len(file),
        "sha256": hashlib.sha256(file).hexdigest(),
        "budget_bytes": budget_bytes,
        "code_bytes": code_bytes,
        "headroom_bytes": budget_bytes - code_bytes - len(file),
        "parameters": sum(value.numel() for value in loaded.weights.values()),
        "header_bytes": summary.header_bytes,
        "sections": {
            section.name: {"codec": section.codec, "bytes": section.stored_bytes}
            for section in summary.sections
        },
        "seconds": seconds,
        **scores,
    }
    if as_json:
        print_json(report)
        return
    _print(report)


def _print(report: dict[str, Any]) -> None:
    rows = [
        ["parameters", f"{report['parameters']:,}"],
        ["budget, bytes", f"{report['budget_bytes']:,}"],
        ["code, bytes", f"{report['code_bytes']:,}"],
        ["file, bytes", f"{report['bytes']:,}"],
        ["headroom, bytes", f"{report['headroom_bytes']:,}"],
        ["bits per parameter", f"{8 * report['bytes'] / report['parameters']:.3f}"],
    ]
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
    note(f"wrote {report['file']}")


def _size(path: Path) -> int:
    from gptpack.errors import ConfigError

    try:
        return path.stat().st_size
    except OSError as error:
        raise ConfigError(f"--code {path}: {error.strerror}") from error


def _identity(known: Any, tokenizer: Path | None, data: Path | None) -> Any:
    """The model's tokenizer: the checkpoint's word first, then the file that was given."""
    from gptpack.data.manifest import TOKENIZER
    from gptpack.data.tokenizer import Tokenizer
    from gptpack.errors import TokenizerError

    path = tokenizer or (data / TOKENIZER if data is not None else None)
    if path is None or (known is not None and tokenizer is None):
        if known is None:
            raise TokenizerError(
                "the checkpoint does not say which tokenizer it belongs to; name its file with "
                "--tokenizer or give --data"
            )
        return known
    found = Tokenizer.load(path).identity
    if known is not None and found != known:
        raise TokenizerError(
            f"{path}: sha256 {found.sha256}, but the checkpoint was trained with {known.sha256}; "
            "give that tokenizer, and its shards"
        )
    return found
