"""Draw the parts that figures of several reproductions contain. In all functions, `y` has the shape (n, seeds).

Thin lines and small points show single seeds. Bold lines and large points show means over seeds. A colored fan shows a
fit with its 95 % t interval over seeds. A grey area shows the source's prediction.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from normstudy.analysis.inference import paired_t_interval
from normstudy.figures import axes as on_axes
from normstudy.figures import style
from normstudy.figures.paper import TWO_COLUMNS
from normstudy.reproductions.entry import Variant
from normstudy.reproductions.verdicts import Band, Finding, Floats, Table, first_to_last, log

WIDTH = 4.4  # width in inches of a one-panel figure
BAND_COLOR = "#D9D9D9"
SEED_SIZE = 4.5  # size in points of a marker that shows a single seed
COLORS = style.PLACEMENT_COLORS
# Placement -> the color of its second curve, in figures that draw two curves for one placement.
PALE = {"pre": "#56B4E9", "post": "#E8A87C", "deepnorm": "#665500", "reordered": "#BB88DD"}
BLOCK_GRADIENT = "gradient norm of the\nsecond MLP matrix"
MEAN_SQUARE = "mean square of the stream"


def figure(panels: int = 1, *, height: float = 2.5) -> tuple[Figure, list[Axes]]:
    """Create a figure of panels side by side, without common axes. height: the height of a panel in inches."""
    fig = Figure(figsize=(WIDTH if panels == 1 else TWO_COLUMNS, height), layout="constrained")
    axes: list[Axes] = fig.subplots(1, panels, squeeze=False).ravel().tolist()
    return fig, axes


def finish(fig: Figure, prediction: str, findings: Sequence[Finding], handles: Sequence[Artist]) -> Figure:
    """Write the prediction and the findings above the panels, and a legend below. The figure grows to make room."""
    width = int(fig.get_figwidth() * 18.4)
    lines = textwrap.wrap(prediction, width)
    for f in findings:
        band = "" if f.band is None or f.exact else f", predicted {f.band_text}"
        result = f"{f.value_text}{band}: {f.verdict}"
        whole = f"{f.quantity}: {result}"
        lines += [whole] if len(whole) <= width else [*textwrap.wrap(f"{f.quantity}:", width), f"    {result}"]
    per_row = max(1, int(fig.get_figwidth() * 16 / max(7 + len(str(h.get_label())) for h in handles)))
    rows = -(-len(handles) // per_row)
    columns = -(-len(handles) // rows)
    fig.set_figheight(fig.get_figheight() + 0.155 * len(lines) + 0.16 * rows)
    fig.suptitle(typeset("\n".join(lines)), x=0.01, ha="left", linespacing=1.35, fontsize=7.5)
    # matplotlib fills a legend column by column. Padded and reordered, the entries fill the legend row by row.
    grid = [*handles, *[Line2D([], [], ls="none", label=" ")] * (rows * columns - len(handles))]
    ordered = [grid[row * columns + column] for column in range(columns) for row in range(rows)]
    fig.legend(handles=ordered, loc="outside lower center", ncols=columns)
    return fig


def cite(fig: Figure, source: str) -> None:
    """Add the source of the prediction above a figure's title."""
    lines = textwrap.wrap(f"Prediction of {source}:", int(fig.get_figwidth() * 18.4))
    fig.suptitle("\n".join([*lines, str(fig.get_suptitle())]), x=0.01, ha="left", linespacing=1.35, fontsize=7.5)
    fig.set_figheight(fig.get_figheight() + 0.155 * len(lines))


def typeset(text: str) -> str:
    """Replace `-`, `sqrt`, `^2` and `<=` by the typographic signs −, √, ² and ≤."""
    text = re.sub(r"(?<![\w)])-(?=[\d.])", "−", text).replace(" - ", " − ")
    text = re.sub(r"sqrt\((\w)\)", r"√\1", text)
    return text.replace("sqrt(", "√(").replace("^2", "²").replace("<=", "≤").replace("e+", "e")


def line_handle(label: str, color: str, marker: str, ls: style.LineStyle = "-") -> Line2D:
    """Return the legend entry of a mean over seeds."""
    return Line2D([], [], color=color, lw=style.BOLD, marker=marker, ls=ls, label=label)


def point_handle(label: str, color: str, marker: str) -> Line2D:
    """Return the legend entry of points without a line."""
    return Line2D([], [], ls="none", color=color, marker=marker, ms=5, mec="white", mew=0.6, label=label)


def seed_point_handle() -> Line2D:
    """Return the legend entry of small points, which show single seeds."""
    return Line2D([], [], color=style.GREY, ls="none", marker=".", ms=SEED_SIZE, mew=0, label="single seeds")


def area_handles(what: str, color: str = style.GREY) -> list[Patch]:
    """Return the legend entries of two areas: the 95 % interval of `what` (a mean or fit), and the prediction."""
    return [
        Patch(facecolor=color, alpha=0.4, lw=0, label=f"{what}, 95 % interval"),
        Patch(facecolor=BAND_COLOR, lw=0, label="predicted"),
    ]


def log_x(ax: Axes, ticks: Floats, label: str = "depth L") -> None:
    """Make the x axis logarithmic, and set its ticks and its label."""
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlabel(label)


def block_axis(ax: Axes, blocks: Floats) -> None:
    """Set about eight ticks of the x axis at block numbers. The first tick is at the first block."""
    every = max(1, round(len(blocks) / 8))
    ax.set_xticks([blocks[0], *(b for b in blocks if b % every == 0 and b - blocks[0] > every / 2)])
    ax.set_xlim(blocks[0] - 0.02 * len(blocks), blocks[-1] + 0.02 * len(blocks))
    ax.set_xlabel("block")


def points(ax: Axes, x: Floats, y: Floats, color: str, marker: str, shift: float = 1.0, size: float = 5.0) -> None:
    """Draw a small point per seed at x * shift, and a large point at `x` and the seeds' geometric mean."""
    ax.plot(x * shift, y, ls="none", marker=".", ms=SEED_SIZE, color=color, alpha=0.5, mew=0, zorder=2)
    ax.plot(x, np.exp(log(y).mean(1)), ls="none", marker=marker, ms=size, color=color, mec="white", mew=0.6, zorder=4)


def lines(ax: Axes, x: Floats, y: Floats, color: str, *, geometric: bool) -> None:
    """Draw a thin line per seed, and a bold line for the mean over seeds."""
    ax.plot(x, y, lw=style.THIN, color=color, alpha=0.5, zorder=2)
    ax.plot(x, np.exp(log(y).mean(1)) if geometric else y.mean(1), lw=style.BOLD, color=color, zorder=4)


def means(ax: Axes, x: Floats, y: Floats, color: str) -> None:
    """Draw a small point per seed, and the mean over seeds as a large point with its 95 % t interval."""
    mean, low, high = np.transpose([paired_t_interval(row) for row in y])
    ax.plot(x, y, ls="none", marker=".", ms=SEED_SIZE, color=color, alpha=0.4, mew=0, zorder=2)
    ax.plot([x, x], [low, high], color=color, lw=1.0, zorder=3)
    ax.plot(x, mean, ls="none", marker="o", ms=5, color=color, mec="white", mew=0.6, zorder=4)


def interval(ax: Axes, x: Floats, y: Floats, color: str) -> None:
    """Draw the 95 % t intervals of the means over seeds as an area."""
    _, low, high = np.transpose([paired_t_interval(row) for row in y])
    ax.fill_between(x, low, high, color=color, alpha=0.25, lw=0, zorder=1.5)


def ratios(ax: Axes, table: Table, looks: Mapping[Variant, tuple[str, str, str]]) -> list[Artist]:
    """Draw the ratios of verdicts.first_to_last. Returns the legend entries. looks: model -> (label, color, marker)."""
    for variant, (_, color, marker) in looks.items():
        depths, y = first_to_last(table, variant.name)
        ax.plot(depths, np.exp(log(y).mean(1)), color=color, lw=1.0)
        points(ax, depths, y, color, marker)
    ax.axhline(1.0, color=style.GREY, lw=0.6, ls=style.DASHES[2])
    log_x(ax, depths)
    on_axes.norm_axis(ax)
    ax.set_ylabel("first/last block's gradient")
    return [line_handle(*look) for look in looks.values()]


def finish_lines(fig: Figure, prediction: str, found: list[Finding], colors: dict[str, str], what: str) -> Figure:
    """Finish a figure that shows lines. colors: label -> color. what: whose intervals are shown: `mean` or `fit`."""
    one = next(iter(colors.values())) if len(colors) == 1 else style.GREY
    handles: list[Artist] = [line_handle(label, color, "") for label, color in colors.items()]
    handles.append(Line2D([], [], color=style.GREY, lw=style.THIN, label="single seeds"))
    return finish(fig, prediction, found, [*handles, *area_handles(what, one)])


def growth(
    prediction: str, found: list[Finding], label: str, squares: Floats, start: float, band: Band, ylabel: str
) -> Figure:
    """Draw the stream's mean square (n_layers + 1, seeds). The prediction is `start` plus `band` per block."""
    fig, (ax,) = figure()
    layers, c = np.arange(len(squares), dtype=np.float64), COLORS[label.split(",")[0]]
    ax.fill_between(layers, start + band.low * layers, start + band.high * layers, color=BAND_COLOR, lw=0, zorder=0)
    interval(ax, layers, squares, c)
    lines(ax, layers, squares, c, geometric=False)
    block_axis(ax, layers)
    ax.set_xlabel("block l (0: embeddings)")
    ax.set_ylabel(ylabel)
    return finish_lines(fig, prediction, found, {label: c}, "mean")
