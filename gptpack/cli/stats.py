"""`gptpack stats`: runs and a threshold -> a t-test, as a table or JSON."""

from dataclasses import asdict, replace
from typing import Any

import click

from gptpack.cli.console import note, print_json, print_table, say
from gptpack.cli.help import Choice, Command, heading
from gptpack.cli.options import POSITIVE, Finite
from gptpack.errors import ConfigError, LimitError
from gptpack.runs.samples import RunFigure, in_nats, read_nearest, read_runs, threshold_below
from gptpack.runs.significance import FIXED_MARGIN, FixedSigma, Verdict, fixed_sigma, judge


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@click.argument("runs", nargs=-1, required=True)
@heading("What must hold")
@click.option("--below", type=float, help="The mean has to be below this.")
@click.option("--beats", type=float, help="The mean has to be below this by the margin --by.")
@click.option("--by", "margin", type=Finite(min=0), default=0.0, help="The margin.")
@click.option(
    "--unit",
    type=Choice(["same", "bpb", "nats"]),
    default="same",
    help="Unit of the margin; nats are turned into bits per byte where those are compared.",
)
@heading("What is compared")
@click.option(
    "--metric",
    show_default="bpb, or nats per token where the threshold is nearer to those",
    help="Figure to compare: bpb, nats, seconds, or a path (plain.bpb).",
)
@click.option(
    "--tokens-per-byte",
    type=POSITIVE,
    help="Tokens per byte of the text, for plain lists and --unit nats.",
)
@heading("The test")
@click.option("--alpha", type=float, default=0.01, help="Level of the test.")
@click.option("--power", type=float, default=0.8, help="Power that more runs should reach.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document.")
def command(
    runs: tuple[str, ...],
    below: float | None,
    beats: float | None,
    margin: float,
    unit: str,
    metric: str | None,
    tokens_per_byte: float | None,
    alpha: float,
    power: float,
    as_json: bool,
) -> None:
    """Test whether the mean of RUNS is below a threshold: a one-sided one-sample t-test.

    \b
    Examples:
      gptpack stats runs/*.json --below 3.28
      gptpack stats runs/*.json --beats 1.2161 --by 0.005 --unit nats
      gptpack stats 1.20143417 1.19945102 1.20319508 --below 1.21113611
      gptpack stats logs/*.txt --metric seconds --below 180 --alpha 0.05

    RUNS are results of `gptpack eval --json` or `train --json`, logs in the style of parameter-golf
    or modded-nanogpt, files with a list of numbers, or numbers. Works for losses and for times.
    Ends with status 1 if the difference may be chance. Losses in nats are judged by the speedruns'
    rule as well, which takes their deviation as known; the status is the t-test's.
    """
    if (below is None) == (beats is None):
        raise ConfigError("give a threshold: either --below, or --beats and --by")
    if below is not None and (margin or unit != "same"):
        raise ConfigError("--by and --unit are a margin's; give --beats in place of --below")
    aim = below if beats is None else beats
    assert aim is not None
    figures = read_runs(runs, metric) if metric else []
    if metric is None:
        metric, figures = read_nearest(runs, aim)
        if metric != "bpb":
            note(f"compared by {metric}; --metric chooses another figure")
    if tokens_per_byte is not None:
        figures = [replace(figure, tokens_per_byte=tokens_per_byte) for figure in figures]
    threshold = threshold_below(aim, margin, unit=unit, metric=metric, runs=figures)
    losses = [run.value for run in figures]
    verdict = judge(losses, threshold, alpha=alpha, power=power)
    known = fixed_sigma(losses, threshold) if in_nats(metric) else None
    if as_json:
        values = [{"run": run.name, "value": run.value} for run in figures]
        rule = {"fixed_sigma": known and asdict(known)}
        print_json({"metric": metric, **verdict.to_dict(), **rule, "values": values})
    else:
        _print(figures, verdict, known)
    if not verdict.significant:
        raise LimitError(
            f"a mean of {verdict.mean:.6g} is not below {threshold:.8g} beyond chance: "
            f"p = {verdict.p:.4g}, level {alpha:g}"
        )


def _print(figures: list[RunFigure], verdict: Verdict, known: FixedSigma | None) -> None:
    print_table(["run", "value"], [[run.name, f"{run.value:.8g}"] for run in figures])
    say()
    rows: list[tuple[str, Any]] = [
        ("runs", verdict.runs),
        ("mean", f"{verdict.mean:.8g}"),
        ("standard deviation of a run", f"{verdict.sd:.4g}"),
        ("lowest and highest", f"{verdict.lowest:.8g} {verdict.highest:.8g}"),
        ("threshold", f"{verdict.threshold:.8g}"),
        ("t", f"{verdict.t:.3f}"),
        ("degrees of freedom", verdict.df),
        ("p, one-sided", f"{verdict.p:.4g}"),
        (f"significant at {verdict.alpha:g}", "yes" if verdict.significant else "no"),
        ("power of so many runs", f"{verdict.power:.3f}"),
        (f"more runs for a power of {verdict.wanted_power:g}", _more(verdict.more_runs)),
    ]
    if known is not None:
        rows += [
            ("(threshold - mean) sqrt(runs), nats", f"{known.margin:.6f}"),
            (f"which is {FIXED_MARGIN} or more", "yes" if known.holds else "no"),
            ("more runs for that, at this mean", _more(known.more_runs)),
        ]
    print_table(["one-sided t-test", ""], [[name, str(value)] for name, value in rows])


def _more(runs: int | None) -> str:
    return "no number would do" if runs is None else str(runs)
