"""Draw the figure final_grid: every run's final validation loss and outcome against a swept column."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from normstudy import config as cfg
from normstudy.analysis.grid import Value
from normstudy.analysis.select import KINDS, native
from normstudy.figures import axes as on_axes
from normstudy.figures import layout, series, style
from normstudy.figures.look import Look, swept, values
from normstudy.figures.study import Lacks, Study

JITTER = 0.04  # a marker's largest shift to the left or right, as a fraction of `XAxis.gap`
GOLDEN = (5**0.5 - 1) / 2


class XAxis(NamedTuple):
    """An x axis that shows a column of `runs`. places: the x position of each value in the column."""

    column: str
    places: dict[Value, float]
    scale: str  # how positions depend on values: "linear", "log" or "even" (equal gaps)

    @property
    def gap(self) -> float:
        """Return the smallest distance between two positions, or 1 if there is only one position."""
        return min(np.diff(list(self.places.values())), default=1.0)


def x_axis(runs: pd.DataFrame, taken: Sequence[str | None]) -> XAxis:
    """Choose the numeric column with the most values. taken: columns to avoid if possible."""
    preferred = ("peak_lr", "n_layers", "warmup_steps", "d_model")
    varying = [c for c in swept(runs) if c not in cfg.TEXT_COLUMNS]
    numeric = [c for c in varying if KINDS.get(c) in (int, float)]
    numeric = [c for c in numeric if c not in taken] or numeric
    ordered = [*(c for c in preferred if c in numeric), *numeric] or varying[:1] or ["placement"]
    column = max(ordered, key=lambda c: runs[c].nunique(dropna=False))
    found = values(runs, column)
    sizes = [float(v) for v in found if isinstance(v, int | float)]
    even = XAxis(column, {v: float(i) for i, v in enumerate(found)}, "even")
    if len(sizes) < len(found) or len(found) < 2:
        return even
    if min(sizes) > 0 and (column == "peak_lr" or max(sizes) / min(sizes) > 10):
        return XAxis(column, {v: float(np.log10(s)) for v, s in zip(found, sizes, strict=True)}, "log")
    gaps = np.diff(sizes)
    return even if gaps.max() > 8 * gaps.min() else XAxis(column, dict(zip(found, sizes, strict=True)), "linear")


def beside_x(x: XAxis, look: Look, runs: pd.DataFrame) -> tuple[Look, pd.DataFrame]:
    """Adapt `look` and `runs` to the x axis, whose column line styles or colors may already show. Return both.

    If line styles show this column, all lines get the same style. If colors show it and the study has a facet,
    colors take over the field of the line styles.
    """
    if look.dash == x.column:
        return replace(look, dash=None, dashes={"": "-"}), runs.assign(dash="")
    if look.facet is None or look.hue != x.column:
        return look, runs
    colors = dict(zip(look.dashes, style.shades(len(look.dashes), style.ARMS), strict=True))
    look = replace(look, hue=look.dash or "", dash=None, colors=colors, dashes={"": "-"})
    return look, runs.assign(hue=runs["dash"], dash="")


def grid_table(runs: pd.DataFrame, x: XAxis) -> pd.DataFrame:
    """Return each run's hue, dash, run_id, outcome, place, value and at, sorted by value.

    value: the final loss, or NaN if the run diverged. place: the x position of the run's value of `x.column`. at: the
    x position of the run's marker, shifted from `place` to keep markers of equal losses apart.
    """
    value = runs["final_val_loss"].astype(float).where(runs["outcome"] != "diverged")
    place = [x.places[native(x.column, v)] for v in runs[x.column]]
    table = runs[["hue", "dash", "run_id", "outcome"]].assign(place=place, value=value)
    table = table.sort_values(["value", "run_id"])
    part = (table.groupby("place").cumcount() * GOLDEN + 0.5) % 1
    return table.assign(at=table["place"] + JITTER * x.gap * (2 * part - 1))


def draw_grid(ax: Axes, table: pd.DataFrame, look: Look, x: XAxis, edge: float) -> None:
    """Draw a marker for each run, and lines through the means over seeds. Markers of diverged runs are at y = `edge`.

    Where a seed diverged, no mean is drawn, because a mean of the other seeds would hide the divergence. No line joins
    the means if the x axis shows names, because names have no order.
    """
    for hue, dash, run_id, outcome, value, at in table.drop(columns="place").fillna({"value": edge}).itertuples(False):
        color = look.colors[hue]
        ax.plot(
            [at], [value], ls="none", marker=style.OUTCOME_MARKERS[outcome], mfc=look.filling(dash, color), mec=color,
            mew=0.4, ms=4.5 if outcome == "diverged" else 3.2, zorder=3, gid=f"{outcome}:{run_id}",
        )  # fmt: skip
    joined = KINDS.get(x.column) in (int, float)
    for hue, dash, arm in look.arms(table):
        means = arm.groupby("place")["value"].agg(lambda losses: losses.mean(skipna=False))
        for part in [means] if joined else [means[[place]] for place in means.index]:
            ax.plot(
                part.index, part, color=look.colors[hue], ls=look.dashes[dash], lw=1.1, zorder=2,
                marker="_" if len(part) == 1 else "", ms=14, mew=1.1, gid=f"mean:{hue}:{dash}",
            )  # fmt: skip


def draw_ticks(ax: Axes, study: Study, x: XAxis) -> None:
    """Label the x axis with the values of its column."""
    ax.set_xlim(min(x.places.values()) - 0.5 * x.gap, max(x.places.values()) + 0.5 * x.gap)
    ax.set_xticks(list(x.places.values()), [study.text(x.column, v) for v in x.places])
    if x.column == study.look.facet:
        ax.tick_params(axis="x", rotation=35)


def limits(ended: Sequence[float], references: Sequence[float], *, diverged: bool) -> tuple[float, float]:
    """Return the loss axis's limits, which include all final losses (`ended`) and the reference nearest to them."""
    shown = ended or references or (0.0,)
    low, high = min(shown), max(shown)
    nearest = min(references, key=lambda r: max(low - r, r - high, 0.0), default=low)
    low, high = min(low, nearest), max(high, nearest)
    margin = 0.07 * max(high - low, 0.01)
    return low - margin, high + (3 if diverged else 1) * margin


def final_grid(study: Study) -> FigureBase:
    """Draw every run's final validation loss and outcome against a swept column."""
    if not swept(study.runs):
        raise Lacks("only the seed varies")
    x = x_axis(study.runs, (study.look.hue, study.look.dash))
    look, runs = beside_x(x, study.look, study.runs)
    panels, notes = study.panels(runs, skip=(x.column,))
    shown = pd.concat([p.runs for p in panels])
    tables = [grid_table(p.runs, x) for p in panels]
    references = [v for p in panels for _, v in series.entropies(p.runs)]
    ended = [float(v) for t in tables for v in t["value"].dropna()]
    low, high = limits(ended, references, diverged=bool((shown["outcome"] == "diverged").any()))

    crowded = shown["hue"].nunique() > 4 or len(x.places) > 3
    fig, axes = layout.subplots(study.paper, len(panels), height=2.2, share=1.0 if crowded else None)
    one_text = series.same_text(panels)
    for ax, panel, table in zip(axes, panels, tables, strict=True):
        lines = [r for r in series.entropies(panel.runs) if low <= r[1] <= high]
        on_axes.draw_references(ax, lines, labelled=not one_text or layout.place_of(ax).is_last_col())
        draw_grid(ax, table, look, x, edge=high - 0.04 * (high - low))
        layout.panel_title(ax, panel.title)
        ax.set_ylim(low, high)
        draw_ticks(ax, study, x)
    x_label = x.column + (" (log axis)" if x.scale == "log" else "")
    layout.label_axes(fig, axes, x_label, "final validation loss,\nnats per token", once=look.facet is not None)
    what = f"Final validation loss and outcome against {x.column}; marker: one run, line: mean over seeds"
    what += f"; a panel per {look.facet}" if len(panels) > 1 and look.facet else ""
    layout.title(fig, study, what, study.runs[study.runs["run_id"].isin(shown["run_id"])], notes)
    layout.legend(fig, study.paper, look, shown, layout.outcome_handles(shown), markers=True)
    return fig
