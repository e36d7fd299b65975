"""`gptpack doctor`: what this machine can do, and what is missing for what."""

from dataclasses import asdict
from pathlib import Path

import click

from gptpack.cli.bars import progress_bars
from gptpack.cli.console import print_json, print_table, say
from gptpack.cli.help import Choice, Command
from gptpack.errors import MissingDependencyError
from gptpack.escape import plain
from gptpack.jobs.environment import TASKS, abilities, survey


@click.command(
    cls=Command,
    epilog="Exit status: 0 whatever was asked for can run; 4 something of it cannot.",
)
@click.argument("tasks", nargs=-1, type=Choice(list(TASKS)), metavar="[TASK]...")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(tasks: tuple[str, ...], as_json: bool) -> None:
    """Show what this machine can do, and what is missing for what.

    \b
    Examples:
      gptpack doctor
      gptpack doctor train cuda && gptpack train --recipe baseline --data shards/ --output runs/a
      gptpack doctor --json

    Everything is tried: modules are imported, codecs code, a CUDA device computes. Each TASK that
    is named must be able to run, or the exit status is 4: check, inspect, verify, data, train,
    pack, eval, download, report, hf, gguf, gpt2, brotli, cuda, triton, fa3, fa4.
    """
    with progress_bars(quiet=as_json) as progress:
        progress("try what is here", 0, 0)
        findings = survey(Path.cwd())
    able = abilities(findings)
    if as_json:
        print_json(
            {
                "findings": [asdict(finding) for finding in findings],
                "tasks": [asdict(ability) for ability in able],
            }
        )
    else:
        print_table(
            ["what", "found"],
            [[finding.name, plain(finding.found, 100)] for finding in findings],
            align="left",
        )
        say()
        print_table(
            ["to", "ready", "missing"],
            [[a.task, "yes" if a.works else "no", ", ".join(a.missing)] for a in able],
            align="left",
        )
    refused = [ability for ability in able if ability.task in tasks and not ability.works]
    if refused:
        remedies = {finding.name: finding.remedy for finding in findings}
        missing = dict.fromkeys(name for ability in refused for name in ability.missing)
        what = "; ".join(f"{name}: {remedies[name] or 'not working'}" for name in missing)
        names = ", ".join(ability.task for ability in refused)
        raise MissingDependencyError(f"this machine cannot run {names}; it needs {what}")
