"""Draw the benchmark's figure from stored tables: the results that have goals, and how CPU time grows with size."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from normstudy.bench import summary
from normstudy.bench.rows import THEORY
from normstudy.figures import style
from normstudy.figures.paper import TWO_COLUMNS

LINE, COSTS = 0.16, 1.9  # heights in inches. LINE: a line of text, or a result. COSTS: the panels of CPU time
NAME, SMALL = 60, 5.5  # most characters in a line of a result's name; its font size in points
COLORS = {"met": style.PLACEMENT_COLORS["pre"], "not met": style.PLACEMENT_COLORS["post"]}
# Match the cases of row `e` of the benchmark: `n_layers=4` (a training step) or `norm, seq_len=64` (a part of a block).
COST = r"^(?:(?P<part>.+), )?(?P<axis>\w+)=(?P<size>\d+)$"
WHOLE = "run-step"


def draw(stored: pd.DataFrame, out: Path) -> None:
    """Draw the figure into the folder `out`. The same version of matplotlib always writes the same bytes."""
    with style.rc():
        style.save(figure(stored), out / "bench.png", "png")


def figure(stored: pd.DataFrame) -> Figure:
    """Draw the figure of stored samples, which have the columns of bench.tables.SCHEMA. Empty panels are left out."""
    goals = [r for r in summary.results(stored) if r.goal.limit and min(r.numbers) > 0]  # a log axis cannot show 0
    costs = stored.join(stored["case"].where(stored["row"] == "e").str.extract(COST)).dropna(subset="size")
    notes = summary.machine_lines(stored)
    heights = [LINE * (len(goals) + 5) if goals else 0.01, COSTS if len(costs) else 0.01]
    fig = Figure(figsize=(TWO_COLUMNS, LINE * (2 * len(notes) + 2) + sum(heights)), layout="constrained")
    fig.suptitle("\n".join(["normstudy bench", *notes]), x=0.01, ha="left", wrap=True)
    upper, lower = fig.subfigures(2, 1, squeeze=False, height_ratios=heights).ravel()
    if goals:
        _draw_goals(upper, goals)
    if len(costs):
        _draw_costs(lower, costs.fillna({"part": WHOLE}), stored)
    return fig


def _draw_goals(fig: SubFigure, results: Sequence[summary.Result]) -> None:
    """Draw each result's median and range over rounds, divided by the result's goal."""
    ax = fig.subplots()
    spans = [np.quantile(r.numbers, (0, 0.5, 1)) for r in results]
    frame = pd.DataFrame(spans, columns=["low", "median", "high"]).div([r.goal.limit for r in results], axis=0)
    for verdict, color in COLORS.items():
        part = frame[[r.verdict == verdict for r in results]]
        around = [part["median"] - part["low"], part["high"] - part["median"]]
        ax.errorbar(part["median"], part.index, xerr=around, fmt="o", color=color, label=f"goal {verdict}")
    ax.axvline(1, color=style.GREY, lw=style.THIN)
    texts = [summary.cells(r) for r in results]
    names = [f"{row}  {title if title == case else f'{case}: {title}'}" for row, case, title, *_ in texts]
    ax.set_yticks(range(len(results)), [textwrap.fill(name, NAME) for name in names], fontsize=SMALL, linespacing=0.95)
    ax.set_ylim(len(results) - 0.5, -0.5)
    found = [f"{value}, goal {goal}" for _, _, _, value, _, goal, _ in texts]
    ax.secondary_yaxis("right").set_yticks(range(len(results)), found, fontsize=SMALL)
    ax.set_xscale("log", subs=[2, 5])
    ax.set_xlim(min(0.5, frame["low"].min() / 1.1), max(2, frame["high"].max() * 1.1))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.set_xlabel("measured / goal (median and range over rounds)")
    fig.legend(loc="outside upper right", ncols=2)


def _draw_costs(fig: SubFigure, costs: pd.DataFrame, stored: pd.DataFrame) -> None:
    """Draw CPU times. Each panel shows a whole step or a block's parts against one size, such as n_layers."""
    panels = costs.groupby([costs["part"] != WHOLE, "axis"], sort=False)
    axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    theory = stored[(stored["subject"] == THEORY) & (stored["metric"] == "slope")].groupby("case")["value"].median()
    colors = dict(zip(costs["part"].unique(), ("black", *style.PLACEMENT_COLORS.values()), strict=False))
    for ax, ((is_part, axis), panel) in zip(axes, panels, strict=True):
        for part, points in panel.groupby("part", sort=False):
            cost = points.groupby(points["size"].astype(int))["value"].agg(["min", "median", "max"])
            around = [cost["median"] - cost["min"], cost["max"] - cost["median"]]
            ax.errorbar(cost.index, cost["median"], yerr=around, fmt="o-", lw=1, ms=3, color=colors[part], label=part)
            growth = (cost.index / geometric_mean(cost.index)) ** theory[f"{part} vs {axis}"]
            ax.plot(cost.index, geometric_mean(cost["median"]) * growth, "--", color=colors[part], lw=style.THIN)
        ax.set_xscale("log", base=2)
        ax.set(yscale="log", xlabel=axis)
        ax.set_title("parts of a block" if is_part else WHOLE, fontsize="small")
        ax.tick_params(labelsize=SMALL)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel("CPU ms per run")
    handles = {name: handle for ax in axes for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    title = "Median and range over rounds. Dashed lines have the slope that theory predicts."
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), title=title)
