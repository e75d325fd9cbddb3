"""Draw the figure final_grid: every run's final validation loss and outcome against a swept column."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normstudy import config as cfg
from normstudy.analysis.grid import Value
from normstudy.analysis.select import KINDS, native
from normstudy.figures import axes as on_axes
from normstudy.figures import layout, series, style
from normstudy.figures.look import MAX_HUES, Look, swept, values
from normstudy.figures.study import Lacks, Study

DODGE = 0.5  # the markers of an x value are spread sideways, over this fraction of the gap to the next x value


@dataclass(frozen=True)
class XAxis:
    """Hold the column that the x axis shows, and the x position of each value in this column."""

    column: str
    places: dict[Value, float]
    scale: str  # how positions depend on values: "linear", "log" or "even" (equal gaps)

    @property
    def gap(self) -> float:
        """Return the smallest distance between two positions, or 1 if there is only one position."""
        return min(np.diff(list(self.places.values())), default=1.0)


def x_axis(runs: pd.DataFrame, taken: Sequence[str | None]) -> XAxis:
    """Choose the numeric column with the most values. Columns shown by color or line style (`taken`) come last."""
    preferred = ("peak_lr", "n_layers", "warmup_steps", "d_model")
    varying = [c for c in swept(runs) if c not in cfg.TEXT_COLUMNS]
    numeric = [c for c in varying if KINDS.get(c) in (int, float)]
    numeric = [c for c in numeric if c not in taken] or numeric
    if numeric:
        ordered = [*(c for c in preferred if c in numeric), *numeric]
        column = max(ordered, key=lambda c: runs[c].nunique(dropna=False))
    else:
        column = varying[0] if varying else "placement"
    found = values(runs, column)
    sizes = [float(v) for v in found if isinstance(v, int | float)]
    even = XAxis(column, {v: float(i) for i, v in enumerate(found)}, "even")
    if len(sizes) < len(found) or len(found) < 2:
        return even
    if min(sizes) > 0 and (column == "peak_lr" or max(sizes) / min(sizes) > 10):
        return XAxis(column, {v: float(np.log10(s)) for v, s in zip(found, sizes, strict=True)}, "log")
    gaps = np.diff(sizes)
    return even if gaps.max() > 8 * gaps.min() else XAxis(column, dict(zip(found, sizes, strict=True)), "linear")


def color_by_dash(x: XAxis, look: Look, runs: pd.DataFrame) -> tuple[Look, pd.DataFrame]:
    """Return `look` and `runs`, changed if the x axis shows the same column as the colors.

    If so, the colors show the column of the line styles instead. Nothing changes if the study has no facet (a text
    field with too many values for colors).
    """
    if look.facet is None or look.hue != x.column:
        return look, runs
    colors = dict(zip(look.dashes, style.shades(len(look.dashes), style.ARMS), strict=True))
    look = replace(look, hue=look.dash or "", dash=None, colors=colors, dashes={"": "-"})
    return look, runs.assign(hue=runs["dash"], dash="")


def grid_table(runs: pd.DataFrame, x: XAxis) -> pd.DataFrame:
    """Return each run's hue, dash, run_id, outcome, place (the x position) and value (the loss; NaN if diverged)."""
    value = runs["final_val_loss"].astype(float).where(runs["outcome"] != "diverged")
    return runs[["hue", "dash", "run_id", "outcome"]].assign(
        place=[x.places[native(x.column, v)] for v in runs[x.column]], value=value
    )


def draw_grid(ax: Axes, table: pd.DataFrame, look: Look, x: XAxis, edge: float) -> None:
    """Draw a marker for each run and lines through the means over seeds. A marker's shape shows the outcome.

    Diverged runs are drawn at y = `edge`. If a seed diverged, no mean is drawn for its color and line style, because a
    mean over the other seeds would hide the divergence. Markers of the same x value are drawn side by side, because
    stuck runs with equal losses would otherwise overlap.
    """
    # At each x value, every combination of color and line style gets a slot, and the slots lie side by side. If the
    # colors show the x axis's column, each x value has only one color, so only the line styles get slots. If the line
    # styles show that column, only the colors get slots.
    hues = [h for h in look.colors if (table["hue"] == h).any()]
    dashes = [d for d in look.dashes if (table["dash"] == d).any()]
    by_hue, by_dash = look.hue != x.column, look.dash != x.column
    slots = list(itertools.product(hues if by_hue else [""], dashes if by_dash else [""]))
    width = DODGE * x.gap / len(slots)
    lines: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for hue, dash, arm in look.arms(table):
        slot = slots.index((hue if by_hue else "", dash if by_dash else ""))
        shift = (slot - (len(slots) - 1) / 2) * width
        for place, runs in arm.groupby("place"):
            center = float(runs["place"].iloc[0]) + shift
            spots = center + np.linspace(-1, 1, len(runs)) * min(0.35, 0.08 * len(runs)) * width * (len(runs) > 1)
            _draw_runs(ax, runs.assign(place=spots), look.colors[hue], edge)
            mean = float(runs["value"].mean(skipna=False))
            apart = [str(place)] if x.column == look.facet else []  # names have no order, so no line joins their means
            lines.setdefault((hue, dash if by_dash else "", *apart), []).append((center, mean))
    for (hue, dash, *_), points in lines.items():
        places, means = zip(*sorted(points), strict=True)
        ax.plot(
            places, means, color=look.colors[hue], ls=look.dashes.get(dash, "-"), lw=1.1, zorder=2,
            marker="_" if len(points) == 1 else "", ms=10, mew=1.1, gid=f"mean:{hue}:{dash}",
        )  # fmt: skip


def _draw_runs(ax: Axes, runs: pd.DataFrame, color: str, edge: float) -> None:
    for run_id, outcome, place, value in zip(
        runs["run_id"], runs["outcome"], runs["place"], runs["value"].fillna(edge), strict=True
    ):
        ax.plot(
            [place], [value], ls="none", marker=style.OUTCOME_MARKERS[outcome], color=color, mec="white",
            mew=0.4, ms=5.5 if outcome == "diverged" else 4, zorder=3, gid=f"{outcome}:{run_id}",
        )  # fmt: skip


def limits(ended: Sequence[float], references: Sequence[float], *, diverged: bool) -> tuple[float, float]:
    """Return limits of the loss axis that include all final losses and the reference loss nearest to them.

    ended: final losses. diverged: leave room at the top for markers of diverged runs.
    """
    low, high = min(ended, default=min(references)), max(ended, default=max(references))
    nearest = min(references, key=lambda r: max(low - r, r - high, 0.0))
    low, high = min(low, nearest), max(high, nearest)
    margin = 0.07 * max(high - low, 0.01)
    return low - margin, high + (3 if diverged else 1) * margin


def final_grid(study: Study) -> Figure:
    """Draw every run's final validation loss and outcome against a swept column."""
    if not swept(study.runs):
        raise Lacks("only the seed varies")
    x = x_axis(study.runs, (study.look.hue, study.look.dash))
    look, runs = color_by_dash(x, study.look, study.runs)
    panels, notes = study.panels(runs, skip=(x.column,))
    shown = pd.concat([p.runs for p in panels])
    tables = [grid_table(p.runs, x) for p in panels]
    references = [v for p in panels for _, v in series.entropies(p.runs)]
    ended = [float(v) for t in tables for v in t["value"].dropna()]
    low, high = limits(ended, references, diverged=bool((shown["outcome"] == "diverged").any()))

    crowded = shown["hue"].nunique() > 4 or len(x.places) > MAX_HUES
    fig, axes = layout.subplots(len(panels), height=2.2, width=style.TWO_COLUMNS if crowded else None)
    one_text = series.same_text(panels)
    for ax, panel, table in zip(axes, panels, tables, strict=True):
        lines = [r for r in series.entropies(panel.runs) if low <= r[1] <= high]
        on_axes.draw_references(ax, lines, labelled=not one_text or layout.place_of(ax).is_last_col())
        draw_grid(ax, table, look, x, edge=high - 0.04 * (high - low))
        layout.panel_title(ax, panel.title)
        ax.set_ylim(low, high)
        ax.set_xlim(min(x.places.values()) - 0.5 * x.gap, max(x.places.values()) + 0.5 * x.gap)
        ax.set_xticks(list(x.places.values()), [study.text(x.column, v) for v in x.places])
        if x.column == look.facet:
            ax.tick_params(axis="x", rotation=35)
    x_label = x.column + (" (log axis)" if x.scale == "log" else "")
    layout.label_axes(fig, axes, x_label, "final validation loss,\nnats per token", once=look.facet is not None)
    what = f"Final validation loss and outcome against {x.column}; marker: one run, line: mean over seeds"
    what += f"; a panel per {look.facet}" if len(panels) > 1 and look.facet else ""
    layout.title(fig, study, what, study.runs[study.runs["run_id"].isin(shown["run_id"])], notes)
    layout.legend(fig, look, shown, layout.outcome_handles(shown), dashes=look.dash != x.column)
    return fig
