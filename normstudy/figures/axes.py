"""Set up axes, and draw what most figures show: lines of seeds, lines of means, diverged runs, reference losses."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from normstudy.figures import style
from normstudy.figures.layout import FEW, place_of
from normstudy.figures.look import Look
from normstudy.figures.series import last_tenth, seed_mean

STEP, LOG_STEP = "step", "step, log of step + 1"  # labels of the linear and the logarithmic step axis

# The scale log(step + 1) and its inverse. matplotlib also transforms steps of -1 and less: they count as -0.999.
LOG1P = (lambda x: np.log1p(np.maximum(x, -0.999)), np.expm1)

# (threshold, leading digits of the ticks). An axis uses the first pair whose threshold is below high / low.
TICKS = (20, (1, 2, 5)), (8, (1, 2, 3, 5)), (2.5, (1, 1.5, 2, 3, 5, 7)), (0, (1, 2, 3, 4, 5, 6, 7, 8, 9))


def step_axis(ax: Axes, last: int, *, log: bool) -> None:
    """Make the x axis show steps 0 to `last`. log: make the axis logarithmic in step + 1, with a tick at `last`."""
    narrow = place_of(ax).get_gridspec().ncols > 3
    if not log:
        ax.set_xlim(-0.02 * last, 1.02 * last)  # leaves room for the markers at both ends
        ax.xaxis.set_major_locator(MaxNLocator(4 if narrow else 5, integer=True, steps=[1, 2, 5, 10]))
        return
    ax.set_xscale("function", functions=LOG1P)
    ax.set_xlim(0, max(last, 1))
    ax.xaxis.set_major_locator(FixedLocator(log_ticks(last, 3 if narrow else 2.2)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0f}")


def log_ticks(last: int, apart: float) -> list[int]:
    """Return ticks such as 0, 5, 20 and `last`. From tick to tick, step + 1 grows by a factor of at least `apart`."""
    ticks = [0]
    for step in (1, 5, 20, 100, 500, 2000, 10_000, 50_000, 200_000):
        if step + 1 >= apart * (ticks[-1] + 1) and apart * (step + 1) < last + 1:
            ticks.append(step)
    return [*ticks, last]


def norm_axis(ax: Axes) -> None:
    """Make the y axis logarithmic, with the ticks of `norm_ticks`."""
    ax.set_yscale("log")
    norm_ticks(ax.yaxis)


def norm_ticks(axis: Axis) -> None:
    """Set ticks that look alike in all versions of matplotlib. On an axis of less than 2 decades, use TICKS."""
    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=next(subs for factor, subs in TICKS if high > factor * low)))
        axis.set_major_formatter(lambda v, _: f"{v:g}")
    axis.set_minor_formatter(NullFormatter())


def layer_axis(axis: Axis, top: int) -> None:
    """Set about eight ticks for layers 0 to `top`, always with a tick at 0 and at `top`. axis: the x or the y axis."""
    every = max(1, -(-top // 7))
    axis.set_ticks(sorted({t for t in range(0, top + 1, every) if t == 0 or top - t >= every * 0.6} | {top}))


def draw_seed_lines(
    ax: Axes, table: pd.DataFrame, runs: pd.DataFrame, look: Look, *, log: bool, smooth: bool = False, thin: bool = True
) -> None:
    """Draw a bold line for the mean over seeds and, if `thin`, a thin line for each seed.

    table: has columns hue, dash, run_id, step, value. runs: the panel's runs. log: draw the geometric mean. smooth:
    apply `last_tenth` to the mean.
    """
    mean = seed_mean(table, runs, log=log)
    alpha = 0.4 if look.facet is None else 0.25  # in small panels, pale lines of seeds keep the mean visible
    for hue, dash, seeds in look.arms(table):
        color, pattern = look.colors[hue], look.dashes[dash]
        for run_id, run in seeds.groupby("run_id", observed=True) if thin else ():
            # ax.plot would be slow, because it checks units and limits for every line
            line = Line2D(run["step"], run["value"], color=color, ls=pattern, lw=style.THIN, alpha=alpha)
            line.set_gid(f"seed:{run_id}")
            ax.add_line(line)
        bold = mean[(mean["hue"] == hue) & (mean["dash"] == dash)].sort_values("step")
        if smooth:
            bold = last_tenth(bold)
        # a white edge around a dashed line keeps its gaps visible where the line crosses other lines
        ax.plot(bold["step"], bold["value"], color="white", lw=style.BOLD + 1, alpha=0.7, zorder=2.5)
        few = "." if 0 < len(bold) <= 16 else ""  # a line with few points also shows the points
        ax.plot(
            bold["step"], bold["value"], color=color, ls=pattern, lw=style.BOLD, marker=few, ms=5, zorder=3,
            gid=f"mean:{hue}:{dash}",
        )  # fmt: skip


def draw_ends(ax: Axes, ends: pd.DataFrame, look: Look) -> None:
    """Mark the last finite point of each diverged run. ends: the last points, with columns hue, run_id, step, value."""
    for run_id, hue, step, value in zip(ends["run_id"], ends["hue"], ends["step"], ends["value"], strict=True):
        ax.plot(
            [step], [value], marker=style.OUTCOME_MARKERS["diverged"], ms=6, ls="none", zorder=5,
            color=look.colors[hue], mec="white", mew=0.6, clip_on=False, gid=f"diverged:{run_id}",
        )  # fmt: skip


def draw_references(ax: Axes, references: Sequence[tuple[str, float]], *, labelled: bool) -> None:
    """Draw a line at each reference loss. labelled: also write the name and the loss to the right of the panel."""
    grid = place_of(ax).get_gridspec()
    gap = " " if grid.nrows * grid.ncols > FEW else "\n"  # two-line labels would overlap in low panels
    for name, value in references:
        ax.axhline(value, color=style.GREY, lw=0.6, ls=(0, (1, 2)), zorder=1, gid=f"reference:{name}")
        if labelled:
            ax.annotate(
                f"{name}{gap}{value:.2f}", (1, value), xycoords=("axes fraction", "data"), xytext=(3, 0),
                textcoords="offset points", va="center", fontsize=6, color=style.GREY, annotation_clip=False,
            )  # fmt: skip
