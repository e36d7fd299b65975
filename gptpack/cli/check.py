"""`gptpack check`: files, limits and a baseline -> a verdict, without torch."""

from pathlib import Path
from typing import Any

import click

from gptpack.cli.bars import progress_bars
from gptpack.cli.check_report import print_result, write_reports
from gptpack.cli.console import reader_may_go
from gptpack.cli.help import Choice, Command, heading
from gptpack.cli.options import FINITE, TEXT, renamed
from gptpack.errors import ArtifactError, ConfigError, LimitError, MissingDependencyError
from gptpack.escape import plain
from gptpack.gate import formats
from gptpack.gate.limits import CONFIG, SAMPLE_TOKENS, load_check
from gptpack.jobs.check import check

PATH = click.Path(path_type=Path)


@click.command(
    cls=Command,
    epilog="Exit status: 0 all limits hold; 1 a limit is broken or a file is missing; 2 usage or "
    "configuration; 3 a file is corrupt; 4 the environment lacks what --bpb needs.",
)
@click.argument("paths", nargs=-1, metavar="[FILE]...")
@heading("What must hold")
@click.option("--config", type=PATH, help=f"TOML file with [check]. [default: {CONFIG}]")
@click.option("--budget", help="Most bytes of a file and its code, such as 16MB or 16MiB.")
@click.option("--code", multiple=True, help="File whose bytes count too; repeatable.")
@click.option("--max-bpb", type=FINITE, help="Most bits per byte, recorded or measured.")
@click.option("--max-bpb-rise", type=FINITE, help="Most bits per byte above the baseline.")
@click.option("--max-bytes-rise", help="Most bytes above the baseline, such as 10KB.")
@click.option("--baseline", type=PATH, help="Report (JSON) of an earlier check, or a packed file.")
@heading("How to prove")
@click.option("--bpb", "prove", is_flag=True, help="Measure the bits per byte; needs torch.")
@click.option("--data", help="Folder of validation shards for --bpb.")
@TEXT
@click.option("--tokenizer", help="SentencePiece model. [default: that in --data]")
@click.option(
    "--eval-tokens",
    type=int,
    help=f"Score the first so many targets; 0: all. [default: {SAMPLE_TOKENS:,}]",
)
@renamed("--tokens", "--eval-tokens")
@click.option("--stride", type=int, help="Score a sliding window that moves by so many tokens.")
@heading("Output")
@click.option(
    "--format",
    "form",
    type=Choice(["text", *formats.FORMATS]),
    default="text",
    help="Format of standard output.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "--output",
    "-o",
    "outputs",
    multiple=True,
    type=PATH,
    help="Also write a report: .json, .md or .xml for JUnit; repeatable.",
)
def command(
    paths: tuple[str, ...],
    config: Path | None,
    baseline: Path | None,
    prove: bool,
    form: str,
    as_json: bool,
    outputs: tuple[Path, ...],
    **options: Any,
) -> None:
    """Check packed files against limits on their bytes and their bits per byte.

    \b
    Examples:
      gptpack check
      gptpack check model.gptpack --budget 16MB --code train_gpt.py
      gptpack check --output main.json          on the main branch
      gptpack check --baseline main.json        on a pull request
      gptpack check model.gptpack --bpb --data shards/ --max-bpb 1.21
      gptpack check smol.gptpack --bpb --text val.txt --max-bpb 0.95

    Without FILE, the table [check] of gptpack.toml says what is checked; with FILE, the options
    do. Existence, every checksum, the format, and the size to the byte are checked without torch,
    in under a second. --max-bpb is held against what the packer recorded in the file; with --bpb
    against what a process of its own measures on the first --eval-tokens targets of --data or
    --text, on the CPU.

    Nothing is sent or fetched. Where GITHUB_STEP_SUMMARY is set, the report is appended to it;
    where GITHUB_ACTIONS is true, failures become annotations.
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if paths and config is not None:
        raise ConfigError(f"give either FILE or --config {config}")
    if given and not paths:
        raise ConfigError(
            f"--{next(iter(given)).replace('_', '-')} is for files that are named; without "
            f"FILE, {config or CONFIG} has the limits"
        )
    if strange := [path for path in outputs if path.suffix not in formats.SUFFIXES]:
        raise ConfigError(f"--output {strange[0]}: name it {', '.join(formats.SUFFIXES)}")
    with progress_bars(quiet=not prove) as progress:
        result = check(
            paths or load_check(config or Path(CONFIG)),
            baseline=baseline,
            prove=prove,
            progress=progress,
            **given,
        )
    write_reports(result, outputs)
    form = "json" if as_json else form
    if form == "text":
        print_result(result)
    else:
        with reader_may_go():
            click.echo(formats.FORMATS[form](result), nl=False)
    errors = {1: LimitError, 2: ConfigError, 3: ArtifactError, 4: MissingDependencyError}
    if not result.passed:
        failing = [plain(checked.name) for checked in result.artifacts if checked.failures]
        count = f"{len(failing)} of {len(result.artifacts)} failed"
        raise errors[result.exit_status](f"check: {count}: {', '.join(failing[:5])}")
