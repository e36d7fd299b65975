"""`gptpack report`: runs and packed files -> one HTML page, and a line on its size."""

from pathlib import Path

import click

from gptpack.cli.bars import progress_bars
from gptpack.cli.console import note
from gptpack.cli.help import Command

PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="RUN_OR_FILE...")
@click.option("--output", "-o", default=Path("report.html"), type=PATH, help="Page to write.")
@click.option(
    "--title", default="", show_default="the names of what is shown", help="Title of the page."
)
def command(paths: tuple[Path, ...], output: Path, title: str) -> None:
    """Make one page about runs and packed files, side by side: where the bytes go, bits per
    parameter and error by layer, size against score, curves of training, ledgers of bytes and time.

    \b
    Examples:
      gptpack report runs/a -o report.html
      gptpack report runs/a runs/b other.gptpack -o compared.html

    A run is a folder with metrics.jsonl (from `gptpack train`), packed files, curves (.csv) or
    reports that `--json` printed into .json files there; a file is any of them. Errors are measured
    where the checkpoint that a file was made of lies beside it. The page needs no network and no
    other file. Needs plotly: pip install 'gptpack[report]'.
    """
    from gptpack.jobs.report import make_report

    with progress_bars() as progress:
        made = make_report(paths, output, title=title, progress=progress)
    for text in made.notes:
        note(text)
    note(f"wrote {output}, {made.page_bytes:,} bytes")
