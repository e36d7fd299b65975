"""`gptpack report`: one page that says what the files say, seen in a real browser."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, browser, find_browser
from strategies import MODEL, TOKENIZER, write_artifact
from test_cli_eval import World, world  # noqa: F401

from gptpack.cli import main
from gptpack.errors import ConfigError, DataError
from gptpack.inputs import file_sha256
from gptpack.inspection.inspect import inspect
from gptpack.quant.int8 import keep_float, quantize_int8_rows
from gptpack.quant.types import PackedTensor
from gptpack.runs import figures
from gptpack.runs.figures_runs import rate_distortion, seconds_ledger, thinned
from gptpack.runs.gather import gather, read_curve
from gptpack.runs.page import render
from gptpack.training.checkpoint import Checkpoint, save_checkpoint

MATRIX = np.ones((8, 8), np.float32)
STEPS = 3100
"""More than the points of a curve, so that steps are averaged."""


def make_run(folder: Path, world: World, offset: float) -> Path:  # noqa: F811
    """A run's folder with everything that a report looks at."""
    folder.mkdir()
    state = world.model.state_dict()
    save_checkpoint(folder / "checkpoint.pt", Checkpoint(model=world.config, weights=state))
    lines = [
        {
            "step": i,
            "loss_nats": 6 - i / 1000 + offset,
            "lr_multiplier": 1.0,
            "seconds": i / 10,
            "predicted_bytes": 50_000.0,
            "packing_delta": 1e-3,
        }
        for i in range(1, STEPS + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for number, codec in enumerate(("range", "zlib")):
        tensors = [
            quantize_int8_rows(name, tensor.numpy())
            if tensor.ndim == 2
            else keep_float(name, tensor.numpy(), "float32")
            for name, tensor in state.items()
        ]
        quality = {"bpb_before": 2.0, "bpb_after": 2.1 + number / 10, "tokens": 96, "context": 32}
        path = folder / f"{codec}.gptpack"
        write_artifact(
            path,
            model=world.config,
            tokenizer=world.tokenizer.identity,
            tensors=tensors,
            pack={
                "budget_bytes": 50_000,
                "method": "int8",
                "checkpoint_sha256": file_sha256(folder / "checkpoint.pt"),
                "quality": quality,
            },
            codecs=[codec],
        )
        proof = {
            "file": {"weights_sha256": inspect(path).weights_sha256},
            "seconds": {"plain": 3.0},
            "sliding": {"bpb": 2.05},
        }
        report = {
            "sha256": file_sha256(path),
            "seconds": {"calibrate": 1.5, "pack": 2.5, "prove": 4.0},
            "after": proof,
        }
        if codec == "zlib":
            (folder / "eval.json").write_text(json.dumps({**proof, "seconds": {"plain": 0.5}}))
        (folder / f"pack-{codec}.json").write_text(json.dumps(report))
    (folder / "curve.csv").write_text("bytes,predicted_bpb,measured_bpb\n9000,2.3,2.31\n99,3,\n")
    return folder


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:  # noqa: F811
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / name, world, offset) for name, offset in (("a", 0.0), ("b", 0.5))]


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("page") / "report.html"
    main.group.main(["report", *map(str, runs), "-o", str(output)], standalone_mode=False)
    return output


class Elements(HTMLParser):
    """Tags with attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_names_no_other_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for tag, attributes in Elements(text).tags:
        assert tag not in ("iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "data"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:,")) or not value, (tag, attributes)
    style = re.search("<style>(.*?)</style>", text, re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert len(text) < 6_000_000


def test_every_figure_has_its_numbers_in_a_table(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    drawn = re.findall('<div id="([a-z0-9-]+)" class="plotly-graph-div"', text)
    assert drawn == [
        *(f"{kind}-{number}" for number in range(4) for kind in ("treemap", "bits", "error")),
        *(
            "rate-distortion",
            "loss",
            "predicted-bytes",
            "packing-step",
            "learning-rate",
            "ledger-bytes",
            "ledger-seconds",
        ),
    ]
    for name in drawn:
        start = text.index(f'<figure aria-labelledby="{name}-title">')
        assert 'role="img" aria-label=' in text[start : text.index(f'<div id="{name}"')]
        assert "<table>" in text[start : text.index("</figure>", start)]


def test_the_treemap_adds_up_to_the_file(runs: list[Path]) -> None:
    (file, _) = gather(runs)[0].packed
    (trace,) = figures.treemap(file, 0).plot["data"]
    values = dict(zip(trace["ids"], trace["values"], strict=True))
    children: dict[str, int] = {}
    for parent, value in zip(trace["parents"], trace["values"], strict=True):
        children[parent] = children.get(parent, 0) + value
    assert children.pop("") == file.report.file_bytes
    for parent, total in children.items():
        assert values[parent] == total, parent
    assert len(trace["ids"]) == len(set(trace["ids"]))


def test_errors_are_measured_against_the_checkpoint_beside_the_file(
    runs: list[Path], tmp_path: Path, page: Path, capsys: Any
) -> None:
    assert "measured against the checkpoint" in page.read_text(encoding="utf-8")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(runs[0] / "range.gptpack", alone)
    main.run(["report", str(alone), "-o", str(tmp_path / "r.html")])
    assert "No checkpoint with these matrices beside the file" in (tmp_path / "r.html").read_text(
        encoding="utf-8"
    )
    save_checkpoint(
        alone / "checkpoint.pt",
        Checkpoint(model=MODEL, weights={}),
    )
    main.run(["report", str(alone), "-o", str(tmp_path / "r.html")])
    assert "no errors shown" in capsys.readouterr().err


def test_a_recorded_loss_is_shown_where_nothing_was_measured(tmp_path: Path) -> None:
    codes = {"codes": np.ones((8, 8), np.int8), "scales": np.ones(8, "<f2")}
    tensors = [
        PackedTensor(
            name=f"blocks.{layer}.fc.weight",
            shape=(8, 8),
            method="int8",
            arrays=codes,
            record={"loss_nats": loss},
        )
        for layer, loss in enumerate((0.25, "much"))
    ]
    write_artifact(
        tmp_path / "m.gptpack", model=MODEL, tokenizer=TOKENIZER, tensors=tensors, pack={}
    )
    (file,) = gather([tmp_path / "m.gptpack"])[0].packed
    found = figures.errors_by_layer(file, [], 0)
    assert found is not None
    assert found.rows == [["blocks.0.fc.weight", "0", "0.25"]]


def test_curves_and_files_share_the_figure_of_sizes(runs: list[Path]) -> None:
    found = rate_distortion(gather(runs[:1]))
    assert found is not None
    kinds = [row[1] for row in found.rows]
    assert kinds.count("recorded") == 2
    assert kinds.count("predicted") == 2
    assert kinds.count("measured") == 1
    # both files are of one checkpoint, so that they are one line of two stars
    stars = [t for t in found.plot["data"] if t.get("marker", {}).get("symbol") == "star"]
    assert [len(trace["x"]) for trace in stars] == [2]


def test_the_axis_of_one_size_spans_a_tenth_to_either_side(
    runs: list[Path], tmp_path: Path
) -> None:
    def axis(source: Path) -> dict[str, Any]:
        found = rate_distortion(gather([source]))
        assert found is not None
        return found.plot["layout"]["xaxis"]

    path = runs[0] / "range.gptpack"
    size = path.stat().st_size
    assert axis(path)["range"] == pytest.approx([0.9 * size, 1.1 * size])
    (tmp_path / "curve.csv").write_text("bytes,bpb_measured\n1000,2.0\n2000,1.5\n")
    assert "range" not in axis(tmp_path / "curve.csv")


def test_seconds_are_of_training_and_of_the_reports_beside_the_files(runs: list[Path]) -> None:
    found = seconds_ledger(gather(runs[:1]))
    assert found is not None
    assert found.columns == ["part", "a", "a/range.gptpack", "a/zlib.gptpack"]
    rows = {row[0]: row[1:] for row in found.rows}
    assert rows["train"] == ["310.00", "", ""]
    assert rows["calibrate"] == ["", "1.50", "1.50"]
    # A proof's own phases are part of "prove"; those of an evaluation beside it count. Both files
    # have the same weights, so that it is of both.
    assert rows["eval plain"] == ["", "0.50", "0.50"]
    assert rows["sum"] == ["310.00", "8.50", "8.50"]
    assert {file.sliding_bpb for file in gather(runs[:1])[0].packed} == {2.05}


def test_long_curves_are_means_of_equal_numbers_of_steps() -> None:
    entries = [{"step": i, "x": float(i)} for i in range(1, 11)]
    assert thinned(entries, "x", most=4) == ([3, 6, 9, 10], [2.0, 5.0, 8.0, 10.0], 3)
    assert thinned(entries, "x", most=10) == ([*range(1, 11)], [*map(float, range(1, 11))], 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no rows"),
        ("size,score\n1,2\n", "has size, score"),
        ("bytes,bpb\nmany,2\n", "no number"),
        ("bytes,bpb\n1,nan\n", "not finite"),
        ("bytes,bpb\n100,\n", "each row needs bytes and a score"),
        ("bytes,predicted\n,1.2\n", "each row needs bytes and a score"),
    ],
)
def test_a_curve_that_is_none_is_an_error(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read_curve(tmp_path / "c.csv", "c")
    assert words in str(caught.value)


@pytest.mark.parametrize("loss", ["NaN", "1e999", "9" * 400, "9" * 5000, "[" * 100_000, '"x"'])
def test_metrics_that_are_no_numbers_are_an_error(tmp_path: Path, loss: str) -> None:
    lines = [f'{{"step": 1, "loss_nats": {loss}}}', '{"step": 2, "loss_nats": 2.0}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 1 is not"):
        gather([tmp_path])


def test_reports_beside_a_run_with_figures_beyond_floats_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss_nats": 2.0}')
    report = f'{{"steps": 1, "seconds": {"9" * 400}, "compile_seconds": 1e999}}'
    (tmp_path / "train.json").write_text(report)
    assert gather([tmp_path])[0].seconds == {}


def test_sources_are_told_apart_by_their_names(runs: list[Path], tmp_path: Path) -> None:
    for folder in ("x/run", "y/run"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(runs[0] / "range.gptpack", tmp_path / folder)
    sources = gather([tmp_path / "x/run", tmp_path / "y/run"])
    assert [source.name for source in sources] == ["x/run", "y/run"]
    with pytest.raises(ConfigError, match="given twice"):
        gather([runs[0], runs[0]])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no \*\.gptpack"):
        gather([tmp_path / "empty"])
    with pytest.raises(ConfigError, match="No such file"):
        gather([tmp_path / "nosuch"])


def test_names_in_a_file_write_nothing_into_the_page(tmp_path: Path) -> None:
    bad = "</script><img src=x onerror=alert(1)><b>"
    tensors = [keep_float(f"{bad}.0.{i}", MATRIX, "float32") for i in range(2)]
    write_artifact(
        tmp_path / "m.gptpack",
        model=MODEL,
        tokenizer=TOKENIZER,
        tensors=tensors,
        pack={"method": bad, "quality": {"bpb_after": 1.0}},
        codecs="zlib",
    )
    sources = gather([tmp_path / "m.gptpack"])
    text = render(sources, [[]], title=bad)
    assert not [tag for tag, _ in Elements(text).tags if tag in ("img", "b")]
    assert bad not in text


def test_without_plotly_the_status_is_4(runs: list[Path], monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(SystemExit) as stopped:
        main.run(["report", str(runs[0])])
    assert stopped.value.code == 4
    assert "gptpack[report]" in capsys.readouterr().err


needs_browser = pytest.mark.skipif(
    find_browser() is None, reason="needs Chromium; apt-get install chromium"
)
DRAWN = """document.readyState === 'complete' &&
    [...document.querySelectorAll('.plotly-graph-div')].filter((plot) => {
        const svg = plot.querySelector('.main-svg');
        return svg && svg.getBoundingClientRect().right <= innerWidth;
    }).length"""
"""How many figures are drawn, in the width that the complete page gives them."""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_is_readable_in_a_browser_and_fetches_nothing(
    chromium: Browser, page: Path, width: int, dark: bool
) -> None:
    chromium.open(page.as_uri(), width=width, height=844, dark=dark)
    chromium.wait(f"({DRAWN}) === 19")
    assert chromium.requests() == [page.as_uri()]
    assert chromium.complaints() == []
    drawn = chromium.evaluate(
        "[...document.querySelectorAll('.plotly-graph-div')].map((p) => p.id)"
    )
    for name in drawn:
        mark = (
            ".treemaplayer path.surface"
            if name.startswith("treemap")
            else ".cartesianlayer .trace path"
        )
        count = chromium.evaluate(f"document.querySelectorAll('#{name} {mark}').length")
        assert count, name
    # Two runs: two lines in each curve of training, two bars of training in the ledger.
    assert chromium.evaluate("document.querySelectorAll('#loss .scatterlayer .trace').length") == 2
    # Nothing is cut off at the side, and no text is too small to read.
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    outside = """[...document.querySelectorAll('.plot')].filter((plot) => {
        const box = plot.getBoundingClientRect(); return box.left < 0 || box.right > innerWidth;
    }).length"""
    assert chromium.evaluate(outside) == 0
    small = """[...document.querySelectorAll('body *')].filter((element) => {
        const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        const style = getComputedStyle(element);
        return own && element.getClientRects().length && !['SCRIPT', 'STYLE'].includes(
            element.tagName) && parseFloat(style.fontSize) < 10;
    }).map((element) => element.outerHTML).slice(0, 3)"""
    assert chromium.evaluate(small) == []
    assert contrast(chromium, "document.querySelector('#loss .xtick text')", "fill") > 7
    assert contrast(chromium, "document.querySelector('figcaption p')", "color") > 4.5
    lightness = luminance(chromium.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (lightness < 0.1) == dark
    # The numbers open without a mouse, and scroll in a box of their own.
    chromium.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.evaluate("document.querySelector('details table').rows.length") > 5


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``, by WCAG."""
    parts = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page: Browser, element: str, name: str) -> float:
    """Contrast of an element's colour with the page's background, by WCAG: 1 to 21."""
    style = f"getComputedStyle({element})[{name!r}]"
    colours = page.evaluate(f"[{style}, getComputedStyle(document.body).backgroundColor]")
    first, second = sorted(map(luminance, colours))
    return (second + 0.05) / (first + 0.05)


@needs_browser
def test_a_part_of_the_treemap_opens_when_it_is_clicked(chromium: Browser, page: Path) -> None:
    chromium.open(page.as_uri(), width=1280, height=900)
    chromium.wait(f"({DRAWN}) === 19")
    shown = "document.querySelectorAll('#treemap-0 .treemaplayer .slice').length"
    before = chromium.evaluate(shown)
    chromium.evaluate("document.querySelector('#treemap-0').scrollIntoView()")
    box = chromium.evaluate(
        """(() => { const slices = [...document.querySelectorAll('#treemap-0 .slice')];
        const found = slices.find((s) => s.textContent.startsWith('blocks')) || slices[1];
        const box = found.getBoundingClientRect(); return [box.left + 12, box.top + 8]; })()"""
    )
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        options = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
        chromium.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], **options)
    assert chromium.wait(f"{shown} !== {before}")
