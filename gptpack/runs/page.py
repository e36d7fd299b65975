"""Sources of a report -> one HTML page that fetches nothing: text, tables, figures, and plotly.js.

Every figure has its numbers in a table, which is all there is to see without JavaScript. Colours of
text and grid come from the page's style, which knows whether the page is dark.
"""

from collections.abc import Sequence
from html import escape

from gptpack.escape import plain
from gptpack.inspection.compare import TensorError
from gptpack.runs.figures import (
    Figure,
    Rows,
    bits_per_parameter,
    errors_by_layer,
    graph_objects,
    treemap,
)
from gptpack.runs.figures_runs import (
    bytes_ledger,
    curve_of_runs,
    rate_distortion,
    seconds_ledger,
)
from gptpack.runs.gather import PackedFile, Source
from gptpack.version import VERSION

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #ffffff;
  --line: #d0d7de; --grid: #e4e8ec; --panel: #f6f8fa; --link: #0550ae; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9da7b1; --paper: #0d1117; --line: #3d444d; --grid: #262c34;
    --panel: #161b22; --link: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1600px; padding: 16px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 4px; } h2 { font-size: 1.25rem; margin: 32px 0 8px; }
h3 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
p { margin: 4px 0 12px; max-width: 75ch; } .soft, figcaption p { color: var(--soft); }
a { color: var(--link); } nav a { margin-right: 16px; white-space: nowrap; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; vertical-align: top; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom-width: 2px; }
tbody th { position: sticky; left: 0; background: var(--paper); font-weight: normal; }
.side { display: grid; gap: 24px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); }
.side > *, figure { min-width: 0; } figure { margin: 0 0 24px; }
figcaption p { margin: 2px 0 6px; font-size: 0.9rem; }
.plot { width: 100%; } .gridlayer path, .zerolinelayer path { stroke: var(--grid) !important; }
.xtick text, .ytick text, .xtitle, .ytitle, .legendtext, .cbaxis text, .cbtitle text {
  fill: var(--ink) !important; } summary { cursor: pointer; padding: 4px 0; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media print { details { display: none; } }
"""

CURVES = (
    ("loss_nats", "loss", "Training loss", "nats per token"),
    ("predicted_bytes", "predicted-bytes", "Expected bytes of the packed file", "bytes"),
    ("packing_delta", "packing-step", "Delta that would give the target's bytes", "delta"),
    ("lr_multiplier", "learning-rate", "Learning rate", "multiplier of the recipe's rates"),
)
"""Key in a run's metrics, id, title and axis of each curve of training."""
SETTINGS = {"responsive": True, "displayModeBar": False, "displaylogo": False}
"""How plotly shows each figure."""


def render(
    sources: Sequence[Source], errors: Sequence[Sequence[TensorError]], *, title: str = ""
) -> str:
    """The HTML of the page.

    Args:
        sources: what `gptpack.runs.gather.gather` returns.
        errors: errors of each packed file of all sources against its checkpoint, in order; empty
            for a file without one.
        title: title of the page; the sources' names by default.

    Raises:
        MissingDependencyError: plotly is not installed.
    """
    graph_objects()
    from plotly.offline import get_plotlyjs

    packed = [file for source in sources for file in source.packed]
    title = title or ", ".join(source.name for source in sources)
    shared = [
        ("rate", "Size and score", [rate_distortion(sources)]),
        ("training", "Training", [curve_of_runs(sources, *curve) for curve in CURVES]),
        ("ledgers", "Ledgers", [bytes_ledger(packed), seconds_ledger(sources)]),
    ]
    sections = []
    if packed:
        files = "".join(
            _file(file, found, number)
            for number, (file, found) in enumerate(zip(packed, errors, strict=True))
        )
        sections.append(("files", "Files", f'<div class="side">{files}</div>'))
    for key, heading, figures in shared:
        if present := "".join(_figure(figure) for figure in figures if figure is not None):
            sections.append((key, heading, f'<div class="side">{present}</div>'))
    contents = "".join(f'<a href="#{key}">{heading}</a>' for key, heading, _ in sections)
    body = "".join(
        f'<section id="{key}"><h2>{heading}</h2>{text}</section>' for key, heading, text in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="gptpack {VERSION}">
<title>{escape(plain(title))} - gptpack report</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<header>
<h1>{escape(plain(title))}</h1>
<p class="soft">Report of gptpack {VERSION}. The page is complete in itself and fetches nothing.</p>
<nav aria-label="Sections">{contents}</nav>
</header>
<main>
<noscript><p>Figures need JavaScript; their numbers are in the tables below them.</p></noscript>
{_summary(packed)}
{body}
</main>
<script>addEventListener("load", () => dispatchEvent(new Event("resize")))</script>
</body>
</html>
"""


def _file(packed: PackedFile, errors: Sequence[TensorError], number: int) -> str:
    """The figures of one file."""
    figures = [treemap(packed, number), bits_per_parameter(packed, number)]
    if (error := errors_by_layer(packed, errors, number)) is not None:
        figures.append(error)
    missing = (
        ""
        if error
        else '<p class="soft">No checkpoint with these matrices beside the file: no errors.</p>'
    )
    inside = "".join(map(_figure, figures))
    return f"<article><h3>{escape(plain(packed.name))}</h3>{inside}{missing}</article>"


def _figure(figure: Figure) -> str:
    """A figure, its explanation and its numbers."""
    from plotly.io import to_html

    title = escape(figure.title)
    drawn = to_html(
        figure.plot, SETTINGS, include_plotlyjs=False, full_html=False, div_id=figure.id
    )
    return (
        f'<figure aria-labelledby="{figure.id}-title"><figcaption>'
        f'<h3 id="{figure.id}-title">{title}</h3><p>{escape(figure.note)}</p></figcaption>'
        f'<div class="plot" role="img" aria-label="{title}; numbers below">{drawn}</div>'
        f"<details><summary>Numbers: {title.lower()}</summary>"
        f"{_table(figure.columns, figure.rows)}</details></figure>"
    )


def _table(columns: Sequence[str], rows: Rows) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        '<div class="scroll" tabindex="0"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _summary(packed: Sequence[PackedFile]) -> str:
    """The facts of all files, side by side."""
    if not packed:
        return ""
    rows: list[list[str]] = []

    def row(name: str, cells: list[str]) -> None:
        if any(cells):
            rows.append([name, *cells])

    reports = [file.report for file in packed]
    row("file, bytes", [f"{r.file_bytes:,}" for r in reports])
    row("budget, bytes", [_count(r.budget_bytes) for r in reports])
    row("code counted, bytes", [_count(r.code_bytes or None) for r in reports])
    row("headroom, bytes", [_count(r.headroom_bytes) for r in reports])
    row("parameters", [f"{r.parameters:,}" for r in reports])
    row("bits per parameter", [f"{8 * r.file_bytes / r.parameters:.3f}" for r in reports])
    for name, key in (("bpb before packing", "bpb_before"), ("bpb of the file", "bpb_after")):
        row(name, [_score(file.quality.get(key)) for file in packed])
    row("rise, bpb", [_rise(file) for file in packed])
    row("sliding bpb", [_score(file.sliding_bpb) for file in packed])
    row("scored tokens", [_count(file.quality.get("tokens")) for file in packed])
    row("method", [plain(r.pack.get("method", ""), 60) for r in reports])
    row("model", [r.shape for r in reports])
    row("weights sha256", [f"{r.weights_sha256[:16]}..." for r in reports])
    columns = ["", *(plain(file.name, 40) for file in packed)]
    return f'<section id="summary"><h2>Summary</h2>{_table(columns, rows)}</section>'


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _rise(packed: PackedFile) -> str:
    quality = packed.quality
    if "bpb_before" not in quality or "bpb_after" not in quality:
        return ""
    return f"{quality['bpb_after'] - quality['bpb_before']:+.5f}"
