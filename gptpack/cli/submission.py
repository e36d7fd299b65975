"""`gptpack submission`: runs -> a contest folder whose figures the shipped script printed, and the
contest's rules on such a folder."""

import datetime
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from gptpack.cli.console import note, print_json, print_table
from gptpack.cli.options import DEVICE
from gptpack.contest.folder import (
    ARTIFACT,
    CAP_BYTES,
    FIGURES,
    README,
    REQUIREMENTS,
    SCRIPT,
    About,
    check_output,
    figures,
    log_name,
    readme,
    write_folder,
)
from gptpack.contest.logs import RunLog, parse_log, training_lines
from gptpack.errors import BudgetError, ConfigError, GptpackError, LimitError
from gptpack.escape import plain
from gptpack.jobs.submission import (
    Run,
    depends_on_later_tokens,
    read_run,
    run_script,
    tokenizer_of,
)

PATH = click.Path(path_type=Path)
HELP = {"help_option_names": ["-h", "--help"]}


class DefaultGroup(click.Group):
    """Takes what is no subcommand as the arguments of ``make``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            args = ["make", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # an option that is not the group's own belongs to make
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultGroup, context_settings=HELP)
def command() -> None:
    """Make a contest submission out of runs, or check one.

    \b
    Examples:
      gptpack submission runs/a runs/b runs/c --data shards/ --github-id me -o submission
      gptpack submission check submission --data shards/ --record-loss 1.8912
    """


@command.command("make", short_help="Make a folder that can be submitted, out of runs.")
@click.argument("runs", nargs=-1, required=True, metavar="[SEED=]RUN...")
@click.option("--output", "-o", required=True, type=PATH, help="Folder to write.")
@click.option("--data", required=True, type=PATH, help="Folder of validation shards.")
@click.option("--tokenizer", type=PATH, help="SentencePiece model. [default: that in --data]")
@click.option("--github-id", required=True, help="Of whoever submits.")
@click.option("--author", help="[default: the GitHub id]")
@click.option("--name", help="Of the submission. [default: the folder's name]")
@click.option("--blurb", default="", help="A sentence on what it does.")
@click.option("--track", default="10min_16mb", show_default=True, help="Of the contest.")
@click.option("--hardware", default="", help="That training ran on, such as '8xH100 SXM'.")
@click.option(
    "--date", type=click.DateTime(["%Y-%m-%d"]), metavar="YYYY-MM-DD", help="[default: today]"
)
@click.option("--stride", default=64, show_default=True, help="Of the sliding window; 0: none.")
@click.option("--readable", is_flag=True, help="Ship the script as it reads, not the small form.")
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option("--force", is_flag=True, help="Replace a submission that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def make(
    runs: tuple[str, ...],
    output: Path,
    data: Path,
    tokenizer: Path | None,
    stride: int,
    readable: bool,
    device: str,
    force: bool,
    as_json: bool,
    **about: Any,
) -> None:
    """Make a folder that can be submitted: README.md, submission.json, logs, requirements.txt, the
    first run's artifact, and train_gpt.py.

    A RUN is a folder that `gptpack train` wrote, with one packed file in it, or that file. The
    script is one file of gptpack's own modules: it decodes and evaluates an artifact where gptpack
    is not installed. It is run here, offline, on every run's artifact, and all figures are read
    from what it printed. The reports of `gptpack pack --json`, if they lie in the runs' folders,
    say how long packing took.

    \b
    Examples:
      gptpack submission runs/a runs/b runs/c --data shards/ --github-id me -o submission
      gptpack submission make 1337=model.gptpack --data shards/ --github-id me -o submission
    """
    from gptpack.contest.script import make_script

    check_output(output, force=force)
    found = [read_run(run) for run in runs]
    seeds = [run.record.seed for run in found]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {seeds}: two runs have one seed; name each SEED=RUN")
    codecs = {section.codec for run in found for section in run.header.sections}
    script = make_script(codecs, artifact=ARTIFACT, stride=stride)
    source = script.readable if readable else script.small
    code_bytes = len(source.encode())
    for run in found:
        _check_cap(run, code_bytes)
    described = _about(output, about)
    options: list[object] = ["--data", data.resolve(), "--device", device]
    options += ["--tokenizer", tokenizer_of(data, tokenizer)]
    texts = {run.record.seed: _log(run, source, options) for run in found}
    logs = [parse_log(text, log_name(seed)) for seed, text in texts.items()]
    values = figures(described, logs)
    first = found[0]
    files = {
        README: readme(values, recipe=first.record.recipe, pack=first.record.pack),
        FIGURES: _json(values),
        REQUIREMENTS: "".join(f"{line}\n" for line in script.packages),
        SCRIPT: source,
        **{log_name(seed): text for seed, text in texts.items()},
    }
    write_folder(output, files, first.artifact)
    sizes = {
        "readable_bytes": len(script.readable.encode()),
        "small_bytes": len(script.small.encode()),
    }
    if as_json:
        print_json({"folder": str(output), **sizes, "submission": values})
        return
    _print_made(output, values, sizes, logs)


def _about(output: Path, given: dict[str, Any]) -> About:
    return About(
        name=given["name"] or output.resolve().name,
        author=given["author"] or given["github_id"],
        github_id=given["github_id"],
        date=(given["date"] or datetime.datetime.now()).date().isoformat(),
        blurb=given["blurb"],
        track=given["track"],
        hardware=given["hardware"],
    )


def _check_cap(run: Run, code_bytes: int) -> None:
    total = run.header.file_bytes + code_bytes
    if total > CAP_BYTES:
        raise BudgetError(
            f"{run.artifact}: {run.header.file_bytes:,} bytes and {code_bytes:,} of code are "
            f"{total:,}, over {CAP_BYTES:,}; pack with --budget {CAP_BYTES - code_bytes}"
        )


def _log(run: Run, source: str, options: list[object]) -> str:
    """A run's log: what it left, and what the script prints of its artifact."""
    note(f"seed {run.record.seed}: running {SCRIPT} on {run.artifact} ...")
    with tempfile.TemporaryDirectory(prefix="gptpack-") as temporary:
        script = Path(temporary) / SCRIPT
        script.write_text(source, encoding="utf-8")
        shutil.copyfile(run.artifact, script.with_name(ARTIFACT))
        printed = run_script(script, *options)
    return "\n".join([*training_lines(run.record), printed])


def _json(values: dict[str, Any]) -> str:
    import json

    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def _print_made(
    output: Path, values: dict[str, Any], sizes: dict[str, int], logs: list[RunLog]
) -> None:
    print_table(
        ["submission", ""],
        [
            ["train_gpt.py, readable, bytes", f"{sizes['readable_bytes']:,}"],
            ["train_gpt.py, small, bytes", f"{sizes['small_bytes']:,}"],
            ["code that ships, bytes", f"{values['bytes_code']:,}"],
            ["artifact that ships, bytes", f"{values['bytes_model']:,}"],
            ["total, bytes", f"{values['bytes_total']:,}"],
            ["headroom, bytes", f"{CAP_BYTES - values['bytes_total']:,}"],
            *([f"seed {log.seed}, bpb", f"{log.score.bpb:.6f}"] for log in logs),
            [f"mean bpb, {values['metric']}", f"{values['val_bpb']:.6f}"],
        ],
    )
    note(f"wrote {output}{os.sep}; check it with: gptpack submission check {output}")


@command.command("check", short_help="Hold a submission to the contest's rules.")
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--data", type=PATH, help="Folder of validation shards: run the script as well.")
@click.option("--tokenizer", type=PATH, help="SentencePiece model. [default: that in --data]")
@click.option("--tokens", default=0, help="Score the first so many targets; 0: all, as the log.")
@click.option("--tolerance", default=0.001, show_default=True, help="Bits per byte off the log.")
@click.option(
    "--record-loss",
    "record",
    type=float,
    multiple=True,
    help="Loss in nats per token that is to be beaten; repeat it for a record's several runs.",
)
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the outcomes as JSON.")
def check(
    folder: Path,
    data: Path | None,
    tokenizer: Path | None,
    tokens: int,
    tolerance: float,
    record: tuple[float, ...],
    device: str,
    as_json: bool,
) -> None:
    """Hold the submission DIR to the contest's rules, a PASS, FAIL or SKIP line for each.

    The cap is 16,000,000 bytes over the files that ship. Without --data nothing is run; with it
    the script is run with every connection refused, its figure is compared with the log's, and it
    is tried whether scores depend on tokens after them. The script is a program: give --data for a
    folder that you would run. The exit status is 1 if a rule fails.

    \b
    Examples:
      gptpack submission check submission
      gptpack submission check submission --data shards/ --record-loss 1.8912
    """
    from gptpack.contest.rules import check_folder, read_folder

    read = read_folder(folder)
    proved = None if data is None else _prove(folder, data, tokenizer, tokens, tolerance, device)
    outcomes = check_folder(read, record=record, proved=proved)
    failed = [outcome.rule for outcome in outcomes if outcome.state == "fail"]
    if as_json:
        print_json({"passed": not failed, "outcomes": [asdict(outcome) for outcome in outcomes]})
    else:
        width = max(len(outcome.rule) for outcome in outcomes)
        for outcome in outcomes:
            state = outcome.state.upper()
            click.echo(f"{state}  {outcome.rule:<{width}}  {plain(outcome.text)}")
    if failed:
        raise LimitError(f"{folder}: {len(failed)} rules fail: {', '.join(failed)}")


def _prove(
    folder: Path, data: Path, tokenizer: Path | None, tokens: int, tolerance: float, device: str
) -> Any:
    """Run the script as it ships, and on changed text."""
    import json

    from gptpack.contest.rules import Proved

    options: list[object] = ["--device", device, "--tokenizer", tokenizer_of(data, tokenizer)]
    script = folder.resolve() / SCRIPT
    with tempfile.TemporaryDirectory(prefix="gptpack-") as temporary:
        output = Path(temporary) / "figures.json"
        limit = ["--limit-tokens", tokens] if tokens else []
        note(f"running {script.name} ...")
        try:
            run_script(script, *options, "--data", data.resolve(), "--json", output, *limit)
            scores = json.loads(output.read_text(encoding="utf-8"))["scores"]
            note(f"running {script.name} on changed text ...")
            later = depends_on_later_tokens(folder.resolve(), options, data)
        except GptpackError as error:
            return Proved(error=str(error))
    score = scores.get("sliding") or scores["plain"]
    return Proved(
        bpb=None if tokens else float(score["bpb"]), tolerance=tolerance, later_tokens=later
    )
