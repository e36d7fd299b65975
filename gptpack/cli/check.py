"""`gptpack check`: the gate. Files, limits and a baseline -> a verdict, without torch."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gptpack.cli.console import note, print_table
from gptpack.cli.options import FINITE
from gptpack.errors import ArtifactError, ConfigError, LimitError, MissingDependencyError
from gptpack.escape import plain
from gptpack.gate.check import Result, check, load_baseline
from gptpack.gate.formats import (
    COLUMNS,
    FORMATS,
    SUFFIXES,
    annotations,
    failures,
    rows,
    skipped,
    to_markdown,
)
from gptpack.gate.limits import (
    CONFIG,
    SAMPLE_TOKENS,
    CheckConfig,
    Limits,
    distinct,
    expanded,
    load_check,
)

PATH = click.Path(path_type=Path)


@click.command(
    epilog="Exit status: 0 all limits hold; 1 a limit is broken or a file is missing; 2 usage or "
    "configuration; 3 a file is corrupt; 4 the environment lacks what --bpb needs."
)
@click.argument("paths", nargs=-1, metavar="[FILE]...")
@click.option("--config", type=PATH, help=f"TOML file with [check]. [default: {CONFIG}]")
@click.option("--budget", help="Most bytes of a file and its code, such as 16MB or 16MiB.")
@click.option("--code", multiple=True, help="File whose bytes count too; repeatable.")
@click.option("--max-bpb", type=FINITE, help="Most bits per byte, recorded or measured.")
@click.option("--max-bpb-rise", type=FINITE, help="Most bits per byte above the baseline.")
@click.option("--max-bytes-rise", help="Most bytes above the baseline, such as 10KB.")
@click.option("--baseline", type=PATH, help="Report (JSON) of an earlier check, or an artifact.")
@click.option("--bpb", "prove", is_flag=True, help="Measure the bits per byte; needs torch.")
@click.option("--data", help="Folder of validation shards for --bpb.")
@click.option("--tokenizer", help="SentencePiece model. [default: that in --data]")
@click.option("--tokens", type=int, help=f"Targets to score; 0: all. [default: {SAMPLE_TOKENS}]")
@click.option("--stride", type=int, help="Score a sliding window that moves by so many.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", *FORMATS]),
    default="text",
    show_default=True,
    help="Of standard output.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "--output",
    "-o",
    "outputs",
    multiple=True,
    type=PATH,
    help="Also write a report: .json, .md or .xml (JUnit); repeatable.",
)
def command(
    paths: tuple[str, ...],
    config: Path | None,
    baseline: Path | None,
    prove: bool,
    form: str,
    as_json: bool,
    outputs: tuple[Path, ...],
    **limits: Any,
) -> None:
    """Check packed files against limits on their bytes and their bits per byte.

    Without FILE, the table [check] of gptpack.toml says what is checked; with FILE, the options
    do. Existence, every checksum, the format, and the size to the byte are checked without torch,
    in under a second. --max-bpb is held against what the packer recorded in the file; with --bpb
    against what a process of its own measures on the first --tokens targets of --data, on the CPU.

    Nothing is sent or fetched. Where GITHUB_STEP_SUMMARY is set, the report is appended to it;
    where GITHUB_ACTIONS is true, failures become annotations.

    \b
    Examples:
      gptpack check
      gptpack check model.gptpack --budget 16MB --code train_gpt.py
      gptpack check --output main.json          on the main branch
      gptpack check --baseline main.json        on a pull request
      gptpack check model.gptpack --bpb --data shards/ --max-bpb 1.21
    """
    settings = _settings(paths, config, limits)
    form = "json" if as_json else form
    kinds = [_kind(path) for path in outputs]
    named = expanded(settings)
    if prove:
        _can_prove(named)
    base = baseline
    if base is None and settings.baseline:
        base = settings.folder / settings.baseline
    past = None if base is None else load_baseline(base, [limits.label for limits in named])
    result = check(
        settings,
        baseline=past,
        baseline_name="" if base is None else str(base),
        prove=_prover(settings.folder) if prove else None,
    )
    for path, kind in zip(outputs, kinds, strict=True):
        _write(path, FORMATS[kind](result))
    _summarize(result)
    if form == "text":
        _print(result)
    else:
        click.echo(FORMATS[form](result), nl=False)
    _end(result)


def _settings(
    paths: tuple[str, ...], config: Path | None, options: Mapping[str, Any]
) -> CheckConfig:
    """What to check: by the options for `paths`, or by a TOML file."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if not paths:
        if given:
            raise ConfigError(
                f"--{next(iter(given)).replace('_', '-')} is for files that are named; without "
                f"FILE, {config or CONFIG} has the limits"
            )
        return load_check(config or Path(CONFIG))
    if config is not None:
        raise ConfigError(f"give either FILE or --config {config}")
    return CheckConfig(artifacts=distinct([Limits(path=path, **given) for path in paths]))


def _can_prove(artifacts: list[Limits]) -> None:
    if without := [limits.label for limits in artifacts if not limits.data]:
        raise ConfigError(f"--bpb: no data for {without[0]}; name a folder of shards with --data")
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError(
            "--bpb needs torch, which is not installed; pip install gptpack with its dependencies, "
            "or check without --bpb"
        )


def _prover(folder: Path) -> Any:
    """A function that measures a file in a process of its own, on the CPU."""
    from gptpack.jobs.fresh import evaluate_in_fresh_process

    def prove(path: Path, limits: Limits) -> dict[str, Any]:
        tokens = f"{limits.tokens:,}" if limits.tokens else "all"
        note(f"{limits.label}: scoring {tokens} tokens of {limits.data} ...")
        return evaluate_in_fresh_process(
            path,
            folder / limits.data,
            tokenizer=folder / limits.tokenizer if limits.tokenizer else None,
            stride=limits.stride or None,
            limit_tokens=limits.tokens,
            device="cpu",
            quiet=True,
        ).to_dict()

    return prove


def _kind(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--output {path}: name it {', '.join(SUFFIXES)}")
    return SUFFIXES[path.suffix]


def _write(path: Path, text: str) -> None:
    from gptpack.atomic import replacing

    with replacing(path) as file:
        file.write(text.encode())


def _summarize(result: Result) -> None:
    """Append to GitHub's step summary where there is one."""
    if not (summary := os.environ.get("GITHUB_STEP_SUMMARY")):
        return
    try:
        with open(summary, "a", encoding="utf-8") as file:
            file.write(to_markdown(result))
    except OSError as error:
        note(f"GITHUB_STEP_SUMMARY: cannot write {summary}: {error.strerror}")


def _print(result: Result) -> None:
    print_table(COLUMNS, rows(result))
    problems = failures(result)
    if problems:
        click.echo()
    for checked, text in problems:
        click.echo(f"FAIL {plain(checked.name)}: {text}")
    for text in skipped(result):
        click.echo(f"skipped {text}")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in annotations(result):
            click.echo(line)


def _end(result: Result) -> None:
    """End with the status of what failed."""
    failing = [plain(checked.name) for checked in result.artifacts if checked.failures]
    text = f"check: {len(failing)} of {len(result.artifacts)} failed: {', '.join(failing[:5])}"
    errors = {1: LimitError, 3: ArtifactError, 4: MissingDependencyError}
    if result.exit_status:
        raise errors[result.exit_status](text)
