"""Draw the figure gradient_ratio: the first layer's gradient norm divided by the last layer's, against step."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from normstudy.figures import axes as on_axes
from normstudy.figures import layout, series, style
from normstudy.figures.gradient_profile import needs_layers
from normstudy.figures.look import Look
from normstudy.figures.study import Lacks, Study


def ratio_table(modules: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the finite, positive ratios (column `value`) of the first layer's value to the last layer's."""
    rows = series.of_runs(modules, runs, ["hue", "dash", "n_layers"])
    first = rows.loc[rows["layer"] == 0, ["run_id", "step", "value"]]
    last = rows[(rows["layer"] == rows["n_layers"] - 1) & (rows["n_layers"] > 1)]
    ratio = last.merge(first, "left", on=["run_id", "step"], suffixes=("", "_first"))
    ratio = ratio.assign(value=ratio["value_first"] / ratio["value"])
    good = np.isfinite(ratio["value"]) & (ratio["value"] > 0)
    found: pd.DataFrame = ratio.loc[good, ["run_id", "step", "hue", "dash", "value"]]
    return found


def without_ratio(study: Study, runs: pd.DataFrame) -> list[str]:
    """Return a note if a first or last layer's gradient is exactly 0, because the ratio then cannot be drawn."""
    rows = series.of_runs(study.modules, runs, ["n_layers"])
    return series.zeros(study, rows[(rows["layer"] == 0) | (rows["layer"] == rows["n_layers"] - 1)])


def ratio_notes(study: Study, runs: pd.DataFrame) -> list[str]:
    """Return notes on ratios that cannot be drawn, and on the meaning of vertical lines."""
    warmed = study.look.dash == "warmup_steps" and (runs["warmup_steps"] > 0).any()
    return without_ratio(study, runs) + ["vertical line: end of the warmup"] * bool(warmed)


def draw_ratio(ax: Axes, table: pd.DataFrame, runs: pd.DataFrame, look: Look) -> None:
    """Draw ratios against step, a horizontal line at 1, vertical lines where warmups end, and marks of divergence."""
    ax.axhline(1, color=style.GREY, lw=0.6, ls=(0, (1, 2)), zorder=1, gid="reference:equal")
    if look.dash == "warmup_steps":
        for warmup in sorted({int(w) for w in runs["warmup_steps"] if w > 0}):
            line = ax.axvline(warmup, color=style.GREY, lw=0.7, ls=look.dashes[str(warmup)], alpha=0.6, zorder=0)
            line.set_gid(f"warmup:{warmup}")
    on_axes.draw_seed_lines(ax, table, runs, look, log=True)
    on_axes.draw_ends(ax, series.ends(table, runs), look)
    on_axes.norm_axis(ax)


def gradient_ratio(study: Study) -> FigureBase:
    """Draw the first layer's gradient norm, or another quantity, divided by the last layer's, against step."""
    needs_layers(study)
    panels, notes = study.panels(study.runs[study.runs["n_layers"] > 1])
    fig, axes = layout.subplots(study.paper, len(panels))
    drawn = 0
    for ax, panel in zip(axes, panels, strict=True):
        table = ratio_table(study.modules, panel.runs)
        drawn += len(table)
        draw_ratio(ax, table, panel.runs, study.look)
        layout.panel_title(ax, panel.title)
        on_axes.step_axis(ax, series.last_step(study.runs), log=True)
    if not drawn:
        raise Lacks("no first/last-layer gradient ratio is finite and above zero")
    y_label = f"{study.paper.quantity},\nfirst / last layer"
    layout.label_axes(fig, axes, on_axes.LOG_STEP, y_label, once=study.look.facet is not None)
    shown = pd.concat([p.runs for p in panels])
    what = f"First/last-layer ratio of the {study.paper.what} by {study.look.by}; thin: seeds, bold: geometric mean"
    layout.title(fig, study, what, shown, notes + ratio_notes(study, shown))
    layout.legend(fig, study.paper, study.look, shown, layout.outcome_handles(shown, ["diverged"]))
    return fig
