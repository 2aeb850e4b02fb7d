"""Every static figure of the course.

Each function returns a matplotlib figure; colours are Okabe and Ito's, which colour-blind readers
can tell apart. Chapter: the one whose text calls the function.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import matplotlib.ticker
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vitmini import augment
from vitmini.patches import as_pair, patch_grid, patchify, unpatchify

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#666666",
)
STYLE: Any = {
    "figure.figsize": (6.0, 3.4),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY]),
    "axes.grid": False,
    "legend.frameon": False,
    "image.interpolation": "nearest",
}


class Drawing(Figure):
    """A figure of lines, points and words: a notebook shows it as vectors, sharp at any size."""

    def _repr_svg_(self) -> str:
        return svg(self)


def svg(figure: Figure) -> str:
    """Draw a figure as SVG, the same text each time. Chapter: 11."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "vitmini"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()


def _new(
    rows: int = 1,
    columns: int = 1,
    size: tuple[float, float] | None = None,
    vector: bool = False,
    **options,
):
    """Axes in rows and columns. `vector`: nothing in them is a picture, so show no pixels."""
    if vector:
        options["FigureClass"] = Drawing
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython else None
        if shell is not None:  # else a notebook would get the pixels of every figure, too
            shell.display_formatter.formatters["image/png"].for_type(Drawing, lambda figure: None)
    with mpl.rc_context(STYLE | ({"figure.figsize": size} if size else {})):
        drawn = plt.subplots(rows, columns, squeeze=False, **options)
        interactive = mpl.is_interactive()  # a notebook's backend says so when it is first used
    mpl.interactive(interactive)
    return drawn


def _picture(axes: Axes, image: Tensor) -> None:
    """Show one image (C, H, W): uint8, or float in [0, 1]; a single channel as ink on paper."""
    pixels = image.detach().cpu()
    if pixels.shape[0] == 1:
        axes.imshow(
            pixels[0].numpy(),
            cmap="gray_r",
            vmin=0,
            vmax=255 if not pixels.is_floating_point() else 1,
        )
    else:
        axes.imshow(pixels.permute(1, 2, 0).numpy())
    axes.set_axis_off()


def images(
    pictures: Sequence[Tensor],
    titles: Sequence[str] = (),
    columns: int = 6,
    size: float = 1.1,
    colors: Sequence[str] = (),
) -> Figure:
    """Draw pictures (C, H, W) side by side, each under its title. Chapter: 0."""
    rows = -(-len(pictures) // columns)
    figure, grid = _new(rows, columns, (columns * size, rows * size * (1.3 if titles else 1)))
    for i, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if i < len(pictures):
            _picture(axes, pictures[i])
            if titles:
                color = colors[i] if colors else "black"
                axes.set_title(titles[i], fontsize=10, color=color)
    return figure


def learning_curve(
    history: Sequence[Mapping[str, float]], epochs: int | None = None, title: str = ""
) -> Figure:
    """Plot training loss and validation accuracy against epochs. Chapter: 0.

    `epochs` leaves room for those that are still to come. A record without `val_accuracy` has no
    point on the right.
    """
    figure, [[left, right]] = _new(1, 2, (6.4, 2.6), vector=True)
    mark = "." if len(history) <= 20 else ""  # one epoch alone makes no line
    left.plot(
        [r["epoch"] for r in history],
        [r["train_loss"] for r in history],
        color=BLUE,
        marker=mark,
    )
    left.set(xlabel="epoch", ylabel="training loss (nats)", ylim=(0, None))
    validated = [r for r in history if "val_accuracy" in r]
    right.plot(
        [r["epoch"] for r in validated],
        [100 * r["val_accuracy"] for r in validated],
        color=ORANGE,
        marker=mark,
    )
    right.set(xlabel="epoch", ylabel="validation accuracy (%)", ylim=(0, 102))
    if epochs is not None:
        for axes in (left, right):
            axes.set_xlim(0, epochs + 0.5)
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, integer=True))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def confusion(matrix: Tensor, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix (K, K): rows are the true classes. Chapter: 0."""
    figure, [[axes]] = _new(1, 1, (4.6, 4.2))
    mistakes = matrix.clone().float()
    mistakes.fill_diagonal_(0)
    axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(mistakes.max().item(), 1) * 1.5)
    for i, row in enumerate(matrix.tolist()):
        for j, count in enumerate(row):
            if count:
                axes.text(j, i, count, ha="center", va="center", color=GREY if i == j else "black")
    axes.set(xlabel="taken for", ylabel="true digit")
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    return figure


def answers(
    pictures: Sequence[Tensor],
    probabilities: Tensor,
    classes: Sequence[str],
    titles: Sequence[str],
) -> Figure:
    """Draw pictures (C, H, W) side by side, each above what a classifier answers. Chapter: 10.

    Shapes: `probabilities` (pictures, K); the bars of all have one scale, from 0 to 1.
    """
    figure, grid = _new(2, len(pictures), (1.3 * len(pictures), 3.4), height_ratios=(1, 1.3))
    for i, (above, below) in enumerate(grid.T):
        _picture(above, pictures[i])
        above.set_title(titles[i], fontsize=10)
        below.barh(range(len(classes)), probabilities[i].tolist(), color=BLUE)
        below.set(xlim=(0, 1), ylim=(len(classes) - 0.5, -0.5))
        below.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        below.set_yticks(range(len(classes)), classes if i == 0 else [""] * len(classes))
        below.tick_params(labelsize=9)
    figure.supxlabel("probability", fontsize=11)
    return figure


def rows(labels: Sequence[str], metrics: Sequence[Mapping[str, Any]], xlabel: str) -> Figure:
    """Draw the mean and standard error of each label, a row each, with its value. Chapter: 10.

    Each metric is one of a stored result, with `mean` and `stderr`, drawn in percent.
    """
    figure, [[axes]] = _new(1, 1, (5.8, 0.8 + 0.36 * len(labels)), vector=True)
    places = range(len(labels))
    values = [100 * m["mean"] for m in metrics]
    errors = [100 * m["stderr"] for m in metrics]
    axes.errorbar(values, places, xerr=errors, fmt="o", color=BLUE, capsize=4, markersize=6)
    for y, (value, error) in enumerate(zip(values, errors, strict=True)):
        place = (value + error, y)
        axes.annotate(f"{value:.1f}", place, (8, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, labels)
    axes.set(xlabel=xlabel, ylim=(len(labels) - 0.5, -0.5))
    axes.margins(x=0.15)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure


def differences(table: Tensor, names: Sequence[str]) -> Figure:
    """Draw how often each two classifiers differ, (M, M) shares, in percent. Chapter: 10."""
    figure, [[axes]] = _new(1, 1, (5.6, 4.6))
    top = table.max().item()
    axes.imshow(table.cpu(), cmap="Blues", vmin=0, vmax=max(top, 1e-6))
    for i, row in enumerate(table.tolist()):
        for j, value in enumerate(row):
            color = "white" if value > 0.6 * top else "black"
            words = "" if i == j else f"{100 * value:.1f}"
            axes.text(j, i, words, ha="center", va="center", color=color, fontsize=10)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_title("images that two answer differently (%)", fontsize=11)
    return figure


def patch_lines(image: Tensor, patch_size: int | tuple[int, int], title: str = "") -> Figure:
    """Draw an image (C, H, W) with the borders of its patches. Chapter: 1."""
    figure, [[axes]] = _new(1, 1, (3.4, 3.4))
    _cut_lines(axes, image, patch_size)
    axes.set_title(title)
    return figure


def _cut_lines(axes: Axes, image: Tensor, patch_size: int | tuple[int, int]) -> None:
    _picture(axes, image)
    (P, Q), (H, W) = as_pair(patch_size, "patch_size"), image.shape[1:]
    width = min(1.2, 0.06 * min(P, Q))
    for y in range(P, H, P):
        axes.axhline(y - 0.5, color="white", linewidth=width)
    for x in range(Q, W, Q):
        axes.axvline(x - 0.5, color="white", linewidth=width)


def patch_sequence(image: Tensor, patch_size: int, columns: int = 14) -> Figure:
    """Draw a picture, and beside it its patches pulled apart in their order. Chapter: 1."""
    h, w = patch_grid((image.shape[1], image.shape[2]), patch_size)
    gap = max(patch_size // 4, 1)
    patches = patchify(image[None], patch_size)[0].view(h * w, -1, patch_size, patch_size)
    rows, step = -(-h * w // columns), patch_size + gap
    sheet = torch.full((image.shape[0], rows * step - gap, columns * step - gap), 255).to(image)
    for i, patch in enumerate(patches):
        y, x = i // columns * step, i % columns * step
        sheet[:, y : y + patch_size, x : x + patch_size] = patch
    figure, [[left, right]] = _new(1, 2, (6.4, 3.2))
    _cut_lines(left, image, patch_size)
    left.set_title(f"{image.shape[1]} x {image.shape[2]} pixels")
    _picture(right, sheet)
    right.set_title(f"{h * w} patches of {patch_size} x {patch_size}")
    return figure


def patch_choice(image: Tensor, patch_size: int) -> Figure:
    """Draw the cuts, and beside them what one mean colour a patch would leave. Chapter: 1."""
    figure, [[left, right]] = _new(1, 2, (5.6, 2.8))
    _cut_lines(left, image, patch_size)
    C, H, W = image.shape
    patches = patchify(image[None].float(), patch_size).view(1, -1, C, patch_size**2)
    flat = patches.mean(-1, keepdim=True).expand_as(patches).flatten(2)
    _picture(right, unpatchify(flat, patch_size, (H, W), C)[0].to(torch.uint8))
    return figure


def patch_costs(
    patch_sizes: Sequence[int], tokens: Sequence[int], gflops: Sequence[float]
) -> Figure:
    """Plot sequence length and FLOPs of one image against the patch size. Chapter: 1."""
    figure, [[left, right]] = _new(1, 2, (6.4, 2.8), vector=True)
    for axes, values, color, label in (
        (left, tokens, BLUE, "tokens"),
        (right, gflops, ORANGE, "GFLOPs an image"),
    ):
        axes.loglog(patch_sizes, values, "o-", color=color)
        axes.set(xlabel="patch size (pixels)", ylabel=label)
        shown = [p for p in patch_sizes if p not in (14, 28)]  # too close to 16 and 32 to read
        axes.set_xticks(shown, [str(p) for p in shown])
        heights = [v for p, v in zip(patch_sizes, values, strict=True) if p in shown]
        axes.set_yticks(heights, [f"{v:.0f}" for v in heights])
        axes.minorticks_off()
    return figure


def means(
    labels: Sequence[str], values: Sequence[float], errors: Sequence[float], ylabel: str
) -> Figure:
    """Draw a point for each mean, with its standard error and its value beside it. Chapter: 1."""
    figure, [[axes]] = _new(1, 1, (5.2, 2.8), vector=True)
    places = range(len(labels))
    axes.errorbar(places, values, yerr=errors, fmt="o", color=BLUE, capsize=5, markersize=7)
    for x, value in zip(places, values, strict=True):
        axes.annotate(f"{value:.1f}", (x, value), (12, 0), textcoords="offset points", va="center")
    axes.set_xticks(places, labels)
    axes.set(ylabel=ylabel, xlim=(-0.5, len(labels) - 0.3))
    axes.margins(y=0.25)
    return figure


def line(x: Sequence[float], y: Sequence[float], xlabel: str, ylabel: str) -> Figure:
    """Plot one curve from zero up. Chapter: 1."""
    figure, [[axes]] = _new(1, 1, (5.6, 2.6), vector=True)
    axes.plot(x, y, ".-", color=BLUE)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    return figure


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    log: bool | str = False,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Plot several curves with a legend. Chapter: 2.

    `log` makes both axes logarithmic, "y" only the vertical one; `limits` are those of the
    vertical axis. A curve that ends because its values are no numbers any more ends in a cross.
    """
    figure, [[axes]] = _new(1, 1, (5.8, 3.0), vector=True)
    marks = ("o-", "s--", "^-.", "v:", "D-", "P--")
    for (name, (x, y)), mark in zip(series.items(), marks, strict=False):
        few = len(x) <= 20
        [curve] = axes.plot(x, y, mark if few else mark[1:], label=name, markersize=5)
        known = [i for i, value in enumerate(y) if math.isfinite(value)]
        if known and known[-1] < len(y) - 1:
            last, color = known[-1], curve.get_color()
            axes.plot(x[last], y[last], "x", color=color, markersize=13, markeredgewidth=2.5)
    if log:
        axes.set(xscale="linear" if log == "y" else "log", yscale="log")
        places = next(iter(series.values()))[0]
        if log != "y" and len(places) <= 8:  # few places: name them, in plain numbers
            axes.set_xticks(list(places), [f"{place:g}" for place in places])
            axes.minorticks_off()
        low, high = axes.get_ylim()
        if high / low < 100:  # less than two powers of ten: plain numbers there too
            axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=limits)
    if len(series) > 1:
        axes.legend(loc="best", fontsize=10)
    return figure


def position_table(positions: Tensor, title: str = "") -> Figure:
    """Show a position embedding (N, D) as a matrix, a row a patch. Chapter: 2."""
    figure, [[axes]] = _new(1, 1, (5.6, 3.0))
    limit = positions.abs().max().item()
    shown = axes.imshow(
        positions.detach().cpu(), cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto"
    )
    axes.set(xlabel="component", ylabel="patch", title=title)
    figure.colorbar(shown, ax=axes, shrink=0.9)
    return figure


def similarity_maps(maps: Tensor, stride: int = 1) -> Figure:
    """Show `position_similarity` (rows, columns, rows, columns), a tile a patch. Chapter: 2, 12.

    With a `stride`, only every so-manyth row and column of tiles, so that a tile stays legible.
    """
    kept = maps[::stride, ::stride].detach().float().cpu()
    rows, columns, height, width = kept.shape
    # one picture with gaps between the tiles: an axes for each tile takes seconds
    gap = max(1, round(0.12 * max(height, width)))
    sheet = torch.full((rows, height + gap, columns, width + gap), float("nan"))
    sheet[:, :height, :, :width] = kept.transpose(1, 2)
    sheet = sheet.flatten(2).flatten(0, 1)[:-gap, :-gap]
    figure, [[axes]] = _new(1, 1, (5.2, 4.4 * sheet.shape[0] / sheet.shape[1]))
    shown = axes.imshow(sheet.numpy(), cmap="PuOr", vmin=-1, vmax=1)
    for i in range(rows):
        for j in range(columns):
            corner = (j * (width + gap) - 0.5, i * (height + gap) - 0.5)
            edge = plt.Rectangle(corner, width, height, fill=False, ec=GREY, lw=0.6)
            axes.add_patch(edge)
    for ticks, count, length in (
        (axes.set_xticks, columns, width),
        (axes.set_yticks, rows, height),
    ):
        middles = [k * (length + gap) + (length - 1) / 2 for k in range(count)]
        names = [str(1 + k * stride) for k in range(count)] if rows * columns > 1 else [""]
        ticks(middles, names, fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-1, sheet.shape[1]), ylim=(sheet.shape[0], -1))  # frames are whole
    axes.set(xlabel="column of the patch", ylabel="row of the patch")
    bar = figure.colorbar(shown, ax=axes, shrink=0.7)
    bar.set_label("cosine similarity")
    return figure


def place_maps(maps: Mapping[str, Tensor], places: Sequence[tuple[int, int]]) -> Figure:
    """Show the maps of some patches, a row a patch, a column for each of `maps`. Chapter: 12.

    `maps` (rows, columns, rows, columns) are as `position_similarity` gives them. White is 0;
    each column has its own scale, its largest absolute number. A frame marks the patch itself.
    """
    figure, grid = _new(len(places), len(maps), (1.9 * len(maps) + 0.3, 1.75 * len(places) + 0.3))
    for column, (title, values) in enumerate(maps.items()):
        kept = torch.stack([values[i, j] for i, j in places]).detach().float().cpu()
        top = kept.abs().max().item()
        for axes, tile, (i, j) in zip(grid[:, column], kept, places, strict=True):
            axes.imshow(tile.numpy(), cmap="PuOr", vmin=-top, vmax=top)
            for color, thick in (("white", 4.0), (RED, 2.0)):
                frame = plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec=color, lw=thick)
                axes.add_patch(frame)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        grid[0][column].set_title(f"{title}\n{-top:.2f} to {top:.2f}", fontsize=10)
    for axes, (i, j) in zip(grid[:, 0], places, strict=True):
        axes.set_ylabel(f"row {i + 1},\ncolumn {j + 1}", fontsize=10)
    return figure


def resized_places(old: int, new: int) -> Figure:
    """Draw where `new` patches in a row read a table of `old` ones, by two conventions.

    A line goes from the centre of each new patch up to the place where it reads. Pixel centres:
    straight up. Aligned corners: the outermost centres are laid upon each other.
    Raises: `ValueError` when there are fewer than 2 patches.
    Chapter: 13
    """
    if min(old, new) < 2:
        raise ValueError(f"old and new must be at least 2, got {old} and {new}")
    figure, grid = _new(2, 1, (5.8, 4.4), vector=True)
    own = [(i + 0.5) / new for i in range(new)]  # in widths of the picture
    aligned = [(0.5 + i * (old - 1) / (new - 1)) / old for i in range(new)]
    for axes, title, read in zip(
        grid[:, 0], ("pixel centres", "aligned corners"), (own, aligned), strict=True
    ):
        for y, count, color, name in ((1.0, old, BLUE, "old"), (0.0, new, ORANGE, "new")):
            for i in range(count):
                place = (i / count, y - 0.12)
                axes.add_patch(plt.Rectangle(place, 1 / count, 0.24, fill=False, ec=color, lw=1.5))
            axes.plot([(i + 0.5) / count for i in range(count)], [y] * count, "o", color=color)
            axes.text(-0.02, y, f"{count} {name}", ha="right", va="center", color="black")
        for start, end in zip(own, read, strict=True):
            axes.plot([start, end], [0, 1], color=GREY, linewidth=1.2, zorder=0)
        axes.plot(read, [1] * new, "|", color="black", markersize=16, markeredgewidth=1.8)
        axes.set_title(title, fontsize=11)
        axes.set(xlim=(-0.16, 1.02), ylim=(-0.2, 1.25))
        axes.set_axis_off()
    return figure


def groups(
    labels: Sequence[str],
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    xlabel: str,
    ylabel: str,
    factor: float = 100.0,
) -> Figure:
    """Draw the mean and standard error of several series side by side. Chapter: 2.

    Each value of a series is a metric of a stored result, with `mean` and `stderr`.
    """
    figure, [[axes]] = _new(1, 1, (5.8, 3.0), vector=True)
    for k, (name, metrics) in enumerate(series.items()):
        places = [i + 0.14 * (k - (len(series) - 1) / 2) for i in range(len(labels))]
        axes.errorbar(
            places,
            [factor * m["mean"] for m in metrics],
            yerr=[factor * m["stderr"] for m in metrics],
            fmt="osv^D"[k % 5],
            capsize=4,
            label=name,
        )
    axes.set_xticks(range(len(labels)), labels)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.5, len(labels) - 0.5))
    axes.margins(y=0.2)
    if len(series) > 1:
        axes.legend(loc="best", fontsize=10)
    return figure


def against(
    series: Mapping[str, tuple[Sequence[float], Sequence[Mapping[str, Any]]]],
    xlabel: str,
    ylabel: str,
    factor: float = 100.0,
) -> Figure:
    """Draw means and standard errors against numbers on a logarithmic axis. Chapter: 8.

    Each value of a series is a metric of a stored result, with `mean` and `stderr`. Names such as
    "ViT, weak" and "ViT, strong" share a colour and differ in their lines.
    """
    figure, [[axes]] = _new(1, 1, (5.8, 3.2), vector=True)
    families = list(dict.fromkeys(name.partition(", ")[0] for name in series))
    kinds = list(dict.fromkeys(name.partition(", ")[2] for name in series))
    colors = STYLE["axes.prop_cycle"].by_key()["color"]
    for name, (x, metrics) in series.items():
        family, _, kind = name.partition(", ")
        own = families.index(family)
        style = own if len(kinds) == 1 else kinds.index(kind)
        axes.errorbar(
            x,
            [factor * m["mean"] for m in metrics],
            yerr=[factor * m["stderr"] for m in metrics],
            fmt="os^vDP"[own % 6] + ("-", "--", "-.", ":")[style % 4],
            color=colors[own % len(colors)],
            capsize=4,
            label=name,
        )
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    places = sorted({place for x, _ in series.values() for place in x})
    if len(places) <= 6 and places[-1] < 1e6:  # name them, in plain numbers
        axes.set_xticks(places, [f"{place:,g}" for place in places])
        axes.minorticks_off()
    axes.margins(y=0.15)
    if len(series) > 3:  # too many to find room beside the curves
        figure.legend(loc="outside lower center", ncols=2, fontsize=10, frameon=False)
    else:
        axes.legend(loc="best", fontsize=10)
    return figure


def attention_matrix(
    weights: Tensor, rows: Sequence[str], columns: Sequence[str], title: str = ""
) -> Figure:
    """Draw attention weights (T, S) with their numbers, a row a query. Chapter: 3."""
    size = 1.2 + 0.62 * len(columns)
    figure, [[axes]] = _new(1, 1, (size, 0.9 + 0.52 * len(rows)))
    _matrix(axes, weights, rows, columns)
    axes.set(xlabel="key", ylabel="query", title=title)
    return figure


def _matrix(axes: Axes, weights: Tensor, rows: Sequence[str], columns: Sequence[str]) -> None:
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(weights.tolist()):
        for j, value in enumerate(row):
            color = "white" if value > 0.55 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=10)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)


def masks(weights: Sequence[Tensor], titles: Sequence[str]) -> Figure:
    """Draw attention weights under several masks side by side. Chapter: 3."""
    figure, grid = _new(1, len(weights), (2.2 * len(weights), 2.6))
    for axes, matrix, title in zip(grid[0], weights, titles, strict=True):
        axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
        axes.set(title=title, xlabel="key", xticks=[], yticks=[])
    grid[0][0].set_ylabel("query")
    return figure


def softmax_bars(weights: Mapping[str, Tensor]) -> Figure:
    """Draw the attention weights of one query, largest first, for several ways. Chapter: 3."""
    figure, grid = _new(1, len(weights), (5.6, 2.4), sharey=True, vector=True)
    for axes, (name, values), color in zip(grid[0], weights.items(), (BLUE, ORANGE), strict=False):
        axes.bar(range(len(values)), values.sort(descending=True).values, color=color)
        axes.set(title=name, xlabel="keys, sorted", ylim=(0, 1), xticks=[])
    grid[0][0].set_ylabel("weight")
    return figure


def heat_maps(panels: Mapping[str, Tensor], xlabel: str, ylabel: str) -> Figure:
    """Draw several matrices side by side in one scale from zero up, white for zero. Chapter: 4."""
    figure, grid = _new(1, len(panels), (2.0 * len(panels) + 0.6, 2.8))
    top = max(m.max().item() for m in panels.values())
    for axes, (title, matrix) in zip(grid[0], panels.items(), strict=True):
        shown = axes.imshow(matrix.detach().cpu(), cmap="Blues", vmin=0, vmax=top, aspect="auto")
        axes.set(xlabel=xlabel, xticks=[], yticks=[])
        axes.set_title(title, fontsize=11)
        for row in range(1, matrix.shape[0]):
            axes.axhline(row - 0.5, color="#cccccc", linewidth=0.8)
    grid[0][0].set_ylabel(ylabel)
    figure.colorbar(shown, ax=grid.ravel().tolist(), shrink=0.9)
    return figure


def attention_costs(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot time and memory against tokens, by hand and fused, a row a device. Chapter: 3.

    Each result has `device` and `curves` as the experiment `attention-cost-cpu` stores them.
    """
    figure, grid = _new(len(results), 2, (6.4, 2.7 * len(results)), vector=True)
    for row, result in zip(grid, results, strict=True):
        curves = result["curves"]
        for axes, key, scale, label in (
            (row[0], "milliseconds", 1.0, "time (ms)"),
            (row[1], "bytes", 1e-6, "memory (MB)"),
        ):
            for way, mark, color in (("by_hand", "o-", ORANGE), ("fused", "s--", BLUE)):
                values = [scale * v for v in curves[f"{key}_{way}"]]
                name = way.replace("_", " ")
                axes.loglog(curves["tokens"], values, mark, color=color, label=name, markersize=5)
            axes.set(xlabel="tokens", ylabel=label)
            shown = curves["tokens"][:: -(-len(curves["tokens"]) // 4)]
            axes.set_xticks(shown, [str(t) for t in shown])
            axes.minorticks_off()
        row[0].set_title(result["device"], loc="left", fontsize=10)
        row[0].legend(fontsize=9)
    return figure


def attention_on_image(image: Tensor, maps: Sequence[Tensor], titles: Sequence[str]) -> Figure:
    """Draw an image (C, H, W), and beside it maps (rows, columns) laid over it. Chapter: 3.

    Bright means attended to. All maps share one scale, from zero to the largest weight.
    """
    figure, grid = _new(1, 1 + len(maps), (1.65 * (1 + len(maps)), 2.0))
    _picture(grid[0][0], image)
    grid[0][0].set_title("image", fontsize=10)
    top = max(m.max().item() for m in maps)
    height, width = image.shape[1:]
    for axes, weights, title in zip(grid[0][1:], maps, titles, strict=True):
        grey = image.float().mean(0) if image.shape[0] == 3 else 255 - image[0].float()
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
        axes.imshow(
            weights.detach().cpu(),
            cmap="inferno",
            alpha=0.65,
            vmin=0,
            vmax=top,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        axes.set_axis_off()
        axes.set_title(title, fontsize=10)
    return figure


def image_and_maps(
    image: Tensor, maps: Sequence[Tensor], titles: Sequence[str], top: float, label: str
) -> Figure:
    """Draw an image (C, H, W), and beside it maps from zero to `top` with a bar. Chapter: 4.

    With the same `top` several figures share a scale.
    """
    figure, grid = _new(1, 1 + len(maps), (1.65 * (1 + len(maps)) + 0.7, 2.0))
    _picture(grid[0][0], image)
    grid[0][0].set_title("image", fontsize=10)
    for axes, values, title in zip(grid[0][1:], maps, titles, strict=True):
        shown = axes.imshow(values.detach().cpu(), cmap="inferno", vmin=0, vmax=top)
        axes.set_axis_off()
        axes.set_title(title, fontsize=10)
    figure.colorbar(shown, ax=grid.ravel().tolist(), label=label, shrink=0.8)
    return figure


def queries_on_images(
    images: Sequence[Tensor],
    maps: Sequence[Sequence[Tensor]],
    queries: Sequence[tuple[int, int]],
    titles: Sequence[str],
) -> Figure:
    """Draw a row for each image (C, H, W): the image, and what one of its patches attends to.

    `queries` are the patches, (row, column), framed in white; `maps` hold for each image a map
    (rows, columns) for each of `titles`. Each map goes from zero to its own largest weight, which
    stands below it.
    Chapter: 11.
    """
    rows, columns = len(images), 1 + len(titles)
    figure, grid = _new(rows, columns, (1.75 * columns, 1.95 * rows))
    for axes, title in zip(grid[0], ("image", *titles), strict=True):
        axes.set_title(title, fontsize=11)
    for line, image, found, (row, column) in zip(grid, images, maps, queries, strict=True):
        _picture(line[0], image)
        height, width = image.shape[1:]
        for axes, weights in zip(line[1:], found, strict=True):
            edges = (-0.5, width - 0.5, height - 0.5, -0.5)
            axes.imshow(weights.detach().cpu().numpy(), cmap="inferno", vmin=0, extent=edges)
            axes.text(
                width / 2, height, f"up to {weights.max():.1%}", ha="center", va="top", fontsize=10
            )
            axes.set_axis_off()
        h, w = height / found[0].shape[0], width / found[0].shape[1]
        for axes in line:
            for color, thick in (("black", 4.0), ("white", 2.0)):
                place = (column * w - 0.5, row * h - 0.5)
                axes.add_patch(plt.Rectangle(place, w, h, fill=False, ec=color, lw=thick))
    return figure


def head_distances(
    distances: Mapping[str, Tensor], uniform: float, top: float = 0.0, near: float = 0.0
) -> Figure:
    """Draw mean attention distances (L, heads) in pixels, a dot a head, a panel a model.

    The dashed line is where uniform attention lies, the dotted one, if given, attention to the
    3 x 3 patches around; `top` is the largest distance to show.
    Chapter: 11.
    """
    columns = min(len(distances), 2)  # more beside each other cannot be read on a phone
    rows = -(-len(distances) // columns)
    figure, grid = _new(rows, columns, (5.8, 2.7 * rows + 0.6), sharey=True, vector=True)
    for axes in grid.flat[len(distances) :]:
        axes.set_axis_off()
    largest = max([uniform, *(d.max().item() for d in distances.values())])
    for axes, (title, values) in zip(grid.flat, distances.items(), strict=False):
        layers = range(1, len(values) + 1)
        axes.axhline(uniform, color=GREY, linestyle="--", linewidth=1.2, label="uniform")
        if near:
            axes.axhline(near, color=GREY, linestyle=":", linewidth=1.6, label="3 x 3 around")
        for head in range(values.shape[1]):
            axes.plot(layers, values[:, head].cpu(), "o", color=BLUE, markersize=5, alpha=0.8)
        axes.plot(layers, values.mean(dim=1).cpu(), "-", color=ORANGE, label="mean of the heads")
        axes.set(title=title, xlabel="layer", ylim=(0, 1.08 * max(top, largest)))
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    figure.supylabel("mean attention distance (px)", fontsize=11)
    handles, labels = grid[0][0].get_legend_handles_labels()
    options = {"ncols": len(labels), "fontsize": 9, "frameon": False}
    figure.legend(handles, labels, loc="outside lower center", **options)
    return figure


def stacked(
    labels: Sequence[str], parts: Mapping[str, Sequence[float]], xlabel: str, title: str = ""
) -> Figure:
    """Draw a bar for each label, its parts laid end to end. Chapter: 6."""
    figure, [[axes]] = _new(1, 1, (5.8, 0.9 + 0.42 * len(labels)), vector=True)
    left = [0.0] * len(labels)
    hatches = ("", "//", "..", "xx", "--", "++")
    for (name, values), hatch in zip(parts.items(), hatches, strict=False):
        axes.barh(range(len(labels)), values, left=left, label=name, hatch=hatch, edgecolor="white")
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set(xlabel=xlabel, title=title)
    figure.legend(loc="outside lower center", ncols=2, fontsize=10, frameon=False)
    return figure


def top_classes(
    image: Tensor, names: Sequence[str], probabilities: Sequence[float], title: str = ""
) -> Figure:
    """Show an image beside the probabilities of its likeliest classes. Chapter: 6."""
    figure, [[left, right]] = _new(1, 2, (6.0, 2.6), width_ratios=(1, 1.2))
    _picture(left, image)
    left.set_axis_off()
    right.barh(range(len(names)), [100 * p for p in probabilities], color=BLUE)
    right.set_yticks(range(len(names)), names, fontsize=9)
    right.invert_yaxis()
    right.set(xlabel="probability (%)", title=title)
    return figure


def draws(
    curves: Tensor, xlabel: str, ylabel: str, limits: tuple[float, float], title: str = ""
) -> Figure:
    """Plot random curves (draws, L + 1) thin, and their median thick, on a log axis. Chapter: 5."""
    figure, [[axes]] = _new(1, 1, (5.8, 3.0), vector=True)
    floor = limits[0] / 10  # what vanished altogether leaves the picture through its floor
    axes.plot(curves.clamp_min(floor).T, color=SKY, linewidth=0.8, alpha=0.8)
    axes.plot(curves.median(0).values.clamp_min(floor), color=BLUE, linewidth=2.5, label="median")
    axes.axhline(1, color=ORANGE, linestyle="--", label="expected mean")
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log", ylim=limits, title=title)
    axes.legend(loc="lower left", fontsize=10)
    return figure


def panels(
    series: Mapping[str, Mapping[str, Sequence[float]]], xlabel: str, log: bool = True
) -> Figure:
    """Plot the same named curves in several panels, each with its own y label. Chapter: 5."""
    figure, grid = _new(len(series), 1, (5.8, 2.1 * len(series) + 0.6), sharex=True, vector=True)
    dashes = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), "-")
    for axes, (ylabel, curves) in zip(grid[:, 0], series.items(), strict=True):
        for (name, values), dash in zip(curves.items(), dashes, strict=False):
            axes.plot(range(len(values)), values, linestyle=dash, label=name, linewidth=2)
        axes.set(ylabel=ylabel, yscale="log" if log else "linear")
        if log:
            axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
    grid[-1][0].set_xlabel(xlabel)
    grid[0][0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=10)
    return figure


def matrices(
    pictures: Sequence[Tensor], titles: Sequence[str], columns: int = 3, limit: float | None = None
) -> Figure:
    """Draw matrices as pictures, zero white, below it orange and above it purple. Chapter: 5.

    Each matrix has its own scale, its largest absolute number, unless `limit` gives one for all.
    """
    rows = -(-len(pictures) // columns)
    figure, grid = _new(rows, columns, (2.0 * columns, 2.25 * rows))
    for i, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if i < len(pictures):
            matrix = pictures[i].detach().cpu()
            top = limit or matrix.abs().max().item()
            axes.imshow(matrix, cmap="PuOr", vmin=-top, vmax=top)
            axes.set_title(titles[i], fontsize=10)
    return figure


# How strong each operation of `augment.OPERATIONS` is drawn, and in which unit; "px" is a share of
# the image's side. Those without a strength share a row.
_STRENGTHS: dict[str, tuple[str, tuple[float, ...]]] = {
    "ShearX": ("", (-0.3, -0.1, 0.1, 0.3)),
    "ShearY": ("", (-0.3, -0.1, 0.1, 0.3)),
    "TranslateX": (" px", (-0.4, -0.2, 0.2, 0.4)),
    "TranslateY": (" px", (-0.4, -0.2, 0.2, 0.4)),
    "Rotate": ("°", (-30, -10, 10, 30)),
    "Brightness": ("", (-0.9, -0.4, 0.4, 0.9)),
    "Color": ("", (-0.9, -0.4, 0.4, 0.9)),
    "Contrast": ("", (-0.9, -0.4, 0.4, 0.9)),
    "Sharpness": ("", (-0.9, -0.4, 0.4, 0.9)),
    "Posterize": (" bits", (7, 5, 3, 1)),
    "Solarize": ("", (224, 160, 96, 32)),
}


def augmentations(
    image: Tensor, partner: Tensor | None = None, draws: int = 4, seed: int = 0
) -> Figure:
    """Draw what each augmentation of the library makes of one image, a row a kind. Chapter: 7.

    Shapes: `image` uint8 (C, H, W); `partner`, of the same shape, is what mixup and CutMix mix in
        (default: the image upside down). Each row shows `draws` random results. Some 48 pixels a
        side are enough to see, and keep the figure small in a notebook.
    Raises: `ValueError` when `image` is not uint8 (C, H, W), `partner` has another shape, or
        there are fewer than 2 `draws`.
    """
    _check_picture(image)
    partner = image.flip(1) if partner is None else partner
    if partner.shape != image.shape or partner.dtype != torch.uint8:
        raise ValueError(f"partner must be uint8 of shape {tuple(image.shape)} as image is")
    if draws < 2:
        raise ValueError(f"draws must be at least 2, got {draws}")
    g = torch.Generator(image.device).manual_seed(seed)
    batch = image[None].expand(draws, -1, -1, -1)
    pair, labels = torch.stack([image, partner]).float(), torch.arange(2, device=image.device)

    def mix(**alphas: float) -> Tensor:
        mixed = [
            augment.mix(pair, labels, 2, **alphas, generator=g).images[0] for _ in range(draws)
        ]
        return torch.stack(mixed)

    normal = (batch.float() - 128) / 64  # what erasing overwrites with noise of deviation 1
    rows = {
        "crop": augment.random_crop(batch, min(image.shape[1:]) // 8, generator=g),
        "resized crop": augment.random_resized_crop(batch, scale=(0.2, 1.0), generator=g),
        "flip": augment.random_flip(batch, g),
        "affine": augment.random_affine(batch, 15, 0.1, 0.15, 15, g),
        "RandAugment": augment.rand_augment(batch, generator=g),
        "TrivialAugment": augment.trivial_augment(batch, generator=g),
        "AutoAugment": augment.auto_augment(batch, generator=g),
        "colour jitter": augment.color_jitter(batch, 0.4, 0.4, 0.4, g),
        "erasing": augment.random_erasing(normal, 1.0, generator=g) * 64 + 128,
        "mixup": mix(mixup=0.8, cutmix=0.0),
        "CutMix": mix(mixup=0.0, cutmix=1.0),
    }
    table = {"image, partner": [image, partner]}
    table |= {name: list(_bytes(pictures)) for name, pictures in rows.items()}
    return _picture_table(table, draws)


def operations(image: Tensor) -> Figure:
    """Draw the operations of RandAugment and its kin at a few strengths. Chapter: 7.

    Shapes: `image` uint8 (C, H, W), some 48 pixels a side. Above each picture stands its
        strength, in the units of `augment.apply_operations`.
    Raises: `ValueError` when `image` is not uint8 (C, H, W).
    """
    _check_picture(image)
    sides = {"TranslateX": image.shape[2], "TranslateY": image.shape[1]}
    fixed = [name for name in augment.OPERATIONS if name not in _STRENGTHS]
    table = {"no strength": _operated(image, fixed, [0.0] * len(fixed))}
    titles = {"no strength": fixed}
    for name, (unit, strengths) in _STRENGTHS.items():
        values = [int(s * sides[name]) if name in sides else s for s in strengths]
        table[name] = _operated(image, [name] * len(values), values)
        titles[name] = [f"{value:g}{unit}".replace("-", "−") for value in values]
    return _picture_table(table, 4, titles)


def _operated(image: Tensor, names: Sequence[str], strengths: Sequence[float]) -> list[Tensor]:
    ops = torch.tensor([augment.OPERATIONS.index(name) for name in names], device=image.device)
    values = torch.tensor(strengths, dtype=torch.float32, device=image.device)
    batch = image[None].expand(len(ops), -1, -1, -1).float()
    return list(_bytes(augment.apply_operations(batch, ops, values)))


def _check_picture(image: Tensor) -> None:
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.dtype != torch.uint8:
        raise ValueError(
            f"image must be uint8 of shape (1 or 3, H, W), got {image.dtype} {tuple(image.shape)}"
        )


def _bytes(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)


def _picture_table(
    table: Mapping[str, Sequence[Tensor]],
    columns: int,
    titles: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Draw rows of pictures with their names on the left; `titles` stand above pictures."""
    titles = titles or {}
    _, H, W = next(iter(table.values()))[0].shape
    heights = [0.82 * H / W + (0.2 if name in titles else 0.02) for name in table]
    size = (1.35 + 0.86 * columns, sum(heights))
    figure, grid = _new(len(table), columns, size, height_ratios=heights)
    for row, (name, pictures) in zip(grid, table.items(), strict=True):
        for axes in row:
            axes.set_axis_off()
        for axes, picture in zip(row, pictures, strict=False):
            _picture(axes, picture)
            axes.images[0].set_interpolation("nearest")  # a quarter of the bytes of a smooth one
        for axes, title in zip(row, titles.get(name, ()), strict=False):
            axes.set_title(title, fontsize=10, pad=2)
        label = {"ha": "right", "va": "center", "fontsize": 11, "transform": row[0].transAxes}
        row[0].text(-0.1, 0.5, name, **label)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    return figure
