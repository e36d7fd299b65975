"""Sources -> figures of several runs and files: size against score, curves of runs, ledgers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gptpack.escape import plain
from gptpack.runs.figures import Figure, colours, graph_objects, label, made
from gptpack.runs.gather import PackedFile, Source

MOST_POINTS = 1500
"""Points of a run's curve; of more steps, equal numbers are averaged."""
MOST_IN_LEGEND = 8
"""Parts of a ledger that a legend names; more are told apart by the table and the pointer."""


def rate_distortion(sources: Sequence[Source]) -> Figure | None:
    """Size against bits per byte, of every packed file and every curve; None without any."""
    files = [p for s in sources for p in s.packed if "bpb_after" in p.quality]
    curves = [curve for source in sources for curve in source.curves]
    if not files and not curves:
        return None
    go = graph_objects()
    figure = go.Figure()
    rows: list[list[str]] = []
    colour = colours([curve.name for curve in curves] + [_origin(p) for p in files])
    for curve in curves:
        for kind, dash in (("measured", "solid"), ("predicted", "dot")):
            points = sorted((p["bytes"], p[kind]) for p in curve.points if kind in p)
            if not points:
                continue
            figure.add_scatter(
                x=[x for x, _ in points],
                y=[y for _, y in points],
                name=label(f"{curve.name}, {kind}"),
                mode="lines+markers",
                line={"color": colour[curve.name], "dash": dash},
                hovertemplate="%{x:,} bytes<br>%{y:.5f} bpb<extra></extra>",
            )
            rows += [[plain(curve.name, 80), kind, f"{x:,.0f}", f"{y:.6f}"] for x, y in points]
    for origin in dict.fromkeys(map(_origin, files)):
        alike = sorted((p for p in files if _origin(p) == origin), key=_file_bytes)
        before = alike[0].quality.get("bpb_before")
        figure.add_scatter(
            x=[_file_bytes(p) for p in alike],
            y=[p.quality["bpb_after"] for p in alike],
            customdata=[label(p.name) for p in alike],
            name=label(", ".join(p.name for p in alike[:2]) + (" ..." if len(alike) > 2 else "")),
            mode="lines+markers",
            line={"color": colour[origin]},
            marker={"symbol": "star", "size": 14},
            hovertemplate="%{customdata}<br>%{x:,} bytes<br>%{y:.5f} bpb<extra></extra>",
        )
        if before is not None:
            figure.add_hline(y=before, line={"color": colour[origin], "dash": "dash", "width": 1})
        for p in alike:
            score = f"{p.quality['bpb_after']:.6f}"
            rows.append([plain(p.name, 80), "recorded", f"{_file_bytes(p):,}", score])
            if before is not None:
                rows.append([plain(p.name, 80), "before packing", "", f"{before:.6f}"])
    sizes = [size for trace in figure.data for size in trace.x]
    plot = made(
        figure,
        height=400,
        xaxis={"title": {"text": "bytes of the file"}, "tickformat": "~s", **_span(sizes)},
        yaxis={"title": {"text": "bits per byte"}},
    )
    return Figure(
        id="rate-distortion",
        title="Size against bits per byte",
        note="A star is the size that was chosen for a file, with the figure that its packer "
        "recorded; stars of one checkpoint are joined, and a dashed line is that checkpoint before "
        "packing. Other lines are of curve files.",
        plot=plot,
        columns=["file or curve", "figure", "bytes", "bits per byte"],
        rows=rows,
    )


def _span(sizes: Sequence[float]) -> dict[str, Any]:
    """An axis of sizes that are nearly one, which would span a byte or two of its own accord."""
    least, most = min(sizes), max(sizes)
    return {"range": [0.9 * least, 1.1 * most]} if most < 1.1 * least else {}


def _file_bytes(packed: PackedFile) -> int:
    return packed.report.file_bytes


def _origin(packed: PackedFile) -> str:
    """The checkpoint that the file was made of, or the file's name where it does not say."""
    found = packed.report.pack.get("checkpoint_sha256")
    return found if isinstance(found, str) else packed.name


def thinned(
    entries: Sequence[Mapping[str, Any]], key: str, most: int = MOST_POINTS
) -> tuple[list[float], list[float], int]:
    """The curve of `key` in at most `most` points: steps, means, and how many steps each is of."""
    have = [entry for entry in entries if key in entry]
    width = max(1, -(-len(have) // most))
    groups = [have[start : start + width] for start in range(0, len(have), width)]
    steps = [float(group[-1]["step"]) for group in groups]
    return steps, [sum(entry[key] for entry in group) / len(group) for group in groups], width


def curve_of_runs(
    sources: Sequence[Source], key: str, id: str, title: str, axis: str
) -> Figure | None:
    """The metric `key` over the steps, a line for each run; None where no run has it."""
    runs = [source for source in sources if any(key in entry for entry in source.metrics)]
    if not runs:
        return None
    go = graph_objects()
    figure = go.Figure()
    colour = colours(run.name for run in runs)
    rows = []
    widest = 1
    for run in runs:
        steps, values, width = thinned(run.metrics, key)
        widest = max(widest, width)
        figure.add_scatter(
            x=steps,
            y=values,
            name=label(run.name),
            mode="lines",
            line={"color": colour[run.name], "width": 2},
            hovertemplate="step %{x:,}<br>%{y:.5g}<extra></extra>",
            showlegend=True,
        )
        picked = sorted({round(i * (len(steps) - 1) / 19) for i in range(20)})
        rows += [[plain(run.name, 80), f"{steps[i]:,.0f}", f"{values[i]:.6g}"] for i in picked]
    plot = made(
        figure,
        height=340,
        xaxis={"title": {"text": "step"}, "rangemode": "tozero"},
        yaxis={"title": {"text": axis}},
    )
    averaged = f" Each point is the mean of {widest} steps." if widest > 1 else ""
    return Figure(
        id=id,
        title=title,
        note=f"By step of training.{averaged} The table has twenty of the points.",
        plot=plot,
        columns=["run", "step", axis],
        rows=rows,
    )


def bytes_ledger(packed: Sequence[PackedFile]) -> Figure | None:
    """Bytes of each file by group of tensors, header included; None without files."""
    if not packed:
        return None
    parts = {
        p.name: {
            "(header)": p.report.header_bytes,
            **_summed((g.name, g.stored_bytes) for g in p.report.groups),
        }
        for p in packed
    }
    totals = _summed((group, size) for sizes in parts.values() for group, size in sizes.items())
    return _bars(
        parts,
        sorted(totals, key=lambda group: -totals[group]),
        id="ledger-bytes",
        title="Ledger of bytes",
        note="Each file by group of tensors, layers together; the parts add up to the file.",
        axis="bytes",
        form=lambda value: f"{value:,.0f}",
    )


def seconds_ledger(sources: Sequence[Source]) -> Figure | None:
    """Seconds of training, packing and evaluation by phase; None where nothing says any."""
    parts: dict[str, dict[str, float]] = {}
    for source in sources:
        training = dict(source.seconds)
        if source.metrics and "train" not in training:
            training["train"] = float(source.metrics[-1].get("seconds", 0.0))
        if training:
            parts[source.name] = training
        for packed in source.packed:
            if packed.seconds:
                parts[packed.name] = dict(packed.seconds)
    if not parts:
        return None
    return _bars(
        parts,
        list(dict.fromkeys(phase for seconds in parts.values() for phase in seconds)),
        id="ledger-seconds",
        title="Ledger of seconds",
        note="Wall-clock time by phase: of training by the run's metrics, of packing and "
        "evaluation by the reports (--json) that lie beside the file.",
        axis="seconds",
        form=lambda value: f"{value:,.2f}",
    )


def _summed(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, value in pairs:
        sums[name] = sums.get(name, 0) + value
    return sums


def _bars(
    parts: Mapping[str, Mapping[str, float]],
    order: Sequence[str],
    *,
    id: str,
    title: str,
    note: str,
    axis: str,
    form: Callable[[float], str],
) -> Figure:
    """A bar for each file or run, stacked by part; in the table, a column for each."""
    go = graph_objects()
    figure = go.Figure()
    colour = colours(order)
    for part in order:
        figure.add_bar(
            x=[sizes.get(part, 0) for sizes in parts.values()],
            y=[label(name, 24) for name in parts],
            name=label(part, 32),
            orientation="h",
            marker={"color": colour[part], "line": {"width": 0.5, "color": "#fff"}},
            hovertemplate=label(part) + "<br>%{x:,} " + axis + "<extra></extra>",
            showlegend=len(order) <= MOST_IN_LEGEND,
        )
    plot = made(
        figure,
        height=130 + 46 * len(parts),
        barmode="stack",
        xaxis={"title": {"text": axis}, "tickformat": "~s"},
        yaxis={"automargin": True, "autorange": "reversed"},
    )
    rows = [
        [plain(part, 80), *(form(s[part]) if part in s else "" for s in parts.values())]
        for part in order
    ]
    rows.append(["sum", *(form(sum(sizes.values())) for sizes in parts.values())])
    return Figure(
        id=id,
        title=title,
        note=note,
        plot=plot,
        columns=["part", *(plain(name, 40) for name in parts)],
        rows=rows,
    )
