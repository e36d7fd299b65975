"""`gptpack diff`: what differs between two packed files, by their headers unless told otherwise."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptpack.cli.console import note, print_json, print_table
from gptpack.cli.options import DEVICE
from gptpack.errors import ConfigError
from gptpack.escape import plain
from gptpack.inspection.diff import DiffReport, GroupDiff, Side, diff
from gptpack.inspection.inspect import recorded_quality

if TYPE_CHECKING:
    from gptpack.inspection.compare import TensorError

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("before", metavar="A", type=PATH)
@click.argument("after", metavar="B", type=PATH)
@click.option("--weights", is_flag=True, help="Decode both and show how far weights are apart.")
@click.option("--checkpoint", type=PATH, help="Show both files' errors against this checkpoint.")
@click.option("--bpb", is_flag=True, help="Measure both files' bits per byte; needs --data.")
@click.option("--data", type=PATH, help="Folder of validation shards for --bpb.")
@click.option("--tokenizer", type=PATH, help="SentencePiece model. [default: that in --data]")
@click.option(
    "--stride", type=click.IntRange(min=1), help="With --bpb, score a sliding window as well."
)
@click.option("--tokens", default=0, help="With --bpb, score the first so many targets; 0: all.")
@click.option("--device", type=DEVICE, default="auto", show_default=True, help="For --bpb.")
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

    Only headers are read, in under a second and without torch, unless --weights, --checkpoint or
    --bpb ask for more. Where files are decoded, the bytes of a group are what its codes cost, else
    a share of its section in proportion to raw bytes. Changes are B minus A. The exit status is 0
    whether they differ or not.

    \b
    Examples:
      gptpack diff main.gptpack branch.gptpack
      gptpack diff a.gptpack b.gptpack --checkpoint runs/a/checkpoint.pt
      gptpack diff a.gptpack b.gptpack --bpb --data shards/ --json
    """
    report = diff(before, after, decode=weights or checkpoint is not None)
    result = report.to_dict()
    if weights:
        result["weights"] = _weights(before, after)
    if checkpoint is not None:
        result["errors"] = _errors(before, after, checkpoint)
    if bpb:
        result["measured"] = _measure(before, after, as_json, settings)
    elif settings["data"] is not None:
        raise ConfigError("--data is for --bpb; give both")
    if as_json:
        print_json(result)
        return
    _print(report, result)


def _weights(before: Path, after: Path) -> dict[str, Any]:
    """How far the weights of the two files are apart."""
    from gptpack.inspection.compare import overall, tensor_errors
    from gptpack.inspection.verify import verify

    (_, _, first), (_, _, second) = verify(before), verify(after)
    errors = tensor_errors(first, second, where=f"{before} and {after}")
    return {"relative": overall(errors, first), "tensors": [asdict(row) for row in errors]}


def _errors(before: Path, after: Path, checkpoint: Path) -> dict[str, Any]:
    """Each file's error against the checkpoint."""
    from gptpack.cli.verify import checkpoint_values
    from gptpack.inspection.compare import overall, tensor_errors
    from gptpack.inspection.verify import verify

    found: dict[str, Any] = {}
    sides: list[list[TensorError]] = []
    for side, path in (("before", before), ("after", after)):
        _, artifact, values = verify(path)
        reference = checkpoint_values(checkpoint, artifact.header)
        errors = tensor_errors(reference, values, where=f"{path} and {checkpoint}")
        found[side] = overall(errors, reference)
        sides.append(errors)
    later = {row.name: row for row in sides[1]}
    found["tensors"] = [
        {
            "name": row.name,
            "before": row.relative,
            "after": later[row.name].relative if row.name in later else None,
        }
        for row in sides[0]
    ]
    return found


def _measure(
    before: Path, after: Path, quiet: bool, settings: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Both files' scores, each by a process of its own."""
    from gptpack.jobs.fresh import evaluate_in_fresh_process

    if settings["data"] is None:
        raise ConfigError("--bpb needs a folder of validation shards; name it with --data")
    found = {}
    for side, path in (("before", before), ("after", after)):
        score = evaluate_in_fresh_process(
            path,
            settings["data"],
            tokenizer=settings["tokenizer"],
            stride=settings["stride"],
            limit_tokens=settings["tokens"],
            device=settings["device"],
            quiet=quiet,
        )
        found[side] = score.best.to_dict()
    return found


def _print(report: DiffReport, result: dict[str, Any]) -> None:
    first, second = report.before, report.after
    click.echo(f"A {plain(first.path)}\nB {plain(second.path)}\n")
    total = GroupDiff(
        name="file",
        before=Side(parameters=first.parameters, stored_bytes=first.file_bytes),
        after=Side(parameters=second.parameters, stored_bytes=second.file_bytes),
    )
    print_table(
        ["group", "A bytes", "B bytes", "change", "A bits", "B bits", "method"],
        [_row(group) for group in (*report.groups, total)],
    )
    if report.settings:
        click.echo()
        print_table(
            ["setting", "A", "B"],
            [
                [plain(s.name, 80), _value(s.before), _value(s.after)]
                for s in report.settings
                if not s.name.startswith("pack.quality.")
            ],
        )
    click.echo()
    click.echo(_verdict(report, result))
    for key, title in (("weights", "relative difference"), ("errors", "relative error")):
        if key in result:
            click.echo()
            _print_tensors(title, result[key])


def _row(group: GroupDiff) -> list[str]:
    before, after = group.before, group.after
    methods = [", ".join(side.methods) for side in (before, after)]
    return [
        plain(group.name, 80),
        f"{before.stored_bytes:,}",
        f"{after.stored_bytes:,}",
        f"{group.change_bytes:+,}" if group.change_bytes else "0",
        *(
            "" if side.bits_per_parameter is None else f"{side.bits_per_parameter:.3f}"
            for side in (before, after)
        ),
        methods[0] if methods[0] == methods[1] else " -> ".join(m or "none" for m in methods),
    ]


def _value(value: Any) -> str:
    return "" if value is None else plain(value, 60)


def _verdict(report: DiffReport, result: dict[str, Any]) -> str:
    """Bytes, weights and scores in a few words."""
    size = f"{report.change_bytes:+,} bytes" if report.change_bytes else "the same size"
    words = [f"B against A: {size}"]
    words.append("the same weights, bit for bit" if report.same_weights else "other weights")
    if measured := result.get("measured"):
        before, after = (measured[side]["bpb"] for side in ("before", "after"))
        metric = measured["after"]["metric"]
        words.append(f"measured {before:.6f} and {after:.6f} bpb ({metric}), {after - before:+.6f}")
        return "; ".join(words)
    scores = [
        recorded_quality(side.pack).get("bpb_after") for side in (report.before, report.after)
    ]
    if report.change_bpb is not None:
        words.append(f"recorded {scores[0]:.6f} and {scores[1]:.6f} bpb, {report.change_bpb:+.6f}")
    elif all(score is not None for score in scores):
        note("the recorded bits per byte are of different texts; measure them with --bpb --data")
    return "; ".join(words)


def _print_tensors(title: str, found: dict[str, Any]) -> None:
    """The ten largest; of a difference there is one column, of errors one for each file."""
    columns = ["relative"] if "relative" in found else ["before", "after"]
    rows = found["tensors"]
    shown = sorted(rows, key=lambda row: -max(row[column] or 0.0 for column in columns))[:10]

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.6f}"

    names = {"relative": title, "before": f"A {title}", "after": f"B {title}"}
    print_table(
        ["tensor", *(names[column] for column in columns)],
        [[plain(row["name"], 80), *(number(row[column]) for column in columns)] for row in shown]
        + [["all weights", *(number(found[column]) for column in columns)]],
    )
