"""`gptpack diff`: two packed files -> what differs, by their headers unless told otherwise."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gptpack.cli.bars import progress_bars
from gptpack.cli.console import note, print_json, print_table, say
from gptpack.cli.help import Command, heading
from gptpack.cli.options import DEVICE, TEXT, renamed
from gptpack.errors import ConfigError
from gptpack.escape import plain
from gptpack.inspection.compare import RELATIVE, WeightErrors
from gptpack.inspection.diff import DiffReport, GroupDiff, Side
from gptpack.inspection.inspect import SHARED
from gptpack.inspection.verdict import verdict
from gptpack.jobs.diff import diff
from gptpack.values import check_idle

PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("before", metavar="A", type=PATH)
@click.argument("after", metavar="B", type=PATH)
@heading("What to compare besides headers")
@click.option("--weights", is_flag=True, help="Decode both and show how far weights are apart.")
@click.option("--checkpoint", type=PATH, help="Show both files' errors against this checkpoint.")
@click.option("--bpb", is_flag=True, help="Measure both files' bits per byte.")
@heading("How to prove")
@click.option("--data", type=PATH, help="Folder of validation shards for --bpb.")
@TEXT
@click.option("--tokenizer", type=PATH, help="SentencePiece model. [default: that in --data]")
@click.option(
    "--stride", type=click.IntRange(min=1), help="With --bpb, score a sliding window as well."
)
@click.option(
    "--eval-tokens",
    default=0,
    show_default="all",
    help="With --bpb, score the first so many targets.",
)
@renamed("--tokens", "--eval-tokens")
@click.option("--device", type=DEVICE, default="auto", help="Device for --bpb.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    before: Path,
    after: Path,
    weights: bool,
    checkpoint: Path | None,
    bpb: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Show what differs between the packed files A and B: bytes per group of tensors, methods,
    settings of model and packing, recorded bits per byte.

    \b
    Examples:
      gptpack diff main.gptpack branch.gptpack
      gptpack diff a.gptpack b.gptpack --checkpoint runs/a/checkpoint.pt
      gptpack diff a.gptpack b.gptpack --bpb --data shards/ --json
      gptpack diff a.gptpack b.gptpack --bpb --text val.txt

    Only headers are read, in under a second and without torch, unless --weights, --checkpoint or
    --bpb ask for more. Where files are decoded, the bytes of a group are what its codes cost, else
    a share of its section in proportion to raw bytes. Changes are B minus A. The exit status is 0
    whether they differ or not.
    """
    if bpb and not settings["data"] and not settings["text"]:
        raise ConfigError("--bpb needs text: --data with shards, or --text for Hugging Face models")
    check_idle("without --bpb", not bpb, **{k: v for k, v in settings.items() if k != "device"})
    settings |= {"weights": weights, "checkpoint": checkpoint}
    # processes that score draw bars of their own
    with progress_bars(quiet=as_json or bpb or not (weights or checkpoint)) as progress:
        progress("decode and compare", 0, 0)
        report = diff(before, after, quiet=as_json, **settings)
    for errors in report.errors or ():
        if errors.caution:
            note(errors.caution)
    if as_json:
        print_json(report.to_dict() | {"verdict": verdict(report)})
    else:
        _print(report)


def _print(report: DiffReport) -> None:
    first, second = report.before, report.after
    say(f"A {first.path}", f"B {second.path}", "")
    total = GroupDiff(
        name="file",
        before=Side(parameters=first.parameters, stored_bytes=first.file_bytes),
        after=Side(parameters=second.parameters, stored_bytes=second.file_bytes),
    )
    print_table(
        ["group", "A bytes", "B bytes", "change", "A bits", "B bits", "method"],
        [_row(group) for group in (*report.groups, total)],
    )
    for side in (first, second):
        if not side.exact:
            note(f"{side.path}: {SHARED}; --weights measures them")
    settings = [
        [plain(one.name, 80), *("" if v is None else plain(v, 60) for v in (one.before, one.after))]
        for one in report.settings
        if not one.name.startswith("pack.quality.")
    ]
    if settings:
        say()
        print_table(["setting", "A", "B"], settings)
    say()
    say(verdict(report))
    if report.weights is not None:
        _print_tensors(["relative difference"], [report.weights])
    if report.errors is not None:
        _print_tensors(["A relative error", "B relative error"], report.errors)
        say(RELATIVE)


def _row(group: GroupDiff) -> list[str]:
    sides = (group.before, group.after)
    bits = [side.bits_per_parameter for side in sides]
    methods = [", ".join(side.methods) or "none" for side in sides]
    return [
        plain(group.name, 80),
        *(f"{side.stored_bytes:,}" for side in sides),
        f"{group.change_bytes:+,}" if group.change_bytes else "0",
        *("" if value is None else f"{value:.3f}" for value in bits),
        " -> ".join(methods) if methods[0] != methods[1] else ", ".join(group.after.methods),
    ]


def _print_tensors(titles: Sequence[str], found: Sequence[WeightErrors]) -> None:
    """The ten tensors with the largest errors, with a column for each of `found`."""
    columns = [{row.name: row.relative for row in one.tensors} for one in found]
    names = sorted(columns[0], key=lambda name: -max(column[name] or 0.0 for column in columns))

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.6f}"

    say()
    print_table(
        ["tensor", *titles],
        [[plain(name, 80), *(number(column[name]) for column in columns)] for name in names[:10]]
        + [["all weights", *(number(one.relative) for one in found)]],
    )
