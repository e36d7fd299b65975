"""`gptpack inspect`: a packed file -> tables of what it holds, without torch."""

import click

from gptpack.cli.bars import progress_bars
from gptpack.cli.console import note, print_json, print_table, say
from gptpack.cli.help import Command
from gptpack.escape import plain
from gptpack.inspection.inspect import SHARED, InspectReport, flat, inspect


@click.command(
    cls=Command,
)
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document instead of tables.")
@click.option("--decode", is_flag=True, help="Decode the file to see what each tensor takes.")
def command(path: str, as_json: bool, decode: bool) -> None:
    """Show what the packed file PATH holds, from its header.

    \b
    Examples:
      gptpack inspect model.gptpack
      gptpack inspect model.gptpack --json | jq .headroom_bytes

    The sections are not read: `gptpack verify` does, and `gptpack eval` measures the bits per byte.
    The bytes of a tensor are those that its codes cost when they were packed. Files of older
    versions do not say them: then they are a share of a section, or, with --decode, measured.
    """
    with progress_bars(quiet=as_json or not decode) as progress:
        progress("decode", 0, 0)
        report = inspect(path, decode=decode)
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report)


def _print(report: InspectReport) -> None:
    say(
        f"{report.path}: gptpack artifact, format {report.format_version}, "
        f"{report.parameters:,} parameters in {len(report.tensors):,} tensors"
    )
    say(_budget_line(report))
    say()
    print_table(
        ["identity", ""],
        [
            ["model", report.shape],
            ["header sha256", report.header_sha256],
            ["weights sha256", report.weights_sha256],
            *_tokenizer_rows(report),
        ],
    )
    if report.files:
        names = ", ".join(f"{name} ({size:,})" for name, size in report.files.items())
        say(f"files: {names}")
    say()
    rows = [
        [
            f"{group.name} x{group.tensors}",
            " x ".join(map(str, group.shape)) or "scalar",
            f"{group.parameters:,}",
            group.method,
            f"{group.stored_bytes:,}",
            f"{group.bits_per_parameter:.3f}",
            f"{group.share:.2%}",
        ]
        for group in report.groups
    ]
    beside = {"(files)": report.files_bytes} if report.files else {}
    for name, size in {**beside, "(header)": report.header_bytes}.items():
        rows.append([name, "", "", "", f"{size:,}", "", f"{size / report.file_bytes:.2%}"])
    bits = 8 * report.file_bytes / report.parameters
    rows.append(
        [
            "file",
            "",
            f"{report.parameters:,}",
            "",
            f"{report.file_bytes:,}",
            f"{bits:.3f}",
            f"{1:.2%}",
        ]
    )
    print_table(
        ["tensors", "shape", "parameters", "method", "bytes", "bits/parameter", "share"], rows
    )
    if not report.exact:
        note(f"{SHARED}; --decode measures them")
    say()
    print_table(
        ["section", "codec", "layout", "raw bytes", "stored bytes", "stored/raw"],
        [
            [
                section.name,
                section.codec,
                section.layout,
                f"{section.raw_bytes:,}",
                f"{section.stored_bytes:,}",
                f"{section.stored_bytes / section.raw_bytes:.2%}",
            ]
            for section in report.sections
        ],
    )
    stored = list(flat(report.pack))
    if stored:
        say()
        print_table(
            ["stored when packed", ""],
            [[plain(name, 120), plain(value, 120)] for name, value in stored],
        )


def _tokenizer_rows(report: InspectReport) -> list[list[str]]:
    found = report.tokenizer
    if found is None:
        return []
    said = f"vocab {found.vocab:,}, bos {found.bos}"
    return [["tokenizer sha256", found.sha256], ["tokenizer", said]]


def _budget_line(report: InspectReport) -> str:
    if report.budget_bytes is None or report.headroom_bytes is None:
        return f"file {report.file_bytes:,} bytes; the file names no budget"
    code = "" if report.code_bytes is None else f", code {report.code_bytes:,}"
    left = (
        f"headroom {report.headroom_bytes:,}"
        if report.headroom_bytes >= 0
        else f"OVER by {-report.headroom_bytes:,}"
    )
    return f"budget {report.budget_bytes:,}, file {report.file_bytes:,}{code}, {left} bytes"
