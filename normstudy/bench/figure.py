"""Draw the benchmark figure from stored tables, without torch; panels without stored rows are left out."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from normstudy.analysis.grid import three_digits
from normstudy.bench import summary
from normstudy.bench.rows import THEORY
from normstudy.bench.summary import Result
from normstudy.errors import ConfigError
from normstudy.figures import style

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

NAME = "bench.png"
COLORS = {"met": "#0072B2", "not met": "#D55E00", "no goal": style.GREY}
MARKERS = {"at least": ">", "at most": "<"}  # goal markers, which point to the side that meets the goal
LINE = 0.12  # inches: height of a line of text beside a panel
AROUND = 0.75  # inches: height of a panel's title, ticks and axis label together
LOW = 1.55  # inches: height of a row of cost panels
SPACING = 1.2  # distance between two names, in lines of text
NAME_WIDTH = 74  # characters in a line of text beside a panel
NARROW = 4.0  # least ratio between the ends of a logarithmic axis
SIZE = re.compile(r"(?:(?P<part>.+), )?(?P<axis>\w+)=(?P<size>\d+)")  # row e's cases that measure one size
WHOLE = "run-step"  # the part to which a cost belongs if its case names no part
THEORY_DASH: style.LineStyle = (0, (3.5, 1.5))
CROSSING_DASH: style.LineStyle = (0, (1, 1.2))
PART_COLORS = ("#0072B2", "#D55E00", "#DD9922", "#883366", "#66BB88", "#5500DD")


class Bar(NamedTuple):
    """One line of a bar panel. numbers: one per round; goal: on the same scale as `numbers`, or None."""

    name: str
    numbers: tuple[float, ...]
    goal: float | None
    result: Result


def draw(stored: pd.DataFrame, out: Path) -> Path:
    """Draw the figure into the folder `out`; one version of matplotlib always writes the same bytes."""
    path = out / NAME
    with matplotlib.rc_context(style.rc()):  # type: ignore[arg-type]  # the stubs list every key as a Literal
        fig = figure(stored)
        try:
            style.save(fig, path, "png")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    return path


def figure(stored: pd.DataFrame) -> Figure:
    """Draw the figure of stored samples (columns of bench.tables.SCHEMA)."""
    found = [r for r in summary.results(stored) if min(r.numbers) > 0]  # a logarithmic axis cannot show 0
    ratios = [_bar(r, 1.0) for r in found if not r.unit and r.theory is None and r.goal.subject != THEORY]
    shares = [_bar(r, r.goal.limit) for r in found if r.unit and r.goal.limit]  # nothing is divided by a limit of 0
    costs = _costs(stored)
    notes = [
        part for line in summary.machine_lines(stored) for part in textwrap.wrap(line, 118, break_on_hyphens=False)
    ]
    head = LINE * (len(notes) + 1.6)
    bars = [b for b in (ratios, shares) if b]
    heights = [sum(map(_height, bars)) + 2 * LINE] if bars else []
    heights += [sum(LOW + LINE * max(map(len, row)) for row in _rows(costs)) + 3 * LINE] if costs else []
    fig = Figure(figsize=(style.TWO_COLUMNS, head + sum(heights)), layout="constrained")
    fig.suptitle("\n".join(["normstudy bench", *notes]), x=0.01, ha="left", linespacing=1.35)
    parts = fig.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).ravel().tolist() if heights else []
    if bars:
        _draw_bars(parts.pop(0), ratios, shares)
    if costs:
        crossings = [r for r in found if r.goal.metric.startswith("crossover_") and r.goal.subject != THEORY]
        _draw_costs(parts.pop(0), costs, crossings)
    return fig


def _draw_bars(fig: SubFigure, ratios: Sequence[Bar], shares: Sequence[Bar]) -> None:
    heights = [_height(bars) for bars in (ratios, shares) if bars]
    axes: list[Axes] = fig.subplots(len(heights), 1, squeeze=False, height_ratios=heights).ravel().tolist()
    if ratios:
        _panel(axes.pop(0), ratios, "Ratios and what was asked of them", "ratio")
    if shares:
        _panel(axes.pop(0), shares, "Times and sizes as a part of what was allowed", "value / goal")
    fig.legend(handles=_handles([*ratios, *shares]), loc="outside lower center", ncols=6)


def _bar(result: Result, whole: float) -> Bar:
    """Make a result's Bar, with all numbers divided by `whole`: 1 for a ratio, the goal for a value with a unit."""
    goal = result.goal
    text = f"{goal.row}  {'' if goal.title.startswith(goal.case) else f'{goal.case}: '}{goal.title}"
    if result.unit:
        text += f" ({three_digits(result.median)} of {three_digits(whole)} {result.unit})"
    name = "\n".join(textwrap.wrap(text, NAME_WIDTH, break_on_hyphens=False))
    return Bar(name, tuple(v / whole for v in result.numbers), goal.limit and goal.limit / whole, result)


def _height(bars: Sequence[Bar]) -> float:
    return AROUND + sum(LINE * (bar.name.count("\n") + SPACING) for bar in bars)


def _panel(ax: Axes, bars: Sequence[Bar], title: str, xlabel: str) -> None:
    """Draw bars below each other, each as high as its name."""
    ends = np.cumsum([bar.name.count("\n") + SPACING for bar in bars])
    places = [float(end - (bar.name.count("\n") + SPACING) / 2) for end, bar in zip(ends, bars, strict=True)]
    ax.axvline(1, color=style.GREY, lw=0.6, zorder=1)
    for y, bar in zip(places, bars, strict=True):
        goal, color = bar.result.goal, COLORS[bar.result.verdict]
        q1, median, q3 = np.quantile(bar.numbers, (0.25, 0.5, 0.75))
        ax.plot([min(bar.numbers), max(bar.numbers)], [y, y], color=color, lw=style.THIN + 0.3, zorder=3)
        ax.plot([q1, q3], [y, y], color=color, lw=style.BOLD + 1.4, alpha=0.45, solid_capstyle="butt", zorder=2)
        point = ax.plot([median], [y], marker="o", ls="none", ms=4, color=color, mec="white", mew=0.5, zorder=4)
        point[0].set_gid(f"{goal.row}:{goal.case}:{goal.title}")
        if bar.goal is not None and goal.sense is not None:
            ax.plot([bar.goal], [y], marker=MARKERS[goal.sense], ls="none", ms=4.5, color="black", mfc="none", mew=0.8,
                    zorder=3.5)  # fmt: skip
    ax.set_ylim(float(ends[-1]) + 0.3, -0.3)
    ax.set_yticks(places, [bar.name for bar in bars], fontsize=5.8)
    ax.tick_params(axis="y", length=0)
    ax.set_xscale("log")
    ax.set_xlim(*_limits([v for bar in bars for v in (*bar.numbers, *([] if bar.goal is None else [bar.goal]), 1.0)]))
    _ticks(ax.xaxis)
    ax.set_xlabel(xlabel)
    ax.set_title(title, loc="left")


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the limits of a logarithmic axis for these values, at least a factor of NARROW apart."""
    low, high = min(values), max(values)
    more = max(1.15, math.sqrt(NARROW * low / high))
    return low / more, high * more


def _ticks(axis: Axis, decades: float = 1000.0) -> None:
    """Label a logarithmic axis with plain numbers, only powers of ten if it spans more than a factor of `decades`."""
    low, high = axis.get_view_interval()
    subs = (1.0,) if high > decades * low else (1.0, 2.0, 5.0) if high > 12 * low else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _handles(bars: Sequence[Bar]) -> list[Artist]:
    """Make the legend's handles: for the verdicts and goals that occur, and for the two kinds of lines in a bar."""
    verdicts, senses = ({bar.result.verdict for bar in bars}, {bar.result.goal.sense for bar in bars})
    found: list[Artist] = [
        Line2D([], [], ls="none", marker="o", color=color, mec="white", mew=0.5, label=f"median, {verdict}")
        for verdict, color in COLORS.items()
        if verdict in verdicts
    ]
    found += [
        Line2D([], [], ls="none", marker=marker, color="black", mfc="none", mew=0.8, label=f"goal: {sense}")
        for sense, marker in MARKERS.items()
        if sense in senses
    ]
    found.append(Line2D([], [], color=style.GREY, lw=style.BOLD + 1.4, alpha=0.45, label="quartiles of rounds"))
    found.append(Line2D([], [], color=style.GREY, lw=style.THIN + 0.3, label="all rounds"))
    return found


class Cost(NamedTuple):
    """A part's cost along one axis. sizes: (n,), rising. ms: (rounds, n). slope and theory: log-log slopes."""

    part: str
    axis: str
    sizes: Floats
    ms: Floats
    slope: float
    theory: float


def _costs(stored: pd.DataFrame) -> list[Cost]:
    """Collect the costs that row e measured at two or more sizes and whose slopes are stored."""
    rows = stored[stored["row"] == "e"]
    named = rows["case"].str.extract(rf"^{SIZE.pattern}$")
    rows = rows.assign(part=named["part"].fillna(WHOLE), axis=named["axis"], size=pd.to_numeric(named["size"]))
    out = []
    for (part, axis), points in rows.dropna(subset="size").groupby(["part", "axis"], sort=False):
        slopes = rows[(rows["case"] == f"{part} vs {axis}") & (rows["metric"] == "slope")]
        theory = slopes.loc[slopes["subject"] == THEORY, "value"].median()
        slope = slopes.loc[slopes["subject"] != THEORY, "value"].median()
        wide = points.pivot_table(index="round", columns="size", values="value")
        sizes = wide.columns.to_numpy(dtype=float)
        out.append(Cost(str(part), str(axis), sizes, wide.to_numpy(), float(slope), float(theory)))
    return [cost for cost in out if len(cost.sizes) > 1 and math.isfinite(cost.slope + cost.theory)]


def _rows(costs: Sequence[Cost]) -> list[list[list[Cost]]]:
    """Arrange costs in rows of panels, a panel per axis: first whole run-steps, then all parts of a block together."""
    parts = [c for c in costs if c.part == WHOLE], [c for c in costs if c.part != WHOLE]
    return [[[c for c in of if c.axis == axis] for axis in dict.fromkeys(c.axis for c in of)] for of in parts if of]


def _draw_costs(fig: SubFigure, costs: Sequence[Cost], crossings: Sequence[Result]) -> None:
    names = list(dict.fromkeys(cost.part for cost in costs if cost.part != WHOLE))
    colors = dict(zip(names, itertools.cycle(PART_COLORS), strict=False)) | {WHOLE: "black"}
    rows = _rows(costs)
    heights = [LOW + LINE * max(map(len, row)) for row in rows]
    places = fig.subfigures(len(rows), 1, squeeze=False, height_ratios=heights).ravel()
    for place, row in zip(places, rows, strict=True):
        axes: list[Axes] = place.subplots(1, len(row), sharey=True, squeeze=False).ravel().tolist()
        for ax, together in zip(axes, row, strict=True):
            for cost in together:
                _draw_cost(ax, cost, colors[cost.part])
            _cost_axes(ax, together)
            for crossing in crossings:
                if together[0].part != WHOLE and crossing.goal.metric == f"crossover_{together[0].axis}":
                    _draw_crossing(ax, crossing)
        _ticks(axes[0].yaxis, 30)
        axes[0].set_ylabel("ms per run-step" if row[0][0].part == WHOLE else "ms, forward and backward")
    handles: list[Artist] = [
        Line2D([], [], color=color, lw=1.0, marker="o", mec="white", mew=0.5, label=name)
        for name, color in colors.items()
        if any(cost.part == name for cost in costs)
    ]
    handles.append(Line2D([], [], color=style.GREY, lw=1.0, ls=THEORY_DASH, label="slope by the theory"))
    if crossings:
        handles.append(Line2D([], [], color=style.GREY, lw=0.8, ls=CROSSING_DASH, label="equal cost"))
    fig.legend(handles=handles, loc="outside lower center", ncols=4)


def _draw_cost(ax: Axes, cost: Cost, color: str) -> None:
    """Draw each size's median and range over rounds, and lines with the fitted slope and the theoretical slope."""
    middle = np.median(cost.ms, axis=0)
    for size, column in zip(cost.sizes, cost.ms.T, strict=True):
        ax.plot([size, size], [column.min(), column.max()], color=color, lw=style.THIN + 0.3, zorder=3)
    point = ax.plot(cost.sizes, middle, marker="o", ls="none", ms=4, color=color, mec="white", mew=0.5, zorder=4)
    point[0].set_gid(f"cost:{cost.part}:{cost.axis}")
    x0, y0 = np.log(cost.sizes).mean(), np.log(middle).mean()
    ends = cost.sizes[[0, -1]]
    for power, dash, kind in ((cost.slope, "-", "fit"), (cost.theory, THEORY_DASH, "theory")):
        through = np.exp(y0 + power * (np.log(ends) - x0))
        line = ax.plot(ends, through, color=color, lw=1.0, ls=dash, alpha=0.8, zorder=2)
        line[0].set_gid(f"{kind}:{cost.part}:{cost.axis}")


def _cost_axes(ax: Axes, together: Sequence[Cost]) -> None:
    """Make both axes logarithmic, with a tick for every size and the slopes as the title."""
    sizes = sorted({float(size) for cost in together for size in cost.sizes})
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(FixedLocator(sizes))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0f}")
    ax.set_xlabel(together[0].axis)
    told = [f"slope {cost.slope:.2f}, theory {cost.theory:.2f}" for cost in together]
    if len(together) > 1:
        told = [f"{cost.part}: {text}" for cost, text in zip(together, told, strict=True)]
    ax.set_title("\n".join(told).replace("-", "−"), loc="left", fontsize=6.2, linespacing=1.3)


def _draw_crossing(ax: Axes, crossing: Result) -> None:
    """Draw a vertical line at the size where two parts cost the same."""
    line = ax.axvline(crossing.median, color=style.GREY, lw=0.8, ls=CROSSING_DASH, zorder=1)
    line.set_gid(f"crossing:{crossing.goal.case}")
