"""The report as one HTML page that fetches nothing: text, tables, figures, and what draws them.

plotly.js stands in the page deflated (2.0 MB in place of 4.8) and is unpacked by the browser. Every
figure has its numbers in a table, which is all there is to see without JavaScript.
"""

import base64
import gzip
import json
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
from gptpack.runs.gather import Packed, Source
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
.plot { width: 100%; } summary { cursor: pointer; padding: 4px 0; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media print { details { display: none; } }
"""

SCRIPT = """
(async () => {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent),
    (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const colours = (layout) => {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(name).trim();
    const found = { "font.color": value("--ink"), "font.size": 13 };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
      for (const key of ["gridcolor", "zerolinecolor"]) found[axis + "." + key] = value("--grid");
      found[axis + ".linecolor"] = value("--line");
    }
    return found;
  };
  const settings = { responsive: true, displayModeBar: false, displaylogo: false };
  for (const { id, data, layout } of figures) {
    await Plotly.newPlot(id, data, layout, settings);
    await Plotly.relayout(id, colours(layout));
  }
  const repaint = () => figures.forEach(({ id, layout }) => Plotly.relayout(id, colours(layout)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  document.documentElement.dataset.drawn = figures.length;
})().catch((error) => {
  document.documentElement.dataset.failed = String(error);
  document.getElementById("problem").hidden = false;
});
"""


def render(
    sources: Sequence[Source], errors: Sequence[Sequence[TensorError]], *, title: str = ""
) -> str:
    """The page.

    Args:
        sources: from `gptpack.runs.gather.gather`.
        errors: for each packed file of all sources, in order, its errors against its checkpoint;
            empty where there is none.
        title: of the page; the sources' names by default.

    Raises:
        MissingDependencyError: plotly is not installed.
    """
    graph_objects()
    packed = [file for source in sources for file in source.packed]
    title = title or ", ".join(source.name for source in sources)
    shared = [
        ("rate", "Size and score", [rate_distortion(sources)]),
        (
            "training",
            "Training",
            [_loss(sources), _predicted(sources), _packing_step(sources), _rate(sources)],
        ),
        ("ledgers", "Ledgers", [bytes_ledger(packed), seconds_ledger(sources)]),
    ]
    drawn: list[Figure] = []
    sections = []
    if packed:
        files = "".join(
            _file(file, found, number, drawn)
            for number, (file, found) in enumerate(zip(packed, errors, strict=True))
        )
        sections.append(("files", "Files", f'<div class="side">{files}</div>'))
    for key, heading, figures in shared:
        present = [figure for figure in figures if figure is not None]
        if present:
            drawn += present
            body = "".join(map(_figure, present))
            sections.append((key, heading, f'<div class="side">{body}</div>'))
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
</head>
<body>
<header>
<h1>{escape(plain(title))}</h1>
<p class="soft">Report of gptpack {VERSION}. The page is complete in itself and fetches nothing.</p>
<nav aria-label="Sections">{contents}</nav>
</header>
<main>
<noscript><p>Figures need JavaScript; their numbers are in the tables below them.</p></noscript>
<p id="problem" role="alert" hidden>The figures could not be drawn; this browser may be too old.
Their numbers are in the tables below them.</p>
{_summary(packed)}
{body}
</main>
<script type="application/json" id="figures">{_data(drawn)}</script>
<script type="application/gzip;base64" id="plotly">{_plotly()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _plotly() -> str:
    """plotly.js, deflated and in base64."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode("ascii")


def _data(figures: Sequence[Figure]) -> str:
    """What the script draws, as JSON that ends no element."""
    values = [{"id": figure.id, **figure.plot} for figure in figures]
    return json.dumps(values, allow_nan=False).replace("<", "\\u003c")


def _loss(sources: Sequence[Source]) -> Figure | None:
    return curve_of_runs(
        sources, "loss_nats", id="loss", title="Training loss", axis="nats per token"
    )


def _predicted(sources: Sequence[Source]) -> Figure | None:
    return curve_of_runs(
        sources,
        "predicted_bytes",
        id="predicted-bytes",
        title="Bytes that the packed file was expected to have",
        axis="bytes",
    )


def _packing_step(sources: Sequence[Source]) -> Figure | None:
    return curve_of_runs(
        sources,
        "packing_step",
        id="packing-step",
        title="Step at which the packed file would have the target's bytes",
        axis="delta",
    )


def _rate(sources: Sequence[Source]) -> Figure | None:
    return curve_of_runs(
        sources,
        "lr_multiplier",
        id="learning-rate",
        title="Learning rate",
        axis="multiplier of the recipe's rates",
    )


def _file(packed: Packed, errors: Sequence[TensorError], number: int, drawn: list[Figure]) -> str:
    """The figures of one file; they are added to `drawn`."""
    figures = [treemap(packed, number), bits_per_parameter(packed, number)]
    if (error := errors_by_layer(packed, errors, number)) is not None:
        figures.append(error)
    drawn += figures
    missing = "" if error else '<p class="soft">No checkpoint beside the file: no errors.</p>'
    inside = "".join(map(_figure, figures))
    return f"<article><h3>{escape(plain(packed.name))}</h3>{inside}{missing}</article>"


def _figure(figure: Figure) -> str:
    """A figure, its explanation and its numbers."""
    title = escape(figure.title)
    return (
        f'<figure aria-labelledby="{figure.id}-title"><figcaption>'
        f'<h3 id="{figure.id}-title">{title}</h3><p>{escape(figure.note)}</p></figcaption>'
        f'<div class="plot" id="{figure.id}" role="img" aria-label="{title}; numbers below"></div>'
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


def _summary(packed: Sequence[Packed]) -> str:
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
    row("penalty, bpb", [_penalty(file) for file in packed])
    row("sliding bpb", [_score(file.sliding_bpb) for file in packed])
    row("scored tokens", [_count(file.quality.get("tokens")) for file in packed])
    row("method", [plain(r.pack.get("method", ""), 60) for r in reports])
    shapes = [(r.model["layers"], r.model["width"], r.model["vocab"]) for r in reports]
    row("layers, width, vocabulary", [" / ".join(f"{n:,}" for n in shape) for shape in shapes])
    row("weights sha256", [f"{r.weights_sha256[:16]}..." for r in reports])
    columns = ["", *(plain(file.name, 40) for file in packed)]
    return f'<section id="summary"><h2>Summary</h2>{_table(columns, rows)}</section>'


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _penalty(packed: Packed) -> str:
    quality = packed.quality
    if "bpb_before" not in quality or "bpb_after" not in quality:
        return ""
    return f"{quality['bpb_after'] - quality['bpb_before']:+.5f}"
