"""A packed file -> its figures, each with its numbers. plotly draws them, an optional package.

Colours are those of Okabe and Ito, and then of Tol, which people with any colour vision tell apart;
those of text and grid are left to the page, which knows whether it is dark.
"""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptpack.errors import MissingDependencyError
from gptpack.escape import plain
from gptpack.inspection.compare import TensorError
from gptpack.inspection.inspect import TensorReport
from gptpack.runs.gather import PackedFile

# fmt: off
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#7F7F7F",
           "#882255", "#44AA99", "#DDCC77", "#6A5ACD")
# fmt: on
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x")
LEAST_SIDE = 8
"""Rows and columns from which a tensor counts as a matrix."""
MARGIN = {"l": 62, "r": 12, "t": 12, "b": 48}

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A picture and its numbers."""

    id: str
    title: str
    note: str
    """What the picture shows, in a sentence or two."""
    plot: Mapping[str, Any]
    """The picture as plotly.js takes it: ``data`` and ``layout``."""
    columns: Sequence[str]
    rows: Rows


def graph_objects() -> Any:
    """plotly's module of figures.

    Raises:
        MissingDependencyError: plotly is not installed.
    """
    try:
        from plotly import graph_objects as module
    except ImportError as error:
        raise MissingDependencyError(
            "a report needs plotly, which is not installed; pip install 'gptpack[report]'"
        ) from error
    return module


def label(text: str, longest: int = 60) -> str:
    """`text` as a label, in which plotly would read some HTML."""
    return html.escape(plain(text, longest))


def made(figure: Any, *, height: int, **layout: Any) -> dict[str, Any]:
    """`figure` as plain values, with the layout that all figures share."""
    legend = {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0}
    figure.update_layout(height=height, margin=MARGIN, legend=legend, template="none", **layout)
    clear = "rgba(0,0,0,0)"
    figure.update_layout(paper_bgcolor=clear, plot_bgcolor=clear, font={"size": 13})
    values: dict[str, Any] = figure.to_plotly_json()
    return values


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name; they repeat after twelve."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(names))}


def layer_and_role(name: str) -> tuple[int | None, str]:
    """``blocks.3.mlp.fc.weight`` is (3, ``mlp.fc``); without a number, the layer is None."""
    parts = name.removesuffix(".weight").split(".")
    numbers = [part for part in parts if part.isdecimal()]
    role = ".".join(part for part in parts if not part.isdecimal())
    role = role.removeprefix("blocks.")
    return (int(numbers[0]) if numbers and len(numbers[0]) < 6 else None), role


def treemap(packed: PackedFile, number: int) -> Figure:
    """Where the bytes of a file go: header, then tensors by the parts of their names."""
    go = graph_objects()
    report = packed.report
    sizes: dict[tuple[str, ...], int] = {("(header)",): report.header_bytes}
    bits: dict[tuple[str, ...], float] = {}
    for tensor in report.tensors:
        path = _path(tensor.name)
        sizes[path] = sizes.get(path, 0) + tensor.stored_bytes
        bits[path] = _bits(tensor)
    inner = {path[:count] for path in sizes for count in range(1, len(path))}
    totals = dict(sizes)
    for path in inner:
        totals[path] = sum(size for leaf, size in sizes.items() if leaf[: len(path)] == path)
    places = sorted(totals)
    ids = {path: "\x1f".join(path) for path in places}  # no name has that character
    root = "\x1f"
    colour = [bits.get(path, math.nan) for path in places]
    matrices = [_bits(tensor) for tensor in report.tensors if is_matrix(tensor.shape)]
    figure = go.Figure(
        go.Treemap(
            ids=[root, *ids.values()],
            parents=["", *(ids.get(path[:-1], root) for path in places)],
            labels=[label(packed.name), *(label(_short(path)) for path in places)],
            customdata=[label(packed.name), *(label(path[-1]) for path in places)],
            values=[report.file_bytes, *(totals[path] for path in places)],
            branchvalues="total",
            tiling={"pad": 1},
            hovertemplate="%{customdata}<br>%{value:,} bytes, %{percentRoot:.2%} of the file"
            "<extra></extra>",
            texttemplate="%{label}<br>%{value:,}",
            textfont={"size": 13},
            marker={
                "colors": [None, *(None if math.isnan(value) else value for value in colour)],
                "colorscale": "Viridis",
                "cmin": 0,
                "cmax": max(matrices, default=16.0),
                "colorbar": {
                    "title": {"text": "bits per parameter", "side": "right"},
                    "thickness": 10,
                    "len": 0.9,
                },
                "showscale": True,
            },
        )
    )
    order = sorted(report.tensors, key=lambda tensor: -tensor.stored_bytes)
    rows = [
        [
            plain(tensor.name, 80),
            " x ".join(map(str, tensor.shape)) or "scalar",
            tensor.method,
            f"{tensor.stored_bytes:,}",
            f"{_bits(tensor):.3f}",
            f"{tensor.stored_bytes / report.file_bytes:.2%}",
        ]
        for tensor in order
    ]
    share = f"{report.header_bytes / report.file_bytes:.2%}"
    rows.append(["(header)", "", "", f"{report.header_bytes:,}", "", share])
    rows.append(["file", "", "", f"{report.file_bytes:,}", "", "100.00%"])
    plot = made(figure, height=460, uniformtext={"minsize": 10, "mode": "hide"})
    plot["layout"]["margin"] = {"l": 4, "r": 4, "t": 4, "b": 4}
    return Figure(
        id=f"treemap-{number}",
        title="Where the bytes go",
        note="Area is bytes of the file, colour is bits per parameter, up to the widest matrix. A "
        "tensor's bytes are what its codes cost, with its part of the tables; all of them add up "
        "to the file. Click a part to enlarge it.",
        plot=plot,
        columns=["tensor", "shape", "method", "bytes", "bits per parameter", "share"],
        rows=rows,
    )


def _path(name: str) -> tuple[str, ...]:
    """Path of a tensor in the treemap."""
    parts = name.removesuffix(".weight").split(".")
    return (parts[0], ".".join(parts[:2]), name) if len(parts) > 2 else (name,)


def _short(path: tuple[str, ...]) -> str:
    """Last part of a path, without what the parts above it say already."""
    return path[-1].removeprefix(f"{path[-2]}.").removesuffix(".weight") if path[1:] else path[0]


def _bits(tensor: TensorReport) -> float:
    return 8 * tensor.stored_bytes / tensor.parameters


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether a tensor is a matrix that a layer multiplies with, not a few vectors in a row."""
    return len(shape) == 2 and min(shape) >= LEAST_SIDE


def bits_per_parameter(packed: PackedFile, number: int) -> Figure:
    """Bits per parameter of each matrix by layer, a line for each role."""
    matrices = [tensor for tensor in packed.report.tensors if is_matrix(tensor.shape)]
    values = {tensor.name: _bits(tensor) for tensor in matrices}
    return _by_layer(
        values,
        id=f"bits-{number}",
        title="Bits per parameter by layer and role",
        note="Matrices only. Parts without a layer, such as the embedding, stand at the left.",
        axis="bits per parameter",
        form=lambda value: f"{value:.3f}",
    )


def errors_by_layer(
    packed: PackedFile, errors: Sequence[TensorError], number: int
) -> Figure | None:
    """Error of each matrix by layer, a line for each role.

    It is measured against the checkpoint where `errors` has any, else the loss that the packer
    recorded; None where there is neither.
    """
    relative = {
        error.name: error.relative
        for error in errors
        if is_matrix(error.shape) and error.relative is not None
    }
    if relative:
        return _by_layer(
            relative,
            id=f"error-{number}",
            title="Error by layer and role",
            note="Relative error of the decoded weights, measured against the checkpoint beside "
            "the file: the norm of the difference over the norm of the weights. It counts "
            "directions that no input takes, so at few bits it may pass 1.",
            axis="relative error",
            form=lambda value: f"{value:.5f}",
        )
    recorded = {
        tensor.name: tensor.record["loss_nats"]
        for tensor in packed.report.tensors
        if type(tensor.record.get("loss_nats")) is float and tensor.record["loss_nats"] >= 0
    }
    if not recorded:
        return None
    return _by_layer(
        recorded,
        id=f"error-{number}",
        title="Predicted loss by layer and role",
        note="Rise of the loss, nats per token, that the packer expected of each matrix.",
        axis="nats per token",
        form=lambda value: f"{value:.3g}",
    )


def _by_layer(
    values: Mapping[str, float],
    *,
    id: str,
    title: str,
    note: str,
    axis: str,
    form: Callable[[float], str],
) -> Figure:
    """A line for each role over the layers; tensors without a layer stand at layer -1."""
    go = graph_objects()
    places = {name: layer_and_role(name) for name in values}
    roles: dict[str, list[tuple[int, float, str]]] = {}
    for name, value in values.items():
        layer, role = places[name]
        roles.setdefault(role, []).append((-1 if layer is None else layer, value, name))
    colour = colours(roles)
    figure = go.Figure()
    for index, (role, points) in enumerate(roles.items()):
        points.sort()
        figure.add_scatter(
            x=[layer for layer, _, _ in points],
            y=[value for _, value, _ in points],
            customdata=[label(name) for _, _, name in points],
            name=label(role),
            mode="lines+markers",
            line={"color": colour[role], "width": 2},
            marker={"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 8},
            hovertemplate="%{customdata}<br>%{y:.4g} " + axis + "<extra></extra>",
        )
    layers = sorted({layer for points in roles.values() for layer, _, _ in points})
    plot = made(
        figure,
        height=400,
        xaxis={
            "title": {"text": "layer"},
            "tickvals": layers,
            "ticktext": ["none" if layer < 0 else str(layer) for layer in layers],
        },
        yaxis={"title": {"text": axis}, "rangemode": "tozero"},
    )
    rows = [
        [plain(name, 80), "" if places[name][0] is None else str(places[name][0]), form(value)]
        for name, value in values.items()
    ]
    return Figure(
        id=id, title=title, note=note, plot=plot, columns=["tensor", "layer", axis], rows=rows
    )
