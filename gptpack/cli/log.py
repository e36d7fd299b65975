"""`gptpack log`: training logs -> their figures, and what in them contradicts the rest."""

from typing import Any

import click

from gptpack.cli.console import print_json, print_table, say
from gptpack.cli.help import Command
from gptpack.errors import LimitError
from gptpack.inputs import once
from gptpack.runs.logs import read_log


@click.command(cls=Command)
@click.argument("paths", metavar="LOG...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Write a JSON document: a list of results.")
def command(paths: tuple[str, ...], as_json: bool) -> None:
    """Read logs in the style of parameter-golf or modded-nanogpt, and check them.

    \b
    Examples:
      gptpack log train_seed1337.log
      gptpack log records/*/train*.log --json | jq '.[].contradictions'

    Totals are added up again, the bytes of text are worked out from each loss and its bits per
    byte, times are compared with limits. Ends with status 1 if something contradicts the rest.
    """
    results = [read_log(path).to_dict() for path in once(paths)]
    if as_json:
        print_json(results)
    else:
        for number, result in enumerate(results):
            if number:
                say()
            _print(result)
    count = sum(len(result["contradictions"]) for result in results)
    if count:
        first = next(result for result in results if result["contradictions"])
        raise LimitError(
            f"{first['file']['path']}: {first['contradictions'][0]['says']}"
            + (f"; and {count - 1} more" if count > 1 else "")
        )


def _print(result: dict[str, Any]) -> None:
    training, sizes, file = result["training"], result["sizes"], result["file"]
    say(
        f"{file['path']}: {training['steps']:,} of {training['planned_steps']:,} steps in "
        f"{result['seconds']['train']:,.1f} s"
    )
    rows = [("before packing", result["before"]), ("plain", result["plain"])]
    rows += [("sliding", result["sliding"]), *result["ttt"].items()]
    print_table(
        ["figure", "as the log names it", "bpb", "nats/token", "implied bytes", "seconds"],
        [
            [
                name,
                row["metric"],
                "" if row["bpb"] is None else f"{row['bpb']:.6f}",
                "" if row["nats_per_token"] is None else f"{row['nats_per_token']:.6f}",
                f"{row['bytes']:,}" if row["bytes"] else "",
                f"{row['seconds']:,.1f}" if row["seconds"] else "",
            ]
            for name, row in rows
            if row is not None
        ],
    )
    if file["bytes"]:
        say(
            f"{file['bytes']:,} bytes stated; model and code add up to "
            f"{sizes['recomputed_total'] or 0:,}; {sizes['cap'] - file['bytes']:,} below the cap"
        )
    for one in result["contradictions"]:
        say(f"contradiction ({one['about']}): {one['says']}")
